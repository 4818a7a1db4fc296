//! Random schedules of merging: a writer that writes, flushes and is taken over, two mergers that stall at any of their
//! requests, wake up late or never, meet lost answers and 409s, and leave requests on the wire when they are killed.
//! Whoever looks sees what the model says, and in the end the base table alone has it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use fencepost::{MergeReport, ShardWriter};
use fencepost_sim::{Gate, Op, RandomFaults, Rng};
use object_store::memory::InMemory;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use crate::interop::model::Model;
use crate::merge::{merge, only_in_base};
use crate::support::*;

const STEPS: u64 = 14;
const KEYS: u64 = 12;

/// Empty tables, made once and copied for each schedule.
static KEYED: LazyLock<OnceCell<Arc<InMemory>>> = LazyLock::new(OnceCell::new);
static KEYLESS: LazyLock<OnceCell<Arc<InMemory>>> = LazyLock::new(OnceCell::new);

async fn empty_table(key: bool) -> Bucket {
    let cell = if key { &KEYED } else { &KEYLESS };
    let made = cell.get_or_init(|| async {
        let memory = Arc::new(InMemory::new());
        let bucket = Bucket::on(Arc::clone(&memory) as _);
        match key {
            true => keyed(&bucket, 1).await,
            false => keyless(&bucket, 1).await,
        };
        memory
    });
    Bucket::on(Arc::new(made.await.fork()))
}

/// A merger that has not finished.
struct Merger {
    process: Process,
    task: JoinHandle<fencepost::Result<MergeReport>>,
    gate: Gate,
}

struct Schedule {
    seed: u64,
    rng: Rng,
    bucket: Bucket,
    model: Model,
    writer: ShardWriter,
    mergers: [Option<Merger>; 2],
    /// Processes that may have requests on the wire.
    gone: Vec<Process>,
    told: Vec<String>,
}

