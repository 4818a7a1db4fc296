//! Lance's side: a dataset opened with a plain path, and its MemWAL as the crate publishes it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, RecordBatch};
use fencepost::ShardId;
use fencepost_sim::FaultStore;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::mem_wal::scanner::ShardSnapshot;
use lance::dataset::mem_wal::{
    DatasetMemWalExt, LsmScanner, ShardManifestStore, ShardWriter, ShardWriterConfig, TOMBSTONE, WalTailer,
};
use lance_io::object_store::{ObjectStoreParams, WrappingObjectStore};
use lance_table::system_index::mem_wal::ShardManifest;
use object_store::ObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use uuid::Uuid;

use crate::support::{keys, rows};

/// A table as plain Lance opens it: its own store object, registry and caches.
#[derive(Debug, Clone)]
pub(crate) struct Lance {
    pub(crate) dataset: Dataset,
    pub(crate) shard: Uuid,
}

/// One row of a source, in the order it was written.
type Row = (i64, Option<i64>, bool);

impl Lance {
    pub(crate) async fn open(path: &str, shard: ShardId) -> Self {
        Self { dataset: Dataset::open(path).await.unwrap(), shard: *shard.as_uuid() }
    }

    /// The same, with requests that go wrong where `wrong` says so.
    pub(crate) async fn open_with(path: &str, shard: ShardId, wrong: fn(&FaultStore)) -> Self {
        let wrapper: Arc<dyn WrappingObjectStore> = Arc::new(Behind(wrong));
        let params = ObjectStoreParams { object_store_wrapper: Some(wrapper), ..Default::default() };
        let dataset = DatasetBuilder::from_uri(path).with_store_params(params).load().await.unwrap();
        Self { dataset, shard: *shard.as_uuid() }
    }

    /// The same table, writing to another shard.
    pub(crate) fn on_shard(mut self, shard: ShardId) -> Self {
        self.shard = *shard.as_uuid();
        self
    }

    fn keyed(&self) -> bool {
        !self.dataset.schema().unenforced_primary_key().is_empty()
    }

    async fn store(&self) -> (Arc<lance_io::object_store::ObjectStore>, Path) {
        (self.dataset.object_store(None).await.unwrap(), self.dataset.branch_location().path)
    }

    /// Limits that no test reaches, so that MemTables are flushed when a test says so.
    pub(crate) fn config() -> ShardWriterConfig {
        ShardWriterConfig::default().with_max_wal_flush_interval(Duration::from_millis(1))
    }

    /// Takes the shard over.
    pub(crate) async fn writer(&self) -> LanceWriter {
        self.writer_with(Self::config()).await
    }

    pub(crate) async fn writer_with(&self, config: ShardWriterConfig) -> LanceWriter {
        self.try_writer(config).await.unwrap()
    }

    pub(crate) async fn try_writer(&self, config: ShardWriterConfig) -> lance::Result<LanceWriter> {
        let writer = self.dataset.mem_wal_writer(self.shard, config).await?;
        Ok(LanceWriter { lance: self.clone(), writer })
    }

    pub(crate) async fn tailer(&self) -> WalTailer {
        let (store, path) = self.store().await;
        WalTailer::new(store, path, self.shard)
    }

    pub(crate) async fn manifests(&self) -> ShardManifestStore {
        let (store, path) = self.store().await;
        ShardManifestStore::new(store, &path, self.shard, 2)
    }

    /// The newest manifest.
    pub(crate) async fn manifest(&self) -> ShardManifest {
        self.manifests().await.latest().await.unwrap().unwrap()
    }

    /// An SSTable as a plain dataset, by the name of its folder.
    pub(crate) async fn sstable(&self, name: &str) -> Dataset {
        let path = format!("{}/_mem_wal/{}/{name}", self.dataset.uri().trim_end_matches('/'), self.shard);
        Dataset::open(&path).await.unwrap()
    }

    /// Rows on storage that are not in the log, newest source first.
    async fn flushed(&self) -> Vec<Vec<Row>> {
        let mut base = self.dataset.clone();
        base.checkout_latest().await.unwrap();
        let details = base.mem_wal_index_details().await.unwrap().unwrap();
        let merged = details.compacted_sstables.iter().find(|done| done.shard_id == self.shard);
        let merged = merged.map_or(0, |done| done.generation);
        let mut sstables = self.manifest().await.sstables;
        sstables.retain(|sstable| sstable.generation > merged);
        sstables.sort_by_key(|sstable| std::cmp::Reverse(sstable.generation));
        let mut sources = Vec::new();
        for sstable in sstables {
            sources.push(scan(&self.sstable(&sstable.path).await).await);
        }
        sources.push(scan(&base).await);
        sources
    }

