//! A folder with a table that Fencepost created, and Fencepost's side of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fencepost::wal::gc::GcOptions;
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
        Self::copy_of(self.path().as_ref())
    }

    /// A copy of the table in this folder.
    pub(crate) fn copy_of(table: &std::path::Path) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        copy_folder(table, place.path().as_ref());
        place
    }

    /// Copies the table to a folder that does not exist.
    pub(crate) fn copy_to(&self, to: &std::path::Path) {
        copy_folder(self.path().as_ref(), to);
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

    /// Collects the first shard's garbage, however young.
    pub(crate) async fn collect_garbage(&self) -> fencepost::wal::Result<()> {
        let options = GcOptions { min_age: Duration::ZERO, ..GcOptions::default() };
        let table = self.table().await.gc(&options, |_| ()).await.unwrap();
        match table.shards[0].report.refused {
            None => Ok(()),
            Some(_) => self.manifest().await.collectable(),
        }
    }
}

/// An object's file.
pub(crate) fn file(object: &Path) -> PathBuf {
    std::path::Path::new("/").join(object.as_ref())
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy_folder(&from, &to),
            false => assert!(std::fs::copy(from, to).is_ok()),
        }
    }
}
