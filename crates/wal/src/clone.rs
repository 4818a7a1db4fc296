//! Cloning a shard (protocol section 10, steps 2 to 5): a shard of another id that begins with the moment of a checkpoint,
//! shares its SSTables, and has its own copy of the log behind R. Every step may be repeated after a crash, by
//! another process too, with the same result; until the last one is done the clone opens for nobody.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use crate::checkpoint::{self, ShardCheckpoint};
use crate::entry::{WriterIdentity, decode, encode_sentinel};
use crate::error::{Error, Result};
use crate::ids::{Epoch, Position};
use crate::log::Log;
use crate::manifest::{Extension, ManifestStore, Origin, ShardManifest, ShardPlace, ShardStatus, SsTable, SsTableBase};
use crate::shard::Shard;
use crate::slot::read_entry;
use crate::wal_store::{WalStoreRef, identify};

/// Entries that are copied at once.
const COPIES_AT_ONCE: usize = 16;

/// A shard and the checkpoint of it that is cloned.
#[derive(Debug, Clone)]
pub struct CloneSource {
    /// The shard. A WAL store that it was given is where its log is read from, if that is the recorded one.
    pub shard: Shard,
    /// What [`checkpoint::read`] found.
    pub checkpoint: ShardCheckpoint,
}

impl CloneSource {
    /// Reads a checkpoint to be cloned.
    ///
    /// # Errors
    /// As [`checkpoint::read`]; [`Error::InvalidArgument`] if a newer Fencepost wrote it.
    pub async fn read(shard: Shard, id: Uuid) -> Result<Self> {
        Self::of(shard.clone(), checkpoint::read(&shard, id).await?)
    }

    /// A checkpoint that was read, or made, to be cloned. Whether it is still listed is seen when it is [`pin`]ned.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a newer Fencepost wrote it.
    pub fn of(shard: Shard, checkpoint: ShardCheckpoint) -> Result<Self> {
        if checkpoint.has_unknown_fields() {
            let (id, shard) = (checkpoint.id, shard.id());
            return Err(Error::InvalidArgument(format!(
                "checkpoint {id} of shard {shard} was written by a newer Fencepost, which may refer to what this one does not \
                 know; clone it with that one"
            )));
        }
        Ok(Self { shard, checkpoint })
    }

    fn manifest(&self) -> &ShardManifest {
        &self.checkpoint.manifest
    }

    fn replay_after(&self) -> Position {
        self.manifest().replay_after
    }

    /// The source and the shards whose SSTables it shares.
    pub fn places(&self) -> Vec<ShardPlace> {
        let ancestors = self.manifest().origin().map_or(&[][..], |origin| &origin.pins);
        let mut seen = BTreeSet::new();
        let own = ShardPlace::of(&self.shard);
        let places = std::iter::once(own).chain(ancestors.iter().cloned());
        places.filter(|place| seen.insert(place.clone())).collect()
    }

    /// The SSTables, with the place of each.
    pub fn sstables(&self) -> Vec<SsTable> {
        let base = || SsTableBase { place: ShardPlace::of(&self.shard), filter: None, unknown: Vec::new() };
        let placed =
            |sstable: &SsTable| SsTable { base: Some(sstable.base.clone().unwrap_or_else(base)), ..sstable.clone() };
        self.manifest().sstables.iter().map(placed).collect()
    }

    /// The first manifest of a clone: not yet initialized, with the source's epoch, so that the first claim is above every
    /// entry that is copied, no fences, and no WAL store.
    pub fn first_manifest(&self, target: &Shard) -> ShardManifest {
        let source = self.manifest();
        let origin = Origin {
            place: ShardPlace::of(&self.shard),
            checkpoint: self.checkpoint.id,
            after: source.replay_after,
            initialized: false,
            pins: self.places(),
            unknown: Vec::new(),
        };
        ShardManifest {
            writer_epoch: source.writer_epoch,
            replay_after: source.replay_after,
            last_seen: source.replay_after,
            current_generation: source.current_generation,
            sstables: self.sstables(),
            extension: Some(Extension {
                replay_after_epoch: source.replay_after_epoch(),
                origin: Some(origin),
                ..Extension::default()
            }),
            ..ShardManifest::first(target.id(), source.shard_spec_id, source.shard_field_entries.clone())
        }
    }
}

