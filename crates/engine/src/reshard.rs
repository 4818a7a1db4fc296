//! Splitting and joining the shards of a table by buckets, without copying an SSTable. Every shard is flushed and sealed by whoever takes it
//! over for that; new shards list the old ones' SSTables, each with the rows that are its own; then one commit of the base table
//! switches the layout. Before it, readers see the old shards and nothing of the new ones; after it the other way round. A
//! crash leaves one or the other, and the same call again finishes what was begun.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fencepost_wal::checkpoint::{self, CheckpointOptions};
use fencepost_wal::clone::{self, CloneSource, manifest_of_parts};
use fencepost_wal::{
    Error as WalError, Generation, ManifestStore, RowFilter, Shard, ShardId, ShardManifest, ShardStatus, SsTable,
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::base::{BaseTable, Resharding};
use crate::config::WriterConfig;
use crate::error::{Error, Result};
use crate::read::SsTableCache;
use crate::sharding::{MAX_BUCKETS, ShardValue, Sharding};
use crate::shards::{self, SHARDS_AT_ONCE};
use crate::writer::ShardWriter;

/// How often the table may be merged, or otherwise committed to, while it is about to switch.
const MAX_ROUNDS: usize = 32;
/// How long the old shards' checkpoints stay if nobody comes to delete them.
const OWN_CHECKPOINTS: Duration = Duration::from_secs(24 * 3600);

/// What [`Table::reshard`](crate::Table::reshard) did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReshardReport {
    /// Buckets before.
    pub from: u32,
    /// Buckets now.
    pub to: u32,
    /// SSTables that the new shards share with the old ones; one that is shared by two counts twice.
    pub shared_sstables: u64,
}

/// Gives the table another number of buckets.
pub(crate) async fn reshard(
    base: &BaseTable,
    cache: &Arc<SsTableCache>,
    to: u32,
    config: &WriterConfig,
) -> Result<ReshardReport> {
    config.validate()?;
    if config.memtable.is_none() {
        return Err(Error::InvalidOptions(
            "splitting and joining need a MemTable: set `memtable` in the writer's config".into(),
        ));
    }
    let base = base.refreshed().await?;
    let from = check(&base, to)?;
    if let Some(attempt) = base.resharding() {
        if base.spec_id() == attempt.spec_id {
            finish(&base, attempt).await?;
        } else if attempt.buckets != to {
            return Err(Error::NotSupported(format!(
                "the table at {} is about to get {} buckets by a call that was not finished; ask for that number again, or give \
                 it up (`Table::give_up_resharding`, `--abort`)",
                base.lance_store().describe(None),
                attempt.buckets
            )));
        }
    }
    if from == to {
        return Ok(ReshardReport { from, to, shared_sstables: 0 });
    }
    for _ in 0..MAX_ROUNDS {
        if let Some(shared_sstables) = attempt(&base, cache, from, to, config).await? {
            return Ok(ReshardReport { from, to, shared_sstables });
        }
    }
    Err(Error::NotSupported(format!(
        "the table at {} was committed to {MAX_ROUNDS} times while it was about to switch to {to} buckets; try again",
        base.lance_store().describe(None)
    )))
}

/// The present number of buckets, if the table can have the other one.
fn check(base: &BaseTable, to: u32) -> Result<u32> {
    let place = base.lance_store().describe(None);
    let Sharding::Bucket { buckets, .. } = base.sharding() else {
        return Err(Error::NotSupported(format!(
            "the table at {place} is sharded `{}`; only a table sharded by buckets can be split or joined",
            base.sharding()
        )));
    };
    if !base.has_table_id() || base.spec_id() == 0 {
        return Err(Error::NotSupported(format!(
            "the table at {place} was made by another program, and cannot be split or joined as it is: run `fencepost adopt` (`Table::adopt`) \
             once, and merge what it has"
        )));
    }
    let (less, more) = ((*buckets).min(to), (*buckets).max(to));
    let is_power = less > 0 && more % less == 0 && (more / less).is_power_of_two();
    match is_power && to <= MAX_BUCKETS {
        true => Ok(*buckets),
        false => Err(Error::InvalidOptions(format!(
            "the table at {place} has {buckets} buckets and cannot get {to}: use {buckets} times or divided by a power of two, at most \
             {MAX_BUCKETS}"
        ))),
    }
}

