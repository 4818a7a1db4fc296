//! Fencepost: the write path for Lance tables on object storage.
//!
//! Batches of Arrow rows are durable after one conditional PUT, can be queried at once with SQL, and become Lance
//! files in the background. A process that was replaced can never acknowledge another write. No broker, no local
//! disk, no coordinator: the object store is the only shared thing.
//!
//! It is not a broker with consumer groups, not a transaction manager across shards, and not a query engine of its
//! own: DataFusion and Lance are that.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{collections::HashMap, sync::Arc};
//! use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
//! use datafusion::prelude::SessionContext;
//! use fencepost::{Sharding, Store, Table, TableOptions, WriterConfig};
//!
//! let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
//! let names: ArrayRef = Arc::new(StringArray::from(vec!["ann", "bob"]));
//! let batch = RecordBatch::try_from_iter([("id", ids), ("name", names)])?;
//!
//! let store = Store::open("s3://bucket/people", &HashMap::new())?;
//! let options = TableOptions { primary_key: vec!["id".into()], sharding: Sharding::Unsharded };
//! let table = Table::create(store, batch.schema(), options).await?;
//!
//! let writer = table.writer(WriterConfig::default()).await?;
//! writer.put(batch).await?; // durable now
//!
//! let sql = SessionContext::new();
//! sql.register_table("t", writer.provider().await?)?;
//! sql.sql("select count(*) from t").await?.show().await?;
//! writer.close().await?;
//! # Ok(()) }
//! ```
//!
//! | to … | use |
//! |---|---|
//! | make or open a table | [`Table`] |
//! | write to it | [`TableWriter`], or [`ShardWriter`] for one shard |
//! | query it from any process | [`Table::provider`], or a [`Table::snapshot`] that holds still |
//! | keep up with it, in any process | [`Table::follow`] |
//! | move what was flushed into the base table | [`Table::merge`] |
//! | delete what nobody needs any more | [`Table::gc`]; writers do it for their shards |
//! | keep a moment of it, and read it as it was then | [`Table::checkpoint`], [`Table::provider_at`] |
//! | fork it, and give a fork up | [`Table::clone_to`], [`Table::delete`] |
//! | split its buckets, or join them | [`Table::reshard`] |
//! | see where it stands | [`Table::inspect`] |
//! | prove that it is whole | [`Table::verify`] |
//! | write to a table that Lance made | [`Table::adopt`], [`Table::shard_writer`] |
//! | work on the log itself | the crate [`wal`] |

#![forbid(unsafe_code)]

pub use fencepost_wal as wal;
pub use fencepost_wal::{
    Admission, Admitted, AppendRequest, Epoch, Generation, Latency, OperationStats, Outcome, Position, ShardId, Store,
};

mod adopt;
mod base;
mod checkpoint;
mod clone;
mod config;
mod defaults;
mod delete;
mod durability;
mod error;
mod evolution;
mod follow;
mod gc;
mod index;
mod inspect;
mod key;
mod lance_store;
mod memtable;
mod merge;
#[doc(hidden)]
pub mod raw;
mod read;
mod reshard;
mod rows;
mod sharding;
mod shards;
mod sstable;
mod table;
pub mod verify;
mod writer;
mod written;

pub use adopt::{Adoption, ShardAdoption};
pub use checkpoint::{CheckpointOptions, CheckpointScope, CheckpointedShard, TableCheckpoint};
pub use clone::{CloneOptions, CloneReport};
pub use config::{MemTableConfig, WriterConfig};
pub use delete::{DeleteOptions, DeleteReport};
pub use durability::Durability;
pub use error::{Error, Result};
pub use follow::{Follower, FollowerConfig, FollowerState, ShardLag, is_collected};
pub use gc::{ShardGcPlan, ShardGcReport, TableGcReport};
pub use index::{FullTextConfig, IndexConfig, IndexKind, Metric, VectorConfig};
pub use inspect::{BaseInspection, FenceInspection, Inspection, MergedInspection, ShardInspection, SsTableInspection};
pub use merge::{MergeOptions, MergeProgress, MergeReport};
pub use read::{HybridQuery, TableSnapshot, TextQuery, VectorQuery, register_tables};
pub use reshard::ReshardReport;
pub use sharding::{ShardValue, Sharding};
pub use table::{Table, TableOptions};
pub use verify::{ShardVerification, Verification, VerifyProgress};
pub use writer::{MemTableStats, ShardWriter, TableWriter, WriterStats};
pub use written::Written;
