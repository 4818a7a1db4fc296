//! A shard on storage: its place and the names of its objects. Holds no state of the shard.

use object_store::path::Path;
use uuid::Uuid;

use crate::error::Result;
use crate::ids::{ManifestVersion, Position, ShardId};
use crate::names;
use crate::store::Store;

/// The folder of a table that holds its shards.
pub const MEM_WAL_FOLDER: &str = "_mem_wal";

/// The place of a shard: `{table}/_mem_wal/{shard id}/`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shard {
    store: Store,
    id: ShardId,
    root: Path,
}

impl Shard {
    /// The shard `id` of the table in `store`. Nothing is read or written.
    pub fn new(store: Store, id: ShardId) -> Self {
        let root = store.root().clone().join(MEM_WAL_FOLDER).join(id.to_string());
        Self { store, id, root }
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

    /// `wal/{bit-reversed position}.arrow`.
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
