//! Deleting a shard (end of protocol section 10): the manifest says so first, refused while anybody holds a moment of it; then
//! its objects may go, and its own pins on others last. It deletes no SSTable of another shard.

use std::collections::HashSet;
use std::path::Path as FilePath;

use object_store::path::Path;

use crate::adopt::inherit;
use crate::checkpoint::{Checkpoint, OWN_TABLE};
use crate::claim::{OpenOptions, open};
use crate::error::{Error, Result};
use crate::gc::DELETES_AT_ONCE;
use crate::ids::ManifestVersion;
use crate::log::Log;
use crate::manifest::{Extension, ManifestStore, ShardManifest};
use crate::shard::Shard;
use crate::store::Store;

/// How often others may take the shard over while it is marked.
const MAX_ROUNDS: usize = 16;

/// A shard that was marked as deleted.
#[derive(Debug, Clone)]
pub struct Marked {
    /// Its manifest.
    pub manifest: ShardManifest,
}

/// Refuses if somebody needs a moment of the shard, and says who. Writes nothing.
///
/// # Errors
/// [`Error::Pinned`]; errors of reading.
pub async fn check_unpinned(shard: &Shard) -> Result<()> {
    let manifests = ManifestStore::new(shard.clone());
    match manifests.latest_certain().await? {
        Some(latest) if !latest.is_deleted() => refuse_pinned(shard, &inherit(shard, &manifests, latest).await?),
        _ => Ok(()),
    }
}

/// Takes the shard over, and marks it as deleted: nobody opens it, pins it or clones it any more. One that is marked
/// already is marked by this call, too; `None` if there is none. A shard that takes no writer (sealed, a clone that is not finished) or whose log is
/// damaged is marked without being taken over.
///
/// # Errors
/// [`Error::Pinned`] if a checkpoint is live or a clone needs it; errors of [`open`](crate::open()), among them
/// [`Error::WalStoreMissing`] unless `abandon_wal_store`; after them and [`Error::CommitUnknown`] it may be called again.
pub async fn mark_deleted(shard: &Shard, options: &OpenOptions) -> Result<Option<Marked>> {
    let manifests = ManifestStore::new(shard.clone());
    for _ in 0..MAX_ROUNDS {
        let Some(latest) = manifests.latest_certain().await? else {
            return Ok(None);
        };
        if latest.is_deleted() {
            // Over the mark of whoever made it: from here on nobody else takes it back.
            match take_over(&manifests, latest.version).await {
                Ok(manifest) => return Ok(Some(Marked { manifest })),
                Err(Error::Contention { .. }) => continue,
                Err(error) => return Err(error),
            }
        }
        refuse_pinned(shard, &inherit(shard, &manifests, latest).await?)?;
        let marked = match open(shard, options).await {
            // I3: its writer acknowledges nothing any more that would be gone. By the owner: whoever claims it in between would not be fenced.
            Ok(opened) => opened.tenure.mark_deleted().await,
            Err(
                Error::ShardClosed { .. }
                | Error::CloneUnfinished { .. }
                | Error::LogHole { .. }
                | Error::Corrupt { .. }
                | Error::Stranded { .. }
                | Error::Unadopted { .. },
            ) => mark_unowned(shard, &manifests).await,
            Err(error) => Err(error),
        };
        match marked {
            Ok(manifest) => return Ok(Some(Marked { manifest })),
            // Somebody took it over meanwhile.
            Err(Error::Fenced { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Contention { shard: shard.id(), attempts: MAX_ROUNDS })
}

async fn take_over(manifests: &ManifestStore, version: ManifestVersion) -> Result<ShardManifest> {
    let committed = manifests.commit(None, |next| {
        std::future::ready(match next.version == version {
            true => Ok(next),
            false => Err(Error::Contention { shard: next.shard_id, attempts: 1 }),
        })
    });
    Ok(committed.await?.manifest)
}

async fn mark_unowned(shard: &Shard, manifests: &ManifestStore) -> Result<ShardManifest> {
    let committed = manifests.commit(None, |manifest| async move {
        // Of a shard whose fields are all lost nobody knows the pins; its checkpoints' objects say.
        let mut next = inherit(shard, manifests, manifest).await?;
        refuse_pinned(shard, &next)?;
        next.writer_epoch = next.writer_epoch.next()?;
        let extension = next.extension.get_or_insert_with(Extension::default);
        extension.writer_id = shard.store().surroundings().fresh_id();
        extension.deleted = true;
        Ok(next)
    });
    Ok(committed.await?.manifest)
}

/// Takes back a mark, on top of exactly the manifest that made it: another shard of the same table cannot be deleted.
///
/// # Errors
/// [`Error::Contention`] if somebody has committed since; errors of committing.
pub async fn unmark_deleted(shard: &Shard, version: ManifestVersion) -> Result<()> {
    let manifests = ManifestStore::new(shard.clone());
    let committed = manifests.commit(None, |mut next| {
        let changed = match next.version == version {
            true => {
                next.extension.get_or_insert_with(Extension::default).deleted = false;
                Ok(next)
            }
            false => Err(Error::Contention { shard: shard.id(), attempts: 1 }),
        };
        std::future::ready(changed)
    });
    committed.await.map(|_| ())
}

/// Refuses if somebody needs a moment of the shard, and says who. Shards of its own table, which a split has made, go with it.
pub(crate) fn refuse_pinned(shard: &Shard, manifest: &ShardManifest) -> Result<()> {
    let now = shard.store().surroundings().now();
    let is_own = |c: &Checkpoint| c.is_pin && c.holder.as_deref() == Some(OWN_TABLE);
    let Some(live) = manifest.checkpoints().iter().find(|c| c.is_live(now) && !is_own(c)) else {
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
/// since before meets them, and stops (I3).
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

/// On `file://`: removes the folders that hold nothing, from these names below the store's root down, and with `all` whatever half-made
/// files are still in them; then the root, if that is empty. Elsewhere there are no folders.
///
/// # Errors
/// [`Error::Store`] if a folder that is to go cannot be removed.
pub async fn remove_folders(store: &Store, names: &'static [&'static str], all: bool) -> Result<()> {
    let Some(root) = store.local_path(store.root()) else {
        return Ok(());
    };
    let removed = tokio::task::spawn_blocking(move || {
        for folder in names.iter().map(|name| root.join(name)) {
            match all {
                true if folder.is_dir() => std::fs::remove_dir_all(&folder)?,
                _ => remove_empty(&folder),
            }
        }
        let _ = std::fs::remove_dir(&root);
        Ok(())
    });
    removed.await.map_err(std::io::Error::other).and_then(|removed| removed).map_err(|error| {
        let source = object_store::Error::Generic { store: "file", source: Box::new(error) };
        Error::Store { operation: "rmdir", object: store.root().to_string(), source: std::sync::Arc::new(source) }
    })
}

/// A folder that somebody is just writing into stays: it is not empty then.
fn remove_empty(folder: &FilePath) {
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten();
    below
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .for_each(|entry| remove_empty(&entry.path()));
    let _ = std::fs::remove_dir(folder);
}
