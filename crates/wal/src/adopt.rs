//! Going on after another engine wrote to a shard (protocol section 11). Lance's rewrite of a manifest drops our
//! fields: a claim takes them from an older version, and an operator's [`adopt`] finds the fences that were made
//! without us. Nobody is fenced here, and no rows are judged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectMeta;
use uuid::Uuid;

use crate::checkpoint;
use crate::entry::{EntryHead, TRAILER_BYTES, decode, ends_with_trailer};
use crate::error::{Error, Result};
use crate::ids::{Epoch, ManifestVersion, Position};
use crate::log::Log;
use crate::manifest::{Extension, Fence, ManifestStore, ShardManifest};
use crate::names;
use crate::shard::Shard;

/// Requests that run at once.
const READS_AT_ONCE: usize = 16;
/// Of a larger entry only this much is read: what it says of itself stands in front of its rows.
const HEAD_BYTES: u64 = 64 << 10;
/// How often a commit whose outcome is unknown is begun anew.
const MAX_ROUNDS: usize = 4;

/// What [`adopt()`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adopted {
    /// The manifest version that records it; `None` if there was nothing to adopt.
    pub version: Option<ManifestVersion>,
    /// The fences that the manifest gained, in order of position.
    pub fences: Vec<Fence>,
}

/// Makes a shard that another engine wrote to Fencepost's again: every fence sentinel and every dead entry that stands
/// in its log becomes one of the manifest's fences, and garbage collection may go on. If another engine's manifests
/// are all that is left, our fields are begun anew, with every checkpoint whose object is there, none of which expires.
///
/// It reads the first 64 KiB of every WAL object, commits one manifest, and may run beside a writer of either engine:
/// no epoch is claimed, nobody is fenced. With nothing to adopt it writes nothing.
///
/// # Errors
/// [`Error::ShardNotFound`]; [`Error::Corrupt`] if an object in the log is damaged; [`Error::Contention`] if others
/// commit faster than it can read; [`Error::CommitUnknown`], after which it may simply be called again.
pub async fn adopt(shard: &Shard) -> Result<Adopted> {
    let manifests = ManifestStore::new(shard.clone());
    let heads = Heads { shard, known: Mutex::default() };
    let done_already = AtomicBool::new(false);
    let gained = Mutex::new(Vec::new());
    let mut rounds = 0;
    loop {
        rounds += 1;
        let committed = manifests.commit(None, |manifest| {
            let (manifests, heads, done_already, gained) = (&manifests, &heads, &done_already, &gained);
            async move {
                if manifest.collectable().is_ok() {
                    done_already.store(true, Ordering::Relaxed);
                    return Err(Error::InvalidArgument("there is nothing to adopt".into()));
                }
                let mut next = match manifest.extension {
                    Some(_) => manifest,
                    None => {
                        let older = manifests.last_with_extension(&manifest).await?;
                        let begun_anew = older.is_none();
                        let mut next = extended(manifest, older);
                        if begun_anew {
                            // I7: a checkpoint that somebody relies on is listed again before anything is collected.
                            let checkpoints = checkpoint::found(heads.shard).await?;
                            next.extension.get_or_insert_with(Extension::default).checkpoints = checkpoints;
                        }
                        next
                    }
                };
                let fences = heads.fences(&shard.log(&next).await?).await?;
                let extension = next.extension.get_or_insert_with(Extension::default);
                let before = extension.fences.clone();
                extension.add_fences(fences);
                extension.unadopted = false;
                let added = extension.fences.iter().filter(|fence| !before.contains(fence)).copied();
                *gained.lock().unwrap_or_else(PoisonError::into_inner) = added.collect();
                Ok(next)
            }
        });
        match committed.await {
            Ok(held) => {
                let fences = std::mem::take(&mut *gained.lock().unwrap_or_else(PoisonError::into_inner));
                return Ok(Adopted { version: Some(held.manifest.version), fences });
            }
            Err(_) if done_already.load(Ordering::Relaxed) => return Ok(Adopted::default()),
            // Adopting twice is adopting once, so it starts over from what is there.
            Err(Error::CommitUnknown { .. }) if rounds < MAX_ROUNDS => {}
            Err(error) => return Err(error),
        }
    }
}

/// The manifest that a claim derives from, with our fields: its own ones, or if another engine wrote it those of the
/// newest older version that has them. A shard without any of ours is the other engine's, and taken over as it is.
///
/// # Errors
/// [`Error::Unadopted`] if our fields are lost: the log or a checkpoint is ours, and no manifest that is left is.
pub(crate) async fn inherit(
    shard: &Shard,
    manifests: &ManifestStore,
    manifest: ShardManifest,
) -> Result<ShardManifest> {
    if manifest.extension.is_some() {
        return Ok(manifest);
    }
    let older = manifests.last_with_extension(&manifest).await?;
    if older.is_none() && has_objects_of_ours(shard).await? {
        return Err(Error::Unadopted {
            shard: shard.id(),
            reason: "another engine's manifests replaced all of Fencepost's, but it has a log or checkpoints of \
                     Fencepost's, and what these need is not known",
        });
    }
    Ok(extended(manifest, older))
}

