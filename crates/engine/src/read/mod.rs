//! One version of each row out of base table, SSTables and MemTables: a snapshot names the sources, a scan reads
//! them side by side and hides from each what newer sources hold.

mod cache;
mod handle;
mod predicate;
mod provider;
mod prune;
mod source;
mod storage;
mod wanted;

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use fencepost_wal::{Generation, ShardId, SsTable};
use futures::{StreamExt, TryStreamExt, stream};

use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::memtable::MemTableSnapshot;
use crate::rows::RowFormat;
use crate::sharding::{PartOfRows, ShardValue};
use crate::sstable::SsTablePlace;

pub(crate) use cache::SsTableCache;
pub use handle::TableSnapshot;
use predicate::Candidates;
pub(crate) use provider::LsmTable;
pub(crate) use prune::ShardPruning;
pub(crate) use source::{Request, Source};
pub(crate) use storage::{MAX_ROUNDS, moved_on, read_shards, take_entry};
use wanted::WantedKeys;

/// Bloom filters that are loaded at once.
const FILTERS_AT_ONCE: usize = 16;

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

    /// The same moment of the shards that a query wants; see [`ShardPruning`].
    pub(crate) fn pruned(self: &Arc<Self>, pruning: &ShardPruning) -> Arc<Self> {
        let is_wanted = |view: &&ShardView| pruning.may_hold(&view.value);
        if self.shards.iter().all(|view| is_wanted(&view)) {
            return Arc::clone(self);
        }
        let shards = self.shards.iter().filter(is_wanted).cloned().collect();
        Arc::new(Self { shards, ..self.as_ref().clone() })
    }

    /// The sources, each with what hides its rows.
    pub(crate) fn sources(&self) -> Vec<Source> {
        self.sources_of(&self.shards)
    }

    /// The sources that may hold one of these keys, each with what hides its rows. The base table is always one.
    ///
    /// What is left out is not missed as a hider either: it hides only rows of keys that it holds, which nobody asked
    /// for. So such rows come to light here, and [`Source::read`] drops whatever has none of the keys.
    pub(crate) async fn sources_holding(&self, wanted: &WantedKeys) -> Result<Vec<Source>> {
        let mut views = Vec::with_capacity(self.shards.len());
        for view in &self.shards {
            let memtables = view.memtables.iter().filter(|memtable| wanted.any_in_memtable(memtable)).cloned();
            let sstables = stream::iter(view.sstables.iter().cloned()).map(|sstable| async move {
                let place = SsTablePlace::of(view.shard, &sstable);
                let filter = self.cache.bloom_filter(&place, &self.format.primary_key).await?;
                let holds = filter.is_none_or(|filter| wanted.any_in_sstable(&filter));
                Ok::<_, Error>(holds.then_some(sstable))
            });
            let sstables =
                sstables.buffered(FILTERS_AT_ONCE).try_filter_map(|held| std::future::ready(Ok(held))).try_collect();
            let (memtables, sstables) = (memtables.collect(), sstables.await?);
            views.push(ShardView { shard: view.shard, value: view.value.clone(), memtables, sstables });
        }
        Ok(self.sources_of(&views))
    }

    /// The rows of an SSTable that belong to its shard; `None`: all.
    fn part_of(&self, place: &SsTablePlace) -> Result<Option<PartOfRows>> {
        let filter = place.filter.map(|filter| PartOfRows::of(filter, self.base.sharding(), &self.format.user));
        filter.transpose()
    }

    fn sources_of(&self, shards: &[ShardView]) -> Vec<Source> {
        let mut sources = Vec::new();
        let mut all_newer: Vec<Source> = Vec::new();
        for view in shards {
            let mut newer: Vec<Source> = Vec::new();
            let memtables = view.memtables.iter().cloned().map(Source::memtable);
            let sstables = view
                .sstables
                .iter()
                .map(|entry| Source::sstable(SsTablePlace::of(view.shard, entry), entry.physical_rows));
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
        let streams = stream::iter(snapshot.sources()).then(move |source| {
            let (snapshot, request) = (Arc::clone(&snapshot), Arc::clone(&request));
            async move { source.read(snapshot, request).await.map_err(datafusion::error::DataFusionError::from) }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, streams.try_flatten())))
    }
}
