//! `fencepost flush`: takes every shard over, as any writer does, and moves all logged rows into SSTables.

use std::time::Instant;

use serde_json::json;

use crate::args::FlushArgs;
use crate::error::Result;
use crate::output::plural;
use crate::{output, table};

/// Flushes and says what is in SSTables now.
pub(crate) async fn run(args: FlushArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let started = Instant::now();
    table.flush(table::flushing(table::writer_config_of(&table, &args.abandon).await?)).await?;
    let seconds = started.elapsed().as_secs_f64();

    let inspection = table.inspect().await?;
    let shards = inspection.shards.len() as u64;
    let sstables: u64 = inspection.shards.iter().map(|s| s.sstables.len() as u64).sum();
    let text = format!("flushed {} in {seconds:.2} s: {}", plural(shards, "shard"), plural(sstables, "SSTable"));
    let value = json!({ "shards": shards, "sstables": sstables, "seconds": seconds });
    output::result(args.output.output, &text, &value)
}
