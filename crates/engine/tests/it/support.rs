//! A bucket, processes that share it, rows, and looks at what a query sees.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_cast::display::array_value_to_string;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::error::Result as DataFusionResult;
use datafusion::prelude::SessionContext;
use fencepost::wal::{ManifestStore, RetryPolicy, Shard, ShardManifest};
use fencepost::{MemTableConfig, ShardId, ShardWriter, Store, Table, TableOptions, WriterConfig};
use fencepost_sim::FaultStore;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

/// A store in memory that several processes share.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    inner: Arc<dyn ObjectStore>,
}

/// One process's view of a bucket: its own faults, its own record of requests.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) faults: FaultStore,
    pub(crate) store: Store,
}

impl Bucket {
    pub(crate) fn new() -> Self {
        Self::on(Arc::new(InMemory::new()))
    }

    pub(crate) fn on(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner }
    }

    /// A process that has no faults yet, with short pauses between attempts.
    pub(crate) fn process(&self) -> Process {
        let faults = FaultStore::new(Arc::clone(&self.inner));
        let store = self.store(faults.store());
        Process { faults, store }
    }

    /// The table in this bucket behind a store of the caller's.
    pub(crate) fn store(&self, through: Arc<dyn ObjectStore>) -> Store {
        let retry = RetryPolicy {
            base_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(2),
            // A gate may hold a request for as long as the test likes.
            attempt_timeout: Duration::from_secs(3600),
            ..RetryPolicy::default()
        };
        Store::from_parts(Url::parse("memory://it/t").unwrap(), through, Path::from("t")).with_retry(retry)
    }

    pub(crate) fn inner(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.inner)
    }

    /// Deletes the manifests of all versions of the base table but the newest, as Lance's cleanup does.
    pub(crate) async fn clean_up_base_versions(&self) {
        let mut listed = self.inner.list(Some(&Path::from("t/_versions")));
        let mut manifests = Vec::new();
        while let Some(found) = listed.try_next().await.unwrap() {
            manifests.push(found.location);
        }
        manifests.retain(|path| path.as_ref().ends_with(".manifest"));
        // Named by 2^64 - 1 - version: the newest is the first.
        manifests.sort();
        for path in &manifests[1..] {
            self.inner.delete(path).await.unwrap();
        }
    }

    /// The table through a process without faults.
    pub(crate) async fn table(&self) -> Table {
        Table::open(self.process().store).await.unwrap()
    }

    /// What a process that only reads sees: `(id, v)`, sorted.
    pub(crate) async fn seen(&self) -> Vec<(i64, Option<i64>)> {
        pairs(self.table().await.provider().await.unwrap()).await
    }

    /// The newest manifest of the first shard.
    pub(crate) async fn manifest(&self) -> ShardManifest {
        let table = self.table().await;
        let shard = Shard::new(table.store().clone(), table.shard_ids().await.unwrap()[0]);
        ManifestStore::new(shard).latest_existing().await.unwrap()
    }
}

impl Process {
    pub(crate) async fn table(&self) -> Table {
        Table::open(self.store.clone()).await.unwrap()
    }

    /// The writer of the first shard.
    pub(crate) async fn writer(&self, config: WriterConfig) -> ShardWriter {
        let table = self.table().await;
        table.shard_writer(table.shard_ids().await.unwrap()[0], config).await.unwrap()
    }
}

/// `id` (not null), `v`, `s`.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("v", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
    ]))
}

/// A table with the key `id`.
pub(crate) async fn keyed(bucket: &Bucket, buckets: u32) -> Table {
    create(bucket, &["id"], &by_id(buckets)).await
}

/// A table without a key.
pub(crate) async fn keyless(bucket: &Bucket, buckets: u32) -> Table {
    create(bucket, &[], &by_id(buckets)).await
}

fn by_id(buckets: u32) -> String {
    match buckets {
        1 => "unsharded".to_owned(),
        buckets => format!("bucket(id,{buckets})"),
    }
}

/// A table sharded as this text says.
pub(crate) async fn create(bucket: &Bucket, key: &[&str], sharding: &str) -> Table {
    let primary_key = key.iter().map(|k| (*k).to_owned()).collect();
    let options = TableOptions { primary_key, sharding: sharding.parse().unwrap() };
    Table::create(bucket.process().store, schema(), options).await.unwrap()
}

/// Rows `(id, v)`; `s` is the text of `v`.
pub(crate) fn rows(pairs: &[(i64, i64)]) -> RecordBatch {
    let texts: Vec<String> = pairs.iter().map(|(_, v)| format!("s{v}")).collect();
    rows_with_texts(pairs, &texts)
}

