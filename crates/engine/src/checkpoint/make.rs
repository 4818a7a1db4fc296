//! Making a checkpoint of a table, in the order of section 9: the base version first, then the shards. If a shard has moved on in
//! between (schedule 20), all of it starts again with a newer base version.

use std::sync::Arc;

use fencepost_wal::checkpoint::{self, Checkpoint, CheckpointOptions as PartOptions, ShardCheckpoint, TablePart};
use fencepost_wal::{Error as WalError, Generation, ShardId, ShardManifest};
use futures::FutureExt;
use futures::future::{join, join3};
use futures::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::{CheckpointOptions, CheckpointScope, TableCheckpoint, base_of, find, remove_parts, tag_of};
use crate::base::BaseTable;
use crate::config::WriterConfig;
use crate::error::{Error, Result};
use crate::read::{MAX_ROUNDS, SsTableCache, moved_on};
use crate::shards::{self, SHARDS_AT_ONCE};
use crate::writer::{OpenShards, ShardWriter};

/// A checkpoint that was just made, with its version of the base table and what it has pinned of its shards. Whether it is still there is for
/// whoever uses it to see.
pub(crate) struct Made {
    pub(crate) checkpoint: TableCheckpoint,
    pub(crate) base: BaseTable,
    pub(crate) parts: Vec<(ShardId, ShardCheckpoint)>,
}

/// Who pins a shard.
pub(crate) enum Pinner<'a> {
    /// Its writer, if it is one of these.
    Writers(&'a OpenShards),
    /// Anybody: with scope `All` the shard is taken over for that.
    Anybody(Arc<SsTableCache>, Box<WriterConfig>),
}

impl Pinner<'_> {
    async fn pin(
        &self,
        base: &BaseTable,
        id: ShardId,
        scope: CheckpointScope,
        options: &PartOptions,
    ) -> Result<(Checkpoint, ShardCheckpoint)> {
        let shard = base.shard(id);
        let made = match self {
            Pinner::Writers(writers) => match writers.with_id(id) {
                Some(writer) => writer.checkpoint(scope, options).await?,
                None => return Ok(checkpoint::create_and_read(&shard, options).await?),
            },
            Pinner::Anybody(cache, config) if scope == CheckpointScope::All => {
                let place = shard.clone();
                let writer = ShardWriter::open(base.clone(), Arc::clone(cache), place, (**config).clone()).await?;
                let made = writer.checkpoint(scope, options).await;
                let closed = writer.close().await;
                let made = made?;
                closed.map(|()| made)?
            }
            Pinner::Anybody(..) => return Ok(checkpoint::create_and_read(&shard, options).await?),
        };
        let read = checkpoint::read(&shard, made.id).await?;
        Ok((made, read))
    }
}

/// Makes a checkpoint of the table as it is now, or of what another checkpoint has pinned. `base` is the newest version of the base table, read a
/// moment ago.
pub(crate) async fn make(base: &BaseTable, options: &CheckpointOptions, pinner: &Pinner<'_>) -> Result<Made> {
    let mut base = base.clone();
    for round in 0..MAX_ROUNDS {
        if round > 0 {
            base = base.refreshed().await?;
        }
        let base = &base;
        let id = base.lance_store().store().surroundings().fresh_id();
        let made = match options.source {
            Some(source) => copy(base, source, id, options).await.map(|made| made.then(Vec::new)),
            None => attempt(base, id, options, pinner).await,
        };
        match made {
            Ok(Some(parts)) => {
                let tag = tag_of(id);
                match join3(base.at_tag(&tag), base.refreshed(), find(base, id)).await {
                    // A collector took it for one that nobody needs.
                    (Ok(None), ..) => give_up(base, id).await,
                    // Whether it has only one version's columns (I9) was not seen; and a deletion that has begun meanwhile would be refused by it,
                    // for nothing.
                    (Err(error), ..) | (_, Err(error), _) => {
                        give_up(base, id).await;
                        return Err(error);
                    }
                    // Nor may a shard have columns that came after the base version (I9).
                    (_, Ok(newest), _) if options.source.is_none() && newest.schema() != base.schema() => {
                        give_up(base, id).await;
                    }
                    (Ok(Some(kept)), Ok(_), found) => return Ok(Made { checkpoint: found?, base: kept, parts }),
                }
            }
            Ok(None) => give_up(base, id).await,
            Err(error) => {
                give_up(base, id).await;
                return Err(error);
            }
        }
    }
    Err(moved_on(&base).await)
}

