//! Taking a table that Lance made, or wrote to, into Fencepost's care: a table id for the dataset, and for each shard
//! the fences that garbage collection has to leave. What a shard needs is the log's to know.

use fencepost_wal::ShardId;

use crate::base::BaseTable;
use crate::error::Result;
use crate::shards;

/// What [`Table::adopt`](crate::Table::adopt) did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// Whether the table had no id before.
    pub table_id_given: bool,
    /// The shards, in the order of their values.
    pub shards: Vec<ShardAdoption>,
}

/// What was done for one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardAdoption {
    /// The shard.
    pub shard_id: ShardId,
}

pub(crate) async fn adopt(base: &BaseTable) -> Result<Adoption> {
    let had_id = base.refreshed().await?.has_table_id();
    let base = base.with_table_id().await?;
    let made = shards::discover(&base).await?.into_iter().filter(|shard| shard.made);
    let shards = made.map(|shard| ShardAdoption { shard_id: shard.id }).collect();
    Ok(Adoption { table_id_given: !had_id, shards })
}
