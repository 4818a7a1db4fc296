//! An adversary that knows what is on the wire. Chance hardly ever brings three rare things together at one object; this
//! one sees the first of them and provokes the others: it holds a PUT back until its name has been forgotten, lets
//! another process stall over just that name, and a straggler land just in front of the PUT that is sent to its position.
//!
//! It does nothing that the store and the processes of section 1 could not do: it only chooses when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::habits::Plot;
use super::process::{Process, Role};
use super::world::{Event, ObjectKind, Request};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// PUTs that come when it hurts, by object, and how many of them.
#[derive(Debug, Default)]
pub(crate) struct LyingInWait {
    /// Manifests whose PUT is sent, perhaps once more, when the version has been pruned.
    manifests: BTreeMap<u64, u32>,
    /// Entries that land when somebody else's PUT to their position is sent.
    stragglers: BTreeMap<u64, u32>,
    /// Second copies of entries, which land once the position has been collected.
    copies: BTreeMap<u64, u32>,
}

/// One of those, for as long as it is under way.
#[derive(Debug)]
pub(crate) struct Trap {
    process: Arc<Process>,
    list: fn(&mut LyingInWait) -> &mut BTreeMap<u64, u32>,
    number: u64,
}

impl Trap {
    fn set(process: &Arc<Process>, list: fn(&mut LyingInWait) -> &mut BTreeMap<u64, u32>, number: u64) -> Self {
        *list(&mut process.world.state().lying_in_wait).entry(number).or_default() += 1;
        Self { process: Arc::clone(process), list, number }
    }

    /// A straggler at this position.
    pub(crate) fn straggler(process: &Arc<Process>, position: u64) -> Self {
        Self::set(process, |wait| &mut wait.stragglers, position)
    }

    /// A manifest that comes when its version has been pruned.
    fn manifest(process: &Arc<Process>, version: u64) -> Self {
        Self::set(process, |wait| &mut wait.manifests, version)
    }

    /// A second copy of an entry.
    fn copy(process: &Arc<Process>, position: u64) -> Self {
        Self::set(process, |wait| &mut wait.copies, position)
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        let mut state = self.process.world.state();
        let list = (self.list)(&mut state.lying_in_wait);
        if let Some(count) = list.get_mut(&self.number) {
            *count -= 1;
            if *count == 0 {
                list.remove(&self.number);
            }
        }
    }
}

/// What it makes of a request.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Its sender stalls before it is sent.
    StallBefore(Event, u64, Option<Trap>),
    /// It lands, its answer is lost, and its sender stalls before it hears of that.
    LoseAnswerAndStall(Event, u64, Option<Trap>),
    /// Its sender hears of a timeout; it lands when that has happened.
    LandAt(Event, u64, Trap),
    /// Nobody hears of it until that has happened; it lands then.
    HangUntil(Event, u64, Option<Trap>),
    /// The process dies with everything that it has on the wire.
    Die,
}

/// What becomes of a request that `process` is about to send; `None`: what the dice say.
pub(crate) fn plan(process: &Arc<Process>, request: &Request, kind: &ObjectKind) -> Option<Plan> {
    match (process.world.habits.plot?, kind) {
        (Plot::ForgottenManifests, ObjectKind::Manifest(version)) => forgotten(process, request, *version),
        (Plot::Stragglers, ObjectKind::Entry(position)) => straggling(process, request, *position),
        (Plot::Closes, ObjectKind::Entry(position)) => collected(process, request, *position),
        (Plot::Lifetimes, ObjectKind::Manifest(_)) => expired(process, request),
        _ => None,
    }
}

