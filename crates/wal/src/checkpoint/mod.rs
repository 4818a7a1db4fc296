//! Checkpoints: a moment of a shard that garbage collection keeps (protocol section 9). A checkpoint is an object with
//! a copy of the pinned manifest, and counts while the latest manifest lists it and it has not expired. Nobody is
//! fenced here; what a checkpoint is used for (clones, reading as of then) is not decided here.

mod change;
pub(crate) mod codec;
mod create;
mod log;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::ids::{ManifestVersion, Position};
use crate::manifest::{Extension, ManifestStore, ShardManifest};
use crate::names;
use crate::shard::Shard;

pub use change::{delete, refresh, release};
pub use create::{copy, create, create_and_read, pin};
pub(crate) use create::{listed_as, object_of, with_checkpoint, write};
pub use log::CheckpointLog;
pub(crate) use log::{lost, proven_empty};

/// The checkpoint of a whole table: one in each of its shards, and a version of its base table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TablePart {
    /// Its id, the same in every shard.
    pub id: Uuid,
    /// How many shards have a part of it.
    pub shards: u32,
    /// The version of the base table that belongs to it.
    pub base_version: u64,
}

impl TablePart {
    pub(crate) fn decoded(id: &[u8], shards: u32, base_version: u64) -> Result<Option<Self>, String> {
        match id {
            [] => Ok(None),
            id => {
                let id = Uuid::from_slice(id).map_err(|e| format!("the id of its table's checkpoint: {e}"))?;
                Ok(Some(Self { id, shards, base_version }))
            }
        }
    }
}

/// The holder of a pin that a shard of the same table has, however its URL is spelt.
pub(crate) const OWN_TABLE: &str = "";

/// What the shard's manifest says about a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Its id, and the name of its object.
    pub id: Uuid,
    /// What its maker called it; names may repeat.
    pub name: Option<String>,
    /// When it was made, in milliseconds since 1970, by its maker's clock.
    pub created_at_ms: u64,
    /// When it expires, after which nobody may begin to use it, and garbage collection drops it
    /// [`min_age`](crate::gc::GcOptions::min_age) later; `None`: it stays until it is deleted.
    pub expires_at_ms: Option<u64>,
    /// R of the pinned manifest. The live rows of the log in (R, tail] belong to the checkpoint.
    pub replay_after: Position,
    /// The last position of the log that belongs to it.
    pub tail: Position,
    /// The pinned manifest's version.
    pub version: ManifestVersion,
    /// Whether a clone holds it, which alone may give it up; its name is the clone's shard then.
    pub is_pin: bool,
    /// The checkpoint of the whole table that it is a part of.
    pub table: Option<TablePart>,
    /// Of a pin, the URL of the clone's table; empty for a shard of the same table, which a split has made.
    pub holder: Option<String>,
    /// Fields that this code does not know, kept as they are.
    pub(crate) unknown: Vec<u8>,
}

impl Checkpoint {
    /// Whether it is still to be kept at a time of day.
    pub fn is_live(&self, now: SystemTime) -> bool {
        self.expires_at_ms.is_none_or(|at| millis(now) < at)
    }

    /// Whether garbage collection leaves it listed at a time of day: it is live, or was within `min_age`.
    pub(crate) fn is_kept(&self, now: SystemTime, min_age: Duration) -> bool {
        let patience = u64::try_from(min_age.as_millis()).unwrap_or(u64::MAX);
        self.expires_at_ms.is_none_or(|at| millis(now) < at.saturating_add(patience))
    }

    /// Whether the log's entry at a position belongs to it.
    pub fn holds(&self, position: Position) -> bool {
        self.replay_after < position && position <= self.tail
    }
}

/// A checkpoint's object: everything that is needed to read the shard as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardCheckpoint {
    /// Its id.
    pub id: Uuid,
    /// The one manifest that could list it first derives from this version.
    pub derived_from: ManifestVersion,
    /// The pinned manifest. Its fences also name every sentinel and dead entry in (R, tail], which the shard's own
    /// manifest may not need to keep.
    pub manifest: ShardManifest,
    /// The last position of the log that belongs to it.
    pub tail: Position,
    /// What its maker called it.
    pub name: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// Whether a clone holds it.
    pub is_pin: bool,
    /// The checkpoint of the whole table that it is a part of.
    pub table: Option<TablePart>,
    /// Of a pin, the URL of the clone's table.
    pub holder: Option<String>,
    /// Fields that this code does not know.
    pub(crate) unknown: Vec<u8>,
}

impl ShardCheckpoint {
    /// Whether a later Fencepost, or a later Lance, put something there, at any level, that this one does not know.
    pub(crate) fn has_unknown_fields(&self) -> bool {
        !self.unknown.is_empty() || self.manifest.has_unknown_fields()
    }
}

