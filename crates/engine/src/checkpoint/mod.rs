//! Checkpoints of a whole table (protocol section 9): a checkpoint in each of its shards, all with one id, and a version of the
//! base table that a Lance tag keeps. There is no record besides: a checkpoint is there while every one of its parts is
//! listed and live. What a part holds is the log's to know.

mod at;
mod make;

use std::collections::BTreeMap;
use std::time::Duration;

use fencepost_wal::checkpoint::{self, Checkpoint};
use fencepost_wal::{Error as WalError, ManifestStore, Position, ShardId};
use futures::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::shards::{self, SHARDS_AT_ONCE};

pub(crate) use at::snapshot_at;
pub(crate) use make::{Made, Pinner, make};

/// The tags of base versions that checkpoints keep.
const TAG_PREFIX: &str = "fencepost-checkpoint-";
/// A tag without a checkpoint is no younger than this when it is given up: it may be that of one which is being made.
const TAG_AGE: Duration = Duration::from_secs(24 * 3600);

/// What a checkpoint has of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CheckpointScope {
    /// Everything is flushed first, so that nothing of the log is needed: such a checkpoint outlives its WAL store.
    All,
    /// Nothing is flushed: the rows that are not in SSTables stay in the log for as long as the checkpoint is there.
    #[default]
    Durable,
}

/// How a checkpoint of a table is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// What it has of the logs.
    pub scope: CheckpointScope,
    /// A name to find it by; names may repeat.
    pub name: Option<String>,
    /// How long it is kept if nobody refreshes it; `None`: until it is deleted.
    pub lifetime: Option<Duration>,
    /// The checkpoint whose moment it pins; `None`: now. `scope` says nothing then.
    pub source: Option<Uuid>,
}

/// A checkpoint of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableCheckpoint {
    /// Its id.
    pub id: Uuid,
    /// What its maker called it.
    pub name: Option<String>,
    /// When it was made, in milliseconds since 1970, by its maker's clock.
    pub created_at_ms: u64,
    /// When it expires; `None`: it stays until it is deleted.
    pub expires_at_ms: Option<u64>,
    /// The version of the base table that belongs to it.
    pub base_version: u64,
    /// What it has of each shard, in the order of their ids.
    pub shards: Vec<CheckpointedShard>,
}

/// What a checkpoint has of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointedShard {
    /// The shard.
    pub shard_id: ShardId,
    /// The id of the shard's part.
    pub id: Uuid,
    /// R of the pinned manifest.
    pub replay_after: Position,
    /// The last position of the log that belongs to it; R if it needs none.
    pub tail: Position,
}

impl TableCheckpoint {
    /// Whether it needs entries of the log.
    pub fn needs_log(&self) -> bool {
        self.shards.iter().any(|shard| shard.tail > shard.replay_after)
    }

    /// The parts as one, if none is missing.
    fn of(id: Uuid, parts: &[(ShardId, Checkpoint)]) -> Option<Self> {
        let (_, first) = parts.first()?;
        let table = first.table.filter(|table| usize::try_from(table.shards).is_ok_and(|n| n == parts.len()))?;
        let shards = parts.iter().map(|(shard_id, part)| CheckpointedShard {
            shard_id: *shard_id,
            id: part.id,
            replay_after: part.replay_after,
            tail: part.tail,
        });
        Some(Self {
            id,
            name: first.name.clone(),
            created_at_ms: parts.iter().map(|(_, part)| part.created_at_ms).min()?,
            // A refresh may have stopped half way.
            expires_at_ms: parts.iter().filter_map(|(_, part)| part.expires_at_ms).min(),
            base_version: table.base_version,
            shards: shards.collect(),
        })
    }
}

fn tag_of(id: Uuid) -> String {
    format!("{TAG_PREFIX}{}", id.as_hyphenated())
}

