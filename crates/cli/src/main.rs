//! The `fencepost` command: reads the command line, sets up logging and the runtime, runs one verb, and turns its
//! result into an exit code.

mod args;
mod columns;
mod demo;
mod error;
mod input;
mod output;
mod progress;
mod table;
mod verbs;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Verb};
use crate::error::{CliError, Result};
use crate::verbs::reshard::Direction;

/// The variable that sets what is logged to stderr.
const LOG_VARIABLE: &str = "FENCEPOST_LOG";

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return CliError::failure(format!("cannot start the runtime: {e}")).report(),
    };
    let result = runtime.block_on(run(cli));
    // Nothing that still runs matters now; a thread that waits for stdin must not keep the process alive.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

async fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Create(args) => verbs::create::run(args).await,
        Verb::Ingest(args) => verbs::ingest::run(args).await,
        Verb::Query(args) => verbs::query::run(args).await,
        Verb::Get(args) => verbs::get::run(args).await,
        Verb::Checkpoint(verb) => verbs::checkpoint::run(verb).await,
        Verb::Index(verb) => verbs::index::run(verb).await,
        Verb::Clone(args) => verbs::clone::run(args).await,
        Verb::Delete(args) => verbs::clone::delete(args).await,
        Verb::Split(args) => verbs::reshard::run(args, Direction::Split).await,
        Verb::Join(args) => verbs::reshard::run(args, Direction::Join).await,
        Verb::Follow(args) => verbs::follow::run(args).await,
        Verb::Tail(args) => verbs::tail::run(args).await,
        Verb::Inspect(args) => verbs::inspect::run(args).await,
        Verb::Flush(args) => verbs::flush::run(args).await,
        Verb::Merge(args) => verbs::merge::run(args).await,
        Verb::Gc(args) => verbs::gc::run(args).await,
        Verb::Adopt(args) => verbs::adopt::run(args).await,
        Verb::Verify(args) => verbs::verify::run(args).await,
        Verb::Probe(args) => verbs::probe::run(args).await,
        Verb::Bench(args) => verbs::bench::run(args).await,
        Verb::Demo(args) => demo::run(args).await,
        Verb::Writer(args) => demo::writer::run(args).await,
        Verb::Check(args) => demo::check::run(args).await,
    }
}

fn start_logging() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}
