//! A snapshot as a DataFusion table, for SQL.

use std::fmt;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Statistics;
use datafusion::common::stats::Precision;
use datafusion::datasource::TableType;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::{StreamExt, TryStreamExt};

use super::{Candidates, Request, ShardPruning, Snapshot, Source, WantedKeys, lookup};
use crate::error::Error;

/// Sources that a scan reads at once.
const SOURCES_AT_ONCE: usize = 16;

/// Up to so many sources, the base table is read beside them.
const FEW_SOURCES: usize = 4 * SOURCES_AT_ONCE;

/// One moment of a table. The same query gives the same answer while writes and flushes go on.
///
/// Filters are pushed to the sources to read less, and evaluated again above them: a row whose newest version does
/// not match never comes back as an older one. If they name few keys, the rows are looked up by key.
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

    fn statistics(&self) -> Option<Statistics> {
        let rows = Precision::Inexact(self.snapshot.estimated_rows());
        Some(Statistics { num_rows: rows, ..Statistics::new_unknown(&self.schema()) })
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
        if let Some(wanted) = WantedKeys::of(&candidates, &self.snapshot.format)? {
            let lookup = LookupPartition { snapshot: Arc::clone(&self.snapshot), wanted: Arc::new(wanted), schema };
            let schema = Arc::clone(&lookup.schema);
            let partitions = vec![Arc::new(lookup) as Arc<dyn PartitionStream>];
            return Ok(Arc::new(StreamingTableExec::try_new(schema, partitions, None, [], false, limit)?));
        }
        let pruning = ShardPruning::of(filters, &candidates, &self.snapshot)?;
        let snapshot = self.snapshot.pruned(&pruning);
        let pruning = (!Arc::ptr_eq(&snapshot, &self.snapshot)).then_some(pruning);
        let request = Arc::new(Request::new(Arc::clone(&schema), filters, &self.schema(), pruning)?);
        let partitions = partitions(snapshot.sources()).into_iter().map(|sources| {
            let (snapshot, request) = (Arc::clone(&snapshot), Arc::clone(&request));
            Arc::new(SourcesPartition { snapshot, request, sources }) as Arc<dyn PartitionStream>
        });
        // A limit is only given when no filter is evaluated above.
        let plan = StreamingTableExec::try_new(schema, partitions.collect(), None, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}

/// Shares the sources out among partitions of the scan, so that not more are open at once. A partition reads its sources one
/// after the other, newest first. The base table, which has to wait for the keys of all others, has a partition of its own as
/// long as these are few; behind many it comes last, because a query with a limit may have its rows long before.
fn partitions(mut sources: Vec<Source>) -> Vec<Vec<Source>> {
    let alone = (sources.len() <= FEW_SOURCES).then(|| sources.pop_if(|last| last.is_base())).flatten();
    let mut partitions: Vec<Vec<Source>> = Vec::new();
    for (n, source) in sources.into_iter().enumerate() {
        match partitions.get_mut(n % SOURCES_AT_ONCE) {
            Some(partition) => partition.push(source),
            None => partitions.push(vec![source]),
        }
    }
    partitions.extend(alone.map(|base| vec![base]));
    partitions
}

/// Some sources as a partition of the scan.
struct SourcesPartition {
    snapshot: Arc<Snapshot>,
    request: Arc<Request>,
    sources: Vec<Source>,
}

impl fmt::Debug for SourcesPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.sources.iter().map(Source::describe)).finish()
    }
}

impl PartitionStream for SourcesPartition {
    fn schema(&self) -> &SchemaRef {
        self.request.schema()
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (snapshot, request) = (Arc::clone(&self.snapshot), Arc::clone(&self.request));
        let schema = Arc::clone(request.schema());
        let rows = futures::stream::iter(self.sources.clone()).then(move |source| {
            let read = source.read(Arc::clone(&snapshot), Arc::clone(&request));
            async move { read.await.map_err(DataFusionError::from) }
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, rows.try_flatten()))
    }
}

/// The rows of a few keys as the only partition of the scan.
struct LookupPartition {
    snapshot: Arc<Snapshot>,
    wanted: Arc<WantedKeys>,
    schema: SchemaRef,
}

impl fmt::Debug for LookupPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lookup of {} keys", self.wanted.len())
    }
}

impl PartitionStream for LookupPartition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (snapshot, wanted) = (Arc::clone(&self.snapshot), Arc::clone(&self.wanted));
        let (schema, columns) = (Arc::clone(&self.schema), Arc::clone(&self.schema));
        let rows = async move { lookup::find(&snapshot, &wanted, &columns).await.map_err(DataFusionError::from) };
        Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::once(rows)))
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

#[cfg(test)]
mod tests {
    use fencepost_wal::{Generation, ShardId, SsTable};

    use super::super::hiding::Newer;
    use super::*;
    use crate::sstable::SsTablePlace;

    fn sources(sstables: u64) -> Vec<Source> {
        let shard = ShardId::new_random();
        let sstables = (1..=sstables).rev().map(|generation| {
            let sstable = SsTable::new(Generation::new(generation), format!("gen_{generation:05}"));
            Source::sstable(SsTablePlace::of(shard, &sstable), None, Newer::All)
        });
        sstables.chain([Source::base(Newer::All)]).collect()
    }

    #[test]
    fn many_sources_are_read_by_few_partitions_newest_first_and_the_base_table_last() {
        let partitions = partitions(sources(12_600));
        assert_eq!(partitions.len(), SOURCES_AT_ONCE);
        assert_eq!(partitions.iter().map(Vec::len).sum::<usize>(), 12_601);
        for partition in &partitions {
            let names: Vec<String> =
                partition.iter().filter(|source| !source.is_base()).map(Source::describe).collect();
            assert!(names.is_sorted_by(|newer, older| newer > older));
            assert!(partition.iter().rev().skip(1).all(|source| !source.is_base()));
        }
    }

    #[test]
    fn beside_few_sources_the_base_table_has_a_partition_of_its_own() {
        let partitions = partitions(sources(20));
        assert_eq!(partitions.len(), SOURCES_AT_ONCE + 1);
        assert!(partitions.last().is_some_and(|last| last.len() == 1 && last.iter().all(Source::is_base)));
        assert!(super::partitions(Vec::new()).is_empty());
    }
}
