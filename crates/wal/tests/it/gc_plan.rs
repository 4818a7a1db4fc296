//! The plan alone, against any state of a shard: what it names nobody needs, and when it is executed nothing is left
//! to plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use fencepost_sim::Rng;
use fencepost_wal::gc::{
    BaseProgress, CheckpointObject, DirectoryFound, Found, GcKind, GcOptions, Inputs, KEEP_MANIFESTS, MANIFEST_AGE,
    Plan, plan,
};
use fencepost_wal::{
    Epoch, Extension, Fence, Generation, ManifestVersion, Position, ShardId, ShardManifest, SsTable, checkpoint,
};
use proptest::prelude::*;

use crate::support::bucket;

const HOUR: Duration = Duration::from_secs(3600);

/// Any state, reachable or not.
struct State {
    inputs: Inputs,
}

fn found<T>(rng: &mut Rng, now: SystemTime, name: T) -> Found<T> {
    let age = *rng.pick(&[0, 30, 90, 26 * 60, 50 * 60]).unwrap();
    Found { name, bytes: 10 + rng.below(1000), modified: now - Duration::from_secs(60 * age) }
}

fn folder(generation: u64, random: u64) -> String {
    format!("{random:08x}_gen_{generation}")
}

/// Checkpoints as only the log's own code makes them.
async fn checkpoints(rng: &mut Rng, of: &ShardManifest) -> Vec<checkpoint::ShardCheckpoint> {
    let mut made = Vec::new();
    for _ in 0..rng.below(4) {
        let elsewhere = bucket().await.with_id(of.shard_id);
        let mut pinned = of.clone();
        pinned.version = ManifestVersion::new(1 + rng.below(of.version.get()));
        pinned.replay_after = Position::new(rng.below(of.replay_after.get() + 1));
        pinned.last_seen = pinned.replay_after;
        pinned.sstables = (1..of.current_generation.get())
            .filter(|_| rng.chance(0.3))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|g| SsTable::new(Generation::new(g), folder(g, rng.below(2))))
            .collect();
        fencepost_wal::ManifestStore::new(elsewhere.shard()).initialize(pinned).await.unwrap();
        let made_now = checkpoint::create(&elsewhere.shard(), &Default::default()).await.unwrap();
        made.push(checkpoint::read(&elsewhere.shard(), made_now.id).await.unwrap());
    }
    made
}

impl State {
    async fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let rng = &mut rng;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut manifest = ShardManifest::first(ShardId::new_random(), 0, vec![]);
        manifest.version = ManifestVersion::new(1 + rng.below(40));
        manifest.replay_after = Position::new(rng.below(30));
        manifest.last_seen = Position::new(manifest.replay_after.get() + rng.below(4));
        manifest.current_generation = Generation::new(1 + rng.below(8));
        let listed = (1..manifest.current_generation.get()).filter(|_| rng.chance(0.7)).collect::<Vec<_>>();
        manifest.sstables = listed.iter().map(|g| SsTable::new(Generation::new(*g), folder(*g, 0))).collect();

        let min_age = *rng.pick(&[Duration::ZERO, HOUR, 48 * HOUR]).unwrap();
        let pinned = checkpoints(rng, &manifest).await;
        let mut extension = Extension::default();
        extension.fences = (1..35)
            .filter(|_| rng.chance(0.15))
            .map(|p| Fence { position: Position::new(p), epoch: Epoch::new(1 + p / 8) })
            .collect();
        let (mut kept, mut objects) = (Vec::new(), Vec::new());
        for object in pinned {
            let is_listed = rng.chance(0.7);
            let mut name = CheckpointObject { id: object.id, derived_from: None };
            if is_listed {
                let mut entry = listing(&object).await;
                let minutes_left = *rng.pick(&[None, Some(-5 * 60), Some(-15), Some(15)]).unwrap();
                entry.expires_at_ms = minutes_left.map(|left: i64| (1_800_000_000 + 60 * left) as u64 * 1000);
                if is_kept(&entry, now, min_age) {
                    kept.push(object);
                }
                extension.checkpoints.push(entry);
            } else if rng.chance(0.8) {
                name.derived_from = Some(ManifestVersion::new(1 + rng.below(manifest.version.get() + 3)));
            }
            objects.push(found(rng, now, name));
        }
        manifest.extension = Some(extension);

