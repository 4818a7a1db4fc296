//! Lance on the table's own store. It owns the provider that hands Lance the very store object of the log, the session
//! with Lance's caches, and the one way in which datasets are opened and created. It knows nothing of tables.
//!
//! Datasets are addressed by URIs of a private scheme, relative to the table: `fencepost://table` is the base table,
//! `fencepost://table/_mem_wal/…` an SSTable. The scheme is known to this session's registry only, so two stores in
//! one process never mix, and Lance code that forgets the session fails instead of writing past our store: Lance's own
//! `file` scheme never fsyncs and goes around the store object, its `memory` scheme makes a new store each time.
//!
//! A clone's dataset names its source by a real URL, which any program can read. Behind those schemes there are, in this
//! registry, the very stores that the log would reach at such a URL.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arrow_array::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Expr;
use fencepost_wal::Store;
use lance::Dataset;
use lance::dataset::WriteParams;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::scanner::Scanner;
use lance::session::Session;
pub(crate) use lance_core::ROW_ID;
use lance_io::object_store::{
    DEFAULT_CLOUD_IO_PARALLELISM, DEFAULT_LOCAL_IO_PARALLELISM, ObjectStore as LanceObjectStore, ObjectStoreParams,
    ObjectStoreProvider, ObjectStoreRegistry,
};
use lance_table::io::commit::{CommitHandler, ConditionalPutCommitHandler};
use object_store::path::Path;
use parking_lot::Mutex;
use url::Url;

use crate::error::{Error, Result};

/// The private scheme. Lance takes an unknown scheme for a store without conditional PUTs, therefore every call that
/// may commit names the commit handler.
const SCHEME: &str = "fencepost";

/// The schemes of tables that a clone may share files with.
const SCHEMES_OF_OTHERS: [&str; 5] = ["file", "memory", "s3", "gs", "az"];

/// The scheme that Lance's store object is given. Lance reads it in a few places to pick a shortcut; this one stands
/// for "no shortcut, everything through the object store".
const NO_SHORTCUT: &str = "file-object-store:///";

/// Limit of Lance's cache of indexes, per table handle.
const INDEX_CACHE_BYTES: usize = 1 << 30;

/// Limit of Lance's cache of manifests and file footers, per table handle.
const METADATA_CACHE_BYTES: usize = 256 << 20;

/// Reads of one file that are closer than this are merged.
const LOCAL_BLOCK_BYTES: usize = 4 << 10;
const REMOTE_BLOCK_BYTES: usize = 64 << 10;

/// Lance's view of a [`Store`]. Cheap to clone; clones share the caches.
#[derive(Clone)]
pub(crate) struct LanceStore {
    store: Store,
    session: Arc<Session>,
    commit_handler: Arc<dyn CommitHandler>,
    /// The highest version of the base table whose files this process has fsynced.
    fsynced: Arc<AtomicU64>,
    /// Other tables whose SSTables this one shares, by URL.
    others: Arc<Mutex<HashMap<String, LanceStore>>>,
}

impl fmt::Debug for LanceStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LanceStore({})", self.store.url())
    }
}

impl LanceStore {
    /// Lance on this store, with fresh caches. Nothing is requested yet.
    pub(crate) fn new(store: &Store) -> Self {
        let registry = ObjectStoreRegistry::empty();
        registry.insert(SCHEME, Arc::new(Provider { store: store.clone() }));
        for scheme in SCHEMES_OF_OTHERS {
            registry.insert(scheme, Arc::new(Others { store: store.clone() }));
        }
        let session = Session::new(INDEX_CACHE_BYTES, METADATA_CACHE_BYTES, Arc::new(registry));
        let commit_handler = Arc::new(ConditionalPutCommitHandler);
        let (fsynced, others) = (Arc::default(), Arc::default());
        Self { store: store.clone(), session: Arc::new(session), commit_handler, fsynced, others }
    }

    /// Lance on the store of another table, as this process reaches it; see [`Store::sibling`].
    ///
    /// # Errors
    /// [`InvalidUrl`](fencepost_wal::Error::InvalidUrl) if the URL cannot be opened here.
    pub(crate) fn of_table(&self, url: &str) -> Result<Self> {
        if url == self.store.url().as_str() {
            return Ok(self.clone());
        }
        let mut others = self.others.lock();
        if let Some(other) = others.get(url) {
            return Ok(other.clone());
        }
        let other = Self::new(&self.store.sibling(url)?);
        others.insert(url.to_owned(), other.clone());
        Ok(other)
    }

