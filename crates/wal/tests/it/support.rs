//! A bucket, processes that share it, rows, and looks at what is really there.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use fencepost_sim::{FaultStore, Gate, Op};
use fencepost_wal::gc::{self, BaseProgress, GcOptions, GcReport};
use fencepost_wal::{
    EntryKind, ManifestStore, ManifestVersion, OpenOptions, Position, Replay, Result, RetryPolicy, Shard, ShardId,
    ShardManifest, Store, Surroundings, WalAppender, WalConfig, WalEntry, WalTailer, WalWriter, checkpoint,
};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::task::JoinHandle;
use url::Url;
use uuid::Uuid;

/// A store, and one shard in it.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    store: Store,
    id: ShardId,
}

/// One process's view of a bucket: its own faults, its own record of requests.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) faults: FaultStore,
    pub(crate) shard: Shard,
}

/// A bucket in memory with a fresh shard that nobody has written to.
pub(crate) async fn bucket() -> Bucket {
    Bucket::on(memory_store(Arc::new(InMemory::new()))).await
}

impl Bucket {
    /// A fresh shard in a store.
    pub(crate) async fn on(store: Store) -> Self {
        let bucket = Self { store, id: ShardId::new_random() };
        let first = ShardManifest::first(bucket.id, 0, vec![]);
        ManifestStore::new(bucket.shard()).initialize(first).await.unwrap();
        bucket
    }

    fn inner(&self) -> &Arc<dyn ObjectStore> {
        self.store.object_store()
    }

    /// The shard without any faults in between.
    pub(crate) fn shard(&self) -> Shard {
        Shard::new(self.store.clone(), self.id)
    }

    /// A process that has no faults yet.
    pub(crate) fn process(&self) -> Process {
        self.process_with(RetryPolicy::default())
    }

    /// A process that may stall for hours without any request of its own timing out.
    pub(crate) fn patient(&self) -> Process {
        self.process_with(RetryPolicy { attempt_timeout: Duration::from_secs(100_000_000), ..RetryPolicy::default() })
    }

    /// A process whose requests are tried `attempts` times.
    pub(crate) fn attempts(&self, attempts: usize) -> Process {
        self.process_with(RetryPolicy { max_attempts: attempts, ..RetryPolicy::default() })
    }

    fn process_with(&self, retry: RetryPolicy) -> Process {
        let faults = FaultStore::new(Arc::clone(self.inner()));
        let store = self.store.clone().wrapped(|_| faults.store()).with_retry(retry);
        Process { shard: Shard::new(store, self.id), faults }
    }

    pub(crate) fn entry_path(&self, position: u64) -> Path {
        self.shard().entry_path(Position::new(position))
    }

    pub(crate) fn manifest_path(&self, version: u64) -> Path {
        self.shard().manifest_path(ManifestVersion::new(version))
    }

    /// The bytes of an object; `None` if it is not there.
    pub(crate) async fn read(&self, path: &Path) -> Option<Bytes> {
        Some(self.inner().get(path).await.ok()?.bytes().await.unwrap())
    }

    pub(crate) async fn write(&self, path: &Path, bytes: Bytes) {
        self.inner().put(path, bytes.into()).await.unwrap();
    }

    pub(crate) async fn delete(&self, path: &Path) {
        self.inner().delete(path).await.unwrap();
    }

    /// A process whose clock is two days ahead, so that nothing in the bucket is too young to be collected.
    pub(crate) fn collector(&self) -> Process {
        self.patient().later(Duration::from_secs(2 * 24 * 3600))
    }

    /// Collects what nobody needs: log entries, and manifests except the latest 16.
    pub(crate) async fn collect_garbage(&self) -> GcReport {
        let before = self.names().await;
        let report = self.collector().collect(&BaseProgress::default()).await.unwrap();
        assert_eq!(report.refused, None);
        self.check_nothing_is_missing().await;
        let newest = self.manifest().await.version.get();
        let kept = (newest.saturating_sub(15).max(1)..=newest).map(|v| self.manifest_path(v).to_string());
        let kept: BTreeSet<_> = kept.filter(|path| before.contains(path)).collect();
        assert!(self.names().await.is_superset(&kept), "one of the latest 16 manifests is gone");
        report
    }

