//! Judges the versions of a shard's manifest: which of them are its history, and whether that holds together.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::kinds::*;
use super::look::{FoundManifest, Look, folder_path, hinted, place_of};
use super::{Findings, MAX_NAMED};
use crate::gc::{KEEP_MANIFESTS, generation_of};
use crate::ids::{Epoch, ManifestVersion};
use crate::manifest::ShardManifest;
use crate::shard::Shard;

/// Judges the manifests and the folders that the newest one names. Returns the versions that are the shard's history.
pub(super) fn judge<'a>(shard: &Shard, look: &'a Look, found: &mut Findings) -> Vec<&'a ShardManifest> {
    let path = |version: u64| shard.manifest_path(ManifestVersion::new(version));
    for manifest in look.manifests.values() {
        if let Err(reason) = &manifest.content {
            found.add(MANIFEST_DAMAGED, &manifest.object.location, reason);
        }
    }
    let Some((newest, _)) = look.manifests.last_key_value() else {
        found.add(MANIFEST_MISSING, shard.manifest_folder(), "the shard has objects, but no manifest");
        return Vec::new();
    };
    let first = first_of_history(look, *newest, found);
    for missing in (first..*newest).filter(|v| !look.manifests.contains_key(v)).take(MAX_NAMED) {
        found.add(MANIFEST_MISSING, path(missing), format!("versions {first} to {newest} must all be there"));
    }
    let history: Vec<&ShardManifest> =
        look.manifests.range(first..).filter_map(|(_, m)| m.content.as_ref().ok()).collect();
    for pair in history.windows(2) {
        if let [before, after] = pair
            && after.version.get() == before.version.get() + 1
        {
            judge_step(before, after, path(after.version.get()).as_ref(), found);
        }
    }
    if let Some(manifest) = look.newest() {
        judge_newest(shard, look, manifest, found);
    }
    if let Some(hint) = &look.hint {
        match hinted(hint) {
            // Versions below the history were pruned since: readers of Lance probe forward from there or list.
            Some(version) if version < first || look.manifests.contains_key(&version) => {}
            Some(version) => {
                found.add(HINT_WRONG, shard.hint_path(), format!("it names version {version} of {newest}"));
            }
            None => found.add(HINT_WRONG, shard.hint_path(), "it names no version"),
        }
    }
    history
}

/// The first version of the history, which ends with the newest. Pruning removes a prefix, so the history has no gap;
/// what stands below a gap was left over by nobody, unless it came later than what is above it: a stalled committer
/// may make a version in a place that was pruned (protocol section 3, step 4), and nobody deletes it at once. That
/// place may be the one right below the history.
fn first_of_history(look: &Look, newest: u64, found: &mut Findings) -> u64 {
    let mut first = newest;
    while first > 1 && look.manifests.contains_key(&(first - 1)) && !came_back(look, first - 1, newest) {
        first -= 1;
    }
    let Some(bottom) = look.manifests.get(&first).map(|m| m.object.last_modified) else {
        return first;
    };
    let older = look.manifests.range(..first).find(|(_, m)| m.object.last_modified <= bottom);
    let lowest = older.map_or(first, |(version, _)| *version);
    for manifest in look.manifests.range(..lowest).map(|(_, manifest)| manifest) {
        let detail = format!("it came after version {first}, from which the history is complete");
        found.add(FORGOTTEN_MANIFEST, &manifest.object.location, detail);
    }
    lowest
}

/// Whether a version right below the history is none of it: nothing that pruning keeps, not what the next one derives
/// from, younger than that, and nobody's successor. Several that lead from one to the next are another history.
fn came_back(look: &Look, version: u64, newest: u64) -> bool {
    let get = |version: u64| look.manifests.get(&version);
    let (Some(this), Some(next)) = (get(version), get(version + 1)) else {
        return false;
    };
    let leads = |before: &FoundManifest, after: &FoundManifest| match (&before.content, &after.content) {
        (Ok(before), Ok(after)) => Some(derives(after, before)),
        _ => None,
    };
    newest - version >= KEEP_MANIFESTS
        && leads(this, next) == Some(false)
        && this.object.last_modified > next.object.last_modified
        && get(version - 1).is_none_or(|before| leads(before, this) == Some(false))
}

