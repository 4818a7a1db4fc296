//! Reads consecutive entries with several GETs running at once, and hands them out in order.

use std::collections::VecDeque;

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
    running: VecDeque<Running>,
}

/// A GET of one position. It is a task of its own, so that its decoding overlaps with the others; dropping it ends it.
#[derive(Debug)]
struct Running {
    position: Position,
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
        Self { log, next: from, last, limit: limit.max(1), running: VecDeque::new() }
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
        while self.running.len() < self.limit && self.last.is_none_or(|last| at <= last) {
            let log = self.log.clone();
            let position = at;
            let read = tokio::spawn(async move { read_entry(&log, position).await });
            self.running.push_back(Running { position, read });
            at = at.next()?;
        }
        Ok(())
    }
}
