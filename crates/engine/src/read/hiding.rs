//! Which rows newer sources hide. The keys of a shard's SSTables are gathered in one structure, each key once, with the
//! generations that have it: every source of every snapshot asks it, SSTables are added as somebody needs them, newest
//! first, and it grows with what is flushed. MemTables have an index of their own and are asked directly.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow_buffer::BooleanBuffer;
use fencepost_wal::{Generation, SsTable};
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::RwLock;
use tokio::sync::Mutex;

use super::{ShardView, Snapshot};
use crate::error::Result;
use crate::key::{KeyEncoder, KeySet, Keys};
use crate::memtable::MemTableSnapshot;
use crate::sstable::{self, SsTablePlace};

/// SSTables of a shard whose keys are read at once.
const KEYS_AT_ONCE: usize = 8;

/// SSTables whose keys are read before another reader of the shard gets a turn.
const KEYS_PER_TURN: usize = 4 * KEYS_AT_ONCE;

/// "There is no older version."
const NONE: usize = usize::MAX;

/// The keys of a shard's SSTables, those of tombstones too, as far as they were needed.
#[derive(Default)]
pub(crate) struct ShardKeys {
    versions: RwLock<KeyVersions>,
    /// Held by who reads keys, so that nobody reads the same ones at the same time.
    reading: Mutex<()>,
}

/// Which generations have a key.
#[derive(Default)]
struct KeyVersions {
    keys: KeySet,
    /// By key number: its newest and its oldest version.
    ends: Vec<(usize, usize)>,
    versions: Vec<Version>,
    /// The generations of which all keys are here, with the number of them.
    whole: HashMap<Generation, usize>,
}

struct Version {
    generation: Generation,
    /// The next older version of the key, or [`NONE`].
    older: usize,
}

impl KeyVersions {
    /// The key is in an SSTable of this generation. True if that was not known.
    fn insert(&mut self, key: &[u8], generation: Generation) -> bool {
        let number = self.keys.insert(key);
        let new = self.versions.len();
        let Some(ends) = self.ends.get_mut(number) else {
            self.versions.push(Version { generation, older: NONE });
            self.ends.push((new, new));
            return true;
        };
        // The version that the new one comes behind; none if it is the newest.
        let mut newer: Option<usize> = None;
        let of = |at: usize| self.versions.get(at).map(|version| (version.generation, version.older));
        let mut next = match of(ends.1) {
            Some((oldest, _)) if oldest > generation => {
                newer = Some(ends.1);
                NONE
            }
            _ => ends.0,
        };
        while let Some((found, older)) = of(next) {
            if found == generation {
                return false;
            }
            if found < generation {
                break;
            }
            newer = Some(next);
            next = older;
        }
        match newer.and_then(|newer| self.versions.get_mut(newer)) {
            Some(newer) => newer.older = new,
            None => ends.0 = new,
        }
        if next == NONE {
            ends.1 = new;
        }
        self.versions.push(Version { generation, older: next });
        true
    }

    /// The newest generation up to this one that has the key.
    fn newest_of(&self, key: &[u8], up_to: Generation) -> Option<Generation> {
        let (newest, _) = self.ends.get(self.keys.find(key)?)?;
        let mut version = self.versions.get(*newest)?;
        while version.generation > up_to {
            version = self.versions.get(version.older)?;
        }
        Some(version.generation)
    }

    fn bytes(&self) -> usize {
        self.keys.memory_bytes()
            + self.ends.capacity() * size_of::<(usize, usize)>()
            + self.versions.capacity() * size_of::<Version>()
    }
}

impl ShardKeys {
    /// The memory that it holds, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.versions.read().bytes()
    }

    /// Whether most of what it holds is of SSTables that are not among these.
    pub(super) fn is_mostly_merged(&self, sstables: &[SsTable]) -> bool {
        let versions = self.versions.read();
        let named = sstables.iter().filter_map(|sstable| versions.whole.get(&sstable.generation)).sum::<usize>();
        named * 2 < versions.whole.values().sum()
    }
}

impl fmt::Debug for ShardKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions = self.versions.read();
        f.debug_struct("ShardKeys")
            .field("keys", &versions.ends.len())
            .field("generations", &versions.whole.len())
            .finish_non_exhaustive()
    }
}

/// One moment of a shard with its keys.
#[derive(Debug)]
pub(crate) struct ShardMoment {
    pub(super) view: ShardView,
    keys: Arc<ShardKeys>,
    /// So many of the view's SSTables, from the newest on, have their keys there.
    loaded: AtomicUsize,
    /// The keys of so many were asked for. Sources that are read side by side want few more than each other: who reads keys
    /// reads those that the others wait for, too, or they would be read one after the other.
    wanted: AtomicUsize,
}

impl ShardMoment {
    pub(super) fn new(view: ShardView, keys: Arc<ShardKeys>) -> Self {
        Self { view, keys, loaded: AtomicUsize::new(0), wanted: AtomicUsize::new(0) }
    }

    /// Reads what is not there yet of the keys of the newest `count` SSTables.
    async fn load(&self, count: usize, snapshot: &Snapshot, encoder: &KeyEncoder) -> Result<()> {
        let count = count.min(self.view.sstables.len());
        let is_new = self.loaded.load(Ordering::Acquire) < count;
        self.wanted.fetch_max(count, Ordering::AcqRel);
        while self.loaded.load(Ordering::Acquire) < count {
            let _turn = self.keys.reading.lock().await;
            let wanted = self.wanted.load(Ordering::Acquire);
            let (end, missing) = self.missing(self.loaded.load(Ordering::Acquire), wanted);
            let read = stream::iter(missing).map(|sstable| self.read(sstable, snapshot, encoder));
            read.buffer_unordered(KEYS_AT_ONCE).try_collect::<()>().await?;
            self.loaded.fetch_max(end, Ordering::AcqRel);
        }
        if is_new {
            snapshot.cache.trim_keys();
        }
        Ok(())
    }

