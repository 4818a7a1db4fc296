//! The small values that a state is made of. Each fits into a few bytes, because the checker copies and hashes whole
//! states by the million.

use std::fmt;
use std::hash::{Hash, Hasher};

/// Positions of the log: 1 to [`POSITIONS`] - 1.
pub(super) const POSITIONS: usize = 16;
/// Writers at most. A name is a writer for one tenure; a process that opens again is the next one.
pub(super) const WRITERS: usize = 3;
/// Rows that one writer appends at most, each an append of its own.
pub(super) const ROWS: usize = 5;
/// Manifest versions that exist at once, at most.
pub(super) const VERSIONS: usize = 12;
/// Late PUTs at once, at most.
pub(super) const LATE: usize = 2;

/// A position of the log.
pub(super) type Position = u8;

/// A set of positions, or of rows: bit n stands for number n.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Set(pub(super) u16);

impl Set {
    pub(super) fn one(number: u8) -> Self {
        Self(1 << number)
    }

    pub(super) fn has(self, number: u8) -> bool {
        self.0 & (1 << number) != 0
    }

    pub(super) fn add(&mut self, number: u8) {
        self.0 |= 1 << number;
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u8> {
        (0..16).filter(move |&n| self.has(n))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The number of a row among all rows: writer and place in its order of appends.
pub(super) fn row_number(writer: u8, nth: u8) -> u8 {
    writer * ROWS as u8 + nth
}

/// `a1` is the first row of the first writer.
pub(super) fn row_name(row: u8) -> String {
    let letter = char::from(b'a' + row / ROWS as u8);
    format!("{letter}{}", row % ROWS as u8 + 1)
}

/// Rows in an order, as a replay returns them; up to 15.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Rows(u64);

impl Rows {
    pub(super) fn push(&mut self, row: u8) {
        debug_assert!(self.0 >> 60 == 0, "more than 15 rows");
        self.0 = (self.0 << 4) | u64::from(row + 1);
    }

    pub(super) fn len(self) -> u32 {
        (64 - self.0.leading_zeros()).div_ceil(4)
    }

    /// From first to last.
    pub(super) fn iter(self) -> impl Iterator<Item = u8> {
        (0..self.len()).rev().map(move |n| ((self.0 >> (4 * n)) & 15) as u8 - 1)
    }

    pub(super) fn set(self) -> Set {
        let mut set = Set::default();
        self.iter().for_each(|row| set.add(row));
        set
    }

    pub(super) fn has_one_twice(self) -> bool {
        self.set().0.count_ones() != self.len()
    }

    /// Whether `self` begins with all of `other`.
    pub(super) fn starts_with(self, other: Self) -> bool {
        match self.len().checked_sub(other.len()) {
            Some(0) => self.0 == other.0,
            Some(more) => self.0 >> (4 * more) == other.0,
            None => false,
        }
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.iter().map(row_name).collect();
        write!(f, "[{}]", names.join(" "))
    }
}

/// What stands at a position: the epoch and the writer of an entry, and its rows (the writer's own numbering); a
/// sentinel has none. Zero is "absent".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry(u16);

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u16(self.0);
    }

    /// Four at a time: the logs are most of a state.
    fn hash_slice<H: Hasher>(data: &[Self], state: &mut H) {
        for four in data.chunks(4) {
            state.write_u64(four.iter().fold(0, |word, entry| word << 16 | u64::from(entry.0)));
        }
    }
}

impl Entry {
    pub(super) const ABSENT: Self = Self(0);

    pub(super) fn new(epoch: u8, writer: u8, rows: u8) -> Self {
        Self(u16::from(epoch) << 8 | u16::from(writer) << 5 | u16::from(rows))
    }

    pub(super) fn sentinel(epoch: u8, writer: u8) -> Self {
        Self::new(epoch, writer, 0)
    }

    pub(super) fn is_absent(self) -> bool {
        self.0 == 0
    }

    pub(super) fn epoch(self) -> u8 {
        (self.0 >> 8) as u8
    }

    pub(super) fn writer(self) -> u8 {
        (self.0 >> 5) as u8 & 7
    }

    pub(super) fn is_sentinel(self) -> bool {
        !self.is_absent() && self.0 & 31 == 0
    }

    pub(super) fn is_by(self, epoch: u8, writer: u8) -> bool {
        self.epoch() == epoch && self.writer() == writer
    }

