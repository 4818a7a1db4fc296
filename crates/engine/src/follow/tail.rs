//! The rows of a shard's log above R, as far as a reader has come: a MemTable, and the entries that it was made of, so that
//! it can be made anew when R rises. It reads nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use fencepost_wal::{Shard, ShardManifest, WalEntry};

use super::budget::{Budget, Share};
use crate::error::Result;
use crate::memtable::{MemTable, MemTableSnapshot};
use crate::read::take_entry;
use crate::rows::RowFormat;

/// What an entry takes beside its rows, in bytes.
const ENTRY_OVERHEAD: usize = 512;

/// The rows above R of one manifest, under one schema.
#[derive(Debug)]
pub(super) struct Tail {
    shard: Shard,
    format: RowFormat,
    manifest: ShardManifest,
    memtable: MemTable,
    /// What the MemTable was made of, in order of position. The rows' memory is shared with it.
    entries: VecDeque<WalEntry>,
    share: Share,
}

impl Tail {
    pub(super) fn new(shard: Shard, format: &RowFormat, manifest: ShardManifest, budget: &Arc<Budget>) -> Self {
        let memtable = new_memtable(format, &manifest);
        let (format, share) = (format.clone(), Share::of(budget));
        Self { shard, format, manifest, memtable, entries: VecDeque::new(), share }
    }

    /// The manifest whose R it begins at.
    pub(super) fn manifest(&self) -> &ShardManifest {
        &self.manifest
    }

    /// Takes the next live entry.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if its rows do not fit the table. Nothing of it was taken then, and the
    /// rows behind it must not be.
    pub(super) fn take(&mut self, entry: WalEntry) -> Result<()> {
        take_entry(&self.memtable, &self.format, &self.shard, &self.manifest, &entry)?;
        self.entries.push_back(entry);
        self.count();
        Ok(())
    }

    /// Goes over to a newer manifest, or a newer schema: rows at or below R, which are in the manifest's SSTables, are left
    /// out. Views of the MemTable that was stay as they are.
    ///
    /// # Errors
    /// As [`take`](Self::take); nothing has changed then.
    pub(super) fn go_over(&mut self, manifest: ShardManifest, format: &RowFormat) -> Result<()> {
        let flushed = |entry: &&WalEntry| {
            let stamped = entry.generation.is_some_and(|generation| generation < manifest.current_generation);
            entry.position <= manifest.replay_after || stamped
        };
        let is_same = manifest.current_generation == self.manifest.current_generation
            && self.format.storage == format.storage
            && !self.entries.iter().any(|entry| flushed(&entry));
        if !is_same {
            // I2: in the SSTables of that manifest and not here, or here and not there.
            let memtable = new_memtable(format, &manifest);
            let kept: VecDeque<WalEntry> = self.entries.iter().filter(|entry| !flushed(entry)).cloned().collect();
            for entry in &kept {
                take_entry(&memtable, format, &self.shard, &manifest, entry)?;
            }
            (self.memtable, self.entries, self.format) = (memtable, kept, format.clone());
        }
        self.manifest = manifest;
        self.count();
        Ok(())
    }

    /// Its rows; none if it is empty.
    pub(super) fn rows(&self) -> Vec<MemTableSnapshot> {
        Some(self.memtable.snapshot()).filter(|memtable| memtable.rows() > 0).into_iter().collect()
    }

    fn count(&mut self) {
        let bytes = self.memtable.bytes() + self.memtable.index_bytes();
        self.share.set(bytes + self.entries.len() * ENTRY_OVERHEAD);
    }
}

fn new_memtable(format: &RowFormat, manifest: &ShardManifest) -> MemTable {
    MemTable::new(Arc::clone(&format.storage), format.keys.clone(), manifest.current_generation)
}