    /// I7: what the latest manifest and the live checkpoints need is there.
    pub(crate) async fn check_nothing_is_missing(&self) {
        let (manifest, shard) = (self.manifest().await, self.shard());
        let there = self.names().await;
        let has = |path: Path| there.contains(path.as_ref());
        let entry = |position: Position| assert!(has(shard.entry_path(position)), "entry {position} is gone");
        let folder = |name: &str| {
            let root = shard.root().clone().join(name);
            let prefix = format!("{root}/");
            assert!(there.iter().any(|path| path.starts_with(&prefix)), "folder {name} is gone");
            assert_eq!(has(root.clone().join("a")), has(root.join("b")), "folder {name} is not whole");
        };
        manifest.fences().iter().for_each(|fence| entry(fence.position));
        if manifest.replay_after > Position::ZERO {
            entry(manifest.replay_after);
            entry(manifest.last_seen);
        }
        manifest.sstables.iter().for_each(|s| folder(&s.path));
        for listed in manifest.checkpoints() {
            if listed.is_live(shard.store().surroundings().now()) {
                let pinned = checkpoint::read(&shard, listed.id).await.unwrap();
                assert_eq!((pinned.manifest.replay_after, pinned.tail), (listed.replay_after, listed.tail));
                (listed.replay_after.get() + 1..=listed.tail.get()).map(Position::new).for_each(entry);
                pinned.manifest.sstables.iter().for_each(|s| folder(&s.path));
            }
        }
    }

    /// The lowest version of a manifest; all above it must be there, too.
    pub(crate) async fn oldest_manifest(&self) -> u64 {
        let (there, newest) = (self.names().await, self.manifest().await.version.get());
        let has = |v: &u64| there.contains(self.manifest_path(*v).as_ref());
        let oldest = (1..=newest).find(has).unwrap();
        assert!((oldest..=newest).all(|v| has(&v)), "the manifests have a gap");
        assert!(newest - oldest >= 15 || oldest == 1, "the latest 16 stay: {oldest}..={newest}");
        oldest
    }

    /// A shard that does not exist yet, of another table in the same bucket.
    pub(crate) fn elsewhere(&self, table: &str) -> Self {
        let url = self.store.url().join(table).unwrap();
        Self { store: self.store.sibling(url.as_str()).unwrap(), id: ShardId::new_random() }
    }

    /// Another shard in the same store, which need not exist.
    pub(crate) fn with_id(self, id: ShardId) -> Self {
        Self { id, ..self }
    }

    /// A copy of the bucket as it is now.
    pub(crate) async fn fork(&self) -> Self {
        let copy = InMemory::new();
        for name in self.names().await {
            let path = Path::from(name);
            let bytes = self.read(&path).await.unwrap();
            copy.put(&path, bytes.into()).await.unwrap();
        }
        Self { store: memory_store(Arc::new(copy)), id: self.id }
    }

    /// The bytes of a manifest that somebody else commits.
    pub(crate) async fn bytes_of(&self, manifest: ShardManifest) -> Bytes {
        let elsewhere = Self { store: memory_store(Arc::new(InMemory::new())), id: self.id };
        let path = elsewhere.shard().manifest_path(manifest.version);
        ManifestStore::new(elsewhere.shard()).initialize(manifest).await.unwrap();
        elsewhere.read(&path).await.unwrap()
    }

    /// The paths of all objects.
    pub(crate) async fn names(&self) -> BTreeSet<String> {
        self.inner()
            .list(Some(self.store.root()))
            .map_ok(|object| object.location.to_string())
            .try_collect()
            .await
            .unwrap()
    }

    /// The folder of an SSTable, as far as garbage collection knows them.
    pub(crate) async fn write_sstable(&self, name: &str) {
        for file in ["a", "b"] {
            self.write(&self.shard().root().clone().join(name).join(file), Bytes::from_static(b"rows")).await;
        }
    }

    /// Deletes all manifests older than `keep_from`, oldest first.
    pub(crate) async fn prune_below(&self, keep_from: u64) {
        for version in 1..keep_from {
            self.delete_if_there(&self.manifest_path(version)).await;
        }
    }

