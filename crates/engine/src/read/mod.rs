//! One version of each row out of base table, SSTables and MemTables: a snapshot names the sources, a scan reads
//! them side by side and hides from each what newer sources hold.

mod cache;
mod handle;
mod hiding;
mod lookup;
mod lru;
mod predicate;
mod provider;
mod prune;
mod ranges;
mod search;
mod skip;
mod source;
mod storage;
mod wanted;

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use fencepost_wal::{Generation, ShardId, SsTable};
use futures::{StreamExt, TryStreamExt, stream};

use crate::base::BaseTable;
use crate::error::Result;
use crate::memtable::MemTableSnapshot;
use crate::rows::RowFormat;
use crate::sharding::{PartOfRows, ShardValue};
use crate::sstable::SsTablePlace;

pub(crate) use cache::SsTableCache;
pub use handle::TableSnapshot;
use hiding::{Newer, ShardMoment};
use predicate::Candidates;
pub(crate) use provider::LsmTable;
pub(crate) use prune::ShardPruning;
pub use search::{HybridQuery, TextQuery, VectorQuery, register_tables};
pub(crate) use source::{Request, Source};
pub(crate) use storage::{MAX_ROUNDS, moved_on, read_shards, take_entry};
use wanted::WantedKeys;

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
    shards: Vec<Arc<ShardMoment>>,
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
        }
        cache.keep_only(&shards);
        let shards = shards.into_iter().map(|view| {
            let keys = cache.shard_keys(view.shard);
            Arc::new(ShardMoment::new(view, keys))
        });
        Self { base, format, cache: Arc::clone(cache), with_base, shards: shards.collect() }
    }

    /// The same moment of the shards that a query wants; see [`ShardPruning`].
    pub(crate) fn pruned(self: &Arc<Self>, pruning: &ShardPruning) -> Arc<Self> {
        let is_wanted = |shard: &&Arc<ShardMoment>| pruning.may_hold(&shard.view.value);
        if self.shards.iter().all(|shard| is_wanted(&shard)) {
            return Arc::clone(self);
        }
        let shards = self.shards.iter().filter(is_wanted).cloned().collect();
        Arc::new(Self { shards, ..self.as_ref().clone() })
    }

    /// The rows of an SSTable that belong to its shard; `None`: all.
    fn part_of(&self, place: &SsTablePlace) -> Result<Option<PartOfRows>> {
        let filter = place.filter.map(|filter| PartOfRows::of(filter, self.base.sharding(), &self.format.user));
        filter.transpose()
    }

    /// The sources, each with what hides its rows; of each shard newest first, the base table last.
    pub(crate) fn sources(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        for shard in &self.shards {
            let view = &shard.view;
            let newer = |memtables, sstables| Newer::InShard { shard: Arc::clone(shard), memtables, sstables };
            for (n, memtable) in view.memtables.iter().enumerate() {
                sources.push(Source::memtable(memtable.clone(), newer(n, 0)));
            }
            for (n, sstable) in view.sstables.iter().enumerate() {
                let place = SsTablePlace::of(view.shard, sstable);
                sources.push(Source::sstable(place, sstable.physical_rows, newer(view.memtables.len(), n)));
            }
        }
        if self.with_base {
            sources.push(Source::base(Newer::All));
        }
        sources
    }

    /// How many rows the sources have, older versions and tombstones among them, as far as they are counted.
    pub(crate) fn estimated_rows(&self) -> usize {
        let of_shard = |shard: &Arc<ShardMoment>| {
            let in_memory: usize = shard.view.memtables.iter().map(MemTableSnapshot::rows).sum();
            let flushed: u64 = shard.view.sstables.iter().filter_map(|sstable| sstable.physical_rows).sum();
            in_memory + usize::try_from(flushed).unwrap_or(usize::MAX)
        };
        let merged = self.base.dataset().manifest().fragments.iter().filter_map(|fragment| fragment.num_rows());
        let merged = if self.with_base { merged.sum() } else { 0 };
        self.shards.iter().map(of_shard).fold(merged, usize::saturating_add)
    }

    /// Every row, all columns.
    pub(crate) fn scan(self) -> Result<SendableRecordBatchStream> {
        let schema = Arc::clone(&self.format.user);
        let request = Arc::new(Request::all_columns(&self));
        let snapshot = Arc::new(self);
        let streams = stream::iter(snapshot.sources()).then(move |source| {
            let (snapshot, request) = (Arc::clone(&snapshot), Arc::clone(&request));
            async move { source.read(snapshot, request).await.map_err(datafusion::error::DataFusionError::from) }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, streams.try_flatten())))
    }
}