    /// The same, by whose datasets Lance commits in another way. The caches are shared.
    pub(crate) fn committing_by(&self, commit_handler: Arc<dyn CommitHandler>) -> Self {
        Self { commit_handler, ..self.clone() }
    }

    /// The store that Lance reads and writes through.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The session: pass it to every Lance call that takes a URI.
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Commits by create-if-absent: pass it to every Lance call that commits to a URI. (A [`Dataset`] opened here
    /// carries it along.)
    pub(crate) fn commit_handler(&self) -> &Arc<dyn CommitHandler> {
        &self.commit_handler
    }

    /// Where it is remembered up to which version the base table's files were fsynced.
    pub(crate) fn fsynced(&self) -> &AtomicU64 {
        &self.fsynced
    }

    /// The URI that Lance knows a dataset by: the base table, or a path below it.
    pub(crate) fn uri(&self, relative: Option<&str>) -> String {
        match relative {
            Some(relative) => format!("{SCHEME}://table/{relative}"),
            None => format!("{SCHEME}://table"),
        }
    }

    /// Where that is, for people.
    pub(crate) fn describe(&self, relative: Option<&str>) -> String {
        let url = self.store.url().as_str().trim_end_matches('/');
        match relative {
            Some(relative) => format!("{url}/{relative}"),
            None => url.to_owned(),
        }
    }

    /// Where that is in the object store.
    pub(crate) fn path(&self, relative: Option<&str>) -> Path {
        let below = Path::from(relative.unwrap_or_default());
        self.store.root().parts().chain(below.parts()).collect()
    }

    /// Parameters for Lance's writers, so that they use this store and commit by create-if-absent.
    pub(crate) fn write_params(&self) -> WriteParams {
        WriteParams {
            session: Some(Arc::clone(&self.session)),
            commit_handler: Some(Arc::clone(&self.commit_handler)),
            ..WriteParams::default()
        }
    }

    /// Lance's store object, for its lower level calls.
    pub(crate) async fn object_store(&self) -> Result<Arc<LanceObjectStore>> {
        let params = ObjectStoreParams::default();
        LanceObjectStore::from_uri_and_params(self.session.store_registry(), &self.uri(None), &params)
            .await
            .map(|(store, _)| store)
            .map_err(Error::lance(format!("opening the store of {}", self.describe(None))))
    }

    /// Opens the latest version of a dataset.
    pub(crate) async fn open_dataset(&self, relative: Option<&str>) -> Result<Dataset> {
        self.load(relative).await.map_err(Error::lance(format!("opening {}", self.describe(relative))))
    }

    /// Opens the latest version of a dataset; `None` if there is none.
    pub(crate) async fn try_open_dataset(&self, relative: Option<&str>) -> Result<Option<Dataset>> {
        match self.load(relative).await {
            Ok(dataset) => Ok(Some(dataset)),
            Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(Error::lance(format!("opening {}", self.describe(relative)))(e)),
        }
    }

    async fn load(&self, relative: Option<&str>) -> lance::Result<Dataset> {
        DatasetBuilder::from_uri(self.uri(relative))
            .with_session(Arc::clone(&self.session))
            .with_commit_handler(Arc::clone(&self.commit_handler))
            .load()
            .await
    }
}

/// A column's name where Lance takes names with dots or backticks for paths.
pub(crate) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Streams a dataset's rows in their order.
///
/// `projection`: `None` for all columns; an empty one gives batches without columns whose row counts are right.
pub(crate) async fn scan(
    dataset: &Dataset,
    projection: Option<&[String]>,
    filter: Option<Expr>,
    limit: Option<usize>,
) -> Result<SendableRecordBatchStream> {
    let failed = || Error::lance(format!("scanning {}", dataset.uri()));
    let mut scanner = scanner(dataset, projection, filter)?;
    if let Some(limit) = limit {
        scanner.limit(Some(i64::try_from(limit).unwrap_or(i64::MAX)), None).map_err(failed())?;
    }
    let stream = scanner.try_into_stream().await.map_err(failed())?;
    Ok(stream.into())
}

/// As [`scan`], each row with its id in the column [`ROW_ID`], by which [`take`] finds it.
pub(crate) async fn scan_with_row_ids(
    dataset: &Dataset,
    projection: &[String],
    filter: Option<Expr>,
) -> Result<SendableRecordBatchStream> {
    let mut scanner = scanner(dataset, Some(projection), filter)?;
    let stream = scanner.with_row_id().try_into_stream().await;
    Ok(stream.map_err(Error::lance(format!("scanning {}", dataset.uri())))?.into())
}

/// The rows of these ids, in this order, with these top-level columns, in any order.
pub(crate) async fn take(dataset: &Dataset, row_ids: &[u64], columns: &[String]) -> Result<RecordBatch> {
    let mut schema = dataset.schema().clone();
    schema.fields.retain(|field| columns.contains(&field.name));
    let taken = dataset.take_rows(row_ids, schema).await;
    taken.map_err(Error::lance(format!("taking rows of {}", dataset.uri())))
}

fn scanner(dataset: &Dataset, projection: Option<&[String]>, filter: Option<Expr>) -> Result<Scanner> {
    let mut scanner = dataset.scan();
    if let Some(columns) = projection {
        // Quoted by hand: `project` takes a name with dots or backticks for a path.
        let columns = columns.iter().map(|name| (name, quoted(name)));
        let failed = Error::lance(format!("scanning {}", dataset.uri()));
        scanner.project_with_transform(&columns.collect::<Vec<_>>()).map_err(failed)?;
    }
    if let Some(filter) = filter {
        scanner.filter_expr(filter);
    }
    Ok(scanner)
}

/// Hands Lance the table's store object, whatever Lance asks for.
#[derive(Debug)]
struct Provider {
    store: Store,
}

#[async_trait]
impl ObjectStoreProvider for Provider {
    async fn new_store(&self, _base: Url, _params: &ObjectStoreParams) -> lance::Result<LanceObjectStore> {
        let prefix = self.calculate_object_store_prefix(self.store.url(), None)?;
        lance_store_of(&self.store, prefix)
    }

