//! Opened SSTables and their key sets, each loaded once. SSTables never change, so what was loaded stays true.

use std::collections::HashMap;
use std::sync::Arc;

use futures::TryStreamExt;
use lance::Dataset;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::error::Result;
use crate::key::{KeyEncoder, KeySet};
use crate::lance_store::LanceStore;
use crate::sstable;

/// What was loaded of the SSTables that one snapshot names.
#[derive(Debug)]
pub(crate) struct SsTableCache {
    store: LanceStore,
    loaded: Mutex<HashMap<String, Arc<Loaded>>>,
}

#[derive(Debug, Default)]
struct Loaded {
    dataset: OnceCell<Dataset>,
    keys: OnceCell<Arc<KeySet>>,
}

impl SsTableCache {
    pub(crate) fn new(store: LanceStore) -> Self {
        Self { store, loaded: Mutex::default() }
    }

    fn entry(&self, rel_dir: &str) -> Arc<Loaded> {
        Arc::clone(self.loaded.lock().entry(rel_dir.to_owned()).or_default())
    }

    /// An SSTable's dataset.
    pub(crate) async fn dataset(&self, rel_dir: &str) -> Result<Dataset> {
        let entry = self.entry(rel_dir);
        entry.dataset.get_or_try_init(|| sstable::open(&self.store, rel_dir)).await.cloned()
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
