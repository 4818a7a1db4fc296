//! Deleting a shard (end of protocol section 10): the manifest says so first, refused while anybody holds a moment of it; then
//! its objects may go, and its own pins on others last. It deletes no SSTable of another shard.

use std::collections::HashSet;
use std::path::Path as FilePath;

use object_store::path::Path;

use crate::claim::{OpenOptions, open};
use crate::error::{Error, Result};
use crate::log::Log;
use crate::manifest::{Extension, ManifestStore, ShardManifest};
use crate::shard::Shard;
use crate::store::Store;

/// Objects that are deleted with one call.
const DELETES_AT_ONCE: usize = 1000;

/// Takes the shard over, if it can be opened, and marks it as deleted: nobody opens it, pins it or clones it any more. One that is marked
/// already is left as it is; `None` if there is none.
///
/// # Errors
/// [`Error::Pinned`] if a checkpoint is live or a clone needs it; [`Error::CommitUnknown`], after which it may be called again.
pub async fn mark_deleted(shard: &Shard) -> Result<Option<ShardManifest>> {
    let manifests = ManifestStore::new(shard.clone());
    let Some(latest) = manifests.latest_certain().await? else {
        return Ok(None);
    };
    if latest.is_deleted() {
        return Ok(Some(latest));
    }
    refuse_pinned(shard, &latest)?;
    // I3: its writer acknowledges nothing any more that would be gone. A damaged log, a lost store or a shard that takes no
    // writer is no reason to keep it.
    let options = OpenOptions { abandon_wal_store: true, ..OpenOptions::default() };
    if let Err(error) = open(shard, &options).await {
        tracing::debug!(shard = %shard.id(), %error, "a shard that is deleted cannot be opened");
    }
    let committed = manifests.commit(None, |mut next| {
        let changed = refuse_pinned(shard, &next).and_then(|()| {
            next.writer_epoch = next.writer_epoch.next()?;
            let extension = next.extension.get_or_insert_with(Extension::default);
            extension.writer_id = shard.store().surroundings().fresh_id();
            extension.deleted = true;
            Ok(next)
        });
        std::future::ready(changed)
    });
    Ok(Some(committed.await?.manifest))
}

/// Takes back [`mark_deleted`]: another shard of the same table cannot be deleted.
///
/// # Errors
/// Errors of committing.
pub async fn unmark_deleted(shard: &Shard) -> Result<()> {
    let manifests = ManifestStore::new(shard.clone());
    let committed = manifests.commit(None, |mut next| {
        next.extension.get_or_insert_with(Extension::default).deleted = false;
        std::future::ready(Ok(next))
    });
    committed.await.map(|_| ())
}

/// Refuses if somebody needs a moment of the shard, and says who.
fn refuse_pinned(shard: &Shard, manifest: &ShardManifest) -> Result<()> {
    let now = shard.store().surroundings().now();
    let Some(live) = manifest.checkpoints().iter().find(|c| c.is_live(now)) else {
        return Ok(());
    };
    let by = match (&live.holder, live.is_pin) {
        (Some(holder), true) => format!("the clone at {holder} shares its SSTables; delete that first"),
        (None, true) => format!("a clone (its shard {}) shares its SSTables", live.name.as_deref().unwrap_or("?")),
        (_, false) => {
            let name = live.name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"));
            let id = live.table.map_or(live.id, |table| table.id);
            format!("checkpoint{name} ({id}) is live; delete that first")
        }
    };
    Err(Error::Pinned { shard: shard.id(), by })
}

/// The objects of a shard that was marked which have to stay: its last manifest, and the fences of its log. A writer that has stalled
/// since before meets them, and stops (I3). None for a shard that nobody has ever written to.
///
/// # Errors
/// Errors of finding its log. A WAL store that is not there holds nothing.
pub async fn tombstone(shard: &Shard, manifest: &ShardManifest) -> Result<Vec<Path>> {
    let mut stays = vec![shard.manifest_path(manifest.version)];
    if manifest.fences().is_empty() {
        return Ok(stays);
    }
    let here = Log::own(shard);
    let logs = match shard.recorded_log(manifest).await {
        Ok(log) => vec![here, log],
        Err(Error::WalStoreMissing { .. } | Error::WalStoreMismatch { .. }) => vec![here],
        Err(error) => return Err(error),
    };
    // A log that has moved has left some where it was.
    for log in logs {
        let listed: HashSet<Path> = log.store().list(log.folder()).await?.into_iter().map(|o| o.location).collect();
        let paths = manifest.fences().iter().map(|fence| log.entry_path(fence.position));
        stays.extend(paths.filter(|path| listed.contains(path)));
    }
    stays.sort_unstable();
    stays.dedup();
    Ok(stays)
}

/// Deletes the entries of a shard that was marked, where its log is outside of the table.
///
/// # Errors
/// Errors of deleting. A WAL store that is not there holds nothing.
pub async fn remove_log(shard: &Shard, manifest: &ShardManifest, keep: &[Path]) -> Result<u64> {
    if manifest.wal_store().is_none() {
        return Ok(0);
    }
    match shard.recorded_log(manifest).await {
        Ok(log) => sweep(log.store(), log.folder(), |path| keep.contains(path)).await,
        Err(Error::WalStoreMissing { .. } | Error::WalStoreMismatch { .. }) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Deletes the objects below a prefix, except those to be kept, and says how many.
///
/// # Errors
/// [`Error::Store`]; what was deleted until then is gone.
pub async fn sweep(store: &Store, prefix: &Path, keep: impl Fn(&Path) -> bool) -> Result<u64> {
    let listed = store.list(prefix).await?;
    let doomed: Vec<Path> = listed.into_iter().map(|object| object.location).filter(|path| !keep(path)).collect();
    for batch in doomed.chunks(DELETES_AT_ONCE) {
        store.delete_all(batch.to_vec()).await?;
    }
    Ok(doomed.len() as u64)
}

/// On `file://`: removes the folders below the store's root that hold nothing, or with `all` whatever is still there. Elsewhere there
/// are no folders.
///
/// # Errors
/// [`Error::Store`] if a folder that is to go cannot be removed.
pub async fn remove_folders(store: &Store, all: bool) -> Result<()> {
    let Some(root) = store.local_path(store.root()) else {
        return Ok(());
    };
    let removed = tokio::task::spawn_blocking(move || match all {
        true => std::fs::remove_dir_all(&root),
        false => {
            remove_empty(&root);
            Ok(())
        }
    });
    let removed = removed.await.map_err(std::io::Error::other).and_then(|removed| removed);
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let source = object_store::Error::Generic { store: "file", source: Box::new(error) };
            let object = store.root().to_string();
            Err(Error::Store { operation: "rmdir", object, source: std::sync::Arc::new(source) })
        }
        _ => Ok(()),
    }
}

/// A folder that somebody is just writing into stays: it is not empty then.
fn remove_empty(folder: &FilePath) {
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    below
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .for_each(|entry| remove_empty(&entry.path()));
    let _ = std::fs::remove_dir(folder);
}
