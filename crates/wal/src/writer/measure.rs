//! How much an append takes: in memory, and in an entry.

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, OffsetSizeTrait, RecordBatch};
use arrow_schema::{DataType, SchemaRef};

use crate::entry::{WriterIdentity, encode_rows};
use crate::error::{Error, Result};

/// Bytes that an entry of some schema has beside the buffers of its rows.
#[derive(Debug)]
pub(super) struct Framing {
    /// Of one batch.
    batch: usize,
    /// Of the entry and one batch.
    entry: usize,
    /// A column may take more bytes in an entry than in memory, because it is not sent as a slice.
    inexact: bool,
}

impl Framing {
    /// Of a field's node and the entries of at most three buffers, each padded to 8 bytes.
    const BYTES_PER_FIELD: usize = 128;
    /// Of a record batch's message.
    const BYTES_PER_BATCH: usize = 512;

    pub(super) fn of(schema: &SchemaRef, writer: &WriterIdentity) -> Result<Self> {
        let empty = encode_rows(schema, &[], writer)?.len();
        let batch = Self::BYTES_PER_BATCH + schema.flattened_fields().len() * Self::BYTES_PER_FIELD;
        Ok(Self { batch, entry: empty + batch, inexact: !is_sent_as_slices(schema) })
    }

    /// Whether one batch of so many bytes fits into an entry without a look at its encoding.
    pub(super) fn surely_fits(&self, bytes: usize, limit: usize) -> bool {
        !self.inexact && bytes.saturating_add(self.entry) <= limit
    }

    /// Of each batch that is one of its own in an entry of `limit` bytes, at most; and no more than a half of the entry, which leaves
    /// room for rows where this is estimated far too high.
    pub(super) fn of_batch(&self, limit: usize) -> usize {
        self.batch.min(limit / 2)
    }

    /// The same of an entry whose batches are put together to one.
    pub(super) fn of_entry(&self, limit: usize) -> usize {
        self.entry.min(limit / 2)
    }

    /// What tells whether a batch of so many bytes in memory stays apart in an entry: nothing if it shares them with others.
    pub(super) fn own_bytes(&self, bytes: usize) -> usize {
        if self.inexact { 0 } else { bytes }
    }
}

/// Whether a slice of a batch is sent as no more than that, and counted so.
pub(crate) fn is_sent_as_slices(schema: &SchemaRef) -> bool {
    schema.flattened_fields().iter().all(|field| is_sent_as_a_slice(field.data_type()))
}

fn is_sent_as_a_slice(data_type: &DataType) -> bool {
    use DataType::{BinaryView, Dictionary, LargeListView, ListView, RunEndEncoded, Union, Utf8View};
    !matches!(
        data_type,
        BinaryView | Utf8View | ListView(_) | LargeListView(_) | Dictionary(..) | RunEndEncoded(..) | Union(..)
    )
}

/// Bytes that a batch takes in memory, slices counted as what they show; at least one.
pub(crate) fn bytes_in_memory(batch: &RecordBatch) -> Result<usize> {
    Ok(1 + bytes_of_columns(batch.columns())?)
}

fn bytes_of_columns(columns: &[ArrayRef]) -> Result<usize> {
    columns.iter().try_fold(0, |sum, column| Ok(sum + bytes_of(column)?))
}

fn bytes_of(array: &ArrayRef) -> Result<usize> {
    let nulls = if array.nulls().is_some() { array.len().div_ceil(8) } else { 0 };
    Ok(match array.data_type() {
        // Arrow measures a slice of these by all of their children, and views without the text that they point to.
        DataType::Struct(_) => nulls + bytes_of_columns(array.as_struct().columns())?,
        DataType::List(_) => nulls + bytes_of_list(array.as_list::<i32>().offsets(), array.as_list::<i32>().values())?,
        DataType::LargeList(_) => {
            nulls + bytes_of_list(array.as_list::<i64>().offsets(), array.as_list::<i64>().values())?
        }
        DataType::Utf8View | DataType::BinaryView => {
            let data = array.to_data();
            nulls + 16 * array.len() + data.buffers().iter().skip(1).map(|buffer| buffer.len()).sum::<usize>()
        }
        _ => array.to_data().get_slice_memory_size().map_err(Error::arrow("cannot measure a batch"))?,
    })
}

fn bytes_of_list<O: OffsetSizeTrait>(offsets: &[O], values: &ArrayRef) -> Result<usize> {
    let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else {
        return Ok(0);
    };
    let shown = values.slice(first.as_usize(), last.as_usize() - first.as_usize());
    Ok(size_of_val(offsets) + bytes_of(&shown)?)
}
