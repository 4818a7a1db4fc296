//! Which shards a table has and which rows they hold. Found by one LIST; the manifests of shards whose ids say what
//! they hold are not read. It makes shards, and does not open them.

use std::collections::{BTreeSet, HashMap};

use fencepost_wal::{MEM_WAL_FOLDER, ManifestStore, SeenManifest, Shard, ShardId, ShardManifest};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};

use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::sharding::{ShardValue, Sharding};

/// Shards that are looked at, created or taken over at once.
pub(crate) const SHARDS_AT_ONCE: usize = 8;
/// How many shards an error names.
const NAMED_IN_ERRORS: usize = 8;

/// One shard of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableShard {
    pub(crate) id: ShardId,
    pub(crate) value: ShardValue,
    /// Whether it was there when it was looked for. What is not is one that the table has from the start, and whose
    /// making somebody did not come to.
    pub(crate) made: bool,
}

/// The shards that have a folder, with one LIST. One of them may have no manifest yet, which is no shard.
pub(crate) async fn list(base: &BaseTable) -> Result<BTreeSet<ShardId>> {
    Ok(Shard::list(base.lance_store().store()).await?.into_iter().collect())
}

/// The newest manifest of a shard that is there for everybody: not one that is being deleted, nor a clone that is not finished, nor one of
/// another layout.
pub(crate) async fn latest(base: &BaseTable, id: ShardId) -> Result<Option<ShardManifest>> {
    match manifests(base, id).latest().await? {
        Some(manifest) => Ok(is_there(base, &manifest)?.then_some(manifest)),
        None => Ok(None),
    }
}

/// Whether a shard is there for everybody who has read this base version before.
///
/// # Errors
/// [`Error::Corrupt`] for a shard that is marked as deleted while the table is not: its rows would be missing in silence.
pub(crate) fn is_there(base: &BaseTable, manifest: &ShardManifest) -> Result<bool> {
    if is_of_another_table(base, manifest) {
        return Ok(false);
    }
    match manifest.is_deleted() {
        true => Err(Error::Corrupt {
            url: base.lance_store().describe(None),
            reason: format!(
                "shard {} is marked as deleted, and the table is not: a deletion was refused or died half way; run it again",
                manifest.shard_id
            ),
        }),
        false => Ok(manifest.is_initialized() && base.is_of_layout(manifest)),
    }
}

/// Whether a shard was left at this place by another table.
pub(crate) fn is_of_another_table(base: &BaseTable, manifest: &ShardManifest) -> bool {
    manifest.table_id().is_some_and(|id| base.table_id() != Some(id))
}

/// A shard that the base version knows and a LIST after it does not: the table moved on in between (section 9).
pub(crate) fn vanished(base: &BaseTable, listed: &BTreeSet<ShardId>) -> Option<ShardId> {
    base.merged().keys().find(|id| !listed.contains(id)).copied()
}

/// Whether a shard goes on behind what this base version, read before the manifest, has merged from it. One that does
/// not was lost, or an old copy of it was put back: it would number its next SSTables as those that were merged, and
/// every reader would take their rows for merged (I1).
pub(crate) fn is_behind_its_merges(base: &BaseTable, id: ShardId, manifest: Option<&ShardManifest>) -> bool {
    let merged = base.merged().get(&id);
    merged.is_some_and(|merged| manifest.is_none_or(|manifest| manifest.current_generation <= *merged))
}

/// A shard that the latest base version has merged from, and that does not exist or is older than that.
pub(crate) async fn lost(base: &BaseTable) -> Result<Option<ShardId>> {
    let base = base.refreshed().await?;
    for id in base.merged().keys() {
        if is_behind_its_merges(&base, *id, manifests(&base, *id).latest().await?.as_ref()) {
            return Ok(Some(*id));
        }
    }
    Ok(None)
}

/// Refuses a shard that [`is_behind_its_merges`], before anything is written to it.
///
/// # Errors
/// [`Error::Corrupt`] that names the shard.
pub(crate) async fn check_not_lost(base: &BaseTable, id: ShardId) -> Result<()> {
    match base.merged().contains_key(&id) {
        true => refuse_lost(base, id, manifests(base, id).latest().await?.as_ref()),
        false => Ok(()),
    }
}

/// The newest manifest of a shard that a writer takes over: the one that was seen before, unless it is older than what this
/// base version has merged.
///
/// # Errors
/// As [`check_not_lost`].
pub(crate) async fn see_for_writing(
    base: &BaseTable,
    id: ShardId,
    seen: Option<SeenManifest>,
) -> Result<Option<SeenManifest>> {
    let fits = |seen: &SeenManifest| !is_behind_its_merges(base, id, Some(seen.manifest()));
    if let Some(seen) = seen.filter(fits) {
        return Ok(Some(seen));
    }
    let seen = see(base, id).await?;
    refuse_lost(base, id, seen.as_ref().map(SeenManifest::manifest))?;
    Ok(seen)
}

fn refuse_lost(base: &BaseTable, id: ShardId, manifest: Option<&ShardManifest>) -> Result<()> {
    match is_behind_its_merges(base, id, manifest) {
        true => Err(is_lost(base, id)),
        false => Ok(()),
    }
}