impl Schedule {
    async fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let key = rng.chance(0.6);
        let bucket = empty_table(key).await;
        let model = Model::new(key);
        let writer = bucket.process().writer(config()).await;
        Self { seed, rng, bucket, model, writer, mergers: [None, None], gone: Vec::new(), told: Vec::new() }
    }

    fn tell(&mut self, what: impl Into<String>) {
        self.told.push(what.into());
    }

    async fn run(mut self) {
        for step in 0..STEPS {
            match self.rng.below(100) {
                0..35 => self.write(step).await,
                35..40 => self.take_over().await,
                40..80 => self.move_a_merger().await,
                80..90 => self.kill_a_merger().await,
                90..95 => self.land().await,
                _ => self.look().await,
            }
        }
        self.finish().await;
    }

    /// One generation more.
    async fn write(&mut self, step: u64) {
        let rows: Vec<(i64, i64)> =
            (0..1 + self.rng.below(4)).map(|n| (self.rng.below(KEYS) as i64, (step * 100 + n) as i64)).collect();
        self.model.put(&rows);
        self.writer.put(crate::support::rows(&rows)).await.unwrap();
        let mut deleted = Vec::new();
        if matches!(self.model, Model::Keyed(_)) && self.rng.chance(0.5) {
            deleted = (0..1 + self.rng.below(3)).map(|_| self.rng.below(KEYS) as i64).collect();
            self.model.delete(&deleted);
            self.writer.delete(keys(&deleted)).await.unwrap();
        }
        self.writer.flush().await.unwrap();
        self.tell(format!("write {rows:?}, delete {deleted:?}, flush"));
    }

    async fn take_over(&mut self) {
        self.tell("another writer takes over");
        self.writer = self.bucket.process().writer(config()).await;
    }

    /// Starts one of the mergers, or wakes it up, and lets it go on until it stalls at some request or ends.
    async fn move_a_merger(&mut self) {
        let at = self.rng.below(2) as usize;
        let merger = match self.mergers[at].take() {
            Some(merger) => {
                let gate = self.stall(&merger.process);
                merger.gate.release();
                self.tell(format!("merger {at} wakes up"));
                Merger { gate, ..merger }
            }
            None => {
                let process = self.bucket.process();
                if self.rng.chance(0.3) {
                    process.faults.random(RandomFaults {
                        lost_ack: 0.1,
                        lost_ack_as_exists: 0.1,
                        conflict_409: 0.1,
                        late_landing: 0.1,
                        land: 0.2,
                        ..RandomFaults::quiet(self.rng.next_u64())
                    });
                }
                let gate = self.stall(&process);
                let task = process.merger();
                self.tell(format!("merger {at} starts"));
                Merger { process, task, gate }
            }
        };
        let Merger { process, mut task, gate } = merger;
        let ended = tokio::select! {
            () = gate.reached() => None,
            ended = &mut task => Some(ended.unwrap()),
        };
        match ended {
            None => {
                self.tell(format!(
                    "merger {at} stalls at {:?}",
                    process.faults.log().last().map(|r| (r.op, r.path.clone()))
                ));
                self.mergers[at] = Some(Merger { process, task, gate });
            }
            Some(Ok(report)) => self.tell(format!("merger {at} is done: {report:?}")),
            // It met more faults than it has attempts.
            Some(Err(error)) => self.tell(format!("merger {at} gives up: {error}")),
        }
    }

    /// A stall at some request, read or write, from here on.
    fn stall(&mut self, process: &Process) -> Gate {
        process.faults.clear_rules();
        let writes = self.rng.chance(0.8);
        let nth = 1 + self.rng.below(if writes { 9 } else { 40 });
        let rule = match writes {
            true => process.faults.on_any(Op::WRITES),
            false => process.faults.on_any([Op::Get, Op::Head, Op::List]),
        };
        match self.rng.chance(0.5) {
            true => rule.nth(nth).stall(),
            false => rule.nth(nth).stall_after(),
        }
    }

    async fn kill_a_merger(&mut self) {
        let at = self.rng.below(2) as usize;
        if let Some(merger) = self.mergers[at].take() {
            merger.task.abort();
            self.gone.push(merger.process);
            self.tell(format!("merger {at} is killed"));
        }
    }

    /// What was on the wire arrives.
    async fn land(&mut self) {
        for process in &self.gone {
            process.faults.land_late().await;
        }
        self.tell("late requests land");
    }

    async fn look(&mut self) {
        self.tell("look");
        assert_eq!(self.bucket.seen().await, self.model.rows(), "{}", self.story());
    }

    async fn finish(mut self) {
        self.look().await;
        for merger in std::mem::take(&mut self.mergers).into_iter().flatten() {
            merger.process.faults.clear_rules();
            merger.gate.release();
            let ended = merger.task.await.unwrap();
            self.tell(format!("a merger ends: {ended:?}"));
            self.gone.push(merger.process);
        }
        self.land().await;
        self.look().await;
        merge(&self.bucket.table().await).await;
        self.tell("merge the rest");
        assert_eq!(only_in_base(&self.bucket).await, self.model.rows(), "{}", self.story());
    }

    fn story(&self) -> String {
        format!("seed {}:\n  {}", self.seed, self.told.join("\n  "))
    }
}

/// Schedules of every second seed, so that two tests share the work. `MERGE_SCHEDULES=1000..20000` runs others.
async fn schedules(parity: u64) {
    let seeds = std::env::var("MERGE_SCHEDULES").unwrap_or_else(|_| "0..500".into());
    let (from, to) = seeds.split_once("..").unwrap();
    for seed in (from.parse::<u64>().unwrap()..to.parse().unwrap()).filter(|seed| seed % 2 == parity) {
        let schedule = Schedule::new(seed).await;
        let run = tokio::time::timeout(Duration::from_secs(60), schedule.run());
        run.await.unwrap_or_else(|_| panic!("seed {seed} hangs"));
    }
}

#[tokio::test]
async fn random_merge_schedules_agree_with_a_model() {
    schedules(0).await;
}

#[tokio::test]
async fn more_random_merge_schedules_agree_with_a_model() {
    schedules(1).await;
}
