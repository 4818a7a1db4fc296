//! I5, I6 and I7 over the manifests: every version that ever was the newest is kept, and each must follow from the one
//! before it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use fencepost_wal::{ManifestStore, ManifestVersion, Shard, ShardManifest, Store};
use futures::FutureExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

use super::log::replay;
use super::{Invariant, Oracle, Verdict, broken, store_of};
use crate::run::coverage::Coverage;
use crate::run::habits::Kind;
use crate::run::network::shard_id;
use crate::run::world::Event;

/// Decodes a manifest, with the public reader of the crate under test on a store that holds nothing else.
pub(super) fn decode(version: u64, bytes: &Bytes) -> Result<ShardManifest, String> {
    let alone: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let url = Url::parse("memory://oracle/t").map_err(|e| e.to_string())?;
    let shard = Shard::new(Store::from_parts(url, Arc::clone(&alone), Path::from("t")), shard_id());
    let version = ManifestVersion::new(version);
    let read = async {
        alone.put(&shard.manifest_path(version), bytes.clone().into()).await.map_err(|e| e.to_string())?;
        let found = ManifestStore::new(shard.clone()).read(version).await.map_err(|e| e.to_string())?;
        found.ok_or_else(|| "it is not there".to_owned())
    };
    read.now_or_never().unwrap_or_else(|| Err("memory did not answer at once".into()))
}

impl Oracle {
    pub(super) fn manifest_created(&mut self, version: u64, bytes: &Bytes, coverage: &mut Coverage) -> Verdict {
        let manifest = match decode(version, bytes) {
            Ok(manifest) => manifest,
            Err(e) => return broken(Invariant::Truth, format!("manifest {version} cannot be read: {e}")),
        };
        let newest = self.lineage.len() as u64;
        if version <= newest {
            // Not a violation yet: it is one if somebody acts on it.
            coverage.count("forgotten manifests that came back");
            self.happened(Event::CameBack);
            self.present.insert(version, false);
            return Ok(());
        }
        if version > newest + 1 {
            return broken(Invariant::I6, format!("manifest {version} follows on {newest}"));
        }
        self.present.insert(version, true);
        if let Some(parent) = self.lineage.last().cloned() {
            self.follows(&parent, &manifest, coverage)?;
        }
        self.lineage.push(manifest);
        Ok(())
    }

    fn follows(&mut self, parent: &ShardManifest, next: &ShardManifest, coverage: &mut Coverage) -> Verdict {
        let version = next.version;
        let commit_of = |m: &ShardManifest| m.extension.as_ref().map(|x| (x.commit_id, x.parent_commit_id));
        let derives = matches!((commit_of(parent), commit_of(next)), (Some((id, _)), Some((_, of))) if id == of);
        if !derives {
            let what = format!("manifest {version} does not derive from the one before it");
            return broken(Invariant::I6, what);
        }
        let writer = |m: &ShardManifest| m.extension.as_ref().map(|x| x.writer_id);
        match next.writer_epoch.get().checked_sub(parent.writer_epoch.get()) {
            Some(0) if writer(parent) == writer(next) => {}
            Some(1) => {
                coverage.count("claims");
                self.happened(Event::Claimed);
            }
            _ => {
                let what = format!(
                    "manifest {version} goes from epoch {} to {}, or to another writer of that epoch",
                    parent.writer_epoch, next.writer_epoch
                );
                return broken(Invariant::I4, what);
            }
        }
        let closed = |m: &ShardManifest| m.extension.as_ref().map(|x| x.closed_cleanly_epoch);
        if closed(parent) != closed(next) {
            coverage.count("clean closes");
        }
        let merged = self.merged;
        let names = |m: &ShardManifest| {
            let unmerged = m.sstables.iter().filter(|s| s.generation.get() > merged);
            unmerged.map(|s| s.path.clone()).collect::<BTreeSet<_>>()
        };
        if !names(parent).is_subset(&names(next)) {
            return broken(Invariant::I7, format!("manifest {version} drops an SSTable that is nowhere else"));
        }
        self.checkpoints_follow(parent, next, coverage)?;
        let (from, to) = (parent.replay_after.get(), next.replay_after.get());
        if to < from {
            return broken(Invariant::I5, format!("manifest {version} takes R back from {from} to {to}"));
        }
        if to > from {
            self.r_rises(parent, next, coverage)?;
        }
        Ok(())
    }

