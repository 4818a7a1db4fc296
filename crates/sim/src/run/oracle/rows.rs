//! Every row that was ever appended: who appended it, when, and what was said about it.

use bytes::Bytes;
use fencepost_wal::Outcome;

use super::{Invariant, Verdict, broken};

/// What a row's append was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// Nothing yet, or that it is not known.
    Open,
    /// Acknowledged, at this count of all events.
    Kept(u64),
    /// That it is not written and never will be.
    Refused,
}

#[derive(Debug)]
struct Row {
    tenure: usize,
    submitted: u64,
    promise: Promise,
}

/// All rows, by id; ids are given in the order of submission.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    rows: Vec<Row>,
    tenures: usize,
    /// Rows that the user has truncated (a WAL-only shard).
    consumed: Vec<bool>,
    clock: u64,
    found: Vec<bool>,
}

impl Rows {
    pub(crate) fn begin_tenure(&mut self) -> usize {
        self.tenures += 1;
        self.tenures - 1
    }

    /// Rows are about to be appended.
    pub(crate) fn submit(&mut self, tenure: usize, count: u64) -> Vec<u64> {
        self.clock += 1;
        let first = self.rows.len() as u64;
        for _ in 0..count {
            self.rows.push(Row { tenure, submitted: self.clock, promise: Promise::Open });
            self.consumed.push(false);
        }
        (first..first + count).collect()
    }

    pub(crate) fn acknowledge(&mut self, ids: &[u64]) {
        self.clock += 1;
        for id in ids {
            if let Some(row) = self.rows.get_mut(*id as usize) {
                row.promise = Promise::Kept(self.clock);
            }
        }
    }

    pub(crate) fn fail(&mut self, ids: &[u64], outcome: Outcome) {
        for id in ids {
            if let Some(row) = self.rows.get_mut(*id as usize) {
                row.promise = match outcome {
                    Outcome::NotWritten => Promise::Refused,
                    Outcome::Written => Promise::Kept(self.clock),
                    Outcome::Unknown => Promise::Open,
                };
            }
        }
    }

    pub(super) fn consume(&mut self, ids: &[u64]) {
        for id in ids {
            if let Some(consumed) = self.consumed.get_mut(*id as usize) {
                *consumed = true;
            }
        }
    }

    /// `found`: the rows that a fresh reader finds, in order.
    pub(super) fn check(&mut self, found: &[u64]) -> Verdict {
        let mut there = std::mem::take(&mut self.found);
        there.clear();
        there.resize(self.rows.len(), false);
        for id in found {
            match there.get_mut(*id as usize) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return broken(Invariant::I2, format!("row {id} is there twice")),
                None => return broken(Invariant::Truth, format!("row {id} was never appended")),
            }
        }
        let mut broken_off: Vec<Option<usize>> = vec![None; self.tenures];
        for (id, row) in self.rows.iter().enumerate() {
            let seen = there.get(id).copied().unwrap_or_default();
            let consumed = self.consumed.get(id).copied().unwrap_or_default();
            if seen && consumed {
                return broken(Invariant::I2, format!("row {id} was truncated and is back"));
            }
            let present = seen || consumed;
            match row.promise {
                Promise::Kept(_) if !present => {
                    return broken(Invariant::I1, format!("row {id} was acknowledged and is not there"));
                }
                Promise::Refused if present => {
                    return broken(Invariant::Truth, format!("row {id} was called not written and is there"));
                }
                _ => {}
            }
            // Rows that were refused never were part of the tenure.
            if let Some(gap) = broken_off.get_mut(row.tenure).filter(|_| row.promise != Promise::Refused) {
                match (present, *gap) {
                    (false, None) => *gap = Some(id),
                    (true, Some(gap)) => {
                        let what = format!("row {id} is there, and row {gap}, which its tenure appended first, is not");
                        return broken(Invariant::I4, what);
                    }
                    _ => {}
                }
            }
        }
        self.found = there;
        self.check_order(found)
    }

    /// I8: what was acknowledged before another was even begun stands in front of it.
    fn check_order(&self, found: &[u64]) -> Verdict {
        let mut earliest: Option<(u64, u64)> = None;
        for id in found.iter().rev() {
            let Some(row) = self.rows.get(*id as usize) else { continue };
            if let Some((acknowledged, later)) = earliest
                && acknowledged < row.submitted
            {
                let what = format!("row {later} was acknowledged before row {id} was begun, and stands behind it");
                return broken(Invariant::I8, what);
            }
            if let Promise::Kept(at) = row.promise
                && earliest.is_none_or(|(earliest, _)| at < earliest)
            {
                earliest = Some((at, *id));
            }
        }
        Ok(())
    }

    pub(super) fn is_consumed(&self, id: u64) -> bool {
        self.consumed.get(id as usize).copied().unwrap_or_default()
    }

    /// Ids of the rows that are acknowledged by now and were not truncated.
    pub(super) fn kept(&self) -> Vec<u64> {
        let rows = self.rows.iter().zip(&self.consumed).enumerate();
        let kept = rows.filter(|(_, (row, consumed))| matches!(row.promise, Promise::Kept(_)) && !**consumed);
        kept.map(|(id, _)| id as u64).collect()
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.rows.iter().filter(|row| matches!(row.promise, Promise::Kept(_))).count() as u64
    }
}

/// The stand-in for an SSTable's files: the ids of its rows, in order.
pub(crate) fn encode(rows: &[u64]) -> Bytes {
    rows.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>().into()
}

pub(super) fn decode(bytes: &Bytes) -> Vec<u64> {
    bytes.chunks_exact(8).filter_map(|id| Some(u64::from_le_bytes(id.try_into().ok()?))).collect()
}