/// `None`: somebody has committed to the base table in between; another attempt, with shards of its own, starts from there.
async fn attempt(
    base: &BaseTable,
    cache: &Arc<SsTableCache>,
    from: u32,
    to: u32,
    config: &WriterConfig,
) -> Result<Option<u64>> {
    let base = base.refreshed().await?;
    if check(&base, to)? != from {
        return Err(given_up(&base));
    }
    let (base, attempt) = match base.resharding() {
        Some(attempt) if base.spec_id() < attempt.spec_id && attempt.buckets == to => (base, attempt),
        Some(_) => return Err(given_up(&base)),
        None => {
            let spec_id = highest_spec(&base).await?.max(base.last_attempt()).saturating_add(1);
            let token = base.lance_store().store().surroundings().fresh_id();
            let attempt = Resharding { spec_id, buckets: to, token };
            match base.begin_resharding(attempt).await? {
                Some(begun) => (begun, attempt),
                None => return Ok(None),
            }
        }
    };
    // One shard for each bucket, and nothing else: otherwise a row could be in two places.
    let old = shards::for_writing(&base, shards::discover(&base).await?)?;
    let sealed = stream::iter(old).map(|shard| {
        let (base, cache) = (base.clone(), Arc::clone(cache));
        async move {
            // A folder may be all that there is of it.
            shards::make(&base, shard.id, &shard.value).await?;
            let source = seal(&base, cache, shard.id, config).await?;
            Ok::<_, Error>((shard.value, source))
        }
    });
    let sealed: Vec<(ShardValue, CloneSource)> = sealed.buffered(SHARDS_AT_ONCE).try_collect().await?;

    // Section 9: the base first. What it has merged by now need not be listed; what is merged from here on makes another attempt.
    let base = base.refreshed().await?;
    if base.resharding() != Some(attempt) || base.spec_id() >= attempt.spec_id {
        return Err(given_up(&base));
    }
    let mut sources: BTreeMap<u32, CloneSource> = BTreeMap::new();
    for (value, source) in sealed {
        if let ShardValue::Bucket(bucket) = value {
            sources.insert(bucket, source);
        }
    }
    let mut new = Vec::new();
    for bucket in 0..to {
        let parts: Vec<CloneSource> = parts_of(bucket, from, to).filter_map(|old| sources.get(&old).cloned()).collect();
        let id = base.id_in_attempt(attempt, bucket)?;
        let first = ShardManifest::first(id, attempt.spec_id, base.bucket_entries(bucket)).of_table(base.table_id());
        let sstables = sstables_of(&base, &parts, RowFilter { buckets: to, bucket })?;
        new.push((manifest_of_parts(first, &parts, sstables)?, parts));
    }
    let shared = new.iter().map(|(first, _)| first.sstables.len() as u64).sum();
    let made = stream::iter(new).map(|(first, parts)| {
        let base = &base;
        async move {
            let shard = base.shard(first.shard_id);
            // Before anybody can see what it shares.
            for part in &parts {
                clone::pin(&shard, part).await?;
            }
            let manifests = ManifestStore::new(shard);
            manifests.initialize(first.clone()).await?;
            let there = manifests.latest_existing().await?;
            let is_same = there.sstables == first.sstables && there.shard_field_entries == first.shard_field_entries;
            Ok::<_, Error>(is_same && there.shard_spec_id == first.shard_spec_id)
        }
    });
    let made: Vec<bool> = made.buffered(SHARDS_AT_ONCE).try_collect().await?;
    let switched = match made.into_iter().all(|as_planned| as_planned) {
        true => base.switch(attempt).await?,
        // A run that died had planned for an earlier base version.
        false => None,
    };
    let Some(switched) = switched else {
        abandon(&base, attempt).await?;
        return Ok(None);
    };
    finish(&switched, attempt).await?;
    for source in sources.values() {
        if let Err(error) = checkpoint::delete(&source.shard, source.checkpoint.id).await {
            tracing::debug!(shard = %source.shard.id(), %error, "the checkpoint of a shard that was split or joined is left until it expires");
        }
    }
    Ok(Some(shared))
}

fn given_up(base: &BaseTable) -> Error {
    Error::NotSupported(format!(
        "the split or join of {} was given up, or finished, by somebody else; open the table again",
        base.lance_store().describe(None)
    ))
}

