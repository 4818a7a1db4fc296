//! A writer process: takes the shard over, appends, flushes with a stand-in for SSTables (or truncates), closes or
//! falls silent. What it is told goes to the oracle at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_schema::SchemaRef;
use fencepost_wal::{
    Durability, Error, Landed, LandedEntry, OpenOptions, Opened, Outcome, Position, Replay, Result, Shard,
    ShardManifest, SsTable, Tenure, WalAppender, WalConfig, WalWriter, open,
};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::{ObjectStore, PutMode};
use tokio::sync::{Notify, mpsc};

use super::habits::{Kind, Plot, spread};
use super::network::wal_store_of;
use super::oracle::{Invariant, ids_of, rows};
use super::process::Process;
use super::world::WAL_STORES;
use crate::lock;

/// Rows that are in no SSTable: what a MemTable holds, by position.
type MemTable = Arc<Mutex<VecDeque<(u64, Vec<u64>)>>>;

struct Sink(MemTable);

impl Landed for Sink {
    fn landed(&mut self, entry: LandedEntry) -> Result<(), String> {
        lock(&self.0).push_back((entry.position.get(), entry.batches.iter().flat_map(ids_of).collect()));
        Ok(())
    }
}

fn batch(ids: &[u64]) -> Result<RecordBatch> {
    let ids: ArrayRef = Arc::new(ids.iter().map(|id| *id as i64).collect::<Int64Array>());
    RecordBatch::try_from_iter_with_nullable([("id", ids, false)]).map_err(|e| Error::InvalidArgument(e.to_string()))
}

pub(crate) fn schema() -> Result<SchemaRef> {
    batch(&[]).map(|batch| batch.schema())
}

/// Why a writer stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Close,
    Drop,
    Stopped,
}

/// What the parts of a writer share.
struct Writer<'a> {
    process: &'a Arc<Process>,
    tenure: Tenure,
    /// The manifest that recorded the tenure.
    recorded: ShardManifest,
    memtable: MemTable,
    /// The oracle's number of this tenure.
    number: usize,
    ending: AtomicBool,
    ended: Notify,
    /// One flush at a time, each of what the one before it left.
    flushing: tokio::sync::Mutex<()>,
}

/// Judges an error that `process` was given: those that only a broken log can give are violations.
pub(crate) fn judge_error(process: &Process, error: &Error) {
    let world = &process.world;
    let impossible = match error {
        Error::Corrupt { .. }
        | Error::LogHole { .. }
        | Error::Stranded { .. }
        | Error::Unadopted { .. }
        | Error::ShardNotFound { .. }
        | Error::ShardClosed { .. }
        | Error::InvalidArgument(_)
        | Error::WalStoreMissing { .. }
        | Error::WalStoreMismatch { .. }
        | Error::WalStoreInUse { .. }
        | Error::TooLarge { .. }
        | Error::Overflow { .. } => true,
        Error::Poisoned { reason, .. } => {
            reason.contains("beyond the reach")
                || reason.contains("of this very writer with other rows")
                || reason.contains("panicked")
        }
        _ => false,
    };
    if impossible {
        world.fail(&process.name, Invariant::Truth, format!("an error that cannot be: {error}"));
    }
}

/// One life of a writer, from its claim to its end. `Ok(false)`: it never owned the shard.
pub(crate) async fn write(process: &Arc<Process>, shard: &Shard) -> Result<bool> {
    let (budget, prefetch) = process.roll(|dice| (*dice.pick(&[0, 2000, 1 << 20]).unwrap_or(&0), 1 + dice.below(8)));
    let options = OpenOptions {
        replay_budget_bytes: budget,
        prefetch: prefetch as usize,
        fence_width: process.world.habits.fence_width,
        ..OpenOptions::default()
    };
    let moves = process.chance(process.world.habits.moves);
    let root = moves.then(|| process.roll(|dice| dice.pick(&WAL_STORES).copied())).flatten();
    let wanted = root.and_then(|root| wal_store_of(process, root));
    let shard = &match wanted {
        Some(wanted) => shard.clone().with_wal_store(wanted),
        None => shard.clone(),
    };
    let opened = {
        let _opening = Opening::new(process);
        open(shard, &options).await
    };
    let Opened { tenure, replay } = match opened {
        Ok(opened) => opened,
        Err(error) => {
            process.note(format_args!("cannot open: {}", short(&error)));
            judge_error(process, &error);
            return Ok(false);
        }
    };
    process.took_over(tenure.epoch().get());
    let recorded = tenure.manifest().await;
    process.note(format_args!("owns epoch {} behind {}", tenure.epoch(), tenure.sentinel()));
    let number = {
        let mut state = process.world.state();
        state.coverage.count("takeovers");
        state.oracle.rows.begin_tenure()
    };
    let verdict = process.world.state().oracle.committed(&recorded);
    process.world.judge(&process.name, verdict);
    let memtable = MemTable::default();
    if let Err(error) = take_replay(process, &tenure, replay, &memtable).await {
        judge_error(process, &error);
        return Ok(false);
    }
    let writer = Writer {
        process,
        tenure,
        recorded,
        memtable,
        number,
        ending: AtomicBool::new(false),
        ended: Notify::new(),
        flushing: tokio::sync::Mutex::default(),
    };
    match process.chance(process.world.habits.plain) {
        true => writer.run_plain(options).await?,
        false => writer.run_batched().await?,
    }
    Ok(true)
}