/// Whether a version may derive from the one before it. Another engine's does not say.
fn derives(after: &ShardManifest, before: &ShardManifest) -> bool {
    let parent = after.extension.as_ref().map(|extension| extension.parent_commit_id);
    parent.is_none_or(|parent| parent == before.commit_id().unwrap_or_default())
}

/// What must hold from one version to the next.
fn judge_step(before: &ShardManifest, after: &ShardManifest, object: &str, found: &mut Findings) {
    if let Some(extension) = &after.extension
        && !derives(after, before)
    {
        let detail = format!(
            "it derives from the commit {}, version {} is the commit {}",
            extension.parent_commit_id,
            before.version,
            before.commit_id().unwrap_or_default()
        );
        found.add(LINEAGE_BROKEN, object, detail);
    }
    let mut rises = vec![
        ("writer_epoch", before.writer_epoch.get(), after.writer_epoch.get()),
        ("replay_after", before.replay_after.get(), after.replay_after.get()),
        ("current_generation", before.current_generation.get(), after.current_generation.get()),
    ];
    if let (Some(ours), Some(next)) = (&before.extension, &after.extension) {
        rises.push(("last_seen", before.last_seen.get(), after.last_seen.get()));
        rises.push(("replay_after_epoch", ours.replay_after_epoch.get(), next.replay_after_epoch.get()));
        let owners = [ours.writer_id, next.writer_id];
        if before.writer_epoch == after.writer_epoch && owners[0] != owners[1] && !owners.contains(&Uuid::nil()) {
            let detail = format!("epoch {} belongs to {} and to {}", after.writer_epoch, owners[0], owners[1]);
            found.add(EPOCH_SHARED, object, detail);
        }
    }
    for (name, from, to) in rises {
        if to < from {
            let detail = format!("{name} goes down from {from} to {to} after version {}", before.version);
            found.add(MANIFEST_WENT_BACK, object, detail);
        }
    }
}

/// What must hold within the newest version.
fn judge_newest(shard: &Shard, look: &Look, manifest: &ShardManifest, found: &mut Findings) {
    let object = shard.manifest_path(manifest.version).to_string();
    let mut inconsistent = |detail: String| found.add(MANIFEST_INCONSISTENT, &object, detail);
    if let Some(extension) = &manifest.extension {
        if manifest.replay_after > manifest.last_seen {
            inconsistent(format!("R is {}, beyond last_seen, {}", manifest.replay_after, manifest.last_seen));
        }
        let epochs = [
            ("replay_after_epoch", extension.replay_after_epoch),
            ("closed_cleanly_epoch", extension.closed_cleanly_epoch),
            ("a fence's epoch", extension.fences.iter().map(|fence| fence.epoch).max().unwrap_or(Epoch::ZERO)),
        ];
        for (name, epoch) in epochs.into_iter().filter(|(_, epoch)| *epoch > manifest.writer_epoch) {
            inconsistent(format!("{name} is {epoch}, beyond the writer's epoch, {}", manifest.writer_epoch));
        }
        if !extension.fences.is_sorted_by(|a, b| a.position < b.position) {
            inconsistent("its fences are not in order of position, or one is listed twice".into());
        }
    }
    judge_sstables(shard, look, manifest, &object, found);
    judge_checkpoints(shard, look, manifest, found);
    if manifest.collectable().is_err() {
        found.add(UNADOPTED, &object, "another engine wrote to the shard");
    }
}