/// Another engine's manifest with our fields as `older` has them.
fn extended(mut manifest: ShardManifest, older: Option<ShardManifest>) -> ShardManifest {
    // What this version says of it is not trusted, see `landed_up_to`. What we said holds on: nothing above R is ever
    // deleted.
    let landed = older.as_ref().map_or(Position::ZERO, ShardManifest::landed_up_to);
    manifest.last_seen = manifest.landed_up_to().max(landed);

    // `replay_after_epoch` stays as it was, a lower bound: R has only risen since, and the epochs of live entries never
    // decrease with position (I4). So no live entry above R is below it, and a start below the true one declares fewer
    // entries dead, never more: I1 holds. What it lets through is at most a straggler right behind R, which Lance shows
    // too. Not a bound are the manifest's `writer_epoch`, because whoever claimed it may have published only a part of
    // an older writer's entries, or none, and with it the acknowledged rest would be dead (schedule 18); and the highest
    // epoch found at or below R, because the sentinel of a claimant that never recorded it may stand in a hole there.
    if let Some(older) = &older {
        // I1: nor does it say which SSTables are elsewhere.
        for sstable in &mut manifest.sstables {
            let same = older.sstables.iter().find(|s| s.generation == sstable.generation && s.path == sstable.path);
            sstable.base = same.and_then(|s| s.base.clone());
        }
    }
    let mut extension = older.and_then(|m| m.extension).unwrap_or_default();
    extension.unadopted = true;
    // Neither is said by this version: the owner is not ours, and whether the tenure before ended cleanly is unknown.
    extension.writer_id = Uuid::nil();
    extension.closed_cleanly_epoch = Epoch::ZERO;
    manifest.extension = Some(extension);
    manifest
}

/// Whether Fencepost wrote to the shard: it alone has checkpoints, and its entries end with a trailer.
async fn has_objects_of_ours(shard: &Shard) -> Result<bool> {
    let store = shard.store();
    if !store.list(&shard.checkpoint_folder()).await?.is_empty() {
        return Ok(true);
    }
    let entries = listed(&Log::own(shard)).await?;
    let ours = stream::iter(entries).map(|(_, object)| async move {
        // By its extent: not every store can be asked for the last bytes of an object.
        let Some(start) = object.size.checked_sub(TRAILER_BYTES as u64) else {
            return Ok(false);
        };
        let last = store.get_range(&object.location, start..object.size).await?;
        let last = last.as_deref().and_then(|last| last.first_chunk());
        Ok::<_, Error>(last.is_some_and(|last| ends_with_trailer(object.size, last)))
    });
    let mut ours = ours.buffer_unordered(READS_AT_ONCE);
    while let Some(is_ours) = ours.try_next().await? {
        if is_ours {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn listed(log: &Log) -> Result<Vec<(Position, ObjectMeta)>> {
    let listed = log.store().list(log.folder()).await?;
    let position = |object: &ObjectMeta| names::parse(object.location.filename()?, names::ENTRY_SUFFIX);
    Ok(listed.into_iter().filter_map(|object| Some((Position::new(position(&object)?), object))).collect())
}

/// What stands in the log, as far as it was read. An entry never changes, so each is read once.
struct Heads<'a> {
    shard: &'a Shard,
    known: Mutex<BTreeMap<(Option<Uuid>, Position), EntryHead>>,
}

impl Heads<'_> {
    /// The sentinels and the dead entries that stand in the log now, also at or below R.
    ///
    /// It must be asked anew for each manifest that a commit is derived from. Then it has every one of them at or
    /// below that manifest's R, because R rises over occupied positions only; a scan from before may miss the sentinel
    /// of a Lance claimant that has flushed since. Those above R are recorded by the next claim anyway (I7). What lands
    /// later at or below R lands in a hole that was collected, where nothing was needed.
    async fn fences(&self, log: &Log) -> Result<Vec<Fence>> {
        let mut entries = listed(log).await?;
        entries.sort_unstable_by_key(|(position, _)| *position);
        let unread: Vec<_> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            entries.iter().filter(|(position, _)| !known.contains_key(&(log.id(), *position))).cloned().collect()
        };
        let mut reads = stream::iter(unread)
            .map(|(position, object)| async move { Ok((position, read_head(log, position, &object).await?)) })
            .buffer_unordered(READS_AT_ONCE);
        while let Some((position, head)) = reads.try_next().await? {
            if let Some(head) = head {
                self.known.lock().unwrap_or_else(PoisonError::into_inner).insert((log.id(), position), head);
            }
        }
        drop(reads);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut highest = Epoch::ZERO;
        let mut fences = Vec::new();
        for (position, _) in &entries {
            // Absent: it was deleted since the LIST.
            let Some(head) = known.get(&(log.id(), *position)) else { continue };
            // One too many is left for ever, one too few lets a stalled writer acknowledge what is not there (I3).
            if head.is_sentinel || head.writer_epoch < highest {
                fences.push(Fence { position: *position, epoch: head.writer_epoch });
            }
            highest = highest.max(head.writer_epoch);
        }
        Ok(fences)
    }
}

async fn read_head(log: &Log, position: Position, object: &ObjectMeta) -> Result<Option<EntryHead>> {
    let (store, path) = (log.store(), &object.location);
    if object.size > HEAD_BYTES {
        let Some(first) = store.get_range(path, 0..HEAD_BYTES).await? else {
            return Ok(None);
        };
        if let Some(head) = EntryHead::peek(path.as_ref(), first)? {
            return Ok(Some(head));
        }
    }
    let Some(bytes) = store.get(path).await? else {
        return Ok(None);
    };
    decode(path.as_ref(), position, &bytes).map(|entry| Some(entry.head()))
}
