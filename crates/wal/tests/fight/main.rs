//! Sixteen processes fight over one shard: each takes it over whenever it likes, some are suspended in the middle and
//! go on after others took over, flushed, and had their entries collected. No acknowledged row is lost, none is there
//! twice (I1, I2, I3, I8).
//!
//! `FENCEPOST_FIGHT_SECONDS` is the length of the fight on S3, by default 60; on files it is half of that. They run at
//! the same time. The length only bounds the work: nothing that is asserted depends on how fast it is done.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod child;
mod collector;
mod rows;

use std::collections::{BTreeMap, HashMap};
use std::process::Command;
use std::time::{Duration, Instant};

use fencepost_sim::{ChildError, Process, Rng, S3Server};
use fencepost_wal::{ManifestStore, OpenOptions, Shard, ShardId, ShardManifest};

use child::{PLACE, Place, ROWS_PER_WRITER};
use collector::Collector;
use rows::{from_text, rows_of, sstable_path};

const FIGHTERS: i64 = 16;
/// Fighters that are suspended at the same time, at most.
const MAX_SUSPENDED: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

fn seconds() -> u64 {
    std::env::var("FENCEPOST_FIGHT_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

#[test]
fn sixteen_processes_on_s3_lose_no_acknowledged_row_and_double_none() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(folder.path()).unwrap();
    fight(&server.url("t"), server.storage_options(), Duration::from_secs(seconds()));
}

#[test]
fn sixteen_processes_on_files_lose_no_acknowledged_row_and_double_none() {
    let folder = tempfile::tempdir().unwrap();
    fight(folder.path().join("t").to_str().unwrap(), HashMap::new(), Duration::from_secs(seconds().div_ceil(2)));
}

/// Not a test: one of the sixteen.
#[test]
#[ignore = "started by the others, in a process of its own"]
fn fighter() {
    child::run(&std::env::var(PLACE).expect("only the fights start a fighter"));
}

/// What the fighters said.
#[derive(Debug, Default)]
struct Said {
    /// Acknowledged rows and their positions.
    acknowledged: BTreeMap<i64, u64>,
    takeovers: usize,
    fenced: usize,
    refused: usize,
    stopped: Vec<String>,
    suspended: usize,
    /// Writers that were suspended, woke up when entries behind their last acknowledged one had been collected, and
    /// found themselves fenced.
    woke_fenced: usize,
}

struct Fighter {
    process: Process,
    /// Set while it believes that the shard is its own.
    epoch: Option<u64>,
    acknowledged: u64,
    suspended: Option<Suspended>,
    /// Set when it went on after a collection that matters to it.
    woken: bool,
}

struct Suspended {
    until: Instant,
    /// Whether it believes that the shard is its own.
    as_owner: bool,
    /// How many entries had been collected by then.
    collected: usize,
}

impl Fighter {
    fn start(place: &Place, writer: i64) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["fighter", "--exact", "--ignored", "--nocapture", "--quiet"]).env(PLACE, place.to_text(writer));
        let process = Process::spawn_command(command).unwrap();
        Self { process, epoch: None, acknowledged: 0, suspended: None, woken: false }
    }

    /// Takes in a line. Others than ours are the test harness's.
    fn hear(&mut self, line: &str, said: &mut Said) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["ack", id, position] => {
                let (id, position) = (id.parse().unwrap(), position.parse().unwrap());
                self.acknowledged = position;
                assert_eq!(said.acknowledged.insert(id, position), None, "row {id} was acknowledged twice");
            }
            ["taken", epoch] => {
                (self.epoch, self.woken) = (Some(epoch.parse().unwrap()), false);
                said.takeovers += 1;
            }
            ["fenced", _] => {
                said.fenced += 1;
                said.woke_fenced += usize::from(self.woken && self.epoch.is_some());
                (self.epoch, self.woken) = (None, false);
            }
            ["stopped", ..] => {
                said.stopped.push(line.to_owned());
                (self.epoch, self.woken) = (None, false);
            }
            ["refused", ..] => said.refused += 1,
            ["damage", ..] => panic!("{line}"),
            _ => {}
        }
    }

    fn listen(&mut self, said: &mut Said) {
        loop {
            match self.process.next_line(Duration::ZERO) {
                Ok(line) => self.hear(&line, said),
                Err(ChildError::Deadline { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn suspend(&mut self, stall: Duration, collected: usize) {
        self.process.suspend().unwrap();
        let as_owner = self.epoch.is_some();
        self.suspended = Some(Suspended { until: Instant::now() + stall, as_owner, collected });
    }

    /// Lets it go on when its time has come: an owner sleeps on until something was collected behind what it knows.
    fn wake_if_due(&mut self, collector: &Collector) {
        let Some(suspended) = &self.suspended else { return };
        let late = Instant::now().saturating_duration_since(suspended.until);
        let behind = collector.entries[suspended.collected..].iter().any(|p| *p > self.acknowledged);
        if late.is_zero() || (suspended.as_owner && !behind && late < Duration::from_secs(10)) {
            return;
        }
        self.woken = suspended.as_owner && behind;
        self.wake();
    }

    fn wake(&mut self) {
        if self.suspended.take().is_some() {
            self.process.resume().unwrap();
        }
    }
}

fn fight(url: &str, options: HashMap<String, String>, length: Duration) {
    let shard = ShardId::new_random().to_string();
    let place = Place { url: url.to_owned(), options, shard };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let shard = place.shard();
    let first = ShardManifest::first(shard.id(), 0, vec![]);
    runtime.block_on(ManifestStore::new(shard.clone()).initialize(first)).unwrap();

    let mut said = Said::default();
    let mut rng = Rng::new(16);
    let mut collector = Collector::new(shard.clone());
    let mut fighters: Vec<Fighter> = (0..FIGHTERS).map(|writer| Fighter::start(&place, writer)).collect();
    let end = Instant::now() + length;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
        fighters.iter_mut().for_each(|fighter| fighter.listen(&mut said));
        let suspended = fighters.iter().filter(|fighter| fighter.suspended.is_some()).count();
        if suspended < MAX_SUSPENDED && rng.chance(0.2) {
            let stall = Duration::from_secs(3).mul_f64(rng.unit());
            suspend_one(&mut fighters, stall, &mut rng, collector.entries.len());
            said.suspended += 1;
        }
        runtime.block_on(collector.collect());
        fighters.iter_mut().for_each(|fighter| fighter.wake_if_due(&collector));
    }
    for fighter in &mut fighters {
        fighter.wake_if_due(&collector);
        fighter.wake();
        fighter.process.say("enough").unwrap();
    }
    for fighter in &mut fighters {
        let status = fighter.process.wait(PATIENCE).unwrap();
        for line in fighter.process.rest_of_lines(PATIENCE).unwrap() {
            fighter.hear(&line, &mut said);
        }
        assert!(status.success(), "{}", fighter.process.stderr());
    }

    let rows = runtime.block_on(rows_of_all(&shard));
    let told = format!(
        "{} rows acknowledged of {} in the log, {} takeovers, {} fenced, {} opens refused, {} stopped, {} suspended, \
         {} of them woke up fenced behind collected entries; collected: {} entries, {} manifests, {} objects of SSTables",
        said.acknowledged.len(),
        rows.len(),
        said.takeovers,
        said.fenced,
        said.refused,
        said.stopped.len(),
        said.suspended,
        said.woke_fenced,
        collector.entries.len(),
        collector.manifests,
        collector.sstables,
    );
    println!("{url}: {told}");
    judge(&said.acknowledged, &rows);

    // It was a real fight.
    assert!(said.takeovers > FIGHTERS as usize && said.fenced >= FIGHTERS as usize / 2, "{told}");
    assert!(said.woke_fenced > 0, "{told}");
    assert!(!collector.entries.is_empty() && collector.manifests > 0, "{told}");
    assert!(said.acknowledged.len() > 100, "{told}");
}

/// The owner mostly: it has PUTs in flight.
fn suspend_one(fighters: &mut [Fighter], stall: Duration, rng: &mut Rng, collected: usize) {
    let awake = |fighter: &&mut Fighter| fighter.suspended.is_none();
    let victim = match rng.chance(0.7) {
        true => fighters.iter_mut().filter(awake).max_by_key(|fighter| fighter.epoch),
        false => {
            let nth = rng.below(FIGHTERS as u64) as usize;
            fighters.iter_mut().filter(awake).cycle_nth(nth)
        }
    };
    if let Some(victim) = victim {
        victim.suspend(stall, collected);
    }
}

trait CycleNth: Iterator + Sized {
    /// The n-th, or the last if there are fewer.
    fn cycle_nth(self, n: usize) -> Option<Self::Item> {
        self.take(n + 1).last()
    }
}

impl<I: Iterator> CycleNth for I {}

/// Every row in the order of the log, with its position: the SSTables first, then what a new writer replays.
async fn rows_of_all(shard: &Shard) -> Vec<(u64, i64)> {
    let opened = fencepost_wal::open(shard, &OpenOptions::default()).await.unwrap();
    let manifest = opened.tenure.manifest().await;
    let mut rows = Vec::new();
    for sstable in &manifest.sstables {
        let object = sstable_path(shard, sstable);
        let bytes = shard.store().get(&object).await.unwrap().unwrap_or_else(|| panic!("{object} is not there"));
        rows.extend(from_text(std::str::from_utf8(&bytes).unwrap()));
    }
    rows.extend(rows_of(opened.replay).await.unwrap());
    rows
}

fn judge(acknowledged: &BTreeMap<i64, u64>, rows: &[(u64, i64)]) {
    let mut found: BTreeMap<i64, u64> = BTreeMap::new();
    let mut newest: BTreeMap<i64, i64> = BTreeMap::new();
    let mut last = 0;
    for (position, id) in rows {
        assert_eq!(found.insert(*id, *position), None, "row {id} is there twice");
        // I8: the rows of a writer stand in the order in which it appended them.
        let before = newest.insert(id / ROWS_PER_WRITER, *id);
        assert!(before < Some(*id), "row {id} stands behind {before:?}");
        assert!(last <= *position, "position {position} stands behind {last}");
        last = *position;
    }
    for (id, position) in acknowledged {
        let at = found.get(id);
        assert_eq!(at, Some(position), "row {id} was acknowledged at {position}");
    }
}
