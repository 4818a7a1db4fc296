//! Where a shard's log is: in the table's own store, or in a WAL store (protocol section 10). Names its objects, holds
//! nothing of their content.

use object_store::path::Path;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::ids::{Position, ShardId};
use crate::manifest::ShardManifest;
use crate::names;
use crate::shard::Shard;
use crate::store::Store;
use crate::wal_store::{WalStoreRef, confirm};

/// The log of a shard, as a manifest says where it is. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Log {
    shard: ShardId,
    store: Store,
    folder: Path,
    /// What the manifest recorded of it; `None` in the table's own store.
    recorded: Option<WalStoreRef>,
    /// It is known to have no entries, and its store is not there.
    is_empty: bool,
}

impl Log {
    /// In the table's own store.
    pub(crate) fn own(shard: &Shard) -> Self {
        Self {
            shard: shard.id(),
            store: shard.store().clone(),
            folder: shard.wal_folder(),
            recorded: None,
            is_empty: false,
        }
    }

    /// In a WAL store whose identity was found to be the recorded one.
    pub(crate) fn in_wal_store(shard: &Shard, store: Store, recorded: WalStoreRef) -> Self {
        let folder = Shard::folder(store.root(), shard.id()).join("wal");
        Self { shard: shard.id(), store, folder, recorded: Some(recorded), is_empty: false }
    }

    /// In a WAL store that is not there, without any entry: no object is in the folder that it has.
    pub(crate) fn empty(shard: &Shard, recorded: WalStoreRef) -> Self {
        let folder = shard.root().clone().join("no-log");
        Self { shard: shard.id(), store: shard.store().clone(), folder, recorded: Some(recorded), is_empty: true }
    }

    /// The store that it is in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The WAL store, as the manifest records it; `None` if it is in the table's own store.
    pub fn wal_store(&self) -> Option<&WalStoreRef> {
        self.recorded.as_ref()
    }

    pub(crate) fn id(&self) -> Option<Uuid> {
        self.recorded.as_ref().map(|recorded| recorded.id)
    }

    /// Entries up to this position are where the log was before.
    pub(crate) fn after(&self) -> Position {
        self.recorded.as_ref().map_or(Position::ZERO, |recorded| recorded.after)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// `wal/{bit-reversed position}.arrow`.
    pub fn entry_path(&self, position: Position) -> Path {
        self.folder.clone().join(names::format(position.get(), names::ENTRY_SUFFIX))
    }

    /// Whether a manifest says that the log is here.
    pub(crate) fn is_of(&self, manifest: &ShardManifest) -> bool {
        let has_entries = !manifest.has_empty_log();
        self.id() == manifest.wal_store().map(|recorded| recorded.id) && !(self.is_empty && has_entries)
    }

    /// Whether an absent position says something: a WAL store that was wiped, or whose disk is not mounted, has none.
    /// To be asked after the position was found absent. No request in the table's own store.
    ///
    /// # Errors
    /// [`Error::WalStoreMissing`], [`Error::WalStoreMismatch`].
    pub(crate) async fn confirm(&self) -> Result<()> {
        match &self.recorded {
            Some(recorded) if !self.is_empty => confirm(self.shard, &self.store, recorded).await,
            _ => Ok(()),
        }
    }

    /// An entry that must be there and is not.
    pub(crate) fn hole(&self, position: Position, beyond: Position) -> Error {
        Error::LogHole { shard: self.shard, position, beyond, object: self.entry_path(position).to_string() }
    }
}
