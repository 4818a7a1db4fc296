//! A snapshot as a DataFusion table, for SQL.

use std::fmt;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::TryStreamExt;

use super::{Candidates, Request, ShardPruning, Snapshot, Source, WantedKeys};
use crate::error::Error;

/// One moment of a table. The same query gives the same answer while writes and flushes go on.
///
/// Filters are pushed to the sources to read less, and evaluated again above them: a row whose newest version does
/// not match never comes back as an older one. If they name few keys, only sources that may hold one of these are
/// read; which ones is found out when the scan is planned.
#[derive(Debug)]
pub(crate) struct LsmTable {
    snapshot: Arc<Snapshot>,
}

impl LsmTable {
    pub(crate) fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot }
    }
}

#[async_trait]
impl TableProvider for LsmTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.snapshot.format.user)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema().project(columns)?),
            None => self.schema(),
        };
        let candidates = Candidates::of(filters, &self.schema());
        let wanted = WantedKeys::of(&candidates, &self.snapshot.format)?;
        let pruning = ShardPruning::of(filters, &candidates, &self.snapshot)?;
        let snapshot = self.snapshot.pruned(&pruning);
        let sources = match &wanted {
            Some(wanted) => snapshot.sources_holding(wanted).await?,
            None => snapshot.sources(),
        };
        let pruning = (!Arc::ptr_eq(&snapshot, &self.snapshot)).then_some(pruning);
        let request = Arc::new(Request::new(Arc::clone(&schema), filters, &self.schema(), wanted, pruning)?);
        let partitions = sources.into_iter().map(|source| {
            let (snapshot, request) = (Arc::clone(&snapshot), Arc::clone(&request));
            Arc::new(SourcePartition { snapshot, request, source }) as Arc<dyn PartitionStream>
        });
        // A limit is only given when no filter is evaluated above.
        let plan = StreamingTableExec::try_new(schema, partitions.collect(), None, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}

/// One source as a partition of the scan.
struct SourcePartition {
    snapshot: Arc<Snapshot>,
    request: Arc<Request>,
    source: Source,
}

impl fmt::Debug for SourcePartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source.describe())
    }
}

impl PartitionStream for SourcePartition {
    fn schema(&self) -> &SchemaRef {
        self.request.schema()
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (snapshot, request) = (Arc::clone(&self.snapshot), Arc::clone(&self.request));
        let schema = Arc::clone(request.schema());
        let read = self.source.clone().read(snapshot, request);
        let rows = futures::stream::once(async { read.await.map_err(DataFusionError::from) }).try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        match error {
            Error::Query(inner) => inner,
            other => DataFusionError::External(Box::new(other)),
        }
    }
}
