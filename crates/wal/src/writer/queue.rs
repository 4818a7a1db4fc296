//! What was accepted and has not landed: the queue between appends and the task that sends them, and the budget that
//! bounds it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_array::{Array, RecordBatch};
use arrow_schema::SchemaRef;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::{Durability, WalConfig};
use crate::error::{Error, Outcome, Result};
use crate::ids::Position;
use crate::stats::{Counters, WalStats, add, micros};
use crate::tenure::Tenure;

/// A share of the memory budget, released when dropped.
#[derive(Debug, Default)]
pub struct Held(Option<OwnedSemaphorePermit>);

impl Held {
    /// Adds another share to this one.
    pub fn merge(&mut self, other: Held) {
        match (&mut self.0, other.0) {
            (Some(mine), Some(other)) => mine.merge(other),
            (mine @ None, other) => *mine = other,
            (Some(_), None) => {}
        }
    }

    /// Bytes of the share.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn split(&mut self, bytes: usize) -> Held {
        Held(self.0.as_mut().and_then(|permit| permit.split(bytes)))
    }
}

/// One piece of an append: what goes into an entry as a whole.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) batch: Option<RecordBatch>,
    pub(super) bytes: usize,
    pub(super) held: Held,
    /// Answered when this piece is acknowledged: set on the last piece of an append.
    pub(super) waiter: Option<oneshot::Sender<Result<Position>>>,
    pub(super) urgent: bool,
    pub(super) queued: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) items: VecDeque<Item>,
    pub(super) bytes: usize,
    /// Batches that were taken from `items` and have not landed, in order.
    pub(super) in_flight: VecDeque<RecordBatch>,
    /// Batches that landed and were given to the sink.
    pub(super) handed_over: u64,
    pub(super) closed: bool,
}

/// The shared side of a writer.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) tenure: Tenure,
    pub(super) schema: SchemaRef,
    pub(super) config: WalConfig,
    pub(super) counters: Counters,
    /// Rung when something was queued or the queue was closed.
    pub(super) bell: Notify,
    budget: Arc<Semaphore>,
    starving: AtomicUsize,
    hungry: Notify,
    waiting: Mutex<Waiting>,
}

impl Queue {
    pub(super) fn new(tenure: Tenure, schema: SchemaRef, config: WalConfig) -> Result<Self> {
        let counters = Counters::default();
        counters.next_position.store(tenure.sentinel().next()?.get(), Ordering::Relaxed);
        Ok(Self {
            tenure,
            schema,
            counters,
            bell: Notify::new(),
            budget: Arc::new(Semaphore::new(config.max_unflushed_bytes)),
            starving: AtomicUsize::new(0),
            hungry: Notify::new(),
            waiting: Mutex::default(),
            config,
        })
    }

    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a batch, waiting for memory if need be.
    pub(super) async fn push(&self, batch: RecordBatch, durable: bool) -> Result<Durability> {
        self.tenure.check()?;
        if batch.schema_ref().fields() != self.schema.fields() {
            return Err(Error::InvalidArgument(format!(
                "the batch has the columns {:?}, the log of shard {} has {:?}",
                names(batch.schema_ref()),
                self.tenure.shard().id(),
                names(&self.schema)
            )));
        }
        let bytes = estimate(&batch)?;
        if bytes > self.config.max_unflushed_bytes {
            return Err(Error::TooLarge {
                what: format!("the append of {} rows", batch.num_rows()),
                actual: bytes,
                limit_name: "max_unflushed_bytes",
                limit: self.config.max_unflushed_bytes,
            });
        }
        let pieces = self.pieces(batch, bytes)?;
        let mut held = self.room_for(bytes).await?;
        let (waiter, durability) = self.promise();
        let mut waiting = self.waiting();
        // Checked under the lock: the flusher answers everything it finds queued when it stops, and nothing later.
        self.tenure.check()?;
        if waiting.closed {
            return Err(Error::Closed { shard: self.tenure.shard().id() });
        }
        add(&self.counters.appends, 1usize);
        add(&self.counters.rows, pieces.iter().map(|(b, _)| b.num_rows()).sum::<usize>());
        let last = pieces.len().saturating_sub(1);
        let mut waiter = Some(waiter);
        for (n, (batch, bytes)) in pieces.into_iter().enumerate() {
            waiting.bytes += bytes;
            waiting.items.push_back(Item {
                batch: Some(batch),
                bytes,
                held: if n == last { std::mem::take(&mut held) } else { held.split(bytes) },
                waiter: if n == last { waiter.take() } else { None },
                urgent: durable,
                queued: Instant::now(),
            });
        }
        drop(waiting);
        self.bell.notify_one();
        Ok(durability)
    }

