//! Taking a table that Lance made, or wrote to, into Fencepost's care: a table id for the dataset, and for each shard
//! the fences that garbage collection has to leave. What a shard needs is the log's to know.

use fencepost_wal::{Error as WalError, Shard, ShardId};
use futures::{StreamExt, TryStreamExt, stream};

use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::sharding::ShardValue;
use crate::shards::{self, SHARDS_AT_ONCE};

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
    /// Which rows it holds.
    pub value: ShardValue,
    /// Whether another engine had written to it since Fencepost, so that there was something to adopt.
    pub adopted: bool,
    /// Fences that its manifest gained.
    pub fences_added: u64,
}

pub(crate) async fn adopt(base: &BaseTable) -> Result<Adoption> {
    let had_id = base.refreshed().await?.has_table_id();
    let base = base.with_table_id().await?;
    let made = shards::discover(&base).await?.into_iter().filter(|shard| shard.made);
    let store = base.lance_store().store();
    let shards = stream::iter(made).map(|found| async move {
        match fencepost_wal::adopt(&Shard::new(store.clone(), found.id)).await {
            Ok(adopted) => Ok(Some(ShardAdoption {
                shard_id: found.id,
                value: found.value,
                adopted: adopted.version.is_some(),
                fences_added: adopted.fences.len() as u64,
            })),
            // A folder is all that there is of it.
            Err(WalError::ShardNotFound { .. }) => Ok(None),
            Err(error) => Err(Error::from(error)),
        }
    });
    let shards: Vec<Option<ShardAdoption>> = shards.buffered(SHARDS_AT_ONCE).try_collect().await?;
    Ok(Adoption { table_id_given: !had_id, shards: shards.into_iter().flatten().collect() })
}
