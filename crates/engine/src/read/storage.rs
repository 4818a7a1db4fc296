//! What a process reads from storage alone that does not write to the shards: their SSTables and the tails of their logs,
//! once. It is a follower's first look (`crate::follow`). Fences nobody and writes nothing.

use std::collections::BTreeSet;

use fencepost_wal::{Shard, ShardId, ShardManifest, WalEntry};
use futures::{StreamExt, TryStreamExt, stream};

use super::ShardView;
use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::follow::{Budget, Found, ShardFollower};
use crate::memtable::MemTable;
use crate::rows::RowFormat;
use crate::shards::{self, SHARDS_AT_ONCE};

/// How often a snapshot starts again because the table moved on while it was taken.
pub(crate) const MAX_ROUNDS: usize = 32;

/// The answer after [`MAX_ROUNDS`].
pub(crate) async fn moved_on(base: &BaseTable) -> Error {
    match shards::lost(base).await {
        Ok(Some(shard)) => shards::is_lost(base, shard),
        Ok(None) => Error::NotSupported(format!(
            "the table moved on {MAX_ROUNDS} times while a snapshot of it was taken; try again"
        )),
        Err(error) => error,
    }
}

/// Reads these shards of those that a LIST after the base version showed. `None`: what they hold does not fit that
/// version, start again with a newer one.
pub(crate) async fn read_shards(
    base: &BaseTable,
    format: &RowFormat,
    listed: &BTreeSet<ShardId>,
    wanted: &BTreeSet<ShardId>,
) -> Result<Option<Vec<ShardView>>> {
    if shards::vanished(base, listed).is_some() {
        return Ok(None);
    }
    let budget = &Budget::unlimited();
    let reads = stream::iter(wanted.clone()).map(|id| async move {
        let mut shard = ShardFollower::new(base, id);
        let found = Box::pin(shard.read(base, format, budget, usize::MAX)).await?;
        Ok::<_, Error>((found, shard.view(base)))
    });
    let read: Result<Vec<(Found, Option<ShardView>)>> = reads.buffered(SHARDS_AT_ONCE).try_collect().await;
    let read = match read {
        // Columns that came after the base version was read: their rows go with a newer one.
        Err(Error::SchemaChanged { .. }) if base.refreshed().await?.version() != base.version() => return Ok(None),
        read => read?,
    };
    match read.iter().any(|(found, _)| *found == Found::Newer) {
        true => Ok(None),
        false => Ok(Some(read.into_iter().filter_map(|(_, view)| view).collect())),
    }
}

/// Applies a log entry, unless Lance has stamped it with a generation that is in an SSTable of the manifest.
pub(crate) fn take_entry(
    memtable: &MemTable,
    format: &RowFormat,
    shard: &Shard,
    manifest: &ShardManifest,
    entry: &WalEntry,
) -> Result<()> {
    if entry.generation.is_some_and(|generation| generation < manifest.current_generation) {
        return Ok(());
    }
    let rows = entry.batches.iter().map(|b| format.log_rows(b)).collect::<Result<Vec<_>>>();
    let applied = rows.and_then(|rows| memtable.apply(entry.position, &rows));
    applied.map_err(|error| error.in_log_entry(shard, entry.position))
}
