//! What each plot does with a request: which it holds back, and until when.

use std::sync::Arc;
use std::time::Duration;

use super::super::process::{Process, Role};
use super::super::world::{Event, Request};
use super::{Lure, Plan, Trap};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Schedules 17, 28, 42 and 43: a manifest comes back, and somebody else stands just there.
pub(super) fn forgotten(process: &Arc<Process>, request: &Request, version: u64) -> Option<Plan> {
    let (comes_back, one_before) = {
        let state = process.world.state();
        let wait = &state.lying_in_wait;
        (wait.has(Lure::Manifest, version), wait.has(Lure::Manifest, version.saturating_sub(1)))
    };
    if process.is_steady {
        return None;
    }
    let pruned = |process: &Process| version + process.roll(|dice| dice.below(3));
    // A claim is held back while there is an owner to be deceived by it.
    let is_claim = !process.owns() && process.world.state().owner.is_some();
    // Writers have most to lose.
    let chance = |writer: f64, other: f64| process.chance(if process.role == Role::Writer { writer } else { other });
    match request {
        Request::Create(_) if one_before && chance(0.7, 0.3) => {
            let trap = Trap::set(process, Lure::Manifest, version);
            Some(Plan::StallBefore(Event::CameBackAt, version - 1, Some(trap)))
        }
        Request::Create(_) if comes_back && chance(0.7, 0.2) => {
            Some(Plan::LoseAnswerAndStall(Event::CameBackAt, version, None))
        }
        Request::Create(_) if chance(if is_claim { process.world.habits.held_claims } else { 0.08 }, 0.03) => {
            let trap = Trap::set(process, Lure::Manifest, version);
            Some(Plan::StallBefore(Event::PrunedUpTo, pruned(process), Some(trap)))
        }
        Request::Create(_) if chance(0.08, 0.03) => {
            let trap = Trap::set(process, Lure::Manifest, version);
            Some(Plan::LoseAnswerAndStall(Event::PrunedUpTo, pruned(process), Some(trap)))
        }
        Request::Get if comes_back && may_stall_over_newest(process, version) && chance(0.9, 0.3) => {
            Some(Plan::StallBefore(Event::CameBackAt, version, None))
        }
        _ => None,
    }
}

/// A stall here costs something: the version is the newest one. Of writers, one that owns the shard and is suspended with
/// its clock, so that it does not see how long it was.
fn may_stall_over_newest(process: &Process, version: u64) -> bool {
    let is_newest = process.world.state().oracle.newest_version() == version;
    is_newest && (process.role != Role::Writer || (process.sleeps_through_stalls && process.owns()))
}

/// Schedules 14, 15 and 41: what a dead writer has on the wire lands in front of its successor's entries.
pub(super) fn straggling(process: &Arc<Process>, request: &Request, position: u64) -> Option<Plan> {
    let (is_awaited, comes_again) = {
        let wait = &process.world.state().lying_in_wait;
        (wait.has(Lure::Straggler, position), wait.has(Lure::Copy, position))
    };
    // Given up sooner, a request that hangs would be sent again.
    let is_patient = process.patience > DAY;
    match request {
        // Most wait for rows: what lands in front of a sentinel is only read.
        Request::Create(_) if is_awaited && !process.has_owned() && process.chance(0.7) => None,
        Request::Create(_) if is_awaited => {
            process.world.happened(Event::AwaitedAt, position);
            if process.chance(0.4) {
                Some(Plan::StallBefore(Event::CollectedUpTo, position, None))
            } else if process.chance(0.4) {
                Some(Plan::LandAt(Event::CollectedUpTo, position, Trap::set(process, Lure::Copy, position)))
            } else {
                None
            }
        }
        Request::Create(_) if process.entries_on_the_wire() > 0 && is_patient && process.chance(0.04) => {
            Some(Plan::HangUntil(Event::AwaitedAt, position, Some(Trap::set(process, Lure::Straggler, position))))
        }
        Request::Create(_) if process.entries_on_the_wire() > 1 && process.chance(0.05) => Some(Plan::Die),
        Request::Get if comes_again && process.role == Role::Follower && process.chance(0.8) => {
            Some(Plan::StallBefore(Event::ReturnedAt, position, None))
        }
        _ => None,
    }
}

/// Schedules 1, 2 and 13: an entry arrives when nothing stands at its position any more, unless a fence does.
pub(super) fn collected(process: &Arc<Process>, request: &Request, position: u64) -> Option<Plan> {
    match request {
        Request::Create(_) if process.chance(0.1) => Some(Plan::StallBefore(Event::CollectedUpTo, position, None)),
        Request::Create(_) if process.patience > DAY && process.chance(0.1) => {
            Some(Plan::HangUntil(Event::CollectedUpTo, position, None))
        }
        _ => None,
    }
}

/// Schedule 26: a keeper has found its checkpoint alive, and commits when a collector has found it expired.
pub(super) fn expired(process: &Arc<Process>, request: &Request) -> Option<Plan> {
    let next = process.world.events(Event::CheckpointDeleted) + 1;
    match request {
        Request::Create(_) if process.refreshes() && process.chance(0.6) => {
            Some(Plan::StallBefore(Event::CheckpointDeleted, next, None))
        }
        _ => None,
    }
}

