//! What was promised, what is there, and the invariants between the two. It sees the bytes of the store, past every
//! fault, and all that writers were told; it states the invariants by what happens to rows, not by the rules.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use bytes::Bytes;
use fencepost_wal::raw::{decode_entry, decode_manifest};
use fencepost_wal::{ManifestVersion, Outcome, Position, ShardId, ShardManifest};

/// `Err`: which invariant is broken, and how.
pub(super) type Verdict = Result<(), String>;

/// One version of a row as a log entry or an SSTable has it; without an id a tombstone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) key: i64,
    pub(super) id: Option<usize>,
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(id) => write!(f, "{}:{id}", self.key),
            None => write!(f, "{}:deleted", self.key),
        }
    }
}

pub(super) fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let column = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>();
    let dead = batch.column_by_name("_tombstone").unwrap().as_boolean();
    let (keys, ids) = (column("key"), column("id"));
    let row = |n: usize| Row { key: keys.value(n), id: (!dead.value(n)).then(|| ids.value(n) as usize) };
    (0..batch.num_rows()).map(row).collect()
}

/// The stand-in for an SSTable's files.
pub(super) fn encode(rows: &[Row]) -> Bytes {
    let id = |row: &Row| row.id.map_or(u64::MAX, |id| id as u64);
    rows.iter().flat_map(|row| [row.key.to_le_bytes(), id(row).to_le_bytes()]).flatten().collect::<Vec<u8>>().into()
}

fn decode(bytes: &Bytes) -> Vec<Row> {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let row = |bytes: &[u8]| Row {
        key: word(&bytes[..8]) as i64,
        id: Some(word(&bytes[8..])).filter(|id| *id != u64::MAX).map(|id| id as usize),
    };
    bytes.chunks_exact(16).map(row).collect()
}

/// What the caller of a put or a delete was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    Open,
    /// Acknowledged, at this count of all events.
    Kept(u64),
    /// It is not written and never will be.
    Refused,
}

/// A row that was put, or a key that was deleted. Their ids are given in the order of submission.
#[derive(Debug)]
struct Change {
    tenure: usize,
    key: i64,
    deletes: bool,
    submitted: u64,
    promise: Promise,
}

impl Change {
    fn kept(&self) -> Option<u64> {
        match self.promise {
            Promise::Kept(at) => Some(at),
            _ => None,
        }
    }
}

struct Entry {
    epoch: u64,
    rows: Vec<Row>,
}

/// Whose promises a reader must find kept.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reader {
    /// One of storage: everybody's.
    Fresh,
    /// The writer of this tenure: its own, and all that were made before this event.
    Writer { tenure: usize, opened: u64 },
}

pub(super) struct Oracle {
    keyed: bool,
    shard: ShardId,
    entries: BTreeMap<u64, Entry>,
    sstables: HashMap<String, Vec<Row>>,
    latest: Option<ShardManifest>,
    changes: Vec<Change>,
    tenures: usize,
    clock: u64,
}

