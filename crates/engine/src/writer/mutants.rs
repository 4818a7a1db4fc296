//! Rules of the flush that this crate's tests can switch off, one at a time, to see that the simulation notices.

use std::cell::Cell;

use fencepost_wal::{Position, Tenure};

/// A rule that is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutant {
    CoversAcknowledged,
    CoversAllFrozen,
    CoversNext,
    NewestFirst,
    PublishesFirst,
    RaisesOverRows,
    ForgetsFailed,
}

impl Mutant {
    pub(super) const ALL: [Self; 7] = [
        Self::CoversAcknowledged,
        Self::CoversAllFrozen,
        Self::CoversNext,
        Self::NewestFirst,
        Self::PublishesFirst,
        Self::RaisesOverRows,
        Self::ForgetsFailed,
    ];

    /// What is done instead of following the rule.
    pub(super) fn about(self) -> &'static str {
        match self {
            Self::CoversAcknowledged => "R rises to the last acknowledged entry, not to the last one of the MemTable",
            Self::CoversAllFrozen => {
                "R rises to the end of the newest frozen MemTable, not of the one that was written"
            }
            Self::CoversNext => "R rises one entry beyond the MemTable, durable or not",
            Self::NewestFirst => "the newest frozen MemTable is written first",
            Self::PublishesFirst => "the manifest is committed before the files are written",
            Self::RaisesOverRows => "a flush raises R to the end of the log also if rows came meanwhile",
            Self::ForgetsFailed => "a MemTable whose flush failed counts as written",
        }
    }
}

thread_local! {
    static OFF: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether the rule is off in this thread.
pub(super) fn is_on(mutant: Mutant) -> bool {
    OFF.get() == Some(mutant)
}

/// Switches a rule off in this thread, or all of them on.
pub(super) fn set(mutant: Option<Mutant>) {
    OFF.set(mutant);
}

/// What a flush is said to cover.
pub(super) fn covers(covers: Position, tenure: &Tenure) -> Position {
    match OFF.get() {
        Some(Mutant::CoversAcknowledged) => tenure.acknowledged().max(covers),
        Some(Mutant::CoversNext) => covers.next().unwrap_or(covers),
        _ => covers,
    }
}