/// Schedule 45, its first half: of two entries on the wire, a successor's sentinel takes the position of the first and its
/// row that of the second; the second comes when that row has been collected, and a follower is just there.
pub(super) fn zombies(process: &Arc<Process>, request: &Request, position: u64) -> Option<Plan> {
    let (is_awaited, is_second, is_first) = {
        let wait = &process.world.state().lying_in_wait;
        let is_first = wait.from(Lure::Copy, 0).is_none() && wait.from(Lure::First, 0).is_none();
        (wait.has(Lure::Copy, position), wait.has(Lure::First, position.saturating_sub(1)), is_first)
    };
    // Given up sooner, it would be sent again.
    let is_patient = process.patience > DAY;
    // It is there, or goes there in one step from the sentinel before it.
    let before = position.saturating_sub(1);
    let is_there =
        process.is_at(position) || (process.is_at(before) && process.world.has_happened(Event::LandedAt, before));
    match request {
        Request::Create(_) if process.owns() && is_second && !is_awaited => {
            Some(Plan::HangUntil(Event::CollectedAt, position, Some(Trap::set(process, Lure::Copy, position))))
        }
        // Not in the serial zone: there is no second then.
        Request::Create(_) if is_first && is_patient && process.entries_on_the_wire() > 0 && process.chance(0.2) => {
            Some(Plan::HangUntil(Event::CollectedAt, position, Some(Trap::set(process, Lure::First, position))))
        }
        Request::Get if is_awaited && process.role == Role::Follower && is_there => {
            Some(Plan::StallBefore(Event::ReturnedAt, position, None))
        }
        _ => None,
    }
}

/// Its second half: R passes that position with just the manifest in whose place another will come; the follower has listed
/// it, and is suspended until that one is there; nobody raises R meanwhile.
pub(super) fn suspended(process: &Arc<Process>, request: &Request, version: u64) -> Option<Plan> {
    let (comes_back, flush_waits, stays, zombie_is_near, replay_after, is_newest) = {
        let state = process.world.state();
        let wait = &state.lying_in_wait;
        let newest = state.oracle.newest_version();
        // R has passed the zombie's position, and nobody has come back from that yet.
        let passed = wait.from(Lure::Copy, 0).is_some_and(|lowest| lowest <= state.oracle.replay_after());
        let stays = Some(newest).filter(|newest| passed && wait.has(Lure::Manifest, *newest));
        (
            wait.has(Lure::Manifest, version),
            wait.has(Lure::Flush, version),
            wait.from(Lure::Listed, 0).or(stays),
            wait.copy_behind(state.oracle.replay_after()).is_some(),
            state.oracle.replay_after(),
            newest == version,
        )
    };
    match (request, process.role) {
        (Request::Create(_), Role::Writer) if stays.is_some() => {
            stays.map(|newest| Plan::StallBefore(Event::CameBackAt, newest, None))
        }
        (Request::Create(_), Role::Writer) if zombie_is_near && !comes_back && process.owns() => {
            Some(Plan::StallBefore(Event::HeldAt, version, Some(Trap::set(process, Lure::Flush, version))))
        }
        (Request::Create(_), Role::Keeper) if flush_waits && !process.is_steady => {
            let trap = Trap::set(process, Lure::Manifest, version);
            process.world.happened(Event::HeldAt, version);
            Some(Plan::StallBefore(Event::PrunedUpTo, version, Some(trap)))
        }
        (Request::Get, Role::Follower) if comes_back && is_newest && process.is_behind(replay_after) => {
            let trap = Trap::set(process, Lure::Listed, version);
            Some(Plan::StallBefore(Event::CameBackAt, version, Some(trap)))
        }
        _ => None,
    }
}

/// Sentinels that a claimant puts side by side land after entries of a writer that goes on, and the last of what that
/// writer has on the wire lands in front of the claimant's own entries.
pub(super) fn between(process: &Arc<Process>, request: &Request, position: u64) -> Option<Plan> {
    let Request::Create(_) = request else {
        return None;
    };
    let (is_awaited, range, has_owner) = {
        let state = process.world.state();
        let wait = &state.lying_in_wait;
        (wait.has(Lure::Straggler, position), wait.from(Lure::Range, 0), state.owner.is_some())
    };
    let on_the_wire = process.entries_on_the_wire() as u64;
    match range {
        _ if is_awaited && process.has_owned() => {
            process.world.happened(Event::AwaitedAt, position);
            None
        }
        _ if !process.has_owned() && has_owner && on_the_wire < 6 => {
            let trap = Trap::set(process, Lure::Range, position.saturating_sub(on_the_wire));
            Some(Plan::HangUntil(Event::LandedAt, position, Some(trap)))
        }
        Some(first) if process.has_owned() && position > first + fencepost_wal::MAX_IN_FLIGHT => {
            Some(Plan::HangUntil(Event::AwaitedAt, position, Some(Trap::set(process, Lure::Straggler, position))))
        }
        _ => None,
    }
}

/// Schedule 29: an entry arrives when the store was wiped that had the successor's sentinel at its position. (It is not
/// wiped as long as that is a fence.)
pub(super) fn wiped(process: &Arc<Process>, request: &Request, position: u64) -> Option<Plan> {
    match request {
        Request::Create(_) if process.owns() && process.chance(0.15) => {
            Some(Plan::StallBefore(Event::CollectedAt, position, None))
        }
        _ => None,
    }
}