/// The old buckets whose rows a new one has.
fn parts_of(bucket: u32, from: u32, to: u32) -> impl Iterator<Item = u32> {
    let (first, step) = if to > from { (bucket % from.max(1), from) } else { (bucket, to) };
    (first..from).step_by(step.max(1) as usize)
}

/// What a new shard lists: what this base version does not have of the old ones, each with the rows that are its own. The generations get new
/// numbers, since the base has merged nothing of a shard of that name. Rows of a key are in one old shard only, so those of different ones
/// have no order.
fn sstables_of(base: &BaseTable, parts: &[CloneSource], own: RowFilter) -> Result<Vec<SsTable>> {
    let waiting = parts.iter().flat_map(|part| {
        let merged = base.merged().get(&part.shard.id()).copied().unwrap_or(Generation::ZERO);
        part.sstables().into_iter().filter(move |sstable| sstable.generation > merged)
    });
    let (mut sstables, mut generation) = (Vec::new(), Generation::ZERO);
    for mut sstable in waiting {
        if let Some(place) = &mut sstable.base {
            // It may have been divided before.
            match place.filter.map_or(Some(own), |filter| both(filter, own)) {
                None => continue,
                filter => place.filter = filter,
            }
        }
        generation = generation.next()?;
        sstable.generation = generation;
        sstables.push(sstable);
    }
    Ok(sstables)
}

/// The rows that are of both buckets, of which one number is a multiple of the other; `None`: there are none.
fn both(a: RowFilter, b: RowFilter) -> Option<RowFilter> {
    let (coarse, fine) = if a.buckets <= b.buckets { (a, b) } else { (b, a) };
    (fine.bucket % coarse.buckets == coarse.bucket).then_some(fine)
}

/// The highest number of a spec that any shard has, of attempts that came to nothing among them.
async fn highest_spec(base: &BaseTable) -> Result<u32> {
    let found = stream::iter(shards::list(base).await?).map(|id| async move {
        let manifest = ManifestStore::new(base.shard(id)).latest().await?;
        Ok::<_, Error>(manifest.map_or(0, |manifest| manifest.shard_spec_id))
    });
    let found: Vec<u32> = found.buffered(SHARDS_AT_ONCE).try_collect().await?;
    Ok(found.into_iter().fold(base.spec_id(), u32::max))
}

/// Takes a shard over, flushes and seals it, and pins it as it is then. One that is sealed already is pinned.
async fn seal(base: &BaseTable, cache: Arc<SsTableCache>, id: ShardId, config: &WriterConfig) -> Result<CloneSource> {
    let shard = base.shard(id);
    let latest = ManifestStore::new(shard.clone()).latest_existing().await?;
    if latest.status == ShardStatus::Active {
        // Schedule 23: its writer is fenced by the claim, and whoever claims it in between fences this one.
        let writer = ShardWriter::open_in_layout(base.clone(), cache, shard.clone(), config.clone(), None).await?;
        writer.seal().await?;
    }
    let options = CheckpointOptions { lifetime: Some(OWN_CHECKPOINTS), ..CheckpointOptions::default() };
    let made = checkpoint::create(&shard, &options).await?;
    let source = CloneSource::read(shard, made.id).await?;
    let pinned = &source.checkpoint.manifest;
    if pinned.status == ShardStatus::Active {
        // Somebody gave the attempt up.
        return Err(given_up(&base.refreshed().await?));
    }
    // Nothing of the log goes along. (Sealing has flushed it; behind R there are sentinels at most.)
    let has_rows = |n: &u64| !pinned.fences().iter().any(|fence| fence.position.get() == *n);
    match (pinned.replay_after.get() + 1..=source.checkpoint.tail.get()).find(has_rows) {
        None => Ok(source),
        Some(n) => Err(Error::Corrupt {
            url: base.lance_store().describe(None),
            reason: format!(
                "shard {id} is sealed, and entry {n} of its log was not flushed; give the split up (`--abort`), and flush"
            ),
        }),
    }
}

/// After the switch: the new shards take writers, and nothing is under way any more.
async fn finish(base: &BaseTable, attempt: Resharding) -> Result<()> {
    let ids: Vec<ShardId> = base.fixed_shards().iter().map(|(id, _)| *id).collect();
    unseal_all(base, ids).await?;
    base.end_resharding(attempt).await.map(|_| ())
}