impl Oracle {
    pub(super) fn new(keyed: bool, shard: ShardId) -> Self {
        Self {
            keyed,
            shard,
            entries: BTreeMap::new(),
            sstables: HashMap::new(),
            latest: None,
            changes: Vec::new(),
            tenures: 0,
            clock: 0,
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.clock
    }

    pub(super) fn begin_tenure(&mut self) -> usize {
        self.tenures += 1;
        self.tenures - 1
    }

    /// Somebody is about to put, or delete, these keys.
    pub(super) fn submit(&mut self, tenure: usize, keys: &[i64], deletes: bool) -> Vec<usize> {
        self.clock += 1;
        let first = self.changes.len();
        let change = |key: &i64| Change { tenure, key: *key, deletes, submitted: self.clock, promise: Promise::Open };
        self.changes.extend(keys.iter().map(change));
        (first..self.changes.len()).collect()
    }

    pub(super) fn kept(&mut self, ids: &[usize]) {
        self.clock += 1;
        for id in ids {
            self.changes[*id].promise = Promise::Kept(self.clock);
        }
    }

    pub(super) fn failed(&mut self, ids: &[usize], outcome: Outcome) {
        match outcome {
            Outcome::Written => self.kept(ids),
            Outcome::Unknown => {}
            Outcome::NotWritten => ids.iter().for_each(|id| self.changes[*id].promise = Promise::Refused),
        }
    }

    /// An object came into being, or was written again.
    pub(super) fn created(&mut self, object: &Object, bytes: &Bytes) -> Verdict {
        match object {
            Object::Entry(position) => {
                let entry = decode_entry("entry", Position::new(*position), bytes).map_err(|e| e.to_string())?;
                let rows = entry.batches.iter().flat_map(rows_of).collect();
                self.entries.insert(*position, Entry { epoch: entry.writer_epoch.get(), rows });
            }
            Object::SsTable(folder) => drop(self.sstables.insert(folder.clone(), decode(bytes))),
            Object::Manifest(version) => {
                let version = ManifestVersion::new(*version);
                let next = decode_manifest("manifest", bytes, self.shard, version).map_err(|e| e.to_string())?;
                self.published(&next)?;
                self.latest = Some(next);
            }
            Object::Other => return Ok(()),
        }
        self.check_storage()
    }

    pub(super) fn deleted(&mut self, object: &Object) -> Verdict {
        match object {
            Object::Entry(position) => {
                self.entries.remove(position);
                let replay_after = self.latest.as_ref().map_or(0, |m| m.replay_after.get());
                if *position > replay_after {
                    return Err(format!("I7: entry {position} was deleted, and R is {replay_after}"));
                }
            }
            Object::SsTable(folder) => drop(self.sstables.remove(folder)),
            Object::Manifest(version) => return Err(format!("I6: nobody prunes here, and manifest {version} is gone")),
            Object::Other => {}
        }
        self.check_storage()
    }

    /// I5, I6: what a manifest covers is in its SSTables, exactly and in order.
    fn published(&self, next: &ShardManifest) -> Verdict {
        let Some(latest) = &self.latest else {
            return Ok(());
        };
        if next.version.get() != latest.version.get() + 1 {
            return Err(format!("I6: manifest {} follows manifest {}", next.version, latest.version));
        }
        let generations: Vec<u64> = next.sstables.iter().map(|s| s.generation.get()).collect();
        if !generations.iter().copied().eq(1..next.current_generation.get()) {
            return Err(format!("I6: generations {generations:?}, and {} comes next", next.current_generation));
        }
        if !next.sstables.starts_with(&latest.sstables) {
            return Err("I6: the SSTables of before changed".into());
        }
        let (from, to) = (latest.replay_after.get(), next.replay_after.get());
        if to < from {
            return Err(format!("I5: R falls from {from} to {to}"));
        }
        if let Some(hole) = (from + 1..=to).find(|position| !self.entries.contains_key(position)) {
            return Err(format!("I5: R rises to {to}, and entry {hole} is not there"));
        }
        let covered = self.live(latest).filter(|(position, _)| *position <= to);
        let covered = self.newest_of_each_key(covered.flat_map(|(_, rows)| rows.iter().copied()).collect());
        let mut written = Vec::new();
        for sstable in next.sstables.iter().skip(latest.sstables.len()) {
            let rows = self.sstables.get(&sstable.path);
            let rows = rows.ok_or_else(|| format!("I5: SSTable {} is listed before it is written", sstable.path))?;
            if sstable.physical_rows != Some(rows.len() as u64) {
                return Err(format!("I5: {:?} rows are claimed for {rows:?}", sstable.physical_rows));
            }
            written.extend_from_slice(rows);
        }
        match written == covered {
            true => Ok(()),
            false => Err(format!("I5: R rises from {from} to {to} over {covered:?}, and {written:?} are written")),
        }
    }

    fn newest_of_each_key(&self, rows: Vec<Row>) -> Vec<Row> {
        let is_newest = |(n, row): &(usize, &Row)| !self.keyed || !rows[n + 1..].iter().any(|r| r.key == row.key);
        rows.iter().enumerate().filter(is_newest).map(|(_, row)| *row).collect()
    }

    /// The live entries above a manifest's R, up to the first absent position.
    fn live(&self, manifest: &ShardManifest) -> impl Iterator<Item = (u64, &[Row])> {
        let mut top = manifest.replay_after_epoch().get();
        let first = manifest.replay_after.get() + 1;
        let log = (first..).map_while(|position| Some((position, self.entries.get(&position)?)));
        log.filter_map(move |(position, entry)| {
            let lives = entry.epoch >= top;
            top = top.max(entry.epoch);
            lives.then_some((position, entry.rows.as_slice()))
        })
    }

    /// What a fresh reader finds now.
    pub(super) fn check_storage(&self) -> Verdict {
        let Some(latest) = &self.latest else {
            return Ok(());
        };
        let mut found = self.written(latest.sstables.iter().map(|s| s.path.as_str()))?;
        found.extend(self.live(latest).flat_map(|(_, rows)| rows));
        self.check(&found, Reader::Fresh)
    }

    /// The rows of SSTables.
    pub(super) fn written<'a>(&self, folders: impl Iterator<Item = &'a str>) -> Result<Vec<Row>, String> {
        let mut found = Vec::new();
        for folder in folders {
            let rows = self.sstables.get(folder).ok_or_else(|| format!("I7: SSTable {folder} is gone"))?;
            found.extend_from_slice(rows);
        }
        Ok(found)
    }

