//! Making a checkpoint: its object first, then a manifest that lists it and derives from exactly the version that it was
//! made for.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Checkpoint, CheckpointOptions, OWN_TABLE, ShardCheckpoint, codec, existing, expiry, extension, millis, read_object,
    refuse_unusable,
};
use crate::adopt::inherit;
use crate::error::{Error, Result};
use crate::ids::{ManifestVersion, Position};
use crate::liveness::EntryKind;
use crate::manifest::{Fence, HeldManifest, ManifestStore, ShardManifest};
use crate::mutants::{Mutant, is_on};
use crate::shard::Shard;
use crate::tailer::WalTailer;

/// How often a checkpoint is begun anew because others committed meanwhile.
const MAX_ROUNDS: usize = 64;

/// Pins the shard as its latest manifest and its log have it, without a writer: reads the log's tail, writes the
/// checkpoint's object, and commits a manifest that lists it. Nobody is fenced; rows that a writer has on the wire may
/// or may not be in.
///
/// # Errors
/// [`Error::ShardNotFound`], [`Error::ShardClosed`] for a shard that is being deleted, [`Error::CloneUnfinished`],
/// [`Error::Unadopted`] if another engine's manifests replaced all of ours; [`Error::LogHole`] and [`Error::Corrupt`] if the
/// log is damaged; [`Error::Contention`] if others commit faster than the tail can be read.
pub async fn create(shard: &Shard, options: &CheckpointOptions) -> Result<Checkpoint> {
    Ok(make(shard, options, Moment::Now).await?.0)
}

/// As [`create`], with what it has pinned: what [`read`](super::read) would find.
///
/// # Errors
/// As [`create`].
pub async fn create_and_read(shard: &Shard, options: &CheckpointOptions) -> Result<(Checkpoint, ShardCheckpoint)> {
    let (listed, object) = make(shard, options, Moment::Now).await?;
    let object = match object {
        Some(object) => *object,
        None => super::read(shard, listed.id).await?,
    };
    Ok((listed, object))
}

/// Makes another checkpoint of the moment that one has pinned, with a lifetime of its own.
///
/// # Errors
/// [`Error::NoCheckpoint`] if it is not listed or has expired: what it held may be gone; otherwise as [`create`].
pub async fn copy(shard: &Shard, source: Uuid, options: &CheckpointOptions) -> Result<Checkpoint> {
    Ok(make(shard, options, Moment::Of(source)).await?.0)
}

/// Pins the moment of a checkpoint for the shard of a clone, until that [`release`](super::release)s it. The pin is found again
/// by the clone's name, so that a repeated call makes no second one, also when the checkpoint is gone by then.
///
/// # Errors
/// As [`copy`].
pub async fn pin(shard: &Shard, source: Uuid, clone: &Shard) -> Result<Checkpoint> {
    let options = CheckpointOptions { name: Some(clone.id().to_string()), ..CheckpointOptions::default() };
    Ok(make(shard, &options, Moment::For { clone, source }).await?.0)
}

/// What is pinned.
#[derive(Clone, Copy)]
enum Moment<'a> {
    /// The latest manifest and the log behind it.
    Now,
    /// What a checkpoint has pinned.
    Of(Uuid),
    /// The same, for a clone.
    For { clone: &'a Shard, source: Uuid },
}

/// What a round finds.
enum Found {
    /// This object is to be listed, if nobody commits before.
    Pin(Box<ShardCheckpoint>),
    /// It was made before.
    Made(Box<Checkpoint>),
    /// Somebody has moved R: look again.
    Moved,
}

impl Moment<'_> {
    async fn find(self, shard: &Shard, latest: &ShardManifest, options: &CheckpointOptions) -> Result<Found> {
        let object = |manifest, tail| Box::new(object_of(shard, manifest, latest.version, tail, options));
        match self {
            // I9: nothing above R is deleted while this version is the latest, and the commit fails otherwise.
            Moment::Now => match tail(shard, latest).await {
                Err(Error::Behind { .. }) => Ok(Found::Moved),
                Err(error) => Err(error),
                Ok((tail, met)) => {
                    let mut manifest = latest.clone();
                    let fences = extension(&mut manifest);
                    // I1: in (R, T] exactly what was met. A fence there that an adoption has listed to be on the safe side may have rows.
                    fences.fences.retain(|fence| fence.position <= latest.replay_after || fence.position > tail);
                    fences.add_fences(met);
                    Ok(Found::Pin(object(manifest, tail)))
                }
            },
            Moment::Of(source) => {
                let source = live(shard, latest, source).await?;
                Ok(Found::Pin(object(source.manifest, source.tail)))
            }
            Moment::For { clone, source } => {
                let is_its = |c: &&Checkpoint| c.is_pin && c.name == options.name;
                if let Some(made) = latest.checkpoints().iter().find(is_its) {
                    return Ok(Found::Made(Box::new(made.clone())));
                }
                let source = live(shard, latest, source).await?;
                let holder = match clone.store().is_same_place(shard.store()) {
                    true => Some(OWN_TABLE.to_owned()),
                    false => Some(clone.store().url().to_string()),
                };
                let object = ShardCheckpoint { is_pin: true, holder, ..*object(source.manifest, source.tail) };
                Ok(Found::Pin(Box::new(object)))
            }
        }
    }
}

