//! The decision: from what is there to what may go. A pure function, so that it can be tested against any state and
//! printed instead of executed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::{BaseProgress, GcKind, GcOptions, Kept, Refusal};
use crate::checkpoint::ShardCheckpoint;
use crate::ids::{Generation, ManifestVersion, Position};
use crate::manifest::{Fence, ShardManifest};
use crate::mutants::{Mutant, is_on};
use crate::names;

/// The newest manifests that stay, whatever their age.
pub const KEEP_MANIFESTS: u64 = 16;
/// No younger manifest is deleted.
pub const MANIFEST_AGE: Duration = Duration::from_secs(24 * 3600);

/// An object that a LIST showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T> {
    /// What its name says.
    pub name: T,
    /// Its size.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// A folder that is named like an SSTable's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryFound {
    /// Its name in the shard's folder.
    pub name: String,
    /// The generation that it says.
    pub generation: Generation,
    /// Objects in it; none if there are at most half-made files (`file://` only).
    pub objects: u64,
    /// Bytes of what is in it.
    pub bytes: u64,
    /// When the youngest of them was written.
    pub modified: SystemTime,
}

/// An object in `checkpoints/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointObject {
    /// Its id.
    pub id: Uuid,
    /// If the latest manifest does not list it: the version that the only manifest that could list it first derives
    /// from. `None` if the object is listed, or cannot be decoded.
    pub derived_from: Option<ManifestVersion>,
}

/// A half-made file beside an object that another PUT would have made of it (`file://` only).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftoverOf {
    /// Of an entry of the log.
    Entry(Position),
    /// Of a manifest.
    Manifest(ManifestVersion),
    /// Of the version hint, which nobody relies on.
    Hint,
    /// Of a checkpoint's object, whose name is never used again.
    Checkpoint,
}

/// Such a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftoverFound {
    /// Its path in the shard's folder.
    pub path: String,
    /// What it would have become.
    pub of: LeftoverOf,
}

/// What a plan is made of.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The latest manifest, certain (protocol section 3).
    pub manifest: ShardManifest,
    /// The newest manifest that is older than `min_age`: what readers that started since may know. `None` if all are
    /// younger.
    pub settled: Option<ShardManifest>,
    /// `wal/` in the table's own store.
    pub entries: Vec<Found<Position>>,
    /// `wal/` in the WAL store that the manifest records, if it records one.
    pub entries_in_wal_store: Vec<Found<Position>>,
    /// `manifest/`.
    pub manifests: Vec<Found<ManifestVersion>>,
    /// `checkpoints/`.
    pub checkpoints: Vec<Found<CheckpointObject>>,
    /// The folders of SSTables, in use or not.
    pub sstables: Vec<DirectoryFound>,
    /// Half-made files.
    pub leftovers: Vec<Found<LeftoverFound>>,
    /// The objects of the checkpoints that the manifest lists and that did not expire `min_age` ago, all of them.
    pub pinned: Vec<ShardCheckpoint>,
    /// What the base table says.
    pub base: BaseProgress,
    /// The time of day.
    pub now: SystemTime,
    /// How patient to be.
    pub options: GcOptions,
}

/// One object or folder to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// What it is.
    pub kind: GcKind,
    /// Its path in the shard's folder; a folder ends with a slash.
    pub path: String,
    /// Whether that is the shard's folder in its WAL store.
    pub in_wal_store: bool,
    /// Objects: 1, or those of the folder.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What is to be done, in this order: first the manifest drops what it lists, in one commit that derives from exactly
/// the manifest that the plan was made for; then the deletions, one kind after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Why the shard is not to be touched. The plan is empty then.
    pub refused: Option<Refusal>,
    /// The manifest that it was made for.
    pub version: ManifestVersion,
    /// Generations of merged SSTables that the manifest drops.
    pub drop_sstables: Vec<Generation>,
    /// Checkpoints that it drops: they expired at least `min_age` ago.
    pub drop_checkpoints: Vec<Uuid>,
    /// Fences that it drops; only with a `fence_retention`.
    pub drop_fences: Vec<Fence>,
    /// What is deleted then. Manifests come in ascending order, and each must be gone before the next.
    pub deletions: Vec<Deletion>,
    /// What stays although its place is below R.
    pub kept: Kept,
}

impl Plan {
    pub(super) fn refused(version: ManifestVersion, reason: Refusal) -> Self {
        Self {
            refused: Some(reason),
            version,
            drop_sstables: vec![],
            drop_checkpoints: vec![],
            drop_fences: vec![],
            deletions: vec![],
            kept: Kept::default(),
        }
    }

    /// Whether the manifest drops something.
    pub fn commits(&self) -> bool {
        !(self.drop_sstables.is_empty() && self.drop_checkpoints.is_empty() && self.drop_fences.is_empty())
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        !self.commits() && self.deletions.is_empty()
    }

