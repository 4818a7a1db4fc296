//! One life of a writer: it takes the shard over, puts and deletes, flushes, looks at what readers would see, and
//! closes or is dropped. What it is told goes to the oracle at once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use async_trait::async_trait;
use fencepost_wal::{Error as WalError, OpenOptions, Store, WalConfig};
use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

use super::oracle::{Reader, encode, rows_of};
use super::world::{Process, spread};
use crate::base::BaseTable;
use crate::config::{MemTableConfig, WriterConfig};
use crate::error::{Error, Result};
use crate::memtable::MemTable;
use crate::read::SsTableCache;
use crate::sstable::SsTableMeta;
use crate::writer::ShardWriter;
use crate::writer::sstable_writer::SsTableWriter;

/// Few keys, so that they are written again and again.
const KEYS: u64 = 7;

/// Keeps the rows of an SSTable in one object.
struct StandIn(Store);

#[async_trait]
impl SsTableWriter for StandIn {
    async fn write(&self, rel_dir: &str, memtable: &Arc<MemTable>) -> Result<SsTableMeta> {
        let batches = memtable.for_flush()?;
        let rows: Vec<_> = batches.iter().flat_map(rows_of).collect();
        let below = Path::from(rel_dir);
        let path: Path = self.0.root().parts().chain(below.parts()).collect();
        let (path, bytes) = (path.join("rows"), encode(&rows));
        let store = self.0.object_store();
        let put = store.put_opts(&path, bytes.clone().into(), PutMode::Create.into()).await;
        let failed = |reason: String| Error::FlushFailed { generation: memtable.generation(), reason };
        match put {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => {
                // A lost answer, or a 409 with nothing landed.
                let found = async { store.get(&path).await?.bytes().await };
                let found = found.await.map_err(|e| failed(e.to_string()))?;
                assert_eq!(found, bytes, "nobody else uses the folder");
            }
            Err(e) => return Err(failed(e.to_string())),
        }
        Ok(SsTableMeta { physical_rows: rows.len() as u64, in_memory_bytes: 0, primary_key_bytes: None })
    }
}

/// What writers of a run have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workload {
    /// Most puts of one round.
    pub(super) burst: u64,
    pub(super) flush: f64,
    /// Of a life to end after a round.
    pub(super) leave: f64,
    pub(super) max_in_flight: usize,
}

fn draw_config(process: &Process, workload: Workload) -> WriterConfig {
    process.roll(|dice| {
        let memtable = MemTableConfig {
            max_rows: *dice.pick(&[1, 3, 10, 1000]).unwrap(),
            max_batches: *dice.pick(&[2, 1000]).unwrap(),
            flush_attempts: *dice.pick(&[1, 5]).unwrap(),
            ..MemTableConfig::default()
        };
        WriterConfig {
            durable: dice.chance(0.6),
            wal: WalConfig {
                // A process of its own collects.
                gc: None,
                max_in_flight: workload.max_in_flight,
                flush_interval: Duration::from_millis(20),
                max_buffer_bytes: 4 << 10,
                max_unflushed_bytes: *dice.pick(&[300, 2000, 1 << 20]).unwrap(),
                ..WalConfig::default()
            },
            open: OpenOptions {
                replay_budget_bytes: *dice.pick(&[0, 2000, 1 << 20]).unwrap(),
                prefetch: *dice.pick(&[1, 8]).unwrap(),
                ..OpenOptions::default()
            },
            memtable: Some(memtable),
            ..WriterConfig::default()
        }
    })
}

/// Judges an error that somebody was given: those that only a broken shard can give are violations.
pub(super) fn judge_error(process: &Process, error: &Error) {
    let impossible = match error {
        Error::Wal(WalError::Fenced { .. } | WalError::Closed { .. } | WalError::Store { .. }) => false,
        Error::Wal(WalError::CommitUnknown { .. } | WalError::Outrun { .. } | WalError::Contention { .. }) => false,
        Error::Wal(WalError::Poisoned { reason, .. }) => is_telling(reason),
        Error::FlushFailed { reason, .. } => is_telling(reason),
        _ => true,
    };
    if impossible {
        process.world.judge(&process.name, Err(format!("an error that cannot be: {error}")));
    }
}

/// Reasons that would mean that the engine and the log disagree.
fn is_telling(reason: &str) -> bool {
    ["cannot cover", "cannot be published", "cannot be applied", "panicked"].iter().any(|part| reason.contains(part))
}

struct Writing<'a> {
    process: &'a Arc<Process>,
    writer: ShardWriter,
    workload: Workload,
    durable: bool,
    keyed: bool,
    tenure: usize,
    opened: u64,
    /// Changes that were acknowledged, or accepted into memory.
    accepted: RefCell<BTreeSet<usize>>,
    stopped: std::cell::Cell<bool>,
}

/// One life, from the claim to the end.
pub(super) async fn live(process: &Arc<Process>, base: &BaseTable, workload: Workload) {
    let shard = process.shard();
    let config = draw_config(process, workload);
    let durable = config.durable;
    let opened = process.world.state().oracle.now();
    let cache = Arc::new(SsTableCache::new(base.lance_store().clone()));
    let stand_in = Arc::new(StandIn(shard.store().clone()));
    let writer = match ShardWriter::open_with(base.clone(), cache, shard, config, None, stand_in).await {
        Ok(writer) => writer,
        Err(error) => {
            process.note(format_args!("cannot open: {error}"));
            return judge_error(process, &error);
        }
    };
    process.note(format_args!("owns epoch {}", writer.epoch()));
    process.world.count("takeovers");
    let tenure = process.world.state().oracle.begin_tenure();
    let keyed = !base.primary_key().is_empty();
    let (accepted, stopped) = Default::default();
    let writing = Writing { process, writer, workload, durable, keyed, tenure, opened, accepted, stopped };
    writing.run().await;
}

