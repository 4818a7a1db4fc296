//! The shard manifest: the value, its bytes, and the store of its versions. Who may change what is decided by the
//! callers (claim, tenure); how a change becomes the next version is decided here.

pub(crate) mod codec;
mod origin;
mod store;

use uuid::Uuid;

use crate::checkpoint::Checkpoint;
use crate::entry::WriterIdentity;
use crate::error::{Error, Result};
use crate::ids::{Epoch, Generation, ManifestVersion, Position, ShardId};
use crate::mutants::{Mutant, is_on};
use crate::wal_store::WalStoreRef;

pub use origin::{Origin, RowFilter, ShardPlace, SsTableBase};
pub(crate) use store::HeldManifest;
pub use store::{ManifestStore, SeenManifest};

/// The version of [`Extension`] that this code writes, and the highest that it understands.
pub const FORMAT_VERSION: u32 = 1;

/// One version of a shard's manifest. The newest one is the truth about the shard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardManifest {
    /// The version: 1, 2, 3 …
    pub version: ManifestVersion,
    /// The shard.
    pub shard_id: ShardId,
    /// The sharding spec that the shard belongs to; 0 for none.
    pub shard_spec_id: u32,
    /// The values of the sharding fields that lead to this shard.
    pub shard_field_entries: Vec<ShardFieldEntry>,
    /// Whether the shard takes writers.
    pub status: ShardStatus,
    /// The epoch of the shard's owner; 0 before the first.
    pub writer_epoch: Epoch,
    /// R: every row at or below this position is in the SSTables (or was truncated by the consumer).
    pub replay_after: Position,
    /// A landed position at or above R; other readers start probing here. See [`landed_up_to`](Self::landed_up_to).
    pub last_seen: Position,
    /// The generation that the next SSTable gets.
    pub current_generation: Generation,
    /// The SSTables, oldest first.
    pub sstables: Vec<SsTable>,
    /// Our fields; `None` if another engine wrote this version.
    pub extension: Option<Extension>,
    /// Fields that this code does not know, kept as they are.
    pub(crate) unknown: Vec<u8>,
}

/// Whether a shard takes writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShardStatus {
    /// It does.
    #[default]
    Active,
    /// It does not.
    Sealed,
}

/// The value of one sharding field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardFieldEntry {
    /// The sharding field's name in the spec.
    pub field_id: String,
    /// Its value, encoded as the spec says.
    pub value: Vec<u8>,
}

/// One SSTable of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SsTable {
    /// Its generation.
    pub generation: Generation,
    /// The name of its folder in the shard's folder, or in that of the shard that [`base`](Self::base) names.
    pub path: String,
    /// Bytes that its rows took in memory.
    pub in_memory_bytes: Option<u64>,
    /// Its rows, tombstones included.
    pub physical_rows: Option<u64>,
    /// Bytes of its primary keys.
    pub primary_key_bytes: Option<u64>,
    /// Where it is, if in another shard's folder.
    pub base: Option<SsTableBase>,
    /// Fields that this code does not know.
    pub(crate) unknown: Vec<u8>,
}

impl SsTable {
    /// An SSTable of a generation in a folder.
    pub fn new(generation: Generation, path: String) -> Self {
        Self {
            generation,
            path,
            in_memory_bytes: None,
            physical_rows: None,
            primary_key_bytes: None,
            base: None,
            unknown: Vec::new(),
        }
    }
}

/// A WAL object that garbage collection must leave, because a stalled writer's next PUT has to collide with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence {
    /// Where the object stands.
    pub position: Position,
    /// The epoch of the writer that put it there.
    pub epoch: Epoch,
}

