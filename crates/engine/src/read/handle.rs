//! A snapshot as its user holds it: one moment of a table, and the ways to find rows in it.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::catalog::TableProvider;

use super::search::{self, HybridQuery, TextQuery, TextStatistics, VectorQuery};
use super::{LsmTable, Snapshot, lookup};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;

/// One moment of a table. It holds still: the same query gives the same answer again while writes, flushes, merges and
/// garbage collection go on. It keeps the rows in memory that were not on storage as SSTables at that moment, so it
/// should not be kept for longer than it is used. Clone is cheap.
#[derive(Debug, Clone)]
pub struct TableSnapshot {
    pub(crate) snapshot: Arc<Snapshot>,
    texts: TextStatistics,
}

impl TableSnapshot {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self { snapshot: Arc::new(snapshot), texts: TextStatistics::default() }
    }

    /// The columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.snapshot.format.user)
    }

    /// The version of the base table that it starts from.
    pub fn base_version(&self) -> u64 {
        self.snapshot.base.version()
    }

    /// The newest rows of these keys, in the order of the keys: one row for each key that the table has. A key that it does
    /// not have, or that was deleted, has no row; one that is given twice has its row once, where it came first. `keys` has
    /// the columns of the primary key, in any order, and no others; `projection` names the columns of the answer in their
    /// order, all of them by default.
    ///
    /// Costs no request for rows that are in memory. A key on storage costs the bloom filters of the SSTables that are newer,
    /// as far as they are not in memory, then one index page and the row. Give many keys at once if there are many: they
    /// are looked for side by side. (If writers choose shards themselves, each shard may have a row of a key; all of them
    /// are in the answer, as in that of SQL.)
    ///
    /// # Errors
    /// [`Error::NotSupported`] for a table without a primary key; [`Error::InvalidOptions`] that names the column if keys or
    /// projection do not fit the table; [`Error::Corrupt`] for a damaged filter or index; errors of reading.
    pub async fn get(&self, keys: &RecordBatch, projection: Option<&[&str]>) -> Result<RecordBatch> {
        lookup::get(&self.snapshot, keys, projection).await
    }

    /// The snapshot as a DataFusion table, for SQL.
    pub fn provider(&self) -> Arc<dyn TableProvider> {
        Arc::new(LsmTable::new(Arc::clone(&self.snapshot)))
    }

    /// The rows whose vectors are nearest to one, nearest first, with their `_distance`: as many as were asked for, if the
    /// table has as many with a vector that the filter lets through. Rows of few vectors, and with
    /// [`exactly`](VectorQuery::exactly) all, are compared one by one; the others come from the indexes that there are.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`](crate::Error::InvalidOptions) for a query that does not fit its column; errors of reading.
    pub async fn nearest(&self, query: &VectorQuery) -> Result<RecordBatch> {
        search::vector_answer(&self.snapshot, query).await
    }

    /// The rows whose texts match best, best first, with their `_score` (BM25). Its statistics are those of all live rows of
    /// the snapshot: the first search in a column reads the whole column to count them.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`](crate::Error::InvalidOptions) for a query that does not fit its column, or without any
    /// word to look for; errors of reading.
    pub async fn search_text(&self, query: &TextQuery) -> Result<RecordBatch> {
        search::text_answer(&self.snapshot, query, &self.texts).await
    }

    /// The rows that rank best by vector and text together, best first, with their `_relevance_score`: reciprocal rank
    /// fusion of both searches.
    ///
    /// # Errors
    /// As [`nearest`](Self::nearest) and [`search_text`](Self::search_text).
    pub async fn search_hybrid(&self, query: &HybridQuery) -> Result<RecordBatch> {
        search::hybrid_answer(&self.snapshot, query, &self.texts).await
    }
}
