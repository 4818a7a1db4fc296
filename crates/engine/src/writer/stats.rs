//! What a shard's writer has done so far, in numbers.

use fencepost_wal::{OperationStats, WalStats};

use super::flush::Progress;

/// A moment's counters of a [`ShardWriter`](crate::ShardWriter), since it was opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WriterStats {
    /// The log's counters: its entries ([`flush`](WalStats::flush)), their PUTs ([`io`](WalStats::io)), and what waits.
    pub wal: WalStats,
    /// Puts and deletes that took rows: each until its call returned. That is when the rows were durable, or with
    /// `durable: false` and in calls that end in `_no_wait`, when they were queued.
    pub put: OperationStats,
    /// Log entries that were applied to the MemTable and its indexes, those of the replay at open among them.
    pub index_update: OperationStats,
    /// SSTables: each from the beginning of the attempt that succeeded until it was published.
    pub memtable_flush: OperationStats,
    /// SSTables that were published.
    pub flushes: u64,
    /// Rows in them.
    pub flushed_rows: u64,
    /// Attempts that failed and were, or will be, repeated.
    pub flush_failures: u64,
    /// The last of those failures.
    pub last_flush_failure: Option<String>,
}

impl WriterStats {
    /// Of a writer without a MemTable.
    pub(super) fn of_log(wal: WalStats, put: OperationStats) -> Self {
        Self {
            wal,
            put,
            index_update: OperationStats::default(),
            memtable_flush: OperationStats::default(),
            flushes: 0,
            flushed_rows: 0,
            flush_failures: 0,
            last_flush_failure: None,
        }
    }

    pub(super) fn with_memtable(
        self,
        index_update: OperationStats,
        memtable_flush: OperationStats,
        progress: Progress,
    ) -> Self {
        Self {
            index_update,
            memtable_flush,
            flushes: memtable_flush.count,
            flushed_rows: memtable_flush.rows,
            flush_failures: progress.failures,
            last_flush_failure: progress.last_failure,
            ..self
        }
    }
}
