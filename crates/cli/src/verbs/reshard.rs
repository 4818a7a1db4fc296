//! `fencepost split` and `fencepost join`: another number of buckets for a table. Takes every shard over.

use std::time::Instant;

use fencepost::Sharding;
use serde_json::json;

use crate::args::ReshardArgs;
use crate::error::{CliError, Result};
use crate::output::plural;
use crate::{output, table};

/// In which direction the number of buckets changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Split,
    Join,
}

pub(crate) async fn run(args: ReshardArgs, direction: Direction) -> Result<()> {
    let table = table::open(&args.table).await?;
    if args.abort {
        let given_up = table.give_up_resharding().await?;
        let text = if given_up { "given up: the table is as before" } else { "nothing was under way" };
        return output::result(args.output.output, text, &json!({ "given_up": given_up }));
    }
    let Sharding::Bucket { buckets, .. } = table.sharding() else {
        let sharding = table.sharding();
        return Err(CliError::usage(format!("the table is sharded `{sharding}`"))
            .help("only a table that was created with --shard-by \"bucket(COLUMN,N)\" can be split or joined"));
    };
    let to = match direction {
        Direction::Split => buckets.saturating_mul(args.by),
        Direction::Join if buckets.is_multiple_of(args.by) => buckets / args.by,
        Direction::Join => {
            return Err(CliError::usage(format!("{buckets} buckets cannot be joined {} at a time", args.by)));
        }
    };
    let started = Instant::now();
    let config = table::flushing(table::writer_config(&table, None).await?);
    let report = table.reshard(to, config).await?;
    let seconds = started.elapsed().as_secs_f64();
    let text = format!(
        "{} buckets instead of {} in {seconds:.2} s; the new shards share {}",
        report.to,
        report.from,
        plural(report.shared_sstables, "SSTable")
    );
    let value = json!({
        "from": report.from,
        "to": report.to,
        "shared_sstables": report.shared_sstables,
        "seconds": seconds,
    });
    output::result(args.output.output, &text, &value)
}
