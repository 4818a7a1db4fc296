//! Runs the simulation of the log by hand, or explores the model of its protocol.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fencepost_sim::model;
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
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Explores the model of the protocol: every interleaving, within bounds.
    Model {
        /// The larger configurations: minutes and gigabytes.
        #[arg(long)]
        large: bool,
        /// Turns one rule off and prints the shortest schedule that breaks an invariant then.
        #[arg(long, value_name = "NAME", conflicts_with = "large")]
        mutant: Option<String>,
        /// Prints the tables of docs/model.md.
        #[arg(long, conflicts_with_all = ["large", "mutant"])]
        tables: bool,
    },
}

fn explore(command: Command) -> ExitCode {
    let Command::Model { large, mutant, tables } = command;
    let explored = match tables {
        true => model::tables().map(|(configs, mutants)| println!("{configs}\n{mutants}")),
        false => model::explore(large, mutant.as_deref()),
    };
    match explored {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(command) = args.command {
        return explore(command);
    }
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