    /// I5: all that R passes now must be somewhere else.
    fn r_rises(&mut self, parent: &ShardManifest, next: &ShardManifest, coverage: &mut Coverage) -> Verdict {
        let (from, to, version) = (parent.replay_after.get(), next.replay_after.get(), next.version);
        let passed: Vec<(u64, Vec<u64>)> =
            replay(self.log_in(store_of(parent)), from, parent.replay_after_epoch().get())
                .take_while(|met| met.position <= to)
                .map(|met| (met.position, if met.is_dead { Vec::new() } else { met.entry.rows.clone() }))
                .collect();
        if passed.len() as u64 != to - from {
            let first = from + 1 + passed.len() as u64;
            return broken(Invariant::I5, format!("manifest {version} raises R to {to}, and {first} has not landed"));
        }
        let moves = store_of(parent) != store_of(next);
        if moves {
            coverage.count("moves of the log");
        }
        if let Some((position, _)) = passed.iter().find(|(_, ids)| moves && !ids.is_empty()) {
            let what = format!("manifest {version} moves the log, and rows at {position} stay behind");
            return broken(Invariant::I5, what);
        }
        match self.kind {
            _ if moves => {}
            Kind::MemTable => {
                let held: BTreeSet<u64> =
                    next.sstables.iter().filter_map(|s| self.sstables.get(&s.path)).flatten().copied().collect();
                if let Some((position, id)) = passed
                    .iter()
                    .flat_map(|(at, ids)| ids.iter().map(move |id| (at, id)))
                    .find(|(_, id)| !held.contains(id))
                {
                    let what = format!("manifest {version} raises R to {to}; row {id} at {position} is in no SSTable");
                    return broken(Invariant::I5, what);
                }
                coverage.count("flushes");
            }
            Kind::WalOnly => {
                if !self.asked.contains(&to) {
                    return broken(
                        Invariant::I5,
                        format!("manifest {version} raises R to {to}, which nobody asked for"),
                    );
                }
                passed.iter().for_each(|(_, ids)| self.rows.consume(ids));
                coverage.count("truncations");
            }
        }
        self.settled.extend(passed);
        self.happened(Event::Published);
        Ok(())
    }

    pub(super) fn manifest_deleted(&mut self, version: u64, coverage: &mut Coverage) -> Verdict {
        let of_lineage = self.present.remove(&version).unwrap_or_default();
        coverage.count("manifests pruned");
        self.happened(Event::Pruned);
        self.reached(Event::PrunedUpTo, version);
        if version >= self.lineage.len() as u64 {
            return broken(Invariant::I7, format!("manifest {version}, the newest, was deleted"));
        }
        // A reader that probes forward from a version it knows must not stop short.
        let below = self.present.range(..version).find(|(_, of_lineage)| **of_lineage);
        match below {
            Some((below, _)) if of_lineage => {
                broken(Invariant::I7, format!("manifest {version} was deleted before {below}: a hole in the lineage"))
            }
            _ => Ok(()),
        }
    }

    /// Somebody was told that a manifest of this content is committed.
    pub(crate) fn committed(&self, told: &ShardManifest) -> Verdict {
        let index = (told.version.get() as usize).checked_sub(1);
        let real = index.and_then(|index| self.lineage.get(index));
        let id = |m: &ShardManifest| m.extension.as_ref().map(|x| x.commit_id);
        match real.is_some_and(|real| id(real) == id(told)) {
            true => Ok(()),
            false => {
                let what = format!("manifest {} was acknowledged, and is not part of the lineage", told.version);
                broken(Invariant::I6, what)
            }
        }
    }

    /// Somebody of epoch `epoch` and this claim was told that a successor exists.
    pub(crate) fn fenced(&self, epoch: u64, recorded: &ShardManifest) -> Verdict {
        let writer = |m: &ShardManifest| m.extension.as_ref().map(|x| x.writer_id);
        match self.lineage.last() {
            Some(latest) if latest.writer_epoch.get() == epoch && writer(latest) == writer(recorded) => {
                broken(Invariant::I3, format!("the owner, of epoch {epoch}, was told that it is fenced"))
            }
            _ => Ok(()),
        }
    }
}
