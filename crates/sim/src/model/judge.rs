//! The invariants (section 12), over what can be seen from outside: what a fresh reader finds in the store, what the
//! users were told, what a follower returned. None of them knows a rule of the protocol.

use super::LogModel;
use super::action::Action;
use super::mutant::Mutant;
use super::state::State;
use super::types::{Position, ROWS, Rows, Set, row_number};

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Invariant {
    /// An acknowledged row is returned by every later replay, or is in an SSTable.
    I1 = 1,
    /// No row is returned twice.
    I2,
    /// After a takeover is recorded, no older epoch acknowledges what I1 does not cover.
    I3,
    /// Of one tenure's rows a replay returns a prefix.
    I4,
    /// R never decreases, and covers only rows that are in SSTables.
    I5,
    /// One lineage of manifests; what somebody was told is committed is on it.
    I6,
    /// Collection deletes nothing that is needed.
    I7,
    /// A row that was appended after another was acknowledged comes after it.
    I8,
    /// A checkpoint has exactly its moment's rows.
    I9,
    /// Errors are true: who is told that it is fenced has been replaced.
    Fenced,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 10] =
        [Self::I1, Self::I2, Self::I3, Self::I4, Self::I5, Self::I6, Self::I7, Self::I8, Self::I9, Self::Fenced];

    /// What it means that it is broken.
    pub fn about(self) -> &'static str {
        match self {
            Self::I1 => "an acknowledged row is not returned",
            Self::I2 => "a row is returned twice",
            Self::I3 => "a replaced writer acknowledged a row that no replay returns",
            Self::I4 => "a tenure's row is returned without one that came before it",
            Self::I5 => "R covers a row that is in no SSTable, or went back",
            Self::I6 => "a commit was reported as done that is not of the lineage",
            Self::I7 => "what was collected is needed",
            Self::I8 => "a row comes before one that was acknowledged before it was appended",
            Self::I9 => "a checkpoint has not exactly its moment's rows",
            Self::Fenced => "a writer was told that it is fenced, and nobody has replaced it",
        }
    }

    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::I1 => "I1",
            Self::I2 => "I2",
            Self::I3 => "I3",
            Self::I4 => "I4",
            Self::I5 => "I5",
            Self::I6 => "I6",
            Self::I7 => "I7",
            Self::I8 => "I8",
            Self::I9 => "I9",
            Self::Fenced => "Fenced",
        }
    }
}

impl LogModel {
    /// Reads the log like section 6: the live rows behind `from`, and the last position before the first absent one.
    pub(super) fn read_log(&self, s: &State, store: u8, from: Position, top: u8, limit: Position) -> (Rows, Position) {
        let (mut rows, mut end, mut top) = (Rows::default(), from, top);
        for entry in &s.wal[store as usize][from as usize + 1..] {
            if entry.is_absent() || end == limit {
                break;
            }
            end += 1;
            if entry.epoch() >= top || self.is(Mutant::NoDeadEntryRule) {
                top = top.max(entry.epoch());
                entry.rows().for_each(|row| rows.push(row));
            }
        }
        (rows, end)
    }

    /// What a fresh reader of the shard finds.
    pub(super) fn content(&self, s: &State) -> Rows {
        self.content_from(s, s.newest())
    }

    fn content_from(&self, s: &State, manifest: &super::types::Manifest) -> Rows {
        let mut rows = manifest.sstables;
        let (more, _) =
            self.read_log(s, manifest.store, manifest.replay_after, manifest.replay_after_epoch, Position::MAX);
        more.iter().for_each(|row| rows.push(row));
        rows
    }

    /// The first invariant that the step from `before` to `s` breaks.
    pub(super) fn judge(&self, before: &State, s: &State, action: Action) -> Option<Invariant> {
        let content = self.content(s);
        if content.has_one_twice() {
            return Some(Invariant::I2);
        }
        let collects = matches!(
            action,
            Action::Delete(..) | Action::CollectOne(..) | Action::Prune(_) | Action::DeletePin(_) | Action::Unlist(_)
        );
        let lost = s.acknowledged.minus(content.set());
        if !lost.is_empty() {
            let old = lost.minus(before.acknowledged).iter().any(|row| {
                let writer = &s.writers[row as usize / ROWS];
                writer.epoch < s.recorded_epoch
            });
            return Some(match (old, collects) {
                (true, _) => Invariant::I3,
                (_, true) => Invariant::I7,
                _ => Invariant::I1,
            });
        }
        if !self.has_prefixes(content.set()) {
            return Some(Invariant::I4);
        }
        let mut seen = Set::default();
        for row in content.iter() {
            let append = &s.writers[row as usize / ROWS].appends[row as usize % ROWS];
            if s.acknowledged.has(row) && !append.after.minus(seen).is_empty() {
                return Some(Invariant::I8);
            }
            seen.add(row);
        }
        self.judge_manifests(before, s)
            .or_else(|| self.judge_checkpoints(s, collects))
            .or_else(|| self.judge_follower(s, content))
    }

    /// I4: of each writer's rows the first few.
    fn has_prefixes(&self, rows: Set) -> bool {
        self.rows().all(|(w, n)| n == 0 || !rows.has(row_number(w, n)) || rows.has(row_number(w, n - 1)))
    }

    fn judge_manifests(&self, before: &State, s: &State) -> Option<Invariant> {
        let (old, new) = (before.newest(), s.newest());
        if (old.version, old.commit) != (new.version, new.commit) {
            if new.version < old.version {
                return Some(Invariant::I7);
            }
            if new.version != old.version + 1 || new.parent != old.commit {
                return Some(Invariant::I6);
            }
            if new.replay_after < old.replay_after {
                return Some(Invariant::I5);
            }
            let (covered, _) =
                self.read_log(before, old.store, old.replay_after, old.replay_after_epoch, new.replay_after);
            if new.replay_after > old.replay_after && !covered.set().minus(new.sstables.set()).is_empty() {
                return Some(Invariant::I5);
            }
        }
        // A reader that starts at the manifest of the hint, and probes forward, finds what is there.
        let mut at = s.manifest(s.hint);
        while at.version > 0 && s.manifest(at.version + 1).version > 0 {
            at = s.manifest(at.version + 1);
        }
        let strayed = at.version > 0 && !s.acknowledged.minus(self.content_from(s, &at).set()).is_empty();
        strayed.then_some(Invariant::I1)
    }

    fn judge_checkpoints(&self, s: &State, collects: bool) -> Option<Invariant> {
        for (id, pin) in s.pins.iter().enumerate() {
            // The collector's clock may be one tick ahead.
            let promised = pin.listed && s.clock + 1 < pin.promised;
            if !promised && !self.is_listed(s, id as u8) {
                continue;
            }
            let found = self.rows_of_pin(s, pin);
            let right = found == Some(pin.moment)
                && pin.must_have.minus(pin.moment.set()).is_empty()
                && self.content(s).starts_with(pin.moment);
            if !right || !self.is_listed(s, id as u8) {
                return Some(if collects { Invariant::I7 } else { Invariant::I9 });
            }
        }
        None
    }

    /// A follower's rows are the first few of the log's.
    fn judge_follower(&self, s: &State, content: Rows) -> Option<Invariant> {
        let returned = s.follower.returned;
        match () {
            () if content.starts_with(returned) => None,
            () if returned.has_one_twice() => Some(Invariant::I2),
            () => Some(Invariant::I1),
        }
    }
}