    async fn delete_if_there(&self, path: &Path) {
        match self.inner().delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Puts a copy of the entry at `from` to `to`, as a request that was under way for long would.
    pub(crate) async fn copy_entry(&self, from: u64, to: u64) {
        let bytes = self.read(&self.entry_path(from)).await.unwrap();
        self.write(&self.entry_path(to), bytes).await;
    }

    pub(crate) async fn manifest(&self) -> ShardManifest {
        ManifestStore::new(self.shard()).latest_existing().await.unwrap()
    }

    pub(crate) async fn fences(&self) -> Vec<(u64, u64)> {
        self.manifest().await.fences().iter().map(|f| (f.position.get(), f.epoch.get())).collect()
    }

    /// The log above R up to the first absent position: position, epoch, kind, rows.
    pub(crate) async fn log(&self) -> Vec<(u64, u64, EntryKind, Vec<i64>)> {
        let mut tailer = WalTailer::new(self.shard());
        let mut found = Vec::new();
        while let Some((kind, entry)) = tailer.next_any().await.unwrap() {
            found.push((entry.position.get(), entry.writer_epoch.get(), kind, ids_of(&entry)));
        }
        found
    }

    /// The live rows above R, in order.
    pub(crate) async fn rows(&self) -> Vec<i64> {
        self.log().await.into_iter().filter(|(_, _, kind, _)| *kind == EntryKind::Rows).flat_map(|e| e.3).collect()
    }
}

/// The clock of a process that runs ahead.
#[derive(Debug)]
struct Later(Duration);

impl Surroundings for Later {
    fn now(&self) -> SystemTime {
        SystemTime::now() + self.0
    }

    fn fresh_id(&self) -> Uuid {
        Uuid::new_v4()
    }
}

impl Process {
    /// The same process with a clock that runs ahead.
    pub(crate) fn later(mut self, ahead: Duration) -> Self {
        let store = self.shard.store().clone().with_surroundings(Arc::new(Later(ahead)));
        self.shard = Shard::new(store, self.shard.id());
        self
    }

    /// Collects garbage, however young.
    pub(crate) async fn collect(&self, base: &BaseProgress) -> Result<GcReport> {
        let options = GcOptions { min_age: Duration::ZERO, ..GcOptions::default() };
        gc::collect(&self.shard, base, &options, |_| ()).await
    }

    pub(crate) async fn open(&self) -> Result<(WalAppender, Replay)> {
        WalAppender::open(&self.shard, &OpenOptions::default()).await
    }

    /// Takes the shard over; the replay is read to its end.
    pub(crate) async fn appender(&self) -> WalAppender {
        self.open().await.unwrap().0
    }

    pub(crate) async fn writer(&self, config: WalConfig) -> WalWriter {
        let (writer, _) = WalWriter::open(&self.shard, schema(), config, &OpenOptions::default()).await.unwrap();
        writer
    }

    /// Requests of one kind in the record.
    pub(crate) fn requests(&self, op: Op, part: &str) -> usize {
        self.faults.log().iter().filter(|r| r.op == op && r.path.contains(part)).count()
    }
}

/// A table root in `inner`, under a name that many tests may share: their inner stores differ.
pub(crate) fn memory_store(inner: Arc<dyn ObjectStore>) -> Store {
    Store::from_parts(Url::parse("memory://tests/t").unwrap(), inner, Path::from("t"))
}

pub(crate) fn schema() -> SchemaRef {
    batch([]).schema()
}

pub(crate) fn batch(ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: ArrayRef = Arc::new(ids.into_iter().collect::<Int64Array>());
    RecordBatch::try_from_iter_with_nullable([("id", ids, false)]).unwrap()
}

pub(crate) fn ids_of_batch(batch: &RecordBatch) -> Vec<i64> {
    batch.column(0).as_primitive::<Int64Type>().values().to_vec()
}

pub(crate) fn ids_of(entry: &WalEntry) -> Vec<i64> {
    entry.batches.iter().flat_map(ids_of_batch).collect()
}

/// Reads a replay to its end.
pub(crate) async fn replayed(mut replay: Replay) -> Vec<i64> {
    let mut ids = Vec::new();
    while let Some(entry) = replay.next().await.unwrap() {
        ids.extend(ids_of(&entry));
    }
    ids
}

pub(crate) async fn append(appender: &mut WalAppender, ids: impl IntoIterator<Item = i64>) -> Result<Position> {
    appender.append(&schema(), &[batch(ids)]).await
}

/// Polls a future once, and panics if it is done.
pub(crate) async fn must_wait<F: Future>(future: &mut Pin<Box<F>>)
where
    F::Output: std::fmt::Debug,
{
    match futures::poll!(future.as_mut()) {
        std::task::Poll::Pending => {}
        std::task::Poll::Ready(answer) => panic!("expected to wait, got {answer:?}"),
    }
}

/// Runs a task until it waits at the gate (true) or has ended (false).
pub(crate) async fn meets<T>(gate: &Gate, task: &JoinHandle<T>) -> bool {
    while gate.arrivals() == 0 && !task.is_finished() {
        tokio::task::yield_now().await;
    }
    gate.arrivals() > 0
}

/// Lets every other task run until all of them wait.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