/// The first manifest of a shard that shares SSTables of others of its own table and has a log of its own, empty: what a split or a
/// join makes. It takes no writer before it is unsealed.
///
/// # Errors
/// [`Error::InvalidArgument`] without a source.
pub fn manifest_of_parts(
    mut first: ShardManifest,
    sources: &[CloneSource],
    sstables: Vec<SsTable>,
) -> Result<ShardManifest> {
    let Some(source) = sources.first() else {
        return Err(Error::InvalidArgument(format!("shard {} is made of no other", first.shard_id)));
    };
    let mut seen = BTreeSet::new();
    let pins = sources.iter().flat_map(CloneSource::places).filter(|place| seen.insert(place.clone())).collect();
    first.status = ShardStatus::Sealed;
    if let Some(last) = sstables.last() {
        first.current_generation = last.generation.next()?;
    }
    first.sstables = sstables;
    let origin = Origin {
        place: ShardPlace::of(&source.shard),
        checkpoint: source.checkpoint.id,
        after: Position::ZERO,
        initialized: true,
        pins,
        unknown: Vec::new(),
    };
    first.extension.get_or_insert_with(Extension::default).origin = Some(origin);
    Ok(first)
}

/// Step 2: the clone's first manifest, unless it is there. What was begun by another run is gone on with.
///
/// # Errors
/// [`Error::InvalidArgument`] if a shard of that id is there that is no clone of the same checkpoint.
pub async fn begin(target: &Shard, first: ShardManifest) -> Result<()> {
    let manifests = ManifestStore::new(target.clone());
    let wanted = first.origin().map(|origin| (origin.place.clone(), origin.checkpoint));
    if manifests.initialize(first).await? {
        return Ok(());
    }
    let there = manifests.latest_existing().await?;
    if there.is_deleted() {
        return Err(Error::ShardClosed { shard: target.id(), state: "deleted" });
    }
    match there.origin().map(|origin| (origin.place.clone(), origin.checkpoint)) == wanted {
        true => Ok(()),
        false => Err(Error::InvalidArgument(format!(
            "shard {} at {} is there already, and is no clone of that checkpoint; choose another place, or delete it",
            target.id(),
            target.store().url()
        ))),
    }
}

/// Step 3: pins the source for the clone, and every shard whose SSTables it shares, each by the pin that the source has on it.
///
/// # Errors
/// [`Error::NoCheckpoint`] if the checkpoint is gone; [`Error::ShardClosed`] if the source is being deleted.
pub async fn pin(target: &Shard, source: &CloneSource) -> Result<()> {
    // Schedule 34: the source first. From then on it cannot be deleted, and so its own pins stay.
    checkpoint::pin(&source.shard, source.checkpoint.id, target).await?;
    for place in source.places().iter().skip(1) {
        let ancestor = place.open(source.shard.store())?;
        let name = source.shard.id().to_string();
        let pins = checkpoint::list(&ancestor, Some(&name)).await?;
        let held = pins.iter().find(|c| c.is_pin).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "shard {name} shares SSTables with shard {} at {}, and has no pin there: what it shares may be gone",
                place.shard_id, place.url
            ))
        })?;
        checkpoint::pin(&ancestor, held.id, target).await?;
    }
    Ok(())
}

