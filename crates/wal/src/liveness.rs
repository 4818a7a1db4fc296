//! The dead-entry rule (protocol section 6): which entries of a log count.

use crate::entry::WalEntry;
use crate::ids::{Epoch, Position};
use crate::mutants::{Mutant, is_on};

/// The protocol's limit on PUTs in flight, and the reach of a dead writer's stragglers.
pub const MAX_IN_FLIGHT: u64 = 32;

/// What an entry is to a reader who met it in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Its rows count.
    Rows,
    /// It carries no rows but fences older epochs.
    Sentinel,
    /// It was never acknowledged: a fenced writer's straggler. Its rows do not count.
    Dead,
}

/// Follows a log in order of position and remembers which epochs were live where.
///
/// An entry whose epoch is lower than one seen before is dead: a sentinel stands in front of it, and
/// acknowledgement needs every earlier position. I4: the epochs of live entries never decrease.
#[derive(Debug, Clone)]
pub(crate) struct Liveness {
    start: Epoch,
    /// Where a higher epoch began, ascending in both.
    steps: Vec<(Position, Epoch)>,
}

impl Liveness {
    /// Starts behind R, where `replay_after_epoch` was the highest live epoch.
    pub(crate) fn after(replay_after_epoch: Epoch) -> Self {
        Self { start: replay_after_epoch, steps: Vec::new() }
    }

    /// The highest epoch seen.
    pub(crate) fn top(&self) -> Epoch {
        self.steps.last().map_or(self.start, |(_, epoch)| *epoch)
    }

    /// Takes the next entry in order.
    pub(crate) fn meet(&mut self, entry: &WalEntry) -> EntryKind {
        if entry.writer_epoch < self.top() && !is_on(Mutant::NoDeadEntryRule) {
            return EntryKind::Dead;
        }
        if entry.writer_epoch > self.top() {
            self.steps.push((entry.position, entry.writer_epoch));
        }
        match entry.is_sentinel {
            true => EntryKind::Sentinel,
            false => EntryKind::Rows,
        }
    }

    /// Takes a position that is known to have held a sentinel or a dead entry.
    pub(crate) fn pass(&mut self, position: Position, epoch: Epoch) {
        if epoch > self.top() {
            self.steps.push((position, epoch));
        }
    }

    /// The highest epoch of any live entry at or below `position`: what `replay_after_epoch` becomes when R rises
    /// to it.
    pub(crate) fn highest_at_or_below(&self, position: Position) -> Epoch {
        self.steps.iter().rfind(|(from, _)| *from <= position).map_or(self.start, |(_, epoch)| *epoch)
    }
}