    /// The numbers of its rows among all rows.
    pub(super) fn rows(self) -> impl Iterator<Item = u8> {
        let writer = self.writer();
        (0..ROWS as u8).filter(move |nth| self.0 & (1 << nth) != 0).map(move |nth| row_number(writer, nth))
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<String> = self.rows().map(row_name).collect();
        match (self.is_absent(), rows.is_empty()) {
            (true, _) => f.write_str("absent"),
            (false, true) => write!(f, "sentinel of W{}, epoch {}", self.writer() + 1, self.epoch()),
            (false, false) => write!(f, "{} of W{}, epoch {}", rows.join("+"), self.writer() + 1, self.epoch()),
        }
    }
}

/// Stands for `commit_id`: who committed, and how many manifests it had derived by then. As unique as a random one, and
/// independent of what others did, which keeps equal states equal.
pub(super) type CommitId = u8;

/// One manifest version. Version 0 is "absent".
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) version: u8,
    pub(super) commit: CommitId,
    pub(super) parent: CommitId,
    pub(super) epoch: u8,
    /// `writer_id`; meaningless at epoch 0.
    pub(super) writer: u8,
    /// R, `replay_after_wal_entry_position`.
    pub(super) replay_after: Position,
    pub(super) replay_after_epoch: u8,
    pub(super) closed_cleanly_epoch: u8,
    /// Which of the two WAL stores the log is in.
    pub(super) store: u8,
    /// Listed checkpoints, and those of them whose lifetime was prolonged.
    pub(super) checkpoints: u8,
    pub(super) refreshed: u8,
    pub(super) fences: Set,
    /// The rows of all its SSTables; in a WAL-only shard the rows that the user has consumed.
    pub(super) sstables: Rows,
}

impl Hash for Manifest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.version == 0 {
            return state.write_u8(0);
        }
        state.write_u64(u64::from_le_bytes([
            self.version,
            self.commit,
            self.parent,
            self.epoch,
            self.writer,
            self.replay_after,
            self.replay_after_epoch,
            self.closed_cleanly_epoch,
        ]));
        let [low, high] = self.fences.0.to_le_bytes();
        state.write_u64(u64::from_le_bytes([low, high, self.store, self.checkpoints, self.refreshed, 0, 0, 0]));
        self.sstables.hash(state);
    }
}

impl Manifest {
    pub(super) fn is_owned_by(&self, epoch: u8, writer: u8) -> bool {
        self.epoch == epoch && self.writer == writer
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}: epoch {}, R {}", self.version, self.epoch, self.replay_after)?;
        if self.epoch > 0 {
            write!(f, ", of W{}", self.writer + 1)?;
        }
        if self.replay_after > 0 {
            write!(f, ", epoch at R {}", self.replay_after_epoch)?;
        }
        if !self.fences.is_empty() {
            write!(f, ", fences {:?}", self.fences)?;
        }
        if self.sstables.len() > 0 {
            write!(f, ", SSTables {:?}", self.sstables)?;
        }
        if self.checkpoints != 0 {
            write!(f, ", checkpoint")?;
        }
        if self.closed_cleanly_epoch > 0 {
            write!(f, ", closed cleanly {}", self.closed_cleanly_epoch)?;
        }
        match self.store {
            0 => Ok(()),
            _ => write!(f, ", log in store B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_order() {
        let mut rows = Rows::default();
        let mut first = Rows::default();
        for row in [0, 14, 3] {
            rows.push(row);
        }
        first.push(0);
        assert_eq!(rows.iter().collect::<Vec<_>>(), [0, 14, 3]);
        assert!(rows.starts_with(first) && rows.starts_with(Rows::default()) && rows.starts_with(rows));
        assert!(!first.starts_with(rows));
        assert!(!rows.has_one_twice());
        rows.push(14);
        assert!(rows.has_one_twice());
    }

    #[test]
    fn an_entry_says_what_it_is() {
        assert!(Entry::ABSENT.is_absent() && !Entry::ABSENT.is_sentinel());
        assert!(Entry::sentinel(2, 1).is_sentinel());
        let entry = Entry::new(2, 1, 0b101);
        assert_eq!((entry.epoch(), entry.writer()), (2, 1));
        assert_eq!(entry.rows().map(row_name).collect::<Vec<_>>(), ["b1", "b3"]);
    }
}
