//! One version of each row out of base table, SSTables and MemTables: a snapshot names the sources, a scan reads
//! them side by side and hides from each what newer sources hold.

mod cache;
// `combinations` is for pruning SSTables.
#[allow(dead_code)]
mod predicate;
mod provider;
mod prune;
mod source;
mod storage;

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use fencepost_wal::{Generation, ShardId, SsTable};
use futures::{StreamExt, TryStreamExt, stream};

use crate::base::BaseTable;
use crate::error::Result;
use crate::memtable::MemTableSnapshot;
use crate::rows::RowFormat;
use crate::sharding::ShardValue;
use crate::sstable;

pub(crate) use cache::SsTableCache;
pub(crate) use provider::LsmTable;
pub(crate) use prune::ShardPruning;
pub(crate) use source::{Request, Source};
pub(crate) use storage::{MAX_ROUNDS, moved_on, read_shards, snapshot_from_storage};

/// The generation of rows that were accepted and have not landed: newer than all.
pub(crate) const OVERLAY: Generation = Generation::ZERO;

/// One moment of a shard: what is not merged into the base table. Newest first.
#[derive(Debug, Clone)]
pub(crate) struct ShardView {
    pub(crate) shard: ShardId,
    /// Which rows it holds.
    pub(crate) value: ShardValue,
    pub(crate) memtables: Vec<MemTableSnapshot>,
    pub(crate) sstables: Vec<SsTable>,
}

/// One moment of a table, or of one shard of it. It stays the same while writes and flushes go on.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) base: BaseTable,
    pub(crate) format: RowFormat,
    pub(crate) cache: Arc<SsTableCache>,
    /// Whether the base table's rows belong to it.
    with_base: bool,
    shards: Vec<ShardView>,
}

impl Snapshot {
    /// A whole table. The base must have been read before the shards (protocol section 9).
    pub(crate) fn of_table(
        base: BaseTable,
        format: RowFormat,
        cache: &Arc<SsTableCache>,
        shards: Vec<ShardView>,
    ) -> Self {
        Self::new(base, format, cache, shards, true)
    }

    /// What one shard has on top of the base table.
    pub(crate) fn of_shard(base: BaseTable, format: RowFormat, cache: &Arc<SsTableCache>, shard: ShardView) -> Self {
        Self::new(base, format, cache, vec![shard], false)
    }

    fn new(
        base: BaseTable,
        format: RowFormat,
        cache: &Arc<SsTableCache>,
        mut shards: Vec<ShardView>,
        with_base: bool,
    ) -> Self {
        let merged = base.merged();
        for view in &mut shards {
            // What the base has already is read there.
            let done = merged.get(&view.shard).copied().unwrap_or(Generation::ZERO);
            view.sstables.retain(|sstable| sstable.generation > done);
            // Also a frozen MemTable, if its SSTable was merged before its writer knew that it was published.
            view.memtables.retain(|memtable| memtable.generation() > done || memtable.generation() == OVERLAY);
            cache.keep_only(view.shard, &view.sstables);
        }
        Self { base, format, cache: Arc::clone(cache), with_base, shards }
    }

    /// The sources that a query wants, each with what hides its rows.
    pub(crate) fn sources(&self, pruning: &ShardPruning) -> Vec<Source> {
        let mut sources = Vec::new();
        let mut all_newer: Vec<Source> = Vec::new();
        for view in self.shards.iter().filter(|view| pruning.may_hold(&view.value)) {
            let mut newer: Vec<Source> = Vec::new();
            let memtables = view.memtables.iter().cloned().map(Source::memtable);
            let sstables = view
                .sstables
                .iter()
                .map(|entry| Source::sstable(sstable::relative_dir(view.shard, &entry.path), entry.physical_rows));
            for source in memtables.chain(sstables) {
                sources.push(source.clone().hidden_by(&newer));
                newer.push(source);
            }
            all_newer.extend(newer);
        }
        if self.with_base {
            sources.push(Source::base().hidden_by(&all_newer));
        }
        sources
    }

    /// Every row, all columns.
    pub(crate) fn scan(self) -> Result<SendableRecordBatchStream> {
        let schema = Arc::clone(&self.format.user);
        let request = Arc::new(Request::all_columns(&self));
        let snapshot = Arc::new(self);
        let streams = stream::iter(snapshot.sources(&ShardPruning::default())).then(move |source| {
            let (snapshot, request) = (Arc::clone(&snapshot), Arc::clone(&request));
            async move { source.read(snapshot, request).await.map_err(datafusion::error::DataFusionError::from) }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, streams.try_flatten())))
    }
}
