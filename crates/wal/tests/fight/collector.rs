//! Garbage collection while they fight: the real one, without any patience. It leaves manifests for a day, so these are
//! pruned here, by the same rules.

use std::collections::BTreeSet;
use std::time::Duration;

use fencepost_wal::gc::{self, BaseProgress, GcKind, GcOptions};
use fencepost_wal::{ManifestStore, ManifestVersion, Shard};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStoreExt};

/// Manifests that stay.
const KEPT_MANIFESTS: u64 = 16;

/// Deletes what may go, and remembers which entries went.
#[derive(Debug)]
pub(crate) struct Collector {
    shard: Shard,
    /// Positions of deleted entries, in the order of their deletion.
    pub(crate) entries: Vec<u64>,
    pub(crate) manifests: usize,
    /// Objects of SSTables that nobody lived to publish.
    pub(crate) sstables: u64,
    pruned_below: u64,
}

impl Collector {
    pub(crate) fn new(shard: Shard) -> Self {
        Self { shard, entries: Vec::new(), manifests: 0, sstables: 0, pruned_below: 1 }
    }

    pub(crate) async fn collect(&mut self) {
        let before = self.positions().await;
        let options = GcOptions { min_age: Duration::ZERO, ..GcOptions::default() };
        let report = gc::collect(&self.shard, &BaseProgress::default(), &options, |_| {}).await.unwrap();
        assert_eq!(report.refused, None);
        self.sstables += report.of(GcKind::SsTable).objects;
        let after = self.positions().await;
        // Only collectors delete, and this is the only one. It may also meet what came to stand in a hole since `before`.
        let gone: Vec<u64> = before.difference(&after).copied().collect();
        assert!(gone.len() as u64 <= report.of(GcKind::WalEntry).objects, "{gone:?}, {report:?}");
        self.entries.extend(gone);
        self.prune_manifests().await;
    }

    async fn positions(&self) -> BTreeSet<u64> {
        let wal = self.shard.root().clone().join("wal");
        let listed = self.shard.store().object_store().list(Some(&wal));
        let objects: Vec<_> = listed.try_collect().await.unwrap();
        let position = |object: &ObjectMeta| {
            let bits = object.location.filename()?.strip_suffix(".arrow")?;
            u64::from_str_radix(bits, 2).ok().map(u64::reverse_bits)
        };
        objects.iter().filter_map(position).collect()
    }

    /// A prefix only, ascending.
    async fn prune_manifests(&mut self) {
        let manifest = ManifestStore::new(self.shard.clone()).latest_existing().await.unwrap();
        let keep_from = manifest.version.get().saturating_sub(KEPT_MANIFESTS - 1);
        for version in self.pruned_below..keep_from {
            self.manifests += usize::from(self.delete(&self.shard.manifest_path(ManifestVersion::new(version))).await);
        }
        self.pruned_below = self.pruned_below.max(keep_from);
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