    /// What Lance's own LSM read path makes of base table and SSTables, without a writer.
    pub(crate) async fn lsm_scan(&self) -> Vec<(i64, Option<i64>)> {
        let manifest = self.manifest().await;
        let snapshot = ShardSnapshot::new(self.shard).with_current_generation(manifest.current_generation);
        let snapshot = manifest.sstables.iter().fold(snapshot, |s, t| s.with_sstable(t.generation, t.path.clone()));
        let scanner = LsmScanner::new(Arc::new(self.dataset.clone()), vec![snapshot], vec!["id".into()]);
        let batch = scanner.try_into_batch().await.unwrap();
        let mut found: Vec<_> = rows_of(&batch).into_iter().map(|(id, v, _)| (id, v)).collect();
        found.sort_unstable();
        found
    }
}

/// A Lance writer and the table that it writes to.
pub(crate) struct LanceWriter {
    pub(crate) lance: Lance,
    pub(crate) writer: ShardWriter,
}

impl LanceWriter {
    /// Durable when it returns.
    pub(crate) async fn put(&self, pairs: &[(i64, i64)]) {
        self.try_put(pairs).await.unwrap();
    }

    pub(crate) async fn try_put(&self, pairs: &[(i64, i64)]) -> lance::Result<()> {
        self.writer.put(vec![rows(pairs)]).await.map(|_| ())
    }

    /// Durable when it returns.
    pub(crate) async fn delete(&self, ids: &[i64]) {
        self.writer.delete(vec![keys(ids)]).await.unwrap();
    }

    /// Writes the MemTable as an SSTable and publishes it.
    pub(crate) async fn flush(&self) {
        self.writer.force_freeze_active().await.unwrap().wait().await.unwrap();
    }

    /// The process ends here: nothing more is written. What was acknowledged is durable already.
    pub(crate) async fn die(self) {
        self.writer.abort().await.unwrap();
    }

    pub(crate) async fn close(self) {
        self.writer.close().await.unwrap();
    }

    /// Every row that Lance has now, `(id, v)`, sorted: MemTable over SSTables over base table.
    pub(crate) async fn seen(&self) -> Vec<(i64, Option<i64>)> {
        let batch = self.writer.scan().await.unwrap().try_into_batch().await.unwrap();
        let mut sources = vec![rows_of(&batch)];
        sources.extend(self.lance.flushed().await);
        let mut found = match self.lance.keyed() {
            true => newest_of_each_key(sources),
            false => sources.into_iter().flatten().map(|(id, v, _)| (id, v)).collect(),
        };
        found.sort_unstable();
        found
    }

    /// The rows of the MemTable in the order they were written: what Lance replayed, and what was put since.
    pub(crate) async fn memtable(&self) -> Vec<Row> {
        rows_of(&self.writer.scan().await.unwrap().try_into_batch().await.unwrap())
    }
}

/// Puts a store with faults between Lance and its store.
#[derive(Debug)]
struct Behind(fn(&FaultStore));

impl WrappingObjectStore for Behind {
    fn wrap(&self, _prefix: &str, original: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        let faults = FaultStore::new(original);
        self.0(&faults);
        faults.store()
    }

    fn wrap_paginated(
        &self,
        _prefix: &str,
        _original: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        None
    }
}

fn newest_of_each_key(sources: Vec<Vec<Row>>) -> Vec<(i64, Option<i64>)> {
    let mut met = HashSet::new();
    let newest_first = sources.into_iter().flat_map(|source| source.into_iter().rev());
    let newest = newest_first.filter(|(id, _, _)| met.insert(*id));
    newest.filter(|(_, _, deleted)| !deleted).map(|(id, v, _)| (id, v)).collect()
}

/// A dataset's rows in their order.
pub(crate) async fn scan(dataset: &Dataset) -> Vec<Row> {
    let batches: Vec<RecordBatch> = dataset.scan().try_into_stream().await.unwrap().try_collect().await.unwrap();
    batches.iter().flat_map(rows_of).collect()
}

/// `id`, `v`, and whether the row is a deletion.
pub(crate) fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    if batch.num_rows() == 0 {
        return vec![];
    }
    let column = |name| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>();
    let (ids, vs) = (column("id"), column("v"));
    let deleted = batch.column_by_name(TOMBSTONE).map(|column| column.as_boolean());
    let row = |n| (ids.value(n), vs.is_valid(n).then(|| vs.value(n)), deleted.is_some_and(|d| d.value(n)));
    (0..batch.num_rows()).map(row).collect()
}
