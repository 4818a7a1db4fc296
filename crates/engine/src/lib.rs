//! Fencepost: the write path for Lance tables on object storage.

pub use fencepost_wal as wal;
pub use fencepost_wal::{Epoch, Generation, Position, ShardId, Store};

mod base;
mod error;
mod key;
mod lance_store;
mod memtable;
mod sharding;
mod sstable;

pub use error::{Error, Result};
pub use sharding::Sharding;