        let entries = (1..40).filter(|_| rng.chance(0.8)).map(Position::new).collect::<Vec<_>>();
        let oldest = 1 + rng.below(manifest.version.get());
        let versions = (oldest..=manifest.version.get() + rng.below(2)).map(ManifestVersion::new).collect::<Vec<_>>();
        let mut sstables = Vec::new();
        for generation in 1..=manifest.current_generation.get() + 1 {
            for random in 0..2 {
                if rng.chance(0.7) {
                    let at = found(rng, now, ());
                    let name = folder(generation, random);
                    let generation = Generation::new(generation);
                    let (objects, bytes, modified) = (3, at.bytes, at.modified);
                    sstables.push(DirectoryFound { name, generation, objects, bytes, modified });
                }
            }
        }
        let settled = rng.chance(0.8).then(|| {
            let mut older = manifest.clone();
            older.version = ManifestVersion::new(1 + rng.below(manifest.version.get()));
            older.replay_after = Position::new(rng.below(manifest.replay_after.get() + 1));
            older.current_generation = Generation::new(1 + rng.below(manifest.current_generation.get()));
            older.sstables = (1..older.current_generation.get())
                .filter(|_| rng.chance(0.5))
                .map(|g| SsTable::new(Generation::new(g), folder(g, 0)))
                .collect();
            older
        });
        let indexes = ["a", "b"].into_iter().filter(|_| rng.chance(0.4));
        let indexes = indexes.map(|name| (name.to_owned(), Generation::new(name.len() as u64 + 2))).collect();
        let base = BaseProgress { merged: Generation::new(rng.below(manifest.current_generation.get())), indexes };
        let options = GcOptions { min_age, fence_retention: rng.chance(0.2).then_some(30 * HOUR) };
        let inputs = Inputs {
            manifest,
            settled,
            entries: entries.into_iter().map(|p| found(rng, now, p)).collect(),
            entries_in_wal_store: vec![],
            manifests: versions.into_iter().map(|v| found(rng, now, v)).collect(),
            checkpoints: objects,
            sstables,
            leftovers: vec![],
            pinned: kept,
            base,
            now,
            options,
        };
        Self { inputs }
    }

    /// I7, said apart from how the plan is made.
    fn check(&self, plan: &Plan) {
        let Inputs { manifest, base, now, options, .. } = &self.inputs;
        let age = |at: SystemTime| now.duration_since(at).unwrap();
        let deleted: BTreeMap<&str, GcKind> = plan.deletions.iter().map(|d| (d.path.as_str(), d.kind)).collect();
        assert_eq!(deleted.len(), plan.deletions.len(), "nothing twice");
        let kept: Vec<_> = manifest.checkpoints().iter().filter(|c| is_kept(c, *now, options.min_age)).collect();
        assert!(kept.iter().all(|c| !plan.drop_checkpoints.contains(&c.id)));
        let outlived = manifest.checkpoints().len() - kept.len();
        assert_eq!(plan.drop_checkpoints.len(), outlived);

        for entry in &self.inputs.entries {
            let path = format!("wal/{:064b}.arrow", entry.name.get().reverse_bits());
            if !deleted.contains_key(path.as_str()) {
                continue;
            }
            let p = entry.name;
            assert!(p < manifest.replay_after && p != manifest.last_seen);
            assert!(age(entry.modified) >= options.min_age);
            assert!(kept.iter().all(|c| p <= c.replay_after || p > c.tail));
            let fence = manifest.fences().iter().find(|f| f.position == p);
            assert!(fence.is_none_or(|f| plan.drop_fences.contains(f)));
        }
        assert!(options.fence_retention.is_some() || plan.drop_fences.is_empty());
        for generation in &plan.drop_sstables {
            assert!(*generation <= base.merged && base.indexes.values().all(|covered| covered >= generation));
        }
        let dropped = |s: &&SsTable| !plan.drop_sstables.contains(&s.generation);
        let mut needed: BTreeSet<String> = manifest.sstables.iter().filter(dropped).map(|s| s.path.clone()).collect();
        for checkpoint in &self.inputs.pinned {
            needed.extend(checkpoint.manifest.sstables.iter().map(|s| s.path.clone()));
        }
        for folder in &self.inputs.sstables {
            if deleted.contains_key(format!("{}/", folder.name).as_str()) {
                assert!(!needed.contains(&folder.name) && folder.generation < manifest.current_generation);
                assert!(age(folder.modified) >= options.min_age);
            }
        }
        for object in &self.inputs.checkpoints {
            if deleted.contains_key(format!("checkpoints/{}.binpb", object.name.id).as_str()) {
                assert!(kept.iter().all(|c| c.id != object.name.id));
                let next = manifest.version.get() + u64::from(plan.commits());
                let was_listed = manifest.checkpoints().iter().any(|c| c.id == object.name.id);
                assert!(was_listed || object.name.derived_from.is_some_and(|v| v.get() < next));
                assert!(was_listed || age(object.modified) >= options.min_age);
            }
        }
        let newest = manifest.version.get() + u64::from(plan.commits());
        let mut manifests: Vec<_> = self.inputs.manifests.iter().collect();
        manifests.sort_by_key(|m| m.name);
        let gone: Vec<bool> = manifests
            .iter()
            .map(|m| deleted.contains_key(format!("manifest/{:064b}.binpb", m.name.get().reverse_bits()).as_str()))
            .collect();
        assert!(gone.is_sorted_by(|a, b| a >= b), "a prefix: {gone:?}");
        for (found, gone) in manifests.iter().zip(gone) {
            assert!(!gone || found.name.get() + KEEP_MANIFESTS <= newest && age(found.modified) >= MANIFEST_AGE);
        }
        // In this order, manifests ascending.
        let kinds: Vec<_> = plan.deletions.iter().map(|d| d.kind).collect();
        assert!(kinds.is_sorted());
        let versions = plan.deletions.iter().filter(|d| d.kind == GcKind::Manifest).map(|d| {
            let bits = d.path.trim_start_matches("manifest/").trim_end_matches(".binpb");
            u64::from_str_radix(bits, 2).unwrap().reverse_bits()
        });
        assert!(versions.is_sorted());
    }

    /// What is there when it was executed.
    fn execute(&mut self, plan: &Plan) {
        let deleted: BTreeSet<&str> = plan.deletions.iter().map(|d| d.path.as_str()).collect();
        let inputs = &mut self.inputs;
        let gone = |path: String| deleted.contains(path.as_str());
        inputs.entries.retain(|e| !gone(format!("wal/{:064b}.arrow", e.name.get().reverse_bits())));
        inputs.manifests.retain(|m| !gone(format!("manifest/{:064b}.binpb", m.name.get().reverse_bits())));
        inputs.checkpoints.retain(|c| !gone(format!("checkpoints/{}.binpb", c.name.id)));
        inputs.sstables.retain(|s| !gone(format!("{}/", s.name)));
        if plan.commits() {
            let manifest = &mut inputs.manifest;
            manifest.version = ManifestVersion::new(manifest.version.get() + 1);
            manifest.sstables.retain(|s| !plan.drop_sstables.contains(&s.generation));
            let extension = manifest.extension.as_mut().unwrap();
            extension.checkpoints.retain(|c| !plan.drop_checkpoints.contains(&c.id));
            extension.fences.retain(|f| !plan.drop_fences.contains(f));
        }
    }
}

