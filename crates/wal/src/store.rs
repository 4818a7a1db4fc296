//! From a URL and options to the object store that holds a table: one store object for the log and for Lance.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use url::Url;

use crate::client_options::ClientOptions;
use crate::error::{Error, Result};
use crate::files::{DurableFiles, FileSync, OsFiles};
use crate::retry::{RetryPolicy, is_transient};
use crate::surroundings::{RealSurroundings, Surroundings};

/// The stores behind `memory://`, by authority: every handle of a process to one name sees the same objects.
static MEMORY: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);

/// An object store and the place of a table in it. Cheap to clone.
///
/// Needed of the store: read-after-write for GET and LIST, atomic create-if-absent, objects written whole or not at
/// all. [`probe`](crate::probe()) checks the second.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    root: Path,
    url: Url,
    /// Set when objects are files of this machine, whose names become durable only when their folder is fsynced.
    files: Option<DurableFiles>,
    /// Set when these files are in the file system of this machine, not in a simulated one.
    local: bool,
    retry: RetryPolicy,
    download_retries: usize,
    surroundings: Arc<dyn Surroundings>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

impl Store {
    /// Opens the store of a table.
    ///
    /// `url` is `file:///path` or a plain path (files and folders are fsynced), `memory://name/path` (shared within
    /// the process, gone with it), `s3://bucket/path`, `gs://bucket/path` or `az://container/path`. `options` have
    /// the names that `object_store` and Lance use (`aws_access_key_id`, `aws_endpoint`, `allow_http`, …, also Lance's
    /// own `client_max_retries`, `client_retry_timeout` in seconds, `download_retry_count`, `s3_express`); credentials
    /// not given there come from the environment.
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] for an unknown scheme or option, or a path that is a file.
    pub fn open(url: &str, options: &HashMap<String, String>) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidUrl { url: url.to_owned(), reason };
        let parsed = parse_url(url).map_err(invalid)?;
        let (client, options) = &ClientOptions::take(options).map_err(invalid)?;
        let root = Path::from_url_path(parsed.path()).map_err(|e| invalid(e.to_string()))?;
        let bucket_root = |store: Arc<dyn ObjectStore>| (store, root.clone());
        let (inner, root): (Arc<dyn ObjectStore>, Path) = match parsed.scheme() {
            "file" => {
                refuse_options("file", options).map_err(invalid)?;
                let path = parsed.to_file_path().map_err(|()| invalid("it has no local path".into()))?;
                if path.is_file() {
                    return Err(invalid("it is a file, a table is a folder".into()));
                }
                let root = Path::from_absolute_path(&path).map_err(|e| invalid(e.to_string()))?;
                (Arc::new(LocalFileSystem::new().with_fsync(true)), root)
            }
            "memory" => {
                refuse_options("memory", options).map_err(invalid)?;
                let mut known = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
                let name = parsed.host_str().unwrap_or_default().to_owned();
                let store: Arc<InMemory> = Arc::clone(known.entry(name).or_default());
                bucket_root(store)
            }
            "s3" | "s3a" => {
                let mut builder =
                    AmazonS3Builder::from_env().with_url(parsed.as_str()).with_retry(client.retry_config());
                for (key, value) in options_of::<AmazonS3ConfigKey>(options).map_err(invalid)? {
                    builder = builder.with_config(key, value);
                }
                bucket_root(Arc::new(builder.build().map_err(|e| invalid(e.to_string()))?))
            }
            "gs" => {
                let mut builder =
                    GoogleCloudStorageBuilder::from_env().with_url(parsed.as_str()).with_retry(client.retry_config());
                for (key, value) in options_of::<GoogleConfigKey>(options).map_err(invalid)? {
                    builder = builder.with_config(key, value);
                }
                bucket_root(Arc::new(builder.build().map_err(|e| invalid(e.to_string()))?))
            }
            "az" | "azure" => {
                let mut builder =
                    MicrosoftAzureBuilder::from_env().with_url(parsed.as_str()).with_retry(client.retry_config());
                for (key, value) in options_of::<AzureConfigKey>(options).map_err(invalid)? {
                    builder = builder.with_config(key, value);
                }
                bucket_root(Arc::new(builder.build().map_err(|e| invalid(e.to_string()))?))
            }
            other => {
                return Err(invalid(format!(
                    "the scheme `{other}` is unknown; use file, memory, s3, gs or az, or a plain path"
                )));
            }
        };
        let mut store = Self::from_parts(parsed, inner, root);
        store.download_retries = client.download_retries;
        Ok(store)
    }

    /// A store made by the caller: any [`ObjectStore`], wrapped as the caller likes, with the table at `root`. With
    /// a `file` URL the store's paths must be absolute paths of this machine.
    pub fn from_parts(url: Url, inner: Arc<dyn ObjectStore>, root: Path) -> Self {
        match url.scheme() {
            "file" => Self { local: true, ..Self::on_files(url, inner, root, Arc::new(OsFiles)) },
            _ => Self::on(url, inner, root, None),
        }
    }

    /// As [`from_parts`](Self::from_parts), with files that become durable in the caller's own way: for simulations of
    /// a disk. `inner` must sync a file, and the folder that it writes it into, before it answers.
    pub fn on_files(url: Url, inner: Arc<dyn ObjectStore>, root: Path, sync: Arc<dyn FileSync>) -> Self {
        let files = DurableFiles::new(inner, sync);
        Self::on(url, Arc::new(files.clone()), root, Some(files))
    }

    fn on(url: Url, inner: Arc<dyn ObjectStore>, root: Path, files: Option<DurableFiles>) -> Self {
        let download_retries = ClientOptions::default().download_retries;
        let surroundings = Arc::new(RealSurroundings);
        Self { inner, root, files, local: false, url, retry: RetryPolicy::default(), download_retries, surroundings }
    }

    /// The same store with other limits for the retries of its requests.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// The same store seen by a process with another clock and other dice: for simulations.
    #[must_use]
    pub fn with_surroundings(mut self, surroundings: Arc<dyn Surroundings>) -> Self {
        self.surroundings = surroundings;
        self
    }

    /// The store at another URL as the process of this one reaches it: through the same object store if it is in the same bucket
    /// (or both are files of this machine), otherwise with options from the environment.
    ///
    /// # Errors
    /// [`Error::InvalidUrl`] if the URL cannot be opened here.
    pub fn sibling(&self, url: &str) -> Result<Self> {
        if let Some(store) = self.surroundings.open_store(url) {
            return Ok(store);
        }
        let parsed = parse_url(url).map_err(|reason| Error::InvalidUrl { url: url.to_owned(), reason })?;
        if scheme_of(&parsed) != scheme_of(&self.url) || parsed.host_str() != self.url.host_str() {
            return Ok(Self::open(url, &HashMap::new())?.in_surroundings_of(self));
        }
        let root = match parsed.scheme() {
            "file" => parsed.to_file_path().ok().and_then(|path| Path::from_absolute_path(path).ok()),
            _ => Path::from_url_path(parsed.path()).ok(),
        };
        let invalid = || Error::InvalidUrl { url: url.to_owned(), reason: "it has no usable path".into() };
        Ok(Self { root: root.ok_or_else(invalid)?, url: parsed, ..self.clone() })
    }

    /// Whether both are one folder of one bucket, as far as their URLs tell.
    pub fn is_same_place(&self, other: &Self) -> bool {
        scheme_of(&self.url) == scheme_of(&other.url)
            && self.url.host_str() == other.url.host_str()
            && self.root == other.root
    }

    /// The same store seen by the process of another one: its clock, its dice, its patience.
    pub(crate) fn in_surroundings_of(self, other: &Self) -> Self {
        Self { retry: other.retry.clone(), surroundings: Arc::clone(&other.surroundings), ..self }
    }

    /// The same place behind a wrapper around the store, for example one that counts requests.
    #[must_use]
    pub fn wrapped(mut self, wrap: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>) -> Self {
        self.inner = wrap(self.inner);
        self
    }

    /// The object store. Its paths are absolute: everything of the table lies below [`root`](Self::root).
    pub fn object_store(&self) -> &Arc<dyn ObjectStore> {
        &self.inner
    }

    /// The path of the table in the object store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The URL of the table.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The limits of the retries of one request.
    pub fn retry(&self) -> &RetryPolicy {
        &self.retry
    }

    /// The clock and the dice of this process.
    pub fn surroundings(&self) -> &dyn Surroundings {
        self.surroundings.as_ref()
    }

    /// How often Lance goes on with a download that broke off: `download_retry_count`.
    pub fn download_retries(&self) -> usize {
        self.download_retries
    }

    /// Reads an object; `None` if there is none. Repeated within the limits of [`retry`](Self::retry).
    ///
    /// # Errors
    /// [`Error::Store`], the last attempt's failure.
    pub async fn get(&self, path: &Path) -> Result<Option<Bytes>> {
        self.retried("GET", path, || async {
            let read = async { self.inner.get(path).await?.bytes().await };
            match self.in_time(read).await {
                Ok(bytes) => Ok(Some(bytes)),
                Err(StoreError::NotFound { .. }) => Ok(None),
                Err(e) => Err(e),
            }
        })
        .await
    }

    /// Reads a part of an object that is within its size; `None` if there is no object.
    pub(crate) async fn get_range(&self, path: &Path, range: Range<u64>) -> Result<Option<Bytes>> {
        self.retried("GET", path, || async {
            match self.in_time(self.inner.get_range(path, range.clone())).await {
                Ok(bytes) => Ok(Some(bytes)),
                Err(StoreError::NotFound { .. }) => Ok(None),
                Err(e) => Err(e),
            }
        })
        .await
    }

    /// Lists the objects below a prefix.
    pub(crate) async fn list(&self, prefix: &Path) -> Result<Vec<ObjectMeta>> {
        self.retried("LIST", prefix, || async {
            // Each answer must come in time: a long log has many pages.
            let mut listing = self.inner.list(Some(prefix));
            let mut found = Vec::new();
            while let Some(object) = self.in_time(listing.try_next()).await? {
                found.push(object);
            }
            Ok(found)
        })
        .await
    }

    /// Lists the names of the folders in a folder.
    pub(crate) async fn list_folders(&self, folder: &Path) -> Result<Vec<String>> {
        Ok(self.list_level(folder).await?.0)
    }

    /// Lists what stands directly in a folder: the names of its folders, and its objects.
    pub(crate) async fn list_level(&self, folder: &Path) -> Result<(Vec<String>, Vec<ObjectMeta>)> {
        self.retried("LIST", folder, || async {
            let listed = self.in_time(self.inner.list_with_delimiter(Some(folder))).await?;
            let folders = listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned));
            Ok((folders.collect(), listed.objects))
        })
        .await
    }

    async fn in_time<T>(&self, request: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        match tokio::time::timeout(self.retry.attempt_timeout, request).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(StoreError::Generic { store: "timeout", source: Box::new(elapsed) }),
        }
    }

    /// One attempt to create an object. The caller resolves what the answer means.
    pub(crate) async fn create_once(&self, path: &Path, bytes: Bytes) -> Result<(), StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        self.in_time(self.inner.put_opts(path, PutPayload::from_bytes(bytes), options)).await.map(|_| ())
    }

    /// Creates an object under a name that nobody else uses, so that whatever is there is ours.
    pub(crate) async fn create_own(&self, path: &Path, bytes: Bytes) -> Result<()> {
        let mut attempts = self.retry.start();
        loop {
            let error = match self.create_once(path, bytes.clone()).await {
                Ok(()) => return Ok(()),
                Err(StoreError::AlreadyExists { source, path: at }) => match self.get(path).await? {
                    Some(found) if found == bytes => return self.settle(path).await,
                    Some(_) => return Err(Error::corrupt(path, "somebody else's bytes stand under a fresh name")),
                    None => StoreError::AlreadyExists { source, path: at },
                },
                Err(error) => error,
            };
            let again = is_transient(&error) || matches!(error, StoreError::AlreadyExists { .. });
            if !again || !attempts.again().await {
                return Err(Error::Store { operation: "PUT", object: path.to_string(), source: Arc::new(error) });
            }
        }
    }

    /// Deletes an object, or finds it gone, for good: on `file://` its folder is fsynced.
    pub(crate) async fn delete(&self, path: &Path) -> Result<()> {
        self.retried("DELETE", path, || async {
            match self.in_time(self.inner.delete(path)).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
                Err(e) => Err(e),
            }
        })
        .await?;
        match &self.files {
            Some(files) => files.sync_folder_of(path).await.map_err(|e| not_synced(path, e)),
            None => Ok(()),
        }
    }

    /// Deletes objects in no certain order, or finds them gone. With an error some may be deleted and others not.
    pub(crate) async fn delete_all(&self, mut paths: Vec<Path>) -> Result<()> {
        let mut attempts = self.retry.start();
        while let Some(first) = paths.first().cloned() {
            let asked = stream::iter(paths.clone()).map(Ok).boxed();
            let mut answers = self.inner.delete_stream(asked);
            let (mut deleted, mut absent, mut failure) = (HashSet::new(), 0, None);
            loop {
                // Which object was absent is told in the store's own words only, so these are counted.
                match self.in_time(async { answers.next().await.transpose() }).await {
                    Ok(Some(path)) => drop(deleted.insert(path)),
                    Ok(None) => break,
                    Err(StoreError::NotFound { .. }) => absent += 1,
                    Err(error) => {
                        let timed_out = matches!(error, StoreError::Generic { store: "timeout", .. });
                        failure = Some(error);
                        if timed_out {
                            break;
                        }
                    }
                }
            }
            drop(answers);
            paths.retain(|path| !deleted.contains(path));
            if paths.len() <= absent {
                return Ok(());
            }
            let error = failure.unwrap_or_else(|| StoreError::Generic {
                store: "delete_stream",
                source: "it answered for fewer objects than it was asked to delete".into(),
            });
            if !is_transient(&error) || !attempts.again().await {
                return Err(Error::Store { operation: "DELETE", object: first.to_string(), source: Arc::new(error) });
            }
        }
        Ok(())
    }

    /// The file of an object, if objects are files of this machine.
    pub(crate) fn local_path(&self, path: &Path) -> Option<PathBuf> {
        self.local.then(|| LocalFileSystem::new().path_to_filesystem(path).ok()).flatten()
    }

    /// Makes an object durable that was found rather than written by a request that answered "ok". Object stores
    /// need nothing; a file's bytes are synced before it gets its name, but its name only with the folder.
    ///
    /// # Errors
    /// [`Error::Store`] if a file or folder cannot be fsynced.
    pub async fn settle(&self, path: &Path) -> Result<()> {
        let Some(files) = &self.files else {
            return Ok(());
        };
        files.settle(path).await.map_err(|e| not_synced(path, e))
    }

    /// Repeats a read while it fails for a passing reason.
    async fn retried<T, F>(&self, operation: &'static str, path: &Path, mut request: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut attempts = self.retry.start();
        loop {
            let error = match request().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !is_transient(&error) || !attempts.again().await {
                return Err(Error::Store { operation, object: path.to_string(), source: Arc::new(error) });
            }
        }
    }
}