    /// Queues a marker that is answered when everything before it is acknowledged.
    pub(super) fn push_barrier(&self) -> Result<Durability> {
        let (waiter, durability) = self.promise();
        let mut waiting = self.waiting();
        self.tenure.check()?;
        if waiting.closed {
            return Err(Error::Closed { shard: self.tenure.shard().id() });
        }
        waiting.items.push_back(Item {
            batch: None,
            bytes: 0,
            held: Held::default(),
            waiter: Some(waiter),
            urgent: true,
            queued: Instant::now(),
        });
        drop(waiting);
        self.bell.notify_one();
        Ok(durability)
    }

    fn promise(&self) -> (oneshot::Sender<Result<Position>>, Durability) {
        let (waiter, answer) = oneshot::channel();
        let dropped = Error::Poisoned {
            shard: self.tenure.shard().id(),
            reason: "the writer was dropped".into(),
            outcome: Outcome::Unknown,
        };
        (waiter, Durability { answer, dropped })
    }

    /// Splits a batch by rows so that each piece fits into an entry of its own with room to spare.
    fn pieces(&self, batch: RecordBatch, bytes: usize) -> Result<Vec<(RecordBatch, usize)>> {
        let target = self.config.max_buffer_bytes / 2;
        if bytes <= target || batch.num_rows() <= 1 {
            return Ok(vec![(batch, bytes)]);
        }
        let rows = (batch.num_rows() * target / bytes).max(1);
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < batch.num_rows() {
            let piece = batch.slice(start, rows.min(batch.num_rows() - start));
            start += rows;
            let bytes = estimate(&piece)?;
            pieces.push((piece, bytes));
        }
        Ok(pieces)
    }

    async fn room_for(&self, bytes: usize) -> Result<Held> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let closed = |_| self.tenure.check().err().unwrap_or(Error::Closed { shard: self.tenure.shard().id() });
        let acquire = Arc::clone(&self.budget).acquire_many_owned(permits);
        tokio::pin!(acquire);
        if let std::task::Poll::Ready(permit) = futures::poll!(&mut acquire) {
            return permit.map(|p| Held(Some(p))).map_err(closed);
        }
        let started = Instant::now();
        let _starving = Starving::new(&self.starving);
        self.hungry.notify_one();
        let permit = acquire.await;
        add(&self.counters.backpressure_waits, 1usize);
        add(&self.counters.backpressure_micros, started.elapsed().as_micros());
        permit.map(|p| Held(Some(p))).map_err(closed)
    }

    pub(super) fn hold(&self, bytes: usize) -> Held {
        let permits = bytes.min(self.budget.available_permits());
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        Held(Arc::clone(&self.budget).try_acquire_many_owned(permits).ok())
    }

    pub(super) fn is_waiting_for_memory(&self) -> bool {
        self.starving.load(Ordering::Relaxed) > 0
    }

    pub(super) async fn memory_wanted(&self) {
        self.hungry.notified().await;
    }

    pub(super) fn pending(&self) -> (u64, Vec<RecordBatch>) {
        let waiting = self.waiting();
        let queued = waiting.items.iter().filter_map(|item| item.batch.as_ref());
        (waiting.handed_over, waiting.in_flight.iter().chain(queued).cloned().collect())
    }

    pub(super) fn close(&self) {
        self.waiting().closed = true;
        self.bell.notify_one();
    }

    /// Wakes everybody who waits for memory, to find out that the writer stopped.
    pub(super) fn stop_waiting_for_memory(&self) {
        self.budget.close();
        self.hungry.notify_one();
    }

    pub(super) fn stats(&self) -> WalStats {
        let c = &self.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WalStats {
            epoch: self.tenure.epoch(),
            next_position: Position::new(get(&c.next_position)),
            acknowledged: self.tenure.acknowledged(),
            appends: get(&c.appends),
            rows: get(&c.rows),
            entries: get(&c.entries),
            entry_bytes: get(&c.entry_bytes),
            put_time: micros(&c.put_micros),
            dead_positions: get(&c.dead_positions),
            backpressure_waits: get(&c.backpressure_waits),
            backpressure_time: micros(&c.backpressure_micros),
            unflushed_bytes: (self.config.max_unflushed_bytes - self.budget.available_permits()) as u64,
        }
    }
}

/// Counts an append as waiting for memory, also if its future is dropped meanwhile.
struct Starving<'a>(&'a AtomicUsize);

impl<'a> Starving<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn names(schema: &SchemaRef) -> Vec<String> {
    schema.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type())).collect()
}

/// Bytes that a batch takes in memory, slices counted as what they show; at least one.
fn estimate(batch: &RecordBatch) -> Result<usize> {
    let mut bytes = 1;
    for column in batch.columns() {
        bytes += column.to_data().get_slice_memory_size().map_err(Error::arrow("cannot measure a batch"))?;
    }
    Ok(bytes)
}