/// What Fencepost adds to Lance's manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extension {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// The claim that owns the shard; nil before the first.
    pub writer_id: Uuid,
    /// Random per version: tells our commit from somebody else's at the same version.
    pub commit_id: Uuid,
    /// The `commit_id` of the version that this one was derived from; nil for the first.
    pub parent_commit_id: Uuid,
    /// The highest epoch of any live entry at or below R, sentinels included.
    pub replay_after_epoch: Epoch,
    /// WAL objects that must stay, in order of position.
    pub fences: Vec<Fence>,
    /// The last tenure that was closed with everything acknowledged and nothing in flight.
    pub closed_cleanly_epoch: Epoch,
    /// The checkpoints that garbage collection respects until they expire, in order of creation.
    pub checkpoints: Vec<Checkpoint>,
    /// The WAL store that holds the log from R on; `None`: the table's own store does.
    pub wal_store: Option<WalStoreRef>,
    /// Where the shard was cloned from; `None` if it was not.
    pub origin: Option<Origin>,
    /// The table that the shard belongs to, if that has an id: what is left of another one at the same place is not taken for it.
    pub table_id: Option<Uuid>,
    /// Another engine wrote in between; garbage collection waits for an operator.
    pub unadopted: bool,
    /// The shard is being deleted.
    pub deleted: bool,
    /// Fields that this code does not know.
    pub(crate) unknown: Vec<u8>,
}

impl Default for Extension {
    fn default() -> Self {
        Self {
            format_version: FORMAT_VERSION,
            writer_id: Uuid::nil(),
            commit_id: Uuid::nil(),
            parent_commit_id: Uuid::nil(),
            replay_after_epoch: Epoch::ZERO,
            fences: Vec::new(),
            closed_cleanly_epoch: Epoch::ZERO,
            checkpoints: Vec::new(),
            wal_store: None,
            origin: None,
            table_id: None,
            unadopted: false,
            deleted: false,
            unknown: Vec::new(),
        }
    }
}

impl Extension {
    /// Adds fences, each position once, in order.
    pub(crate) fn add_fences(&mut self, fences: impl IntoIterator<Item = Fence>) {
        self.fences.extend(fences);
        self.fences.sort_unstable();
        self.fences.dedup_by_key(|fence| fence.position);
    }
}

impl ShardManifest {
    /// The first manifest of a shard that nobody has written to.
    pub fn first(shard_id: ShardId, shard_spec_id: u32, shard_field_entries: Vec<ShardFieldEntry>) -> Self {
        Self {
            version: ManifestVersion::new(1),
            shard_id,
            shard_spec_id,
            shard_field_entries,
            status: ShardStatus::Active,
            writer_epoch: Epoch::ZERO,
            replay_after: Position::ZERO,
            last_seen: Position::ZERO,
            current_generation: Generation::new(1),
            sstables: Vec::new(),
            extension: Some(Extension::default()),
            unknown: Vec::new(),
        }
    }

    /// Whether a later Fencepost, or a later Lance, put something there, at any level, that this one does not know.
    pub(crate) fn has_unknown_fields(&self) -> bool {
        let in_extension = |x: &Extension| {
            !x.unknown.is_empty()
                || x.checkpoints.iter().any(|c| !c.unknown.is_empty())
                || x.wal_store.as_ref().is_some_and(|w| !w.unknown.is_empty())
                || x.origin.as_ref().is_some_and(|o| !o.unknown.is_empty())
        };
        !self.unknown.is_empty()
            || self.sstables.iter().any(|s| !s.unknown.is_empty())
            || self.sstables.iter().filter_map(|s| s.base.as_ref()).any(|b| !b.unknown.is_empty())
            || self.extension.as_ref().is_some_and(in_extension)
    }

    /// Whether the claim `writer` owns the shard according to this version.
    pub(crate) fn is_owned_by(&self, writer: &WriterIdentity) -> bool {
        self.writer_epoch == writer.epoch && self.extension.as_ref().is_some_and(|x| x.writer_id == writer.writer_id)
    }

    /// The fences; none in a manifest of another engine.
    pub fn fences(&self) -> &[Fence] {
        self.extension.as_ref().map_or(&[], |x| &x.fences)
    }

