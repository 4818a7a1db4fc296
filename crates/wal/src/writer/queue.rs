//! What was accepted and has not landed: the queue between appends and the task that sends them, and the budget that
//! bounds it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::measure::{Framing, bytes_in_memory};
use super::{Durability, WalConfig};
use crate::entry::encode_rows;
use crate::error::{Error, Outcome, Result};
use crate::gc::GcStats;
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

/// Where an append or a flush is answered.
pub(super) type Waiter = oneshot::Sender<Result<Position>>;

/// One piece of an append, which goes into an entry as a whole; or, without a batch, a flush.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) batch: Option<RecordBatch>,
    pub(super) bytes: usize,
    pub(super) held: Held,
    /// Answered when this piece is acknowledged: set on the last piece of an append.
    pub(super) waiter: Option<Waiter>,
    pub(super) urgent: bool,
    pub(super) queued: Instant,
}

/// What was accepted and not acknowledged, in order: first `in_flight`, then `items`.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    items: VecDeque<Item>,
    /// Of all `items`.
    bytes: usize,
    /// When those `items` were queued that somebody waits for, in order.
    urgent: VecDeque<Instant>,
    /// How many `items` are flushes.
    flushes: usize,
    /// Batches that were taken from `items` and not given to the sink yet.
    in_flight: VecDeque<RecordBatch>,
    /// Batches that landed and were given to the sink.
    handed_over: u64,
    pub(super) closed: bool,
    /// Closed, and everything was acknowledged: nobody will take an item any more.
    pub(super) finished: bool,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn first(&self) -> Option<&Item> {
        self.items.front()
    }

    /// Bytes of the batches that were not taken.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether what waits is enough to be sent, and is to be sent whatever else may come. A flush alone sends nothing: it
    /// waits for answers.
    pub(super) fn is_pressing(&self, config: &WalConfig) -> bool {
        self.bytes > 0 && (self.closed || self.flushes > 0 || self.bytes >= config.max_buffer_bytes)
    }

    /// When the next group has waited long enough, perhaps in the past; `None` if there is nothing to send.
    pub(super) fn due(&self, config: &WalConfig) -> Option<Instant> {
        let first = self.items.front().filter(|_| self.bytes > 0)?;
        let interval = first.queued + config.flush_interval;
        Some(self.urgent.front().map_or(interval, |queued| interval.min(*queued + config.linger)))
    }

    /// How many items somebody waits for.
    pub(super) fn urgent(&self) -> usize {
        self.urgent.len()
    }

    fn push(&mut self, item: Item) {
        self.bytes += item.bytes;
        self.urgent.extend(item.urgent.then_some(item.queued));
        self.flushes += usize::from(item.batch.is_none());
        self.items.push_back(item);
    }

    /// Takes the first item. A batch is in flight from here on: a reader of the queue misses it at no moment.
    pub(super) fn take(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.bytes -= item.bytes;
        if item.urgent {
            self.urgent.pop_front();
        }
        self.flushes -= usize::from(item.batch.is_none());
        self.in_flight.extend(item.batch.clone());
        Some(item)
    }

    /// Undoes the latest [`take`](Self::take).
    pub(super) fn give_back(&mut self, item: Item) {
        self.bytes += item.bytes;
        if item.urgent {
            self.urgent.push_front(item.queued);
        }
        match item.batch {
            Some(_) => drop(self.in_flight.pop_back()),
            None => self.flushes += 1,
        }
        self.items.push_front(item);
    }

    /// The first `batches` in flight have been given to the sink.
    pub(super) fn hand_over(&mut self, batches: usize) {
        self.in_flight.drain(..batches.min(self.in_flight.len()));
        self.handed_over += batches as u64;
    }

    /// Takes everything, for good: the writer has stopped.
    pub(super) fn abandon(&mut self) -> VecDeque<Item> {
        self.closed = true;
        self.in_flight.clear();
        self.bytes = 0;
        self.urgent.clear();
        self.flushes = 0;
        std::mem::take(&mut self.items)
    }
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
    /// Who waits for memory goes first, in the order of coming.
    turn: tokio::sync::Mutex<()>,
    starving: AtomicUsize,
    hungry: Notify,
    framing: Framing,
    waiting: Mutex<Waiting>,
}

