//! An object store on a [`PowerLossDisk`], with the calls of `object_store`'s `LocalFileSystem` in its order.
//!
//! Like there, a write that began goes on to its end although its caller gave up: the calls run in a thread of their
//! own, here in a task. Not modelled are copies, renames and multipart uploads, which the log does not use.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use fencepost_wal::FileSync;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::disk::PowerLossDisk;

/// Which fsyncs the store does: all of them, or fewer, to see that a test notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syncs {
    /// A file before it gets its name.
    pub files: bool,
    /// A folder after a name in it changed.
    pub folders: bool,
}

impl Syncs {
    /// What `with_fsync(true)` does.
    pub const ALL: Self = Self { files: true, folders: true };
}

/// Objects as files of a [`PowerLossDisk`]. Clones are the same store.
#[derive(Debug, Clone)]
pub struct PowerLossStore {
    disk: PowerLossDisk,
    syncs: Syncs,
}

impl PowerLossStore {
    /// A store on the whole disk.
    pub fn new(disk: PowerLossDisk, syncs: Syncs) -> Self {
        Self { disk, syncs }
    }

    /// `put_opts` of `LocalFileSystem`: write beside the name, sync, publish, sync the folder, tidy up.
    async fn put(self, path: String, bytes: Vec<u8>, create: bool) -> Result<()> {
        let staged = self.stage(&path).await.map_err(generic)?;
        let published = self.publish(&staged, &path, &bytes, create).await;
        if create || published.is_err() {
            let _ = self.disk.unlink(&staged).await;
        }
        published.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: Box::new(error) },
            _ => generic(error),
        })
    }

    /// A fresh name beside `path`, the folders above it made and synced if they were missing.
    async fn stage(&self, path: &str) -> io::Result<String> {
        let mut number = 1;
        loop {
            let staged = format!("{path}#{number}");
            match self.disk.create_new(&staged).await {
                Ok(()) => return Ok(staged),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.make_folders(folder_of(path)).await?,
                Err(e) => return Err(e),
            }
        }
    }

    async fn make_folders(&self, folder: &str) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut first_existing = folder;
        while !self.disk.exists(first_existing).await? {
            missing.push(first_existing);
            first_existing = folder_of(first_existing);
        }
        for path in missing.iter().rev() {
            match self.disk.create_folder(path).await {
                // Somebody else makes the same folders.
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        if self.syncs.folders {
            for path in missing.into_iter().chain([first_existing]) {
                self.disk.sync_folder(path).await?;
            }
        }
        Ok(())
    }

    async fn publish(&self, staged: &str, path: &str, bytes: &[u8], create: bool) -> io::Result<()> {
        self.disk.write(staged, bytes).await?;
        if self.syncs.files {
            self.disk.sync_file(staged).await?;
        }
        match create {
            true => self.disk.link(staged, path).await?,
            false => self.disk.rename(staged, path).await?,
        }
        match self.syncs.folders {
            true => self.disk.sync_folder(folder_of(path)).await,
            false => Ok(()),
        }
    }

    async fn found(self, prefix: Path) -> Result<Vec<ObjectMeta>> {
        let files = self.disk.files_below(prefix.as_ref()).await.map_err(generic)?;
        // Files that are being written have `#` and a number behind their names.
        let whole = files.into_iter().filter(|(path, _)| !path.contains('#') && path.as_str() != prefix.as_ref());
        whole.map(|(path, size)| Ok(meta(Path::parse(path)?, size))).collect()
    }
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn generic(source: io::Error) -> Error {
    Error::Generic { store: "PowerLossStore", source: Box::new(source) }
}

fn not_modelled(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "PowerLossStore".to_owned() }
}

fn meta(location: Path, size: u64) -> ObjectMeta {
    ObjectMeta { location, size, last_modified: SystemTime::UNIX_EPOCH.into(), e_tag: None, version: None }
}

impl fmt::Display for PowerLossStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PowerLossStore")
    }
}

#[async_trait]
impl ObjectStore for PowerLossStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let create = match opts.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => return Err(not_modelled("a PUT with a condition on the content")),
        };
        let bytes = Bytes::from(payload).to_vec();
        let work = tokio::spawn(self.clone().put(location.to_string(), bytes, create));
        work.await.map_err(|source| Error::JoinError { source })??;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(not_modelled("a multipart upload"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let bytes = match self.disk.read(location.as_ref()).await {
            Ok(bytes) => Bytes::from(bytes),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound { path: location.to_string(), source: Box::new(source) });
            }
            Err(source) => return Err(generic(source)),
        };
        let meta = meta(location.clone(), bytes.len() as u64);
        options.check_preconditions(&meta)?;
        let range = match options.range {
            Some(range) => range.as_range(meta.size).map_err(|e| generic(io::Error::other(e)))?,
            None => 0..meta.size,
        };
        let wanted = bytes.slice(range.start as usize..range.end as usize);
        let payload = GetResultPayload::Stream(stream::once(async { Ok(wanted) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let disk = self.disk.clone();
        let delete = move |location: Path| {
            let disk = disk.clone();
            async move {
                match disk.unlink(location.as_ref()).await {
                    Ok(()) => Ok(location),
                    Err(source) if source.kind() == io::ErrorKind::NotFound => {
                        Err(Error::NotFound { path: location.to_string(), source: Box::new(source) })
                    }
                    Err(source) => Err(generic(source)),
                }
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let found = self.clone().found(prefix.cloned().unwrap_or_default());
        stream::once(found).map_ok(|found| stream::iter(found.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let mut result =
            ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() };
        for object in self.clone().found(prefix.clone()).await? {
            let below: Vec<_> = object.location.prefix_match(&prefix).into_iter().flatten().collect();
            match below.as_slice() {
                [_] => result.objects.push(object.clone()),
                [folder, ..] => result.common_prefixes.push(prefix.clone().join(folder.clone())),
                [] => {}
            }
        }
        result.common_prefixes.dedup();
        Ok(result)
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(not_modelled("a copy"))
    }
}

/// For the seam through which the code under test syncs by itself.
impl PowerLossStore {
    /// The disk below.
    pub fn disk(&self) -> &PowerLossDisk {
        &self.disk
    }

    /// The store, for the code under test.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(self.clone())
    }
}

#[async_trait]
impl FileSync for PowerLossStore {
    async fn sync_object(&self, object: &Path) -> io::Result<()> {
        self.disk.sync_file(object.as_ref()).await
    }

    async fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.sync_folder(folder.as_ref()).await
    }
}
