//! A snapshot as its user holds it: one moment of a table, and the ways to find rows in it.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::catalog::TableProvider;

use super::search::{self, HybridQuery, TextQuery, TextStatistics, VectorQuery};
use super::{LsmTable, Snapshot};
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