/// What is left is found and collected when it has expired, or by `Table::delete_checkpoint`.
async fn give_up(base: &BaseTable, id: Uuid) {
    let removed = async {
        remove_parts(base, id).await?;
        base.release(&tag_of(id)).await
    };
    if let Err(error) = removed.await {
        tracing::debug!(%id, %error, "the parts of a checkpoint that was not made are left");
    }
}

/// What was pinned of each shard. `None`: the table has moved on.
async fn attempt(
    base: &BaseTable,
    id: Uuid,
    options: &CheckpointOptions,
    pinner: &Pinner<'_>,
) -> Result<Option<Vec<(ShardId, ShardCheckpoint)>>> {
    // The version is tagged while the shards are pinned; what pins it counts only if it was there then, and is in the end.
    let tag = tag_of(id);
    let (kept, pinned) = join(base.keep(&tag), pin_all(base, id, options, pinner).boxed()).await;
    let (kept, pinned) = (kept?, pinned?);
    Ok(pinned.filter(|_| kept.is_some()))
}

async fn pin_all(
    base: &BaseTable,
    id: Uuid,
    options: &CheckpointOptions,
    pinner: &Pinner<'_>,
) -> Result<Option<Vec<(ShardId, ShardCheckpoint)>>> {
    let listed = shards::list(base).await?;
    if shards::vanished(base, &listed).is_some() {
        return Ok(None);
    }
    let existing =
        stream::iter(listed).map(|id| async move { Ok::<_, Error>(shards::latest(base, id).await?.map(|_| id)) });
    let existing: Vec<Option<ShardId>> = existing.buffered(SHARDS_AT_ONCE).try_collect().await?;
    let existing: Vec<ShardId> = existing.into_iter().flatten().collect();
    if existing.is_empty() {
        return Err(Error::NotSupported(format!(
            "the table at {} has no shard yet, so there is nothing that a checkpoint could pin; a Lance tag keeps a version of \
             its base table",
            base.lance_store().describe(None)
        )));
    }
    let part = part_options(base, id, existing.len(), options)?;
    let pinned = stream::iter(existing).map(|id| {
        let part = &part;
        async move {
            let (made, pinned) = pinner.pin(base, id, options.scope, part).await?;
            // Opened while it was pinned with its log: again, by its writer.
            let has_log = made.tail > made.replay_after && options.scope == CheckpointScope::All;
            if has_log && matches!(pinner, Pinner::Writers(writers) if writers.with_id(id).is_some()) {
                return Ok(None);
            }
            Ok::<_, Error>(fits(base, id, &pinned.manifest).then_some((id, pinned)))
        }
    });
    // All of them are waited for: what is given up is given up whole.
    let pinned: Vec<Option<_>> = pinned.buffered(SHARDS_AT_ONCE).try_collect().await?;
    Ok(pinned.into_iter().collect())
}

/// Whether a shard's manifest has everything that this base version, read before it, does not have (I9).
fn fits(base: &BaseTable, id: ShardId, manifest: &ShardManifest) -> bool {
    let merged = base.merged().get(&id).copied().unwrap_or(Generation::ZERO);
    let is_listed = |g: u64| manifest.sstables.iter().any(|s| s.generation.get() == g);
    (merged.get() + 1..manifest.current_generation.get()).all(is_listed)
        && !shards::is_behind_its_merges(base, id, Some(manifest))
}

fn part_options(base: &BaseTable, id: Uuid, shards: usize, options: &CheckpointOptions) -> Result<PartOptions> {
    let shards = u32::try_from(shards)
        .map_err(|_| Error::NotSupported(format!("a checkpoint of {shards} shards is too large")))?;
    let table = TablePart { id, shards, base_version: base.version() };
    Ok(PartOptions { name: options.name.clone(), lifetime: options.lifetime, table: Some(table) })
}

/// Another checkpoint of the same moment.
async fn copy(base: &BaseTable, source: Uuid, id: Uuid, options: &CheckpointOptions) -> Result<bool> {
    let of = find(base, source).await?;
    let Some(base) = &base_of(base, of.id).await?.keep(&tag_of(id)).await? else {
        return Ok(false);
    };
    let part = part_options(base, id, of.shards.len(), options)?;
    for shard in &of.shards {
        match checkpoint::copy(&base.shard(shard.shard_id), shard.id, &part).await {
            Ok(_) => {}
            Err(WalError::NoCheckpoint { state, .. }) => return Err(super::none(base, source, state)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
