//! The log of a checkpoint: the entries in (R, T], read without looking at what the shard is now. Garbage collection keeps them
//! for as long as the checkpoint is listed.

use super::ShardCheckpoint;
use crate::entry::WalEntry;
use crate::error::{Error, Result};
use crate::ids::Position;
use crate::liveness::{EntryKind, Liveness};
use crate::log::Log;
use crate::manifest::Fence;
use crate::prefetch::Prefetch;
use crate::shard::Shard;

/// GETs that run at once.
const PREFETCH: usize = 32;

/// Reads the entries of a checkpoint that have rows, in order.
#[derive(Debug)]
pub struct CheckpointLog<'a> {
    shard: &'a Shard,
    checkpoint: &'a ShardCheckpoint,
    /// `None` if its WAL store is not there, and why.
    log: Result<Log>,
    next: Position,
    liveness: Liveness,
    ahead: Option<Prefetch>,
}

impl<'a> CheckpointLog<'a> {
    /// The log of a checkpoint that was [`read`](super::read). No request if it holds nothing.
    pub async fn open(shard: &'a Shard, checkpoint: &'a ShardCheckpoint) -> Result<Self> {
        let log = match checkpoint.tail <= checkpoint.manifest.replay_after {
            true => Ok(Log::own(shard)),
            false => match shard.recorded_log(&checkpoint.manifest).await {
                // I1: whether anything is missed is found out position by position.
                Err(error @ (Error::WalStoreMissing { .. } | Error::WalStoreMismatch { .. })) => Err(error),
                found => Ok(found?),
            },
        };
        let next = checkpoint.manifest.replay_after.next()?;
        let liveness = Liveness::after(checkpoint.manifest.replay_after_epoch());
        Ok(Self { shard, checkpoint, log, next, liveness, ahead: None })
    }

    /// The next entry whose rows count; `None` at the end.
    ///
    /// # Errors
    /// [`Error::CheckpointLost`] if an entry is gone, unless the checkpoint says that it had no rows.
    pub async fn next(&mut self) -> Result<Option<WalEntry>> {
        while self.next <= self.checkpoint.tail {
            let at = self.next;
            let read = match &self.log {
                Ok(log) => {
                    let new = || Prefetch::new(log.clone(), at, Some(self.checkpoint.tail), PREFETCH);
                    self.ahead.get_or_insert_with(new).next().await?
                }
                Err(_) => None,
            };
            self.next = at.next()?;
            let kind = match &read {
                Some(entry) => self.liveness.meet(entry),
                None => {
                    self.ahead = None;
                    let fence = proven_empty(self.checkpoint, at);
                    let fence = fence.ok_or_else(|| lost(self.shard, self.checkpoint, at, &self.log))?;
                    self.liveness.pass(at, fence.epoch);
                    EntryKind::Sentinel
                }
            };
            if let Some(entry) = read.filter(|_| kind == EntryKind::Rows) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

/// What the checkpoint says of a position that holds no rows: a sentinel or a dead entry stood there.
pub(crate) fn proven_empty(checkpoint: &ShardCheckpoint, position: Position) -> Option<Fence> {
    checkpoint.manifest.fences().iter().find(|fence| fence.position == position).copied()
}

/// An entry that the checkpoint needs is not there.
pub(crate) fn lost(shard: &Shard, checkpoint: &ShardCheckpoint, position: Position, log: &Result<Log>) -> Error {
    Error::CheckpointLost {
        shard: shard.id(),
        id: checkpoint.id,
        position,
        reason: match log {
            Ok(log) => format!("{} does not exist", log.entry_path(position)),
            Err(error) => error.to_string(),
        },
    }
}