/// The newest manifests of the shards that this base version has from the start, if these are few.
pub(crate) async fn see_few(base: &BaseTable) -> Result<HashMap<ShardId, SeenManifest>> {
    let fixed = base.fixed_shards();
    let few = if fixed.len() <= SHARDS_AT_ONCE { fixed } else { &[] };
    let seen = few.iter().map(|(id, _)| async { Ok::<_, Error>((*id, see(base, *id).await?)) });
    let seen = try_join_all(seen).await?;
    Ok(seen.into_iter().filter_map(|(id, seen)| Some((id, seen?))).collect())
}

/// The newest manifest of a shard.
pub(crate) async fn see(base: &BaseTable, id: ShardId) -> Result<Option<SeenManifest>> {
    Ok(manifests(base, id).see().await?)
}

/// The answer about such a shard.
pub(crate) fn is_lost(base: &BaseTable, shard: ShardId) -> Error {
    Error::Corrupt {
        url: base.lance_store().describe(None),
        reason: format!(
            "SSTables of shard {shard} were merged into the base table, but the shard is gone from \
             `{MEM_WAL_FOLDER}`, or what is there is older than that; restore it"
        ),
    }
}

/// The shards of a table, in the order of their values, those of unknown rows last.
pub(crate) async fn discover(base: &BaseTable) -> Result<Vec<TableShard>> {
    let listed = list(base).await?;
    let others = listed.iter().copied().filter(|id| base.fixed_value(*id).is_none());
    let others = stream::iter(others).map(|id| async move {
        let manifest = latest(base, id).await?;
        let shard = |manifest| TableShard { id, value: base.shard_value(id, Some(&manifest)), made: true };
        Ok::<_, Error>(manifest.map(shard))
    });
    let others: Vec<Option<TableShard>> = others.buffered(SHARDS_AT_ONCE).try_collect().await?;
    let mut shards: Vec<TableShard> = others.into_iter().flatten().collect();
    // A folder of one of ours is taken for the shard, unless another shard may serve the same rows.
    let certain = shards.is_empty();
    let fixed = stream::iter(base.fixed_shards().to_vec()).map(|(id, value)| {
        let there = listed.contains(&id);
        async move {
            let made = there && (certain || manifests(base, id).latest().await?.is_some());
            Ok::<_, Error>(TableShard { id, value, made })
        }
    });
    let mut fixed: Vec<TableShard> = fixed.buffered(SHARDS_AT_ONCE).try_collect().await?;
    fixed.retain(|ours| ours.made || !shards.iter().any(|other| other.value == ours.value));
    shards.append(&mut fixed);
    shards.sort_by(|a, b| a.value.order(&b.value).then(a.id.cmp(&b.id)));
    Ok(shards)
}

/// The shards that a writer of the whole table writes to, each the only one for its rows.
///
/// # Errors
/// [`Error::NotSupported`] that says how to write instead, if a row could belong to several shards or to none: two
/// versions of it in two shards have no order (I8).
pub(crate) fn for_writing(base: &BaseTable, shards: Vec<TableShard>) -> Result<Vec<TableShard>> {
    let place = base.lance_store().describe(None);
    if *base.sharding() == Sharding::Manual {
        return Err(Error::NotSupported(format!(
            "the table at {place} has no sharding spec: whoever writes chooses the shard; write with \
             `Table::shard_writer`"
        )));
    }
    if base.sharding().divides_key(base.primary_key()) {
        return Err(Error::NotSupported(format!(
            "the table at {place} is sharded by {}, which is not part of its primary key ({}): versions of one row \
             could land in different shards; write with `Table::shard_writer`",
            base.sharding(),
            base.primary_key().join(", ")
        )));
    }
    let mut of_value: HashMap<&ShardValue, u32> = HashMap::new();
    shards.iter().for_each(|shard| *of_value.entry(&shard.value).or_default() += 1);
    let ambiguous = |shard: &&TableShard| {
        shard.value == ShardValue::Unknown || of_value.get(&shard.value).is_some_and(|shards| *shards > 1)
    };
    let named: Vec<String> =
        shards.iter().filter(ambiguous).map(|shard| format!("{} ({})", shard.id, shard.value)).collect();
    if !named.is_empty() {
        let more = if named.len() > NAMED_IN_ERRORS { ", …" } else { "" };
        return Err(Error::NotSupported(format!(
            "the table at {place} has {} shards that may hold the same rows ({}{more}); versions of a row in two of \
             them have no order, so write with `Table::shard_writer` and choose the shard",
            named.len(),
            named.into_iter().take(NAMED_IN_ERRORS).collect::<Vec<_>>().join(", ")
        )));
    }
    match base.fixed_values().into_iter().find(|value| !of_value.contains_key(value)) {
        Some(missing) => Err(base.not_adopted(&missing)),
        None => Ok(shards),
    }
}

/// Makes the shard of a value, if it does not exist. Its id derives from the table's, so two processes that do this at
/// once make the same one.
///
/// # Errors
/// [`Error::Corrupt`] if it is no new shard: the base table has merged from it.
pub(crate) async fn make(base: &BaseTable, id: ShardId, value: &ShardValue) -> Result<()> {
    check_not_lost(base, id).await?;
    manifests(base, id).initialize(base.first_manifest(id, value)).await?;
    Ok(())
}

fn manifests(base: &BaseTable, id: ShardId) -> ManifestStore {
    ManifestStore::new(base.shard(id))
}
