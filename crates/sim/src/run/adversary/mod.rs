//! An adversary that knows what is on the wire. Chance hardly ever brings three rare things together at one object; this
//! one sees the first of them and provokes the others: it holds a PUT back until its name has been forgotten, lets
//! another process stall over just that name, and a straggler land just in front of the PUT that is sent to its position.
//!
//! It does nothing that the store and the processes of section 1 could not do: it only chooses when.

mod plots;
mod shapes;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::habits::Plot;
use super::process::Process;
use super::world::{Event, ObjectKind, Request};

/// PUTs that come when it hurts, by object, and how many of them.
#[derive(Debug, Default)]
pub(crate) struct LyingInWait {
    /// Manifests whose PUT is sent, perhaps once more, when the version has been pruned.
    manifests: BTreeMap<u64, u32>,
    /// Entries that land when somebody else's PUT to their position is sent.
    stragglers: BTreeMap<u64, u32>,
    /// Entries, or second copies of them, which land once the position has been collected.
    copies: BTreeMap<u64, u32>,
    /// Entries that leave their position to a successor's sentinel.
    firsts: BTreeMap<u64, u32>,
    /// Manifests of flushes that wait until somebody else's commit of the same version is held back.
    flushes: BTreeMap<u64, u32>,
    /// Manifests that somebody listed, and will read when another has come in their place.
    listed: BTreeMap<u64, u32>,
    /// Ranges of sentinels, by their first position, some of which are held back so that entries come in between.
    ranges: BTreeMap<u64, u32>,
}

impl LyingInWait {
    /// The lowest position behind R for which an entry that never stood there lies in wait.
    pub(crate) fn copy_behind(&self, replay_after: u64) -> Option<u64> {
        self.copies.range(replay_after + 1..).next().map(|(position, _)| *position)
    }
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

    /// A manifest that was listed and will be read later.
    fn listed(process: &Arc<Process>, version: u64) -> Self {
        Self::set(process, |wait| &mut wait.listed, version)
    }

    /// An entry that leaves its position to a successor's sentinel.
    fn first(process: &Arc<Process>, position: u64) -> Self {
        Self::set(process, |wait| &mut wait.firsts, position)
    }

    /// A flush that waits for another's commit.
    fn flush(process: &Arc<Process>, version: u64) -> Self {
        Self::set(process, |wait| &mut wait.flushes, version)
    }

    /// A range of sentinels.
    fn range(process: &Arc<Process>, first: u64) -> Self {
        Self::set(process, |wait| &mut wait.ranges, first)
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
    use plots::*;
    match (process.world.habits.plot?, kind) {
        (Plot::ForgottenManifests, ObjectKind::Manifest(version)) => forgotten(process, request, *version),
        (Plot::Stragglers, ObjectKind::Entry(position)) => straggling(process, request, *position),
        (Plot::Closes, ObjectKind::Entry(position)) => collected(process, request, *position),
        (Plot::Lifetimes, ObjectKind::Manifest(_)) => expired(process, request),
        (Plot::Suspended, ObjectKind::Entry(position)) => zombies(process, request, *position),
        (Plot::Suspended, ObjectKind::Manifest(version)) => suspended(process, request, *version),
        (Plot::Ranges, ObjectKind::Entry(position)) => between(process, request, *position),
        (Plot::Wipes, ObjectKind::Entry(position)) => wiped(process, request, *position),
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
            Self::StallBefore(Event::CollectedAt, ..) => "plots: an entry's PUT held back until a fence might be wiped",
            Self::StallBefore(Event::HeldAt, ..) => "plots: a flush that waited until another's commit was held back",
            Self::StallBefore(_, _, Some(_)) => "plots: a commit upon a manifest that came back",
            Self::LoseAnswerAndStall(..) => "plots: a commit unanswered until another stood in its place",
            Self::StallBefore(Event::CheckpointDeleted, ..) => {
                "plots: a keeper's commit held back until a checkpoint's object went"
            }
            Self::StallBefore(Event::CameBackAt, ..) => "plots: a manifest's GET held back until another stood there",
            Self::StallBefore(Event::ReturnedAt, ..) => "plots: a follower held in front of a copy that returned",
            Self::HangUntil(Event::CollectedAt, ..) => {
                "plots: an entry on the wire until a successor's in its place was collected"
            }
            Self::HangUntil(Event::LandedAt, ..) => "plots: an entry that landed before a sentinel beside it",
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
