//! How appends get in front of the task that sends them: which columns they may have, how large ones are cut, who waits for whom, and
//! the budget that bounds what was accepted and has not landed. What waits there is in `waiting`.

use std::any::Any;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::admission::{Admitted, AppendRequest};
use super::measure::{Framing, bytes_in_memory};
use super::waiting::{Item, Waiting};
use super::{Durability, WalConfig};
use crate::entry::encode_rows;
use crate::error::{Error, Result};
use crate::gc::GcStats;
use crate::ids::Position;
use crate::stats::{Counters, WalStats, add, micros};
use crate::tenure::Tenure;

/// A share of the memory budget, and of what the admission controller gave for it; released when dropped.
#[derive(Debug, Default)]
pub struct Held {
    permit: Option<OwnedSemaphorePermit>,
    admitted: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Held {
    fn new(permit: OwnedSemaphorePermit, admitted: Option<Admitted>) -> Self {
        let admitted = admitted.and_then(Admitted::into_held).into_iter().collect();
        Self { permit: Some(permit), admitted }
    }

    /// Adds another share to this one.
    pub fn merge(&mut self, other: Held) {
        match (&mut self.permit, other.permit) {
            (Some(mine), Some(other)) => mine.merge(other),
            (mine @ None, other) => *mine = other,
            (Some(_), None) => {}
        }
        self.admitted.extend(other.admitted);
    }

    /// Bytes of the share.
    pub fn bytes(&self) -> usize {
        self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn split(&mut self, bytes: usize) -> Held {
        Held { permit: self.permit.as_mut().and_then(|permit| permit.split(bytes)), admitted: self.admitted.clone() }
    }
}

/// Columns that appends have, and what an entry of them takes beside its rows.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) schema: SchemaRef,
    pub(super) framing: Framing,
}

impl Columns {
    fn new(schema: SchemaRef, tenure: &Tenure) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { framing: Framing::of(&schema, tenure.identity())?, schema }))
    }
}

/// What appends may look like.
#[derive(Debug)]
struct Known {
    newest: Arc<Columns>,
    older: Vec<Arc<Columns>>,
}

/// The shared side of a writer.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) tenure: Tenure,
    pub(super) config: WalConfig,
    pub(super) counters: Counters,
    /// Rung when something was queued or the queue was closed.
    pub(super) bell: Notify,
    budget: Arc<Semaphore>,
    /// Who waits for memory goes first, in the order of coming.
    turn: tokio::sync::Mutex<()>,
    starving: AtomicUsize,
    hungry: Notify,
    /// Who asks the admission controller goes first, in the order of coming.
    admission_turn: tokio::sync::Mutex<()>,
    columns: Mutex<Known>,
    waiting: Mutex<Waiting>,
}

