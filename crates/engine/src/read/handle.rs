//! A snapshot as its user holds it: one moment of a table, and the ways to find rows in it.

use std::sync::Arc;

use arrow_schema::SchemaRef;
use datafusion::catalog::TableProvider;

use super::{LsmTable, Snapshot};

/// One moment of a table. It holds still: the same query gives the same answer again while writes, flushes, merges and
/// garbage collection go on. It keeps the rows in memory that were not on storage as SSTables at that moment, so it
/// should not be kept for longer than it is used. Clone is cheap.
#[derive(Debug, Clone)]
pub struct TableSnapshot {
    pub(crate) snapshot: Arc<Snapshot>,
}

impl TableSnapshot {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self { snapshot: Arc::new(snapshot) }
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
        Arc::new(LsmTable::over(Arc::clone(&self.snapshot)))
    }
}