impl<'a> Writing<'a> {
    async fn run(self) {
        let mut pending = FuturesUnordered::new();
        let closes = self.rounds(&mut pending).await;
        let last = self.writer.stats();
        if let Some(failure) = &last.last_flush_failure
            && is_telling(failure)
        {
            self.process.world.judge(&self.process.name, Err(format!("a flush failed: {failure}")));
        }
        if last.flush_failures > 0 {
            self.process.world.count("writers whose flushes failed");
        }
        if closes {
            drive(&mut pending, self.close()).await;
        }
        self.process.note(format_args!("ends"));
    }

    /// Whether to close in the end.
    async fn rounds<'b>(&'b self, pending: &mut FuturesUnordered<LocalBoxFuture<'b, ()>>) -> bool {
        self.look();
        while self.process.world.take_round() && !self.stopped.get() {
            for _ in 0..1 + self.process.roll(|dice| dice.below(self.workload.burst)) {
                pending.push(Box::pin(self.write()));
            }
            let pause = self.process.roll(|dice| spread(dice, 1, 2000));
            drive(pending, tokio::time::sleep(pause)).await;
            self.look();
            if self.process.roll(|dice| dice.chance(self.workload.flush)) {
                drive(pending, self.flush()).await;
                self.look();
            }
            if self.process.chance(0.3) {
                while pending.next().await.is_some() {}
            }
            if self.process.chance(self.workload.leave) {
                return self.process.chance(0.5);
            }
        }
        while pending.next().await.is_some() {}
        true
    }

    async fn write(&self) {
        let rows = 1 + self.process.roll(|dice| dice.below(3));
        let keys: Vec<i64> = (0..rows).map(|_| self.process.roll(|dice| dice.below(KEYS)) as i64).collect();
        let deletes = self.keyed && self.process.roll(|dice| dice.chance(0.2));
        let ids = self.process.world.state().oracle.submit(self.tenure, &keys, deletes);
        let column = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
        let answer = if deletes {
            self.writer.delete(RecordBatch::try_from_iter([("key", column(keys))]).unwrap()).await
        } else {
            let numbers = column(ids.iter().map(|id| *id as i64).collect());
            self.writer.put(RecordBatch::try_from_iter([("key", column(keys)), ("id", numbers)]).unwrap()).await
        };
        self.process.note(format_args!("{ids:?}: {}", tell(&answer)));
        match answer {
            Ok(_) => {
                self.accepted.borrow_mut().extend(&ids);
                if self.durable {
                    self.process.world.state().oracle.kept(&ids);
                    self.process.world.count("writes acknowledged");
                }
            }
            Err(error) => {
                self.process.world.state().oracle.failed(&ids, error.outcome());
                self.told(&error);
            }
        }
        self.check_storage();
    }

    async fn flush(&self) {
        let ids: Vec<usize> = self.accepted.borrow().iter().copied().collect();
        let flushed = self.writer.flush().await;
        self.flushed("flush", &ids, flushed);
    }

    async fn close(&self) {
        let ids: Vec<usize> = self.accepted.borrow().iter().copied().collect();
        let closed = self.writer.end().await;
        self.flushed("close", &ids, closed);
    }

    fn flushed(&self, what: &str, ids: &[usize], answer: Result<()>) {
        self.process.note(format_args!("{what}: {}", tell(&answer)));
        match &answer {
            Ok(()) => {
                self.process.world.count("flushes answered");
                self.process.world.state().oracle.kept(ids);
                let verdict = self.process.world.state().oracle.check_flushed(ids);
                self.process.world.judge(&self.process.name, verdict);
            }
            Err(error) => {
                if error.outcome() == fencepost_wal::Outcome::Written {
                    self.process.world.state().oracle.kept(ids);
                }
                self.told(error);
            }
        }
        self.check_storage();
    }

    fn told(&self, error: &Error) {
        judge_error(self.process, error);
        if let Error::Wal(WalError::Fenced { .. }) = error {
            self.process.world.count("answers that a fence gave");
        }
        if !matches!(error, Error::FlushFailed { .. }) {
            self.stopped.set(true);
        }
    }

    fn check_storage(&self) {
        let verdict = self.process.world.state().oracle.check_storage();
        self.process.world.judge(&self.process.name, verdict);
    }

    /// What a reader beside this writer sees: MemTables and SSTables, each row once.
    fn look(&self) {
        let view = match self.writer.view() {
            Ok(view) => view,
            Err(error) => return self.told(&error),
        };
        self.process.world.count("looks of readers");
        let state = self.process.world.state();
        let verdict =
            state.oracle.written(view.sstables.iter().rev().map(|s| s.path.as_str())).and_then(|mut found| {
                for memtable in view.memtables.iter().rev() {
                    found.extend(memtable.live_batches().map_err(|e| e.to_string())?.iter().flat_map(rows_of));
                }
                state.oracle.check(&found, Reader::Writer { tenure: self.tenure, opened: self.opened })
            });
        drop(state);
        self.process.world.judge(&self.process.name, verdict.map_err(|what| format!("a reader's view: {what}")));
    }
}

fn tell<T>(answer: &Result<T>) -> String {
    answer.as_ref().map_or_else(|e| e.to_string().chars().take(100).collect(), |_| "ok".to_owned())
}

/// Waits for `first` while the others go on.
async fn drive<T>(pending: &mut FuturesUnordered<LocalBoxFuture<'_, ()>>, first: impl Future<Output = T>) -> T {
    let mut first = pin!(first);
    loop {
        tokio::select! {
            biased;
            done = &mut first => return done,
            Some(()) = pending.next() => {}
        }
    }
}