/// Pins a moment, and looks for it again if somebody else was faster. With its object, if that was written by the attempt that succeeded.
async fn make(
    shard: &Shard,
    options: &CheckpointOptions,
    moment: Moment<'_>,
) -> Result<(Checkpoint, Option<Box<ShardCheckpoint>>)> {
    let manifests = ManifestStore::new(shard.clone());
    let mut unknown: Vec<Checkpoint> = Vec::new();
    for _ in 0..MAX_ROUNDS {
        let since = Instant::now();
        let latest = existing(shard, manifests.latest_certain().await?)?;
        let pinned = inherit(shard, &manifests, latest.clone()).await?;
        // An earlier round whose answer was lost, and which landed; also if another engine has dropped our fields since.
        if let Some(landed) = unknown.iter().find(|made| pinned.checkpoints().iter().any(|c| c.id == made.id)) {
            return Ok((landed.clone(), None));
        }
        refuse_unusable(shard, &pinned)?;
        let checkpoint = match moment.find(shard, &pinned, options).await? {
            Found::Pin(checkpoint) => checkpoint,
            Found::Made(made) => return Ok((*made, None)),
            Found::Moved => continue,
        };
        write(shard, &checkpoint).await?;

        let listed = listed_as(&checkpoint, expiry(shard, options.lifetime));
        let moved_on = AtomicBool::new(false);
        // Section 3: it may derive from what was read, and has to here.
        let held = HeldManifest::read_since(latest.clone(), since);
        let committed = manifests.commit(Some(held), |manifest| {
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
            Ok(_) => return Ok((listed, Some(checkpoint))),
            // What is there tells, in the next round. An object that is not listed is left to garbage collection, whose
            // rule is safe however long this process stalls (schedule 42).
            Err(Error::CommitUnknown { .. }) => unknown.push(listed),
            Err(_) if moved_on.load(Ordering::Relaxed) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Contention { shard: shard.id(), attempts: MAX_ROUNDS })
}

/// Writes the object, which nothing lists yet.
pub(crate) async fn write(shard: &Shard, checkpoint: &ShardCheckpoint) -> Result<()> {
    let path = shard.checkpoint_path(checkpoint.id);
    shard.store().create_own(&path, Bytes::from(codec::encode(checkpoint))).await
}

/// The content of a checkpoint that `latest` lists and that has not expired. Nothing of it is collected as long as that is the
/// latest manifest.
async fn live(shard: &Shard, latest: &ShardManifest, id: Uuid) -> Result<ShardCheckpoint> {
    let no = |state| Error::NoCheckpoint { shard: shard.id(), id, state };
    let listed = latest.checkpoints().iter().find(|c| c.id == id).ok_or_else(|| no("is not listed"))?;
    match listed.is_live(shard.store().surroundings().now()) {
        true => read_object(shard, id).await,
        false => Err(no("has expired")),
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

/// The object of a checkpoint that pins a manifest and the log behind it up to `tail`. Only a manifest that derives from
/// `derived_from` may list it first.
pub(crate) fn object_of(
    shard: &Shard,
    manifest: ShardManifest,
    derived_from: ManifestVersion,
    tail: Position,
    options: &CheckpointOptions,
) -> ShardCheckpoint {
    let surroundings = shard.store().surroundings();
    ShardCheckpoint {
        id: surroundings.fresh_id(),
        derived_from,
        manifest,
        tail,
        name: options.name.clone(),
        created_at_ms: millis(surroundings.now()),
        is_pin: false,
        table: options.table,
        holder: None,
        unknown: Vec::new(),
    }
}

pub(crate) fn listed_as(object: &ShardCheckpoint, expires_at_ms: Option<u64>) -> Checkpoint {
    Checkpoint {
        id: object.id,
        name: object.name.clone(),
        created_at_ms: object.created_at_ms,
        expires_at_ms,
        replay_after: object.manifest.replay_after,
        tail: object.tail,
        version: object.manifest.version,
        is_pin: object.is_pin,
        table: object.table,
        holder: object.holder.clone(),
        unknown: Vec::new(),
    }
}

pub(crate) fn with_checkpoint(mut manifest: ShardManifest, checkpoint: Checkpoint) -> ShardManifest {
    extension(&mut manifest).checkpoints.push(checkpoint);
    manifest
}
