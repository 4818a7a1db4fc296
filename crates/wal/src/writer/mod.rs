//! The batched writer: many small appends share one entry (group commit), entries are acknowledged in order, and
//! memory is bounded by one budget. It owns the queue and the task that empties it; the log's rules are in
//! `tenure` and `slot`.

mod admission;
mod config;
mod flusher;
mod group;
mod measure;
mod pace;
mod queue;
mod waiting;

use std::future::Future;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use tokio::sync::oneshot;

use crate::background::BackgroundTask;
use crate::claim::{OpenOptions, Opened, Replay, open};
use crate::entry::check_schema;
use crate::error::{Error, Outcome, Result};
use crate::gc::{BackgroundGc, BaseProgress};
use crate::ids::{Position, ShardId};
use crate::manifest::ShardManifest;
use crate::mutants::{Mutant, is_on};
use crate::shard::Shard;
use crate::stats::WalStats;
use crate::tenure::Tenure;

pub use admission::{Admission, Admitted, AppendRequest};
pub use config::WalConfig;
use flusher::Flusher;
pub(crate) use measure::{bytes_in_memory, is_sent_as_slices};
pub use queue::Held;
use queue::Queue;

/// Receives entries once they landed, in order, before their appends are acknowledged: what a MemTable is fed by.
pub trait Landed: Send + 'static {
    /// Takes one entry.
    ///
    /// # Errors
    /// An error poisons the writer: the rows are in the log, but this handle can no longer answer for them.
    fn landed(&mut self, entry: LandedEntry) -> Result<(), String>;
}

/// An entry that landed, and every entry before it.
#[derive(Debug)]
pub struct LandedEntry {
    /// Its place in the log.
    pub position: Position,
    /// Its rows, as a reader of the log finds them: small batches of several appends are one.
    pub batches: Vec<RecordBatch>,
    /// The batches of appends that these were made of, as [`WalWriter::pending`] counts them.
    pub appended: usize,
    /// Its share of the memory budget, released when it is dropped.
    pub held: Held,
}

/// Releases the memory of an entry as soon as it landed: the log alone, without a MemTable.
#[derive(Debug, Clone, Copy, Default)]
pub struct WalOnly;

impl Landed for WalOnly {
    fn landed(&mut self, _: LandedEntry) -> Result<(), String> {
        Ok(())
    }
}

/// Appends batches to a shard's log. All methods take `&self`: share it between tasks.
///
/// Dropping it without [`close`](Self::close) is like a crash: what was not acknowledged may or may not be in the
/// log.
#[derive(Debug)]
pub struct WalWriter {
    tenure: Tenure,
    queue: Arc<Queue>,
    task: BackgroundTask,
    gc: Option<BackgroundGc>,
}

impl WalWriter {
    /// Takes the shard over; see [`open`](crate::open()) for what that writes and whom it fences. The replay holds
    /// what the log held.
    ///
    /// # Errors
    /// As [`open`](crate::open()), and [`Error::InvalidArgument`] for a config out of its limits or a column of a type
    /// that cannot be logged (a union), before anything is written.
    pub async fn open(
        shard: &Shard,
        schema: SchemaRef,
        config: WalConfig,
        options: &OpenOptions,
    ) -> Result<(Self, Replay)> {
        config.validate()?;
        check_schema(&schema)?;
        let Opened { tenure, replay } = open(shard, options).await?;
        let gc = config.gc.clone();
        let mut writer = Self::start(tenure.clone(), schema, config, WalOnly)?;
        // A log alone: nothing is merged into any base table.
        let no_base = || std::future::ready(Ok(BaseProgress::default()));
        writer.gc = gc.map(|gc| BackgroundGc::start(tenure, gc, no_base));
        Ok((writer, replay))
    }

    /// Starts to write in a tenure that the caller has, whose replay it has taken. Every entry that lands is given
    /// to `sink` first.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a config out of its limits or a column of a type that cannot be logged.
    pub fn start(tenure: Tenure, schema: SchemaRef, config: WalConfig, sink: impl Landed) -> Result<Self> {
        config.validate()?;
        check_schema(&schema)?;
        let queue = Arc::new(Queue::new(tenure.clone(), schema, config)?);
        let flusher = Flusher::new(tenure.clone(), Arc::clone(&queue), Box::new(sink))?;
        let task = BackgroundTask::spawn(flusher.run());
        Ok(Self { tenure, queue, task, gc: None })
    }

    /// The right to write, for publishing SSTables.
    pub fn tenure(&self) -> &Tenure {
        &self.tenure
    }

    /// Appends a batch and waits until it is durable. Returns the position of its (last) entry.
    ///
    /// The order of appends is the order in which their futures were first polled. A future that is dropped
    /// later does not take the append back. While one waits for memory, those behind it wait too: go on polling it,
    /// or drop it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the schema differs, [`Error::TooLarge`]; [`Error::Fenced`], [`Error::Poisoned`],
    /// [`Error::Closed`]. [`Error::outcome`] says whether the rows are in the log.
    pub async fn append(&self, batch: RecordBatch) -> Result<Position> {
        self.queue.push(batch, true).await?.await
    }

