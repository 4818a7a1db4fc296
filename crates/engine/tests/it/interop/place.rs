//! A folder with a table that Fencepost created, and Fencepost's side of it.

use std::path::PathBuf;
use std::sync::Arc;

use fencepost::wal::{ManifestStore, Position, Shard, ShardManifest};
use fencepost::{ShardWriter, Sharding, Store, Table, TableOptions, WriterConfig};
use fencepost_sim::FaultStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use tempfile::TempDir;
use url::Url;

use super::lance::{Lance, LanceWriter};
use crate::support::{Process, pairs, schema};

/// Where both implementations meet.
#[derive(Debug)]
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    /// An empty table with the columns `id`, `v`, `s`; with or without the key `id`.
    pub(crate) async fn new(keyed: bool) -> Self {
        Self::sharded(keyed, Sharding::Unsharded).await
    }

    pub(crate) async fn sharded(keyed: bool, sharding: Sharding) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let primary_key = if keyed { vec!["id".to_owned()] } else { vec![] };
        let options = TableOptions { primary_key, sharding };
        Table::create(place.store(), schema(), options).await.unwrap();
        place
    }

    /// The same bytes at another place.
    pub(crate) fn copy(&self) -> Self {
        fn copy(from: &std::path::Path, to: &std::path::Path) {
            std::fs::create_dir(to).unwrap();
            for entry in std::fs::read_dir(from).unwrap() {
                let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
                match from.is_dir() {
                    true => copy(&from, &to),
                    false => assert!(std::fs::copy(from, to).is_ok()),
                }
            }
        }
        let folder = tempfile::tempdir().unwrap();
        copy(&self.folder.path().join("t"), &folder.path().join("t"));
        Self { folder }
    }

    /// The table's path: what Lance opens.
    pub(crate) fn path(&self) -> String {
        self.folder.path().join("t").to_str().unwrap().to_owned()
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.path(), &Default::default()).unwrap()
    }

    /// A Fencepost process with faults of its own.
    pub(crate) fn process(&self) -> Process {
        let path = self.path();
        let url = Url::from_file_path(&path).unwrap();
        let root = Path::from_absolute_path(&path).unwrap();
        let faults = FaultStore::new(Arc::new(LocalFileSystem::new()));
        Process { store: Store::from_parts(url, faults.store(), root), faults }
    }

    /// A fresh handle.
    pub(crate) async fn table(&self) -> Table {
        Table::open(self.store()).await.unwrap()
    }

    /// What a process that only reads sees through SQL: `(id, v)`, sorted.
    pub(crate) async fn seen(&self) -> Vec<(i64, Option<i64>)> {
        pairs(self.table().await.provider().await.unwrap()).await
    }

    /// The first shard.
    pub(crate) async fn shard(&self) -> Shard {
        Shard::new(self.store(), self.table().await.shard_ids().await.unwrap()[0])
    }

    /// The first shard's newest manifest.
    pub(crate) async fn manifest(&self) -> ShardManifest {
        ManifestStore::new(self.shard().await).latest_existing().await.unwrap()
    }

    /// Fencepost takes the first shard over.
    pub(crate) async fn ours(&self, config: WriterConfig) -> ShardWriter {
        self.process().writer(config).await
    }

    /// A fresh Lance on the same bytes.
    pub(crate) async fn lance(&self) -> Lance {
        Lance::open(&self.path(), self.table().await.shard_ids().await.unwrap()[0]).await
    }

    /// Lance takes the first shard over.
    pub(crate) async fn theirs(&self) -> LanceWriter {
        self.lance().await.writer().await
    }

    /// The file of a WAL entry of the first shard.
    pub(crate) async fn entry_file(&self, position: u64) -> PathBuf {
        file(&self.shard().await.entry_path(Position::new(position)))
    }

    /// Puts a copy of an entry to another position, as a dead writer's request that was under way for long would.
    pub(crate) async fn straggle(&self, from: u64, to: u64) {
        let (from, to) = (self.entry_file(from).await, self.entry_file(to).await);
        assert!(!to.exists(), "the position is taken");
        std::fs::copy(from, to).unwrap();
    }

    /// Deletes the WAL entries that garbage collection may delete, if it may judge the shard at all: those below R
    /// that are neither fences nor the last one seen.
    pub(crate) async fn collect_garbage(&self) -> fencepost::wal::Result<()> {
        let manifest = self.manifest().await;
        manifest.collectable()?;
        let kept: Vec<Position> = manifest.fences().iter().map(|f| f.position).chain([manifest.last_seen]).collect();
        for position in (1..manifest.replay_after.get()).map(Position::new).filter(|p| !kept.contains(p)) {
            let _ = std::fs::remove_file(self.entry_file(position.get()).await);
        }
        Ok(())
    }
}

/// An object's file.
pub(crate) fn file(object: &Path) -> PathBuf {
    std::path::Path::new("/").join(object.as_ref())
}