/// The scheme under its one name.
fn scheme_of(url: &Url) -> &str {
    match url.scheme() {
        "s3a" => "s3",
        "azure" => "az",
        other => other,
    }
}

fn not_synced(path: &Path, source: std::io::Error) -> Error {
    let source = Arc::new(StoreError::Generic { store: "file", source: Box::new(source) });
    Error::Store { operation: "fsync", object: path.to_string(), source }
}

/// A URL as it is, a plain path as the `file` URL of its absolute form.
fn parse_url(url: &str) -> Result<Url, String> {
    if url.contains("://") {
        return Url::parse(url).map_err(|e| e.to_string());
    }
    if url.is_empty() {
        return Err("it is empty".into());
    }
    let absolute = std::path::absolute(url).map_err(|e| e.to_string())?;
    Url::from_file_path(absolute).map_err(|()| "the path cannot be written as a URL".into())
}

fn refuse_options(scheme: &str, options: &HashMap<String, String>) -> Result<(), String> {
    match options.keys().min() {
        Some(key) => Err(format!("the option `{key}` is unknown for {scheme}, which takes none")),
        None => Ok(()),
    }
}

/// Parses option names; the general names of the HTTP client (`allow_http`, `timeout`) are among each store's keys.
fn options_of<K: std::str::FromStr>(options: &HashMap<String, String>) -> Result<Vec<(K, String)>, String> {
    let mut parsed = Vec::with_capacity(options.len());
    for (name, value) in options {
        let key = K::from_str(&name.to_ascii_lowercase()).map_err(|_| format!("the option `{name}` is unknown"))?;
        parsed.push((key, value.clone()));
    }
    Ok(parsed)
}
