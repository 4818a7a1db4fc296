//! A snapshot of a table from storage alone, for a process that does not write: base table, SSTables and the tail of
//! each shard's log. Fences nobody and writes nothing.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use fencepost_wal::{Error as WalError, Generation, Shard, ShardId, ShardManifest, WalEntry, WalTailer};
use futures::{StreamExt, TryStreamExt, stream};

use super::{ShardView, Snapshot, SsTableCache};
use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::memtable::MemTable;
use crate::rows::RowFormat;
use crate::shards::{self, SHARDS_AT_ONCE};

/// How often a snapshot starts again because the table moved on while it was taken.
pub(crate) const MAX_ROUNDS: usize = 32;

/// Reads the table as storage has it now.
pub(crate) async fn snapshot_from_storage(base: &BaseTable, cache: &Arc<SsTableCache>) -> Result<Snapshot> {
    for _ in 0..MAX_ROUNDS {
        // Section 9: the base version first, then the shards. The other order could miss rows that are merged in
        // between; this one finds out.
        let base = base.refreshed().await?;
        let format = RowFormat::of(&base)?;
        let listed = shards::list(&base).await?;
        if let Some(views) = read_shards(&base, &format, &listed, &listed).await? {
            return Ok(Snapshot::of_table(base, format, cache, views));
        }
    }
    Err(moved_on(base).await)
}

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
    let views = stream::iter(wanted.clone()).map(|id| read_shard(base, id, format));
    let views: Result<Vec<Option<ShardView>>> = views.buffered(SHARDS_AT_ONCE).try_collect().await;
    match views {
        // Columns that came after the base version was read: their rows go with a newer one.
        Err(Error::SchemaChanged { .. }) if base.refreshed().await?.version() != base.version() => Ok(None),
        views => Ok(views?.into_iter().collect()),
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

/// One shard's SSTables and the tail of its log; `None` if they do not fit the base version that was read before.
async fn read_shard(base: &BaseTable, id: ShardId, format: &RowFormat) -> Result<Option<ShardView>> {
    let shard = base.shard(id);
    let merged = base.merged().get(&id).copied().unwrap_or(Generation::ZERO);
    for _ in 0..MAX_ROUNDS {
        let Some(manifest) = shards::latest(base, id).await? else {
            // No shard yet. One that was merged from had a manifest: it vanished.
            let value = base.shard_value(id, None);
            let nothing = ShardView { shard: id, value, memtables: vec![], sstables: vec![] };
            return Ok((merged == Generation::ZERO).then_some(nothing));
        };
        if shards::is_behind_its_merges(base, id, Some(&manifest)) {
            return Ok(None);
        }
        let listed: HashSet<u64> = manifest.sstables.iter().map(|sstable| sstable.generation.get()).collect();
        if !(merged.get() + 1..manifest.current_generation.get()).all(|generation| listed.contains(&generation)) {
            return Ok(None);
        }
        let keys = format.keys.clone();
        let memtable = MemTable::new(Arc::clone(&format.storage), keys, manifest.current_generation);
        let mut tailer = WalTailer::after(shard.clone(), &manifest);
        let end = loop {
            match tailer.next().await {
                Ok(Some(entry)) => take_entry(&memtable, format, &shard, &manifest, &entry)?,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        match end {
            Ok(()) => {
                let value = base.shard_value(id, Some(&manifest));
                let memtables = Some(memtable.snapshot()).filter(|m| m.rows() > 0).into_iter().collect();
                let sstables = manifest.sstables.into_iter().rev().collect();
                return Ok(Some(ShardView { shard: id, value, memtables, sstables }));
            }
            // It was flushed meanwhile: the rows are in an SSTable of a newer manifest.
            Err(WalError::Behind { .. }) => continue,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