    /// Takes what the plan drops out of a manifest.
    pub(super) fn apply(&self, manifest: &mut ShardManifest) {
        manifest.sstables.retain(|s| !self.drop_sstables.contains(&s.generation));
        if let Some(extension) = &mut manifest.extension {
            extension.checkpoints.retain(|c| !self.drop_checkpoints.contains(&c.id));
            extension.fences.retain(|f| !self.drop_fences.contains(f));
        }
    }
}

/// Decides what may go (protocol section 8; I7).
pub fn plan(inputs: &Inputs) -> Plan {
    let manifest = &inputs.manifest;
    if let Some(reason) = refusal(inputs) {
        return Plan::refused(manifest.version, reason);
    }
    let mut plan = Plan { refused: None, ..Plan::refused(manifest.version, Refusal::NoShard) };
    plan.drop_sstables = merged(inputs, &mut plan.kept);
    let outlived = manifest.checkpoints().iter().filter(|c| !c.is_kept(inputs.now, inputs.options.min_age));
    plan.drop_checkpoints = outlived.map(|c| c.id).collect();
    plan.drop_fences = outlived_fences(inputs);

    // Everything below is judged by the manifest as it is after the commit.
    let mut next = manifest.clone();
    plan.apply(&mut next);
    if plan.commits() {
        next.version = ManifestVersion::new(next.version.get().saturating_add(1));
    }
    let judge = Judge::new(inputs, &next);
    let mut deletions = judge.entries(&mut plan.kept);
    deletions.extend(judge.sstables(&mut plan.kept));
    deletions.extend(judge.checkpoints(&mut plan.kept));
    deletions.extend(judge.manifests(&mut plan.kept));
    deletions.extend(judge.leftovers());
    plan.deletions = deletions;
    plan
}

fn refusal(inputs: &Inputs) -> Option<Refusal> {
    let manifest = &inputs.manifest;
    match &manifest.extension {
        _ if manifest.collectable().is_err() => Some(Refusal::Unadopted),
        Some(extension) if extension.deleted => Some(Refusal::Deleted),
        _ if !manifest.is_initialized() => Some(Refusal::Unfinished),
        // Wherever the field stands: it may name an object, or say that one is still needed.
        _ if manifest.has_unknown_fields() => Some(Refusal::NewerFormat),
        _ if inputs.pinned.iter().any(ShardCheckpoint::has_unknown_fields) => Some(Refusal::NewerFormat),
        _ => None,
    }
}

/// The SSTables that the base table's own record has and no index lags behind, the oldest first. Their folders stay for
/// as long as a checkpoint names them.
fn merged(inputs: &Inputs, kept: &mut Kept) -> Vec<Generation> {
    let mut merged = Vec::new();
    for sstable in inputs.manifest.sstables.iter().filter(|s| inputs.base.has(s.generation)) {
        let mut lagging = inputs.base.lagging_behind(sstable.generation).peekable();
        if lagging.peek().is_none() {
            merged.push(sstable.generation);
        }
        lagging.for_each(|index| *kept.lagging_indexes.entry(index.to_owned()).or_default() += 1);
    }
    merged
}

/// The fences whose objects are older than the retention. Without one there are none.
fn outlived_fences(inputs: &Inputs) -> Vec<Fence> {
    let Some(retention) = inputs.options.fence_retention else {
        return Vec::new();
    };
    let both = inputs.entries.iter().chain(&inputs.entries_in_wal_store);
    let old: HashSet<Position> = both.filter(|e| age(inputs, e.modified) >= retention).map(|e| e.name).collect();
    let below = |fence: &&Fence| fence.position < inputs.manifest.replay_after && old.contains(&fence.position);
    inputs.manifest.fences().iter().filter(below).copied().collect()
}

fn age(inputs: &Inputs, modified: SystemTime) -> Duration {
    inputs.now.duration_since(modified).unwrap_or_default()
}

/// What the deletions are judged by.
struct Judge<'a> {
    inputs: &'a Inputs,
    next: &'a ShardManifest,
    /// The manifest whose readers may still be at work.
    settled: Option<&'a ShardManifest>,
    /// Checkpoints that stay listed.
    pinned: Vec<&'a ShardCheckpoint>,
    /// Whether every one of them was read. If not, no folder is deleted.
    all_pinned_known: bool,
}

impl<'a> Judge<'a> {
    fn new(inputs: &'a Inputs, next: &'a ShardManifest) -> Self {
        let known = |id: Uuid| inputs.pinned.iter().find(|pinned| pinned.id == id);
        let pinned: Vec<_> = next.checkpoints().iter().filter_map(|c| known(c.id)).collect();
        let settled = match inputs.options.min_age.is_zero() {
            true => Some(next),
            false => inputs.settled.as_ref(),
        };
        let all_pinned_known = pinned.len() == next.checkpoints().len();
        Self { inputs, next, settled, pinned, all_pinned_known }
    }

