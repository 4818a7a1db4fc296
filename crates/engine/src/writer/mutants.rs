//! Rules of the flush that this crate's tests can switch off, one at a time, to see that the simulation notices.

use std::cell::Cell;

use fencepost_wal::{Position, Tenure};

/// A rule that is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutant {
    /// R rises to the last acknowledged entry, not to the last one that was applied when the MemTable was frozen.
    CoversAcknowledged,
    /// R rises to what the newest of the frozen MemTables covers, not the one that was written.
    CoversAllFrozen,
    /// R rises to the entry after the last one of the MemTable, durable or not.
    CoversNext,
    /// The newest frozen MemTable is written first.
    NewestFirst,
    /// The manifest is committed before the files are written.
    PublishesFirst,
    /// After a flush R is raised to the last entry applied, also if rows are in memory by now.
    RaisesOverRows,
    /// A MemTable whose flush failed counts as written.
    ForgetsFailed,
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
