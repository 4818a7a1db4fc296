//! An SSTable's `_pk_index/`: Lance's B-tree from each key to the position of its row in the data file. Lance's readers
//! find by it which rows of older generations and of the base table a newer generation replaces. This module makes
//! and writes it; `key_index` looks keys up in it.
//!
//! A key of one column is indexed by its value, a composite one by a byte string: Lance's order-preserving encoding of
//! the tuple. That one knows no times and decimals, which Lance's own MemWAL refuses in a key; they go into it as
//! integers and bytes of the same order.

use std::sync::Arc;

use arrow_array::builder::BinaryBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Decimal256Type};
use arrow_array::{Array, ArrayRef, FixedSizeBinaryArray, RecordBatch, UInt64Array};
use arrow_buffer::{Buffer, i256};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema};
use arrow_select::interleave::interleave;
use datafusion::common::ScalarValue;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;
use lance::dataset::mem_wal::index::encode_pk_tuple;
use lance::dataset::mem_wal::util::pk_index_path;
use lance_core::ROW_ADDR;
use lance_core::cache::LanceCache;
use lance_index::scalar::btree::train_btree_index;
use lance_index::scalar::lance_format::LanceIndexStore;
use lance_index::scalar::registry::VALUE_COLUMN_NAME;

use crate::error::{Error, Result};
use crate::key::Keys;
use crate::lance_store::LanceStore;

/// Keys per page, as in Lance's own.
pub(super) const PAGE_ROWS: usize = 8192;

/// The pages of the index, in order. `batches` are the key columns of the SSTable's rows in their order, as
/// [`plain_keys`](super::key_columns::plain_keys) gives them, `encoded` the same keys as the table's
/// [`KeyEncoder`](crate::key::KeyEncoder) gives them, whose order is the order of keys here too.
///
/// # Errors
/// [`Error::Arrow`] if 8,192 keys together exceed what one Arrow array holds (2 GiB for strings).
pub(super) fn pages(batches: &[RecordBatch], encoded: &[Keys]) -> Result<Vec<RecordBatch>> {
    let mut keys = Vec::with_capacity(encoded.iter().map(Keys::len).sum());
    let mut position = 0u64;
    for (batch, rows) in encoded.iter().enumerate() {
        for row in 0..rows.len() {
            keys.push((rows.get(row), position, (batch, row)));
            position += 1;
        }
    }
    keys.sort_unstable();
    let values = batches.iter().map(index_values).collect::<Result<Vec<_>>>()?;
    let values: Vec<&dyn Array> = values.iter().map(|column| column.as_ref()).collect();
    let failed = || Error::arrow("sorting primary keys");
    keys.chunks(PAGE_ROWS)
        .map(|page| {
            let places: Vec<_> = page.iter().map(|(_, _, place)| *place).collect();
            let values = interleave(&values, &places).map_err(failed())?;
            let positions = UInt64Array::from_iter_values(page.iter().map(|(_, position, _)| *position));
            let schema = Schema::new(vec![
                Field::new(VALUE_COLUMN_NAME, values.data_type().clone(), true),
                Field::new(ROW_ADDR, DataType::UInt64, false),
            ]);
            RecordBatch::try_new(Arc::new(schema), vec![values, Arc::new(positions)]).map_err(failed())
        })
        .collect()
}

/// Writes the index of these pages.
pub(super) async fn write(store: &LanceStore, rel_dir: &str, pages: Vec<RecordBatch>) -> Result<()> {
    let Some(first) = pages.first() else {
        return Ok(());
    };
    let folder = pk_index_path(&store.path(Some(rel_dir)));
    let index = LanceIndexStore::new(store.object_store().await?, folder, Arc::new(LanceCache::no_cache()));
    let pages = RecordBatchStreamAdapter::new(first.schema(), stream::iter(pages.into_iter().map(Ok)));
    train_btree_index(Box::pin(pages), &index, PAGE_ROWS as u64, None, None)
        .await
        .map(|_| ())
        .map_err(Error::lance(format!("writing the primary-key index of {}", store.describe(Some(rel_dir)))))
}

/// What the index knows these keys by, one value for each row: the values of the only key column, or byte strings.
///
/// # Errors
/// [`Error::Arrow`] or [`Error::Lance`] for a type that is no key.
pub(super) fn index_values(keys: &RecordBatch) -> Result<ArrayRef> {
    if let [column] = keys.columns() {
        return Ok(Arc::clone(column));
    }
    let columns = keys.columns().iter().map(tuple_column).collect::<Result<Vec<_>>>()?;
    let mut tuples = BinaryBuilder::with_capacity(keys.num_rows(), 0);
    let mut tuple = Vec::with_capacity(columns.len());
    for row in 0..keys.num_rows() {
        tuple.clear();
        for column in &columns {
            let value = ScalarValue::try_from_array(column, row).map_err(lance::Error::from);
            tuple.push(value.map_err(Error::lance("encoding a primary key"))?);
        }
        tuples.append_value(encode_pk_tuple(&tuple).map_err(Error::lance("encoding a primary key"))?);
    }
    Ok(Arc::new(tuples.finish()))
}

/// A key column in a type that Lance's tuples can hold, in the same order.
fn tuple_column(column: &ArrayRef) -> Result<ArrayRef> {
    let failed = || Error::arrow("encoding a primary key");
    let integers = |integer: DataType| cast(column, &integer).map_err(failed());
    match column.data_type() {
        DataType::Time32(_) => integers(DataType::Int32),
        DataType::Time64(_) | DataType::Timestamp(..) | DataType::Duration(_) => integers(DataType::Int64),
        DataType::Decimal128(..) => {
            let bytes = column.as_primitive::<Decimal128Type>().values().iter().flat_map(|v| ordered(v.to_be_bytes()));
            fixed_size(size_of::<i128>(), bytes.collect(), column)
        }
        DataType::Decimal256(..) => {
            let bytes = column.as_primitive::<Decimal256Type>().values().iter().flat_map(|v| ordered(v.to_be_bytes()));
            fixed_size(size_of::<i256>(), bytes.collect(), column)
        }
        _ => Ok(Arc::clone(column)),
    }
}

/// A signed number's bytes such that they compare as the numbers do.
fn ordered<const N: usize>(mut big_endian: [u8; N]) -> [u8; N] {
    if let Some(first) = big_endian.first_mut() {
        *first ^= 0x80;
    }
    big_endian
}

fn fixed_size(width: usize, bytes: Vec<u8>, of: &ArrayRef) -> Result<ArrayRef> {
    let width = i32::try_from(width).unwrap_or(i32::MAX);
    FixedSizeBinaryArray::try_new(width, Buffer::from(bytes), of.nulls().cloned())
        .map(|array| Arc::new(array) as ArrayRef)
        .map_err(Error::arrow("encoding a primary key"))
}
