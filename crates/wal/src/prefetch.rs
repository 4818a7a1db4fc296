//! Reads consecutive entries with several GETs running at once, and hands them out in order. Large ones are read a few at a time,
//! so that what is read ahead takes bounded memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::entry::WalEntry;
use crate::error::{Error, Result};
use crate::ids::Position;
use crate::log::Log;
use crate::slot::read_entry;

/// A read-ahead over consecutive positions.
#[derive(Debug)]
pub(crate) struct Prefetch {
    log: Log,
    /// The next position to hand out.
    next: Position,
    /// No GET goes beyond this position; `None`: to the first absent one.
    last: Option<Position>,
    limit: usize,
    /// The bytes of objects by position, as far as they were listed.
    sizes: Arc<BTreeMap<u64, u64>>,
    /// The bytes of the largest object so far: what one that was not listed is taken for.
    largest: u64,
    running: VecDeque<Running>,
}

/// Bytes of objects that are read at once, at most, as far as they can be told; one is always read.
const MAX_BYTES_AHEAD: u64 = 128 << 20;

/// A GET of one position. It is a task of its own, so that its decoding overlaps with the others; dropping it ends it.
#[derive(Debug)]
struct Running {
    position: Position,
    bytes: u64,
    read: JoinHandle<Result<Option<WalEntry>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.read.abort();
    }
}

impl Prefetch {
    /// From `from` up to `last` (or the first absent position), with at most `limit` GETs at once.
    pub(crate) fn new(log: Log, from: Position, last: Option<Position>, limit: usize) -> Self {
        Self { log, next: from, last, limit: limit.max(1), sizes: Arc::default(), largest: 0, running: VecDeque::new() }
    }

    /// Begins what may run, before anybody asks for it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] at the end of all positions.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.fill()
    }

    /// Goes no further than this position, and knows these sizes of objects from a LIST: large ones are read a few at a time, so
    /// that what is read ahead takes bounded memory.
    pub(crate) fn know(&mut self, last: Position, sizes: Arc<BTreeMap<u64, u64>>) {
        self.last = Some(last);
        self.sizes = sizes;
    }

    /// Lets more GETs run at once.
    pub(crate) fn widen(&mut self, limit: usize) {
        self.limit = self.limit.max(limit);
    }

    /// Begins no more GETs as long as this many run; those that run go on.
    pub(crate) fn narrow(&mut self, limit: usize) {
        self.limit = self.limit.min(limit.max(1));
    }

    /// The next entry; `None` at the first absent position or behind `last`. Asked again after `None`, it reads the
    /// absent position anew.
    pub(crate) async fn next(&mut self) -> Result<Option<WalEntry>> {
        self.fill()?;
        // Awaited where it stands: a caller that gives up waiting here finds it again.
        let Some(first) = self.running.front_mut() else {
            return Ok(None);
        };
        let position = first.position;
        let read = (&mut first.read).await;
        self.running.pop_front();
        let read =
            read.unwrap_or_else(|e| Err(Error::InvalidArgument(format!("reading WAL entry {position} ended: {e}"))));
        if let Ok(Some(entry)) = &read {
            self.next = entry.position.next()?;
            self.largest = self.largest.max(entry.object_bytes as u64);
        } else {
            // I1: the end, or a read that failed. What was read ahead is not handed out in its place.
            self.running.clear();
        }
        read
    }

    /// After the end: fails unless everything up to `last` was handed out.
    pub(crate) fn expect_end(&self) -> Result<()> {
        match self.last {
            Some(last) if self.next <= last => Err(self.log.hole(self.next, last)),
            _ => Ok(()),
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut at = match self.running.back() {
            Some(last) => last.position.next()?,
            None => self.next,
        };
        let mut ahead: u64 = self.running.iter().map(|running| running.bytes).sum();
        while self.running.len() < self.limit && self.last.is_none_or(|last| at <= last) {
            let bytes = self.sizes.get(&at.get()).copied().unwrap_or(self.largest);
            ahead = ahead.saturating_add(bytes);
            if ahead > MAX_BYTES_AHEAD && !self.running.is_empty() {
                break;
            }
            let log = self.log.clone();
            let position = at;
            let read = tokio::spawn(async move { read_entry(&log, position).await });
            self.running.push_back(Running { position, bytes, read });
            at = at.next()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashMap;

    use super::*;
    use crate::{Shard, ShardId, Store};

    /// GETs that are begun at once, of objects that a LIST showed to be so large.
    async fn begun(mebibytes: &[u64]) -> usize {
        let store = Store::open(&format!("memory://prefetch-{}", ShardId::new_random()), &HashMap::new()).unwrap();
        let log = Log::own(&Shard::new(store, ShardId::new_random()));
        let mut ahead = Prefetch::new(log, Position::new(1), None, 192);
        let sizes = (1..).zip(mebibytes.iter().map(|mebibytes| mebibytes << 20)).collect();
        ahead.know(Position::new(mebibytes.len() as u64), Arc::new(sizes));
        ahead.begin().unwrap();
        ahead.running.len()
    }

    #[tokio::test]
    async fn large_objects_are_read_a_few_at_a_time_and_one_always() {
        assert_eq!(begun(&[1; 50]).await, 50);
        assert_eq!(begun(&[30; 50]).await, 4);
        assert_eq!(begun(&[200; 50]).await, 1);
        assert_eq!(begun(&[1, 126, 1, 1]).await, 3);
        assert_eq!(begun(&[0; 500]).await, 192);
    }
}
