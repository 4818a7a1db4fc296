//! Where the rows of a call are in the logs: what a reader in another process brings, to see them.

use std::collections::BTreeMap;

use fencepost_wal::{Position, ShardId};

/// For each shard that a call wrote to, the position of the last log entry that holds one of its rows. A reader that has
/// reached these positions sees the rows. Empty for a call without rows, and for one that did not wait until its rows
/// were durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    positions: BTreeMap<ShardId, Position>,
}

impl Written {
    pub(crate) fn in_shard(shard: ShardId, position: Position) -> Self {
        Self { positions: BTreeMap::from([(shard, position)]) }
    }

    /// The positions, by shard.
    pub fn positions(&self) -> impl ExactSizeIterator<Item = (ShardId, Position)> {
        self.positions.iter().map(|(shard, position)| (*shard, *position))
    }

    /// Also the rows of another call: of each shard the higher position.
    pub fn and(mut self, other: Written) -> Self {
        for (shard, position) in other.positions {
            let reached = self.positions.entry(shard).or_insert(position);
            *reached = position.max(*reached);
        }
        self
    }
}
