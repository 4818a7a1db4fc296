//! Deterministic simulation of a shard's writer: the real log, MemTables and flusher over a store with the habits of
//! real ones, in one thread and in virtual time; only the files of SSTables have a stand-in. The same seed gives the
//! same run. Writers take the shard over from each other, stall, die and come back while garbage is collected; after
//! every change of the store an oracle checks I1, I2, I4, I5, I6 and I8.
//!
//! The log by itself, with more processes and habits, is simulated in `fencepost-sim`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod collector;
mod oracle;
mod world;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow_schema::{DataType, Field, Schema};
use fencepost_sim::{RandomFaults, Rng};
use fencepost_wal::{ManifestStore, ShardManifest, Store};

use super::mutants::{self, Mutant};
use crate::base::BaseTable;
use crate::lance_store::LanceStore;
use crate::sharding::Sharding;
use world::{Habits, Process, World, spread};
use writer::Workload;

/// After this much virtual time something waits for what never comes.
const TOO_LONG: Duration = Duration::from_secs(365 * 24 * 3600);

/// The two base tables of all runs, keyed and keyless. Nothing is ever written to them.
fn base_table(keyed: bool) -> BaseTable {
    static TABLES: OnceLock<[BaseTable; 2]> = OnceLock::new();
    let tables = TABLES.get_or_init(|| {
        let make = |name: &str, key: &[String]| {
            let column = |name: &str, nullable| Field::new(name, DataType::Int64, nullable);
            let schema = Arc::new(Schema::new(vec![column("key", false), column("id", true)]));
            let url = format!("memory://flush-simulation-{name}/t");
            let store = LanceStore::new(&Store::open(&url, &HashMap::new()).unwrap());
            let key = key.to_vec();
            // Apart from the runs, whose clock stands still.
            let made = std::thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(BaseTable::create(&store, &schema, &key, &Sharding::Unsharded, None)).unwrap()
            });
            made.join().unwrap()
        };
        [make("keyless", &[]), make("keyed", &["key".to_owned()])]
    });
    tables[usize::from(keyed)].clone()
}

/// What became of one run.
struct Report {
    violation: Option<String>,
    trace: Vec<String>,
    counts: HashMap<&'static str, u64>,
}

/// Runs one seed; every second one with a keyed table.
fn simulate(seed: u64) -> Report {
    let keyed = seed % 2 == 1;
    let base = base_table(keyed);
    let mut rng = Rng::new(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let world = World::new(keyed, 10 + rng.below(30));
        tokio::select! {
            biased;
            () = world.failed() => {}
            () = run(&world, &base, &mut rng) => {}
            () = tokio::time::sleep(TOO_LONG) => world.judge("run", Err("the run never ends".into())),
        }
        let mut state = world.state();
        Report {
            violation: state.violation.take(),
            trace: std::mem::take(&mut state.trace),
            counts: std::mem::take(&mut state.counts),
        }
    })
}

/// Mostly a few faults, each of them often: deep schedules need rare things one behind the other.
fn draw_faults(rng: &mut Rng) -> RandomFaults {
    let mut p = |most: f64| if rng.chance(0.5) { most * rng.unit() } else { 0.0 };
    RandomFaults {
        lost_ack_as_exists: p(0.2),
        lost_ack: p(0.2),
        conflict_409: p(0.2),
        late_landing: p(0.2),
        fail_create: p(0.2),
        fail_get: p(0.1),
        fail_list: p(0.1),
        fail_delete: p(0.2),
        land: p(0.1),
        ..RandomFaults::quiet(0)
    }
}

async fn run(world: &Arc<World>, base: &BaseTable, rng: &mut Rng) {
    let calm = Habits { stall: 0.0, long_stalls: false, death: 0.0 };
    let init = Process::new(world, "init".into(), rng.fork(), RandomFaults::quiet(0), calm);
    let first = ShardManifest::first(world.shard, 0, vec![]);
    ManifestStore::new(init.shard()).initialize(first).await.unwrap();
    let faults = draw_faults(rng);
    let habits = Habits {
        stall: *rng.pick(&[0.0, 0.01, 0.05]).unwrap(),
        long_stalls: rng.chance(0.5),
        death: *rng.pick(&[0.0, 0.003, 0.01]).unwrap(),
    };
    let workload = Workload {
        burst: *rng.pick(&[2, 6, 20]).unwrap(),
        flush: *rng.pick(&[0.1, 0.5]).unwrap(),
        leave: *rng.pick(&[0.0, 0.1, 0.4]).unwrap(),
        max_in_flight: *rng.pick(&[1, 2, 4, 32]).unwrap(),
    };
    let mut actors = tokio::task::JoinSet::new();
    for writer in 0..1 + rng.below(3) {
        let (world, base, dice) = (Arc::clone(world), base.clone(), rng.fork());
        actors.spawn_local(write(world, base, writer, dice, faults.clone(), habits, workload));
    }
    for collector in 0..rng.below(3) {
        let collector = Process::new(world, format!("c{collector}"), rng.fork(), faults.clone(), habits);
        actors.spawn_local(async move {
            let collecting = collector::collect_until_the_end(&collector);
            tokio::select! {
                biased;
                () = collector.died() => {}
                () = collecting => {}
            }
        });
    }
    while let Some(ended) = actors.join_next().await {
        if let Err(e) = ended {
            return world.judge("run", Err(format!("a panic: {e}")));
        }
    }
    // Whatever is on the wire lands.
    tokio::time::sleep(Duration::from_secs(5 * 3600)).await;
    world.calm_down(2);
    let before = acknowledged(world);
    let last = Process::new(world, "last".into(), rng.fork(), RandomFaults::quiet(0), calm);
    writer::live(&last, base, Workload { flush: 1.0, ..workload }).await;
    if acknowledged(world) <= before {
        world.judge("last", Err("with all faults gone, the shard cannot be flushed".into()));
    }
}

