//! Moving the log to another store (protocol section 10), and going on without a WAL store that is gone.

use std::collections::BTreeSet;

use super::{Claim, Reading};
use crate::error::{Error, Outcome, Result};
use crate::ids::{Epoch, Position};
use crate::liveness::MAX_IN_FLIGHT;
use crate::log::Log;
use crate::manifest::{Extension, HeldManifest, ManifestStore, ShardManifest};
use crate::mutants::{Mutant, is_on};
use crate::names;
use crate::shard::Shard;
use crate::slot::read_entry;
use crate::wal_store::{WalStoreRef, identify, read_identity};

/// Where the log of the manifest that a claim derives from is. If its WAL store is gone and nothing of it is needed, or
/// the caller gives up what was in it, `next` goes on elsewhere: in the store that was given, or in the table's own.
///
/// # Errors
/// [`Error::WalStoreMissing`], [`Error::WalStoreMismatch`]; [`Error::WalStoreInUse`]; what is wrong with the store that was given.
pub(super) async fn find_log(shard: &Shard, next: &mut ShardManifest, abandon: bool) -> Result<Log> {
    if let Some(given) = shard.given_wal_store().filter(|_| !shard.log_stays(next)) {
        // Before anybody is fenced for it. It gets an identity only when the log goes there: a store that was wiped is not to
        // look like another one.
        read_identity(given).await?;
    }
    match shard.recorded_log(next).await {
        Err(Error::WalStoreMissing { .. } | Error::WalStoreMismatch { .. }) if abandon || next.needs_no_wal_store() => {
        }
        found => return found,
    }
    let wanted = match shard.given_wal_store() {
        Some(given) => Some(identify(given).await?),
        None => None,
    };
    // What landed there and was not flushed is given up; if nothing of it is needed, there was nothing. Positions count on.
    next.replay_after = next.replay_after.max(next.landed_up_to());
    let (replay_after, epoch) = (next.replay_after, next.writer_epoch.next()?);
    let extension = next.extension.get_or_insert_with(Extension::default);
    // I4: every entry of a tenure up to now is dead, should one come.
    extension.replay_after_epoch = extension.replay_after_epoch.max(epoch);
    // Those that stood in the lost store are gone with it.
    let lost_behind = extension.wal_store.as_ref().map_or(Position::ZERO, |lost| lost.after);
    extension.fences.retain(|fence| fence.position <= lost_behind);
    extension.wal_store = wanted.map(|wanted| WalStoreRef { after: replay_after, ..wanted });
    let log = shard.log(next).await?;
    refuse_in_use(shard, &log, replay_after, epoch).await?;
    Ok(log)
}

/// The last step of opening: if the log is not where the caller wants it and nothing above R has rows, it goes on there,
/// behind `last`, up to which everything has landed where it is. A stalled writer of before collides with our sentinel in
/// the old store, which is recorded (I3, schedule 19), or the tenure before closed cleanly.
///
/// # Errors
/// [`Error::WalStoreInUse`]; [`Error::Fenced`].
pub(super) async fn relocate(
    shard: &Shard,
    manifests: &ManifestStore,
    claim: &Claim,
    last: Position,
    reading: &Reading<'_>,
    record: HeldManifest,
) -> Result<(HeldManifest, Log)> {
    let stays = || Ok((record.clone(), claim.log.clone()));
    let Some(given) = shard.given_wal_store() else {
        return stays();
    };
    let is_there = claim.log.id().is_some() && read_identity(given).await? == claim.log.id();
    if is_there || shard.log_stays(&record.manifest) {
        return stays();
    }
    if reading.rows_in_log > 0 && !is_on(Mutant::StoreChangedWithLiveRows) {
        tracing::warn!(
            shard = %shard.id(), rows = reading.rows_in_log, to = %given.url(),
            "the log stays where it is until an open finds no rows above R in it",
        );
        return stays();
    }
    let wanted = WalStoreRef { after: last, ..identify(given).await? };
    let log = Log::in_wal_store(shard, given.clone(), wanted.clone());
    refuse_in_use(shard, &log, last, claim.identity.epoch).await?;
    let epoch = reading.liveness.highest_at_or_below(last);
    let moved = manifests.commit(Some(record.clone()), |mut next| {
        let (by, owned) = (next.writer_epoch, next.is_owned_by(&claim.identity));
        // I5: R rises over sentinels and dead entries only.
        next.replay_after = next.replay_after.max(last);
        let extension = next.extension.get_or_insert_with(Extension::default);
        extension.replay_after_epoch = extension.replay_after_epoch.max(epoch);
        extension.wal_store = Some(wanted.clone());
        std::future::ready(match owned {
            true => Ok(next),
            // I3.
            false => {
                Err(Error::Fenced { shard: shard.id(), epoch: claim.identity.epoch, by, outcome: Outcome::NotWritten })
            }
        })
    });
    Ok((moved.await?, log))
}

/// Where the log is to go on, nothing may stand behind `position`, except what the serial zone goes around: dead entries within
/// [`MAX_IN_FLIGHT`] (stragglers of when the log was there before).
async fn refuse_in_use(shard: &Shard, log: &Log, position: Position, epoch: Epoch) -> Result<()> {
    let listed = log.store().list(log.folder()).await?;
    let positions = listed.iter().filter_map(|o| names::parse(o.location.filename()?, names::ENTRY_SUFFIX));
    let behind: BTreeSet<u64> = positions.filter(|at| *at > position.get()).collect();
    for at in behind.into_iter().map(Position::new) {
        let in_zone = at.get() - position.get() <= MAX_IN_FLIGHT;
        let is_dead = in_zone && read_entry(log, at).await?.is_none_or(|entry| entry.writer_epoch < epoch);
        if !is_dead {
            return Err(Error::WalStoreInUse {
                shard: shard.id(),
                url: log.store().url().to_string(),
                position,
                object: log.entry_path(at).to_string(),
            });
        }
    }
    Ok(())
}
