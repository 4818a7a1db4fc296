//! What a writer has done so far, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::gc::GcStats;
use crate::ids::{Epoch, Position};

/// A moment's counters of a [`WalWriter`](crate::WalWriter). Counts are since the writer was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalStats {
    /// The writer's epoch.
    pub epoch: Epoch,
    /// The position that the next entry gets.
    pub next_position: Position,
    /// The last position that was acknowledged; the fence sentinel's before the first.
    pub acknowledged: Position,
    /// Calls of append that were accepted.
    pub appends: u64,
    /// Rows in them.
    pub rows: u64,
    /// Entries that landed.
    pub entries: u64,
    /// Bytes of those objects.
    pub entry_bytes: u64,
    /// Time that their PUTs took, added up, retries included.
    pub put_time: Duration,
    /// Positions passed over because a fenced writer's straggler stood there.
    pub dead_positions: u64,
    /// Appends that had to wait for memory.
    pub backpressure_waits: u64,
    /// Time that they waited, added up.
    pub backpressure_time: Duration,
    /// Bytes accepted and not yet released, by the same estimate as `max_unflushed_bytes`.
    pub unflushed_bytes: u64,
    /// What the collection of the shard beside the writer has done.
    pub gc: GcStats,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) appends: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) entries: AtomicU64,
    pub(crate) entry_bytes: AtomicU64,
    pub(crate) put_micros: AtomicU64,
    pub(crate) dead_positions: AtomicU64,
    pub(crate) backpressure_waits: AtomicU64,
    pub(crate) backpressure_micros: AtomicU64,
    pub(crate) next_position: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: impl TryInto<u64>) {
    counter.fetch_add(n.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
}

pub(crate) fn micros(counter: &AtomicU64) -> Duration {
    Duration::from_micros(counter.load(Ordering::Relaxed))
}
