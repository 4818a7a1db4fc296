//! Random schedules of appends, takeovers, truncations and garbage collection over a store with the habits of real
//! ones, against a model of what was promised. `FENCEPOST_SEEDS` runs more of them; a failure names its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fencepost_sim::{RandomFaults, Rng};
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

struct World {
    bucket: Bucket,
    rng: Rng,
    next_id: i64,
    tenures: Vec<Tenure>,
    /// Rows that were live when somebody asked for a truncation above them, and where they stood. Consumed is what R
    /// has passed in the end: the answer of a truncation may be lost, and it may land much later.
    asked_away: BTreeMap<i64, u64>,
}

impl World {
    async fn new(seed: u64) -> Self {
        let bucket = bucket().await;
        Self { bucket, rng: Rng::new(seed), next_id: 0, tenures: Vec::new(), asked_away: BTreeMap::new() }
    }

    fn process(&mut self) -> Process {
        let mut process = self.bucket.process();
        // Some processes give up soon, so that writers are poisoned too.
        let max_attempts = 2 + self.rng.below(8) as usize;
        let attempt_timeout = Duration::from_secs(5);
        let retry = RetryPolicy { max_attempts, attempt_timeout, ..RetryPolicy::default() };
        process.shard = Shard::new(process.shard.store().clone().with_retry(retry), process.shard.id());
        process
            .faults
            .random(RandomFaults { burst: 2 + self.rng.below(4) as u32, ..RandomFaults::stormy(self.rng.next_u64()) });
        process
    }

    async fn take_over(&mut self) {
        let process = self.process();
        let max_in_flight = *self.rng.pick(&[1, 2, 4, 32]).unwrap();
        let config = WalConfig { max_in_flight, flush_interval: Duration::from_millis(20), ..WalConfig::default() };
        let budget = *self.rng.pick(&[0, 2000, usize::MAX]).unwrap();
        let options = OpenOptions { replay_budget_bytes: budget, ..OpenOptions::default() };
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
            process.faults.random(RandomFaults::stormy(self.rng.next_u64()));
        }
        let epoch = writer.stats().epoch.get();
        self.tenures.push(Tenure {
            process,
            writer: Some(Arc::new(writer)),
            epoch,
            appended: Vec::new(),
            promises: Arc::default(),
        });
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
        let tenure = &mut self.tenures[which];
        let Some(writer) = tenure.writer.clone() else {
            return;
        };
        for _ in 0..count {
            let id = self.next_id;
            self.next_id += 1;
            tenure.appended.push(id);
            let promises = Arc::clone(&tenure.promises);
            match writer.append_no_wait(batch([id])).await {
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
            self.bucket.collect_garbage().await;
            let newest = self.bucket.manifest().await.version.get();
            self.bucket.prune_below(newest.saturating_sub(15)).await;
        }
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
                let which = self.rng.below(self.tenures.len() as u64) as usize;
                self.tenures[which].process.faults.land_late().await;
            }
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
        settle().await;
        tokio::time::sleep(Duration::from_secs(60)).await;

        crate::verify::assert_healthy(&self.bucket).await;
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

#[test]
fn what_was_promised_is_what_a_replay_returns() {
    let seeds = std::env::var("FENCEPOST_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut world = World::new(seed).await;
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
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
