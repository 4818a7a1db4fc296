//! The key columns as an SSTable's sidecars hold them: by value, without dictionaries and views, so that equal keys
//! look the same whatever batch they came in.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema};

use crate::error::{Error, Result};

/// The key columns of the rows, in key order.
///
/// # Errors
/// [`Error::InvalidBatch`] if a key column is missing.
pub(super) fn plain_keys(batch: &RecordBatch, primary_key: &[String]) -> Result<RecordBatch> {
    let mut fields = Vec::with_capacity(primary_key.len());
    let mut columns = Vec::with_capacity(primary_key.len());
    for name in primary_key {
        let Some(column) = batch.column_by_name(name) else {
            return Err(Error::InvalidBatch(format!("the primary-key column `{name}` is missing")));
        };
        let column = plain(column)?;
        fields.push(Field::new(name, column.data_type().clone(), true));
        columns.push(column);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
        .map_err(Error::arrow("choosing the primary-key columns"))
}

/// The type of a key column's values.
pub(super) fn plain_type(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => plain_type(values),
        DataType::Utf8View => &DataType::Utf8,
        DataType::BinaryView => &DataType::Binary,
        plain => plain,
    }
}

fn plain(column: &ArrayRef) -> Result<ArrayRef> {
    match plain_type(column.data_type()) {
        same if same == column.data_type() => Ok(Arc::clone(column)),
        plain => cast(column, plain).map_err(Error::arrow("taking a key column out of its dictionary")),
    }
}