/// Whether a checkpoint is live, or was within `min_age`.
fn is_kept(checkpoint: &checkpoint::Checkpoint, now: SystemTime, min_age: Duration) -> bool {
    checkpoint.is_live(now - min_age)
}

/// What a manifest says about a checkpoint.
async fn listing(object: &checkpoint::ShardCheckpoint) -> checkpoint::Checkpoint {
    let elsewhere = bucket().await.with_id(object.manifest.shard_id);
    let mut manifest = object.manifest.clone();
    manifest.extension = Some(Extension::default());
    fencepost_wal::ManifestStore::new(elsewhere.shard()).initialize(manifest).await.unwrap();
    let mut listed = checkpoint::create(&elsewhere.shard(), &Default::default()).await.unwrap();
    (listed.id, listed.tail) = (object.id, Position::new(object.tail.get() + 3));
    listed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_deletes_nothing_that_anybody_needs_and_leaves_nothing_to_plan(seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut state = State::random(seed).await;
            let first = plan(&state.inputs);
            assert_eq!(first.refused, None);
            assert_eq!(plan(&state.inputs), first, "a pure function");
            state.check(&first);
            state.execute(&first);
            let second = plan(&state.inputs);
            assert!(second.is_empty(), "{second:?}");
        });
    }
}

/// So that the property above is not about empty plans.
#[test]
fn random_states_have_every_kind_of_garbage() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut seen = BTreeSet::new();
        let mut drops = [0; 3];
        for seed in 0..200 {
            let plan = plan(&State::random(seed).await.inputs);
            seen.extend(plan.deletions.iter().map(|d| d.kind));
            let dropped = [plan.drop_sstables.len(), plan.drop_checkpoints.len(), plan.drop_fences.len()];
            drops.iter_mut().zip(dropped).for_each(|(sum, n)| *sum += n);
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
        assert!(drops.iter().all(|n| *n > 10), "{drops:?}");
    });
}