/// How a checkpoint is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// A name to find it by.
    pub name: Option<String>,
    /// How long it is kept if nobody refreshes it; `None`: until it is deleted.
    pub lifetime: Option<Duration>,
    /// The checkpoint of the whole table that it is a part of.
    pub table: Option<TablePart>,
}

/// Milliseconds since 1970.
pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The checkpoints that are listed and have not expired, oldest first; with a name, those that are called so.
///
/// # Errors
/// [`Error::ShardNotFound`]; errors of reading.
pub async fn list(shard: &Shard, name: Option<&str>) -> Result<Vec<Checkpoint>> {
    let manifests = ManifestStore::new(shard.clone());
    let latest = with_our_fields(&manifests, manifests.latest_existing().await?).await?;
    let now = shard.store().surroundings().now();
    let is_meant = |c: &&Checkpoint| c.is_live(now) && name.is_none_or(|name| c.name.as_deref() == Some(name));
    Ok(latest.checkpoints().iter().filter(is_meant).cloned().collect())
}

/// Reads a checkpoint that is listed and has not expired.
///
/// # Errors
/// [`Error::NoCheckpoint`]; [`Error::Corrupt`] if its object is damaged or missing.
pub async fn read(shard: &Shard, id: Uuid) -> Result<ShardCheckpoint> {
    let is_listed = async || Ok::<_, Error>(list(shard, None).await?.iter().any(|c| c.id == id));
    let gone = || Error::NoCheckpoint { shard: shard.id(), id, state: "is not listed, or has expired" };
    if !is_listed().await? {
        return Err(gone());
    }
    match read_object(shard, id).await {
        // It went between the two looks, which is no damage.
        Err(Error::Corrupt { .. }) if !is_listed().await? => Err(gone()),
        found => found,
    }
}

/// A checkpoint's object, listed or not.
pub(crate) async fn read_object(shard: &Shard, id: Uuid) -> Result<ShardCheckpoint> {
    let path = shard.checkpoint_path(id);
    match shard.store().get(&path).await? {
        Some(bytes) => codec::decode(path.as_ref(), &bytes, shard.id(), id),
        None => Err(Error::corrupt(path, "it is missing")),
    }
}

/// The id behind the name of an object in `checkpoints/`; `None` if it is not one of ours.
pub(crate) fn id_of(name: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(name.strip_suffix(names::MANIFEST_SUFFIX)?).ok()?;
    // Another spelling is another object.
    name.starts_with(&id.as_hyphenated().to_string()).then_some(id)
}

/// Every checkpoint whose object is there, as one without expiry. For a shard of whose manifests none of ours is left:
/// which of them were still listed is not known, and one too many only keeps what it holds.
pub(crate) async fn found(shard: &Shard) -> Result<Vec<Checkpoint>> {
    let objects = shard.store().list(&shard.checkpoint_folder()).await?;
    let mut found = Vec::new();
    for id in objects.iter().filter_map(|object| id_of(object.location.filename()?)) {
        found.push(listed_as(&read_object(shard, id).await?, None));
    }
    found.sort_by_key(|c| (c.created_at_ms, c.id));
    Ok(found)
}

fn existing(shard: &Shard, manifest: Option<ShardManifest>) -> Result<ShardManifest> {
    manifest.ok_or_else(|| Error::ShardNotFound { shard: shard.id(), url: shard.store().url().to_string() })
}

/// The manifest, or if another engine wrote it the newest one of ours.
async fn with_our_fields(manifests: &ManifestStore, latest: ShardManifest) -> Result<ShardManifest> {
    match latest.extension {
        Some(_) => Ok(latest),
        None => Ok(manifests.last_with_extension(&latest).await?.unwrap_or(latest)),
    }
}

/// Of a shard that is being deleted, and of a clone that is not finished, nobody gets a checkpoint any more, or yet.
pub(crate) fn refuse_unusable(shard: &Shard, manifest: &ShardManifest) -> Result<()> {
    match (manifest.is_deleted(), manifest.is_initialized()) {
        (true, _) => Err(Error::ShardClosed { shard: shard.id(), state: "deleted" }),
        (_, false) => Err(shard.unfinished()),
        (false, true) => Ok(()),
    }
}

pub(crate) fn expiry(shard: &Shard, lifetime: Option<Duration>) -> Option<u64> {
    let lifetime = u64::try_from(lifetime?.as_millis()).unwrap_or(u64::MAX);
    Some(millis(shard.store().surroundings().now()).saturating_add(lifetime))
}

fn extension(manifest: &mut ShardManifest) -> &mut Extension {
    manifest.extension.get_or_insert_with(Extension::default)
}