    fn is_old(&self, modified: SystemTime) -> bool {
        age(self.inputs, modified) >= self.inputs.options.min_age
    }

    /// Entries below R. The one at R stays, and the one that was last seen, because Lance starts probing there; so does
    /// what a checkpoint holds, and what stands in the way of a writer that has stalled (I3).
    fn entries(&self, kept: &mut Kept) -> Vec<Deletion> {
        let fences: HashSet<Position> = self.next.fences().iter().map(|fence| fence.position).collect();
        let settled = self.settled.map_or(Position::ZERO, |manifest| manifest.replay_after);
        let mut deletions = BTreeMap::new();
        let own = self.inputs.entries.iter().map(|entry| (false, entry));
        let entries = own.chain(self.inputs.entries_in_wal_store.iter().map(|entry| (true, entry)));
        for (in_wal_store, entry) in entries.filter(|(_, e)| e.name < self.next.replay_after) {
            let position = entry.name;
            if fences.contains(&position) && !is_on(Mutant::NoFenceRetention) {
                kept.fences += 1;
            } else if self.next.checkpoints().iter().any(|c| c.holds(position))
                && !is_on(Mutant::PinnedEntriesCollected)
            {
                kept.entries_in_checkpoints += 1;
            } else if position >= settled || !self.is_old(entry.modified) {
                kept.young_entries += 1;
            } else if position != self.next.last_seen {
                let path = format!("wal/{}", names::format(position.get(), names::ENTRY_SUFFIX));
                let deletion = Deletion { in_wal_store, ..one(GcKind::WalEntry, path, entry.bytes) };
                deletions.insert((in_wal_store, position), deletion);
            }
        }
        deletions.into_values().collect()
    }

    /// Folders that no manifest and no listed checkpoint names. A generation below the current one is never published
    /// again, so what no manifest names now no manifest will ever name.
    fn sstables(&self, kept: &mut Kept) -> Vec<Deletion> {
        let paths = |manifest: &'a ShardManifest| manifest.sstables.iter().map(|s| s.path.as_str());
        let named: HashSet<&str> = paths(self.next).collect();
        let pinned: HashSet<&str> = self.pinned.iter().flat_map(|c| paths(&c.manifest)).collect();
        let (read, current) = match self.settled {
            Some(settled) => (paths(settled).collect(), settled.current_generation.min(self.next.current_generation)),
            None => (HashSet::new(), Generation::ZERO),
        };
        let mut deletions = BTreeMap::new();
        for folder in &self.inputs.sstables {
            let name = folder.name.as_str();
            if named.contains(name) || folder.generation >= self.next.current_generation {
                continue;
            }
            if pinned.contains(name) || !self.all_pinned_known {
                kept.sstables_in_checkpoints += 1;
            } else if read.contains(name) || folder.generation >= current || !self.is_old(folder.modified) {
                kept.young_sstables += 1;
            } else {
                let (objects, bytes) = (folder.objects, folder.bytes);
                let deletion = Deletion { objects, ..one(GcKind::SsTable, format!("{name}/"), bytes) };
                deletions.insert((folder.generation, name), deletion);
            }
        }
        deletions.into_values().collect()
    }

    /// Objects that the manifest does not list, once the one version that could list them exists.
    fn checkpoints(&self, kept: &mut Kept) -> Vec<Deletion> {
        let listed: BTreeSet<Uuid> = self.next.checkpoints().iter().map(|c| c.id).collect();
        let dropped: BTreeSet<Uuid> = self.inputs.manifest.checkpoints().iter().map(|c| c.id).collect();
        kept.live_checkpoints += listed.len() as u64;
        let mut deletions = BTreeMap::new();
        for object in &self.inputs.checkpoints {
            let CheckpointObject { id, derived_from } = object.name;
            if listed.contains(&id) {
                continue;
            }
            match derived_from {
                _ if dropped.contains(&id) => {}
                Some(_) if is_on(Mutant::CheckpointObjectEarly) && self.is_old(object.modified) => {}
                Some(version) if version < self.next.version && self.is_old(object.modified) => {}
                Some(_) => continue,
                None => {
                    kept.damaged_checkpoints += 1;
                    continue;
                }
            }
            let path = format!("checkpoints/{}{}", id.as_hyphenated(), names::MANIFEST_SUFFIX);
            deletions.insert(id, one(GcKind::Checkpoint, path, object.bytes));
        }
        deletions.into_values().collect()
    }

