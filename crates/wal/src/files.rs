//! Files whose names survive a power loss. A file's bytes are durable when it was fsynced, its name when its folder was,
//! and the folder's own name when the folder above was. `object_store` does all of that for the files and folders that
//! it makes itself; this module does it for those that somebody else has made and may not have fsynced yet.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

/// How files and folders become durable. Production code uses [`OsFiles`]; a simulated disk brings its own.
#[async_trait]
pub trait FileSync: fmt::Debug + Send + Sync {
    /// Fsyncs the bytes of an object's file.
    ///
    /// # Errors
    /// If the file cannot be opened or synced.
    async fn sync_object(&self, object: &Path) -> io::Result<()>;

    /// Fsyncs the names in a folder; the empty path is the root of the file system.
    ///
    /// # Errors
    /// If the folder cannot be opened or synced.
    async fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// The file system of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFiles;

impl OsFiles {
    async fn sync(file: std::path::PathBuf) -> io::Result<()> {
        let sync = move || std::fs::File::open(file)?.sync_all();
        tokio::task::spawn_blocking(sync).await.map_err(io::Error::other)?
    }
}

#[async_trait]
impl FileSync for OsFiles {
    async fn sync_object(&self, object: &Path) -> io::Result<()> {
        Self::sync(LocalFileSystem::new().path_to_filesystem(object).map_err(io::Error::other)?).await
    }

    async fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        // Only on Unix are folders opened and synced like files.
        if !cfg!(unix) {
            return Ok(());
        }
        // Any name in it: the root of the file system has none of its own.
        let inside = LocalFileSystem::new().path_to_filesystem(&folder.clone().join("x")).map_err(io::Error::other)?;
        match inside.parent() {
            Some(folder) => Self::sync(folder.to_owned()).await,
            None => Ok(()),
        }
    }
}

/// A store of files that answers a write only when every folder above the file is durable too.
///
/// `LocalFileSystem` fsyncs the folders that a PUT of its own makes. A folder that another PUT has just made looks like
/// any other; if its maker dies, or stalls, before its fsyncs, then what everybody else puts into it is gone with it
/// after a power loss, acknowledged or not (I1). So each handle syncs, once for each folder, the whole way up.
#[derive(Debug, Clone)]
pub(crate) struct DurableFiles {
    inner: Arc<dyn ObjectStore>,
    sync: Arc<dyn FileSync>,
    /// Folders that are known to be named durably, all the way up.
    durable: Arc<Mutex<HashSet<Path>>>,
}

impl DurableFiles {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, sync: Arc<dyn FileSync>) -> Self {
        Self { inner, sync, durable: Arc::default() }
    }

    /// Makes an object durable that was found, not written by a request that answered "ok".
    pub(crate) async fn settle(&self, object: &Path) -> io::Result<()> {
        self.sync.sync_object(object).await?;
        self.sync_folder_of(object).await?;
        self.settle_folders(object).await
    }

    /// Makes the names durable that stand beside an object, or the lack of one.
    pub(crate) async fn sync_folder_of(&self, object: &Path) -> io::Result<()> {
        self.sync.sync_folder(&folder_of(object)).await
    }

    /// Makes the names of all folders above an object durable.
    async fn settle_folders(&self, object: &Path) -> io::Result<()> {
        let mut folders = Vec::new();
        let mut folder = folder_of(object);
        while !folder.is_root() && !self.known().contains(&folder) {
            let above = folder_of(&folder);
            match self.sync.sync_folder(&above).await {
                Ok(()) => {}
                // Nobody of ours made a folder in a place that cannot be written, or not even read.
                Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                    tracing::debug!(folder = %above, error = %e, "a folder above the table cannot be synced");
                }
                Err(e) => return Err(e),
            }
            folders.push(std::mem::replace(&mut folder, above));
        }
        self.known().extend(folders);
        Ok(())
    }

    async fn written<T>(&self, object: &Path, answer: T) -> Result<T> {
        match self.settle_folders(object).await {
            Ok(()) => Ok(answer),
            Err(e) => Err(StoreError::Generic { store: "file", source: Box::new(e) }),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<Path>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn folder_of(path: &Path) -> Path {
    let mut parts: Vec<_> = path.parts().collect();
    parts.pop();
    parts.into_iter().collect()
}

impl fmt::Display for DurableFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DurableFiles({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for DurableFiles {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let answer = self.inner.put_opts(location, payload, opts).await?;
        self.written(location, answer).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(DurableUpload { upload, files: self.clone(), location: location.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[std::ops::Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        self.written(to, ()).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await?;
        self.written(to, ()).await
    }
}

/// A multipart upload, whose object appears when it is completed.
#[derive(Debug)]
struct DurableUpload {
    upload: Box<dyn MultipartUpload>,
    files: DurableFiles,
    location: Path,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let answer = self.upload.complete().await?;
        self.files.written(&self.location, answer).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}
