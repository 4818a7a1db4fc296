//! Garbage collection of a table's shards by the base table's own record of what it holds (protocol section 8). What
//! may go and in which order is the log's to know.

use fencepost_wal::gc::{self, BaseProgress, GcOptions, GcProgress, GcReport, Plan, Refusal};
use fencepost_wal::{Generation, Shard, ShardId};
use futures::{StreamExt, stream};
use parking_lot::Mutex;

use crate::base::BaseTable;
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::sharding::ShardValue;
use crate::shards::{self, SHARDS_AT_ONCE, TableShard};

/// How often the base table may move on while its newest version is looked for.
const MAX_ROUNDS: usize = 32;

/// What [`Table::gc`](crate::Table::gc) did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableGcReport {
    /// The newest version of the base table whose record was relied on.
    pub base_version: u64,
    /// The shards, in the order of their buckets or values.
    pub shards: Vec<ShardGcReport>,
    /// Tags of base versions that were given up: those of checkpoints that have expired, or were never finished.
    pub released_base_versions: u64,
}

/// What was done for one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardGcReport {
    /// The shard.
    pub shard_id: ShardId,
    /// Which rows it holds.
    pub value: ShardValue,
    /// What was deleted and what was kept, or why nothing was touched.
    pub report: GcReport,
}

/// What [`Table::gc`](crate::Table::gc) would do to one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardGcPlan {
    /// The shard.
    pub shard_id: ShardId,
    /// Which rows it holds.
    pub value: ShardValue,
    /// What would be dropped and deleted.
    pub plan: Plan,
}

pub(crate) async fn collect(
    base: &BaseTable,
    options: &GcOptions,
    progress: impl FnMut(GcProgress) + Send,
) -> Result<TableGcReport> {
    let first = certain(base).await?;
    let shards = made(&first).await?;
    // Each shard plans when its turn comes, so the sum grows on the way.
    let at = Mutex::new((progress, vec![GcProgress::default(); shards.len()]));
    let collected = stream::iter((0..).zip(shards)).map(|(n, found): (usize, TableShard)| {
        let (first, at) = (&first, &at);
        async move {
            let shard = shard(first, found.id);
            // Read now: a merge, or an index, may have come while other shards had their turn.
            let base = certain(first).await?;
            let record = record(&base, found.id).await?;
            let report = gc::collect(&shard, &record, options, |one| {
                let (progress, all) = &mut *at.lock();
                if let Some(place) = all.get_mut(n) {
                    *place = one;
                }
                let mut sum = GcProgress::default();
                all.iter().for_each(|one| {
                    sum.objects += one.objects;
                    sum.of_objects += one.of_objects;
                });
                progress(sum);
            });
            Ok((base.version(), found, report.await?))
        }
    });
    let collected: Vec<Result<_>> = collected.buffered(SHARDS_AT_ONCE).collect().await;
    let collected = collected.into_iter().collect::<Result<Vec<(u64, TableShard, GcReport)>>>()?;
    let released_base_versions = checkpoint::release_outlived(&first).await?;
    let base_version = collected.iter().map(|(version, ..)| *version).fold(first.version(), u64::max);
    let shards = collected
        .into_iter()
        // A folder is all that there is of it.
        .filter(|(_, _, report)| report.refused != Some(Refusal::NoShard))
        .map(|(_, found, report)| ShardGcReport { shard_id: found.id, value: found.value, report });
    Ok(TableGcReport { base_version, shards: shards.collect(), released_base_versions })
}

pub(crate) async fn dry_run(base: &BaseTable, options: &GcOptions) -> Result<Vec<ShardGcPlan>> {
    let first = certain(base).await?;
    let planned = stream::iter(made(&first).await?).map(|found| {
        let first = &first;
        async move {
            let record = progress(first, found.id).await?;
            let plan = gc::dry_run(&shard(first, found.id), &record, options).await?;
            Ok(ShardGcPlan { shard_id: found.id, value: found.value, plan })
        }
    });
    let planned: Vec<Result<ShardGcPlan>> = planned.buffered(SHARDS_AT_ONCE).collect().await;
    let mut planned = planned.into_iter().collect::<Result<Vec<_>>>()?;
    planned.retain(|shard| shard.plan.refused != Some(Refusal::NoShard));
    Ok(planned)
}

/// What the newest version of the base table says about one shard, for a writer's own collector.
pub(crate) async fn progress(base: &BaseTable, id: ShardId) -> Result<BaseProgress> {
    record(&certain(base).await?, id).await
}

async fn made(base: &BaseTable) -> Result<Vec<TableShard>> {
    Ok(shards::discover(base).await?.into_iter().filter(|shard| shard.made).collect())
}

fn shard(base: &BaseTable, id: ShardId) -> Shard {
    base.shard(id)
}

/// The newest version, still the newest when it was read, and durable. One that was cleaned up and whose name came back
/// while we stalled may say that it has what no later version has.
async fn certain(base: &BaseTable) -> Result<BaseTable> {
    let mut newest = base.refreshed().await?;
    for _ in 0..MAX_ROUNDS {
        let again = newest.refreshed().await?;
        if again.version() == newest.version() {
            if !again.merged().is_empty() {
                again.settle().await?;
            }
            return Ok(again);
        }
        newest = again;
    }
    Err(Error::NotSupported(format!(
        "the base table moved on {MAX_ROUNDS} times while its newest version was looked for; try again"
    )))
}

/// What a version of the base table says about one shard.
async fn record(base: &BaseTable, id: ShardId) -> Result<BaseProgress> {
    let merged = base.merged().get(&id).copied().unwrap_or(Generation::ZERO);
    let indexes = match merged {
        Generation::ZERO => Default::default(),
        _ => base.index_coverage().await?.of_shard(id),
    };
    Ok(BaseProgress { merged, indexes })
}
