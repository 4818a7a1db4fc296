//! Runs the checker over a configuration and reports what it found.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::action::Action;
use super::judge::Invariant;
use super::reached::Fact;
use super::state::State;
use super::{Config, LogModel, Mutant};

/// Set when the model's arrays were too small.
pub(super) const OUT_OF_ROOM: u32 = 1 << 31;

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
        write!(f, "=> {}: {}", self.breaks.name(), self.breaks.about())
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
    /// What should have happened on the way and did not.
    pub missed: Vec<Fact>,
}

/// Explores `config` in full, or until an invariant breaks.
pub fn check(config: Config, mutant: Option<Mutant>, limit: Option<NonZeroUsize>) -> Report {
    let (name, reaches) = (config.name, config.reaches);
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
        missed: reaches.iter().enumerate().filter(|(n, _)| seen & (1 << n) == 0).map(|(_, fact)| *fact).collect(),
    }
}
