//! Random schedules of appends, takeovers, truncations and garbage collection over a store with the habits of real
//! ones, against a model of what was promised. `FENCEPOST_SEEDS` runs more of them; a failure names its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fencepost_sim::{RandomFaults, Rng};
use fencepost_wal::checkpoint::{self, Checkpoint, CheckpointOptions};
use fencepost_wal::gc::BaseProgress;
use fencepost_wal::{EntryKind, OpenOptions, Outcome, Position, RetryPolicy, Shard, WalConfig, WalTailer, WalWriter};

use crate::support::{Bucket, Process, batch, bucket, ids_of, replayed, schema, settle};

/// What an append was told.
type Promise = Result<Position, Outcome>;

/// One tenure: its writer, while it is alive, and what was promised for its rows, in the order of its appends.
struct Tenure {
    process: Process,
    writer: Option<Arc<WalWriter>>,
    epoch: u64,
    appended: Vec<i64>,
    promises: Arc<Mutex<BTreeMap<i64, Promise>>>,
}

/// What the writers of a world are like.
#[derive(Debug, Clone, Copy)]
struct Habits {
    /// PUTs that a writer may have in flight.
    windows: &'static [usize],
    /// Sentinels that the first try of a takeover puts side by side.
    fence_widths: &'static [usize],
    /// How often a new writer first writes its way out of the serial zone, where its window opens.
    leaves_zone: f64,
    /// How many of the PUTs are slow.
    slow: f64,
}

const USUAL: Habits = Habits { windows: &[1, 2, 4, 32], fence_widths: &[1], leaves_zone: 0.0, slow: 0.0 };
const PIPELINED: Habits = Habits { windows: &[2, 4, 32], fence_widths: &[1, 1, 2, 8], leaves_zone: 0.8, slow: 0.3 };
const SIDE_BY_SIDE: Habits =
    Habits { windows: &[1, 4, 32], fence_widths: &[2, 4, 8, 16, 32], leaves_zone: 0.3, slow: 0.2 };

struct World {
    habits: Habits,
    bucket: Bucket,
    rng: Rng,
    next_id: i64,
    tenures: Vec<Tenure>,
    /// Rows that were live when somebody asked for a truncation above them, and where they stood. Consumed is what R
    /// has passed in the end: the answer of a truncation may be lost, and it may land much later.
    asked_away: BTreeMap<i64, u64>,
    /// Processes that collected, or made checkpoints, with what they have on the wire.
    others: Vec<Process>,
    /// Checkpoints that nobody has asked to delete, and the bytes of the log that belong to them.
    checkpoints: Vec<(Checkpoint, Vec<Bytes>)>,
}

impl World {
    async fn new(seed: u64, habits: Habits) -> Self {
        let bucket = bucket().await;
        Self {
            habits,
            bucket,
            rng: Rng::new(seed),
            next_id: 0,
            tenures: Vec::new(),
            asked_away: BTreeMap::new(),
            others: vec![],
            checkpoints: vec![],
        }
    }

    fn process(&mut self) -> Process {
        let mut process = self.bucket.process();
        // Some processes give up soon, so that writers are poisoned too.
        let max_attempts = 2 + self.rng.below(8) as usize;
        let attempt_timeout = Duration::from_secs(5);
        let retry = RetryPolicy { max_attempts, attempt_timeout, ..RetryPolicy::default() };
        process.shard = Shard::new(process.shard.store().clone().with_retry(retry), process.shard.id());
        let burst = 2 + self.rng.below(4) as u32;
        process.faults.random(RandomFaults { burst, ..self.storm() });
        process
    }

    fn storm(&mut self) -> RandomFaults {
        RandomFaults { slow_create: self.habits.slow, ..RandomFaults::stormy(self.rng.next_u64()) }
    }

