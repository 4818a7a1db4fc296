//! Garbage collection of one shard (protocol section 8): what the latest manifest, a live checkpoint and a fence do
//! not need is deleted. `plan` is the pure decision, `look` gathers what it decides on, `run` executes it, and
//! `background` lets a writer's own shard be collected beside it.
//!
//! Two steps, always: the manifest that no longer lists a thing is committed, its lineage is checked, and then the
//! thing is deleted. So a plan stays true however old it gets: positions below R are never needed again, a generation
//! below the current one is never published again, and whatever a later checkpoint pins is above both. A collector may
//! die or stall anywhere, and any number of them may run at once.

mod background;
mod leftovers;
mod look;
mod plan;
mod run;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::Error;
use crate::ids::{Generation, ManifestVersion};

pub use background::{BackgroundGc, GcConfig, GcStats};
pub(crate) use leftovers::find as find_leftovers;
pub(crate) use look::generation_of;
pub use look::look;
pub use plan::{
    CheckpointObject, Deletion, DirectoryFound, Found, Inputs, KEEP_MANIFESTS, LeftoverFound, LeftoverOf, MANIFEST_AGE,
    Plan, plan,
};
pub use run::{collect, dry_run};

/// How patient a collector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcOptions {
    /// What was needed within this time is left for readers that started then, and no younger object is deleted. What a
    /// checkpoint held was needed until it expired; one that is deleted asks for the contrary, and ends its protection
    /// at once. A courtesy, by the clocks of this process and of the store: no safety rests on it. Default 1 hour.
    pub min_age: Duration,
    /// How long fences are kept. Default `None`: for ever, so that a writer may stall for any time at all and still
    /// cannot acknowledge a row that is lost. **A duration is a timing assumption**: it asserts that no process of
    /// yours stays stopped for longer between two instructions and then goes on. A fence is an object of under 1 KiB
    /// for each takeover of a writer that did not close.
    pub fence_retention: Option<Duration>,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { min_age: Duration::from_secs(3600), fence_retention: None }
    }
}

/// What the base table says about one shard. The default, nothing was merged, is that of a log without a base table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaseProgress {
    /// The highest generation that the base table's own record says it holds.
    pub merged: Generation,
    /// For each index of the base table the highest generation that it covers; zero for none.
    pub indexes: BTreeMap<String, Generation>,
}

impl BaseProgress {
    /// Whether the base table holds a generation.
    pub(crate) fn has(&self, generation: Generation) -> bool {
        generation <= self.merged
    }

    /// The indexes that do not cover a generation yet: a search by them needs its SSTable.
    pub(crate) fn lagging_behind(&self, generation: Generation) -> impl Iterator<Item = &str> {
        self.indexes.iter().filter(move |(_, covered)| **covered < generation).map(|(name, _)| name.as_str())
    }
}

/// How far a collector is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcProgress {
    /// Objects that are deleted by now.
    pub objects: u64,
    /// Objects that the plan deletes.
    pub of_objects: u64,
}

/// The kinds of things that are collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GcKind {
    /// An entry of the log.
    WalEntry,
    /// The folder of an SSTable that was merged, or that nobody published.
    SsTable,
    /// A checkpoint's object.
    Checkpoint,
    /// An old manifest.
    Manifest,
    /// On `file://`: what a process that was killed in the middle of a PUT left behind.
    Leftover,
}

impl GcKind {
    /// All of them, in the order in which they are deleted.
    pub const ALL: [Self; 5] = [Self::WalEntry, Self::SsTable, Self::Checkpoint, Self::Manifest, Self::Leftover];

    /// Its name, for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::WalEntry => "wal_entries",
            Self::SsTable => "sstables",
            Self::Checkpoint => "checkpoints",
            Self::Manifest => "manifests",
            Self::Leftover => "leftovers",
        }
    }
}

/// How much was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Objects (of an SSTable: its files).
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What could have gone by its place and was kept, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// Log entries at or below R that are fences.
    pub fences: u64,
    /// Log entries below R that a checkpoint holds.
    pub entries_in_checkpoints: u64,
    /// Log entries below R that were needed, or written, within `min_age`.
    pub young_entries: u64,
    /// SSTable folders that a checkpoint holds and the manifest does not.
    pub sstables_in_checkpoints: u64,
    /// SSTable folders that were needed, or written, within `min_age`.
    pub young_sstables: u64,
    /// Merged SSTables, by the index of the base table that does not cover them yet.
    pub lagging_indexes: BTreeMap<String, u64>,
    /// Checkpoints that are live, or were within `min_age`.
    pub live_checkpoints: u64,
    /// Objects in `checkpoints/` that are not listed and cannot be decoded.
    pub damaged_checkpoints: u64,
    /// Manifests older than the latest.
    pub manifests: u64,
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcReport {
    /// Why the shard was not collected at all, if it was not.
    pub refused: Option<Refusal>,
    /// The manifest version that dropped something; `None` if nothing was to be dropped.
    pub version: Option<ManifestVersion>,
    /// Generations of merged SSTables that the manifest dropped.
    pub dropped_sstables: Vec<Generation>,
    /// Checkpoints that it dropped: they expired at least `min_age` ago.
    pub expired_checkpoints: u64,
    /// Fences that it dropped; only with [`fence_retention`](GcOptions::fence_retention).
    pub dropped_fences: u64,
    /// What was deleted, by kind.
    pub freed: BTreeMap<GcKind, Freed>,
    /// What was kept.
    pub kept: Kept,
}

impl GcReport {
    /// How much of a kind was deleted.
    pub fn of(&self, kind: GcKind) -> Freed {
        self.freed.get(&kind).copied().unwrap_or_default()
    }

    /// How much was deleted in all.
    pub fn total(&self) -> Freed {
        let sum = |a: Freed, b: &Freed| Freed { objects: a.objects + b.objects, bytes: a.bytes + b.bytes };
        self.freed.values().fold(Freed::default(), sum)
    }

    pub(crate) fn add(&mut self, kind: GcKind, objects: u64, bytes: u64) {
        let freed = self.freed.entry(kind).or_default();
        freed.objects += objects;
        freed.bytes += bytes;
    }
}

/// Why a shard is not collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no manifest.
    NoShard,
    /// Another engine wrote to it, and what its log must keep is not known: `adopt` finds out.
    Unadopted,
    /// It is being deleted, which takes care of its objects.
    Deleted,
    /// It is a clone that is not finished.
    Unfinished,
    /// The manifest, or a checkpoint, has fields that this Fencepost does not know, those of a newer one or of a newer
    /// Lance: they may name what must stay.
    NewerFormat,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoShard => "it has no manifest",
            Self::Unadopted => "another engine wrote to it; run `fencepost adopt` first",
            Self::Deleted => "it is being deleted",
            Self::Unfinished => "it is a clone that is not finished",
            Self::NewerFormat => {
                "a newer Fencepost or Lance wrote to it what this Fencepost does not know; collect it with a newer one"
            }
        })
    }
}

/// Objects that one request may delete.
pub(crate) const DELETES_AT_ONCE: usize = 1000;

/// The error after too many rounds.
pub(crate) fn contention(shard: crate::ids::ShardId, rounds: usize) -> Error {
    Error::Contention { shard, attempts: rounds }
}
