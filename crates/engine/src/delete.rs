//! Deleting a table (end of protocol section 10): the base table says so first, then every shard, which is refused while anybody holds a
//! moment of one; then the objects go, and the table's own pins on others last. It may be repeated after a crash.
//!
//! What stays: the base table's last manifest, and of each shard its last manifest and the log's fences, objects of a few KiB. A writer that has
//! stalled since before meets them and stops; so do a merger and another deleter. In an empty folder each of them would go on, and no
//! look at what is there could tell it from the first to come (schedule 48). For the same reason no table is made at such a place until
//! somebody asserts that nobody is left: `purge`.

use std::collections::{BTreeSet, HashSet};

use fencepost_wal::delete::{
    Marked, check_unpinned, mark_deleted, remove_folders, remove_log, sweep, tombstone, unmark_deleted,
};
use fencepost_wal::{MEM_WAL_FOLDER, OpenOptions, Shard, ShardId, Store, checkpoint};
use object_store::path::Path;

use crate::base::{BaseTable, TableState};
use crate::clone;
use crate::error::{Error, Result};
use crate::lance_store::LanceStore;
use crate::shards;

/// What Lance and Fencepost put into a table's folder. Anything else there is somebody's own, and stays.
const OWN_FOLDERS: [&str; 7] =
    [MEM_WAL_FOLDER, "_versions", "_transactions", "_indices", "_deletions", "_refs", "data"];
/// How often shards may appear while they are marked.
const MAX_ROUNDS: usize = 16;

/// How a table is deleted.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// The WAL store of its logs, if it cannot be opened at the URL that is recorded.
    pub wal_store: Option<Store>,
    /// Delete shards whose WAL store is lost. The caller asserts that their writers are dead: one that only stalls, or does not see that the
    /// store is lost, could go on acknowledging rows in it.
    pub abandon_wal_store: bool,
    /// Leave nothing behind, so that another table can be made at the place. The caller asserts that no process which ever worked on the
    /// table is still there, stalled as it may be.
    pub purge: bool,
}

/// What a deletion did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeleteReport {
    /// Objects that were deleted.
    pub objects: u64,
    /// Objects that stay, so that whoever has stalled meets them.
    pub fences: u64,
}

pub(crate) async fn delete(store: &Store, options: &DeleteOptions) -> Result<DeleteReport> {
    let lance = LanceStore::new(store);
    let base = match BaseTable::open_in_any_state(&lance, options.wal_store.clone()).await {
        Ok(base) => Some(base),
        // A purge that died at its last step has left shards that were marked, and nothing else.
        Err(error @ Error::TableNotFound { .. }) => match is_remains(store).await? {
            true => None,
            false => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let open = OpenOptions { abandon_wal_store: options.abandon_wal_store, ..OpenOptions::default() };
    let (base, marked) = match base {
        Some(base) => {
            let (base, marked) = mark(&base, &open).await?;
            (Some(base), marked)
        }
        None => (None, mark_all(&Place::Store(store, options.wal_store.as_ref()), &open, &mut Vec::new()).await?),
    };
    let mut kept: HashSet<Path> = HashSet::new();
    if let Some(base) = base.as_ref().filter(|_| !options.purge) {
        kept.insert(base.dataset().manifest_location().path.clone());
    }
    let mut report = DeleteReport::default();
    for (shard, found) in &marked {
        let stays = if options.purge { Vec::new() } else { tombstone(shard, &found.manifest).await? };
        report.objects += remove_log(shard, &found.manifest, &stays).await?;
        kept.extend(stays);
    }
    // What says whose pins are to be released stays until they are.
    let is_needed = |path: &Path| !is_own(store, path) || is_manifest(store, path) || kept.contains(path);
    report.objects += sweep(store, store.root(), is_needed).await?;
    release(&lance, base.as_ref(), &marked).await?;
    report.objects += sweep(store, store.root(), |path| !is_own(store, path) || kept.contains(path)).await?;
    report.fences = kept.len() as u64;
    remove_folders(store, &OWN_FOLDERS, options.purge).await?;
    Ok(report)
}

/// The folders of an object's path below the table's root.
fn below(store: &Store, path: &Path) -> Vec<String> {
    path.prefix_match(store.root()).into_iter().flatten().map(|part| part.as_ref().to_owned()).collect()
}

fn is_own(store: &Store, path: &Path) -> bool {
    below(store, path).first().is_some_and(|first| OWN_FOLDERS.contains(&first.as_str()))
}

/// Whether an object is a manifest of a shard, or of the dataset.
fn is_manifest(store: &Store, path: &Path) -> bool {
    match below(store, path).iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["_versions", ..] => true,
        [MEM_WAL_FOLDER, _, folder, ..] => *folder == "manifest",
        _ => false,
    }
}

/// Whether there are shards that were marked, and no others.
async fn is_remains(store: &Store) -> Result<bool> {
    let shards = Shard::list(store).await?;
    for id in &shards {
        let latest = fencepost_wal::ManifestStore::new(Shard::new(store.clone(), *id)).latest_certain().await?;
        if latest.is_some_and(|manifest| !manifest.is_deleted()) {
            return Ok(false);
        }
    }
    Ok(!shards.is_empty())
}

/// What the shards are found by.
enum Place<'a> {
    Table(&'a BaseTable),
    Store(&'a Store, Option<&'a Store>),
}

impl Place<'_> {
    fn store(&self) -> &Store {
        match self {
            Self::Table(base) => base.lance_store().store(),
            Self::Store(store, _) => store,
        }
    }

    fn shard(&self, id: ShardId) -> Shard {
        match self {
            Self::Table(base) => base.shard(id),
            Self::Store(store, Some(wal_store)) => {
                Shard::new((*store).clone(), id).with_wal_store((*wal_store).clone())
            }
            Self::Store(store, None) => Shard::new((*store).clone(), id),
        }
    }
}