    /// After a flush that succeeded: none of these rows are left in the log.
    pub(super) fn check_flushed(&self, ids: &[usize]) -> Verdict {
        let log = self.latest.iter().flat_map(|latest| self.live(latest));
        let left = log.flat_map(|(_, rows)| rows).find(|row| row.id.is_some_and(|id| ids.contains(&id)));
        left.map_or(Ok(()), |row| Err(format!("I5: {row:?} was flushed, and is above R")))
    }

    /// Compares what a reader finds, oldest version first, with what it must find.
    pub(super) fn check(&self, found: &[Row], reader: Reader) -> Verdict {
        let mut there = vec![false; self.changes.len()];
        for row in found {
            let Some(id) = row.id else { continue };
            let change = self.changes.get(id).ok_or_else(|| format!("{row:?} was never written"))?;
            if std::mem::replace(&mut there[id], true) {
                return Err(format!("I2: {row:?} is there twice"));
            }
            if change.promise == Promise::Refused {
                return Err(format!("{row:?} is there, and its writer was told that it is not"));
            }
        }
        let counts = |change: &Change| {
            change.kept().filter(|at| match reader {
                Reader::Fresh => true,
                Reader::Writer { tenure, opened } => change.tenure == tenure || *at <= opened,
            })
        };
        match self.keyed {
            true => self.check_keys(found, counts),
            false => self.check_all(found, &there, counts),
        }
    }

    /// I1, I4, I8 without a key: every row is there; those of a tenure are a prefix of what it submitted, in order.
    fn check_all(&self, found: &[Row], there: &[bool], counts: impl Fn(&Change) -> Option<u64>) -> Verdict {
        let mut broken_off = vec![false; self.tenures];
        for (id, change) in self.changes.iter().enumerate().filter(|(_, c)| c.promise != Promise::Refused) {
            if counts(change).is_some() && !there[id] {
                return Err(format!("I1: row {id} was acknowledged and is not there"));
            }
            if there[id] && broken_off[change.tenure] {
                return Err(format!("I4: row {id} is there, and one before it of its tenure is not"));
            }
            broken_off[change.tenure] |= !there[id];
        }
        let mut earliest = u64::MAX;
        for row in found.iter().rev() {
            let change = &self.changes[row.id.ok_or("there are tombstones without a key")?];
            if earliest < change.submitted {
                return Err(format!("I8: {row:?} stands before a row that was acknowledged before it was begun"));
            }
            earliest = earliest.min(counts(change).unwrap_or(u64::MAX));
        }
        let mut last = vec![None; self.tenures];
        for row in found {
            let last = &mut last[self.changes[row.id.unwrap_or_default()].tenure];
            if row.id < std::mem::replace(last, row.id) {
                return Err(format!("I8: {row:?} stands behind a later row of its tenure"));
            }
        }
        Ok(())
    }