    /// The URI's path is relative to the table, the result to the object store. So whatever characters the table's
    /// own path has, they never pass through a URI.
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

/// Hands Lance the stores of other tables, by their real URLs.
#[derive(Debug)]
struct Others {
    store: Store,
}

impl Others {
    fn at(&self, url: &Url) -> lance::Result<Store> {
        self.store.sibling(url.as_str()).map_err(|e| lance::Error::invalid_input(e.to_string()))
    }
}

#[async_trait]
impl ObjectStoreProvider for Others {
    async fn new_store(&self, base: Url, _params: &ObjectStoreParams) -> lance::Result<LanceObjectStore> {
        lance_store_of(&self.at(&base)?, self.calculate_object_store_prefix(&base, None)?)
    }

    fn extract_path(&self, url: &Url) -> lance::Result<Path> {
        Ok(self.at(url)?.root().clone())
    }

    /// One store per bucket.
    fn calculate_object_store_prefix(
        &self,
        url: &Url,
        _storage_options: Option<&HashMap<String, String>>,
    ) -> lance::Result<String> {
        Ok(format!("{}${}", url.scheme(), url.host_str().unwrap_or_default()))
    }
}

fn lance_store_of(store: &Store, prefix: String) -> lance::Result<LanceObjectStore> {
    let url = store.url();
    let local = matches!(url.scheme(), "file" | "memory");
    let location = Url::parse(NO_SHORTCUT).map_err(|e| lance::Error::invalid_input(e.to_string()))?;
    let mut lance_store = LanceObjectStore::new(
        Arc::clone(store.object_store()),
        location,
        Some(if local { LOCAL_BLOCK_BYTES } else { REMOTE_BLOCK_BYTES }),
        None,
        false,
        lists_in_order(url),
        if local { DEFAULT_LOCAL_IO_PARALLELISM } else { DEFAULT_CLOUD_IO_PARALLELISM },
        store.download_retries(),
        None,
    );
    lance_store.store_prefix = prefix;
    Ok(lance_store)
}

/// Whether LIST answers in order of names: then the first manifest is the newest, and Lance needs no hint file. Not so
/// for a file system, nor for S3's directory buckets. "No" is the safe answer.
fn lists_in_order(url: &Url) -> bool {
    match url.scheme() {
        "file" => false,
        "s3" | "s3a" => !url.host_str().is_some_and(|bucket| bucket.ends_with("--x-s3")),
        _ => true,
    }
}
