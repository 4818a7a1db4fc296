//! Checkpoints: a moment of a shard that garbage collection keeps (protocol section 9). A checkpoint is an object with
//! a copy of the pinned manifest, and counts while the latest manifest lists it and it has not expired. Nobody is
//! fenced here; what a checkpoint is used for (clones, reading as of then) is not decided here.

pub(crate) mod codec;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use uuid::Uuid;

use crate::adopt::inherit;
use crate::error::{Error, Result};
use crate::ids::{ManifestVersion, Position};
use crate::liveness::EntryKind;
use crate::manifest::{Extension, Fence, ManifestStore, ShardManifest};
use crate::mutants::{Mutant, is_on};
use crate::names;
use crate::shard::Shard;
use crate::tailer::WalTailer;

/// How often a checkpoint is begun anew because others committed meanwhile.
const MAX_ROUNDS: usize = 64;

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
    /// Whether a clone holds it, which alone may give it up.
    pub is_pin: bool,
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
    unknown: Vec<u8>,
}

/// How a checkpoint is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// A name to find it by.
    pub name: Option<String>,
    /// How long it is kept if nobody refreshes it; `None`: until it is deleted.
    pub lifetime: Option<Duration>,
}

/// Milliseconds since 1970.
pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Pins the shard as its latest manifest and its log have it, without a writer: reads the log's tail, writes the
/// checkpoint's object, and commits a manifest that lists it. Nobody is fenced; rows that a writer has on the wire may
/// or may not be in.
///
/// # Errors
/// [`Error::ShardNotFound`], [`Error::ShardClosed`] for a deleted shard, [`Error::Unadopted`] if another engine's
/// manifests replaced all of ours; [`Error::LogHole`] and [`Error::Corrupt`] if the log is damaged;
/// [`Error::Contention`] if others commit faster than the tail can be read.
pub async fn create(shard: &Shard, options: &CheckpointOptions) -> Result<Checkpoint> {
    let manifests = ManifestStore::new(shard.clone());
    let mut unknown: Vec<Checkpoint> = Vec::new();
    for _ in 0..MAX_ROUNDS {
        let latest = existing(shard, manifests.latest_certain().await?)?;
        // An earlier round whose answer was lost, and which landed.
        if let Some(landed) = unknown.iter().find(|made| latest.checkpoints().iter().any(|c| c.id == made.id)) {
            return Ok(landed.clone());
        }
        let pinned = inherit(shard, &manifests, latest.clone()).await?;
        refuse_deleted(shard, &pinned)?;
        // I9: nothing above R is deleted while this version is the latest, and the commit below fails otherwise.
        let (tail, met) = match tail(shard, &pinned).await {
            Err(Error::Behind { .. }) => continue,
            found => found?,
        };
        let checkpoint = of_moment(shard, &pinned, tail, met, options);
        let path = shard.checkpoint_path(checkpoint.id);
        shard.store().create_own(&path, Bytes::from(codec::encode(&checkpoint))).await?;

        let listed = listed_as(&checkpoint, expiry(shard, options.lifetime));
        let moved_on = AtomicBool::new(false);
        let committed = manifests.commit(None, |manifest| {
            // Derived from exactly the pinned version: what a collector has dropped since is not there any more (I7).
            let changed = match manifest == latest {
                true => Ok(with_checkpoint(pinned.clone(), listed.clone())),
                false if is_on(Mutant::CheckpointNotOfItsVersion) => Ok(with_checkpoint(manifest, listed.clone())),
                false => {
                    moved_on.store(true, Ordering::Relaxed);
                    Err(Error::Contention { shard: shard.id(), attempts: 1 })
                }
            };
            std::future::ready(changed)
        });
        match committed.await {
            Ok(_) => return Ok(listed),
            // What is there tells, in the next round. An object that is not listed is left to garbage collection, whose
            // rule is safe however long this process stalls (schedule 42).
            Err(Error::CommitUnknown { .. }) => unknown.push(listed),
            Err(_) if moved_on.load(Ordering::Relaxed) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Contention { shard: shard.id(), attempts: MAX_ROUNDS })
}

/// Sets a checkpoint's lifetime anew, counted from now; `None`: until it is deleted.
///
/// # Errors
/// [`Error::NoCheckpoint`] if it is not listed or has expired: what it held may be gone; [`Error::InvalidArgument`] for
/// the pin of a clone; [`Error::CommitUnknown`],
/// after which it may be called again.
pub async fn refresh(shard: &Shard, id: Uuid, lifetime: Option<Duration>) -> Result<Checkpoint> {
    let manifests = ManifestStore::new(shard.clone());
    let expires_at_ms = expiry(shard, lifetime);
    let committed = manifests.commit(None, |manifest| {
        let manifests = &manifests;
        async move {
            let mut next = inherit(shard, manifests, manifest).await?;
            let now = shard.store().surroundings().now();
            // Schedule 26: one that a collector has dropped, or may be dropping, does not come back.
            let found = extension(&mut next).checkpoints.iter_mut().find(|c| c.id == id);
            match found {
                Some(checkpoint) if checkpoint.is_pin => return Err(pin_of_a_clone(shard, id)),
                Some(checkpoint) if checkpoint.is_live(now) => checkpoint.expires_at_ms = expires_at_ms,
                Some(_) => return Err(Error::NoCheckpoint { shard: shard.id(), id, state: "has expired" }),
                None if is_on(Mutant::RefreshWithoutLook) => {
                    let again = listed_as(&read_object(shard, id).await?, expires_at_ms);
                    extension(&mut next).checkpoints.push(again);
                }
                None => return Err(Error::NoCheckpoint { shard: shard.id(), id, state: "is not listed" }),
            }
            Ok(next)
        }
    });
    let committed = committed.await?.manifest;
    let refreshed = committed.checkpoints().iter().find(|c| c.id == id).cloned();
    refreshed.ok_or(Error::NoCheckpoint { shard: shard.id(), id, state: "is not listed" })
}

fn pin_of_a_clone(shard: &Shard, id: Uuid) -> Error {
    let shard = shard.id();
    Error::InvalidArgument(format!("checkpoint {id} of shard {shard} is the pin of a clone; delete the clone"))
}

/// Deletes a checkpoint. What only it held goes with the next garbage collection: unlike one that expires, a checkpoint
/// that is deleted protects nothing any more, whoever reads it at the moment.
///
/// # Errors
/// [`Error::NoCheckpoint`] if it is not listed; [`Error::InvalidArgument`] for the pin of a clone;
/// [`Error::CommitUnknown`], after which it may be called again.
pub async fn delete(shard: &Shard, id: Uuid) -> Result<()> {
    let manifests = ManifestStore::new(shard.clone());
    let committed = manifests.commit(None, |manifest| {
        let manifests = &manifests;
        async move {
            let mut next = inherit(shard, manifests, manifest).await?;
            let checkpoints = &mut extension(&mut next).checkpoints;
            match checkpoints.iter().find(|c| c.id == id) {
                None => return Err(Error::NoCheckpoint { shard: shard.id(), id, state: "is not listed" }),
                Some(c) if c.is_pin => return Err(pin_of_a_clone(shard, id)),
                Some(_) => checkpoints.retain(|c| c.id != id),
            }
            Ok(next)
        }
    });
    committed.await?;
    // Unlisted now; if this fails, garbage collection finds it.
    let path = shard.checkpoint_path(id);
    if let Err(error) = shard.store().delete(&path).await {
        tracing::debug!(%path, %error, "a checkpoint's object is left to garbage collection");
    }
    Ok(())
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

fn refuse_deleted(shard: &Shard, manifest: &ShardManifest) -> Result<()> {
    match manifest.extension.as_ref().is_some_and(|x| x.deleted) {
        true => Err(Error::ShardClosed { shard: shard.id(), state: "deleted" }),
        false => Ok(()),
    }
}

/// The last position of the log above the manifest's R, and the sentinels and dead entries in between.
async fn tail(shard: &Shard, manifest: &ShardManifest) -> Result<(Position, Vec<Fence>)> {
    let mut tailer = WalTailer::after(shard.clone(), manifest);
    let (mut tail, mut met) = (manifest.replay_after, Vec::new());
    while let Some((kind, entry)) = tailer.next_any().await? {
        tail = entry.position;
        if kind != EntryKind::Rows {
            met.push(Fence { position: entry.position, epoch: entry.writer_epoch });
        }
    }
    Ok((tail, met))
}

fn of_moment(
    shard: &Shard,
    pinned: &ShardManifest,
    tail: Position,
    met: Vec<Fence>,
    options: &CheckpointOptions,
) -> ShardCheckpoint {
    let surroundings = shard.store().surroundings();
    let mut manifest = pinned.clone();
    extension(&mut manifest).add_fences(met);
    ShardCheckpoint {
        id: surroundings.fresh_id(),
        derived_from: pinned.version,
        manifest,
        tail,
        name: options.name.clone(),
        created_at_ms: millis(surroundings.now()),
        is_pin: false,
        unknown: Vec::new(),
    }
}

fn listed_as(object: &ShardCheckpoint, expires_at_ms: Option<u64>) -> Checkpoint {
    Checkpoint {
        id: object.id,
        name: object.name.clone(),
        created_at_ms: object.created_at_ms,
        expires_at_ms,
        replay_after: object.manifest.replay_after,
        tail: object.tail,
        version: object.manifest.version,
        is_pin: object.is_pin,
        unknown: Vec::new(),
    }
}

fn expiry(shard: &Shard, lifetime: Option<Duration>) -> Option<u64> {
    let lifetime = u64::try_from(lifetime?.as_millis()).unwrap_or(u64::MAX);
    Some(millis(shard.store().surroundings().now()).saturating_add(lifetime))
}

fn with_checkpoint(mut manifest: ShardManifest, checkpoint: Checkpoint) -> ShardManifest {
    extension(&mut manifest).checkpoints.push(checkpoint);
    manifest
}

fn extension(manifest: &mut ShardManifest) -> &mut Extension {
    manifest.extension.get_or_insert_with(Extension::default)
}
