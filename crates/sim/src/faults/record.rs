//! The record of every operation, so that a test can say what was sent and in which order.

use object_store::Error;

use super::Op;

/// One operation, in the order in which the code under test began them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Counts from 0, over all operations of the store.
    pub seq: u64,
    /// What was asked for.
    pub op: Op,
    /// The object, or the prefix of a LIST.
    pub path: String,
    /// What the caller was told.
    pub outcome: Outcome,
    /// Whether the store below carried it out, whatever the caller was told. A late landing sets it when it lands.
    pub applied: bool,
    /// The fault that was injected, in words.
    pub fault: Option<String>,
}

/// What the caller of an operation was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet, or nothing ever: the caller gave up waiting.
    Pending,
    /// Success.
    Ok,
    /// The object is not there.
    NotFound,
    /// The object is there already.
    AlreadyExists,
    /// The object is not the one expected.
    Precondition,
    /// Any other error.
    Error,
}

impl Outcome {
    pub(super) fn of<T>(answer: &Result<T, Error>) -> Self {
        match answer {
            Ok(_) => Self::Ok,
            Err(Error::NotFound { .. }) => Self::NotFound,
            Err(Error::AlreadyExists { .. }) => Self::AlreadyExists,
            Err(Error::Precondition { .. }) => Self::Precondition,
            Err(_) => Self::Error,
        }
    }
}

/// All records, with the number of the first one kept.
#[derive(Debug, Default)]
pub(super) struct Log {
    first: u64,
    records: Vec<Record>,
}

impl Log {
    pub(super) fn begin(&mut self, op: Op, path: &str, fault: Option<String>) -> u64 {
        let seq = self.first + self.records.len() as u64;
        self.records.push(Record { seq, op, path: path.to_owned(), outcome: Outcome::Pending, applied: false, fault });
        seq
    }

    /// The record numbered `seq`; `None` once it was cleared.
    pub(super) fn get_mut(&mut self, seq: u64) -> Option<&mut Record> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.records.get_mut(index)
    }

    pub(super) fn snapshot(&self) -> Vec<Record> {
        self.records.clone()
    }

    pub(super) fn clear(&mut self) {
        self.first += self.records.len() as u64;
        self.records.clear();
    }
}
