//! Rules: which operations a fault is hung on, and how often.
//!
//! A rule owns its counts. Every rule sees every operation that it matches; of those that are due, the one that was
//! written first acts, and the others stay due for the next operation.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Fault, FaultStore, Gate, Op};

/// What is done to one operation.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Fault(Fault),
    StallBefore(Gate),
    StallAfter(Gate),
}

impl Action {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Fault(fault) => format!("{fault:?}"),
            Self::StallBefore(_) => "stalled before it was sent".to_owned(),
            Self::StallAfter(_) => "stalled after it was carried out".to_owned(),
        }
    }
}

type Filter = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// A rule in the making: say which operations it is for, then what happens to them.
///
/// Conditions on the path add up (all must hold). Without [`nth`](Self::nth) and [`times`](Self::times) the rule acts
/// once, on the first operation that matches.
#[must_use = "a rule does nothing until `then`, `stall` or `stall_after`"]
pub struct RuleBuilder {
    store: FaultStore,
    ops: Vec<Op>,
    filters: Vec<Filter>,
    nth: u64,
    times: u64,
}

impl RuleBuilder {
    pub(super) fn new(store: FaultStore, ops: Vec<Op>) -> Self {
        Self { store, ops, filters: Vec::new(), nth: 1, times: 1 }
    }

    /// Only paths that contain `part`. Paths have no leading slash.
    pub fn path_contains(self, part: impl Into<String>) -> Self {
        let part = part.into();
        self.path_matches(move |path| path.contains(&part))
    }

    /// Only paths that end with `end`.
    pub fn path_ends_with(self, end: impl Into<String>) -> Self {
        let end = end.into();
        self.path_matches(move |path| path.ends_with(&end))
    }

    /// Only paths that start with `start`, counted from the root of the store (of the bucket).
    pub fn path_starts_with(self, start: impl Into<String>) -> Self {
        let start = start.into();
        self.path_matches(move |path| path.starts_with(&start))
    }

    /// Only paths for which `predicate` holds.
    pub fn path_matches(mut self, predicate: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.filters.push(Box::new(predicate));
        self
    }

    /// Starts with the `n`th operation that matches, counted from 1 and from now.
    pub fn nth(mut self, n: u64) -> Self {
        self.nth = n;
        self
    }

    /// Acts `n` times, then never again.
    pub fn times(mut self, n: u64) -> Self {
        self.times = n;
        self
    }

    /// Acts on every operation from the first that is due.
    pub fn always(self) -> Self {
        self.times(u64::MAX)
    }

    /// Injects `fault`.
    ///
    /// # Panics
    ///
    /// If the fault has no meaning for the operation, such as a late landing of a GET.
    #[track_caller]
    pub fn then(self, fault: Fault) -> Rule {
        for op in &self.ops {
            assert!(fault.fits(*op), "{fault:?} has no meaning for {op:?}; hang it on an operation that writes");
        }
        self.install(Action::Fault(fault))
    }

    /// Stops the operation before it is sent, until the gate is released. If its caller gives up meanwhile, it is
    /// never sent.
    pub fn stall(self) -> Gate {
        let gate = Gate::new();
        self.install(Action::StallBefore(gate.clone()));
        gate
    }

    /// Carries the operation out and holds its answer back until the gate is released. A LIST or GET has the content
    /// of the moment in which it was carried out.
    pub fn stall_after(self) -> Gate {
        let gate = Gate::new();
        self.install(Action::StallAfter(gate.clone()));
        gate
    }

    fn install(self, action: Action) -> Rule {
        let handle = Rule { counts: Arc::default() };
        self.store.add_rule(ScriptedRule {
            ops: self.ops,
            filters: self.filters,
            nth: self.nth,
            times: self.times,
            seen: 0,
            action,
            handle: handle.clone(),
        });
        handle
    }
}

impl fmt::Debug for RuleBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleBuilder")
            .field("ops", &self.ops)
            .field("nth", &self.nth)
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}

/// A handle on an installed rule. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Rule {
    counts: Arc<RuleCounts>,
}

#[derive(Debug, Default)]
struct RuleCounts {
    fired: AtomicU64,
    cancelled: AtomicBool,
}

impl Rule {
    /// How often the rule has acted. A test that never met its fault proves nothing: assert on this.
    pub fn fired(&self) -> u64 {
        self.counts.fired.load(Ordering::SeqCst)
    }

    /// From now on the rule does nothing. Operations that it stalled stay stalled.
    pub fn cancel(&self) {
        self.counts.cancelled.store(true, Ordering::SeqCst);
    }
}

/// An installed rule.
pub(super) struct ScriptedRule {
    ops: Vec<Op>,
    filters: Vec<Filter>,
    nth: u64,
    times: u64,
    seen: u64,
    action: Action,
    handle: Rule,
}

impl ScriptedRule {
    /// Counts the operation if it matches; true if the rule should act on it.
    pub(super) fn is_due(&mut self, op: Op, path: &str) -> bool {
        if !self.ops.contains(&op) || !self.filters.iter().all(|filter| filter(path)) {
            return false;
        }
        self.seen += 1;
        let counts = &self.handle.counts;
        self.seen >= self.nth && self.handle.fired() < self.times && !counts.cancelled.load(Ordering::SeqCst)
    }

    /// Counts one act and says what it is.
    pub(super) fn fire(&self) -> Action {
        self.handle.counts.fired.fetch_add(1, Ordering::SeqCst);
        self.action.clone()
    }
}

impl fmt::Debug for ScriptedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedRule")
            .field("ops", &self.ops)
            .field("action", &self.action)
            .field("seen", &self.seen)
            .field("fired", &self.handle.fired())
            .finish_non_exhaustive()
    }
}
