//! Primary keys as bytes. [`KeyEncoder`] turns the key columns of a batch into one byte string per row, such that two
//! rows have equal bytes exactly if they have equal keys; [`KeySet`] holds such byte strings and never takes one key
//! for another. It knows nothing of row versions: that is the MemTable's index.

mod encoded;
mod set;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_row::{RowConverter, SortField};
use arrow_schema::{DataType, Schema};

pub(crate) use self::encoded::Keys;
pub(crate) use self::set::{KeyHasher, KeySet};
use crate::error::{Error, Result};

/// Encodes the primary key of each row of a batch as bytes: equal bytes are equal keys, and the order of the bytes is the
/// order of the keys, column by column. Most keys are encoded with `arrow_row`, a single integer or string in a form that
/// takes less time to make and to compare ([`Keys`]). Clone is cheap.
///
/// A key may have any type that `arrow_row` encodes, except floats, also inside of lists and structs: `0.0` and
/// `-0.0`, and the many NaNs, are one key to some parts of Arrow and Lance and several to others, so that "the newest
/// row of a key" would depend on who asks.
#[derive(Debug, Clone)]
pub(crate) struct KeyEncoder {
    columns: Arc<[KeyColumn]>,
    converter: Arc<RowConverter>,
}

#[derive(Debug)]
struct KeyColumn {
    name: String,
    data_type: DataType,
}

impl KeyEncoder {
    /// An encoder for the key made of these top-level columns of `schema`, in this order.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if a column is missing, named twice, or has a type that cannot be a key.
    pub(crate) fn try_new(schema: &Schema, names: &[String]) -> Result<Self> {
        if names.is_empty() {
            return Err(Error::InvalidOptions("a primary key needs at least one column".into()));
        }
        let mut columns: Vec<KeyColumn> = Vec::with_capacity(names.len());
        for name in names {
            let Ok(field) = schema.field_with_name(name) else {
                return Err(Error::InvalidOptions(format!("primary-key column `{name}` is not in the table's schema")));
            };
            if columns.iter().any(|c| c.name == *name) {
                return Err(Error::InvalidOptions(format!("primary-key column `{name}` is named twice")));
            }
            let data_type = field.data_type().clone();
            check_key_type(name, &data_type)?;
            columns.push(KeyColumn { name: name.clone(), data_type });
        }
        let fields = columns.iter().map(|c| SortField::new(c.data_type.clone())).collect();
        let converter = RowConverter::new(fields).map_err(|e| {
            Error::InvalidOptions(format!("the primary key ({}) cannot be encoded: {e}", names.join(", ")))
        })?;
        Ok(Self { columns: columns.into(), converter: Arc::new(converter) })
    }

    /// The keys of the batch's rows. The batch may have other columns too, and its columns may stand in any order.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] if a key column is missing, has another type than the table's, or holds a null.
    pub(crate) fn encode(&self, batch: &RecordBatch) -> Result<Keys> {
        if let [column] = &*self.columns
            && let Some(keys) = Keys::of_column(column.of(batch)?)
        {
            return Ok(keys);
        }
        let arrays = self.columns.iter().map(|column| column.of(batch).cloned()).collect::<Result<Vec<_>>>()?;
        self.converter.convert_columns(&arrays).map(Keys::Rows).map_err(Error::arrow("encoding primary keys"))
    }
}

impl KeyColumn {
    /// The column in a batch.
    fn of<'b>(&self, batch: &'b RecordBatch) -> Result<&'b ArrayRef> {
        let Self { name, data_type } = self;
        let Some(array) = batch.column_by_name(name) else {
            return Err(Error::InvalidBatch(format!("the primary-key column `{name}` is missing")));
        };
        if !array.data_type().equals_datatype(data_type) {
            let found = array.data_type();
            return Err(Error::InvalidBatch(format!(
                "the primary-key column `{name}` is {found} but the table's is {data_type}"
            )));
        }
        // Logical: a dictionary's row is null also where it points to a null.
        if let Some(nulls) = array.logical_nulls().filter(|n| n.null_count() > 0) {
            let row = nulls.iter().position(|valid| !valid).unwrap_or_default();
            return Err(Error::InvalidBatch(format!(
                "the primary-key column `{name}` is null in row {row} (counted from 0); every row needs its whole key"
            )));
        }
        Ok(array)
    }
}

fn check_key_type(name: &str, data_type: &DataType) -> Result<()> {
    let reason = if holds_float(data_type) {
        "floats have values that are equal in one place and different in another (0.0 and -0.0, NaN); \
         use a decimal, an integer or a string"
    } else if *data_type == DataType::Null {
        "it has no values"
    } else if !RowConverter::supports_fields(&[SortField::new(data_type.clone())]) {
        "values of this type cannot be compared as whole keys"
    } else {
        return Ok(());
    };
    Err(Error::InvalidOptions(format!("column `{name}` of type {data_type} cannot be in the primary key: {reason}")))
}

fn holds_float(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(f)
        | DataType::LargeList(f)
        | DataType::ListView(f)
        | DataType::LargeListView(f)
        | DataType::FixedSizeList(f, _)
        | DataType::Map(f, _)
        | DataType::RunEndEncoded(_, f) => holds_float(f.data_type()),
        DataType::Struct(fields) => fields.iter().any(|f| holds_float(f.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, f)| holds_float(f.data_type())),
        DataType::Dictionary(_, values) => holds_float(values),
        other => other.is_floating(),
    }
}
