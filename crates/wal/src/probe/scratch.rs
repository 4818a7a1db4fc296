//! A folder of its own for objects that are only written to look at the store, and its complete removal.

use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::store::Store;

/// Deletions that run at once where the store cannot delete many objects with one request.
const DELETES_AT_ONCE: usize = 16;

/// A fresh folder below the table's path. It is made by the first object in it.
#[derive(Debug)]
pub(super) struct Scratch {
    store: Store,
    folder: Path,
    /// The deepest folder of this machine that was there before us; `None` for other stores.
    before: Option<PathBuf>,
    names: AtomicUsize,
}

impl Scratch {
    pub(super) fn new(store: &Store) -> Self {
        let folder = store.root().clone().join(format!("_fencepost_probe_{}", Uuid::new_v4().simple()));
        let before = local(store, &folder).and_then(|at| at.ancestors().find(|at| at.exists()).map(FilePath::to_owned));
        Self { store: store.clone(), folder, before, names: AtomicUsize::new(0) }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn root(&self) -> &Path {
        &self.folder
    }

    /// A folder in it.
    pub(super) fn folder(&self, name: &str) -> Path {
        self.folder.clone().join(name)
    }

    /// A name that nothing has had.
    pub(super) fn fresh(&self, folder: &str) -> Path {
        self.folder(folder).join(self.names.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Deletes every object, and on this machine every folder, that was not there before.
    pub(super) async fn remove(&self) -> Result<()> {
        let objects: Vec<Path> = self.store.list(&self.folder).await?.into_iter().map(|o| o.location).collect();
        let doomed = stream::iter(objects.into_iter().map(Ok)).boxed();
        let mut deleted = self.store.object_store().delete_stream(doomed);
        while let Some(answer) = deleted.next().await {
            if let Err(error) = answer {
                tracing::debug!(%error, "objects cannot be deleted together");
            }
        }
        // Not every store can delete many at once; a second look shows what is left.
        let left = self.store.list(&self.folder).await?.into_iter().map(|o| o.location);
        let one_by_one = left.map(|path| async move {
            match self.store.object_store().delete(&path).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
                Err(e) => {
                    Err(Error::Store { operation: "DELETE", object: path.to_string(), source: std::sync::Arc::new(e) })
                }
            }
        });
        let answers: Vec<Result<()>> = stream::iter(one_by_one).buffer_unordered(DELETES_AT_ONCE).collect().await;
        answers.into_iter().collect::<Result<()>>()?;
        if let (Some(at), Some(before)) = (local(&self.store, &self.folder), self.before.clone()) {
            let removed = tokio::task::spawn_blocking(move || remove_folders(&at, &before)).await;
            if let Err(error) = removed {
                tracing::warn!(%error, "the probe's empty folders stay");
            }
        }
        Ok(())
    }

    /// One create. The caller judges the answer.
    pub(super) async fn create(&self, path: &Path, bytes: Bytes) -> Result<Result<(), Refused>> {
        match self.store.create_once(path, bytes).await {
            Ok(()) => Ok(Ok(())),
            Err(error @ StoreError::AlreadyExists { .. }) => {
                Ok(Err(Refused { status: crate::retry::status_of(&error) }))
            }
            Err(StoreError::NotImplemented { .. } | StoreError::NotSupported { .. }) => {
                Err(self.unfit("it does not support conditional PUTs"))
            }
            Err(e) => Err(put_failed(path, e)),
        }
    }

    /// One PUT without a condition.
    pub(super) async fn put(&self, path: &Path, bytes: Bytes) -> Result<()> {
        let put = self.store.object_store().put(path, bytes.into());
        match tokio::time::timeout(self.store.retry().attempt_timeout, put).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(put_failed(path, e)),
            Err(elapsed) => Err(put_failed(path, StoreError::Generic { store: "timeout", source: Box::new(elapsed) })),
        }
    }

    pub(super) fn unfit(&self, reason: impl Into<String>) -> Error {
        Error::StoreUnfit { url: self.store.url().to_string(), reason: reason.into() }
    }
}

/// A create that was answered "already exists".
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    /// The HTTP status, where there is one.
    pub(super) status: Option<u16>,
}

fn put_failed(path: &Path, error: StoreError) -> Error {
    Error::Store { operation: "PUT", object: path.to_string(), source: std::sync::Arc::new(error) }
}

/// Where a folder is on this machine.
fn local(store: &Store, folder: &Path) -> Option<PathBuf> {
    if store.url().scheme() != "file" {
        return None;
    }
    let inside = LocalFileSystem::new().path_to_filesystem(&folder.clone().join("x")).ok()?;
    inside.parent().map(FilePath::to_owned)
}

/// Removes the empty folders in `folder`, itself, and those above it up to `before`. Others stay.
fn remove_folders(folder: &FilePath, before: &FilePath) {
    remove_empty(folder);
    for above in folder.ancestors().skip(1).take_while(|above| *above != before) {
        if std::fs::remove_dir(above).is_err() {
            return;
        }
    }
}

fn remove_empty(folder: &FilePath) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    // What is not empty, or gone already, is not ours to remove.
    let _ = std::fs::remove_dir(folder);
}
