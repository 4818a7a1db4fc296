//! Parts of a MemTable by themselves: for benchmarks. Not a part of the crate's interface.

use arrow_array::RecordBatch;
use arrow_schema::Schema;

use crate::error::Result;
use crate::key::KeyEncoder;
use crate::memtable::{BatchStore, PkIndex};

/// The primary-key index, with the encoder of its keys.
#[derive(Debug)]
pub struct KeyIndex {
    encoder: KeyEncoder,
    index: PkIndex,
    rows: usize,
}

impl KeyIndex {
    /// An empty index on these columns.
    ///
    /// # Errors
    /// As for the primary key of a table.
    pub fn try_new(schema: &Schema, primary_key: &[String]) -> Result<Self> {
        Ok(Self { encoder: KeyEncoder::try_new(schema, primary_key)?, index: PkIndex::new(), rows: 0 })
    }

    /// Adds the rows of a batch.
    ///
    /// # Errors
    /// As for a put.
    pub fn insert(&mut self, batch: &RecordBatch) -> Result<()> {
        for key in self.encoder.encode(batch)?.iter() {
            self.index.push(key);
        }
        self.rows += batch.num_rows();
        Ok(())
    }

    /// How many of these keys it has.
    ///
    /// # Errors
    /// As for a lookup.
    pub fn count(&self, keys: &RecordBatch) -> Result<usize> {
        let newest = |key: &[u8]| self.index.newest_of(key, self.rows);
        Ok(self.encoder.encode(keys)?.iter().filter_map(newest).count())
    }
}

/// The list of a MemTable's batches.
#[derive(Debug, Default)]
pub struct Batches(BatchStore);

impl Batches {
    /// Appends a batch.
    pub fn push(&mut self, batch: RecordBatch) {
        self.0.push(batch);
    }

    /// Takes a view, and finds the batch of a row in it. Returns how many rows that batch has.
    pub fn rows_around(&self, row: usize) -> Option<usize> {
        self.0.view().batch_of(row).map(|stored| stored.batch.num_rows())
    }
}