pub(crate) fn none(base: &BaseTable, wanted: impl ToString, reason: &str) -> Error {
    let url = base.lance_store().describe(None);
    Error::NoCheckpoint { url, wanted: wanted.to_string(), reason: reason.to_owned() }
}

/// The base table of a checkpoint.
///
/// # Errors
/// [`Error::NoCheckpoint`] if its tag is gone.
pub(crate) async fn base_of(base: &BaseTable, id: Uuid) -> Result<BaseTable> {
    let kept = base.at_tag(&tag_of(id)).await?;
    kept.ok_or_else(|| none(base, id, "its version of the base table is gone"))
}

/// The parts that the shards list and that have not expired, by the checkpoint that they belong to.
async fn parts(base: &BaseTable) -> Result<BTreeMap<Uuid, Vec<(ShardId, Checkpoint)>>> {
    let found = stream::iter(shards::list(base).await?).map(|id| async move {
        match checkpoint::list(&base.shard(id), None).await {
            Ok(found) => Ok(found.into_iter().map(|part| (id, part)).collect()),
            // A folder is all that there is of it.
            Err(WalError::ShardNotFound { .. }) => Ok(vec![]),
            Err(error) => Err(Error::from(error)),
        }
    });
    let found: Vec<Vec<(ShardId, Checkpoint)>> = found.buffered(SHARDS_AT_ONCE).try_collect().await?;
    let mut parts: BTreeMap<Uuid, Vec<_>> = BTreeMap::new();
    for (shard, part) in found.into_iter().flatten() {
        if let Some(table) = part.table.filter(|_| !part.is_pin) {
            parts.entry(table.id).or_default().push((shard, part));
        }
    }
    Ok(parts)
}

/// The checkpoints that are whole and have not expired, oldest first; with a name, those that are called so.
pub(crate) async fn list(base: &BaseTable, name: Option<&str>) -> Result<Vec<TableCheckpoint>> {
    let parts = parts(base).await?;
    let whole = parts.into_iter().filter_map(|(id, parts)| TableCheckpoint::of(id, &parts));
    let mut found: Vec<_> = whole.filter(|c| name.is_none_or(|name| c.name.as_deref() == Some(name))).collect();
    found.sort_by_key(|c| (c.created_at_ms, c.id));
    Ok(found)
}

/// The ids of those of which parts are missing, with the number of parts that are there: they are being made or deleted, or their makers
/// died.
pub(crate) async fn unfinished(base: &BaseTable) -> Result<BTreeMap<Uuid, u64>> {
    let parts = parts(base).await?;
    let unfinished = parts.into_iter().filter(|(id, parts)| TableCheckpoint::of(*id, parts).is_none());
    Ok(unfinished.map(|(id, parts)| (id, parts.len() as u64)).collect())
}

/// One of them.
///
/// # Errors
/// [`Error::NoCheckpoint`].
pub(crate) async fn find(base: &BaseTable, id: Uuid) -> Result<TableCheckpoint> {
    let parts = parts(base).await?;
    let parts = parts.get(&id).ok_or_else(|| none(base, id, "it is not listed, or has expired"))?;
    TableCheckpoint::of(id, parts)
        .ok_or_else(|| none(base, id, "a part of it is missing: it is being made, or deleted"))
}

/// The newest with this id or name.
///
/// # Errors
/// [`Error::NoCheckpoint`].
pub(crate) async fn find_named(base: &BaseTable, wanted: &str) -> Result<TableCheckpoint> {
    if let Ok(id) = Uuid::try_parse(wanted) {
        return find(base, id).await;
    }
    let found = list(base, Some(wanted)).await?.pop();
    found.ok_or_else(|| none(base, format!("`{wanted}`"), "none of that name is listed, or it has expired"))
}

