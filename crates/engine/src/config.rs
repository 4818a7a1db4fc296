//! How a writer groups, keeps and limits rows.

use std::time::Duration;

use fencepost_wal::{OpenOptions, WalConfig};

use crate::error::{Error, Result};
use crate::index::IndexConfig;

/// How a [`ShardWriter`](crate::ShardWriter) works.
#[derive(Debug, Clone)]
pub struct WriterConfig {
    /// Whether `put` and `delete` wait until their rows are durable. If not, they return when the rows are in
    /// memory, a crash may lose them, and `flush` waits for them. Default true.
    pub durable: bool,
    /// Grouping, pace and limits of the log of each shard: `max_in_flight`, `linger` and `max_puts_per_second` decide how
    /// soon a row is durable and what that costs. `max_unflushed_bytes` bounds queue, MemTables and frozen MemTables
    /// together.
    pub wal: WalConfig,
    /// Limits of replaying the log at open.
    pub open: OpenOptions,
    /// The MemTable's limits; `None` for WAL-only: rows go to the log and stay there until a consumer truncates it.
    pub memtable: Option<MemTableConfig>,
    /// Shards that a [`TableWriter`](crate::TableWriter) has open at most, each with memory limits of its own. A table
    /// sharded by the values of a column gets a shard with each new value; a column with more values than this is the
    /// wrong one. Default 1024.
    pub max_shards: usize,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self {
            durable: true,
            wal: WalConfig::default(),
            open: OpenOptions::default(),
            memtable: Some(MemTableConfig::default()),
            max_shards: 1024,
        }
    }
}

impl WriterConfig {
    /// A writer without a MemTable.
    pub fn wal_only() -> Self {
        Self { memtable: None, ..Self::default() }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.wal.validate()?;
        if self.max_shards == 0 {
            return Err(Error::InvalidOptions("`max_shards` is 0; use 1 or more".into()));
        }
        let Some(memtable) = &self.memtable else {
            return Ok(());
        };
        for (name, limit) in [
            ("max_bytes", memtable.max_bytes),
            ("max_rows", memtable.max_rows),
            ("max_batches", memtable.max_batches),
            ("flush_attempts", memtable.flush_attempts),
        ] {
            if limit == 0 {
                return Err(Error::InvalidOptions(format!("the MemTable's `{name}` is 0; use 1 or more")));
            }
        }
        Ok(())
    }
}

/// When a MemTable is frozen and written as an SSTable: as soon as one of the limits is reached. An entry of the log
/// is never split, so a MemTable may exceed a limit by one entry.
#[derive(Debug, Clone)]
pub struct MemTableConfig {
    /// Bytes of its rows. Default 256 MiB.
    pub max_bytes: usize,
    /// Its rows. Default 100,000.
    pub max_rows: usize,
    /// Its batches: one for each log entry that has rows, several for entries of large batches. Default 8,000.
    pub max_batches: usize,
    /// Whether MemTables and SSTables have the secondary indexes of the base table that its MemWAL index names
    /// (`maintained_indexes`, `maintain_all_indexes`). Default true.
    pub maintain_indexes: bool,
    /// Secondary indexes besides these. Only this writer's MemTables and SSTables have them. Default none.
    pub indexes: Vec<IndexConfig>,
    /// How often `flush` and `close` see a flush fail before they return its error. The background task goes on
    /// trying. Default 5.
    pub flush_attempts: usize,
    /// Pause after a failed flush; doubles with each further one up to 30 s. Default 200 ms.
    pub flush_retry_delay: Duration,
}

impl Default for MemTableConfig {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
            max_rows: 100_000,
            max_batches: 8_000,
            maintain_indexes: true,
            indexes: Vec::new(),
            flush_attempts: 5,
            flush_retry_delay: Duration::from_millis(200),
        }
    }
}
