//! Garbage collection while they fight, by the rules of protocol section 8 and no gentler: no minimum age.

use std::collections::BTreeSet;

use fencepost_wal::{ManifestStore, ManifestVersion, Position, Shard, ShardManifest};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt};

/// Manifests that stay.
const KEPT_MANIFESTS: u64 = 16;

/// Deletes what may go, and remembers which entries went.
#[derive(Debug)]
pub(crate) struct Collector {
    shard: Shard,
    /// Positions of deleted entries, in the order of their deletion.
    pub(crate) entries: Vec<u64>,
    pub(crate) manifests: usize,
    pub(crate) sstable_objects: usize,
    pruned_below: u64,
    swept_below: u64,
}

impl Collector {
    pub(crate) fn new(shard: Shard) -> Self {
        Self { shard, entries: Vec::new(), manifests: 0, sstable_objects: 0, pruned_below: 1, swept_below: 1 }
    }

    pub(crate) async fn collect(&mut self) {
        let manifests = ManifestStore::new(self.shard.clone());
        let manifest = manifests.latest_existing().await.unwrap();
        // Certain only if it is still the newest: it may be a forgotten name that came back (schedule 28).
        if manifests.latest_existing().await.unwrap().version != manifest.version {
            return;
        }
        let collectable = manifest.collectable();
        collectable.unwrap();
        self.delete_entries(&manifest).await;
        self.prune_manifests(&manifest).await;
        self.delete_orphans(&manifest).await;
    }

    async fn delete_entries(&mut self, manifest: &ShardManifest) {
        let fences: BTreeSet<Position> = manifest.fences().iter().map(|fence| fence.position).collect();
        for position in (self.swept_below..manifest.replay_after.get()).map(Position::new) {
            if !fences.contains(&position)
                && position != manifest.last_seen
                && self.delete(&self.shard.entry_path(position)).await
            {
                self.entries.push(position.get());
            }
        }
        // Zombies may put something there again; sweeping once is enough for this test.
        self.swept_below = self.swept_below.max(manifest.replay_after.get().saturating_sub(64)).max(1);
    }

    /// A prefix only, ascending.
    async fn prune_manifests(&mut self, manifest: &ShardManifest) {
        let keep_from = manifest.version.get().saturating_sub(KEPT_MANIFESTS - 1);
        for version in self.pruned_below..keep_from {
            self.manifests += usize::from(self.delete(&self.shard.manifest_path(ManifestVersion::new(version))).await);
        }
        self.pruned_below = self.pruned_below.max(keep_from);
    }

    /// SSTables that a writer did not live to publish.
    async fn delete_orphans(&mut self, manifest: &ShardManifest) {
        let listed = self.shard.store().object_store().list_with_delimiter(Some(self.shard.root())).await.unwrap();
        for folder in listed.common_prefixes {
            let name = folder.filename().unwrap_or_default();
            let Some((_, generation)) = name.split_once("_gen_") else { continue };
            let generation: u64 = generation.parse().unwrap();
            let is_listed = manifest.sstables.iter().any(|sstable| sstable.path == name);
            if generation < manifest.current_generation.get() && !is_listed {
                let objects: Vec<_> =
                    self.shard.store().object_store().list(Some(&folder)).try_collect().await.unwrap();
                for object in objects {
                    self.sstable_objects += usize::from(self.delete(&object.location).await);
                }
            }
        }
    }

    /// Whether something was there.
    async fn delete(&self, path: &Path) -> bool {
        let store = self.shard.store().object_store();
        if matches!(store.head(path).await, Err(Error::NotFound { .. })) {
            return false;
        }
        match store.delete(path).await {
            Ok(()) => true,
            Err(Error::NotFound { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }
}
