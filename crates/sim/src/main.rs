//! Runs the simulation of the log by hand.

use std::process::ExitCode;

use clap::Parser;
use fencepost_sim::run::{Coverage, simulate};

/// Simulates the real log under random faults, stalls and takeovers, and prints every seed that breaks a promise.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Runs this one seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints everything that happened.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (from, seeds) = args.seed.map_or((args.from, args.seeds), |seed| (seed, 1));
    let mut coverage = Coverage::default();
    let mut failed = 0;
    let started = std::time::Instant::now();
    for seed in from..from.saturating_add(seeds) {
        let report = simulate(seed, args.trace);
        for line in &report.trace {
            println!("{line}");
        }
        coverage.merge(&report.coverage);
        if let Some(violation) = &report.violation {
            failed += 1;
            println!("seed {seed}: {violation}");
        }
    }
    println!("{seeds} seeds, {failed} failed, {:?}", started.elapsed());
    println!("{coverage}");
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