    /// A prefix, ascending: readers that probe forward from an old version never stop short.
    fn manifests(&self, kept: &mut Kept) -> Vec<Deletion> {
        let patience = MANIFEST_AGE.max(self.inputs.options.min_age);
        let mut older: Vec<_> = self.inputs.manifests.iter().filter(|m| m.name < self.next.version).collect();
        older.sort_unstable_by_key(|found| found.name);
        let may_go = |found: &&&Found<ManifestVersion>| {
            found.name.get().saturating_add(KEEP_MANIFESTS) <= self.next.version.get()
                && age(self.inputs, found.modified) >= patience
        };
        let prefix = older.iter().take_while(may_go).map(|found| {
            let path = format!("manifest/{}", names::format(found.name.get(), names::MANIFEST_SUFFIX));
            one(GcKind::Manifest, path, found.bytes)
        });
        let prefix: Vec<Deletion> = prefix.collect();
        kept.manifests += (older.len() - prefix.len()) as u64;
        prefix
    }

    /// Half-made files, where nothing rests on what the object of that name is: below R, at a version that exists, of a
    /// checkpoint, whose name is never used again.
    ///
    /// Not elsewhere: a PUT that is stalled before it gives its file the object's name would give it to the file that
    /// another process has begun meanwhile under the same half-made name, and take that for its own.
    fn leftovers(&self) -> Vec<Deletion> {
        let may_go = |found: &&Found<LeftoverFound>| {
            let in_place = match found.name.of {
                LeftoverOf::Entry(position) => position < self.next.replay_after,
                LeftoverOf::Manifest(version) => version <= self.inputs.manifest.version,
                LeftoverOf::Hint | LeftoverOf::Checkpoint => true,
            };
            in_place && self.is_old(found.modified)
        };
        let files = self.inputs.leftovers.iter().filter(may_go);
        files.map(|found| one(GcKind::Leftover, found.name.path.clone(), found.bytes)).collect()
    }
}

fn one(kind: GcKind, path: String, bytes: u64) -> Deletion {
    Deletion { kind, path, in_wal_store: false, objects: 1, bytes }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::checkpoint::{self, CheckpointOptions};
    use crate::ids::ShardId;
    use crate::manifest::SsTable;
    use crate::shard::Shard;
    use crate::{ManifestStore, Store};

    /// A shard with an SSTable, a checkpoint, and another SSTable that nobody needs any more.
    async fn inputs() -> Inputs {
        let store = Store::open("memory:///t", &Default::default()).unwrap();
        let shard = Shard::new(store, ShardId::new_random());
        let mut manifest = ShardManifest::first(shard.id(), 0, vec![]);
        manifest.current_generation = Generation::new(3);
        manifest.sstables = vec![SsTable::new(Generation::new(2), "0badcafe_gen_2".into())];
        ManifestStore::new(shard.clone()).initialize(manifest).await.unwrap();
        checkpoint::create(&shard, &CheckpointOptions::default()).await.unwrap();
        let options = GcOptions { min_age: Duration::ZERO, fence_retention: None };
        let mut inputs = super::super::look(&shard, &BaseProgress::default(), &options).await.unwrap().unwrap();
        inputs.sstables.push(DirectoryFound {
            name: "deadbeef_gen_1".into(),
            generation: Generation::new(1),
            objects: 1,
            bytes: 1,
            modified: inputs.now,
        });
        inputs
    }

    #[tokio::test]
    async fn a_field_that_is_not_known_keeps_everything_at_whatever_level_it_stands() {
        let known = inputs().await;
        let usual = plan(&known);
        assert_eq!((usual.refused, usual.deletions.len()), (None, 1));
        type Place = fn(&mut Inputs) -> &mut Vec<u8>;
        let places: [(&str, Place); 8] = [
            ("manifest", |i| &mut i.manifest.unknown),
            ("SSTable", |i| &mut i.manifest.sstables[0].unknown),
            ("extension", |i| &mut i.manifest.extension.as_mut().unwrap().unknown),
            ("listed checkpoint", |i| &mut i.manifest.extension.as_mut().unwrap().checkpoints[0].unknown),
            ("checkpoint's object", |i| &mut i.pinned[0].unknown),
            ("pinned manifest", |i| &mut i.pinned[0].manifest.unknown),
            ("pinned SSTable", |i| &mut i.pinned[0].manifest.sstables[0].unknown),
            ("pinned extension", |i| &mut i.pinned[0].manifest.extension.as_mut().unwrap().unknown),
        ];
        for (name, place) in places {
            let mut newer = known.clone();
            place(&mut newer).extend([0xb2, 0x06, 0x02, b'h', b'i']); // tag 102, two bytes
            assert_eq!(plan(&newer), Plan::refused(known.manifest.version, Refusal::NewerFormat), "{name}");
        }
    }
}