    /// I1, I8 with a key: nothing that was acknowledged is newer than what a reader sees.
    fn check_keys(&self, found: &[Row], counts: impl Fn(&Change) -> Option<u64>) -> Verdict {
        let visible: HashMap<i64, Option<usize>> = found.iter().map(|row| (row.key, row.id)).collect();
        // Whether a change was acknowledged, to a reader who counts it, and is newer than this one.
        let is_stale = |than: usize| {
            let than_change = &self.changes[than];
            let newer = self.changes.iter().enumerate().find(|(id, change)| {
                let same_tenure = change.tenure == than_change.tenure && *id > than;
                change.key == than_change.key
                    && counts(change).is_some()
                    && (same_tenure || than_change.kept().is_some_and(|at| at < change.submitted))
            });
            newer.map(|(id, _)| id)
        };
        for (key, id) in &visible {
            if let Some(id) = id
                && let Some(newer) = is_stale(*id)
            {
                return Err(format!("I8: of key {key} change {id} is seen, and {newer} was acknowledged after it"));
            }
            let mut deletions = (0..self.changes.len()).filter(|id| {
                let change = &self.changes[*id];
                change.key == *key && change.deletes && change.promise != Promise::Refused
            });
            if id.is_none() && !deletions.any(|deletion| is_stale(deletion).is_none()) {
                return Err(format!("I8: key {key} is deleted, and a later put of it was acknowledged"));
            }
        }
        let lost = self.changes.iter().find(|c| counts(c).is_some() && !visible.contains_key(&c.key));
        lost.map_or(Ok(()), |lost| Err(format!("I1: {lost:?} was acknowledged, and nothing of its key is there")))
    }

    /// A line for the trace.
    pub(super) fn describe(&self, object: &Object) -> String {
        match object {
            Object::Entry(position) => match self.entries.get(position) {
                Some(entry) => format!("wal/{position} of epoch {} with {:?}", entry.epoch, entry.rows),
                None => format!("wal/{position}"),
            },
            Object::Manifest(version) => match self.latest.as_ref().filter(|m| m.version.get() == *version) {
                Some(m) => {
                    format!("manifest/{version} of epoch {}, R {}, {:?}", m.writer_epoch, m.replay_after, m.sstables)
                }
                None => format!("manifest/{version}"),
            },
            Object::SsTable(folder) => format!("{folder} with {:?}", self.sstables.get(folder)),
            Object::Other => "other".into(),
        }
    }
}

/// An object of the shard, by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Object {
    Entry(u64),
    Manifest(u64),
    /// The name of its folder.
    SsTable(String),
    Other,
}

impl Object {
    pub(super) fn of(path: &str) -> Self {
        let mut parts = path.rsplit('/');
        let (name, folder) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let number = |suffix| u64::from_str_radix(name.strip_suffix(suffix)?, 2).ok().map(u64::reverse_bits);
        match folder {
            "wal" => number(".arrow").map_or(Self::Other, Self::Entry),
            "manifest" => number(".binpb").map_or(Self::Other, Self::Manifest),
            _ if folder.contains("_gen_") => Self::SsTable(folder.to_owned()),
            _ => Self::Other,
        }
    }
}
