//! The execution of a plan: commit, then delete. It may be dropped, fail or die anywhere; the next one finds what is
//! left.

use std::sync::atomic::{AtomicBool, Ordering};

use super::plan::{Deletion, Inputs, Plan, plan};
use super::{
    BaseProgress, DELETES_AT_ONCE, GcKind, GcOptions, GcProgress, GcReport, Refusal, contention, leftovers, look,
};
use crate::error::{Error, Result};
use crate::ids::ManifestVersion;
use crate::log::Log;
use crate::manifest::ManifestStore;
use crate::mutants::{Mutant, is_on};
use crate::shard::Shard;

/// How often a collection starts over because others committed meanwhile, or its own commit had no certain answer.
const MAX_ROUNDS: usize = 16;

/// Deletes what nobody needs any more of one shard. It needs no tenure and fences nobody; a writer, readers and other
/// collectors may go on beside it. `progress` is called after every request that deletes.
///
/// # Errors
/// What was deleted before stays deleted, and the call can be repeated. [`Error::Corrupt`] if a checkpoint that
/// stays listed is damaged: then nothing was touched. [`Error::Contention`] if others commit all the time.
pub async fn collect(
    shard: &Shard,
    base: &BaseProgress,
    options: &GcOptions,
    mut progress: impl FnMut(GcProgress),
) -> Result<GcReport> {
    for _ in 0..MAX_ROUNDS {
        let Some(inputs) = look(shard, base, options).await? else {
            return Ok(GcReport { refused: Some(Refusal::NoShard), ..GcReport::default() });
        };
        let plan = plan(&inputs);
        if is_on(Mutant::ExpiryDeletesFirst) {
            for id in &plan.drop_checkpoints {
                shard.store().delete(&shard.checkpoint_path(*id)).await?;
            }
        }
        let version = match plan.commits() {
            false => None,
            true => match commit(shard, &inputs, &plan).await? {
                Some(version) => Some(version),
                // Decided on a manifest that is not the latest any more, or may not be.
                None => continue,
            },
        };
        let mut report = GcReport {
            refused: plan.refused,
            version,
            dropped_sstables: plan.drop_sstables.clone(),
            expired_checkpoints: plan.drop_checkpoints.len() as u64,
            dropped_fences: plan.drop_fences.len() as u64,
            kept: plan.kept.clone(),
            ..GcReport::default()
        };
        delete(shard, &inputs, &plan, &mut report, &mut progress).await?;
        return Ok(report);
    }
    Err(contention(shard.id(), MAX_ROUNDS))
}

/// What [`collect`] would do now. Writes nothing.
///
/// # Errors
/// As [`look()`].
pub async fn dry_run(shard: &Shard, base: &BaseProgress, options: &GcOptions) -> Result<Plan> {
    Ok(match look(shard, base, options).await? {
        Some(inputs) => plan(&inputs),
        None => Plan::refused(ManifestVersion::ZERO, Refusal::NoShard),
    })
}

/// Commits the manifest without what the plan drops; `None` if the plan has to be made anew.
async fn commit(shard: &Shard, inputs: &Inputs, plan: &Plan) -> Result<Option<ManifestVersion>> {
    let moved_on = AtomicBool::new(false);
    let manifests = ManifestStore::new(shard.clone());
    let committed = manifests.commit(None, |mut manifest| {
        // I7, schedule 26: derived from exactly the manifest that was judged. A checkpoint that was refreshed, or made,
        // meanwhile is one that the plan knows nothing of.
        let changed = match manifest == inputs.manifest || is_on(Mutant::ExpiryWithoutLook) {
            true => {
                plan.apply(&mut manifest);
                Ok(manifest)
            }
            false => {
                moved_on.store(true, Ordering::Relaxed);
                Err(contention(shard.id(), 1))
            }
        };
        std::future::ready(changed)
    });
    match committed.await {
        Ok(held) => Ok(Some(held.manifest.version)),
        Err(_) if moved_on.load(Ordering::Relaxed) => Ok(None),
        // Section 3: neither deleted nor run again. What is there tells.
        Err(Error::CommitUnknown { version, reason, .. }) => {
            tracing::debug!(shard = %shard.id(), %version, reason, "a collector starts over");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Deletes what a plan names, whose commit is certain.
///
/// The order of log entries among themselves does not matter, so they go in bulk. A replay reads above R only, and so
/// does the look for holes of a claim. A tailer that is below R meets each entry as it was, or a hole, a sentinel or a
/// dead entry, and with these it reads the manifest before it goes on: it never passes a hole. Lance probes from
/// `wal_entry_position_last_seen`, at or above R. An old manifest is different: readers probe forward from one that is
/// there, so each is gone before the next goes.
async fn delete(
    shard: &Shard,
    inputs: &Inputs,
    plan: &Plan,
    report: &mut GcReport,
    progress: &mut impl FnMut(GcProgress),
) -> Result<()> {
    let store = shard.store();
    let of_objects = plan.deletions.iter().map(|d| d.objects).sum();
    let mut at = GcProgress { objects: 0, of_objects };
    let of_kind = |kind| plan.deletions.iter().filter(move |d| d.kind == kind);
    let mut done = |deletion: &Deletion| {
        report.add(deletion.kind, deletion.objects, deletion.bytes);
        at.objects += deletion.objects;
        at
    };
    let path = |relative: &str| relative.split('/').fold(shard.root().clone(), |path, part| path.join(part));

    let log = shard.log(&inputs.manifest).await?;
    for (log, in_wal_store) in [(Log::own(shard), false), (log, true)] {
        let entries: Vec<&Deletion> = of_kind(GcKind::WalEntry).filter(|d| d.in_wal_store == in_wal_store).collect();
        for batch in entries.chunks(DELETES_AT_ONCE) {
            let names = batch.iter().filter_map(|d| d.path.strip_prefix("wal/"));
            log.store().delete_all(names.map(|name| log.folder().clone().join(name)).collect()).await?;
            let mut last = None;
            batch.iter().for_each(|d| last = Some(done(d)));
            last.into_iter().for_each(&mut *progress);
        }
    }
    for folder in of_kind(GcKind::SsTable) {
        let name = folder.path.trim_end_matches('/');
        // Also what came since the plan: a flush that was overtaken may still be writing.
        let objects = store.list(&path(name)).await?;
        let paths: Vec<_> = objects.into_iter().map(|object| object.location).collect();
        for batch in paths.chunks(DELETES_AT_ONCE) {
            store.delete_all(batch.to_vec()).await?;
        }
        leftovers::remove_folder(shard, name).await?;
        progress(done(folder));
    }
    for checkpoint in of_kind(GcKind::Checkpoint) {
        store.delete(&path(&checkpoint.path)).await?;
        progress(done(checkpoint));
    }
    let mut manifests: Vec<&Deletion> = of_kind(GcKind::Manifest).collect();
    if is_on(Mutant::PruneInAnyOrder) {
        manifests.reverse();
    }
    for manifest in manifests {
        store.delete(&path(&manifest.path)).await?;
        progress(done(manifest));
    }
    for file in of_kind(GcKind::Leftover) {
        leftovers::remove(shard, &file.path).await?;
        progress(done(file));
    }
    Ok(())
}
