//! What a follower says of itself: how far it has come, and how far it is behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fencepost_wal::{Position, ShardId};
use tokio::time::Instant;

use super::table::Moment;
use crate::error::Error;
use crate::read::TableSnapshot;
use crate::written::Written;

/// Where a follower stands.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FollowerState {
    /// Rises with each state that differs from the one before.
    pub number: u64,
    /// The version of the base table.
    pub base_version: u64,
    /// Its shards, by id.
    pub shards: Vec<ShardLag>,
    /// How long ago it last knew that it had all of every shard; if it never did, since it was made.
    pub behind_for: Duration,
    /// Bytes of the rows and key indexes that it holds in memory; see [`max_bytes`](crate::FollowerConfig::max_bytes).
    pub memory_bytes: usize,
    /// It has reached that limit, and leaves the rest of the logs for later: until a writer flushes.
    pub is_full: bool,
    /// Why its last round failed; `None` if it did not. It goes on asking.
    pub last_error: Option<String>,
}

impl FollowerState {
    /// Positions of all logs that are known to have landed and that it has not read.
    pub fn positions_behind(&self) -> u64 {
        self.shards.iter().map(|shard| shard.positions_behind).sum()
    }

    /// Whether its last round found the end of every log.
    pub fn is_up_to_date(&self) -> bool {
        self.shards.iter().all(|shard| shard.is_up_to_date) && self.last_error.is_none()
    }
}

/// How far a follower is behind one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardLag {
    /// The shard.
    pub shard: ShardId,
    /// Every acknowledged row up to this position of its log is there.
    pub position: Position,
    /// Positions that are known to have landed and that it has not read.
    pub positions_behind: u64,
    /// How long ago it last knew that it had all; if it never did, since it was made.
    pub behind_for: Duration,
    /// Whether its last round found the end of the log.
    pub is_up_to_date: bool,
}

/// A consistent moment, ready to be handed out.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) number: u64,
    pub(super) snapshot: TableSnapshot,
    pub(super) superseded: BTreeSet<ShardId>,
    pub(super) moment: Moment,
}

impl Published {
    /// The first shard of which a position is not there yet, with how far it has come (`None`: it is not known).
    pub(super) fn missing(&self, written: &Written) -> Option<(ShardId, Position, Option<Position>)> {
        let missing = written.positions().map(|(shard, position)| {
            let stand = self.moment.stands.iter().find(|stand| stand.shard == shard);
            let reached = stand.map(|stand| stand.position);
            let is_there = reached.is_some_and(|reached| reached >= position) || self.superseded.contains(&shard);
            (!is_there).then_some((shard, position, reached))
        });
        missing.flatten().next()
    }
}

/// What readers of a follower watch.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub(super) published: Arc<Published>,
    pub(super) last_error: Option<Arc<Error>>,
    /// Why it moves no more.
    pub(super) ended: Option<Arc<Error>>,
}

impl Watched {
    pub(super) fn state(&self, made: Instant, memory_bytes: usize, is_full: bool) -> FollowerState {
        let moment = &self.published.moment;
        let shards = moment.stands.iter().map(|stand| ShardLag {
            shard: stand.shard,
            position: stand.position,
            positions_behind: stand.known_end.get().saturating_sub(stand.read_up_to.get()),
            behind_for: stand.as_of.unwrap_or(made).elapsed(),
            is_up_to_date: stand.as_of.is_some_and(|as_of| as_of >= moment.asked),
        });
        let shards: Vec<ShardLag> = shards.collect();
        // Of shards that it does not know it knows since the round that looked for them.
        let behind_for = shards.iter().map(|shard| shard.behind_for).fold(moment.asked.elapsed(), Duration::max);
        FollowerState {
            number: self.published.number,
            base_version: moment.base_version,
            shards,
            behind_for,
            memory_bytes,
            is_full,
            last_error: self.last_error.as_ref().map(ToString::to_string),
        }
    }
}
