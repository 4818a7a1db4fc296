//! The arguments of `index`.

use clap::{Args, Subcommand, ValueEnum};
use fencepost::Metric;

use super::{OutputArgs, TableArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum IndexVerb {
    /// Make an index of the base table; writers that start afterwards maintain it for rows that are not merged yet
    Create(IndexCreateArgs),
    /// Print the indexes
    List(IndexListArgs),
    /// Drop an index
    Drop(IndexDropArgs),
}

/// How an index finds rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// By value, and by ranges of values
    Btree,
    /// By words
    Text,
    /// By nearness of vectors
    Vector,
}

#[derive(Debug, Args)]
pub(crate) struct IndexCreateArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// The column
    #[arg(long, value_name = "NAME")]
    pub(crate) column: String,
    /// How it finds rows
    #[arg(long, value_enum)]
    pub(crate) kind: Kind,
    /// Its name [default: {column}_idx]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// For vectors: l2, cosine or dot
    #[arg(long, default_value = "l2")]
    pub(crate) metric: Metric,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct IndexListArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct IndexDropArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Its name
    #[arg(value_name = "INDEX")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
