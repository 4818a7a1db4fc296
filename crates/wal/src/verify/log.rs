//! Judges the log: every entry by itself, and all of them by the newest manifest.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use uuid::Uuid;

use super::kinds::*;
use super::look::{Content, FoundEntry, Look};
use super::manifests::owners;
use super::{Findings, MAX_NAMED, VerifyCounts};
use crate::ids::{Epoch, Position};
use crate::liveness::MAX_IN_FLIGHT;
use crate::manifest::ShardManifest;
use crate::shard::Shard;

/// The log of one look.
struct Log<'a> {
    shard: &'a Shard,
    look: &'a Look,
    entries: &'a BTreeMap<u64, Content<FoundEntry>>,
    manifest: &'a ShardManifest,
}

/// Judges the entries.
pub(super) fn judge(
    shard: &Shard,
    look: &Look,
    history: &[&ShardManifest],
    found: &mut Findings,
    counts: &mut VerifyCounts,
) {
    judge_each(shard, look, history, found, counts);
    // Without the newest manifest nothing says which entries are needed.
    let Some(manifest) = look.newest() else {
        return;
    };
    let log = Log { shard, look, entries: &look.entries, manifest };
    log.judge_fences(found);
    log.judge_replay_point(history, found);
    log.judge_live(found, counts);
}

/// What each entry must be, wherever it stands.
fn judge_each(shard: &Shard, look: &Look, history: &[&ShardManifest], found: &mut Findings, counts: &mut VerifyCounts) {
    let path = |position: &u64| look.entry_path(shard, *position);
    let mut writers: BTreeMap<Epoch, Option<Uuid>> =
        owners(history).into_iter().map(|(epoch, id)| (epoch, Some(id))).collect();
    for (position, entry) in &look.entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(reason) => {
                found.add(ENTRY_DAMAGED, path(position), reason);
                continue;
            }
        };
        counts.sentinels += u64::from(entry.is_sentinel);
        if let Some(manifest) = look.newest().filter(|manifest| entry.epoch > manifest.writer_epoch) {
            let detail = format!("it is of epoch {}, the shard's writer of {}", entry.epoch, manifest.writer_epoch);
            found.add(EPOCH_UNCLAIMED, path(position), detail);
        }
        // A sentinel of nobody stands in a clone's log where there were no rows, in the epoch of the source.
        if entry.is_sentinel && entry.writer_id == Some(Uuid::nil()) {
            continue;
        }
        match writers.entry(entry.epoch) {
            Slot::Vacant(slot) => drop(slot.insert(entry.writer_id)),
            Slot::Occupied(slot) if *slot.get() != entry.writer_id => {
                let name = |id: Option<Uuid>| id.map_or("another engine".to_owned(), |id| id.to_string());
                let (owner, other) = (name(*slot.get()), name(entry.writer_id));
                found.add(EPOCH_SHARED, path(position), format!("epoch {} of {owner} and of {other}", entry.epoch));
            }
            Slot::Occupied(_) => {}
        }
    }
}