/// Marks the base table and all shards, or nothing.
async fn mark(base: &BaseTable, open: &OpenOptions) -> Result<(BaseTable, Vec<(Shard, Marked)>)> {
    let before = base.state()?;
    if before != TableState::Deleting {
        // Before anybody is fenced.
        for id in Shard::list(base.lance_store().store()).await? {
            check_unpinned(&base.shard(id)).await?;
        }
    }
    // From here on nobody opens the table, clones it, makes a checkpoint of it or gives it another shard.
    let token = base.lance_store().store().surroundings().fresh_id();
    let deleting = base.become_deleting(token).await?;
    let mut marked = Vec::new();
    match mark_all(&Place::Table(&deleting), open, &mut marked).await {
        Ok(marked) => Ok((deleting.in_any_state().await?, marked)),
        Err(error) => {
            // Objects go only when all shards are marked, so nobody deletes any yet. What another deleter has marked since is another version, and
            // its token is another one.
            let state = if before == TableState::Cloning { before } else { TableState::Ready };
            let back = async {
                for (shard, found) in &marked {
                    if !shards::is_of_another_table(&deleting, &found.manifest) {
                        unmark_deleted(shard, found.manifest.version).await?;
                    }
                }
                deleting.become_undeleted(token, state).await
            };
            // Why the deletion was refused is what the caller has to know. A table that is still marked opens for nobody, and says that
            // the deletion has to be run again.
            if let Err(left) = back.await {
                tracing::error!(table = %deleting.lance_store().describe(None), error = %left, "marks of a refused deletion stay");
            }
            Err(error)
        }
    }
}

/// Marks shards until a LIST shows no other ones. Those of an error are in `marked`.
async fn mark_all(
    place: &Place<'_>,
    open: &OpenOptions,
    marked: &mut Vec<(Shard, Marked)>,
) -> Result<Vec<(Shard, Marked)>> {
    let mut seen = BTreeSet::new();
    for _ in 0..MAX_ROUNDS {
        let new: Vec<ShardId> = Shard::list(place.store()).await?.into_iter().filter(|id| seen.insert(*id)).collect();
        if new.is_empty() {
            return Ok(std::mem::take(marked));
        }
        for id in new {
            let shard = place.shard(id);
            let found = mark_deleted(&shard, open).await?;
            marked.extend(found.map(|found| (shard, found)));
        }
    }
    Err(Error::NotSupported(format!(
        "shards were added to {} {MAX_ROUNDS} times while it was deleted; try again",
        place.store().url()
    )))
}

/// Gives up the pins on every table whose files this one shared. A table that is gone holds none.
async fn release(lance: &LanceStore, base: Option<&BaseTable>, shards: &[(Shard, Marked)]) -> Result<()> {
    for (shard, found) in shards {
        for place in found.manifest.origin().map_or(&[][..], |origin| &origin.pins) {
            let there = place.open(lance.store())?;
            // A shard of its own table goes with it.
            if !there.store().is_same_place(lance.store()) {
                checkpoint::release(&there, shard.id()).await?;
            }
        }
    }
    match base {
        Some(base) => clone::release_base_versions(base).await,
        None => Ok(()),
    }
}
