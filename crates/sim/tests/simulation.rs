//! The real log in simulation: fixed seeds, fresh ones, and each run the same twice.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fencepost_sim::run::{Coverage, Report, simulate};

/// Seeds that are always run.
const FIXED: u64 = 200;
/// Time for fresh ones; `FENCEPOST_SIM_SECONDS` sets another.
const FRESH_SECONDS: u64 = 20;

fn assert_holds(report: &Report) {
    if let Some(violation) = &report.violation {
        let seed = report.seed;
        panic!("seed {seed}: {violation}; repeat it: cargo run -p fencepost-sim -- --seed {seed} --trace");
    }
}

#[test]
fn the_fixed_seeds_hold_and_meet_what_they_are_there_for() {
    let mut met = Coverage::default();
    for seed in 0..FIXED {
        let report = simulate(seed, false);
        assert_holds(&report);
        met.merge(&report.coverage);
    }
    println!("{met}");
    // A run in which nothing happens proves nothing. The numbers are far below what these seeds have.
    for (what, least) in [
        ("appends acknowledged", 10_000),
        ("appends acknowledged behind the serial zone", 1000),
        ("appends of unknown outcome", 100),
        ("takeovers", 400),
        ("clean closes", 150),
        ("answers that a fence gave", 400),
        ("dead entries", 25),
        ("dead positions passed", 15),
        ("entries replayed", 1500),
        ("flushes", 300),
        ("partial flushes begun", 300),
        ("truncations", 80),
        ("entries collected", 1500),
        ("fences kept by a collection", 10_000),
        ("manifests pruned", 1500),
        ("SSTables collected", 120),
        ("bytes in a hole that was collected", 12),
        ("forgotten manifests that came back", 50),
        ("entries followed", 1000),
        ("followers that fell behind", 50),
        ("checkpoints", 300),
        ("checkpoints refreshed", 150),
        ("checkpoints taken off", 300),
        ("stalls across a collection of the log", 120),
        ("stalls across a pruning of manifests", 200),
        ("late landings", 40),
        ("late landings of dead processes", 3),
        ("deaths", 70),
        ("stragglers that were sent in front of a successor's PUT", 20),
        ("plots: a commit unanswered until another stood in its place", 6),
        ("plots: a commit upon a manifest that came back", 4),
        ("plots: a death with a window on the wire", 10),
        ("plots: a keeper's commit held back until a checkpoint's object went", 2),
        ("plots: a manifest's GET held back until another stood there", 15),
        ("plots: a manifest's PUT held back until its version was pruned", 30),
        ("plots: a manifest's PUT repeated when its version was pruned", 15),
        ("plots: a flush that waited until another's commit was held back", 1),
        ("plots: an entry on the wire until a successor's in its place was collected", 1),
        ("plots: an entry that landed before a sentinel beside it", 6),
        ("plots: an entry on the wire until a successor's PUT to its position", 2),
        ("plots: an entry's PUT held back until its position was collected", 12),
        ("plots: an entry's PUT on the wire until its position was collected", 6),
        ("plots: an entry's copy on the wire until its position was collected", 4),
    ] {
        assert!(met.get(what) >= least, "{what}: {}, want {least}", met.get(what));
    }
}

#[test]
fn fresh_seeds_hold() {
    let seconds = std::env::var("FENCEPOST_SIM_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(FRESH_SECONDS);
    let started = Instant::now();
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64 * 10_000;
    println!("from seed {first}");
    let mut seed = first;
    while started.elapsed() < Duration::from_secs(seconds) {
        assert_holds(&simulate(seed, false));
        seed += 1;
    }
    println!("{} seeds", seed - first);
    assert!(seed > first);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..40 {
        let (once, again) = (simulate(seed, true), simulate(seed, true));
        let differ = once.trace.iter().zip(&again.trace).find(|(a, b)| a != b);
        assert_eq!(differ, None, "seed {seed}");
        assert_eq!(
            (once.steps, once.trace_hash, once.virtual_time),
            (again.steps, again.trace_hash, again.virtual_time)
        );
        assert!(once.steps > 50 && once.trace.len() as u64 == once.steps);
        // Keeping the lines changes nothing.
        assert_eq!(simulate(seed, false).trace_hash, once.trace_hash);
    }
    assert_ne!(simulate(0, false).trace_hash, simulate(1, false).trace_hash);
}
