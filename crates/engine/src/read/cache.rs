//! What was loaded of a table's SSTables, for all readers of a table's handle. SSTables never change, so what was loaded
//! stays true; it is bounded, and what was not used for longest is forgotten first. A reader keeps what it holds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use fencepost_wal::ShardId;
use lance::Dataset;
use lance_core::cache::LanceCache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::ShardView;
use super::hiding::ShardKeys;
use super::lru::Lru;
use crate::error::Result;
use crate::lance_store::LanceStore;
use crate::sstable::{BloomFilter, Card, IndexKeys, KeyIndexFiles, KeyPage, PageRanges, SsTablePlace};

/// Limit of what is kept of bloom filters, statistics and the ranges of index pages, in bytes. A filter has 2 bytes for
/// each key, and 16 KiB at least. Default 256 MiB.
const ABOUT_BYTES: usize = 256 << 20;

/// Limit of the pages of primary-key indexes that are kept, in bytes. Default 64 MiB.
const PAGE_BYTES: usize = 64 << 20;

/// Limit of the footers of index files that are kept, in bytes. Default 32 MiB.
const INDEX_METADATA_BYTES: usize = 32 << 20;

/// SSTables that are kept open. What Lance holds of their files has a limit of its own, see `lance_store`. Default 512.
const OPEN_DATASETS: usize = 512;

/// Limit of the keys of SSTables that are kept between snapshots, in bytes, of all shards together. A snapshot that scans needs
/// the keys of what it hides by, however many. Default 256 MiB.
const KEY_BYTES: usize = 256 << 20;

/// What an entry takes before anything is loaded, in bytes.
const EMPTY_ENTRY: usize = 512;

/// What was loaded of a table's SSTables.
#[derive(Debug)]
pub(crate) struct SsTableCache {
    store: LanceStore,
    about: Lru<SsTablePlace, About>,
    open: Lru<SsTablePlace, OnceCell<Dataset>>,
    pages: Lru<(SsTablePlace, usize), OnceCell<Arc<KeyPage>>>,
    index_metadata: Arc<LanceCache>,
    keys: Mutex<HashMap<ShardId, Arc<ShardKeys>>>,
}

/// What is known of an SSTable without having it open.
#[derive(Debug, Default)]
struct About {
    card: OnceCell<Arc<Card>>,
    bloom_filter: OnceCell<Option<Arc<BloomFilter>>>,
    page_ranges: OnceCell<Arc<PageRanges>>,
}

impl SsTableCache {
    pub(crate) fn new(store: LanceStore) -> Self {
        Self {
            store,
            about: Lru::new(ABOUT_BYTES),
            open: Lru::new(OPEN_DATASETS),
            pages: Lru::new(PAGE_BYTES),
            index_metadata: Arc::new(LanceCache::with_capacity(INDEX_METADATA_BYTES)),
            keys: Mutex::default(),
        }
    }

    /// Drops what was loaded of these shards' other SSTables: they were merged. A reader of an older snapshot loads them
    /// again, for as long as they exist.
    pub(crate) fn keep_only(&self, views: &[ShardView]) {
        let named = |view: &ShardView| view.sstables.iter().map(|s| SsTablePlace::of(view.shard, s)).collect();
        let named: HashMap<ShardId, HashSet<SsTablePlace>> = views.iter().map(|v| (v.shard, named(v))).collect();
        let keep = |place: &SsTablePlace| named.get(&place.shard).is_none_or(|named| named.contains(place));
        self.about.retain(keep);
        self.open.retain(keep);
        self.pages.retain(|(place, _)| keep(place));
        let mut keys = self.keys.lock();
        for view in views {
            if keys.get(&view.shard).is_some_and(|keys| keys.is_mostly_merged(&view.sstables)) {
                keys.remove(&view.shard);
            }
        }
    }

    /// The keys of a shard's SSTables, as far as somebody needed them.
    pub(super) fn shard_keys(&self, shard: ShardId) -> Arc<ShardKeys> {
        Arc::clone(self.keys.lock().entry(shard).or_default())
    }