fn judge_sstables(shard: &Shard, look: &Look, manifest: &ShardManifest, object: &str, found: &mut Findings) {
    let mut listed = BTreeSet::new();
    let mut last = 0;
    for sstable in &manifest.sstables {
        let generation = sstable.generation.get();
        let mut inconsistent = |reason: &str| {
            let detail = format!("generation {generation} in `{}` {reason}", sstable.path);
            found.add(SSTABLES_INCONSISTENT, object, detail);
        };
        if generation <= last {
            inconsistent("is listed twice or out of order");
        }
        last = last.max(generation);
        if sstable.generation >= manifest.current_generation {
            inconsistent(&format!("is not below the current generation, {}", manifest.current_generation));
        }
        let base = sstable.base.as_ref().map(|base| (&base.place, base.filter));
        if !listed.insert((sstable.path.as_str(), base)) {
            inconsistent("shares its folder with another");
        }
        if !look.has_folder(sstable) {
            let detail = format!("version {} lists it as generation {generation}", manifest.version);
            found.add(SSTABLE_MISSING, place_of(shard, sstable), detail);
        }
    }
    let own = manifest.sstables.iter().filter(|sstable| sstable.base.is_none());
    let folders: BTreeSet<&str> = own.map(|sstable| sstable.path.as_str()).collect();
    let pinned = |folder: &str| {
        let mut pinned = look.checkpoints.values().flatten().flat_map(|checkpoint| &checkpoint.manifest.sstables);
        pinned.any(|sstable| sstable.path == folder)
    };
    for folder in look.folders.iter().filter(|folder| !folders.contains(folder.as_str()) && !pinned(folder)) {
        match (folder.as_str(), generation_of(folder)) {
            ("wal" | "manifest" | "checkpoints", _) => {}
            (_, Some(generation)) => {
                let detail = format!("generation {generation}, the shard is at {}", manifest.current_generation);
                found.add(UNLISTED_SSTABLE, folder_path(shard, folder), detail);
            }
            (_, None) => found.add(UNKNOWN_OBJECT, folder_path(shard, folder), "a folder of that name is no part"),
        }
    }
}

/// A listed checkpoint keeps its object, its entries of the log and its SSTables, also when it has expired, until a
/// manifest drops it (I7).
fn judge_checkpoints(shard: &Shard, look: &Look, manifest: &ShardManifest, found: &mut Findings) {
    for listed in manifest.checkpoints() {
        let path = shard.checkpoint_path(listed.id);
        let object = match look.checkpoints.get(&listed.id) {
            None => {
                found.add(CHECKPOINT_MISSING, path, format!("version {} lists it", manifest.version));
                continue;
            }
            // Reported below.
            Some(Err(_)) => continue,
            Some(Ok(object)) => object,
        };
        let says = (object.manifest.version, object.manifest.replay_after, object.tail);
        if says != (listed.version, listed.replay_after, listed.tail) {
            let detail = format!(
                "it pins version {} with the log in ({}, {}], the manifest says {} with ({}, {}]",
                says.0, says.1, says.2, listed.version, listed.replay_after, listed.tail
            );
            found.add(CHECKPOINT_DAMAGED, path, detail);
            continue;
        }
        for sstable in object.manifest.sstables.iter().filter(|sstable| !look.has_folder(sstable)) {
            let detail = format!("checkpoint {} has it as generation {}", listed.id, sstable.generation);
            found.add(SSTABLE_MISSING, place_of(shard, sstable), detail);
        }
        let held = (listed.replay_after.get()..listed.tail.get()).map(|n| n + 1);
        let is_missing = |n: &u64| *n > look.after() && !look.entries.contains_key(n);
        for position in held.filter(is_missing).take(MAX_NAMED) {
            let detail = format!("checkpoint {} holds ({}, {}]", listed.id, listed.replay_after, listed.tail);
            found.add(CHECKPOINT_HOLE, look.entry_path(shard, position), detail);
        }
    }
    for (id, object) in &look.checkpoints {
        let path = shard.checkpoint_path(*id);
        match object {
            Err(reason) => found.add(CHECKPOINT_DAMAGED, path, reason),
            Ok(_) if manifest.checkpoints().iter().any(|listed| listed.id == *id) => {}
            Ok(checkpoint) => {
                let detail = format!("it derives from version {}", checkpoint.derived_from);
                found.add(UNLISTED_CHECKPOINT, path, detail);
            }
        }
    }
}

/// Who owned each epoch, as far as the history says.
pub(super) fn owners(history: &[&ShardManifest]) -> BTreeMap<Epoch, Uuid> {
    let owner = |manifest: &&ShardManifest| {
        let owner = manifest.extension.as_ref()?.writer_id;
        (!owner.is_nil()).then_some((manifest.writer_epoch, owner))
    };
    history.iter().filter_map(owner).collect()
}