impl Queue {
    pub(super) fn new(tenure: Tenure, schema: SchemaRef, config: WalConfig) -> Result<Self> {
        let counters = Counters::default();
        counters.next_position.store(tenure.sentinel().next()?.get(), Ordering::Relaxed);
        Ok(Self {
            columns: Mutex::new(Known { newest: Columns::new(schema, &tenure)?, older: Vec::new() }),
            tenure,
            counters,
            bell: Notify::new(),
            budget: Arc::new(Semaphore::new(config.max_unflushed_bytes)),
            turn: tokio::sync::Mutex::default(),
            starving: AtomicUsize::new(0),
            hungry: Notify::new(),
            admission_turn: tokio::sync::Mutex::default(),
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
        let columns = self.columns_of(&batch)?;
        let rows = batch.num_rows();
        let bytes = bytes_in_memory(&batch)?;
        if bytes > self.config.max_unflushed_bytes {
            return Err(Error::TooLarge {
                what: format!("the append of {rows} rows"),
                actual: bytes,
                limit_name: "max_unflushed_bytes",
                limit: self.config.max_unflushed_bytes,
            });
        }
        let append = Accepted { pieces: self.pieces(batch, bytes, &columns)?, columns, bytes, durable };
        // Boxed, because every append that waits for the store holds this future: what is rare is kept out of it.
        match &self.config.admission {
            Some(_) => Box::pin(self.push_admitted(append, rows)).await,
            None => match self.push_now(append, None)? {
                Pushed::Queued(durability) => Ok(durability),
                Pushed::Starved(starved) => Box::pin(self.push_starving(*starved)).await,
            },
        }
    }

    /// Queues an append that has to be admitted.
    async fn push_admitted(&self, append: Accepted, rows: usize) -> Result<Durability> {
        // Its turn lasts until the append is queued: those behind it keep their order.
        let _turn = self.admission_turn.lock().await;
        let admitted = Some(self.admit(rows, append.bytes, append.durable).await?);
        match self.push_now(append, admitted)? {
            Pushed::Queued(durability) => Ok(durability),
            Pushed::Starved(starved) => self.push_starving(*starved).await,
        }
    }

    /// Queues an append if there is memory for it.
    fn push_now(&self, append: Accepted, admitted: Option<Admitted>) -> Result<Pushed<'_>> {
        let waiting = self.waiting();
        let budget = Arc::clone(&self.budget);
        // Nobody is passed who waits for memory, also if there is room by now: appends keep their order.
        if !self.is_waiting_for_memory()
            && let Ok(permit) = budget.try_acquire_many_owned(append.permits())
        {
            return Ok(Pushed::Queued(self.enqueue(waiting, append, Held::new(permit, admitted))?));
        }
        Ok(Pushed::Starved(Box::new(Starved { append, admitted, starving: Starving::new(self) })))
    }

    /// Queues an append when there is memory for it.
    async fn push_starving(&self, starved: Starved<'_>) -> Result<Durability> {
        let Starved { append, admitted, starving } = starved;
        self.hungry.notify_one();
        self.bell.notify_one();
        let (bytes, permits) = (append.bytes, append.permits());
        let acquired = async {
            let turn = self.turn.lock().await;
            (turn, Arc::clone(&self.budget).acquire_many_owned(permits).await)
        };
        let (_turn, permit) = self.saying_how_long(bytes, acquired).await;
        let permit = permit.map_err(|_| self.has_stopped())?;
        let waiting = self.waiting();
        let queued = self.enqueue(waiting, append, Held::new(permit, admitted));
        drop(starving);
        queued
    }

    /// Waits for memory, and says so now and then.
    async fn saying_how_long<T>(&self, bytes: usize, acquired: impl Future<Output = T>) -> T {
        let (started, interval) = (Instant::now(), self.config.backpressure_log_interval);
        let mut acquired = pin!(acquired);
        loop {
            tokio::select! {
                biased;
                acquired = &mut acquired => return acquired,
                () = tokio::time::sleep(interval) => tracing::warn!(
                    shard = %self.tenure.shard().id(),
                    waited = ?started.elapsed(),
                    bytes,
                    waiting = self.starving.load(Ordering::Relaxed),
                    unflushed_bytes = self.unflushed_bytes(),
                    max_unflushed_bytes = self.config.max_unflushed_bytes,
                    "an append waits for memory"
                ),
            }
        }
    }

    /// Asks the admission controller.
    async fn admit(&self, rows: usize, bytes: usize, urgent: bool) -> Result<Admitted> {
        let Some(admission) = &self.config.admission else {
            return Ok(Admitted::freely());
        };
        let (shard, started) = (self.tenure.shard().id(), Instant::now());
        let append = AppendRequest { shard, rows, bytes, urgent };
        let answer = tokio::select! {
            biased;
            () = self.tenure.stopped() => return Err(self.has_stopped()),
            answer = admission.admit(&append) => answer,
        };
        add(&self.counters.admission_micros, started.elapsed().as_micros());
        answer.map_err(|reason| {
            add(&self.counters.not_admitted, 1usize);
            Error::NotAdmitted { shard, rows, bytes, reason }
        })
    }

    /// Lets appends have these columns, too, from now on.
    pub(super) fn add_columns(&self, schema: SchemaRef) -> Result<()> {
        let columns = Columns::new(schema, &self.tenure)?;
        let mut known = self.known();
        let older = std::mem::replace(&mut known.newest, columns);
        known.older.push(older);
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.columns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn newest_columns(&self) -> Arc<Columns> {
        Arc::clone(&self.known().newest)
    }

    /// The columns of an append.
    fn columns_of(&self, batch: &RecordBatch) -> Result<Arc<Columns>> {
        let (known, given) = (self.known(), batch.schema_ref());
        let mut all = std::iter::once(&known.newest).chain(&known.older);
        let found = all.find(|columns| given.fields() == columns.schema.fields());
        let other = || Error::other_columns(self.tenure.shard().id(), given, &known.newest.schema);
        found.cloned().ok_or_else(other)
    }

    fn enqueue(&self, mut waiting: MutexGuard<'_, Waiting>, append: Accepted, mut held: Held) -> Result<Durability> {
        let Accepted { pieces, columns, bytes, durable } = append;
        // Checked under the lock: the flusher answers everything it finds queued when it stops, and nothing later.
        self.tenure.check()?;
        if waiting.closed {
            return Err(self.is_closed());
        }
        let (waiter, durability) = self.promise(bytes);
        add(&self.counters.appends, 1usize);
        add(&self.counters.rows, pieces.iter().map(|(b, _)| b.num_rows()).sum::<usize>());
        let last = pieces.len().saturating_sub(1);
        let mut waiter = Some(waiter);
        for (n, (batch, bytes)) in pieces.into_iter().enumerate() {
            waiting.push(Item {
                batch: Some(batch),
                columns: Some(Arc::clone(&columns)),
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
        let (waiter, durability) = self.promise(0);
        self.tenure.check()?;
        if waiting.finished {
            let _ = waiter.send(Ok(self.tenure.acknowledged()));
            return Ok(durability);
        }
        waiting.push(Item {
            batch: None,
            columns: None,
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

    fn has_stopped(&self) -> Error {
        self.tenure.check().err().unwrap_or_else(|| self.is_closed())
    }

    fn is_closed(&self) -> Error {
        Error::Closed { shard: self.tenure.shard().id() }
    }

    fn promise(&self, bytes: usize) -> (oneshot::Sender<Result<Position>>, Durability) {
        let (waiter, answer) = oneshot::channel();
        (waiter, Durability { answer, shard: self.tenure.shard().id(), bytes })
    }

    /// Splits a batch by rows into pieces that each fit into an entry of their own, mostly with room to spare. That
    /// is decided before anything is queued: a row that fits into no entry refuses its whole append.
    fn pieces(&self, batch: RecordBatch, bytes: usize, columns: &Columns) -> Result<Vec<(RecordBatch, usize)>> {
        // Two of them, with what is around them, are as much as fits.
        let limit = self.config.max_buffer_bytes;
        let around = columns.framing.of_entry(limit / 2) + columns.framing.of_batch(limit / 2);
        let target = (limit - around) / 2;
        let mut pieces = Vec::new();
        if bytes <= target || batch.num_rows() <= 1 {
            self.cut(batch, bytes, columns, &mut pieces)?;
            return Ok(pieces);
        }
        let rows = (batch.num_rows() * target / bytes).max(1);
        let mut start = 0;
        while start < batch.num_rows() {
            let piece = batch.slice(start, rows.min(batch.num_rows() - start));
            start += rows;
            let bytes = bytes_in_memory(&piece)?;
            self.cut(piece, bytes, columns, &mut pieces)?;
        }
        Ok(pieces)
    }

    /// Halves a batch until each part fits.
    fn cut(
        &self,
        batch: RecordBatch,
        bytes: usize,
        columns: &Columns,
        pieces: &mut Vec<(RecordBatch, usize)>,
    ) -> Result<()> {
        let limit = self.config.max_buffer_bytes;
        if !columns.framing.surely_fits(bytes, limit) {
            let actual = encode_rows(&columns.schema, std::slice::from_ref(&batch), self.tenure.identity())?.len();
            let rows = batch.num_rows();
            if actual > limit && rows <= 1 {
                return Err(Error::TooLarge { what: "one row".into(), actual, limit_name: "max_buffer_bytes", limit });
            }
            if actual > limit {
                for half in [batch.slice(0, rows / 2), batch.slice(rows / 2, rows - rows / 2)] {
                    let bytes = bytes_in_memory(&half)?;
                    self.cut(half, bytes, columns, pieces)?;
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
        let permit = Arc::clone(&self.budget).try_acquire_many_owned(permits).ok();
        Held { permit, admitted: Vec::new() }
    }

    pub(super) fn is_waiting_for_memory(&self) -> bool {
        self.starving.load(Ordering::Relaxed) > 0
    }

    fn unflushed_bytes(&self) -> u64 {
        (self.config.max_unflushed_bytes - self.budget.available_permits()) as u64
    }

    pub(super) async fn memory_wanted(&self) {
        self.hungry.notified().await;
    }

    pub(super) fn pending(&self) -> (u64, Vec<RecordBatch>) {
        self.waiting().pending()
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
        let io = c.io.stats();
        WalStats {
            epoch: self.tenure.epoch(),
            next_position: Position::new(get(&c.next_position)),
            acknowledged: self.tenure.acknowledged(),
            appends: get(&c.appends),
            rows: get(&c.rows),
            entries: io.count,
            entry_bytes: io.bytes,
            io,
            flush: c.flush.stats(),
            dead_positions: get(&c.dead_positions),
            backpressure_waits: get(&c.backpressure_waits),
            backpressure_time: micros(&c.backpressure_micros),
            backpressure_waiting: self.starving.load(Ordering::Relaxed) as u64,
            not_admitted: get(&c.not_admitted),
            admission_time: micros(&c.admission_micros),
            queued_bytes: self.waiting().bytes() as u64,
            gc: GcStats::default(),
            unflushed_bytes: self.unflushed_bytes(),
        }
    }
}

/// An append that fits and has not been queued yet.
struct Accepted {
    pieces: Vec<(RecordBatch, usize)>,
    columns: Arc<Columns>,
    bytes: usize,
    durable: bool,
}

impl Accepted {
    /// What it takes of the memory budget.
    fn permits(&self) -> u32 {
        u32::try_from(self.bytes).unwrap_or(u32::MAX)
    }
}

/// What became of an append that was to be queued.
enum Pushed<'a> {
    Queued(Durability),
    Starved(Box<Starved<'a>>),
}

/// An append that there was no memory for.
struct Starved<'a> {
    append: Accepted,
    admitted: Option<Admitted>,
    starving: Starving<'a>,
}

/// Counts an append as waiting for memory, also if its future is dropped meanwhile.
struct Starving<'a> {
    queue: &'a Queue,
    since: Instant,
}

impl<'a> Starving<'a> {
    fn new(queue: &'a Queue) -> Self {
        queue.starving.fetch_add(1, Ordering::Relaxed);
        add(&queue.counters.backpressure_waits, 1usize);
        Self { queue, since: Instant::now() }
    }
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.queue.starving.fetch_sub(1, Ordering::Relaxed);
        add(&self.queue.counters.backpressure_micros, self.since.elapsed().as_micros());
    }
}