    async fn take_over(&mut self) {
        let process = self.process();
        let max_in_flight = *self.rng.pick(self.habits.windows).unwrap();
        let config = WalConfig { max_in_flight, flush_interval: Duration::from_millis(20), ..WalConfig::default() };
        let budget = *self.rng.pick(&[0, 2000, usize::MAX]).unwrap();
        let fence_width = *self.rng.pick(self.habits.fence_widths).unwrap();
        let options = OpenOptions { replay_budget_bytes: budget, fence_width, ..OpenOptions::default() };
        let Ok((writer, replay)) = WalWriter::open(&process.shard, schema(), config, &options).await else {
            return; // Refused, or given up: the shard must be none the worse for it.
        };
        // What an open returns is what a reader finds, unless R moved meanwhile.
        if replay.replay_after() == self.bucket.manifest().await.replay_after {
            process.faults.random_off();
            let mut expected = self.live_below(writer.tenure().sentinel()).await;
            let mut found = replayed(replay).await;
            expected.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, expected);
            process.faults.random(self.storm());
        }
        let epoch = writer.stats().epoch.get();
        self.tenures.push(Tenure {
            process,
            writer: Some(Arc::new(writer)),
            epoch,
            appended: Vec::new(),
            promises: Arc::default(),
        });
        if self.rng.chance(self.habits.leaves_zone) {
            self.leave_the_zone().await;
        }
    }

    /// The newest writer goes on until its window opens, if nothing stops it.
    async fn leave_the_zone(&mut self) {
        for _ in 0..33 {
            let id = self.next_id;
            self.next_id += 1;
            let Some(tenure) = self.tenures.last_mut() else { return };
            let Some(writer) = tenure.writer.clone() else { return };
            tenure.appended.push(id);
            let promise = writer.append(batch([id])).await.map_err(|error| error.outcome());
            tenure.promises.lock().unwrap().insert(id, promise);
            if promise.is_err() {
                return;
            }
        }
    }

    async fn live_below(&self, position: Position) -> Vec<i64> {
        let log = self.bucket.log().await;
        let live = log.into_iter().filter(|e| e.2 == EntryKind::Rows && e.0 < position.get());
        live.flat_map(|e| e.3).collect()
    }

    /// Some appends by one of the writers, the newest one mostly.
    async fn append(&mut self) {
        let newest = self.tenures.len() - 1;
        let which = if self.rng.chance(0.8) { newest } else { self.rng.below(newest as u64 + 1) as usize };
        let count = self.rng.below(12) + 1;
        // One PUT each, as far as they may run at once, or gathered.
        let apart = self.habits.leaves_zone > 0.0 && self.rng.chance(0.7);
        let tenure = &mut self.tenures[which];
        let Some(writer) = tenure.writer.clone() else {
            return;
        };
        for _ in 0..count {
            let id = self.next_id;
            self.next_id += 1;
            tenure.appended.push(id);
            let promises = Arc::clone(&tenure.promises);
            let accepted = match apart {
                true => writer.append_urgent(batch([id])).await,
                false => writer.append_no_wait(batch([id])).await,
            };
            if apart {
                settle().await;
            }
            match accepted {
                Ok(durable) => drop(tokio::spawn(async move {
                    let promise = durable.await.map_err(|error| error.outcome());
                    promises.lock().unwrap().insert(id, promise);
                })),
                Err(error) => drop(promises.lock().unwrap().insert(id, Err(error.outcome()))),
            }
            if self.rng.chance(0.3) {
                tokio::time::sleep(Duration::from_millis(self.rng.below(60))).await;
            }
        }
        if self.rng.chance(0.5) {
            let _ = writer.flush().await;
        }
    }

    async fn truncate(&mut self) {
        let which = self.rng.below(self.tenures.len() as u64) as usize;
        let Some(writer) = self.tenures[which].writer.clone() else {
            return;
        };
        let acknowledged = writer.tenure().acknowledged().get();
        let position = acknowledged - self.rng.below(5).min(acknowledged);
        let before = self.bucket.log().await;
        let _ = writer.truncate(Position::new(position)).await;
        let live = before.into_iter().filter(|e| e.2 == EntryKind::Rows && e.0 <= position);
        self.asked_away.extend(live.flat_map(|e| e.3.into_iter().map(move |id| (id, e.0))));
        if self.rng.chance(0.7) {
            self.collect().await;
        }
    }

    /// A collector whose clock makes everything old; it may die on the way, or go on beside whatever comes.
    async fn collect(&mut self) {
        let process = self.process().later(Duration::from_secs(2 * 24 * 3600));
        self.others.push(process.clone());
        let collecting = tokio::spawn(async move { process.collect(&BaseProgress::default()).await });
        match self.rng.below(4) {
            0 => {
                tokio::time::sleep(Duration::from_millis(self.rng.below(200))).await;
                collecting.abort();
            }
            1 => {}
            _ => drop(collecting.await),
        }
    }

    /// Makes a checkpoint, or deletes one.
    async fn checkpoint(&mut self) {
        let process = self.process();
        self.others.push(process.clone());
        if self.checkpoints.is_empty() || self.rng.chance(0.7) {
            if let Ok(made) = checkpoint::create(&process.shard, &CheckpointOptions::default()).await {
                let bytes = self.pinned_bytes(&made).await;
                self.checkpoints.push((made, bytes));
            }
        } else {
            let which = self.rng.below(self.checkpoints.len() as u64) as usize;
            let (gone, _) = self.checkpoints.swap_remove(which);
            let _ = checkpoint::delete(&process.shard, gone.id).await;
        }
    }

    async fn pinned_bytes(&self, of: &Checkpoint) -> Vec<Bytes> {
        let mut bytes = Vec::new();
        for position in of.replay_after.get() + 1..=of.tail.get() {
            let found = self.bucket.read(&self.bucket.entry_path(position)).await;
            bytes.push(found.unwrap_or_else(|| panic!("I7: entry {position} of checkpoint {} is gone", of.id)));
        }
        bytes
    }

    async fn step(&mut self) {
        match self.rng.below(20) {
            0 | 1 => self.take_over().await,
            2 => self.truncate().await,
            3 => {
                // A process dies, with or without what it has on the wire.
                let which = self.rng.below(self.tenures.len() as u64) as usize;
                self.tenures[which].writer = None;
            }
            4 => {
                let tenures = self.tenures.iter().map(|tenure| &tenure.process);
                let all: Vec<&Process> = tenures.chain(&self.others).collect();
                self.rng.pick(&all).unwrap().faults.land_late().await;
            }
            6 => self.collect().await,
            7 => self.checkpoint().await,
            5 => {
                let newest = self.tenures.len() - 1;
                if self.rng.chance(0.3)
                    && let Some(writer) = self.tenures[newest].writer.take().and_then(Arc::into_inner)
                {
                    let _ = writer.close().await;
                }
            }
            _ => self.append().await,
        }
    }

    async fn check(mut self) {
        for tenure in &mut self.tenures {
            tenure.process.faults.random_off();
            if self.rng.chance(0.5) {
                tenure.process.faults.land_late().await;
            } else {
                tenure.process.faults.drop_late();
            }
        }
        // The last ones finish what they have; zombies too.
        for tenure in &mut self.tenures {
            if let Some(writer) = tenure.writer.take() {
                let _ = writer.flush().await;
            }
        }
        for other in &self.others {
            other.faults.random_off();
            other.faults.drop_late();
        }
        settle().await;
        tokio::time::sleep(Duration::from_secs(60)).await;

        crate::verify::assert_healthy(&self.bucket).await;
        // I7, I9: whatever was collected on the way, and is now.
        self.bucket.collect_garbage().await;
        for (made, bytes) in &self.checkpoints {
            assert_eq!(&self.pinned_bytes(made).await, bytes);
            assert_eq!(checkpoint::read(&self.bucket.shard(), made.id).await.unwrap().tail, made.tail);
        }

        let (_, replay) = self.bucket.process().open().await.unwrap();
        let found = replayed(replay).await;
        assert_eq!(found, self.bucket.rows().await);
        crate::verify::assert_healthy(&self.bucket).await;
        let replay_after = self.bucket.manifest().await.replay_after.get();
        let asked_away = std::mem::take(&mut self.asked_away).into_iter();
        let consumed: BTreeSet<i64> = asked_away.filter(|(_, at)| *at <= replay_after).map(|(id, _)| id).collect();
        let unique: BTreeSet<i64> = found.iter().copied().collect();
        assert_eq!(unique.len(), found.len(), "I2: nothing is replayed twice: {found:?}");
        assert!(unique.is_disjoint(&consumed), "I2: nothing comes back that was consumed");

        // Where each row stands.
        let mut tailer = WalTailer::new(self.bucket.shard());
        let mut positions = BTreeMap::new();
        let mut last_epoch = 0;
        while let Some(entry) = tailer.next().await.unwrap() {
            assert!(entry.writer_epoch.get() >= last_epoch, "I4: epochs never decrease");
            last_epoch = entry.writer_epoch.get();
            positions.extend(ids_of(&entry).into_iter().map(|id| (id, entry.position)));
        }

        for tenure in &self.tenures {
            let promises = tenure.promises.lock().unwrap();
            assert_eq!(promises.len(), tenure.appended.len(), "everybody was answered");
            let mut last = Position::ZERO;
            for (id, promise) in promises.iter() {
                let there = unique.contains(id) || consumed.contains(id);
                match promise {
                    Ok(position) => {
                        assert!(there, "I1: row {id} was acknowledged at {position} by epoch {}", tenure.epoch);
                        assert!(*position >= last, "I8: acknowledged in order");
                        last = *position;
                        if let Some(stands) = positions.get(id) {
                            assert_eq!(stands, position, "row {id}");
                        }
                    }
                    Err(Outcome::NotWritten) => assert!(!there, "row {id} is there and was called not written"),
                    Err(Outcome::Unknown) => {}
                    Err(Outcome::Written) => assert!(there),
                }
            }
            // I4: a prefix of what was appended, in that order.
            let of_tenure: Vec<i64> =
                tenure.appended.iter().copied().filter(|id| unique.contains(id) || consumed.contains(id)).collect();
            assert_eq!(of_tenure, tenure.appended[..of_tenure.len()], "epoch {}", tenure.epoch);
            let in_log: Vec<i64> = found.iter().copied().filter(|id| tenure.appended.contains(id)).collect();
            assert!(in_log.is_sorted(), "{in_log:?}");
        }
    }
}

fn run(habits: Habits, seeds: u64) {
    let seeds = std::env::var("FENCEPOST_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(seeds);
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut world = World::new(seed, habits).await;
                while world.tenures.is_empty() {
                    world.take_over().await;
                }
                for step in 0..60 {
                    world.step().await;
                    if step % 10 == 9 {
                        crate::verify::assert_healthy(&world.bucket).await;
                    }
                }
                world.check().await;
            });
        });
        if let Err(panic) = run {
            eprintln!("seed {seed}, {habits:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn what_was_promised_is_what_a_replay_returns() {
    run(USUAL, 60);
}

#[test]
fn what_was_promised_is_kept_with_several_puts_in_flight() {
    run(PIPELINED, 40);
}

#[test]
fn what_was_promised_is_kept_when_sentinels_stand_side_by_side() {
    run(SIDE_BY_SIDE, 40);
}