pub(crate) fn rows_with_texts(pairs: &[(i64, i64)], texts: &[String]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(pairs.iter().map(|p| p.0))),
        Arc::new(Int64Array::from_iter_values(pairs.iter().map(|p| p.1))),
        Arc::new(StringArray::from_iter_values(texts)),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// One row whose text has this many bytes.
pub(crate) fn wide_row(id: i64, bytes: usize) -> RecordBatch {
    rows_with_texts(&[(id, id)], &["x".repeat(bytes)])
}

/// Rows `(id, v = id)`.
pub(crate) fn ids(ids: std::ops::Range<i64>) -> RecordBatch {
    rows(&ids.map(|id| (id, id)).collect::<Vec<_>>())
}

/// What [`ids`] look like in [`pairs`].
pub(crate) fn id_pairs(ids: std::ops::Range<i64>) -> Vec<(i64, Option<i64>)> {
    ids.map(|id| (id, Some(id))).collect()
}

/// A batch of keys.
pub(crate) fn keys(ids: &[i64]) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from(ids.to_vec()));
    RecordBatch::try_from_iter([("id", ids)]).unwrap()
}

/// Small pauses, everything else as by default.
pub(crate) fn config() -> WriterConfig {
    let memtable = MemTableConfig { flush_retry_delay: Duration::from_millis(1), ..MemTableConfig::default() };
    WriterConfig { memtable: Some(memtable), ..WriterConfig::default() }
}

/// A MemTable of at most this many rows.
pub(crate) fn small(max_rows: usize) -> WriterConfig {
    let mut config = config();
    config.memtable = config.memtable.map(|m| MemTableConfig { max_rows, ..m });
    config
}

/// Puts return when rows are in memory, and nothing is sent before somebody asks for it.
pub(crate) fn lazy() -> WriterConfig {
    let mut config = WriterConfig { durable: false, ..config() };
    config.wal.flush_interval = Duration::from_secs(3600);
    config
}

/// Runs a query on the table `t` and returns its rows as text.
pub(crate) async fn try_sql(provider: &Arc<dyn TableProvider>, sql: &str) -> DataFusionResult<Vec<Vec<String>>> {
    let session = SessionContext::new();
    session.register_table("t", Arc::clone(provider))?;
    let batches = session.sql(sql).await?.collect().await?;
    let text = |array: &ArrayRef, row| match array.is_null(row) {
        true => "null".to_owned(),
        false => array_value_to_string(array, row).unwrap(),
    };
    let row = |batch: &RecordBatch, row| batch.columns().iter().map(|array| text(array, row)).collect();
    Ok(batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |n| row(batch, n))).collect())
}

pub(crate) async fn sql(provider: &Arc<dyn TableProvider>, query: &str) -> Vec<Vec<String>> {
    try_sql(provider, query).await.unwrap_or_else(|e| panic!("{query}: {e}"))
}

/// Every row as `(id, v)`, sorted.
pub(crate) async fn pairs(provider: Arc<dyn TableProvider>) -> Vec<(i64, Option<i64>)> {
    let rows = sql(&provider, "select id, v from t order by id, v").await;
    rows.iter().map(|row| (row[0].parse().unwrap(), row[1].parse().ok())).collect()
}

/// The single number that a query answers.
pub(crate) async fn number(provider: &Arc<dyn TableProvider>, query: &str) -> i64 {
    sql(provider, query).await[0][0].parse().unwrap()
}

/// What one shard's writer holds on top of the base table: `(id, v)`, sorted.
pub(crate) async fn scanned(writer: &ShardWriter) -> Vec<(i64, Option<i64>)> {
    use arrow_array::cast::AsArray;
    use arrow_array::types::Int64Type;
    let batches: Vec<RecordBatch> = writer.scan().await.unwrap().try_collect().await.unwrap();
    let column = |batch: &RecordBatch, name| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().clone();
    let mut found: Vec<(i64, Option<i64>)> = batches
        .iter()
        .flat_map(|batch| {
            let (ids, vs) = (column(batch, "id"), column(batch, "v"));
            (0..batch.num_rows()).map(move |n| (ids.value(n), vs.is_valid(n).then(|| vs.value(n))))
        })
        .collect();
    found.sort_unstable();
    found
}

/// The shard's folder name in object paths.
pub(crate) fn folder(shard: ShardId) -> String {
    format!("_mem_wal/{shard}/")
}

/// Fails loudly instead of hanging for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.unwrap_or_else(|_| panic!("{what}: still not done"))
}
