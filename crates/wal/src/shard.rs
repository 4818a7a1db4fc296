//! A shard on storage: its place and the names of its objects. Holds no state of the shard.

use std::sync::Arc;

use object_store::path::Path;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::ids::{ManifestVersion, Position, ShardId};
use crate::log::Log;
use crate::manifest::ShardManifest;
use crate::names;
use crate::store::Store;
use crate::wal_store::{WalStoreRef, WalStores};

/// The folder of a table that holds its shards.
pub const MEM_WAL_FOLDER: &str = "_mem_wal";

/// The place of a shard: `{table}/_mem_wal/{shard id}/`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shard {
    store: Store,
    id: ShardId,
    root: Path,
    wal_stores: Arc<WalStores>,
}

impl Shard {
    /// The shard `id` of the table in `store`. Nothing is read or written.
    pub fn new(store: Store, id: ShardId) -> Self {
        let root = Self::folder(store.root(), id);
        Self { store, id, root, wal_stores: Arc::default() }
    }

    /// The same shard, with a store for its log (protocol section 10). A writer moves the log there when it opens the
    /// shard and finds nothing above R to replay. Everybody else, and a writer until then, follows what the manifest
    /// records; to them it only gives the options of that store.
    #[must_use]
    pub fn with_wal_store(self, store: Store) -> Self {
        Self { wal_stores: WalStores::with(store, false), ..self }
    }

    /// As [`with_wal_store`](Self::with_wal_store), for a log that is in no WAL store yet; one that is in another stays there.
    #[must_use]
    pub fn with_default_wal_store(self, store: Store) -> Self {
        Self { wal_stores: WalStores::with(store, true), ..self }
    }

    /// The folder of a shard below the root of a table or of a WAL store.
    pub(crate) fn folder(root: &Path, id: ShardId) -> Path {
        root.clone().join(MEM_WAL_FOLDER).join(id.to_string())
    }

    /// Whether a writer leaves the log where the manifest says, although it was given another store.
    pub(crate) fn log_stays(&self, manifest: &ShardManifest) -> bool {
        self.wal_stores.stays(manifest)
    }

    /// The store that the caller gave for the log.
    pub(crate) fn given_wal_store(&self) -> Option<&Store> {
        self.wal_stores.given()
    }

    /// Where a manifest says that the log is.
    ///
    /// # Errors
    /// [`Error::WalStoreMissing`](crate::Error::WalStoreMissing) and
    /// [`Error::WalStoreMismatch`](crate::Error::WalStoreMismatch) if the store that it records is not there;
    /// [`Error::InvalidUrl`](crate::Error::InvalidUrl) if its URL cannot be opened here.
    pub async fn log(&self, manifest: &ShardManifest) -> Result<Log> {
        match (self.recorded_log(manifest).await, manifest.wal_store()) {
            // Wiped, perhaps, and rightly so: nothing in it is needed for reading.
            (Err(Error::WalStoreMissing { .. } | Error::WalStoreMismatch { .. }), Some(recorded))
                if manifest.has_empty_log() =>
            {
                // All of it lies where it was before, or nowhere.
                Ok(Log::empty(self, WalStoreRef { after: manifest.replay_after, ..recorded.clone() }))
            }
            (found, _) => found,
        }
    }

    /// The same, also if there is nothing to read in it.
    pub(crate) async fn recorded_log(&self, manifest: &ShardManifest) -> Result<Log> {
        self.wal_stores.log(self, manifest).await
    }

    /// The shards of the table in `store` that have a folder, with one LIST. Whether a shard has a manifest, and so
    /// exists, is not looked at.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store) if the store does not answer.
    pub async fn list(store: &Store) -> Result<Vec<ShardId>> {
        let names = store.list_folders(&store.root().clone().join(MEM_WAL_FOLDER)).await?;
        // Another spelling of a UUID is another folder.
        let ids = names.iter().filter_map(|name| name.parse().ok().filter(|id: &ShardId| id.to_string() == *name));
        Ok(ids.collect())
    }

    /// The answer to who wants to use a clone that is not finished.
    pub(crate) fn unfinished(&self) -> Error {
        Error::CloneUnfinished { shard: self.id, url: self.store.url().to_string() }
    }

    /// The shard's name.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The store that the shard lives in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The shard's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn wal_folder(&self) -> Path {
        self.root.clone().join("wal")
    }

    /// `wal/{bit-reversed position}.arrow`, for a log in the table's own store; see [`log`](Self::log).
    pub fn entry_path(&self, position: Position) -> Path {
        self.wal_folder().join(names::format(position.get(), names::ENTRY_SUFFIX))
    }

    pub(crate) fn manifest_folder(&self) -> Path {
        self.root.clone().join("manifest")
    }

    /// `manifest/{bit-reversed version}.binpb`.
    pub fn manifest_path(&self, version: ManifestVersion) -> Path {
        self.manifest_folder().join(names::format(version.get(), names::MANIFEST_SUFFIX))
    }

    /// `checkpoints/`, whose objects are Fencepost's alone.
    pub(crate) fn checkpoint_folder(&self) -> Path {
        self.root.clone().join("checkpoints")
    }

    /// `checkpoints/{id}.binpb`.
    pub fn checkpoint_path(&self, id: Uuid) -> Path {
        self.checkpoint_folder().join(format!("{}{}", id.as_hyphenated(), names::MANIFEST_SUFFIX))
    }

    /// `manifest/version_hint.json`: for other readers, never trusted.
    pub(crate) fn hint_path(&self) -> Path {
        self.manifest_folder().join("version_hint.json")
    }
}
