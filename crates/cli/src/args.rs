//! The command line. It owns names, defaults and help texts; it does not act.

mod checkpoints;
mod indexes;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use fencepost::Written;

pub(crate) use self::checkpoints::{
    CheckpointCreateArgs, CheckpointDeleteArgs, CheckpointListArgs, CheckpointRefreshArgs, CheckpointVerb, CloneArgs,
    DeleteArgs, ReshardArgs, Scope,
};
pub(crate) use self::indexes::{IndexCreateArgs, IndexDropArgs, IndexListArgs, IndexVerb, Kind};
use crate::input::Format;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed for another reason than those below; verify: something is lost or damaged
  2    the command line is wrong
  3    the table, or the checkpoint, does not exist; or the table exists already
  4    the input does not fit the table or cannot be read
  5    fenced or stopped: another writer owns the table, or the outcome is unknown until it is opened again
  6    the store cannot be used, or cannot hold a log
  130  stopped by Ctrl-C (what was acknowledged is durable)

FENCEPOST_LOG=info (or debug, or fencepost_wal=debug) writes a log to stderr.";

const ADOPT: &str = "\
Take a table that Lance made, or wrote to, into Fencepost's care: the table gets the id from which the names of new \
shards derive, and the manifest of each shard that Lance wrote to gets the fences that garbage collection has to leave. \
Until then `inspect` shows such a shard as unadopted, and garbage collection refuses it. Fences nobody, may run beside \
writers, and may be repeated.";

const GC: &str = "\
Delete what nobody needs any more: log entries that were flushed, SSTables that the base table has, expired checkpoints, \
old manifests. Never a fence, nor what a live checkpoint holds. Fences nobody, and may run beside writers, readers and \
other collectors; a process that writes to the table does the same by itself every 10 minutes.";

const VERIFY: &str = "\
Read every object of every shard: names, bytes and checksums, the history of the manifests, the log without holes, \
epochs and fences, SSTables with their rows, key indexes and bloom filters, and the base table's record of what was \
merged. Prints what was found, how bad it is and what to do; the exit code is 1 if something is lost or damaged, which \
a warning or a remark is not. Writes nothing, fences nobody, may run beside writers, mergers and collectors. Reads all \
of the log and all SSTables, so it takes as long as downloading them.";

const PROBE: &str = "\
Check that a store keeps the promises that the log needs, and measure what a conditional PUT costs there. Many creates \
of one key at once must have one winner, again and again; what was written must be read and listed at once; what is \
there must never be replaced. Conditional and plain PUTs are then timed in turns, one at a time and 16 at once. A store \
that breaks a promise is refused with exit code 6 and the reason. Everything that was written is deleted again.";

/// Durable, fenced, queryable appends to Lance tables on object storage.
#[derive(Debug, Parser)]
#[command(name = "fencepost", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create an empty table
    Create(CreateArgs),
    /// Append the rows of files (csv, tsv, ndjson, parquet, arrow) to a table
    Ingest(IngestArgs),
    /// Run a SQL query; the table is called `t`
    Query(QueryArgs),
    /// Print the rows of some keys
    Get(GetArgs),
    /// Pin a moment of a table: list, refresh and delete what was pinned
    #[command(subcommand)]
    Checkpoint(CheckpointVerb),
    /// Make, list or drop secondary indexes: by value, by words, by vectors
    #[command(subcommand)]
    Index(IndexVerb),
    /// Fork a table: one of its own that shares the files of another, in time that does not depend on their size
    Clone(CloneArgs),
    /// Delete a table, or a clone that was not finished; refused while a checkpoint is live or a clone shares its files
    Delete(DeleteArgs),
    /// Give a table that is sharded by buckets more of them; no SSTable is copied, readers go on
    Split(ReshardArgs),
    /// Give it fewer buckets again
    Join(ReshardArgs),
    /// Keep up with a table: print its number of rows, or what a query answers, whenever something changes
    Follow(FollowArgs),
    /// Print one line per entry of the write-ahead log
    Tail(TailArgs),
    /// Print the state of every shard and of the base table as JSON; a shard that Lance wrote to is unadopted until
    /// `adopt`, and garbage collection refuses it
    Inspect(InspectArgs),
    /// Take the table over and write every logged row to SSTables
    Flush(FlushArgs),
    /// Move what was flushed into the base table, which any Lance reader sees
    Merge(MergeArgs),
    /// Delete what nobody needs any more: flushed log entries, merged SSTables, expired checkpoints, old manifests
    #[command(long_about = GC)]
    Gc(GcArgs),
    /// Take a table that Lance made, or wrote to, into Fencepost's care
    #[command(long_about = ADOPT)]
    Adopt(AdoptArgs),
    /// Read every object of every shard and say what is missing or damaged; exit code 1 if anything is
    #[command(long_about = VERIFY)]
    Verify(VerifyArgs),
    /// Check that a store keeps the promises that the log needs, and measure what a conditional PUT costs there
    #[command(long_about = PROBE)]
    Probe(ProbeArgs),
    /// Measure on your own store what durable appends take and cost; what is written there is deleted again
    Bench(BenchArgs),
    /// Crash and recover a table in a temporary directory, and prove that no row was lost
    Demo(DemoArgs),
    /// Writes generated rows and says which are acknowledged; started by `demo` and by the crash tests
    #[command(name = "__writer", hide = true)]
    Writer(WriterArgs),
    /// Proves that a table holds what its writers said; used by the crash tests
    #[command(name = "__check", hide = true)]
    Check(CheckArgs),
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct TableArgs {
    /// The table: a path, or a URL (file://, memory://, s3://, gs://, az://)
    #[arg(value_name = "TABLE")]
    pub(crate) url: String,
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
    #[command(flatten)]
    pub(crate) wal_store: WalStoreArgs,
}