/// A writer is about to open the shard.
struct Opening(Arc<Process>);

impl Opening {
    fn new(process: &Arc<Process>) -> Self {
        process.world.state().opening += 1;
        Self(Arc::clone(process))
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.world.state().opening -= 1;
    }
}

fn short(error: &Error) -> String {
    error.to_string().chars().take(160).collect()
}

/// Reads what the log held, and compares it with what it really held.
async fn take_replay(process: &Process, tenure: &Tenure, mut replay: Replay, memtable: &MemTable) -> Result<()> {
    let after = replay.replay_after().get();
    let mut found = Vec::new();
    while let Some(entry) = replay.next().await? {
        found.push((entry.position.get(), entry.batches.iter().flat_map(ids_of).collect::<Vec<_>>()));
    }
    let state = process.world.state();
    // If R has moved, somebody else owns the shard, and what stands below R may be anything.
    if state.oracle.replay_after() == after {
        let there = (after + 1..=tenure.sentinel().get()).map(|at| (at, state.oracle.live_at(at).to_vec()));
        let expected: Vec<_> = there.filter(|(_, ids)| !ids.is_empty()).collect();
        drop(state);
        if found != expected {
            let what = format!("a replay from {after} returned {found:?} instead of {expected:?}");
            process.world.fail(&process.name, Invariant::I1, what);
        }
        process.world.state().coverage.add("entries replayed", found.len() as u64);
    }
    lock(memtable).extend(found);
    Ok(())
}

