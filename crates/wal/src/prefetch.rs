//! Reads consecutive entries with several GETs running at once, and hands them out in order.

use std::collections::VecDeque;
use std::fmt;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::entry::WalEntry;
use crate::error::{Error, Result};
use crate::ids::Position;
use crate::shard::Shard;
use crate::slot::read_entry;

/// A read-ahead over consecutive positions.
pub(crate) struct Prefetch {
    shard: Shard,
    /// The next position to hand out.
    next: Position,
    /// No GET goes beyond this position; `None`: to the first absent one.
    last: Option<Position>,
    limit: usize,
    running: VecDeque<Running>,
}

/// Each GET is a task of its own, so that its decoding overlaps with the others; dropping it ends it.
type Running = (Position, BoxFuture<'static, Result<Option<WalEntry>>>);

impl fmt::Debug for Prefetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefetch").field("next", &self.next).field("last", &self.last).finish_non_exhaustive()
    }
}

impl Prefetch {
    /// From `from` up to `last` (or the first absent position), with at most `limit` GETs at once.
    pub(crate) fn new(shard: Shard, from: Position, last: Option<Position>, limit: usize) -> Self {
        Self { shard, next: from, last, limit: limit.max(1), running: VecDeque::new() }
    }

    /// Lets more GETs run at once.
    pub(crate) fn widen(&mut self, limit: usize) {
        self.limit = self.limit.max(limit);
    }

    /// The next entry; `None` at the first absent position or behind `last`. Asked again after `None`, it reads the
    /// absent position anew.
    pub(crate) async fn next(&mut self) -> Result<Option<WalEntry>> {
        self.fill()?;
        let Some((_, read)) = self.running.pop_front() else {
            return Ok(None);
        };
        match read.await? {
            Some(entry) => {
                self.next = entry.position.next()?;
                Ok(Some(entry))
            }
            None => {
                self.running.clear();
                Ok(None)
            }
        }
    }

    /// After the end: fails unless everything up to `last` was handed out.
    pub(crate) fn expect_end(&self, shard: &Shard) -> Result<()> {
        match self.last {
            Some(last) if self.next <= last => Err(Error::LogHole {
                shard: shard.id(),
                position: self.next,
                beyond: last,
                object: shard.entry_path(self.next).to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut at = match self.running.back() {
            Some((position, _)) => position.next()?,
            None => self.next,
        };
        while self.running.len() < self.limit && self.last.is_none_or(|last| at <= last) {
            let shard = self.shard.clone();
            let position = at;
            let task = tokio::spawn(async move { read_entry(&shard, position).await });
            let stop = AbortOnDrop(task.abort_handle());
            let read = async move {
                let _stop = stop;
                match task.await {
                    Ok(read) => read,
                    Err(e) => Err(Error::InvalidArgument(format!("the task that read WAL entry {position} ended: {e}"))),
                }
            };
            self.running.push_back((position, read.boxed()));
            at = at.next()?;
        }
        Ok(())
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
