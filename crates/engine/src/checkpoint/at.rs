//! Reading a table as a checkpoint has it.

use std::sync::Arc;

use fencepost_wal::ShardId;
use fencepost_wal::checkpoint::{self, CheckpointLog, ShardCheckpoint};
use futures::{StreamExt, TryStreamExt, stream};

use super::{TableCheckpoint, base_of};
use crate::base::BaseTable;
use crate::error::Result;
use crate::memtable::MemTable;
use crate::read::{ShardView, Snapshot, SsTableCache, take_entry};
use crate::rows::RowFormat;
use crate::shards::SHARDS_AT_ONCE;

/// The moment of a checkpoint. The base version is the one that was tagged, and each shard is read from the manifest and the log
/// that were pinned (I9): what happened since is not looked at.
pub(crate) async fn snapshot_at(base: &BaseTable, checkpoint: &TableCheckpoint) -> Result<Snapshot> {
    let base = base_of(base, checkpoint.id).await?;
    let format = RowFormat::of(&base)?;
    let views = stream::iter(checkpoint.shards.clone()).map(|part| {
        let (base, format) = (&base, &format);
        async move {
            let shard = base.shard(part.shard_id);
            let pinned = checkpoint::read(&shard, part.id).await?;
            view(base, part.shard_id, format, &pinned).await
        }
    });
    let views = views.buffered(SHARDS_AT_ONCE).try_collect().await?;
    let cache = Arc::new(SsTableCache::new(base.lance_store().clone()));
    Ok(Snapshot::of_table(base, format, &cache, views))
}

async fn view(base: &BaseTable, id: ShardId, format: &RowFormat, pinned: &ShardCheckpoint) -> Result<ShardView> {
    let (shard, manifest) = (base.shard(id), &pinned.manifest);
    let memtable = MemTable::new(Arc::clone(&format.storage), format.keys.clone(), manifest.current_generation);
    let mut log = CheckpointLog::open(&shard, pinned).await?;
    while let Some(entry) = log.next().await? {
        take_entry(&memtable, format, &shard, manifest, &entry)?;
    }
    let memtables = Some(memtable.snapshot()).filter(|m| m.rows() > 0).into_iter().collect();
    let value = base.shard_value(id, Some(manifest));
    Ok(ShardView { shard: id, value, memtables, sstables: manifest.sstables.iter().rev().cloned().collect() })
}
