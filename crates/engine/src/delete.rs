//! Deleting a table (end of protocol section 10): first every shard says so, which is refused while anybody holds a moment of one;
//! then the objects go, and the table's own pins on others last. It may be repeated after a crash.
//!
//! What stays: of each shard that had a writer the last manifest and the log's fences, a few objects of under 1 KiB. A writer that has
//! stalled since before meets them and stops; without them it would go on in an empty folder, acknowledge what nobody reads, and bring a
//! shard back that a new table at the same place would take for its own (schedule 21).

use std::collections::HashSet;

use fencepost_wal::delete::{mark_deleted, remove_folders, remove_log, sweep, tombstone, unmark_deleted};
use fencepost_wal::{MEM_WAL_FOLDER, Shard, ShardManifest, Store, checkpoint};
use object_store::path::Path;

use crate::base::{BaseTable, TableState};
use crate::clone;
use crate::error::{Error, Result};
use crate::lance_store::LanceStore;

/// How a table is deleted.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// The WAL store of its logs, if it cannot be opened at the URL that is recorded.
    pub wal_store: Option<Store>,
    /// Leave nothing behind. The caller asserts that no process which ever wrote to the table is still there, stalled as it may be.
    pub purge: bool,
}

/// What a deletion did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeleteReport {
    /// Objects that were deleted.
    pub objects: u64,
    /// Objects that stay, so that a stalled writer meets them.
    pub fences: u64,
}

pub(crate) async fn delete(store: &Store, options: &DeleteOptions) -> Result<DeleteReport> {
    let lance = LanceStore::new(store);
    let (base, absent) = match BaseTable::open_in_any_state(&lance, options.wal_store.clone()).await {
        Ok(base) => (Some(base), None),
        // What an earlier run has left.
        Err(error @ Error::TableNotFound { .. }) => (None, Some(error)),
        Err(error) => return Err(error),
    };
    let marked = mark(store, base.as_ref(), options).await?;
    let base = match base {
        Some(base) => Some(base.become_state(TableState::Deleting).await?),
        None => None,
    };
    let mut kept: HashSet<Path> = HashSet::new();
    let mut report = DeleteReport::default();
    for (shard, manifest) in &marked {
        let stays = if options.purge { Vec::new() } else { tombstone(shard, manifest).await? };
        report.objects += remove_log(shard, manifest, &stays).await?;
        kept.extend(stays);
    }
    // What says whose pins are to be released stays until they are.
    let is_needed = |path: &Path| is_manifest(store, path) || kept.contains(path);
    report.objects += sweep(store, store.root(), is_needed).await?;
    release(&lance, base.as_ref(), &marked).await?;
    report.objects += sweep(store, store.root(), |path| kept.contains(path)).await?;
    report.fences = kept.len() as u64;
    remove_folders(store, options.purge).await?;
    match absent {
        Some(error) if report.objects == 0 => Err(error),
        _ => Ok(report),
    }
}

/// Whether an object is a manifest of a shard, or of the dataset.
fn is_manifest(store: &Store, path: &Path) -> bool {
    let Some(below) = path.prefix_match(store.root()) else {
        return false;
    };
    let parts: Vec<_> = below.map(|part| part.as_ref().to_owned()).collect();
    match parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["_versions", ..] => true,
        [MEM_WAL_FOLDER, _, folder, ..] => *folder == "manifest",
        _ => false,
    }
}

/// All shards, or none.
async fn mark(store: &Store, base: Option<&BaseTable>, options: &DeleteOptions) -> Result<Vec<(Shard, ShardManifest)>> {
    let mut marked: Vec<(Shard, ShardManifest)> = Vec::new();
    for id in Shard::list(store).await? {
        let shard = match (base, &options.wal_store) {
            (Some(base), _) => base.shard(id),
            (None, Some(wal_store)) => Shard::new(store.clone(), id).with_wal_store(wal_store.clone()),
            (None, None) => Shard::new(store.clone(), id),
        };
        match mark_deleted(&shard).await {
            Ok(manifest) => marked.extend(manifest.map(|manifest| (shard, manifest))),
            Err(error) => {
                // Objects go only when all shards are marked, so nothing is lost yet.
                for (shard, _) in &marked {
                    unmark_deleted(shard).await?;
                }
                return Err(error.into());
            }
        }
    }
    Ok(marked)
}

/// Gives up the pins on every table whose files this one shared. A table that is gone holds none.
async fn release(lance: &LanceStore, base: Option<&BaseTable>, shards: &[(Shard, ShardManifest)]) -> Result<()> {
    for (shard, manifest) in shards {
        for place in manifest.origin().map_or(&[][..], |origin| &origin.pins) {
            checkpoint::release(&place.open(lance.store())?, shard.id()).await?;
        }
    }
    let Some((base, table_id)) = base.and_then(|base| Some((base, base.table_id()?))) else {
        return Ok(());
    };
    for url in base.origins() {
        match BaseTable::open_in_any_state(&lance.of_table(&url)?, None).await {
            Ok(origin) => origin.release(&clone::tag_of(table_id)).await?,
            Err(Error::TableNotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
