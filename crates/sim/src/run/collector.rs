//! A process that collects garbage.

use std::sync::Arc;
use std::time::Duration;

use fencepost_wal::{ManifestStore, Position, Result, Shard, ShardManifest};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::process::Process;
use super::world::ObjectKind;

const KEPT_VERSIONS: usize = 16;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Collects once: what a manifest that is certain does not need.
pub(crate) async fn collect(process: &Arc<Process>, shard: &Shard) -> Result<()> {
    let Some(manifest) = ManifestStore::new(shard.clone()).latest_certain().await? else {
        return Ok(());
    };
    process.world.count("collections");
    // Whatever fails is left to the next round.
    let _ = collect_entries(process, shard, &manifest).await;
    let _ = prune(process, shard).await;
    Ok(())
}

async fn listed(shard: &Shard, folder: &str) -> object_store::Result<Vec<ObjectMeta>> {
    let folder: Path = shard.root().clone().join(folder);
    shard.store().object_store().list(Some(&folder)).try_collect().await
}

fn age(process: &Process, object: &ObjectMeta) -> Duration {
    let modified = std::time::SystemTime::from(object.last_modified);
    process.world.wall_clock().duration_since(modified).unwrap_or_default()
}

async fn collect_entries(process: &Process, shard: &Shard, manifest: &ShardManifest) -> object_store::Result<()> {
    let mut doomed = Vec::new();
    for object in listed(shard, "wal").await? {
        let ObjectKind::Entry(position) = ObjectKind::of(&object.location) else { continue };
        let position = Position::new(position);
        let kept = position >= manifest.replay_after
            || position == manifest.last_seen
            || manifest.fences().iter().any(|fence| fence.position == position)
            || age(process, &object) < process.world.habits.min_age;
        if !kept {
            doomed.push(object.location);
        }
    }
    for path in doomed {
        shard.store().object_store().delete(&path).await?;
    }
    Ok(())
}

async fn prune(process: &Process, shard: &Shard) -> object_store::Result<()> {
    let mut versions: Vec<(u64, ObjectMeta)> = Vec::new();
    for object in listed(shard, "manifest").await? {
        if let ObjectKind::Manifest(version) = ObjectKind::of(&object.location) {
            versions.push((version, object));
        }
    }
    versions.sort_by_key(|(version, _)| *version);
    let old = versions.len().saturating_sub(KEPT_VERSIONS);
    for (_, object) in versions.iter().take(old).take_while(|(_, object)| age(process, object) >= DAY) {
        shard.store().object_store().delete(&object.location).await?;
    }
    Ok(())
}