/// Sets a lifetime anew, counted from now.
///
/// # Errors
/// [`Error::NoCheckpoint`]; errors of the log, after which it may be called again: the shortest lifetime of the parts
/// counts.
pub(crate) async fn refresh(base: &BaseTable, id: Uuid, lifetime: Option<Duration>) -> Result<TableCheckpoint> {
    let checkpoint = find(base, id).await?;
    for part in &checkpoint.shards {
        let refreshed = checkpoint::refresh(&base.shard(part.shard_id), part.id, lifetime).await;
        // Schedule 26: it went while this was on its way.
        refreshed.map_err(|error| match error {
            WalError::NoCheckpoint { state, .. } => none(base, id, state),
            other => other.into(),
        })?;
    }
    find(base, id).await
}

/// Deletes a checkpoint, or what is left of one: the parts first, the base version last.
///
/// # Errors
/// [`Error::NoCheckpoint`] if nothing is there; errors of the log, after which it may be called again.
pub(crate) async fn delete(base: &BaseTable, id: Uuid) -> Result<()> {
    let is_there = remove_parts(base, id).await? | base.tags().await?.contains_key(&tag_of(id));
    match is_there {
        true => base.release(&tag_of(id)).await,
        false => Err(none(base, id, "it is not listed")),
    }
}

/// As [`delete`], of a checkpoint all of whose parts are known.
///
/// # Errors
/// Errors of the log, after which [`delete`] may be called.
pub(crate) async fn delete_known(base: &BaseTable, known: &TableCheckpoint) -> Result<()> {
    remove(base, known.shards.iter().map(|part| (part.shard_id, part.id)).collect()).await?;
    base.release(&tag_of(known.id)).await
}

/// Says whether there were any.
async fn remove_parts(base: &BaseTable, id: Uuid) -> Result<bool> {
    let parts = parts(base).await?.remove(&id).unwrap_or_default();
    let is_any = !parts.is_empty();
    remove(base, parts.into_iter().map(|(shard, part)| (shard, part.id)).collect()).await?;
    Ok(is_any)
}

async fn remove(base: &BaseTable, parts: Vec<(ShardId, Uuid)>) -> Result<()> {
    let removed = stream::iter(parts).map(|(shard, part)| async move {
        match checkpoint::delete(&base.shard(shard), part).await {
            Ok(()) | Err(WalError::NoCheckpoint { .. }) => Ok(()),
            Err(error) => Err(Error::from(error)),
        }
    });
    removed.buffer_unordered(SHARDS_AT_ONCE).try_collect::<()>().await
}

/// Gives up the base versions of checkpoints that have expired, and of those whose makers died. Whoever makes a checkpoint looks
/// at its tag last; only if both its maker and a collector stall for a day on both sides of that look could the version
/// be one that Lance's cleanup takes.
pub(crate) async fn release_outlived(base: &BaseTable) -> Result<u64> {
    let now = base.lance_store().store().surroundings().now();
    let is_old = |at: std::time::SystemTime| now.duration_since(at).is_ok_and(|age| age >= TAG_AGE);
    let tags = base.tags().await?.into_iter().filter_map(|(tag, contents)| {
        let id = Uuid::try_parse(tag.strip_prefix(TAG_PREFIX)?).ok()?;
        contents.created_at.is_some_and(|at| is_old(at.into())).then_some((id, tag))
    });
    let mut tags: BTreeMap<Uuid, String> = tags.collect();
    if tags.is_empty() {
        return Ok(0);
    }
    for id in shards::list(base).await? {
        let Some(manifest) = ManifestStore::new(base.shard(id)).latest_certain().await? else {
            continue;
        };
        if manifest.extension.is_none() {
            // Another engine's: what it lists is not known.
            return Ok(0);
        }
        // Expired ones, too: garbage collection of the shard has not come to them.
        manifest.checkpoints().iter().filter_map(|c| c.table).for_each(|table| drop(tags.remove(&table.id)));
    }
    for tag in tags.values() {
        base.release(tag).await?;
    }
    Ok(tags.len() as u64)
}
