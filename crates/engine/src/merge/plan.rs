//! What waits to be merged: the SSTables that the shards list and the base table does not have. Reads only.

use std::collections::BTreeSet;

use fencepost_wal::{ManifestStore, ShardId, SsTable};
use futures::future::join;
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
    ///
    /// `base` is the newest version, read a moment ago.
    pub(super) async fn make(base: &BaseTable) -> Result<Self> {
        let mut missing = None;
        let mut base = base.clone();
        for round in 0..MAX_ROUNDS {
            if round > 0 {
                base = base.refreshed().await?;
            }
            // Those that the base names are asked while the others are looked for.
            let named: BTreeSet<ShardId> =
                base.fixed_shards().iter().map(|(id, _)| *id).chain(base.merged().keys().copied()).collect();
            let (of_named, listed) = join(all_pending(&base, &named), shards::list(&base)).await;
            let others: BTreeSet<ShardId> = listed?.difference(&named).copied().collect();
            let (of_named, of_others) = (of_named?, all_pending(&base, &others).await?);
            let mut shards: Vec<_> = of_named.into_iter().chain(of_others).collect();
            shards.sort_unstable_by_key(|(id, _)| *id);
            match shards.into_iter().map(|(_, pending)| pending).collect::<Result<Vec<_>, _>>() {
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

type PendingOf = Result<Vec<Pending>, String>;

async fn all_pending(base: &BaseTable, shards: &BTreeSet<ShardId>) -> Result<Vec<(ShardId, PendingOf)>> {
    let pending = shards.iter().map(|id| async { Ok::<_, Error>((*id, pending_of(base, *id).await?)) });
    stream::iter(pending.collect::<Vec<_>>()).buffered(SHARDS_AT_ONCE).try_collect().await
}

/// A shard's SSTables above what the base has, in order; or which one is missing.
async fn pending_of(base: &BaseTable, id: ShardId) -> Result<PendingOf> {
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
