//! The MemTable: the rows of a shard that are in its log but not yet in an SSTable, in memory and ready to be read.
//! It is the state machine that the log is applied to, entry by entry, after the entry has landed or while it is
//! replayed; so all that it holds is durable. It does not write, freeze or flush: the shard's writer decides that.

mod batch_store;
mod index;
mod pk_index;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use parking_lot::RwLock;

use self::index::Indexes;
use crate::error::{Error, Result};
use crate::key::{KeyEncoder, Keys};
use crate::{Generation, Position};

pub(crate) use self::batch_store::{BatchStore, array_bytes, batch_bytes};
pub(crate) use self::index::{IndexSet, Nearby, ValueRange, count_words, query_words, text_at};
pub(crate) use self::pk_index::PkIndex;
pub(crate) use self::snapshot::MemTableSnapshot;

/// One generation of a shard's rows. All calls take `&self`: one task applies entries while others take snapshots.
/// The lock inside is held for in-memory work only, never across an await.
pub(crate) struct MemTable {
    schema: SchemaRef,
    generation: Generation,
    keys: Option<KeyEncoder>,
    state: Arc<RwLock<State>>,
    indexes: Arc<Indexes>,
}

/// A batch that a MemTable will take: under its schema, with whole keys.
struct Prepared {
    batch: RecordBatch,
    /// One key for each row, if the table has a primary key.
    keys: Option<Keys>,
}

/// What one applied entry changes as a whole.
struct State {
    batches: BatchStore,
    /// Rows have the same numbers as in `batches`.
    index: Option<PkIndex>,
    last_position: Position,
}

impl MemTable {
    /// An empty MemTable. `schema` is the storage schema: the user's columns and `_tombstone`. `keys` encodes the
    /// table's primary key; without it every row stays. It has no secondary index.
    pub(crate) fn new(schema: SchemaRef, keys: Option<KeyEncoder>, generation: Generation) -> Self {
        Self::with_indexes(schema, keys, generation, &IndexSet::default())
    }

    /// As [`new`](Self::new), with secondary indexes.
    pub(crate) fn with_indexes(
        schema: SchemaRef,
        keys: Option<KeyEncoder>,
        generation: Generation,
        indexes: &IndexSet,
    ) -> Self {
        let state = State {
            batches: BatchStore::default(),
            index: keys.is_some().then(PkIndex::new),
            last_position: Position::ZERO,
        };
        let indexes = Arc::new(Indexes::new(indexes, &schema));
        Self { schema, generation, keys, state: Arc::new(RwLock::new(state)), indexes }
    }

    /// Applies the entry at `position`, all of it or nothing: snapshots see every row of it or none, and after an error
    /// the MemTable is as it was. The buffers of the batches are shared, not copied.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] if a batch has another schema or a null in its key, [`Error::NotSupported`] if the
    /// entry is not behind the last one. The entry is in the log in either case, so a writer must not go on without it.
    pub(crate) fn apply(&self, position: Position, batches: &[RecordBatch]) -> Result<()> {
        let prepared = batches.iter().map(|batch| self.prepare(batch)).collect::<Result<Vec<_>>>()?;
        let mut state = self.state.write();
        if position <= state.last_position {
            // I2: no entry is replayed twice.
            return Err(Error::NotSupported(format!(
                "log entry {position} cannot be applied behind entry {}: a MemTable takes a shard's entries in log \
                 order and each once; reopen the shard to replay its log",
                state.last_position
            )));
        }
        // From here on nothing can fail.
        for Prepared { batch, keys } in prepared {
            if let (Some(index), Some(keys)) = (&mut state.index, &keys) {
                for key in keys.iter() {
                    index.push(key);
                }
            }
            state.batches.push(batch);
        }
        state.last_position = position;
        Ok(())
    }

    /// Does what can fail of [`apply`](Self::apply): brings the batch under the MemTable's schema and encodes its
    /// keys. It changes nothing, and needs no lock.
    fn prepare(&self, batch: &RecordBatch) -> Result<Prepared> {
        let batch = self.relabel(batch)?;
        let keys = self.keys.as_ref().map(|keys| keys.encode(&batch)).transpose()?;
        Ok(Prepared { batch, keys })
    }

    /// The batch under the MemTable's schema, which drops the metadata of the log entry that it came from.
    fn relabel(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let found = batch.schema_ref();
        if Arc::ptr_eq(found, &self.schema) {
            return Ok(batch.clone());
        }
        let names = |schema: &SchemaRef| schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
        if names(found) != names(&self.schema) {
            let (found, expected) = (names(found).join(", "), names(&self.schema).join(", "));
            return Err(Error::InvalidBatch(format!("its columns are ({found}) but the shard's are ({expected})")));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), batch.columns().to_vec(), &options)
            .map_err(|e| Error::InvalidBatch(e.to_string()))
    }

    /// The generation that the SSTable made from this MemTable will have.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// How many rows were applied; older rows of a key count too.
    pub(crate) fn rows(&self) -> usize {
        self.state.read().batches.rows()
    }

    /// How many batches were applied that have rows.
    pub(crate) fn batches(&self) -> usize {
        self.state.read().batches.batches()
    }

    /// The size of the rows in bytes, without the index. Estimated from the parts of the buffers that the rows use;
    /// a batch that is a slice keeps the whole buffers in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.state.read().batches.bytes()
    }

    /// The memory that the primary-key index holds, in bytes.
    pub(crate) fn index_bytes(&self) -> usize {
        self.state.read().index.as_ref().map_or(0, PkIndex::memory_bytes)
    }

    /// Brings the secondary indexes up to the rows that are there now. It takes its time, and may run while rows are applied
    /// and read.
    ///
    /// # Errors
    /// [`Error::Arrow`] or [`Error::Lance`] if values cannot be indexed; then no index finds them.
    pub(crate) fn catch_up_indexes(&self) -> Result<()> {
        if self.indexes.is_empty() {
            return Ok(());
        }
        let view = self.state.read().batches.view();
        self.indexes.catch_up(&view)
    }

    /// The memory that each secondary index holds, in bytes; estimated.
    pub(crate) fn secondary_index_bytes(&self) -> Vec<(String, usize)> {
        self.indexes.memory_bytes().into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
    }

    /// Whether it has no rows. Entries without rows may have been applied.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    /// This moment of the MemTable: cheap to take, and it stays exact while the MemTable grows.
    pub(crate) fn snapshot(&self) -> MemTableSnapshot {
        let state = self.state.read();
        MemTableSnapshot {
            schema: Arc::clone(&self.schema),
            generation: self.generation,
            view: state.batches.view(),
            state: Arc::clone(&self.state),
            indexes: Arc::clone(&self.indexes),
        }
    }

    /// The rows that the SSTable gets: the newest one of each key, tombstones too, in insert order, in batches of a
    /// size that is good to write. Without a primary key all rows.
    ///
    /// # Errors
    /// [`Error::Arrow`] if a batch cannot be filtered.
    pub(crate) fn for_flush(&self) -> Result<Vec<RecordBatch>> {
        self.snapshot().for_flush()
    }
}

impl fmt::Debug for MemTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemTable")
            .field("generation", &self.generation)
            .field("rows", &self.rows())
            .finish_non_exhaustive()
    }
}
