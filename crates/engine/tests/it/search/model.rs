//! Random histories of a table with indexes against a list of its rows: puts, deletes, freezes, flushes, merges, takeovers
//! and collections, and between them questions of every kind from every side. A failing case shrinks, and is written down
//! in `proptest-regressions`.
//!
//! Two kinds of cases share the machinery. One flushes and merges for real, and takes most of a second. The other holds every
//! flush at its first write: rows stay in MemTables, active and frozen, and a case takes milliseconds, so there can be
//! thousands of them; a few of its tables begin with a base table and SSTables that were made once and are copied.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use fencepost::wal::gc::GcOptions;
use fencepost::{Follower, FollowerConfig, MergeOptions, Metric, Outcome, Table, TableSnapshot, TableWriter};
use fencepost_sim::{Gate, Op};
use object_store::memory::InMemory;
use proptest::strategy::BoxedStrategy;
use proptest::test_runner::{Config, TestRunner};

use super::documents::*;
use super::questions::{IDS, Question, check};
use super::steps::{Case, Reopen, Step, View, cases, steps_in_memory, steps_on_storage};
use crate::gc::at_once;
use crate::merge::{merge, options};
use crate::support::*;

/// Tasks that write side by side, each ids of its own.
const TASKS: i64 = 3;

/// What cases of one test have met, so that it can be said that they were about something.
#[derive(Debug, Default)]
struct Met {
    answers: AtomicU64,
    rows: AtomicU64,
    frozen: AtomicU64,
    replayed: AtomicU64,
    refused: AtomicU64,
    collected: AtomicU64,
}

impl Met {
    fn count(of: &AtomicU64, more: usize) {
        of.fetch_add(more as u64, Ordering::Relaxed);
    }
}

/// A table that many cases begin with.
struct Beginning {
    keyed: bool,
    buckets: u32,
    index: Option<Metric>,
    stored: bool,
    objects: Arc<InMemory>,
    rows: Rows,
}

impl Beginning {
    async fn make(case: &Case) -> Self {
        let Case { keyed, buckets, index, stored, .. } = *case;
        let objects = Arc::new(InMemory::new());
        let bucket = Bucket::on(objects.clone());
        let sharding = if buckets == 1 { "unsharded".to_owned() } else { format!("bucket(id,{buckets})") };
        let table = create_documents(&bucket, keyed, &sharding).await;
        for index in index.map(all_indexes).into_iter().flatten() {
            table.create_index(&index).await.unwrap();
        }
        let mut rows = vec![];
        if stored {
            let writer = table.writer(config()).await.unwrap();
            let document = |id: i64, round: i64| Document {
                n: (id != 3).then_some((id + round) % 10),
                words: (id != 4).then(|| vec![(id + round) as usize % WORDS.len(), id as usize % WORDS.len()]),
                vector: (id != 5).then_some([0.5 * id as f32, round as f32, 1.0, -1.0]),
            };
            // Versions of half of the rows in the base table, in SSTables, and in the log. Some are deleted in each.
            for round in 0..4 {
                let of_round: Rows =
                    (0..IDS).filter(|id| id % 4 <= 3 - round).map(|id| (id, document(id, round))).collect();
                writer.put(batch(&of_round)).await.unwrap();
                if keyed {
                    writer.delete(keys(&[round + 6])).await.unwrap();
                    rows.retain(|(id, _)| of_round.iter().all(|(other, _)| other != id));
                }
                rows.extend(of_round);
                rows.retain(|(id, _)| !keyed || *id != round + 6);
                match round {
                    0 => {
                        writer.flush().await.unwrap();
                        merge(&table).await;
                    }
                    1 | 2 => writer.flush().await.unwrap(),
                    _ => writer.abort().await,
                }
            }
        }
        Self { keyed, buckets, index, stored, objects, rows }
    }

    fn is_of(&self, case: &Case) -> bool {
        let these = (self.keyed, self.buckets, self.index, self.stored);
        these == (case.keyed, case.buckets, case.index, case.stored)
    }
}

/// A table, what it should hold, and snapshots of it that should not change.
struct Run<'m> {
    bucket: Bucket,
    table: Table,
    writer: Option<Arc<TableWriter>>,
    follower: Option<Follower>,
    keyed: bool,
    buckets: u32,
    indexed: bool,
    rows: Rows,
    held: Vec<(TableSnapshot, Rows)>,
    /// Where flushes wait, if nothing is to be flushed.
    gate: Option<Gate>,
    met: &'m Met,
}

