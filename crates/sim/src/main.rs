//! Runs the simulation of the log by hand, for hours or one seed again, or explores the model of its protocol.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use fencepost_sim::model;
use fencepost_sim::run::{Coverage, Report, plot_of, simulate};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Simulates the real log under random faults, stalls and takeovers, and prints every seed that breaks a promise.
#[derive(Debug, Parser)]
#[command(name = "fencepost-sim")]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Runs this one seed.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Prints everything that happened.
    #[arg(long)]
    trace: bool,
    /// Turns a rule of the protocol off, and stops at the first seed that notices; `all` tries every rule in turn.
    /// Needs the feature `mutants`.
    #[arg(long)]
    mutant: Option<String>,
    /// Only seeds in which the adversary follows this plot: ForgottenManifests, Stragglers, Closes, Lifetimes, Suspended,
    /// Ranges, Wipes.
    #[arg(long, value_name = "NAME")]
    plot: Option<String>,
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
    let seeds = from..from.saturating_add(seeds);
    let seeds: Vec<u64> = seeds.filter(|seed| args.plot.is_none() || plot_of(*seed) == args.plot).collect();
    if let Some(plot) = args.plot.filter(|_| seeds.is_empty()) {
        eprintln!("error: the adversary follows the plot `{plot}` in none of these seeds; --help lists the plots");
        return ExitCode::FAILURE;
    }
    match &args.mutant {
        None => run(&seeds, args.trace),
        Some(name) => mutants(name, &seeds, args.trace),
    }
}

fn run(seeds: &[u64], trace: bool) -> ExitCode {
    let (started, mut told) = (Instant::now(), Instant::now());
    let mut coverage = Coverage::default();
    let (mut done, mut steps, mut failed) = (0_u64, 0_u64, 0_u64);
    for &seed in seeds {
        let report = simulate(seed, trace);
        done += 1;
        steps += report.steps;
        failed += u64::from(tell(&report, ""));
        coverage.merge(&report.coverage);
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            eprintln!("{done} seeds, up to {seed}, {failed} failed, {:.0?}", started.elapsed());
        }
    }
    println!("{done} seeds, {steps} steps, {failed} failed, {:.1?}. Met:", started.elapsed());
    print!("{coverage}");
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Prints a report; whether a promise was broken.
fn tell(report: &Report, mutant: &str) -> bool {
    for line in &report.trace {
        println!("{line}");
    }
    if let Some(violation) = &report.violation {
        println!("seed {}: {violation}", report.seed);
        if report.trace.is_empty() {
            println!("  repeat it: cargo run -p fencepost-sim --{mutant} --seed {} --trace", report.seed);
        }
    }
    report.violation.is_some()
}

#[cfg(feature = "mutants")]
fn mutants(name: &str, seeds: &[u64], trace: bool) -> ExitCode {
    use fencepost_sim::run::{Mutant, simulate_mutant};

    let chosen: Vec<Mutant> = match Mutant::named(name) {
        Some(mutant) => vec![mutant],
        None if name == "all" => Mutant::ALL.to_vec(),
        None => {
            let known: Vec<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
            eprintln!("error: there is no mutant `{name}`; use all, or one of {}", known.join(", "));
            return ExitCode::FAILURE;
        }
    };
    let mut survived = 0;
    for mutant in chosen {
        let started = Instant::now();
        let caught = seeds
            .iter()
            .map(|seed| simulate_mutant(*seed, trace, mutant))
            .find(|r| trace && tell(r, "") || r.violation.is_some());
        match caught {
            Some(Report { seed, violation: Some(violation), .. }) => {
                let nth = seed.saturating_add(1);
                println!("{}: seed {seed}, the {nth}th, {:.1?}: {violation}", mutant.name(), started.elapsed());
            }
            _ => {
                survived += 1;
                println!("{}: SURVIVES, {:.1?}", mutant.name(), started.elapsed());
            }
        }
    }
    if survived > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(not(feature = "mutants"))]
fn mutants(name: &str, _: &[u64], _: bool) -> ExitCode {
    eprintln!(
        "error: this build has no switches; use cargo run -p fencepost-sim --features mutants -- --mutant {name}"
    );
    ExitCode::FAILURE
}
