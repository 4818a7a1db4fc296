//! The secondary indexes of an SSTable: Lance's, under the names that they have in the base table, so that Lance's readers
//! and ours find rows by them.

use std::collections::HashSet;

use arrow_array::{Array, RecordBatch};

use super::open;
use crate::error::Result;
use crate::index::{self, IndexConfig};
use crate::lance_store::LanceStore;

/// The indexes that an SSTable is to have, and which of them have anything to find.
pub(crate) struct Indexed {
    indexes: Vec<IndexConfig>,
    with_values: HashSet<String>,
}

impl Indexed {
    /// The indexes of an SSTable with these rows.
    pub(crate) fn of(indexes: &[IndexConfig], rows: &[RecordBatch]) -> Self {
        let has_values = |index: &&IndexConfig| {
            let columns = rows.iter().filter_map(|batch| batch.column_by_name(&index.column));
            columns.into_iter().any(|column| column.null_count() < column.len())
        };
        let with_values = indexes.iter().filter(has_values).map(|index| index.name.clone()).collect();
        Self { indexes: indexes.to_vec(), with_values }
    }

    /// Makes them, in a second version of the SSTable's dataset. Only what is published is read, so nobody sees the first.
    ///
    /// # Errors
    /// [`Error::Lance`](crate::Error::Lance) that names the index.
    pub(crate) async fn build(&self, store: &LanceStore, rel_dir: &str) -> Result<()> {
        if self.with_values.is_empty() {
            return Ok(());
        }
        let mut dataset = open(store, rel_dir).await?;
        index::build(store, &mut dataset, &self.indexes, |index| self.with_values.contains(&index.name)).await
    }
}