fn acknowledged(world: &World) -> u64 {
    world.state().counts.get("flushes answered").copied().unwrap_or_default()
}

/// One writer after the other under one number, until the rounds are used up.
async fn write(
    world: Arc<World>,
    base: BaseTable,
    number: u64,
    mut dice: Rng,
    faults: RandomFaults,
    habits: Habits,
    workload: Workload,
) {
    let mut incarnation = 0;
    while world.rounds_left() > 0 {
        incarnation += 1;
        tokio::time::sleep(spread(&mut dice, 1, 60_000)).await;
        // A takeover costs a round too, so that those who only fence each other come to an end.
        world.take_round();
        let name = format!("w{number}.{incarnation}");
        let process = Process::new(&world, name, dice.fork(), faults.clone(), habits);
        tokio::select! {
            biased;
            () = process.died() => {}
            () = writer::live(&process, &base, workload) => {}
        }
        tokio::task::spawn_local(async move { process.land_what_is_late().await });
    }
}

fn assert_holds(seed: u64) -> Report {
    let report = simulate(seed);
    if let Some(violation) = &report.violation {
        let from = report.trace.len().saturating_sub(60);
        eprintln!("{}", report.trace[from..].join("\n"));
        panic!("seed {seed}: {violation} (FLUSH_SIMULATION={seed}..{} repeats it)", seed + 1);
    }
    report
}

/// Seeds from the environment, `FLUSH_SIMULATION=1000..20000`, or these.
fn seeds(otherwise: Range<u64>) -> Range<u64> {
    let Ok(range) = std::env::var("FLUSH_SIMULATION") else {
        return otherwise;
    };
    let (from, to) = range.split_once("..").expect("FLUSH_SIMULATION is a range of seeds, such as 1000..20000");
    from.parse().unwrap()..to.parse().unwrap()
}

#[test]
fn a_simulated_writer_keeps_its_promises() {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut steps = 0;
    let seeds = seeds(0..150);
    let is_whole = seeds == (0..150);
    for seed in seeds {
        let report = assert_holds(seed);
        steps += report.trace.len();
        for (what, n) in report.counts {
            *counts.entry(what).or_default() += n;
        }
    }
    eprintln!("{steps} steps, {counts:#?}");
    // A run in which nothing of it happened would prove nothing.
    for what in [
        "takeovers",
        "writes acknowledged",
        "flushes answered",
        "answers that a fence gave",
        "entries collected",
        "late landings of the dead",
        "writers whose flushes failed",
        "deaths",
        "stalls",
        "looks of readers",
    ] {
        assert!(!is_whole || counts.get(what).is_some_and(|n| *n > 10), "{what}: {:?}", counts.get(what));
    }
}

#[test]
fn fresh_seeds_keep_them_too() {
    let from = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 >> 16;
    eprintln!("seeds {from}..{}", from + 30);
    for seed in from..from + 30 {
        assert_holds(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..16 {
        let (one, other) = (simulate(seed), simulate(seed));
        let differ = one.trace.iter().zip(&other.trace).position(|(a, b)| a != b);
        assert_eq!(
            differ,
            None,
            "seed {seed}: {:?} {:?}",
            one.trace.get(differ.unwrap_or(0)),
            other.trace.get(differ.unwrap_or(0))
        );
        assert_eq!(one.trace.len(), other.trace.len(), "seed {seed}");
        assert!(one.trace.len() > 50, "seed {seed}");
    }
}

/// How many seeds a broken engine survives at most.
const CAUGHT_WITHIN: u64 = 20;

/// Runs seeds until one notices that a rule is off. Returns how many it took, and what was noticed.
fn seeds_until_caught(mutant: Mutant) -> (u64, String) {
    mutants::set(Some(mutant));
    let caught = (0..CAUGHT_WITHIN).find_map(|seed| Some((seed + 1, simulate(seed).violation?)));
    mutants::set(None);
    caught.unwrap_or_else(|| panic!("{mutant:?} was not noticed in {CAUGHT_WITHIN} seeds"))
}

#[test]
fn every_rule_of_the_flush_is_missed_when_it_is_off() {
    for mutant in Mutant::ALL {
        let (seeds, violation) = seeds_until_caught(mutant);
        eprintln!("{}: noticed after {seeds} seeds: {violation}", mutant.about());
    }
}
