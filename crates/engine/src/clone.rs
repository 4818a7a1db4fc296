//! Cloning a table (protocol section 10): a table of its own at another place, which begins with the moment of a checkpoint and shares
//! its files. The base is a shallow clone, each shard a clone of the log's. What was begun is gone on with by whoever asks
//! for the same clone again; until it is finished the clone opens for nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use fencepost_wal::checkpoint::Checkpoint;
use fencepost_wal::clone::{self, CloneSource, ClonedLog};
use fencepost_wal::{Error as WalError, ManifestStore, Shard, ShardId, ShardManifest, Store};
use futures::future::{join, try_join};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use crate::base::{BaseTable, CloneOf, TableState, shard_id_of_name};
use crate::checkpoint::{self, CheckpointOptions, Made, Pinner};
use crate::error::{Error, Result};
use crate::lance_store::LanceStore;
use crate::shards::{self, SHARDS_AT_ONCE};

/// The tags of base versions that clones need, on every table whose files they share.
const TAG_PREFIX: &str = "fencepost-clone-";
/// How long a checkpoint stays that was made for a clone which is not finished.
const OWN_CHECKPOINT: Duration = Duration::from_secs(24 * 3600);

/// How a table is cloned.
#[derive(Debug, Clone, Default)]
pub struct CloneOptions {
    /// The checkpoint to begin with; `None`: now, by a checkpoint that goes again when the clone is finished.
    pub checkpoint: Option<Uuid>,
    /// A store for the clone's logs; `None`: they are with the clone. That of the source is not inherited.
    pub wal_store: Option<Store>,
}

/// What a clone took.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloneReport {
    /// The checkpoint that it begins with. One that was made for it is gone by now.
    pub checkpoint: Uuid,
    /// The version of the source's base table whose files it shares.
    pub base_version: u64,
    /// Its shards.
    pub shards: u64,
    /// Entries of the log that were copied.
    pub log_entries: u64,
    /// Their bytes.
    pub log_bytes: u64,
}

fn tag_of(table_id: Uuid) -> String {
    format!("{TAG_PREFIX}{}", table_id.as_hyphenated())
}

/// Clones the source to another place, or finishes a clone that was begun there.
pub(crate) async fn clone_to(
    source: &BaseTable,
    target: &Store,
    options: &CloneOptions,
    pinner: &Pinner<'_>,
) -> Result<(BaseTable, CloneReport)> {
    refuse_place(source.lance_store().store(), target)?;
    let lance = LanceStore::new(target);
    let (source, begun) = try_join(source.refreshed(), begun(source, &lance, options)).await?;
    let from = match (begun, options.checkpoint) {
        (Some(id), _) => Beginning { id, is_begun: true, made: None },
        (None, Some(id)) => Beginning { id, is_begun: false, made: None },
        (None, None) => {
            let options = CheckpointOptions { lifetime: Some(OWN_CHECKPOINT), ..CheckpointOptions::default() };
            let made = checkpoint::make(&source, &options, pinner).boxed().await?;
            Beginning { id: made.checkpoint.id, is_begun: false, made: Some(made) }
        }
    };
    from_checkpoint(&source, &lance, &from, options).boxed().await
}

/// The checkpoint that a clone begins with.
struct Beginning {
    id: Uuid,
    /// An earlier run has created the clone's dataset.
    is_begun: bool,
    /// If it was made for this clone. Then it goes when that holds everything by pins of its own.
    made: Option<Made>,
}

/// Two tables do not share a folder: who deletes the outer one deletes both.
fn refuse_place(source: &Store, target: &Store) -> Result<()> {
    let same_bucket =
        source.url().scheme() == target.url().scheme() && source.url().host_str() == target.url().host_str();
    if same_bucket && (target.root().prefix_matches(source.root()) || source.root().prefix_matches(target.root())) {
        return Err(Error::InvalidOptions(format!(
            "a clone of {} cannot be at {}: one of them would lie in the other's folder; choose another place",
            source.url(),
            target.url()
        )));
    }
    Ok(())
}

