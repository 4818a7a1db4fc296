//! What waits to be merged: the SSTables that the shards list and the base table does not have. Reads only.

use fencepost_wal::{ManifestStore, ShardId, SsTable};
use futures::{StreamExt, TryStreamExt, stream};

use super::merged;
use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::shards::{self, SHARDS_AT_ONCE};

/// How often a plan starts again because the table moved on while it was made.
const MAX_ROUNDS: usize = 32;

/// One SSTable that the base table does not have.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) shard: ShardId,
    /// The sharding spec that the shard belongs to.
    pub(super) spec_id: u32,
    pub(super) sstable: SsTable,
}

/// The SSTables to merge, those of one shard in ascending order.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) pending: Vec<Pending>,
}

impl Plan {
    /// Section 9's order: the base version first, then the shards. A generation that neither has was merged and
    /// collected in between, so a newer base version has it.
    pub(super) async fn make(base: &BaseTable) -> Result<Self> {
        let mut missing = None;
        for _ in 0..MAX_ROUNDS {
            let base = base.refreshed().await?;
            let shards = stream::iter(shards::list(&base).await?).map(|id| pending_of(&base, id));
            let shards: Vec<_> = shards.buffered(SHARDS_AT_ONCE).try_collect().await?;
            match shards.into_iter().collect::<Result<Vec<_>, _>>() {
                Ok(pending) => return Ok(Self { pending: pending.into_iter().flatten().collect() }),
                // Nobody has merged since: this is no race.
                Err(reason) if missing.as_ref() == Some(&(base.version(), reason.clone())) => {
                    return Err(Error::Corrupt { url: base.lance_store().describe(None), reason });
                }
                Err(reason) => missing = Some((base.version(), reason)),
            }
        }
        Err(Error::NotSupported(format!(
            "the table moved on {MAX_ROUNDS} times while its SSTables were looked for; try again"
        )))
    }
}

/// A shard's SSTables above what the base has, in order; or which one is missing.
async fn pending_of(base: &BaseTable, id: ShardId) -> Result<Result<Vec<Pending>, String>> {
    let shard = base.shard(id);
    // Section 3: a merger acts on a certain manifest only.
    let manifest = ManifestStore::new(shard).latest_certain().await?;
    let Some(manifest) = manifest else {
        return Ok(Ok(Vec::new()));
    };
    if !shards::is_there(base, &manifest)? {
        return Ok(Ok(Vec::new()));
    }
    if shards::is_behind_its_merges(base, id, Some(&manifest)) {
        return Err(shards::is_lost(base, id));
    }
    let first = merged(base, id).next()?.get();
    let pending = (first..manifest.current_generation.get()).map(|generation| {
        let listed = manifest.sstables.iter().find(|s| s.generation.get() == generation);
        listed.map(|sstable| Pending { shard: id, spec_id: base.spec_id(), sstable: sstable.clone() }).ok_or_else(|| {
            format!(
                "shard {id} lists no SSTable of generation {generation}, and the base table has merged only what is \
                 below it"
            )
        })
    });
    Ok(pending.collect())
}
