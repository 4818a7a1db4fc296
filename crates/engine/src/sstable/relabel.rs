//! Batches under another schema of the same shape: other nullability, other metadata, the same values. Arrow compares
//! nested fields with their metadata, so a column of structs or lists must be rebuilt around the new fields; no value
//! is copied.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, LargeListArray, ListArray, MapArray, RecordBatch, RecordBatchOptions,
    StructArray,
};
use arrow_schema::{ArrowError, DataType, FieldRef, SchemaRef};

use crate::error::{Error, Result};

/// The batch under `schema`, which must name the same columns in the same order with the same types, but may differ
/// from the batch's own in nullability and metadata, also inside of nested types.
///
/// # Errors
/// [`Error::InvalidBatch`] if the shapes differ, or a column that may not be null has a null.
pub(crate) fn relabel(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let refused = |reason: String| Error::InvalidBatch(reason);
    if batch.num_columns() != schema.fields().len() {
        return Err(refused(format!("it has {} columns instead of {}", batch.num_columns(), schema.fields().len())));
    }
    let batch_schema = batch.schema_ref();
    let mut columns = Vec::with_capacity(batch.num_columns());
    for ((column, from), to) in batch.columns().iter().zip(batch_schema.fields()).zip(schema.fields()) {
        if from.name() != to.name() {
            return Err(refused(format!("it has column `{}` in place of `{}`", from.name(), to.name())));
        }
        let relabelled =
            relabel_array(column, to.data_type()).map_err(|e| refused(format!("column `{}`: {e}", to.name())))?;
        columns.push(relabelled);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(|e| refused(e.to_string()))
}

fn relabel_array(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    let from = array.data_type();
    if from == to {
        return Ok(Arc::clone(array));
    }
    let mismatch = || ArrowError::SchemaError(format!("its type is {from} instead of {to}"));
    let nulls = array.nulls().cloned();
    Ok(match (from, to) {
        (DataType::Struct(old), DataType::Struct(new)) if same_names(old, new) && !new.is_empty() => {
            let children = array.as_struct().columns().iter().zip(new);
            let children = children.map(|(child, field)| relabel_array(child, field.data_type()));
            Arc::new(StructArray::try_new(new.clone(), children.collect::<Result<_, _>>()?, nulls)?)
        }
        (DataType::List(_), DataType::List(field)) => {
            let list = array.as_list::<i32>();
            let values = relabel_array(list.values(), field.data_type())?;
            Arc::new(ListArray::try_new(Arc::clone(field), list.offsets().clone(), values, nulls)?)
        }
        (DataType::LargeList(_), DataType::LargeList(field)) => {
            let list = array.as_list::<i64>();
            let values = relabel_array(list.values(), field.data_type())?;
            Arc::new(LargeListArray::try_new(Arc::clone(field), list.offsets().clone(), values, nulls)?)
        }
        (DataType::FixedSizeList(_, old), DataType::FixedSizeList(field, new)) if old == new => {
            let values = relabel_array(array.as_fixed_size_list().values(), field.data_type())?;
            Arc::new(FixedSizeListArray::try_new(Arc::clone(field), *new, values, nulls)?)
        }
        (DataType::Map(_, old), DataType::Map(field, new)) if old == new => {
            let map = array.as_map();
            let entries: ArrayRef = Arc::new(map.entries().clone());
            let entries = relabel_array(&entries, field.data_type())?.as_struct().clone();
            Arc::new(MapArray::try_new(Arc::clone(field), map.offsets().clone(), entries, nulls, *new)?)
        }
        _ => return Err(mismatch()),
    })
}

fn same_names(old: &[FieldRef], new: &[FieldRef]) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(a, b)| a.name() == b.name())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::collections::HashMap;

    use arrow_array::Int32Array;
    use arrow_schema::{Field, Schema};

    use super::*;

    fn nested(metadata: &[(&str, &str)]) -> SchemaRef {
        let metadata: HashMap<String, String> =
            metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let leaf = Field::new("n", DataType::Int32, true).with_metadata(metadata);
        let item = Field::new("item", DataType::Struct(vec![leaf].into()), true);
        Arc::new(Schema::new(vec![Field::new("list", DataType::List(Arc::new(item)), true)]))
    }

    fn batch() -> RecordBatch {
        let schema = nested(&[]);
        let DataType::List(item) = schema.field(0).data_type().clone() else { unreachable!() };
        let DataType::Struct(fields) = item.data_type().clone() else { unreachable!() };
        let values: ArrayRef = Arc::new(Int32Array::from(vec![1, 2, 3]));
        let structs = StructArray::new(fields, vec![values], None);
        let offsets = arrow_buffer::OffsetBuffer::from_lengths([2, 0, 1]);
        let list = ListArray::new(item, offsets, Arc::new(structs), None);
        RecordBatch::try_new(schema, vec![Arc::new(list)]).unwrap()
    }

    #[test]
    fn nested_fields_take_the_new_metadata_and_keep_their_values() {
        let to = nested(&[("lance:field_id", "7")]);
        let out = relabel(&batch().slice(1, 2), &to).unwrap();
        assert_eq!(out.schema(), to);
        assert_eq!(out.num_rows(), 2);
        let back = relabel(&out, &nested(&[])).unwrap();
        assert_eq!(back, batch().slice(1, 2));
    }

    #[test]
    fn another_type_or_name_is_refused() {
        let other = Arc::new(Schema::new(vec![Field::new("list", DataType::Int32, true)]));
        assert!(matches!(relabel(&batch(), &other), Err(Error::InvalidBatch(_))));
        let renamed = Arc::new(Schema::new(vec![nested(&[]).field(0).clone().with_name("other")]));
        assert!(matches!(relabel(&batch(), &renamed), Err(Error::InvalidBatch(_))));
    }
}