    /// As [`append`](Self::append), but returns when the batch is queued (at once, if there is room); the future it
    /// returns resolves when the batch is durable. The batch is sent as soon as a PUT may start.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn append_urgent(&self, batch: RecordBatch) -> Result<Durability> {
        self.queue.push(batch, true).await
    }

    /// Accepts a batch into memory and returns at once (or when there is room); the future it returns resolves when
    /// the batch is durable. It is sent within `flush_interval`. Dropping that future is allowed.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn append_no_wait(&self, batch: RecordBatch) -> Result<Durability> {
        self.queue.push(batch, false).await
    }

    /// Waits until everything accepted so far is durable.
    ///
    /// # Errors
    /// The error that stopped the writer, with the outcome of what was waited for.
    pub async fn flush(&self) -> Result<()> {
        self.queue.push_barrier()?.await.map(|_| ())
    }

    /// Declares the entries at or below `position` consumed; see [`Tenure::truncate`].
    ///
    /// # Errors
    /// As [`Tenure::truncate`].
    pub async fn truncate(&self, position: Position) -> Result<ShardManifest> {
        self.tenure.truncate(position).await
    }

    /// Batches that were accepted and were not given to the sink yet, in order, behind how many that were.
    pub fn pending(&self) -> (u64, Vec<RecordBatch>) {
        self.queue.pending()
    }

    /// Whether an append is waiting for memory.
    pub fn is_waiting_for_memory(&self) -> bool {
        self.queue.is_waiting_for_memory()
    }

    /// Takes a share of the memory budget for rows that did not come through an append (a replay), as far as it
    /// reaches.
    pub fn hold(&self, bytes: usize) -> Held {
        self.queue.hold(bytes)
    }

    /// Resolves when the writer was stopped or when appends start to wait for memory; for a flusher's loop.
    pub async fn memory_wanted(&self) {
        self.queue.memory_wanted().await;
    }

    /// Counters and positions, exact at this moment, also right after opening.
    pub fn stats(&self) -> WalStats {
        let gc = self.gc.as_ref().map(BackgroundGc::stats).unwrap_or_default();
        WalStats { gc, ..self.queue.stats() }
    }

    /// Lets appends have these columns, too. Those with columns that were allowed before stay welcome: what was made
    /// ready before this call may be appended after it. An entry has rows of one schema.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a column of a type that cannot be logged.
    pub fn add_columns(&self, schema: SchemaRef) -> Result<()> {
        check_schema(&schema)?;
        self.queue.add_columns(schema)
    }

    /// Stops at once, as if the process had died, and returns when the tasks of this writer have ended. Appends that wait
    /// are answered with [`Error::Aborted`]: "not written" if nothing of them was sent, "unknown" otherwise. What was
    /// acknowledged is in the log, and the next writer replays it. Nothing is written by this call.
    pub async fn abort(&self) {
        let shard = self.tenure.shard().id();
        // I1: nothing is acknowledged from here on that has not landed in order before.
        self.tenure.stop(Error::Aborted { shard, outcome: Outcome::NotWritten });
        self.task.ended().await;
        if let Some(gc) = &self.gc {
            gc.ended().await;
        }
    }

    /// Refuses new appends, waits until the accepted ones are durable, and ends the tenure cleanly. R stays where
    /// it is.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); then nothing was closed cleanly, which costs the next writer nothing but a fence.
    pub async fn close(&self) -> Result<()> {
        if is_on(Mutant::AppendAfterClose) {
            self.flush().await?;
            return self.tenure.commit_close().await;
        }
        let landed = self.queue.close_behind_barrier()?;
        if is_on(Mutant::CloseWithPutsInFlight) {
            self.tenure.commit_close().await?;
            let landed = landed.await.map(|_| ());
            self.tenure.stop(Error::Closed { shard: self.tenure.shard().id() });
            return landed;
        }
        landed.await?;
        self.tenure.close().await
    }
}

impl Drop for WalWriter {
    fn drop(&mut self) {
        self.task.stop();
        self.queue.close();
    }
}

/// Resolves to the position of an append once it is durable.
#[derive(Debug)]
pub struct Durability {
    answer: oneshot::Receiver<Result<Position>>,
    shard: ShardId,
    bytes: usize,
}

impl Durability {
    /// Bytes of the append in memory, by the same estimate as `max_unflushed_bytes`.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn dropped(&self) -> Error {
        Error::Poisoned { shard: self.shard, reason: "the writer was dropped".into(), outcome: Outcome::Unknown }
    }
}

impl Future for Durability {
    type Output = Result<Position>;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.answer).poll(cx).map(|answer| answer.unwrap_or_else(|_| Err(self.dropped())))
    }
}