    /// Forgets keys until what is left is within the limit; the shards with the most go first.
    pub(super) fn trim_keys(&self) {
        let mut keys = self.keys.lock();
        let mut sizes: Vec<(usize, ShardId)> = keys.iter().map(|(shard, keys)| (keys.bytes(), *shard)).collect();
        let mut total: usize = sizes.iter().map(|(bytes, _)| bytes).sum();
        sizes.sort_unstable();
        while total > KEY_BYTES
            && let Some((bytes, shard)) = sizes.pop()
        {
            keys.remove(&shard);
            total -= bytes;
        }
    }

    /// What an SSTable's dataset says.
    pub(super) async fn card(&self, place: &SsTablePlace) -> Result<Arc<Card>> {
        let entry = self.about.entry(place, EMPTY_ENTRY);
        let load = || async {
            let card = match Card::load(&place.store(&self.store)?, &place.rel_dir).await? {
                Some(card) => card,
                None => Card::of(&self.dataset(place).await?),
            };
            self.about.add_weight(place, &entry, card.bytes());
            Ok(Arc::new(card))
        };
        entry.card.get_or_try_init(load).await.cloned()
    }

    /// An SSTable's dataset.
    pub(crate) async fn dataset(&self, place: &SsTablePlace) -> Result<Dataset> {
        let entry = self.open.entry(place, 1);
        entry.get_or_try_init(|| place.open(&self.store)).await.cloned()
    }

    /// Whether its bloom filter is in memory, or it is known that it has none.
    pub(super) fn has_bloom_filter(&self, place: &SsTablePlace) -> bool {
        self.about.entry(place, EMPTY_ENTRY).bloom_filter.initialized()
    }

    /// The bloom filter of an SSTable of a keyed table; `None` if there is none that can be believed.
    pub(crate) async fn bloom_filter(
        &self,
        place: &SsTablePlace,
        primary_key: &[String],
    ) -> Result<Option<Arc<BloomFilter>>> {
        let entry = self.about.entry(place, EMPTY_ENTRY);
        let load = || async {
            let card = self.card(place).await?;
            let store = place.store(&self.store)?;
            let filter = BloomFilter::load(&store, &place.rel_dir, &card, primary_key).await?.map(Arc::new);
            self.about.add_weight(place, &entry, filter.as_ref().map_or(0, |filter| filter.bytes()));
            Ok(filter)
        };
        entry.bloom_filter.get_or_try_init(load).await.cloned()
    }

    /// The key numbers, of those given, that an SSTable of ours has, each with the position of its row.
    pub(super) async fn positions(
        &self,
        place: &SsTablePlace,
        keys: &IndexKeys,
        numbers: &[usize],
    ) -> Result<Vec<(usize, u64)>> {
        let store = place.store(&self.store)?;
        let entry = self.about.entry(place, EMPTY_ENTRY);
        let ranges = || async {
            let files = KeyIndexFiles::of(&store, &place.rel_dir, &self.index_metadata).await?;
            let ranges = files.ranges(keys).await?;
            self.about.add_weight(place, &entry, ranges.bytes());
            Ok::<_, crate::Error>(Arc::new(ranges))
        };
        let ranges = Arc::clone(entry.page_ranges.get_or_try_init(ranges).await?);
        let mut found = Vec::new();
        for (page, numbers) in ranges.pages_of(keys, numbers) {
            let key = (place.clone(), page);
            let entry = self.pages.entry(&key, EMPTY_ENTRY);
            let load = || async {
                let files = KeyIndexFiles::of(&store, &place.rel_dir, &self.index_metadata).await?;
                let page = files.page(keys, page).await?;
                self.pages.add_weight(&key, &entry, page.bytes());
                Ok::<_, crate::Error>(Arc::new(page))
            };
            found.extend(entry.get_or_try_init(load).await?.find(keys, &numbers));
        }
        Ok(found)
    }
}
