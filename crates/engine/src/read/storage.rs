//! A snapshot of a table from storage alone, for a process that does not write: base table, SSTables and the tail of
//! each shard's log. Fences nobody and writes nothing.

use std::sync::Arc;

use fencepost_wal::{Error as WalError, Generation, ManifestStore, Shard, WalTailer};
use futures::{StreamExt, TryStreamExt, stream};

use super::{ShardView, Snapshot, SsTableCache};
use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::memtable::MemTable;
use crate::rows::RowFormat;

/// How often a snapshot starts again because the table moved on while it was taken.
const MAX_ROUNDS: usize = 32;
/// Shards that are read at once.
const SHARDS_AT_ONCE: usize = 8;

/// Reads the table as storage has it now.
pub(crate) async fn snapshot_from_storage(base: &BaseTable, cache: &Arc<SsTableCache>) -> Result<Snapshot> {
    for _ in 0..MAX_ROUNDS {
        // Section 9: the base version first, then the shards. The other order could miss rows that are merged in
        // between; this one finds out.
        let base = base.refreshed().await?;
        let format = RowFormat::of(&base)?;
        let shards = stream::iter(base.shard_ids()).map(|id| {
            let shard = Shard::new(base.lance_store().store().clone(), id);
            let merged = base.merged().get(&id).copied().unwrap_or(Generation::ZERO);
            read_shard(shard, &format, merged)
        });
        let views: Vec<Option<ShardView>> = shards.buffered(SHARDS_AT_ONCE).try_collect().await?;
        if let Some(views) = views.into_iter().collect::<Option<Vec<_>>>() {
            return Ok(Snapshot::of_table(base, format, cache, views));
        }
    }
    Err(Error::NotSupported(format!(
        "the table moved on {MAX_ROUNDS} times while a snapshot of it was taken; try again"
    )))
}

/// One shard's SSTables and the tail of its log; `None` if they do not fit the base version that was read before.
async fn read_shard(shard: Shard, format: &RowFormat, merged: Generation) -> Result<Option<ShardView>> {
    for _ in 0..MAX_ROUNDS {
        let Some(manifest) = ManifestStore::new(shard.clone()).latest().await? else {
            // Nobody has written to it yet.
            return Ok(Some(ShardView { shard: shard.id(), memtables: vec![], sstables: vec![] }));
        };
        let listed = |g: u64| manifest.sstables.iter().any(|s| s.generation.get() == g);
        if !(merged.get() + 1..manifest.current_generation.get()).all(listed) {
            return Ok(None);
        }
        let keys = format.keys.clone();
        let memtable = MemTable::new(Arc::clone(&format.storage), keys, manifest.current_generation);
        let mut tailer = WalTailer::after(shard.clone(), &manifest);
        let end = loop {
            match tailer.next().await {
                Ok(Some(entry)) if entry.generation.is_some_and(|g| g < manifest.current_generation) => {}
                Ok(Some(entry)) => {
                    let rows = entry.batches.iter().map(|b| format.log_rows(b)).collect::<Result<Vec<_>>>();
                    let applied = rows.and_then(|rows| memtable.apply(entry.position, &rows));
                    applied.map_err(|error| error.in_log_entry(&shard, entry.position))?;
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        match end {
            Ok(()) => {
                let memtables = Some(memtable.snapshot()).filter(|m| m.rows() > 0).into_iter().collect();
                let sstables = manifest.sstables.into_iter().rev().collect();
                return Ok(Some(ShardView { shard: shard.id(), memtables, sstables }));
            }
            // It was flushed meanwhile: the rows are in an SSTable of a newer manifest.
            Err(WalError::Behind { .. }) => continue,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