    /// The checkpoints, expired ones among them; none in a manifest of another engine.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        self.extension.as_ref().map_or(&[], |x| &x.checkpoints)
    }

    /// The WAL store that holds the log from R on; `None`: the table's own store does.
    pub fn wal_store(&self) -> Option<&WalStoreRef> {
        self.extension.as_ref().and_then(|x| x.wal_store.as_ref())
    }

    /// Where the shard was cloned from; `None` if it was not.
    pub fn origin(&self) -> Option<&Origin> {
        self.extension.as_ref().and_then(|x| x.origin.as_ref())
    }

    /// Whether the shard is there for everybody: a clone is once everything that it needs is in its place.
    pub fn is_initialized(&self) -> bool {
        self.origin().is_none_or(|origin| origin.initialized)
    }

    /// The table that the shard says it belongs to.
    pub fn table_id(&self) -> Option<Uuid> {
        self.extension.as_ref().and_then(|x| x.table_id)
    }

    /// The same manifest of a shard of a table with this id.
    #[must_use]
    pub fn of_table(mut self, table_id: Option<Uuid>) -> Self {
        self.extension.get_or_insert_with(Extension::default).table_id = table_id;
        self
    }

    /// Whether the shard is being deleted.
    pub fn is_deleted(&self) -> bool {
        self.extension.as_ref().is_some_and(|x| x.deleted)
    }

    /// The epoch that a replay from R starts with: entries of lower epochs are dead.
    pub fn replay_after_epoch(&self) -> Epoch {
        self.extension.as_ref().map_or(Epoch::ZERO, |x| x.replay_after_epoch)
    }

    /// A position up to which everything above R had landed when this version was committed.
    ///
    /// In a version of ours that is `last_seen`. In another engine's it is only R: Lance's own writers put the end of
    /// a contiguous replay there, but they carry on what they find, its older tailers recorded whatever position they
    /// had read, and `ShardManifestStore::commit_update` takes any value from its caller. An entry in front of such a
    /// position may be one that its writer had in flight and never landed.
    pub(crate) fn landed_up_to(&self) -> Position {
        match self.extension {
            Some(_) => self.last_seen,
            None => self.replay_after,
        }
    }

    /// Whether the log above R is known to be empty for as long as this is the newest version: the last tenure closed cleanly,
    /// and R had reached the last position that landed. Then nothing is to be read of it, wherever it is.
    pub fn has_empty_log(&self) -> bool {
        let closed = |x: &Extension| x.closed_cleanly_epoch == self.writer_epoch && !x.unadopted;
        let is_closed = self.writer_epoch > Epoch::ZERO && self.extension.as_ref().is_some_and(closed);
        is_closed && self.landed_up_to() <= self.replay_after
    }

    /// Whether the WAL store that it records may be wiped, as far as this shard goes, while nobody opens the shard (protocol
    /// section 10): the log is empty for good ([`has_empty_log`](Self::has_empty_log)), no checkpoint, expired or not, holds an entry,
    /// and there are no fences. Nobody is left then whom anything in it would have to stop. A wiped store is set up anew
    /// by the next writer.
    pub fn wal_store_may_be_wiped(&self) -> bool {
        self.needs_no_wal_store() && self.checkpoints().iter().all(|c| c.tail <= c.replay_after)
    }

    /// Whether a writer may go on without the WAL store that it records: what checkpoints hold in it is another matter.
    pub(crate) fn needs_no_wal_store(&self) -> bool {
        let flushed = self.landed_up_to() <= self.replay_after && self.extension.is_some();
        let is_empty = self.has_empty_log() || (flushed && is_on(Mutant::WipeWithoutClose));
        is_empty && (self.fences().is_empty() || is_on(Mutant::WipeDespiteFences))
    }

    /// Whether garbage collection may judge by this version what is needed.
    ///
    /// # Errors
    /// [`Error::Unadopted`] if another engine wrote in between: sentinels and dead entries that it left are not among
    /// the fences, and those of its manifests name neither fences nor checkpoints (protocol sections 8 and 11).
    pub fn collectable(&self) -> Result<()> {
        match &self.extension {
            Some(extension) if !extension.unadopted => Ok(()),
            _ => Err(Error::Unadopted {
                shard: self.shard_id,
                reason: "another engine wrote to it, and what its log must keep is not known",
            }),
        }
    }

    pub(crate) fn commit_id(&self) -> Option<Uuid> {
        self.extension.as_ref().map(|x| x.commit_id)
    }
}