    /// The next SSTables to read, and up to where the keys are there then.
    fn missing(&self, from: usize, count: usize) -> (usize, Vec<SsTable>) {
        let versions = self.keys.versions.read();
        let (mut end, mut missing) = (from, Vec::new());
        for sstable in self.view.sstables.iter().take(count).skip(from) {
            if missing.len() == KEYS_PER_TURN {
                break;
            }
            if !versions.whole.contains_key(&sstable.generation) {
                missing.push(sstable.clone());
            }
            end += 1;
        }
        (end, missing)
    }

    async fn read(&self, sstable: SsTable, snapshot: &Snapshot, encoder: &KeyEncoder) -> Result<()> {
        let place = SsTablePlace::of(self.view.shard, &sstable);
        let part = snapshot.part_of(&place)?;
        let mut batches = sstable::columns(&snapshot.cache.dataset(&place).await?, &snapshot.format.primary_key);
        let mut count = 0;
        while let Some(batch) = batches.try_next().await? {
            // The sharding column of a keyed table is part of its key.
            let batch = match &part {
                Some(part) => part.choose(&batch)?,
                None => batch,
            };
            let keys = encoder.encode(&batch)?;
            let mut versions = self.keys.versions.write();
            count += keys.iter().filter(|key| versions.insert(key, sstable.generation)).count();
        }
        self.keys.versions.write().whole.insert(sstable.generation, count);
        Ok(())
    }
}

/// What hides the rows of a source.
#[derive(Debug, Clone)]
pub(super) enum Newer {
    /// So many of the newest MemTables and SSTables of a shard.
    InShard { shard: Arc<ShardMoment>, memtables: usize, sstables: usize },
    /// Everything but the base table.
    All,
}

/// Exact membership in the newer sources.
#[derive(Debug, Default)]
pub(crate) struct Hiding {
    memtables: Vec<MemTableSnapshot>,
    shards: Vec<Generations>,
}

/// The generations of a shard from one to another.
#[derive(Debug)]
struct Generations {
    keys: Arc<ShardKeys>,
    oldest: Generation,
    newest: Generation,
}

impl Hiding {
    pub(super) async fn load(newer: &Newer, snapshot: &Snapshot, encoder: &KeyEncoder) -> Result<Self> {
        let mut hiding = Self::default();
        match newer {
            Newer::InShard { shard, memtables, sstables } => {
                hiding.add(shard, *memtables, *sstables, snapshot, encoder).await?;
            }
            Newer::All => {
                for shard in &snapshot.shards {
                    let (memtables, sstables) = (shard.view.memtables.len(), shard.view.sstables.len());
                    hiding.add(shard, memtables, sstables, snapshot, encoder).await?;
                }
            }
        }
        Ok(hiding)
    }

    async fn add(
        &mut self,
        shard: &Arc<ShardMoment>,
        memtables: usize,
        sstables: usize,
        snapshot: &Snapshot,
        encoder: &KeyEncoder,
    ) -> Result<()> {
        self.memtables.extend(shard.view.memtables.iter().take(memtables).cloned());
        let mut newer = shard.view.sstables.iter().take(sstables).map(|sstable| sstable.generation);
        if let Some(newest) = newer.next() {
            shard.load(sstables, snapshot, encoder).await?;
            let keys = Arc::clone(&shard.keys);
            self.shards.push(Generations { keys, oldest: newer.next_back().unwrap_or(newest), newest });
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.memtables.is_empty() && self.shards.is_empty()
    }

    /// Which of these keys, encoded with the table's [`KeyEncoder`], newer sources have. I8: a newer version of the key, a
    /// tombstone too, hides the row whatever the newer version looks like.
    pub(crate) fn hidden(&self, keys: &Keys) -> BooleanBuffer {
        let mut hidden = BooleanBuffer::new_unset(keys.len());
        for memtable in &self.memtables {
            hidden = &hidden | &memtable.contains_keys(keys);
        }
        for Generations { keys: of_shard, oldest, newest } in &self.shards {
            let versions = of_shard.versions.read();
            let is_newer = |key| versions.newest_of(key, *newest).is_some_and(|generation| generation >= *oldest);
            hidden = &hidden | &keys.iter().map(is_newer).collect();
        }
        hidden
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_newest_generation_of_a_key_is_found_whatever_the_order_of_insertion(
            inserted in prop::collection::vec((0u8..4, 1u64..12), 0..60),
        ) {
            let mut versions = KeyVersions::default();
            let mut model: BTreeMap<u8, BTreeSet<u64>> = BTreeMap::new();
            for (key, generation) in inserted {
                let is_new = model.entry(key).or_default().insert(generation);
                prop_assert_eq!(versions.insert(&[key], Generation::new(generation)), is_new);
            }
            for key in 0..5 {
                for up_to in 0..13 {
                    let expected = model.get(&key).and_then(|all| all.range(..=up_to).next_back()).copied();
                    let found = versions.newest_of(&[key], Generation::new(up_to));
                    prop_assert_eq!(found.map(Generation::get), expected);
                }
            }
        }
    }
}