/// Where a clone's log is, once it was copied.
#[derive(Debug, Clone)]
pub struct ClonedLog {
    log: Log,
    /// The last position of it.
    last: Position,
    /// Entries that were copied.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Step 4: copies the log's entries in (R, T] to the clone's own store, or to the WAL store that the handle of the clone was given,
/// at the same positions. One that is gone and is known to have held no rows becomes a sentinel, so that the copy has no hole;
/// if there is nothing to copy, a sentinel stands behind R, because Lance starts an empty log at position 1.
///
/// # Errors
/// [`Error::CheckpointLost`], which names the first position that is missing: rows would be lost.
pub async fn copy_log(target: &Shard, source: &CloneSource) -> Result<ClonedLog> {
    let replay_after = source.replay_after();
    let log = match target.given_wal_store() {
        Some(given) => {
            let wanted = WalStoreRef { after: replay_after, ..identify(given).await? };
            Log::in_wal_store(target, given.clone(), wanted)
        }
        None => Log::own(target),
    };
    let (first, tail) = (replay_after.next()?, source.checkpoint.tail);
    let mut copied = ClonedLog { log, last: replay_after, entries: 0, bytes: 0 };
    if tail < first {
        let epoch = source.manifest().writer_epoch;
        if epoch > Epoch::ZERO {
            copied.log.store().create_own(&copied.log.entry_path(first), sentinel(epoch)?).await?;
            copied.last = first;
        }
        return Ok(copied);
    }
    let from = match source.shard.recorded_log(source.manifest()).await {
        Err(error @ (Error::WalStoreMissing { .. } | Error::WalStoreMismatch { .. })) => Err(error),
        found => Ok(found?),
    };
    let positions = stream::iter(first.get()..=tail.get()).map(|n| {
        let (from, to) = (&from, &copied.log);
        let position = Position::new(n);
        async move {
            let bytes = entry_of(source, from, position).await?;
            let size = bytes.len() as u64;
            put_copy(source, to, position, bytes).await?;
            Ok::<_, Error>(size)
        }
    });
    // In order, so that it is the first one that is named.
    let sizes: Vec<u64> = positions.buffered(COPIES_AT_ONCE).try_collect().await?;
    copied.entries = sizes.len() as u64;
    copied.bytes = sizes.iter().sum();
    copied.last = tail;
    Ok(copied)
}

/// The bytes of an entry of the source's log, or of a sentinel in its place.
async fn entry_of(source: &CloneSource, from: &Result<Log>, position: Position) -> Result<Bytes> {
    let found = match from {
        Ok(log) => log.store().get(&log.entry_path(position)).await?,
        Err(_) => None,
    };
    let Some(bytes) = found else {
        // I1: only what is proven to have held no rows.
        return match checkpoint::proven_empty(&source.checkpoint, position) {
            Some(fence) => sentinel(fence.epoch),
            None => Err(checkpoint::lost(&source.shard, &source.checkpoint, position, from)),
        };
    };
    let object = from.as_ref().map_or_else(|_| String::new(), |log| log.entry_path(position).to_string());
    let entry = decode(&object, position, &bytes)?;
    // The clone's first claim must be above all of them.
    match entry.writer_epoch <= source.manifest().writer_epoch {
        true => Ok(bytes),
        false => Err(Error::corrupt(object, "its epoch is above that of the manifest that the checkpoint pinned")),
    }
}

/// Puts an entry of the copy. Where no rows ever stood, an earlier run may have put a sentinel because the entry was gone, or the entry
/// because it was there: both are as good.
async fn put_copy(source: &CloneSource, to: &Log, position: Position, bytes: Bytes) -> Result<()> {
    let path = to.entry_path(position);
    let put = to.store().create_own(&path, bytes).await;
    match (put, checkpoint::proven_empty(&source.checkpoint, position)) {
        (Err(Error::Corrupt { .. }), Some(fence)) => match read_entry(to, position).await? {
            Some(entry) if entry.writer_epoch == fence.epoch => to.store().settle(&path).await,
            _ => Err(Error::corrupt(path, "it is no copy of the source's entry")),
        },
        (put, _) => put,
    }
}

/// A sentinel of nobody, the same in every run.
fn sentinel(epoch: Epoch) -> Result<Bytes> {
    encode_sentinel(&WriterIdentity { epoch, writer_id: Uuid::nil() })
}

/// Step 5: the clone is there for everybody.
///
/// # Errors
/// [`Error::ShardClosed`] if it is being deleted; [`Error::CommitUnknown`], after which it may be called again.
pub async fn finish(target: &Shard, copied: &ClonedLog) -> Result<()> {
    let is_done = AtomicBool::new(false);
    let manifests = ManifestStore::new(target.clone());
    let committed = manifests.commit(None, |mut next| {
        let changed = match (next.is_deleted(), next.is_initialized()) {
            (true, _) => Err(Error::ShardClosed { shard: target.id(), state: "deleted" }),
            (_, true) => {
                is_done.store(true, Ordering::Relaxed);
                Err(Error::InvalidArgument("the clone is finished".into()))
            }
            (false, false) => {
                next.last_seen = next.last_seen.max(copied.last);
                let epoch = next.writer_epoch;
                let extension = next.extension.get_or_insert_with(Extension::default);
                // Nobody has ever written to it: nobody is left to collide.
                extension.closed_cleanly_epoch = epoch;
                extension.wal_store = copied.log.wal_store().cloned();
                if let Some(origin) = &mut extension.origin {
                    origin.initialized = true;
                }
                Ok(next)
            }
        };
        std::future::ready(changed)
    });
    match committed.await {
        Ok(_) => Ok(()),
        Err(_) if is_done.load(Ordering::Relaxed) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Steps 2 to 5: clones a shard whose id is fresh, or goes on where an earlier call stopped.
///
/// # Errors
/// Those of the steps; the call can be repeated.
pub async fn clone(target: &Shard, source: &CloneSource) -> Result<ClonedLog> {
    begin(target, source.first_manifest(target)).await?;
    pin(target, source).await?;
    let copied = copy_log(target, source).await?;
    finish(target, &copied).await?;
    Ok(copied)
}
