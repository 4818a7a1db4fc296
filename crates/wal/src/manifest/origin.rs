//! What a shard shares with shards of other tables, or of its own: where it was cloned from, and where the SSTables are
//! that it lists without having them in its folder (protocol section 10). Names places, opens none.

use uuid::Uuid;

use crate::ids::{Position, ShardId};
use crate::shard::Shard;
use crate::store::Store;

/// The place of a shard, as another shard's manifest records it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardPlace {
    /// The URL of its table.
    pub url: String,
    /// The shard.
    pub shard_id: ShardId,
}

impl ShardPlace {
    /// The place of a shard.
    pub fn of(shard: &Shard) -> Self {
        Self { url: shard.store().url().to_string(), shard_id: shard.id() }
    }

    /// The shard, as the process of another store reaches it; see [`Store::sibling`].
    ///
    /// # Errors
    /// [`Error::InvalidUrl`](crate::Error::InvalidUrl) if the URL cannot be opened here.
    pub fn open(&self, from: &Store) -> crate::Result<Shard> {
        Ok(Shard::new(from.sibling(&self.url)?, self.shard_id))
    }
}

/// Where a cloned shard comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The shard that it was cloned from.
    pub place: ShardPlace,
    /// The checkpoint of that shard that it began with.
    pub checkpoint: Uuid,
    /// R of that checkpoint: what stood in the log up to there, the clone never had.
    pub after: Position,
    /// Whether everything that the clone needs is in its place, which alone lets it open.
    pub initialized: bool,
    /// The shards on which it has a pin, so that what it shares with them stays: the one it was cloned from, and those whose
    /// SSTables that one shared in turn.
    pub pins: Vec<ShardPlace>,
    /// Fields that this code does not know.
    pub(crate) unknown: Vec<u8>,
}

/// Where an SSTable is that lies in another shard's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SsTableBase {
    /// The shard in whose folder it is.
    pub place: ShardPlace,
    /// The rows of it that belong to the shard that lists it; `None`: all.
    pub filter: Option<RowFilter>,
    /// Fields that this code does not know.
    pub(crate) unknown: Vec<u8>,
}

/// The rows of one bucket, for a shard that was made by a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowFilter {
    /// How many buckets the values of the sharding column are spread over.
    pub buckets: u32,
    /// The bucket.
    pub bucket: u32,
}
