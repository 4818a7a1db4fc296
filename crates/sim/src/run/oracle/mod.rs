//! The oracle: what was promised, what is there, and the invariants I1 to I9 between the two.
//!
//! It sees every change of the true store the moment it happens, and everything that the workload was told. It states
//! the invariants by their effect (rows that are lost, doubled, in the wrong order), not by the rules that uphold
//! them, and it reads manifests and entries from the store's bytes, past every fault.

mod checkpoints;
mod log;
mod manifests;
pub(crate) mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::SystemTime;

use bytes::Bytes;
use fencepost_wal::ShardManifest;
use uuid::Uuid;

use super::coverage::Coverage;
use super::habits::Kind;
use super::world::{EVENTS, Event, ObjectKind, WAL_STORES};
pub(crate) use log::ids_of;
use log::{LogEntry, replay};
use rows::Rows;

/// What a violation is one of: the protocol's invariants, and the honesty of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Invariant {
    /// An acknowledged entry is returned by every later replay, or is in an SSTable.
    I1,
    /// No entry is replayed twice, no append appears twice.
    I2,
    /// After a takeover is recorded, no older epoch acknowledges what I1 does not cover; who is told that it is fenced
    /// has a successor.
    I3,
    /// Live entries' epochs never decrease; of a tenure's entries a replay returns a prefix.
    I4,
    /// R never decreases and never covers a row that is nowhere else.
    I5,
    /// Exactly one lineage of manifests.
    I6,
    /// What is needed is not deleted.
    I7,
    /// Rows follow the order of their acknowledgements.
    I8,
    /// A checkpoint has exactly its moment's rows.
    I9,
    /// An answer that is not true: rows "not written" that are there, a hole where none is.
    Truth,
    /// Nothing goes on although nothing is in the way.
    Liveness,
    /// The code under test panicked.
    Panic,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.what)
    }
}

pub(crate) type Verdict = Result<(), Violation>;

/// The table's own store and the WAL stores.
const STORES: usize = 1 + WAL_STORES.len();

/// The number of the store that a manifest says the log is in.
fn store_of(manifest: &ShardManifest) -> usize {
    let root = manifest.wal_store().and_then(|wal_store| wal_store.url.rsplit('/').next());
    WAL_STORES.iter().position(|store| Some(*store) == root).map_or(0, |n| n + 1)
}

