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
use crate::sstable::{self, BloomFilter};

/// What was loaded of a table's SSTables.
#[derive(Debug)]
pub(crate) struct SsTableCache {
    store: LanceStore,
    loaded: Mutex<HashMap<String, Arc<Loaded>>>,
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
        let named: HashSet<String> = sstables.iter().map(|s| sstable::relative_dir(shard, &s.path)).collect();
        let folder = sstable::relative_dir(shard, "");
        self.loaded.lock().retain(|rel_dir, _| !rel_dir.starts_with(&folder) || named.contains(rel_dir));
    }

    fn entry(&self, rel_dir: &str) -> Arc<Loaded> {
        Arc::clone(self.loaded.lock().entry(rel_dir.to_owned()).or_default())
    }

    /// An SSTable's dataset.
    pub(crate) async fn dataset(&self, rel_dir: &str) -> Result<Dataset> {
        let entry = self.entry(rel_dir);
        entry.dataset.get_or_try_init(|| sstable::open(&self.store, rel_dir)).await.cloned()
    }

    /// The bloom filter of an SSTable of a keyed table; `None` if there is none that can be believed.
    pub(crate) async fn bloom_filter(&self, rel_dir: &str, primary_key: &[String]) -> Result<Option<Arc<BloomFilter>>> {
        let entry = self.entry(rel_dir);
        let load = || async {
            let dataset = self.dataset(rel_dir).await?;
            Ok(BloomFilter::load(&self.store, rel_dir, &dataset, primary_key).await?.map(Arc::new))
        };
        entry.bloom_filter.get_or_try_init(load).await.cloned()
    }

    /// Every key of an SSTable, those of tombstones too.
    pub(crate) async fn keys(&self, rel_dir: &str, encoder: &KeyEncoder) -> Result<Arc<KeySet>> {
        let entry = self.entry(rel_dir);
        let load = || async {
            let dataset = self.dataset(rel_dir).await?;
            let columns: Vec<String> = encoder.columns().map(str::to_owned).collect();
            let mut batches = sstable::scan(&dataset, Some(&columns), None).await?;
            let mut keys = KeySet::new();
            while let Some(batch) = batches.try_next().await? {
                keys.insert_rows(&encoder.encode(&batch)?);
            }
            Ok(Arc::new(keys))
        };
        entry.keys.get_or_try_init(load).await.cloned()
    }
}