/// The checkpoint of a clone that was begun at this place. `None`: nothing is there.
async fn begun(source: &BaseTable, target: &LanceStore, options: &CloneOptions) -> Result<Option<Uuid>> {
    let there = match BaseTable::open_in_any_state(target, options.wal_store.clone()).await {
        Ok(there) => there,
        Err(Error::TableNotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let url = target.describe(None);
    match there.state()? {
        TableState::Ready => Err(Error::TableExists { url }),
        TableState::Deleting => Err(Error::TableNotReady {
            url,
            reason: "it was deleted, and what is left of it stops whoever has stalled since before; choose another place, or delete it with \
                     `--purge`, which asserts that nobody has"
                .to_owned(),
        }),
        TableState::Cloning => {
            let is_same =
                there.origins().first().map(String::as_str) == Some(source.lance_store().store().url().as_str());
            match there.origin_checkpoint() {
                Some(id) if is_same && options.checkpoint.is_none_or(|wanted| wanted == id) => Ok(Some(id)),
                of => Err(Error::NotSupported(format!(
                    "at {url} there is a clone that was not finished, of {} at checkpoint {}; run that again, or delete it",
                    there.origins().first().map_or("another table", String::as_str),
                    of.unwrap_or_default()
                ))),
            }
        }
    }
}

async fn from_checkpoint(
    source: &BaseTable,
    target: &LanceStore,
    from: &Beginning,
    options: &CloneOptions,
) -> Result<(BaseTable, CloneReport)> {
    let id = from.id;
    let found = match &from.made {
        Some(made) => of_made(made),
        None => of_checkpoint(source, id).await,
    };
    let (base, sources) = match found {
        Err(error @ Error::NoCheckpoint { .. }) => of_pins(source, target, options).await?.ok_or(error)?,
        found => found?,
    };
    let clone = create(&base, target, from, &sources, options).await?;
    let table_id = clone.table_id().ok_or_else(|| Error::Corrupt {
        url: target.describe(None),
        reason: "it is a clone without a table id".to_owned(),
    })?;
    let shards: Vec<(Shard, CloneSource)> =
        sources.into_iter().map(|source| (clone.shard(name_in_clone(&base, table_id, &source)), source)).collect();
    // Section 10: what the clone shares is pinned before anything of it is there for anybody; the shards first, since no pin is
    // given for one that is being deleted (schedule 34).
    let pinned = stream::iter(shards.clone()).map(|(shard, source)| {
        let base = &base;
        async move {
            clone::begin(&shard, source.first_manifest(&shard).of_table(Some(table_id))).await?;
            clone::pin(&shard, &source).await.map_err(|error| gone(base, id, error))
        }
    });
    pinned.buffered(SHARDS_AT_ONCE).try_collect::<()>().await?;
    keep_base_versions(&base, table_id).await?;
    // It may have been given up meanwhile: what was pinned after that is released here, since nobody else would.
    if let Err(error) = clone.refreshed().await {
        for (shard, source) in &shards {
            for place in source.places() {
                fencepost_wal::checkpoint::release(&place.open(source.shard.store())?, shard.id()).await?;
            }
        }
        release_base_versions(&clone).await?;
        return Err(error);
    }

    let copied = stream::iter(shards).map(|(shard, source)| async move {
        let copied = clone::copy_log(&shard, &source).await?;
        clone::finish(&shard, &copied).await?;
        Ok::<_, Error>(copied)
    });
    let finished = async {
        let copied: Vec<ClonedLog> = copied.buffered(SHARDS_AT_ONCE).try_collect().await?;
        Ok::<_, Error>((copied, clone.become_state(TableState::Ready).await?))
    };
    // A run that goes on where this one dies finds the pins (`of_pins`).
    let unneeded = async {
        if let Some(made) = &from.made
            && let Err(error) = checkpoint::delete_known(source, &made.checkpoint).await
        {
            tracing::debug!(%id, %error, "the checkpoint that a clone was made of is left until it expires");
        }
    };
    let (finished, ()) = join(finished.boxed(), unneeded.boxed()).await;
    let (copied, clone) = finished?;
    let report = CloneReport {
        checkpoint: id,
        base_version: base.version(),
        shards: copied.len() as u64,
        log_entries: copied.iter().map(|log| log.entries).sum(),
        log_bytes: copied.iter().map(|log| log.bytes).sum(),
    };
    Ok((clone, report))
}

/// What a checkpoint has of each shard, and its base version.
async fn of_checkpoint(source: &BaseTable, id: Uuid) -> Result<(BaseTable, Vec<CloneSource>)> {
    let (checkpoint, base) = try_join(checkpoint::find(source, id), checkpoint::base_of(source, id)).await?;
    let sources = stream::iter(checkpoint.shards).map(|part| {
        let base = &base;
        async move { CloneSource::read(base.shard(part.shard_id), part.id).await.map_err(|error| gone(base, id, error)) }
    });
    let sources: Vec<CloneSource> = sources.buffered(SHARDS_AT_ONCE).try_collect().await?;
    Ok((base, sources))
}

/// The same of one that was made for the clone.
fn of_made(made: &Made) -> Result<(BaseTable, Vec<CloneSource>)> {
    let parts = made.parts.iter();
    let sources = parts.map(|(id, part)| CloneSource::of(made.base.shard(*id), part.clone()));
    Ok((made.base.clone(), sources.collect::<Result<_, _>>()?))
}

/// The same of the pins that an earlier run has made, once it had made all of them: its tag on the base version comes after them. Then the
/// checkpoint may be gone.
async fn of_pins(
    source: &BaseTable,
    target: &LanceStore,
    options: &CloneOptions,
) -> Result<Option<(BaseTable, Vec<CloneSource>)>> {
    let begun = match BaseTable::open_in_any_state(target, options.wal_store.clone()).await {
        Ok(begun) => begun,
        Err(Error::TableNotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(table_id) = begun.table_id() else {
        return Ok(None);
    };
    let Some(base) = source.at_tag(&tag_of(table_id)).await? else {
        return Ok(None);
    };
    let mut sources = Vec::new();
    for id in shards::list(&base).await? {
        let shard = base.shard(id);
        let pins = match fencepost_wal::checkpoint::list(&shard, None).await {
            Ok(pins) => pins,
            // A folder is all that there is of it.
            Err(WalError::ShardNotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let is_its = |pin: &&Checkpoint| pin.is_pin && pin.holder.as_deref() == Some(target.store().url().as_str());
        for pin in pins.iter().filter(is_its) {
            let mut source = CloneSource::read(shard.clone(), pin.id).await?;
            let name = name_in_clone(&base, table_id, &source);
            // One of a clone that was here before has another name.
            if Some(name.to_string()) == pin.name {
                // As the run that began it has written it down.
                let begun = ManifestStore::new(begun.shard(name)).latest_existing().await?;
                source.checkpoint.id = begun.origin().map_or(pin.id, |origin| origin.checkpoint);
                sources.push(source);
            }
        }
    }
    Ok(Some((base, sources)))
}

fn gone(base: &BaseTable, id: Uuid, error: WalError) -> Error {
    match error {
        WalError::NoCheckpoint { state, .. } => checkpoint::none(base, id, state),
        other => other.into(),
    }
}

/// The clone's dataset: created, or the one that another run has created.
async fn create(
    base: &BaseTable,
    target: &LanceStore,
    from: &Beginning,
    sources: &[CloneSource],
    options: &CloneOptions,
) -> Result<BaseTable> {
    let checkpoint = from.id;
    if !from.is_begun {
        let table_id = target.store().surroundings().fresh_id();
        let of = |source: &CloneSource| (source.shard.id(), name_in_clone(base, table_id, source));
        let shards: BTreeMap<ShardId, ShardId> = sources.iter().map(of).collect();
        let clone = CloneOf { table_id, checkpoint, shards: &shards, wal_store: options.wal_store.as_ref() };
        base.create_clone(target, &clone).await?;
    }
    // Somebody else may have been faster, with whatever.
    let there = BaseTable::open_in_any_state(target, options.wal_store.clone()).await?;
    match there.state()? == TableState::Cloning && there.origin_checkpoint() == Some(checkpoint) {
        true => Ok(there),
        false => Err(Error::TableExists { url: target.describe(None) }),
    }
}

/// The name of a shard's clone. It derives from the clone's table id, which is fresh: names of an earlier clone at the same place do not
/// come back (schedule 21), and a repeated run finds those of the first.
fn name_in_clone(base: &BaseTable, table_id: Uuid, source: &CloneSource) -> ShardId {
    let (id, manifest): (ShardId, &ShardManifest) = (source.shard.id(), &source.checkpoint.manifest);
    let value = base.shard_value(id, Some(manifest));
    let derives = base.derived_id(&value).is_ok_and(|derived| derived == id);
    let derived = derives.then(|| base.id_in_table(table_id, &value)).flatten();
    derived.unwrap_or_else(|| shard_id_of_name(table_id, &format!("clone of {id}")))
}

/// The tags that a clone should have on the tables whose files it shares, and has not: their URLs and names.
pub(crate) async fn missing_tags(clone: &BaseTable) -> Result<Vec<(String, String)>> {
    let Some(tag) = clone.table_id().map(tag_of) else {
        return Ok(Vec::new());
    };
    let mut missing = Vec::new();
    for url in clone.origins() {
        let there = match BaseTable::open_in_any_state(&clone.lance_store().of_table(&url)?, None).await {
            Ok(origin) => origin.tags().await?.contains_key(&tag),
            Err(Error::TableNotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        if !there {
            missing.push((url, tag.clone()));
        }
    }
    Ok(missing)
}

/// Gives up the tags of a clone.
pub(crate) async fn release_base_versions(clone: &BaseTable) -> Result<()> {
    let Some(table_id) = clone.table_id() else {
        return Ok(());
    };
    for url in clone.origins() {
        match BaseTable::open_in_any_state(&clone.lance_store().of_table(&url)?, None).await {
            Ok(origin) => origin.release(&tag_of(table_id)).await?,
            Err(Error::TableNotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Tags the base versions whose files the clone shares: that of its source, and those of the tables that its source was cloned from.
async fn keep_base_versions(base: &BaseTable, table_id: Uuid) -> Result<()> {
    let tag = tag_of(table_id);
    let given_up = || Error::Corrupt {
        url: base.lance_store().describe(None),
        reason: format!("its tag `{tag}` was deleted while a clone was made; make the clone again"),
    };
    base.keep(&tag).await?.ok_or_else(given_up)?;
    let Some(own_id) = base.table_id() else {
        return Ok(());
    };
    for url in base.origins() {
        let ancestor = BaseTable::open_in_any_state(&base.lance_store().of_table(&url)?, None).await?;
        let held = ancestor.at_tag(&tag_of(own_id)).await?.ok_or_else(|| Error::Corrupt {
            url: url.clone(),
            reason: format!(
                "it has no tag `{}`: the clone at {} shares files with a version that may be gone",
                tag_of(own_id),
                base.lance_store().describe(None)
            ),
        })?;
        held.keep(&tag).await?.ok_or_else(given_up)?;
    }
    Ok(())
}
