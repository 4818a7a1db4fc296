//! Runs the checker over a configuration and reports what it found.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::action::Action;
use super::judge::Invariant;
use super::state::{Phase, Progress, State};
use super::{Config, LogModel, Mutant};

/// Set when the model's arrays were too small.
pub(super) const OUT_OF_ROOM: u32 = 1 << 31;

/// What a run has to reach, or it shows nothing.
const REACHED: &[&str] = &[
    "a row is acknowledged",
    "a later claimant's row is acknowledged",
    "an entry is collected",
    "a fence is kept below R",
    "a dead entry stands in the log",
    "a claimant met a live predecessor and put two sentinels",
    "a replay was partly flushed",
    "a manifest is pruned",
    "a manifest came back",
    "a checkpoint outlived its entries' R",
    "the log moved",
    "a tenure closed cleanly",
    "a follower started again",
    "a store was wiped",
    "a position was passed over",
];

impl Model for LogModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.first_state()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.enumerate(state, actions);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        self.step(before, action, &mut ())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        // The verdict is part of the state, because some invariants are about steps; one look is then enough for all.
        vec![Property::always("the invariants hold", |_, state: &State| state.broken == 0)]
    }
}

impl LogModel {
    pub(super) fn note_reached(&self, s: &State) {
        let newest = s.newest();
        let later = (3..9).any(|row| s.acknowledged.has(row));
        let below = |p: u8| p <= newest.replay_after;
        let store = newest.store;
        let facts = [
            !s.acknowledged.is_empty(),
            later,
            newest.replay_after > 0 && s.at(store, 1).is_absent() || (newest.replay_after > 1 && s.at(store, 2).is_absent()),
            newest.fences.iter().any(|p| below(p) && !s.at(0, p).is_absent()),
            (2..12).any(|p| !s.at(store, p).is_absent() && s.at(store, p).epoch() < s.at(store, p - 1).epoch()),
            s.writers.iter().any(|w| w.width > 1 && w.phase == Phase::Open),
            s.writers.iter().any(|w| w.phase == Phase::Open && w.replay_after > 0 && w.replay_after < w.sentinel),
            s.manifest(1).version == 0 && self.config.steps,
            self.config.steps && s.manifests.iter().any(|m| m.version > 0 && s.lineage & (1 << m.commit) == 0),
            s.pins.iter().enumerate().any(|(id, p)| {
                self.is_listed(s, id as u8) && newest.replay_after > p.replay_after && p.tail > p.replay_after
            }),
            newest.store == 1,
            newest.closed_cleanly_epoch > 0,
            s.follower.started && s.follower.returned.len() > 0 && s.follower.next == newest.replay_after + 1,
            newest.replay_after > 0 && s.wal[store as usize].iter().all(|e| e.is_absent()),
            s.writers.iter().any(|w| {
                w.phase == Phase::Open
                    && w.appends.iter().any(|a| a.progress == Progress::Acknowledged && a.position > w.sentinel + 1)
                    && w.appends[0].position > w.sentinel + 1
            }),
        ];
        let bits = facts.iter().enumerate().fold(0, |bits, (n, &fact)| bits | (u32::from(fact) << n));
        if self.seen.load(Ordering::Relaxed) & bits != bits {
            self.seen.fetch_or(bits, Ordering::Relaxed);
        }
    }
}

/// A way to break an invariant, one line per request or event.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// What breaks at its end.
    pub breaks: Invariant,
    /// How many steps of the model it takes.
    pub steps: usize,
    /// What happens.
    pub lines: Vec<String>,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        write!(f, "=> {} is broken", self.breaks.name())
    }
}

/// What the checker found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The configuration.
    pub config: &'static str,
    /// The rule that was turned off.
    pub mutant: Option<Mutant>,
    /// States generated, equal ones included.
    pub states: usize,
    /// Different states.
    pub unique: usize,
    /// Steps of the longest of all shortest ways to a state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Whether all states within the bounds were seen.
    pub complete: bool,
    /// The shortest schedule that breaks an invariant.
    pub counterexample: Option<Schedule>,
    /// What was reached on the way, so that a run without a counterexample says something.
    pub reached: BTreeSet<&'static str>,
}

/// Explores `config` in full, or until an invariant breaks.
pub fn check(config: Config, mutant: Option<Mutant>, limit: Option<NonZeroUsize>) -> Report {
    let name = config.name;
    let model = LogModel::new(config, mutant);
    let started = Instant::now();
    let mut builder = model.clone().checker().finish_when(HasDiscoveries::AnyFailures);
    if let Some(limit) = limit {
        builder = builder.target_state_count(limit.get());
    }
    let checker = builder.spawn_bfs().join();
    let took = started.elapsed();
    let seen = model.seen.load(Ordering::Relaxed);
    let counterexample = checker.discovery("the invariants hold").and_then(|path| {
        let steps = path.into_vec();
        let mut lines = Vec::new();
        let mut breaks = None;
        for (state, action) in &steps {
            let Some(action) = action else { break };
            let next = model.step(state, *action, &mut lines)?;
            breaks = Invariant::ALL.into_iter().find(|i| *i as u8 == next.broken);
        }
        Some(Schedule { breaks: breaks?, steps: steps.len() - 1, lines })
    });
    let cut = limit.is_some_and(|limit| checker.state_count() >= limit.get());
    Report {
        config: name,
        mutant,
        states: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        took,
        complete: counterexample.is_none() && !cut && seen & OUT_OF_ROOM == 0,
        counterexample,
        reached: REACHED.iter().enumerate().filter(|(n, _)| seen & (1 << n) != 0).map(|(_, fact)| *fact).collect(),
    }
}
