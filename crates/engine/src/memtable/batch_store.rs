//! The MemTable's rows: an append-only list of record batches, numbered row by row from 0. It shares the buffers of
//! the batches that it is given and copies no data. It knows nothing of keys.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;

/// Batches per shared chunk. A view clones at most this many handles, however many batches there are.
const CHUNK_BATCHES: usize = 64;

/// A batch and the number of its first row.
#[derive(Debug)]
pub(crate) struct StoredBatch {
    pub(crate) first_row: usize,
    pub(crate) batch: RecordBatch,
}

impl StoredBatch {
    /// The number after its last row.
    fn end(&self) -> usize {
        self.first_row + self.batch.num_rows()
    }
}

type Chunk = Arc<[Arc<StoredBatch>]>;

/// The growing list.
#[derive(Debug, Default)]
pub(crate) struct BatchStore {
    /// Full chunks. Shared with the views; copied only if a chunk fills up while a view holds the list.
    chunks: Arc<Vec<Chunk>>,
    tail: Vec<Arc<StoredBatch>>,
    rows: usize,
    bytes: usize,
}

impl BatchStore {
    /// Appends a batch. A batch without rows leaves nothing behind.
    pub(crate) fn push(&mut self, batch: RecordBatch) {
        if batch.num_rows() == 0 {
            return;
        }
        self.bytes += batch_bytes(&batch);
        let stored = StoredBatch { first_row: self.rows, batch };
        self.rows = stored.end();
        self.tail.push(Arc::new(stored));
        if self.tail.len() == CHUNK_BATCHES {
            let full = std::mem::take(&mut self.tail);
            Arc::make_mut(&mut self.chunks).push(full.into());
        }
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// How many batches there are.
    pub(crate) fn batches(&self) -> usize {
        self.chunks.len() * CHUNK_BATCHES + self.tail.len()
    }

    /// The size of the rows in bytes, by [`batch_bytes`].
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows that are here now; later ones never show in it.
    pub(crate) fn view(&self) -> BatchView {
        BatchView { chunks: Arc::clone(&self.chunks), tail: self.tail.clone(), rows: self.rows }
    }
}

/// A moment of a [`BatchStore`].
#[derive(Debug, Clone)]
pub(crate) struct BatchView {
    chunks: Arc<Vec<Chunk>>,
    tail: Vec<Arc<StoredBatch>>,
    rows: usize,
}

impl BatchView {
    /// How many rows there are: the number of the first row that is not in the view.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// One column of the batches from row number `first` on, which starts a batch, each with the number of its first row.
    pub(crate) fn columns_from(&self, first: u32, column: usize) -> impl Iterator<Item = (u32, ArrayRef)> {
        let first = first as usize;
        // Chunks that end before it are passed over as a whole.
        let ends_before = |chunk: &Chunk| chunk.last().is_some_and(|last| last.end() <= first);
        let passed = self.chunks.partition_point(ends_before);
        let chunks = self.chunks.iter().skip(passed).flat_map(|chunk| chunk.iter());
        let batches = chunks.chain(&self.tail).filter(move |stored| stored.first_row >= first);
        batches.filter_map(move |stored| {
            let values = stored.batch.columns().get(column)?;
            Some((u32::try_from(stored.first_row).ok()?, Arc::clone(values)))
        })
    }

    /// The batch that has this row.
    pub(crate) fn batch_of(&self, row: usize) -> Option<&StoredBatch> {
        let after = self.chunks.partition_point(|chunk| chunk.first().is_some_and(|first| first.first_row <= row));
        let chunk = after.checked_sub(1).and_then(|last| self.chunks.get(last));
        let within = |batches: &'_ [Arc<StoredBatch>]| batches.partition_point(|batch| batch.first_row <= row);
        let batch = match self.tail.first().filter(|first| first.first_row <= row) {
            Some(_) => self.tail.get(within(&self.tail).checked_sub(1)?)?,
            None => chunk?.get(within(chunk?).checked_sub(1)?)?,
        };
        (row < batch.end()).then_some(batch)
    }

    /// The batches in insert order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &StoredBatch> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).chain(&self.tail).map(Arc::as_ref)
    }
}

/// The size of a batch's rows in bytes: of a slice only its part, and of string views only the strings that they
/// show, not the whole buffers behind them. Dictionaries count in full in every batch.
pub(crate) fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| array_bytes(column)).sum()
}

/// The size of an array's rows in bytes; see [`batch_bytes`].
pub(crate) fn array_bytes(array: &dyn Array) -> usize {
    if array.is_empty() {
        return 0;
    }
    let nulls = array.nulls().map_or(0, |n| n.len().div_ceil(8));
    let listed = |values: &dyn Array, first: Option<usize>, end: Option<usize>| match (first, end) {
        (Some(first), Some(end)) => array_bytes(&values.slice(first, end.saturating_sub(first))),
        _ => 0,
    };
    match array.data_type() {
        DataType::Utf8View => nulls + array.len() * 16 + array.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => nulls + array.len() * 16 + array.as_binary_view().total_buffer_bytes_used(),
        DataType::List(_) => {
            let (list, at) = (array.as_list::<i32>(), |o: &i32| *o as usize);
            let offsets = list.value_offsets();
            nulls + size_of_val(offsets) + listed(list.values(), offsets.first().map(at), offsets.last().map(at))
        }
        DataType::LargeList(_) => {
            let (list, at) = (array.as_list::<i64>(), |o: &i64| *o as usize);
            let offsets = list.value_offsets();
            nulls + size_of_val(offsets) + listed(list.values(), offsets.first().map(at), offsets.last().map(at))
        }
        DataType::Map(..) => {
            let (map, at) = (array.as_map(), |o: &i32| *o as usize);
            let offsets = map.value_offsets();
            nulls + size_of_val(offsets) + listed(map.entries(), offsets.first().map(at), offsets.last().map(at))
        }
        DataType::FixedSizeList(_, _) => nulls + array_bytes(array.as_fixed_size_list().values()),
        DataType::Struct(_) => nulls + array.as_struct().columns().iter().map(|c| array_bytes(c)).sum::<usize>(),
        _ => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()),
    }
}
