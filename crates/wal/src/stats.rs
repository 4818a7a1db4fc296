//! What a writer has done so far, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::gc::GcStats;
use crate::ids::{Epoch, Position};
use crate::meter::{Meter, OperationStats};

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
    /// The PUTs of those entries, retries included: each from its start until it is known to have landed.
    pub io: OperationStats,
    /// Acknowledged entries: each from the moment its rows were taken from the queue, through encoding, a wait for a PUT
    /// that may start, and its PUT, until it and every entry before it had landed.
    pub flush: OperationStats,
    /// Positions passed over because a fenced writer's straggler stood there.
    pub dead_positions: u64,
    /// Appends that had to wait for memory, those that still wait included.
    pub backpressure_waits: u64,
    /// Time that they waited, added up, without those that still wait.
    pub backpressure_time: Duration,
    /// Appends that wait for memory now.
    pub backpressure_waiting: u64,
    /// Appends that the admission controller refused.
    pub not_admitted: u64,
    /// Time that appends waited for the admission controller's answer, added up.
    pub admission_time: Duration,
    /// Bytes accepted and not yet made an entry of, by the same estimate as `max_unflushed_bytes`.
    pub queued_bytes: u64,
    /// Bytes accepted and not yet released, by the same estimate as `max_unflushed_bytes`.
    pub unflushed_bytes: u64,
    /// What the collection of the shard beside the writer has done.
    pub gc: GcStats,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) appends: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) io: Meter,
    pub(crate) flush: Meter,
    pub(crate) dead_positions: AtomicU64,
    pub(crate) backpressure_waits: AtomicU64,
    pub(crate) backpressure_micros: AtomicU64,
    pub(crate) not_admitted: AtomicU64,
    pub(crate) admission_micros: AtomicU64,
    pub(crate) next_position: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: impl TryInto<u64>) {
    counter.fetch_add(n.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
}

pub(crate) fn micros(counter: &AtomicU64) -> Duration {
    Duration::from_micros(counter.load(Ordering::Relaxed))
}