impl Writer<'_> {
    fn submit(&self) -> Result<(Vec<u64>, RecordBatch)> {
        let count = self.process.roll(|dice| 1 + dice.below(3));
        let ids = self.process.world.state().oracle.rows.submit(self.number, count);
        batch(&ids).map(|batch| (ids, batch))
    }

    /// What an append was told.
    fn answered(&self, ids: &[u64], answer: Result<Position>) {
        let (world, name) = (&self.process.world, &self.process.name);
        let verdict = match &answer {
            Ok(position) => {
                self.process.note(format_args!("{ids:?} acknowledged at {position}"));
                let mut state = world.state();
                state.coverage.count("appends acknowledged");
                if position.get() > self.tenure.sentinel().get() + fencepost_wal::MAX_IN_FLIGHT {
                    state.coverage.count("appends acknowledged behind the serial zone");
                }
                state.oracle.rows.acknowledge(ids);
                state.oracle.check_rows()
            }
            Err(error) => {
                self.process.note(format_args!("{ids:?} failed, {}: {}", error.outcome(), short(error)));
                let mut state = world.state();
                state.coverage.count(match error.outcome() {
                    Outcome::NotWritten => "appends not written",
                    Outcome::Written => "appends written and not acknowledged",
                    Outcome::Unknown => "appends of unknown outcome",
                });
                state.oracle.rows.fail(ids, error.outcome());
                state.oracle.check_rows()
            }
        };
        world.judge(name, verdict);
        if let Err(error) = answer {
            self.told(&error);
        }
    }

    fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.ended.notify_one();
    }

    fn told(&self, error: &Error) {
        judge_error(self.process, error);
        let world = &self.process.world;
        if matches!(error, Error::Fenced { .. }) {
            world.count("answers that a fence gave");
            let verdict = world.state().oracle.fenced(self.tenure.epoch().get(), &self.recorded);
            world.judge(&self.process.name, verdict);
        }
    }

    async fn run_batched(self) -> Result<()> {
        let config = WalConfig {
            max_in_flight: self.process.world.habits.max_in_flight,
            flush_interval: Duration::from_millis(20),
            max_buffer_bytes: 4 << 10,
            gc: None,
            ..WalConfig::default()
        };
        let writer = WalWriter::start(self.tenure.clone(), schema()?, config, Sink(Arc::clone(&self.memtable)))?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut beside = Box::pin(async { futures::join!(self.take_answers(receiver), self.flush_now_and_then()) });
        let end = tokio::select! {
            biased;
            end = self.append_batched(&writer, &sender) => end?,
            _ = &mut beside => End::Stopped,
        };
        self.process.note(format_args!("ends: {end:?}"));
        self.process.world.state().coverage.add("dead positions passed", writer.stats().dead_positions);
        self.end();
        if end == End::Drop {
            return Ok(());
        }
        let close = async {
            if end == End::Close {
                if self.process.chance(0.5) {
                    let _ = writer.flush().await;
                    self.flush(false).await;
                }
                if let Err(error) = writer.close().await {
                    self.told(&error);
                }
                // Some callers hold a handle for longer than they should.
                if self.process.chance(self.process.world.habits.late_append) {
                    self.process.pause().await;
                    let (ids, batch) = self.submit()?;
                    let answer = writer.append(batch).await;
                    self.answered(&ids, answer);
                }
            }
            drop(sender);
            Ok(())
        };
        futures::join!(beside, close).1
    }

    async fn append_batched(
        &self,
        writer: &WalWriter,
        answers: &mpsc::UnboundedSender<(Vec<u64>, Durability)>,
    ) -> Result<End> {
        let world = &self.process.world;
        if self.process.chance(world.habits.brief) {
            return Ok(End::Close);
        }
        while world.take_round() {
            for _ in 0..self.process.roll(|dice| 1 + dice.below(world.habits.burst)) {
                let (ids, batch) = self.submit()?;
                let accepted = match self.process.chance(0.5) {
                    true => writer.append_urgent(batch).await,
                    false => writer.append_no_wait(batch).await,
                };
                match accepted {
                    // The receiver lives as long as this future.
                    Ok(durable) => drop(answers.send((ids, durable))),
                    Err(error) => {
                        self.answered(&ids, Err(error));
                        return Ok(End::Stopped);
                    }
                }
                if self.process.chance(0.5) {
                    tokio::time::sleep(self.process.roll(|dice| spread(dice, 1, 100))).await;
                }
            }
            if self.process.chance(0.3) && writer.flush().await.is_err() {
                return Ok(End::Stopped);
            }
            if let Some(end) = self.may_leave() {
                return Ok(end);
            }
            self.process.pause().await;
        }
        Ok(End::Close)
    }

    fn may_leave(&self) -> Option<End> {
        let leaves = self.process.chance(self.process.world.habits.leave);
        leaves.then(|| if self.process.chance(0.5) { End::Close } else { End::Drop })
    }

    async fn take_answers(&self, mut durable: mpsc::UnboundedReceiver<(Vec<u64>, Durability)>) {
        let mut pending = FuturesUnordered::new();
        let mut more = true;
        while more || !pending.is_empty() {
            tokio::select! {
                biased;
                Some((ids, answer)) = pending.next() => self.answered(&ids as &Vec<u64>, answer),
                next = durable.recv(), if more => match next {
                    Some((ids, durable)) => pending.push(async move { (ids, durable.await) }),
                    None => more = false,
                },
            }
        }
    }

    async fn run_plain(self, _: OpenOptions) -> Result<()> {
        let mut appender = WalAppender::start(self.tenure.clone())?;
        let mut beside = Box::pin(self.flush_now_and_then());
        let end = tokio::select! {
            biased;
            end = self.append_plain(&mut appender) => end?,
            _ = &mut beside => End::Stopped,
        };
        self.process.note(format_args!("ends: {end:?}"));
        self.end();
        if end == End::Close {
            beside.await;
            if let Err(error) = appender.close().await {
                self.told(&error);
            }
        }
        Ok(())
    }

    async fn append_plain(&self, appender: &mut WalAppender) -> Result<End> {
        let world = &self.process.world;
        let schema = schema()?;
        while world.take_round() {
            for _ in 0..self.process.roll(|dice| 1 + dice.below(world.habits.burst)) {
                let (ids, batch) = self.submit()?;
                let answer = appender.append(&schema, &[batch]).await;
                if let Ok(position) = answer {
                    lock(&self.memtable).push_back((position.get(), ids.clone()));
                }
                let stopped = answer.is_err();
                self.answered(&ids, answer);
                if stopped {
                    return Ok(End::Stopped);
                }
            }
            if let Some(end) = self.may_leave() {
                return Ok(end);
            }
            self.process.pause().await;
        }
        Ok(End::Close)
    }

    /// The flusher of a MemTable, or the consumer of a log.
    async fn flush_now_and_then(&self) {
        let habits = &self.process.world.habits;
        if self.process.chance(habits.partial) {
            self.flush(true).await;
        }
        while !self.ending.load(Ordering::Relaxed) && self.tenure.check().is_ok() {
            tokio::select! {
                biased;
                () = self.ended.notified() => {}
                () = self.process.pause() => {}
            }
            if self.ending.load(Ordering::Relaxed) || self.process.world.is_calm() {
                break;
            }
            if self.process.chance(habits.flush) {
                self.flush(self.process.chance(habits.partial)).await;
            }
        }
    }

    async fn flush(&self, partial: bool) {
        let _turn = self.flushing.lock().await;
        let flushed = match self.process.world.kind() {
            Kind::MemTable => self.publish(partial).await,
            Kind::WalOnly => self.truncate(partial).await,
        };
        match flushed {
            Ok(Some(manifest)) => {
                let verdict = self.process.world.state().oracle.committed(&manifest);
                self.process.world.judge(&self.process.name, verdict);
            }
            Ok(None) => {}
            Err(error) => {
                self.process.note(format_args!("a flush failed: {}", short(&error)));
                self.told(&error);
            }
        }
    }

    async fn publish(&self, partial: bool) -> Result<Option<ShardManifest>> {
        let acknowledged = self.tenure.acknowledged().get();
        let (covers, rows) = {
            let memtable = lock(&self.memtable);
            let index = self.process.roll(|dice| dice.below(memtable.len() as u64)) as usize;
            // Just behind where the adversary has a zombie lying in wait, if it has: the entry at R is not collected.
            let zombie = {
                let state = self.process.world.state();
                state.lying_in_wait.copy_behind(state.oracle.replay_after())
            };
            let behind = zombie.map(|zombie| zombie + 1);
            let behind = behind.filter(|behind| partial && memtable.iter().any(|(at, _)| at == behind));
            let covers = match memtable.get(index) {
                Some((position, _)) if partial => behind.unwrap_or(*position),
                _ => acknowledged,
            };
            let rows = memtable.iter().take_while(|(at, _)| *at <= covers);
            (covers, rows.flat_map(|(_, ids)| ids.iter().copied()).collect::<Vec<_>>())
        };
        // Its owners wait for days for what hangs: without rows, R would not rise a million times.
        if rows.is_empty() && self.process.world.habits.plot == Some(Plot::Suspended) {
            return Ok(None);
        }
        if partial {
            self.process.world.count("partial flushes begun");
        }
        // A caller that is ahead of the log must be refused.
        if self.process.chance(0.05) {
            let ahead = acknowledged + 1;
            self.process.note(format_args!("asks to publish up to {ahead}, ahead of the log"));
            return match self.tenure.publish(None, Position::new(ahead)).await {
                Err(Error::InvalidArgument(_)) => Ok(None),
                other => other.map(Some),
            };
        }
        let sstable = match rows.is_empty() {
            true => None,
            false => {
                let generation = self.tenure.current_generation().await;
                let folder = format!("{:08x}_gen_{generation}", self.process.roll(|dice| dice.below(1 << 32)));
                if self.write_rows(&folder, &rows).await.is_err() {
                    return Ok(None);
                }
                Some(SsTable::new(generation, folder))
            }
        };
        let manifest = self.tenure.publish(sstable, Position::new(covers)).await?;
        lock(&self.memtable).retain(|(at, _)| *at > covers);
        Ok(Some(manifest))
    }

    /// The stand-in for writing an SSTable: one object with the ids of its rows. A failed attempt leaves a folder that
    /// nobody names.
    async fn write_rows(&self, folder: &str, rows: &[u64]) -> object_store::Result<()> {
        let shard = self.tenure.shard();
        let path = shard.root().clone().join(folder).join("rows");
        let bytes = rows::encode(rows);
        shard.store().object_store().put_opts(&path, bytes.into(), PutMode::Create.into()).await.map(|_| ())
    }

    async fn truncate(&self, partial: bool) -> Result<Option<ShardManifest>> {
        let from = self.tenure.manifest().await.replay_after.get();
        let to = self.tenure.acknowledged().get();
        if to <= from {
            return Ok(None);
        }
        let position = match partial {
            true => from + 1 + self.process.roll(|dice| dice.below(to - from)),
            false => to,
        };
        self.process.world.state().oracle.truncation_asked(position);
        self.tenure.truncate(Position::new(position)).await.map(Some)
    }
}
