//! What a shard's writer has done so far, in numbers.

use std::time::Duration;

use fencepost_wal::WalStats;

use super::flush::Progress;

/// A moment's counters of a [`ShardWriter`](crate::ShardWriter), since it was opened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WriterStats {
    /// The log's counters.
    pub wal: WalStats,
    /// SSTables that were published.
    pub flushes: u64,
    /// Rows in them.
    pub flushed_rows: u64,
    /// Time that writing and publishing them took, successful attempts only.
    pub flush_time: Duration,
    /// Attempts that failed and were, or will be, repeated.
    pub flush_failures: u64,
    /// The last of those failures.
    pub last_flush_failure: Option<String>,
}

impl WriterStats {
    pub(super) fn new(wal: WalStats, progress: Progress) -> Self {
        Self {
            wal,
            flushes: progress.flushes,
            flushed_rows: progress.rows,
            flush_time: progress.time,
            flush_failures: progress.failures,
            last_flush_failure: progress.last_failure,
        }
    }
}