/// Gives an attempt up that did not come to its switch. From the commit on it cannot any more; only then the old shards take writers again.
async fn abandon(base: &BaseTable, attempt: Resharding) -> Result<()> {
    let (base, was_under_way) = base.end_resharding(attempt).await?;
    if base.spec_id() == attempt.spec_id {
        return finish(&base, attempt).await;
    }
    if !was_under_way {
        // What is under way now is somebody else's.
        return Ok(());
    }
    let old: Vec<_> = shards::discover(&base).await?.into_iter().filter(|shard| shard.made).collect();
    unseal_all(&base, old.iter().map(|shard| shard.id).collect()).await?;
    // What was made for it holds nothing any more.
    for bucket in 0..attempt.buckets {
        let new = base.id_in_attempt(attempt, bucket)?;
        for shard in &old {
            checkpoint::release(&base.shard(shard.id), new).await?;
        }
    }
    Ok(())
}

async fn unseal_all(base: &BaseTable, shards: Vec<ShardId>) -> Result<()> {
    let unsealed = stream::iter(shards).map(|id| async move { unseal(base, &base.shard(id)).await.map(|_| ()) });
    unsealed.buffered(SHARDS_AT_ONCE).try_collect::<()>().await
}

/// Lets a sealed shard take writers, if it is one of the table's present layout and no split or join relies on the seal. Says whether it does
/// now.
///
/// The manifest is read first, then the base table, and the commit is on top of exactly that manifest: whoever begins to split or join
/// after the base was read pins the shard, which is another version. So no writer comes to a shard that is about to be left.
pub(crate) async fn unseal(base: &BaseTable, shard: &Shard) -> Result<bool> {
    let manifests = ManifestStore::new(shard.clone());
    for _ in 0..MAX_ROUNDS {
        let sealed = match manifests.latest_certain().await? {
            // Lance seals a shard whose table is being dropped, and that stays: its manifests have none of our fields.
            Some(manifest) if manifest.status == ShardStatus::Sealed && manifest.collectable().is_err() => {
                return Ok(false);
            }
            Some(manifest) if manifest.status == ShardStatus::Sealed => manifest,
            Some(_) => return Ok(true),
            None => return Ok(false),
        };
        let base = base.refreshed().await?;
        let under_way = base.resharding().is_some_and(|attempt| attempt.spec_id != base.spec_id());
        if under_way || sealed.shard_spec_id != base.spec_id() {
            return Ok(false);
        }
        match manifests.unseal(sealed.version).await {
            Ok(()) => return Ok(true),
            Err(WalError::Contention { .. } | WalError::CommitUnknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(WalError::Contention { shard: shard.id(), attempts: MAX_ROUNDS }.into())
}

/// Gives up what a call that died had begun: the table is as before. False: nothing was under way.
pub(crate) async fn give_up(base: &BaseTable) -> Result<bool> {
    let base = base.refreshed().await?;
    match base.resharding() {
        Some(attempt) => abandon(&base, attempt).await.map(|()| true),
        None => Ok(false),
    }
}

/// Whether a base version has the layout that a writer was opened in. What the writer has in memory says nothing of another one.
///
/// # Errors
/// [`Error::Resharded`].
pub(crate) async fn check_layout(opened_in: &BaseTable, latest: &BaseTable, shard: ShardId) -> Result<()> {
    match opened_in.spec_id() == latest.spec_id() {
        true => Ok(()),
        false => Err(too_late(opened_in, WalError::Closed { shard }.into()).await),
    }
}

/// What a writer is told that lost its shard: with the new layout, if the table has another one by now, or is about to.
pub(crate) async fn too_late(base: &BaseTable, error: Error) -> Error {
    let Ok(latest) = base.refreshed().await else {
        return error;
    };
    let about_to = latest.resharding().filter(|attempt| attempt.spec_id != latest.spec_id());
    if latest.spec_id() == base.spec_id() && about_to.is_none() {
        return error;
    }
    let sharding = match (latest.sharding(), about_to) {
        (Sharding::Bucket { column, .. }, Some(attempt)) => {
            Sharding::Bucket { column: column.clone(), buckets: attempt.buckets }
        }
        (sharding, _) => sharding.clone(),
    };
    Error::Resharded {
        url: base.lance_store().describe(None),
        sharding,
        is_done: about_to.is_none(),
        source: Box::new(error),
    }
}
