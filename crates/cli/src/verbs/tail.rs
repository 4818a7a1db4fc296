//! `fencepost tail`: the log itself, entry by entry. Reads only; fences nobody.

use std::collections::HashSet;
use std::time::Duration;

use fencepost::wal::{EntryKind, Error as WalError, WalEntry, WalTailer};
use fencepost::{ShardId, Table};
use futures::StreamExt;
use futures::stream::{self, LocalBoxStream, SelectAll, Stream};
use serde_json::json;
use tokio::time::MissedTickBehavior;

use crate::args::{Output, TailArgs};
use crate::error::{CliError, Result};
use crate::{output, table};

/// Pauses between looks at the end of a log: the first, and the longest.
const MIN_POLL: Duration = Duration::from_millis(100);
const MAX_POLL: Duration = Duration::from_secs(2);

/// How often a log may be truncated past us, without an entry in between, before we give up.
const MAX_RESTARTS: usize = 16;

/// Prints what the log holds, and with `--follow` what comes.
pub(crate) async fn run(args: TailArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let output = args.output.output;
    if output == Output::Table {
        output::line("shard                                 position  epoch    rows      bytes")?;
    }
    if args.follow {
        return follow(&table, output).await;
    }
    for shard in table.shard_ids().await? {
        let mut tailer = table.tailer(shard);
        while let Some((kind, entry)) = next(&mut tailer).await? {
            output::line(&render(output, &shard.to_string(), kind, &entry))?;
        }
    }
    Ok(())
}

async fn follow(table: &Table, output: Output) -> Result<()> {
    let mut known = HashSet::new();
    let mut entries: SelectAll<LocalBoxStream<'_, Result<(ShardId, EntryKind, WalEntry)>>> = SelectAll::new();
    // Shards may be made while we follow.
    let mut looks = tokio::time::interval(MAX_POLL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(found) = entries.next(), if !entries.is_empty() => {
                let (shard, kind, entry) = found?;
                output::line(&render(output, &shard.to_string(), kind, &entry))?;
            }
            _ = looks.tick() => {
                for shard in table.shard_ids().await? {
                    if known.insert(shard) {
                        entries.push(entries_of(table, shard).boxed_local());
                    }
                }
            }
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// The entries of one shard, those that are there and those that come.
fn entries_of(table: &Table, shard: ShardId) -> impl Stream<Item = Result<(ShardId, EntryKind, WalEntry)>> + use<> {
    stream::unfold(table.tailer(shard), move |mut tailer| async move {
        let mut pause = MIN_POLL;
        loop {
            match next(&mut tailer).await {
                Ok(Some((kind, entry))) => return Some((Ok((shard, kind, entry)), tailer)),
                Ok(None) => tokio::time::sleep(pause).await,
                Err(e) => return Some((Err(e), tailer)),
            }
            pause = (pause * 2).min(MAX_POLL);
        }
    })
}

/// The next entry; what a flush removed from the log meanwhile is passed over, it is in SSTables.
async fn next(tailer: &mut WalTailer) -> Result<Option<(EntryKind, WalEntry)>> {
    for _ in 0..MAX_RESTARTS {
        match tailer.next_any().await {
            Ok(found) => return Ok(found),
            Err(WalError::Behind { .. }) => tailer.restart(),
            // Nobody has made it yet.
            Err(WalError::ShardNotFound { .. }) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
    Err(CliError::failure("the log is truncated faster than it can be read").help("run the command again"))
}

fn render(output: Output, shard: &str, kind: EntryKind, entry: &WalEntry) -> String {
    let word = match kind {
        EntryKind::Rows => "rows",
        EntryKind::Sentinel => "sentinel",
        EntryKind::Dead => "dead",
    };
    let (position, epoch) = (entry.position.get(), entry.writer_epoch.get());
    let (rows, bytes) = (entry.rows(), entry.object_bytes);
    match output {
        Output::Table => {
            let mark = if kind == EntryKind::Rows { String::new() } else { format!("  {word}") };
            format!("{shard}  {position:>8}  {epoch:>5}  {rows:>6}  {bytes:>9}{mark}")
        }
        Output::Json => json!({
            "shard": shard, "position": position, "epoch": epoch, "rows": rows, "bytes": bytes, "kind": word,
        })
        .to_string(),
    }
}
