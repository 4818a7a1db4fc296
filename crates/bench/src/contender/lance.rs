//! Lance's own MemWAL, on the very store objects that Fencepost has.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchIterator};
use async_trait::async_trait;
use fencepost::Store;
use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::mem_wal::{DatasetMemWalExt, ShardWriter, ShardWriterConfig};
use lance::dataset::{WriteMode, WriteParams};
use lance::session::Session;
use lance_io::object_store::{
    DEFAULT_CLOUD_IO_PARALLELISM, ObjectStore as LanceObjectStore, ObjectStoreParams, ObjectStoreProvider,
    ObjectStoreRegistry,
};
use lance_table::io::commit::{CommitHandler, ConditionalPutCommitHandler};
use object_store::path::Path;
use url::Url;
use uuid::Uuid;

use super::{Setting, System, Tuning, Writer};
use crate::Result;
use crate::rows::{Rows, Shape};

/// A scheme that only this session knows: behind it is the store under test.
const SCHEME: &str = "bench";
const TABLE: &str = "bench://table";
/// Lance's own block size for clouds, in bytes.
const BLOCK_BYTES: usize = 64 << 10;

/// A dataset with a MemWAL, and a writer of one of its shards.
pub(crate) struct Lance {
    pub(crate) dataset: Dataset,
    pub(crate) writer: ShardWriter,
}

impl Lance {
    pub(super) async fn open(setting: Setting, store: &Store, shape: Shape) -> Result<Self> {
        let mut config = ShardWriterConfig::default().with_enable_memtable(setting.system == System::Lance);
        if let Tuning::Gather(time) = setting.tuning {
            config = config.with_max_wal_flush_interval(time);
        }
        let dataset = dataset(store, shape).await?;
        Self::open_on(dataset, config).await
    }

    pub(crate) async fn open_with(store: &Store, shape: Shape, config: ShardWriterConfig) -> Result<Self> {
        Self::open_on(dataset(store, shape).await?, config).await
    }

    pub(crate) async fn open_on(dataset: Dataset, config: ShardWriterConfig) -> Result<Self> {
        let writer = dataset.mem_wal_writer(SHARD, config).await?;
        Ok(Self { dataset, writer })
    }
}

/// The one shard.
pub(crate) const SHARD: Uuid = Uuid::from_u128(0x5f7d_93d0_0b5e_4b0a_9d8e_0d1f_3c6a_7e21);

/// Opens the dataset; makes an empty one with a MemWAL if there is none.
pub(crate) async fn dataset(store: &Store, shape: Shape) -> Result<Dataset> {
    let registry = ObjectStoreRegistry::empty();
    registry.insert(SCHEME, Arc::new(Provider { store: store.clone() }));
    let session = Arc::new(Session::new(1 << 30, 256 << 20, Arc::new(registry)));
    let commit_handler: Arc<dyn CommitHandler> = Arc::new(ConditionalPutCommitHandler);
    let existing = DatasetBuilder::from_uri(TABLE)
        .with_session(Arc::clone(&session))
        .with_commit_handler(Arc::clone(&commit_handler))
        .load()
        .await;
    if let Ok(dataset) = existing {
        return Ok(dataset);
    }
    let params = WriteParams {
        mode: WriteMode::Create,
        session: Some(session),
        commit_handler: Some(commit_handler),
        ..WriteParams::default()
    };
    let empty = RecordBatch::new_empty(shape.lance_schema());
    let reader = RecordBatchIterator::new([Ok(empty)], shape.lance_schema());
    let mut dataset = Dataset::write(reader, TABLE, Some(params)).await?;
    dataset.initialize_mem_wal().unsharded().execute().await?;
    Ok(dataset)
}

#[async_trait]
impl Writer for Lance {
    async fn put(&self, rows: &Rows) -> Result<()> {
        self.writer.put(vec![rows.lance.clone()]).await?;
        Ok(())
    }

    async fn put_no_wait(&self, rows: &Rows) -> Result<BoxFuture<'static, Result<()>>> {
        if !self.writer.config().enable_memtable {
            self.writer.put(vec![rows.lance.clone()]).await?;
            return Ok(async { Ok(()) }.boxed());
        }
        let (_, watcher) = self.writer.put_no_wait(vec![rows.lance.clone()]).await?;
        Ok(async move {
            if let Some(mut watcher) = watcher {
                watcher.wait().await?;
            }
            Ok(())
        }
        .boxed())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(self.writer.close().await?)
    }

    async fn crash(self: Box<Self>) -> Result<()> {
        Ok(self.writer.abort().await?)
    }
}

/// Hands Lance the store under test.
#[derive(Debug)]
struct Provider {
    store: Store,
}

#[async_trait]
impl ObjectStoreProvider for Provider {
    async fn new_store(&self, _base: Url, _params: &ObjectStoreParams) -> lance::Result<LanceObjectStore> {
        // The scheme with which Lance sends everything through the object store.
        let location = Url::parse("file-object-store:///").map_err(|e| lance::Error::invalid_input(e.to_string()))?;
        let mut store = LanceObjectStore::new(
            Arc::clone(self.store.object_store()),
            location,
            Some(BLOCK_BYTES),
            None,
            false,
            self.store.url().scheme() != "file",
            DEFAULT_CLOUD_IO_PARALLELISM,
            self.store.download_retries(),
            None,
        );
        store.store_prefix = format!("{SCHEME}${}", self.store.url());
        Ok(store)
    }

    fn extract_path(&self, url: &Url) -> lance::Result<Path> {
        let below = Path::from_url_path(url.path()).map_err(|e| lance::Error::invalid_input(e.to_string()))?;
        Ok(self.store.root().parts().chain(below.parts()).collect())
    }

    fn calculate_object_store_prefix(
        &self,
        _url: &Url,
        _storage_options: Option<&HashMap<String, String>>,
    ) -> lance::Result<String> {
        Ok(format!("{SCHEME}${}", self.store.url()))
    }
}
