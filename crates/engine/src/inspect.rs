//! Where a table stands, for operators: read from storage, nobody is disturbed.

use fencepost_wal::{
    EntryKind, Error as WalError, Generation, ManifestStore, Position, Shard, ShardId, ShardManifest, WalTailer,
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::base::{BaseTable, IndexCoverage};
use crate::error::Result;
use crate::sharding::ShardValue;
use crate::shards::{self, SHARDS_AT_ONCE, TableShard};

/// Where a table stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The table that it was cloned from; `None`: it is no clone.
    pub cloned_from: Option<String>,
    /// The shards, in the order of their buckets or values; those that the table has from the start also if nobody
    /// has made them yet.
    pub shards: Vec<ShardInspection>,
    /// The base table.
    pub base: BaseInspection,
}

/// Where a shard stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInspection {
    /// The shard.
    pub shard_id: ShardId,
    /// Which rows it holds.
    pub value: ShardValue,
    /// Another engine wrote to it last, or before Fencepost took it over: garbage collection leaves it alone until
    /// [`Table::adopt`](crate::Table::adopt).
    pub unadopted: bool,
    /// The epoch of its owner; 0 before the first.
    pub writer_epoch: u64,
    /// Rows up to this log position are in SSTables.
    pub replay_after: u64,
    /// The last position of the log; equal to `replay_after` when nothing is left to replay.
    pub tail: u64,
    /// The URL of the WAL store that holds the log; `None`: the table's own store does.
    pub wal_store: Option<String>,
    /// Whether that WAL store may be wiped, as far as this shard goes, while nobody opens the table: see
    /// [`wal_store_may_be_wiped`](fencepost_wal::ShardManifest::wal_store_may_be_wiped).
    pub wal_store_may_be_wiped: bool,
    /// Checkpoints that are live.
    pub checkpoints: u64,
    /// The tables of the clones that share its SSTables.
    pub pinned_by: Vec<String>,
    /// Rows in the log behind `replay_after`.
    pub rows_in_log: u64,
    /// The generation that the next SSTable gets.
    pub current_generation: u64,
    /// The SSTables, oldest first.
    pub sstables: Vec<SsTableInspection>,
    /// Log objects that garbage collection leaves.
    pub fences: Vec<FenceInspection>,
}

/// One SSTable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SsTableInspection {
    /// Its generation.
    pub generation: u64,
    /// Its folder in the shard's folder.
    pub path: String,
    /// Its rows, tombstones included, if the manifest says.
    pub rows: Option<u64>,
    /// Whether the base table has it. Then readers leave it out.
    pub merged: bool,
    /// If it is merged: the base table's indexes that do not cover its rows yet. They are brought up to date by
    /// [`MergeOptions::optimize_indexes`](crate::MergeOptions::optimize_indexes); garbage collection waits for them.
    pub awaited_by: Vec<String>,
}

/// One fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceInspection {
    /// Where it stands.
    pub position: u64,
    /// The epoch of the writer that put it there.
    pub epoch: u64,
}

/// The base table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseInspection {
    /// The Lance dataset's version.
    pub version: u64,
    /// Its rows.
    pub rows: u64,
    /// What was merged into it.
    pub merged: Vec<MergedInspection>,
}

/// How far a shard was merged into the base table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedInspection {
    /// The shard.
    pub shard_id: ShardId,
    /// The last merged generation.
    pub generation: u64,
}

pub(crate) async fn inspect(base: &BaseTable) -> Result<Inspection> {
    let (version, rows) = base.version_and_rows().await?;
    let merged = base.merged().iter();
    let merged = merged.map(|(id, g)| MergedInspection { shard_id: *id, generation: g.get() }).collect();
    let coverage = &base.index_coverage().await?;
    let shards = stream::iter(shards::discover(base).await?).map(|shard| inspect_shard(base, coverage, shard));
    let shards = shards.buffered(SHARDS_AT_ONCE).try_collect().await?;
    let cloned_from = base.origins().into_iter().next();
    Ok(Inspection { cloned_from, shards, base: BaseInspection { version, rows, merged } })
}

async fn inspect_shard(base: &BaseTable, coverage: &IndexCoverage, found: TableShard) -> Result<ShardInspection> {
    let TableShard { id, value, .. } = found;
    let shard = base.shard(id);
    loop {
        let latest = ManifestStore::new(shard.clone()).latest().await?;
        let manifest = latest.unwrap_or_else(|| base.first_manifest(id, &value));
        let (tail, rows_in_log) = match tail(&shard, &manifest).await {
            // Flushed meanwhile: look again.
            Err(WalError::Behind { .. }) => continue,
            found => found?,
        };
        let merged = base.merged().get(&id).copied().unwrap_or(Generation::ZERO);
        let sstables = manifest.sstables.iter().map(|s| {
            let merged = s.generation <= merged;
            SsTableInspection {
                generation: s.generation.get(),
                path: s.path.clone(),
                rows: s.physical_rows,
                merged,
                awaited_by: if merged { coverage.lagging_behind(id, s.generation) } else { vec![] },
            }
        });
        let fences = manifest.fences().iter();
        let now = base.lance_store().store().surroundings().now();
        let live = || manifest.checkpoints().iter().filter(|c| c.is_live(now));
        return Ok(ShardInspection {
            shard_id: id,
            value,
            unadopted: manifest.collectable().is_err(),
            writer_epoch: manifest.writer_epoch.get(),
            replay_after: manifest.replay_after.get(),
            tail: tail.get(),
            wal_store: manifest.wal_store().map(|wal_store| wal_store.url.clone()),
            wal_store_may_be_wiped: manifest.wal_store().is_some() && manifest.wal_store_may_be_wiped(),
            checkpoints: live().filter(|c| !c.is_pin).count() as u64,
            pinned_by: live().filter_map(|c| c.holder.clone()).filter(|url| !url.is_empty()).collect(),
            rows_in_log,
            current_generation: manifest.current_generation.get(),
            sstables: sstables.collect(),
            fences: fences.map(|f| FenceInspection { position: f.position.get(), epoch: f.epoch.get() }).collect(),
        });
    }
}

async fn tail(shard: &Shard, manifest: &ShardManifest) -> Result<(Position, u64), WalError> {
    let mut tailer = WalTailer::after(shard.clone(), manifest);
    let (mut tail, mut rows) = (manifest.replay_after, 0);
    if ManifestStore::new(shard.clone()).latest().await?.is_none() {
        return Ok((tail, rows));
    }
    while let Some((kind, entry)) = tailer.next_any().await? {
        tail = entry.position;
        if kind == EntryKind::Rows {
            rows += entry.rows() as u64;
        }
    }
    Ok((tail, rows))
}
