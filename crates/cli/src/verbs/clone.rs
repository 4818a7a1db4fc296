//! `fencepost clone` and `fencepost delete`: a table of its own that shares another one's files, and the end of a table.

use std::time::Instant;

use fencepost::{CloneOptions, DeleteOptions, Table};
use serde_json::json;

use crate::args::{CloneArgs, DeleteArgs, TableArgs, WalStoreArgs};
use crate::error::Result;
use crate::output::{bytes, plural};
use crate::{output, table};

/// Clones a table, or finishes a clone that was begun.
pub(crate) async fn run(args: CloneArgs) -> Result<()> {
    let parent =
        WalStoreArgs { wal_store_url: args.parent_wal_store_url, wal_store_options: args.parent_wal_store_options };
    let source = table::open(&TableArgs { url: args.source, storage: args.storage.clone(), wal_store: parent }).await?;
    let checkpoint = match &args.checkpoint {
        Some(checkpoint) => Some(source.find_checkpoint(checkpoint).await?.id),
        None => None,
    };
    let target = TableArgs { url: args.target, storage: args.storage, wal_store: args.wal_store };
    let options = CloneOptions { checkpoint, wal_store: table::wal_store(&target)? };
    let started = Instant::now();
    let (clone, report) = source.clone_to(table::store(&target)?, &options).await?;
    let seconds = started.elapsed().as_secs_f64();

    let (from, to) = (source.store().url(), clone.store().url());
    let entries = match report.log_entries {
        1 => "1 entry".to_string(),
        n => format!("{} entries", output::count(n)),
    };
    let text = format!(
        "cloned {from} to {to} in {seconds:.2} s: {}, base version {}, {entries} of the log copied ({})",
        plural(report.shards, "shard"),
        report.base_version,
        bytes(report.log_bytes)
    );
    let value = json!({
        "source": from.to_string(),
        "url": to.to_string(),
        "checkpoint": report.checkpoint.to_string(),
        "base_version": report.base_version,
        "shards": report.shards,
        "log_entries": report.log_entries,
        "log_bytes": report.log_bytes,
        "seconds": seconds,
    });
    output::result(args.output.output, &text, &value)
}

/// Deletes a table.
pub(crate) async fn delete(args: DeleteArgs) -> Result<()> {
    let (store, wal_store) = (table::store(&args.table)?, table::wal_store(&args.table)?);
    let url = store.url().to_string();
    let abandon_wal_store = args.abandon.abandon_wal_store;
    let options = DeleteOptions { wal_store, abandon_wal_store, purge: args.purge };
    let report = Table::delete(store, &options).await?;
    let stays = match report.fences {
        0 => "nothing stays".to_string(),
        n => format!("{} stay for writers that may have stalled", plural(n, "small object")),
    };
    let text = format!("deleted {url}: {}, {stays}", plural(report.objects, "object"));
    let value = json!({ "url": url, "objects": report.objects, "fences": report.fences });
    output::result(args.output.output, &text, &value)
}
