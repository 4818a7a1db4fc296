//! The arguments of `checkpoint`, `clone`, `delete`, `split` and `join`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{AbandonArgs, OutputArgs, StorageArgs, TableArgs, WalStoreArgs, duration, key_value};

/// What a checkpoint has of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scope {
    /// Takes the table over and flushes it first; needs nothing of the log
    All,
    /// Fences nobody; rows that are in the log only stay there for as long as the checkpoint does
    Durable,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointVerb {
    /// Pin the table as it is now
    Create(CheckpointCreateArgs),
    /// Print the checkpoints, oldest first
    List(CheckpointListArgs),
    /// Set the lifetime of a checkpoint anew, counted from now
    Refresh(CheckpointRefreshArgs),
    /// Delete a checkpoint; what only it held goes with the next `gc`
    Delete(CheckpointDeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CheckpointCreateArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// What it has of the logs
    #[arg(long, value_enum, default_value = "durable")]
    pub(crate) scope: Scope,
    /// How long it stays (90s, 30m, 1h, 7d); without it: until it is deleted
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    pub(crate) lifetime: Option<Duration>,
    /// A name to find it by; names may repeat, and the newest counts
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Pin the moment of this checkpoint (id or name) instead of now
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "scope")]
    pub(crate) source: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CheckpointListArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Only those of this name
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CheckpointRefreshArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Its id or name
    pub(crate) checkpoint: String,
    /// How long it stays from now on; without it: until it is deleted
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    pub(crate) lifetime: Option<Duration>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CheckpointDeleteArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Its id or name; of one that was not finished its id
    pub(crate) checkpoint: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// A time that is not over at once.
fn lifetime(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("a checkpoint that expires at once is none".to_string()),
        lifetime => Ok(lifetime),
    }
}

#[derive(Debug, Args)]
pub(crate) struct CloneArgs {
    /// The table to clone
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// Where the clone is to be: another place, where nothing is
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
    /// As the source was at this checkpoint (id or name); without it: as it is now
    #[arg(long)]
    pub(crate) checkpoint: Option<String>,
    /// Options of both places
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
    /// The store for the logs of the clone; that of the source is not inherited
    #[command(flatten)]
    pub(crate) wal_store: WalStoreArgs,
    /// Where the logs of the source are, if not at the URL that it records
    #[arg(long = "parent-wal-store", value_name = "URL")]
    pub(crate) parent_wal_store_url: Option<String>,
    /// An option of that store (repeatable)
    #[arg(
        long = "parent-wal-storage-option",
        value_name = "K=V",
        value_parser = key_value,
        requires = "parent_wal_store_url"
    )]
    pub(crate) parent_wal_store_options: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    #[command(flatten)]
    pub(crate) abandon: AbandonArgs,
    /// Leave nothing behind, so that another table can be made there: asserts that no process which ever worked on the table is still
    /// there, stalled as it may be
    #[arg(long)]
    pub(crate) purge: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReshardArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Into how many shards each is split, or how many become one: a power of two
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=1024))]
    pub(crate) by: u32,
    /// Give up a split or a join that was not finished: the table stays as it was
    #[arg(long)]
    pub(crate) abort: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