impl<'m> Run<'m> {
    async fn new(beginning: &Beginning, hold_flushes: bool, met: &'m Met) -> Self {
        let bucket = Bucket::on(Arc::new(beginning.objects.fork()));
        let process = bucket.process();
        let gate = hold_flushes.then(|| process.faults.on_any(Op::WRITES).path_contains("_gen_").always().stall());
        let table = process.table().await;
        let writer = Some(Arc::new(table.writer(config()).await.unwrap()));
        let (rows, held) = (beginning.rows.clone(), vec![]);
        let Beginning { keyed, buckets, index, .. } = *beginning;
        let indexed = index.is_some();
        Self { bucket, table, writer, follower: None, keyed, buckets, indexed, rows, held, gate, met }
    }

    fn writer(&self) -> &TableWriter {
        self.writer.as_ref().unwrap()
    }

    /// What a put means.
    fn add(&mut self, rows: Vec<(i64, Document)>) {
        for (id, row) in rows {
            if self.keyed {
                self.rows.retain(|(other, _)| *other != id);
            }
            self.rows.push((id, row));
        }
    }

    async fn put_together(&mut self, rows: Vec<(i64, Document)>) {
        let tasks = (0..TASKS).map(|task| {
            let own: Rows = rows.iter().filter(|(id, _)| id % TASKS == task).cloned().collect();
            let (writer, own) = (Arc::clone(self.writer.as_ref().unwrap()), batch(&own));
            tokio::spawn(async move {
                match task {
                    0 => drop(writer.put_no_wait(own).await.unwrap().await.unwrap()),
                    _ => drop(writer.put(own).await.unwrap()),
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        self.add(rows);
    }

    async fn reopen(&mut self, how: Reopen) {
        let writer = self.writer.take().unwrap();
        let others = self.table.clone();
        let open = async || Some(Arc::new(others.writer(config()).await.unwrap()));
        match (how, &self.gate) {
            (Reopen::Dropped, _) => drop(writer),
            // One that closes waits for its flushes.
            (Reopen::Aborted, _) | (Reopen::Closed, Some(_)) => writer.abort().await,
            (Reopen::Closed, None) => Arc::into_inner(writer).unwrap().close().await.unwrap(),
            (Reopen::TakenOver, _) => {
                self.writer = open().await;
                let late = Document { n: None, words: None, vector: None };
                let error = writer.put(batch(&[(0, late)])).await.unwrap_err();
                assert_ne!(error.outcome(), Outcome::Written, "{error}");
                Met::count(&self.met.refused, 1);
                return;
            }
        }
        self.writer = open().await;
        let replayed = self.writer().shards().iter().map(|shard| shard.memtable_stats().unwrap().rows).sum();
        Met::count(&self.met.replayed, replayed);
    }

    async fn collect(&mut self) {
        // What held snapshots need stays, since they are younger than that.
        let patience = if self.held.is_empty() { at_once() } else { GcOptions::default() };
        let report = self.table.gc(&patience, |_| {}).await.unwrap();
        let dropped = report.shards.iter().map(|shard| shard.report.dropped_sstables.len()).sum();
        Met::count(&self.met.collected, dropped);
    }

    async fn snapshot(&mut self, view: View) -> TableSnapshot {
        match view {
            View::Shard if self.buckets == 1 => self.writer().shards()[0].snapshot().await.unwrap(),
            View::Writer | View::Shard | View::Held => self.writer().snapshot().await.unwrap(),
            View::Handle => self.table.clone().snapshot().await.unwrap(),
            View::OtherProcess => self.bucket.table().await.snapshot().await.unwrap(),
            View::Follower => {
                if self.follower.is_none() {
                    let config = FollowerConfig { polling: false, ..FollowerConfig::default() };
                    self.follower = Some(self.bucket.table().await.follow(config).await.unwrap());
                }
                let follower = self.follower.as_ref().unwrap();
                follower.refresh().await.unwrap();
                follower.snapshot().unwrap()
            }
        }
    }

    async fn ask(&mut self, view: View, question: &Question) {
        let frozen = self.writer().shards().iter().map(|shard| shard.memtable_stats().unwrap().frozen).sum();
        Met::count(&self.met.frozen, frozen);
        let found = match view {
            View::Held if !self.held.is_empty() => {
                let mut found = 0;
                for (held, rows) in &self.held {
                    found += check(held, rows, self.keyed, question).await;
                }
                found
            }
            _ => check(&self.snapshot(view).await, &self.rows, self.keyed, question).await,
        };
        Met::count(&self.met.answers, 1);
        Met::count(&self.met.rows, found);
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Put(rows) => {
                self.writer().put(batch(&rows)).await.unwrap();
                self.add(rows);
            }
            Step::PutTogether(rows) => self.put_together(rows).await,
            Step::Delete(ids) if self.keyed => {
                self.writer().delete(keys(&ids)).await.unwrap();
                self.rows.retain(|(id, _)| !ids.contains(id));
            }
            Step::Delete(_) => {}
            Step::Freeze => drop(self.writer().force_freeze().unwrap()),
            Step::Flush => self.writer().flush().await.unwrap(),
            Step::Merge(optimize_indexes) => {
                let options = MergeOptions { optimize_indexes, ..options() };
                drop(self.table.merge(&options, |_| {}).await.unwrap());
            }
            Step::Reopen(how) => self.reopen(how).await,
            Step::Collect => self.collect().await,
            Step::Index(metric) if !self.indexed => {
                self.indexed = true;
                for index in all_indexes(metric) {
                    self.table.create_index(&index).await.unwrap();
                }
            }
            Step::Index(_) => {}
            Step::Hold(view) if self.held.len() < 2 => {
                let snapshot = self.snapshot(view).await;
                self.held.push((snapshot, self.rows.clone()));
            }
            Step::Hold(_) => {}
            Step::Release => self.held.clear(),
            Step::Ask(view, question) => self.ask(view, &question).await,
        }
    }
}

/// Runs cases, as many as the variable says or else this many. `hold_flushes`: rows stay in memory.
fn run(name: &'static str, variable: &str, default: u32, hold_flushes: bool, cases: BoxedStrategy<Case>) {
    let number = std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let config = Config { cases: number, source_file: Some(file!()), test_name: Some(name), ..Config::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (met, beginnings) = (Met::default(), Mutex::new(Vec::<Arc<Beginning>>::new()));
    let began = Instant::now();
    let outcome = TestRunner::new(config).run(&cases, |case| {
        runtime.block_on(async {
            let known = beginnings.lock().unwrap().iter().find(|known| known.is_of(&case)).cloned();
            let beginning = match known {
                Some(known) => known,
                None => {
                    let made = Arc::new(Beginning::make(&case).await);
                    beginnings.lock().unwrap().push(Arc::clone(&made));
                    made
                }
            };
            let mut run = Run::new(&beginning, hold_flushes, &met).await;
            for step in case.steps {
                run.step(step).await;
            }
            run.ask(View::OtherProcess, &Question::Rows(None)).await;
        });
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    println!("{name}: {number} cases in {:?}, {met:?}", began.elapsed());
    if number >= default {
        let Met { answers, rows, frozen, replayed, refused, collected } = &met;
        let always = [answers, rows, frozen, refused];
        let some: &[&AtomicU64] = if hold_flushes { &[replayed] } else { &[collected] };
        let all = always.iter().chain(some);
        assert!(all.into_iter().all(|n| n.load(Ordering::Relaxed) > 0), "too little happened: {met:?}");
    }
}

fn in_memory(name: &'static str, keyed: bool) {
    run(name, "FENCEPOST_SEARCH_CASES", 1_000, true, cases(keyed, 0.02, steps_in_memory(), 6..18));
}

fn on_storage(name: &'static str, keyed: bool) {
    run(name, "FENCEPOST_SEARCH_FLUSH_CASES", 120, false, cases(keyed, 0.0, steps_on_storage(), 20..40));
}

#[test]
fn searches_in_memory_find_what_a_look_at_every_row_finds() {
    in_memory("searches_in_memory_find_what_a_look_at_every_row_finds", true);
}

#[test]
fn searches_in_memory_without_a_key_find_what_a_look_at_every_row_finds() {
    in_memory("searches_in_memory_without_a_key_find_what_a_look_at_every_row_finds", false);
}

#[test]
fn searches_on_storage_find_what_a_look_at_every_row_finds() {
    on_storage("searches_on_storage_find_what_a_look_at_every_row_finds", true);
}

#[test]
fn searches_on_storage_without_a_key_find_what_a_look_at_every_row_finds() {
    on_storage("searches_on_storage_without_a_key_find_what_a_look_at_every_row_finds", false);
}
