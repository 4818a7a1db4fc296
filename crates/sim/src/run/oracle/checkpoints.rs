//! I7 and I9 for checkpoints: what a live one names is there, and is what it had at its moment.

use std::collections::BTreeSet;

use fencepost_wal::ShardManifest;
use fencepost_wal::checkpoint::Checkpoint;
use uuid::Uuid;

use super::{Invariant, Oracle, Verdict, broken, store_of};
use crate::run::coverage::Coverage;

impl Oracle {
    /// The manifest that a checkpoint pins.
    fn pinned(&self, checkpoint: &Checkpoint) -> Option<&ShardManifest> {
        self.lineage.get((checkpoint.version.get() as usize).checked_sub(1)?)
    }

    fn live_checkpoints(&self) -> impl Iterator<Item = &Checkpoint> {
        let latest = self.lineage.last().map(|m| m.checkpoints()).unwrap_or_default();
        latest.iter().filter(|c| c.is_live(self.now))
    }

    pub(super) fn entry_is_in_no_checkpoint(&self, store: usize, position: u64) -> Verdict {
        let holds = |c: &&Checkpoint| {
            let is_in_it = self.pinned(c).is_some_and(|pinned| store_of(pinned) == store);
            is_in_it && c.replay_after.get() < position && position <= c.tail.get()
        };
        match self.live_checkpoints().find(holds) {
            Some(c) => broken(Invariant::I7, format!("entry {position} was deleted, which checkpoint {} holds", c.id)),
            None => Ok(()),
        }
    }

    pub(super) fn sstable_is_in_no_checkpoint(&self, folder: &str) -> Verdict {
        let names =
            |c: &&Checkpoint| self.pinned(c).is_some_and(|pinned| pinned.sstables.iter().any(|s| s.path == folder));
        match self.live_checkpoints().find(names) {
            Some(c) => broken(Invariant::I7, format!("SSTable {folder} was deleted, which checkpoint {} holds", c.id)),
            None => Ok(()),
        }
    }

    /// A manifest lists checkpoints: those that are new must be whole, none that is live may vanish by itself.
    pub(super) fn checkpoints_follow(
        &mut self,
        parent: &ShardManifest,
        next: &ShardManifest,
        coverage: &mut Coverage,
    ) -> Verdict {
        let listed = |m: &ShardManifest| m.checkpoints().iter().map(|c| c.id).collect::<BTreeSet<_>>();
        let after = listed(next);
        for c in next.checkpoints() {
            let was = parent.checkpoints().iter().find(|old| old.id == c.id);
            if was.is_none_or(|was| !was.is_live(self.now) && c.is_live(self.now)) {
                self.is_whole(c)?;
                coverage.count(if was.is_none() { "checkpoints" } else { "checkpoints revived" });
            }
        }
        for c in parent.checkpoints().iter().filter(|c| !after.contains(&c.id)) {
            coverage.count("checkpoints taken off");
            if c.is_live(self.now) && !self.given_up.contains(&c.id) {
                let what = format!("manifest {} takes off checkpoint {}, which is live", next.version, c.id);
                return broken(Invariant::I7, what);
            }
        }
        Ok(())
    }

    /// Everything that a checkpoint names is there.
    fn is_whole(&self, c: &Checkpoint) -> Verdict {
        let lost = |what: String| broken(Invariant::I9, format!("checkpoint {} is live, and {what} is gone", c.id));
        let Some(pinned) = self.pinned(c) else {
            return lost(format!("the manifest {} that it pins", c.version));
        };
        if let Some(gone) = pinned.sstables.iter().find(|s| !self.sstables.contains_key(&s.path)) {
            return lost(format!("SSTable {}", gone.path));
        }
        let mut positions = c.replay_after.get() + 1..=c.tail.get();
        match positions.find(|at| !self.log_in(store_of(pinned)).contains_key(at)) {
            Some(gone) => lost(format!("entry {gone}")),
            None => Ok(()),
        }
    }

    /// Rows that a checkpoint that is begun now must have.
    pub(crate) fn rows_to_pin(&self) -> Vec<u64> {
        self.rows.kept()
    }

    /// Somebody was told that a checkpoint exists; `promised` were acknowledged before it was begun.
    pub(crate) fn pinned_rows(&self, c: &Checkpoint, promised: &[u64]) -> Verdict {
        if !c.is_live(self.now) || self.given_up.contains(&c.id) {
            return Ok(());
        }
        self.is_whole(c)?;
        let mut held: BTreeSet<u64> = self.base.iter().copied().collect();
        if let Some(pinned) = self.pinned(c) {
            held.extend(pinned.sstables.iter().filter_map(|s| self.sstables.get(&s.path)).flatten());
        }
        held.extend((c.replay_after.get() + 1..=c.tail.get()).flat_map(|at| self.live_at(at)));
        match promised.iter().find(|id| !held.contains(id) && !self.rows.is_consumed(**id)) {
            Some(id) => {
                let what = format!("checkpoint {} lacks row {id}, acknowledged before it was begun", c.id);
                broken(Invariant::I9, what)
            }
            None => Ok(()),
        }
    }

    /// A user asks for a checkpoint to be deleted.
    pub(crate) fn deletion_asked(&mut self, id: Uuid) {
        self.given_up.insert(id);
    }

    /// Somebody was told that a checkpoint lives on.
    pub(crate) fn refreshed(&self, c: &Checkpoint) -> Verdict {
        match self.given_up.contains(&c.id) || !c.is_live(self.now) {
            true => Ok(()),
            false => self.is_whole(c),
        }
    }
}
