//! Measures Fencepost side by side with Lance's MemWAL and with SlateDB: in one process, on the same store, with the same
//! rows, in turns. What was found is in `docs/benchmarks.md`.
//!
//! `cargo run --release -p fencepost-bench -- [SCENARIO]… [--store memory|s3|s3-jitter|file|URL] [--json FILE] [--plot DIR]`

mod allocated;
mod clients;
mod contender;
mod place;
mod plot;
mod report;
mod rows;
mod scenario;
mod trace;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde_json::json;

use crate::place::{StoreKind, Target};
use crate::scenario::{Plan, Scenario};

/// Any error: a measurement that fails has no figure.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Measures Fencepost, Lance's MemWAL and SlateDB.
#[derive(Debug, Parser)]
#[command(name = "fencepost-bench")]
struct Args {
    /// What is measured; everything if none is named.
    scenarios: Vec<Scenario>,
    /// `memory`, `s3` (simulated), `s3-jitter`, `file`, or the URL of a folder on a real store, in which what is
    /// written stays. Without it each scenario runs where its goal says.
    #[arg(long)]
    store: Option<String>,
    /// An option of that store, as `fencepost` takes them.
    #[arg(long, value_name = "KEY=VALUE")]
    storage_option: Vec<String>,
    /// Rounds; in each every system has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that each closed loop of clients is measured.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// A hundredth of the data and half a second, once: to see that everything runs.
    #[arg(long)]
    quick: bool,
    /// Fencepost alone.
    #[arg(long)]
    alone: bool,
    /// Writes every round's figures here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a line for each measured request here: when it began, how long it took, what it was.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Draws a plot of each table here.
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

impl Args {
    fn target(&self) -> Result<Option<Target>> {
        let Some(store) = &self.store else { return Ok(None) };
        if let Ok(kind) = StoreKind::from_str(store, false) {
            return Ok(Some(Target::Kind(kind)));
        }
        let option = |option: &String| {
            let (key, value) = option.split_once('=').ok_or(format!("`{option}` is not KEY=VALUE"))?;
            Ok::<_, Failure>((key.to_owned(), value.to_owned()))
        };
        let options: Result<HashMap<String, String>> = self.storage_option.iter().map(option).collect();
        Ok(Some(Target::Url { url: store.clone(), options: options? }))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut plan = Plan {
        target: args.target()?,
        rounds: args.rounds.max(1),
        time: Duration::from_secs_f64(args.seconds.max(0.1)),
        divisor: 1,
        alone: args.alone,
    };
    if args.quick {
        plan = Plan { rounds: 1, time: Duration::from_millis(500), divisor: 100, ..plan };
    }
    let scenarios = if args.scenarios.is_empty() { Scenario::value_variants().to_vec() } else { args.scenarios };
    if let Some(folder) = &args.plot {
        std::fs::create_dir_all(folder)?;
    }
    if let Some(file) = &args.trace {
        trace::begin(file)?;
    }
    let mut found = Vec::new();
    for scenario in scenarios {
        let started = Instant::now();
        for (n, table) in Box::pin(scenario.run(&plan)).await?.into_iter().enumerate() {
            println!("{}", table.markdown());
            if let Some(folder) = &args.plot {
                plot::draw(&table, n + 1, folder)?;
            }
            found.push(table.json());
        }
        eprintln!("{scenario:?}: {:.0} s", started.elapsed().as_secs_f64());
        // After each, so that a run that is ended half way has left what it found.
        if let Some(file) = &args.json {
            std::fs::write(file, serde_json::to_vec_pretty(&json!({ "tables": found }))?)?;
        }
    }
    Ok(())
}
