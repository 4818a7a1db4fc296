//! Opened SSTables, their bloom filters and their key sets, each loaded once for all readers of a table's handle. SSTables never change, so
//! what was loaded stays true; what the newest snapshot no longer names is dropped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use fencepost_wal::{ShardId, SsTable};
use futures::TryStreamExt;
use lance::Dataset;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::error::Result;
use crate::key::{KeyEncoder, KeySet};
use crate::lance_store::LanceStore;
use crate::sharding::PartOfRows;
use crate::sstable::{self, BloomFilter, SsTablePlace};

/// What was loaded of a table's SSTables.
#[derive(Debug)]
pub(crate) struct SsTableCache {
    store: LanceStore,
    loaded: Mutex<HashMap<SsTablePlace, Arc<Loaded>>>,
}

#[derive(Debug, Default)]
struct Loaded {
    dataset: OnceCell<Dataset>,
    bloom_filter: OnceCell<Option<Arc<BloomFilter>>>,
    keys: OnceCell<Arc<KeySet>>,
}

impl SsTableCache {
    pub(crate) fn new(store: LanceStore) -> Self {
        Self { store, loaded: Mutex::default() }
    }

    /// Drops what was loaded of a shard's other SSTables: they were merged. A reader of an older snapshot loads them
    /// again, for as long as they exist.
    pub(crate) fn keep_only(&self, shard: ShardId, sstables: &[SsTable]) {
        let named: HashSet<SsTablePlace> = sstables.iter().map(|s| SsTablePlace::of(shard, s)).collect();
        self.loaded.lock().retain(|place, _| place.shard != shard || named.contains(place));
    }

    fn entry(&self, place: &SsTablePlace) -> Arc<Loaded> {
        Arc::clone(self.loaded.lock().entry(place.clone()).or_default())
    }

    /// An SSTable's dataset.
    pub(crate) async fn dataset(&self, place: &SsTablePlace) -> Result<Dataset> {
        let entry = self.entry(place);
        entry.dataset.get_or_try_init(|| place.open(&self.store)).await.cloned()
    }

    /// The bloom filter of an SSTable of a keyed table; `None` if there is none that can be believed.
    pub(crate) async fn bloom_filter(
        &self,
        place: &SsTablePlace,
        primary_key: &[String],
    ) -> Result<Option<Arc<BloomFilter>>> {
        let entry = self.entry(place);
        let load = || async {
            let dataset = self.dataset(place).await?;
            let store = place.store(&self.store)?;
            Ok(BloomFilter::load(&store, &place.rel_dir, &dataset, primary_key).await?.map(Arc::new))
        };
        entry.bloom_filter.get_or_try_init(load).await.cloned()
    }

    /// Every key of an SSTable that its shard has, those of tombstones too. `part` is what the place's filter means.
    pub(crate) async fn keys(
        &self,
        place: &SsTablePlace,
        part: Option<&PartOfRows>,
        encoder: &KeyEncoder,
    ) -> Result<Arc<KeySet>> {
        let entry = self.entry(place);
        let load = || async {
            let dataset = self.dataset(place).await?;
            let columns: Vec<String> = encoder.columns().map(str::to_owned).collect();
            let mut batches = sstable::scan(&dataset, Some(&columns), None).await?;
            let mut keys = KeySet::new();
            while let Some(batch) = batches.try_next().await? {
                // The sharding column of a keyed table is part of its key.
                let batch = match part {
                    Some(part) => part.choose(&batch)?,
                    None => batch,
                };
                keys.insert_rows(&encoder.encode(&batch)?);
            }
            Ok(Arc::new(keys))
        };
        entry.keys.get_or_try_init(load).await.cloned()
    }
}