impl Plan {
    /// What it is called in a report, if what it waits for came.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::StallBefore(Event::PrunedUpTo, ..) => {
                "plots: a manifest's PUT held back until its version was pruned"
            }
            Self::LoseAnswerAndStall(Event::PrunedUpTo, ..) => {
                "plots: a manifest's PUT repeated when its version was pruned"
            }
            Self::StallBefore(_, _, Some(_)) => "plots: a commit upon a manifest that came back",
            Self::LoseAnswerAndStall(..) => "plots: a commit unanswered until another stood in its place",
            Self::StallBefore(Event::CheckpointDeleted, ..) => {
                "plots: a keeper's commit held back until a checkpoint's object went"
            }
            Self::StallBefore(Event::CameBackAt, ..) => "plots: a manifest's GET held back until another stood there",
            Self::StallBefore(Event::ReturnedAt, ..) => "plots: a follower held in front of a copy that returned",
            Self::StallBefore(..) => "plots: an entry's PUT held back until its position was collected",
            Self::HangUntil(Event::CollectedUpTo, ..) => {
                "plots: an entry's PUT on the wire until its position was collected"
            }
            Self::LandAt(..) => "plots: an entry's copy on the wire until its position was collected",
            Self::HangUntil(..) => "plots: an entry on the wire until a successor's PUT to its position",
            Self::Die => "plots: a death with a window on the wire",
        }
    }
}

/// Schedules 17, 28, 42 and 43: a manifest comes back, and somebody else stands just there.
fn forgotten(process: &Arc<Process>, request: &Request, version: u64) -> Option<Plan> {
    let (comes_back, one_before) = {
        let state = process.world.state();
        let manifests = &state.lying_in_wait.manifests;
        (manifests.contains_key(&version), manifests.contains_key(&version.saturating_sub(1)))
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
            let trap = Trap::manifest(process, version);
            Some(Plan::StallBefore(Event::CameBackAt, version - 1, Some(trap)))
        }
        Request::Create(_) if comes_back && chance(0.7, 0.2) => {
            Some(Plan::LoseAnswerAndStall(Event::CameBackAt, version, None))
        }
        Request::Create(_) if chance(if is_claim { process.world.habits.held_claims } else { 0.08 }, 0.03) => {
            let trap = Trap::manifest(process, version);
            Some(Plan::StallBefore(Event::PrunedUpTo, pruned(process), Some(trap)))
        }
        Request::Create(_) if chance(0.08, 0.03) => {
            let trap = Trap::manifest(process, version);
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
fn straggling(process: &Arc<Process>, request: &Request, position: u64) -> Option<Plan> {
    let (is_awaited, comes_again) = {
        let wait = &process.world.state().lying_in_wait;
        (wait.stragglers.contains_key(&position), wait.copies.contains_key(&position))
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
                Some(Plan::LandAt(Event::CollectedUpTo, position, Trap::copy(process, position)))
            } else {
                None
            }
        }
        Request::Create(_) if process.entries_on_the_wire() > 0 && is_patient && process.chance(0.04) => {
            Some(Plan::HangUntil(Event::AwaitedAt, position, Some(Trap::straggler(process, position))))
        }
        Request::Create(_) if process.entries_on_the_wire() > 1 && process.chance(0.05) => Some(Plan::Die),
        Request::Get if comes_again && process.role == Role::Follower && process.chance(0.8) => {
            Some(Plan::StallBefore(Event::ReturnedAt, position, None))
        }
        _ => None,
    }
}

/// Schedules 1, 2 and 13: an entry arrives when nothing stands at its position any more, unless a fence does.
fn collected(process: &Arc<Process>, request: &Request, position: u64) -> Option<Plan> {
    match request {
        Request::Create(_) if process.chance(0.1) => Some(Plan::StallBefore(Event::CollectedUpTo, position, None)),
        Request::Create(_) if process.patience > DAY && process.chance(0.1) => {
            Some(Plan::HangUntil(Event::CollectedUpTo, position, None))
        }
        _ => None,
    }
}

/// Schedule 26: a keeper has found its checkpoint alive, and commits when a collector has found it expired.
fn expired(process: &Arc<Process>, request: &Request) -> Option<Plan> {
    let next = process.world.events(Event::CheckpointDeleted) + 1;
    match request {
        Request::Create(_) if process.refreshes() && process.chance(0.6) => {
            Some(Plan::StallBefore(Event::CheckpointDeleted, next, None))
        }
        _ => None,
    }
}
