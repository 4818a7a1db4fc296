//! A process that collects garbage by protocol section 8: entries below R that are neither fences nor the last one
//! seen, and folders of SSTables that no manifest names or will name.

use std::sync::Arc;
use std::time::Duration;

use fencepost_wal::{ManifestStore, Shard};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::oracle::Object;
use super::world::{Process, spread};
use super::writer::judge_error;

pub(super) async fn collect_until_the_end(process: &Arc<Process>) {
    let shard = process.shard();
    while process.world.rounds_left() > 0 {
        tokio::time::sleep(process.roll(|dice| spread(dice, 100, 60_000)).max(Duration::from_millis(1))).await;
        if let Err(error) = collect(&shard).await {
            judge_error(process, &error);
        }
    }
}

async fn collect(shard: &Shard) -> crate::Result<()> {
    let Some(manifest) = ManifestStore::new(shard.clone()).latest_certain().await? else {
        return Ok(());
    };
    let store = shard.store().object_store();
    // Whatever fails is left to the next round.
    let Ok(found) = store.list(Some(shard.root())).try_collect::<Vec<_>>().await else {
        return Ok(());
    };
    let is_garbage = |path: &Path| match Object::of(path.as_ref()) {
        Object::Entry(position) => {
            let fenced = manifest.fences().iter().any(|fence| fence.position.get() == position);
            position < manifest.replay_after.get() && position != manifest.last_seen.get() && !fenced
        }
        Object::SsTable(folder) => {
            let generation = folder.rsplit('_').next().and_then(|g| g.parse::<u64>().ok());
            let is_named = manifest.sstables.iter().any(|sstable| sstable.path == folder);
            !is_named && generation.is_some_and(|generation| generation < manifest.current_generation.get())
        }
        Object::Manifest(_) | Object::Other => false,
    };
    for path in found.into_iter().map(|object| object.location).filter(is_garbage) {
        if store.delete(&path).await.is_err() {
            break;
        }
    }
    Ok(())
}