fn broken(invariant: Invariant, what: String) -> Verdict {
    Err(Violation { invariant, what })
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Oracle {
    kind: Kind,
    /// The stores' entries, decoded: the table's own, and the WAL stores.
    entries: [BTreeMap<u64, LogEntry>; STORES],
    sstables: BTreeMap<String, Vec<u64>>,
    /// Manifests that exist, by version: whether it is the one of the lineage.
    present: BTreeMap<u64, bool>,
    /// Every manifest that was the newest when it was created; version 1 first.
    lineage: Vec<ShardManifest>,
    pub(crate) rows: Rows,
    /// The live rows of positions that R has passed, as they were then.
    settled: BTreeMap<u64, Vec<u64>>,
    /// Rows that were merged into the base table, whose record says up to which generation.
    base: Vec<u64>,
    merged: u64,
    /// Checkpoints whose deletion was asked for.
    given_up: BTreeSet<Uuid>,
    /// The time of day.
    now: SystemTime,
    /// Positions that the user asked to truncate at.
    asked: BTreeSet<u64>,
    events: [u64; EVENTS],
}

impl Oracle {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            entries: Default::default(),
            sstables: BTreeMap::new(),
            present: BTreeMap::new(),
            lineage: Vec::new(),
            rows: Rows::default(),
            settled: BTreeMap::new(),
            base: Vec::new(),
            merged: 0,
            given_up: BTreeSet::new(),
            now: SystemTime::UNIX_EPOCH,
            asked: BTreeSet::new(),
            events: [0; EVENTS],
        }
    }

    pub(crate) fn events(&self) -> [u64; EVENTS] {
        self.events
    }

    fn happened(&mut self, event: Event) {
        if let Some(count) = self.events.get_mut(event as usize) {
            *count += 1;
        }
    }

    /// The clock goes on.
    pub(crate) fn tick(&mut self, now: SystemTime) {
        self.now = now;
    }

    fn reached(&mut self, event: Event, number: u64) {
        if let Some(highest) = self.events.get_mut(event as usize) {
            *highest = number.max(*highest);
        }
    }

    /// R of the latest manifest, and the epoch that a replay from there starts with.
    pub(crate) fn replay_after(&self) -> u64 {
        self.lineage.last().map_or(0, |m| m.replay_after.get())
    }

    /// The version of the latest manifest.
    pub(crate) fn newest_version(&self) -> u64 {
        self.lineage.len() as u64
    }

    /// The epoch that owns the shard.
    pub(crate) fn epoch(&self) -> Option<u64> {
        self.lineage.last().map(|m| m.writer_epoch.get())
    }

    /// The number of the WAL store that may be wiped now, as the code under test says of the newest manifest.
    pub(crate) fn wal_store_to_wipe(&self) -> Option<usize> {
        let latest = self.lineage.last().filter(|m| m.wal_store_may_be_wiped())?;
        Some(store_of(latest)).filter(|store| *store > 0)
    }

    fn log_in(&self, store: usize) -> &BTreeMap<u64, LogEntry> {
        self.entries.get(store).unwrap_or(&self.entries[0])
    }

    /// The entries of the store that the newest manifest names.
    fn log(&self) -> &BTreeMap<u64, LogEntry> {
        self.log_in(self.lineage.last().map_or(0, store_of))
    }

    fn start(&self) -> (u64, u64) {
        self.lineage.last().map_or((0, 0), |m| (m.replay_after.get(), m.replay_after_epoch().get()))
    }

    /// An object came into being.
    pub(crate) fn created(
        &mut self,
        store: usize,
        kind: &ObjectKind,
        bytes: &Bytes,
        coverage: &mut Coverage,
    ) -> Verdict {
        match kind {
            ObjectKind::Entry(position) => self.entry_created(store, *position, bytes, coverage)?,
            ObjectKind::Manifest(version) => self.manifest_created(*version, bytes, coverage)?,
            ObjectKind::SsTable(folder) => {
                self.sstables.insert(folder.clone(), rows::decode(bytes));
                return Ok(());
            }
            _ => return Ok(()),
        }
        self.check_rows()
    }

    fn entry_created(&mut self, store: usize, position: u64, bytes: &Bytes, coverage: &mut Coverage) -> Verdict {
        let entry = match LogEntry::decode(bytes) {
            Ok(entry) => entry,
            Err(e) => return broken(Invariant::Truth, format!("entry {position} cannot be read: {e}")),
        };
        let (replay_after, epoch) = self.start();
        if position <= replay_after {
            coverage.count("bytes in a hole that was collected");
        }
        let before = self.log_in(store).range(replay_after + 1..).take_while(|(at, _)| **at < position);
        let top = before.map(|(_, e)| e.epoch).fold(epoch, u64::max);
        if entry.epoch < top && position > replay_after {
            coverage.count("dead entries");
        }
        if entry.is_sentinel {
            coverage.count("sentinels");
        }
        if let Some(entries) = self.entries.get_mut(store) {
            entries.insert(position, entry);
        }
        Ok(())
    }

    /// An object was deleted.
    pub(crate) fn deleted(&mut self, store: usize, kind: &ObjectKind, coverage: &mut Coverage) -> Verdict {
        match kind {
            ObjectKind::Entry(position) => {
                if let Some(entries) = self.entries.get_mut(store) {
                    entries.remove(position);
                }
                coverage.count("entries collected");
                self.happened(Event::Collected);
                self.reached(Event::CollectedUpTo, *position);
                if *position > self.replay_after() {
                    let r = self.replay_after();
                    return broken(Invariant::I7, format!("entry {position} was deleted, and R is {r}"));
                }
                self.entry_is_in_no_checkpoint(store, *position)?;
            }
            ObjectKind::Manifest(version) => self.manifest_deleted(*version, coverage)?,
            ObjectKind::Checkpoint(_) => {
                self.happened(Event::CheckpointDeleted);
                return Ok(());
            }
            ObjectKind::SsTable(folder) => {
                coverage.count("SSTables collected");
                self.sstable_is_in_no_checkpoint(folder)?;
                self.sstables.remove(folder);
            }
            _ => return Ok(()),
        }
        self.check_rows()
    }

    /// A line for the trace about what is created.
    pub(crate) fn describe(&self, kind: &ObjectKind, bytes: &Bytes) -> String {
        match kind {
            ObjectKind::Entry(_) => match LogEntry::decode(bytes) {
                Ok(entry) if entry.is_sentinel => format!(" (epoch {}, sentinel)", entry.epoch),
                Ok(entry) => format!(" (epoch {}, rows {:?})", entry.epoch, entry.rows),
                Err(_) => String::new(),
            },
            ObjectKind::Manifest(version) => match manifests::decode(*version, bytes) {
                Ok(m) => format!(
                    " (epoch {}, R {} of epoch {}, {} SSTables, fences {:?})",
                    m.writer_epoch,
                    m.replay_after,
                    m.replay_after_epoch(),
                    m.sstables.len(),
                    m.fences().iter().map(|f| f.position.get()).collect::<Vec<_>>()
                ),
                Err(_) => String::new(),
            },
            ObjectKind::SsTable(_) => format!(" (rows {:?})", rows::decode(bytes)),
            _ => String::new(),
        }
    }

    /// The live rows at a position, as a fresh reader finds them or would have found them before R passed it.
    pub(crate) fn live_at(&self, position: u64) -> &[u64] {
        let (replay_after, epoch) = self.start();
        if position <= replay_after {
            return self.settled.get(&position).map_or(&[], Vec::as_slice);
        }
        let met = replay(self.log(), replay_after, epoch).find(|met| met.position == position);
        met.filter(|met| !met.is_dead).map_or(&[], |met| met.entry.rows.as_slice())
    }

    /// What the base table has.
    pub(crate) fn merged(&self) -> u64 {
        self.merged
    }

    /// One commit of the base table takes in the next generation, if a manifest lists it.
    pub(crate) fn merge(&mut self, listed: &ShardManifest) -> Verdict {
        let next = self.merged + 1;
        let Some(sstable) = listed.sstables.iter().find(|s| s.generation.get() == next) else {
            return Ok(());
        };
        match self.sstables.get(&sstable.path) {
            Some(rows) => self.base.extend_from_slice(rows),
            None => return broken(Invariant::I7, format!("SSTable {} is gone, and is to be merged", sstable.path)),
        }
        self.merged = next;
        self.check_rows()
    }

    /// The user asks for everything up to here to be forgotten.
    pub(crate) fn truncation_asked(&mut self, position: u64) {
        self.asked.insert(position);
    }

    /// I1 to I4, I8: what a fresh reader finds now, against what was promised.
    pub(crate) fn check_rows(&mut self) -> Verdict {
        let Some(latest) = self.lineage.last() else {
            return Ok(());
        };
        let mut found = self.base.clone();
        for sstable in latest.sstables.iter().filter(|s| s.generation.get() > self.merged) {
            match self.sstables.get(&sstable.path) {
                Some(rows) => found.extend_from_slice(rows),
                None => {
                    let what = format!("SSTable {} of manifest {} is gone", sstable.path, latest.version);
                    return broken(Invariant::I7, what);
                }
            }
        }
        let (replay_after, epoch) = (latest.replay_after.get(), latest.replay_after_epoch().get());
        for met in replay(self.log(), replay_after, epoch).filter(|met| !met.is_dead) {
            found.extend_from_slice(&met.entry.rows);
        }
        self.rows.check(&found)
    }
}