impl Queue {
    pub(super) fn new(tenure: Tenure, schema: SchemaRef, config: WalConfig) -> Result<Self> {
        let counters = Counters::default();
        counters.next_position.store(tenure.sentinel().next()?.get(), Ordering::Relaxed);
        Ok(Self {
            framing: Framing::of(&schema, tenure.identity())?,
            tenure,
            schema,
            counters,
            bell: Notify::new(),
            budget: Arc::new(Semaphore::new(config.max_unflushed_bytes)),
            turn: tokio::sync::Mutex::default(),
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
            return Err(Error::other_columns(self.tenure.shard().id(), batch.schema_ref(), &self.schema));
        }
        let bytes = bytes_in_memory(&batch)?;
        if bytes > self.config.max_unflushed_bytes {
            return Err(Error::TooLarge {
                what: format!("the append of {} rows", batch.num_rows()),
                actual: bytes,
                limit_name: "max_unflushed_bytes",
                limit: self.config.max_unflushed_bytes,
            });
        }
        let pieces = self.pieces(batch, bytes)?;
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let starving = {
            let waiting = self.waiting();
            // Nobody is passed who waits for memory, also if there is room by now: appends keep their order.
            if !self.is_waiting_for_memory()
                && let Ok(permit) = Arc::clone(&self.budget).try_acquire_many_owned(permits)
            {
                return self.enqueue(waiting, pieces, Held(Some(permit)), durable);
            }
            Starving::new(&self.starving)
        };
        let started = Instant::now();
        self.hungry.notify_one();
        self.bell.notify_one();
        let _turn = self.turn.lock().await;
        let permit = Arc::clone(&self.budget).acquire_many_owned(permits).await;
        add(&self.counters.backpressure_waits, 1usize);
        add(&self.counters.backpressure_micros, started.elapsed().as_micros());
        let permit = permit.map_err(|_| self.tenure.check().err().unwrap_or_else(|| self.is_closed()))?;
        let waiting = self.waiting();
        let accepted = self.enqueue(waiting, pieces, Held(Some(permit)), durable);
        drop(starving);
        accepted
    }

    fn enqueue(
        &self,
        mut waiting: MutexGuard<'_, Waiting>,
        pieces: Vec<(RecordBatch, usize)>,
        mut held: Held,
        durable: bool,
    ) -> Result<Durability> {
        // Checked under the lock: the flusher answers everything it finds queued when it stops, and nothing later.
        self.tenure.check()?;
        if waiting.closed {
            return Err(self.is_closed());
        }
        let (waiter, durability) = self.promise();
        add(&self.counters.appends, 1usize);
        add(&self.counters.rows, pieces.iter().map(|(b, _)| b.num_rows()).sum::<usize>());
        let last = pieces.len().saturating_sub(1);
        let mut waiter = Some(waiter);
        for (n, (batch, bytes)) in pieces.into_iter().enumerate() {
            waiting.push(Item {
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
        self.enqueue_barrier(self.waiting())
    }

    /// Refuses appends from now on and queues such a marker, in one step: an append of another thread that came in
    /// between would still be under way when the tenure is declared closed cleanly.
    pub(super) fn close_behind_barrier(&self) -> Result<Durability> {
        let mut waiting = self.waiting();
        waiting.closed = true;
        self.enqueue_barrier(waiting)
    }

    fn enqueue_barrier(&self, mut waiting: MutexGuard<'_, Waiting>) -> Result<Durability> {
        let (waiter, durability) = self.promise();
        self.tenure.check()?;
        if waiting.finished {
            let _ = waiter.send(Ok(self.tenure.acknowledged()));
            return Ok(durability);
        }
        waiting.push(Item {
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

    fn is_closed(&self) -> Error {
        Error::Closed { shard: self.tenure.shard().id() }
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

    /// Splits a batch by rows into pieces that each fit into an entry of their own, mostly with room to spare. That
    /// is decided before anything is queued: a row that fits into no entry refuses its whole append.
    fn pieces(&self, batch: RecordBatch, bytes: usize) -> Result<Vec<(RecordBatch, usize)>> {
        let target = self.config.max_buffer_bytes / 2;
        let mut pieces = Vec::new();
        if bytes <= target || batch.num_rows() <= 1 {
            self.cut(batch, bytes, &mut pieces)?;
            return Ok(pieces);
        }
        let rows = (batch.num_rows() * target / bytes).max(1);
        let mut start = 0;
        while start < batch.num_rows() {
            let piece = batch.slice(start, rows.min(batch.num_rows() - start));
            start += rows;
            let bytes = bytes_in_memory(&piece)?;
            self.cut(piece, bytes, &mut pieces)?;
        }
        Ok(pieces)
    }

    /// Halves a batch until each part fits.
    fn cut(&self, batch: RecordBatch, bytes: usize, pieces: &mut Vec<(RecordBatch, usize)>) -> Result<()> {
        let limit = self.config.max_buffer_bytes;
        if !self.framing.surely_fits(bytes, limit) {
            let actual = encode_rows(&self.schema, std::slice::from_ref(&batch), self.tenure.identity())?.len();
            let rows = batch.num_rows();
            if actual > limit && rows <= 1 {
                return Err(Error::TooLarge { what: "one row".into(), actual, limit_name: "max_buffer_bytes", limit });
            }
            if actual > limit {
                for half in [batch.slice(0, rows / 2), batch.slice(rows / 2, rows - rows / 2)] {
                    let bytes = bytes_in_memory(&half)?;
                    self.cut(half, bytes, pieces)?;
                }
                return Ok(());
            }
        }
        pieces.push((batch, bytes));
        Ok(())
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
            gc: GcStats::default(),
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