impl Log<'_> {
    fn path(&self, position: u64) -> String {
        self.look.entry_path(self.shard, position).to_string()
    }

    fn readable(&self, position: u64) -> Option<&FoundEntry> {
        self.entries.get(&position)?.as_ref().ok()
    }

    fn r(&self) -> u64 {
        self.manifest.replay_after.get()
    }

    /// I7: a stalled writer has to collide with these for as long as the shard lives.
    fn judge_fences(&self, found: &mut Findings) {
        let here = self.manifest.fences().iter().filter(|fence| fence.position.get() > self.look.after());
        for fence in here {
            let position = fence.position.get();
            match self.entries.get(&position) {
                None => {
                    let detail = format!("version {} lists it, by epoch {}", self.manifest.version, fence.epoch);
                    found.add(FENCE_MISSING, self.path(position), detail);
                }
                Some(Ok(entry)) if entry.epoch != fence.epoch => {
                    let detail = format!("an entry of epoch {} stands for a fence of {}", entry.epoch, fence.epoch);
                    found.add(FENCE_REPLACED, self.path(position), detail);
                }
                Some(_) => {}
            }
        }
    }

    /// The entry at R is never collected. If it is live, its epoch is the highest of all live ones up to there.
    fn judge_replay_point(&self, history: &[&ShardManifest], found: &mut Findings) {
        let (r, start) = (self.r(), self.manifest.replay_after_epoch());
        if r <= self.look.after() {
            return;
        }
        let entry = match self.entries.get(&r) {
            Some(Ok(entry)) => entry,
            Some(Err(_)) => return,
            None => {
                let detail = format!("version {} has R = {r}", self.manifest.version);
                return found.add(REPLAY_POINT_MISSING, self.path(r), detail);
            }
        };
        let object = self.shard.manifest_path(self.manifest.version);
        // After another engine it is a lower bound (section 11).
        let ours = !self.entries.values().flatten().any(FoundEntry::is_foreign)
            && history.iter().all(|manifest| manifest.collectable().is_ok());
        if entry.epoch > start && ours {
            let detail = format!("replay_after_epoch is {start}, the entry at R = {r} is of epoch {}", entry.epoch);
            return found.add(REPLAY_EPOCH_WRONG, object, detail);
        }
        // Too high, entries that were acknowledged count as dead. Something at or below R has to bear it out, unless
        // the entry at R is dead itself and what proved it was collected; then no entry behind depends on it.
        let below = self.entries.range(..=r).filter_map(|(_, entry)| entry.as_ref().ok()).map(|entry| entry.epoch);
        let fences = self.manifest.fences().iter().filter(|fence| fence.position.get() <= r).map(|fence| fence.epoch);
        let borne_out = below.chain(fences).max().unwrap_or_default();
        let next = self.readable(r + 1);
        if borne_out < start && next.is_some_and(|next| next.rows > 0 && next.epoch < start) {
            let detail = format!(
                "replay_after_epoch is {start}, no entry up to R = {r} is of an epoch above {borne_out}, and rows \
                 behind R would count as dead"
            );
            found.add(REPLAY_EPOCH_WRONG, object, detail);
        }
    }

    /// The entries above R: what must be there, where the log ends, and what stands behind its end.
    fn judge_live(&self, found: &mut Findings, counts: &mut VerifyCounts) {
        let landed = self.manifest.landed_up_to().get();
        let missing = (self.r()..landed).map(|n| n + 1).filter(|n| !self.entries.contains_key(n));
        for position in missing.take(MAX_NAMED) {
            let detail = format!("version {} says that everything up to {landed} had landed", self.manifest.version);
            found.add(LOG_HOLE, self.path(position), detail);
        }
        let mut end = self.r().max(landed).saturating_add(1);
        while self.entries.contains_key(&end) {
            end += 1;
        }
        counts.tail = Position::new(end - 1);
        self.judge_up_to(end, found, counts);

        let highest = self.entries.last_key_value().map_or(0, |(position, _)| *position);
        if highest > end.saturating_add(MAX_IN_FLIGHT) {
            let detail = format!("the log would end here, but {} is there", self.path(highest));
            return found.add(LOG_HOLE, self.path(end), detail);
        }
        for (position, entry) in self.entries.range(end..) {
            let Ok(entry) = entry else { continue };
            match entry.is_foreign() && entry.rows > 0 {
                true => found.add(STRANDED, self.path(*position), format!("it stands behind the missing entry {end}")),
                false => found.add(BEYOND_THE_END, self.path(*position), format!("the log ends before {end}")),
            }
        }
    }

    fn judge_up_to(&self, end: u64, found: &mut Findings, counts: &mut VerifyCounts) {
        let mut top = self.manifest.replay_after_epoch();
        let mut columns: Option<&str> = None;
        for (position, entry) in self.entries.range(self.r().saturating_add(1)..end) {
            let Ok(entry) = entry else { continue };
            if entry.epoch < top {
                counts.dead += 1;
                match entry.is_foreign() && entry.rows > 0 {
                    true => found.add(STRANDED, self.path(*position), format!("epoch {} was replaced", entry.epoch)),
                    false => found.add(DEAD_ENTRY, self.path(*position), format!("its epoch is {}", entry.epoch)),
                }
                continue;
            }
            top = entry.epoch;
            if entry.is_sentinel {
                let listed = self.manifest.fences().iter().any(|fence| fence.position.get() == *position);
                if !listed && entry.epoch < self.manifest.writer_epoch {
                    found.add(UNLISTED_SENTINEL, self.path(*position), format!("its epoch is {}", entry.epoch));
                }
                continue;
            }
            // Lance stamps its entries: those of a generation that was published are in an SSTable.
            if entry.generation.is_some_and(|generation| generation < self.manifest.current_generation) {
                continue;
            }
            counts.rows += entry.rows;
            if let Some(misfit) = &entry.misfit {
                found.add(ENTRY_MISFIT, self.path(*position), misfit);
            }
            match columns.replace(&entry.columns) {
                Some(before) if before != entry.columns => {
                    let detail = format!("it has ({}), the entry before ({before})", entry.columns);
                    found.add(COLUMNS_CHANGE, self.path(*position), detail);
                }
                _ => {}
            }
        }
    }
}
