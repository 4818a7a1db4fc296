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

/// What somebody lies in wait with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lure {
    /// A manifest whose PUT is sent, perhaps once more, when the version has been pruned.
    Manifest,
    /// An entry that lands when somebody else's PUT to its position is sent.
    Straggler,
    /// An entry, or a second copy of it, which lands once the position has been collected.
    Copy,
    /// An entry that leaves its position to a successor's sentinel.
    First,
    /// The manifest of a flush that waits until somebody else's commit of the same version is held back.
    Flush,
    /// A manifest that somebody listed, and will read when another has come in its place.
    Listed,
    /// A range of sentinels, by its first position, some of which are held back so that entries come in between.
    Range,
}

/// What comes when it hurts, by version or position, and how many of each.
#[derive(Debug, Default)]
pub(crate) struct LyingInWait(BTreeMap<(Lure, u64), u32>);

impl LyingInWait {
    fn has(&self, lure: Lure, number: u64) -> bool {
        self.0.contains_key(&(lure, number))
    }

    /// The lowest one from `number` on.
    fn from(&self, lure: Lure, number: u64) -> Option<u64> {
        self.0.range((lure, number)..=(lure, u64::MAX)).next().map(|((_, number), _)| *number)
    }

    /// The lowest position behind R for which an entry that never stood there lies in wait.
    pub(crate) fn copy_behind(&self, replay_after: u64) -> Option<u64> {
        self.from(Lure::Copy, replay_after + 1)
    }
}

/// One of those, for as long as it is under way.
#[derive(Debug)]
pub(crate) struct Trap {
    process: Arc<Process>,
    of: (Lure, u64),
}

impl Trap {
    pub(crate) fn set(process: &Arc<Process>, lure: Lure, number: u64) -> Self {
        let of = (lure, number);
        *process.world.state().lying_in_wait.0.entry(of).or_default() += 1;
        Self { process: Arc::clone(process), of }
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        let waiting = &mut self.process.world.state().lying_in_wait.0;
        if let Some(count) = waiting.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.of);
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