/// A store for the logs.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct WalStoreArgs {
    /// The store of the logs, if they are not in the table's own: a path or URL. `create` remembers it; a writer moves logs
    /// that are elsewhere here once nothing is left to replay; readers need it only for its options
    #[arg(long = "wal-store", value_name = "URL")]
    pub(crate) wal_store_url: Option<String>,
    /// An option of that store (repeatable)
    #[arg(long = "wal-storage-option", value_name = "K=V", value_parser = key_value, requires = "wal_store_url")]
    pub(crate) wal_store_options: Vec<(String, String)>,
}

/// What a writer gives up.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AbandonArgs {
    /// Open shards whose WAL store is lost: their rows that were not flushed are given up, and their last writer is asserted
    /// to be dead (one that only stalls could go on acknowledging rows that nobody will read)
    #[arg(long)]
    pub(crate) abandon_wal_store: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct StorageArgs {
    /// An option of the store, such as aws_endpoint=http://localhost:9000 (repeatable)
    #[arg(long = "storage-option", value_name = "K=V", value_parser = key_value)]
    pub(crate) storage_options: Vec<(String, String)>,
}

impl StorageArgs {
    pub(crate) fn options(&self) -> HashMap<String, String> {
        self.storage_options.iter().cloned().collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct OutputArgs {
    /// How results are printed
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// How a new table is laid out.
#[derive(Debug, Clone, Args)]
pub(crate) struct LayoutArgs {
    /// Columns of the primary key; without one the table is append-only
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',')]
    pub(crate) primary_key: Vec<String>,
    /// How rows are spread over shards: unsharded, bucket(COLUMN,N), or identity(COLUMN), a shard for each value
    #[arg(long, value_name = "SHARDING")]
    pub(crate) shard_by: Option<String>,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("schema").required(true).args(["columns", "like"])))]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// The columns, for example "id:int64,name:string,v:float32[4]"
    #[arg(long, value_name = "COLUMNS", long_help = crate::columns::HELP)]
    pub(crate) columns: Option<String>,
    /// Take the columns from this file
    #[arg(long, value_name = "FILE")]
    pub(crate) like: Option<PathBuf>,
    /// Format of the --like file, where its suffix does not tell
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct IngestArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Files to append, in this order; "-" is stdin
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// If the table is absent, create it with the columns of this file first
    #[arg(long, value_name = "FILE")]
    pub(crate) like: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    /// Format of the files, where their suffix does not tell
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Rows per append
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) batch_rows: u32,
    /// Appends that may wait for the store at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) in_flight: u16,
    /// Writes "BATCHES ROWS", both counted from the start, here whenever one more append is durable; "-" is stdout
    #[arg(long, value_name = "PATH", hide = true)]
    pub(crate) ack_log: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) abandon: AbandonArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// The query, for example "select count(*) from t"
    pub(crate) sql: String,
    /// As the table was at this checkpoint (id or name)
    #[arg(long, value_name = "CHECKPOINT")]
    pub(crate) at: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// A key: a JSON object with the columns of the primary key, such as {"id": 1} (repeatable; the rows come in the order of
    /// the keys, a key without a row has none)
    #[arg(long = "key", value_name = "JSON", required = true)]
    pub(crate) keys: Vec<String>,
    /// The columns to print, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) columns: Option<Vec<String>>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct FollowArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Run this query on every change; the table is called `t`. Without it the rows are counted
    #[arg(long, value_name = "SQL")]
    pub(crate) sql: Option<String>,
    /// The longest pause between two looks at the store (200ms, 5s, 1m); they are more frequent while something changes
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    pub(crate) interval: Duration,
    /// Stop when it has everything up to this position of the log of a shard (repeatable): read your writes
    #[arg(long, value_name = "SHARD:POSITION", value_parser = written)]
    pub(crate) until_position: Vec<Written>,
    /// Stop after this many lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) changes: Option<u64>,
    /// Bytes of the logs' rows that are held in memory; beyond that it waits for a flush [default: 1 GiB]
    #[arg(long, value_name = "BYTES", value_parser = at_least_one)]
    pub(crate) max_bytes: Option<usize>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Wait for new entries until Ctrl-C
    #[arg(long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// How results are printed
    #[arg(long, value_enum, default_value = "json")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct FlushArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    #[command(flatten)]
    pub(crate) abandon: AbandonArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Bring the base table's indexes up to date afterwards
    #[arg(long)]
    pub(crate) optimize: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Print what would be deleted, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Leave what was needed, or written, within this time (90s, 30m, 1h, 7d; 0): a courtesy to readers that run
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub(crate) min_age: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// A place in the store: objects are written below it and removed again
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
    /// Races for one key
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rounds: u32,
    /// Creates of one key at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(2..=1_000))]
    pub(crate) racers: u16,
    /// Bytes of the objects whose PUTs are timed
    #[arg(long, value_name = "BYTES", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=64 << 20))]
    pub(crate) size: u32,
    /// How long PUTs are timed
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub(crate) seconds: u16,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// A place in the store: a table is made below it and deleted again
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
    /// How long each line of the answer is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) seconds: u16,
    /// What 1,000 PUTs cost, in dollars; the default is that of S3 Standard in us-east-1
    #[arg(long, value_name = "DOLLARS", default_value_t = 0.005)]
    pub(crate) put_price: f64,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Keep the table instead of removing it at the end
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WriterArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Number of the first row
    #[arg(long, default_value_t = 0)]
    pub(crate) first: u64,
    /// How many rows to write
    #[arg(long)]
    pub(crate) rows: u64,
    /// Seed of the rows
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Rows per append
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch_rows: u32,
    /// Appends that wait for the store at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) in_flight: u16,
    /// Rows that a MemTable holds before it becomes an SSTable
    #[arg(long)]
    pub(crate) memtable_rows: Option<usize>,
    /// Create the table first if it is absent
    #[arg(long)]
    pub(crate) create: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Seed of the rows
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Rows that were acknowledged, as FIRST..END (repeatable)
    #[arg(long, value_parser = range)]
    pub(crate) acknowledged: Vec<Range<u64>>,
    /// Rows that were sent, as FIRST..END (repeatable)
    #[arg(long, value_parser = range)]
    pub(crate) sent: Vec<Range<u64>>,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parse = || {
        let (first, end) = text.split_once("..")?;
        Some(first.parse().ok()?..end.parse().ok()?)
    };
    parse().ok_or_else(|| "expected FIRST..END".to_string())
}

/// A number with a unit: `90s`, `30m`, `1h`, `7d`; or `0`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "" if number == "0" => 1,
        _ => return Err("expected a number with a unit: 90s, 30m, 1h, 7d; or 0".to_string()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number in front of the unit, as in 30m".to_string())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "that is longer than time lasts".to_string())
}

/// As [`duration`], and milliseconds: `200ms`; not 0.
fn interval(text: &str) -> Result<Duration, String> {
    let parsed = match text.strip_suffix("ms").map(str::parse) {
        Some(Ok(millis)) => Duration::from_millis(millis),
        Some(Err(_)) => return Err("expected a number in front of the unit, as in 200ms".to_string()),
        None => duration(text)?,
    };
    match parsed.is_zero() {
        true => Err("a pause of nothing would never end asking; use 1ms or more".to_string()),
        false => Ok(parsed),
    }
}

fn written(text: &str) -> Result<Written, String> {
    text.parse().map_err(|e: fencepost::Error| e.to_string())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number of 1 or more".to_string())
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err("expected KEY=VALUE".to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn storage_options_keep_equal_signs_in_values() {
        assert_eq!(key_value("a=b=c").unwrap(), ("a".to_string(), "b=c".to_string()));
        assert!(key_value("=b").is_err());
        assert!(key_value("a").is_err());
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, seconds) in [("0", 0), ("0s", 0), ("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "h", "-1h", "1.5h", "1 h", "1w", "99999999999999999999d", "9999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn intervals_go_down_to_milliseconds() {
        for (text, millis) in [("1ms", 1), ("200ms", 200), ("5s", 5000), ("1m", 60_000)] {
            assert_eq!(interval(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["0", "0ms", "ms", "1.5s", "-1ms", "5"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn create_needs_exactly_one_source_of_columns() {
        assert!(Cli::try_parse_from(["fencepost", "create", "t"]).is_err());
        assert!(Cli::try_parse_from(["fencepost", "create", "t", "--columns", "a:int64", "--like", "f"]).is_err());
        assert!(Cli::try_parse_from(["fencepost", "create", "t", "--columns", "a:int64"]).is_ok());
    }

    #[test]
    fn ingest_reads_stdin_as_a_dash() {
        let cli = Cli::try_parse_from(["fencepost", "ingest", "t", "-", "--format", "csv"]).unwrap();
        let Verb::Ingest(args) = cli.verb else { panic!("not ingest") };
        assert_eq!(args.files, [PathBuf::from("-")]);
    }
}
