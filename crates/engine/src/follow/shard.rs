//! One shard as a reader without a tenure sees it: which SSTables it has, and the rows of its log behind them. Read once it
//! is a snapshot's part; read again it goes on from where it was. Writes nothing and fences nobody.

use std::collections::BTreeSet;
use std::sync::Arc;

use fencepost_wal::{Error as WalError, Generation, ManifestVersion, Position, ShardId, ShardManifest, WalTailer};
use tokio::time::Instant;

use super::budget::Budget;
use super::tail::Tail;
use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::read::{MAX_ROUNDS, ShardView};
use crate::rows::RowFormat;
use crate::shards::{self, SHARDS_AT_ONCE};

/// A reader of one shard.
#[derive(Debug)]
pub(crate) struct ShardFollower {
    id: ShardId,
    tailer: WalTailer,
    /// `None` while the shard is not one of the table's.
    tail: Option<Tail>,
    /// The last position that is known to have landed.
    known_end: Position,
    /// When it last knew that it had read all.
    as_of: Option<Instant>,
    /// The largest entry so far, in bytes.
    largest: usize,
    /// The base version and the manifest that were last found to fit together.
    fits: Option<(u64, ManifestVersion)>,
}

/// What a shard is to a base version that was read before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// One of the table's, read up to the end of its log, or as far as there was room.
    There,
    /// As [`There`](Self::There), and more of its log can be read at once.
    More,
    /// None (yet): nobody has made it, or it is of another layout, or of another table.
    Nothing,
    /// One of an earlier layout: what it had is in shards of this one.
    Superseded,
    /// It has moved on: what it holds fits to a newer base version only.
    Newer,
}

/// Where a reading of the log stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Met,
    NoRoom,
    Enough,
}

/// Where a shard stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) shard: ShardId,
    pub(super) manifest: ManifestVersion,
    /// Every acknowledged row up to here is there.
    pub(super) position: Position,
    /// The last position that was read, also of an entry that does not count.
    pub(super) read_up_to: Position,
    /// The last position that is known to have landed.
    pub(super) known_end: Position,
    pub(super) as_of: Option<Instant>,
}

impl ShardFollower {
    pub(crate) fn new(base: &BaseTable, id: ShardId) -> Self {
        let tailer = WalTailer::new(base.shard(id));
        Self { id, tailer, tail: None, known_end: Position::ZERO, as_of: None, largest: 0, fits: None }
    }

    /// Reads what has come, at most this many entries of the log. The base version must have been read before (protocol
    /// section 9). May be given up at any await: what was read stays.
    ///
    /// # Errors
    /// Errors of reading, after which it may be called again.
    pub(crate) async fn read(
        &mut self,
        base: &BaseTable,
        format: &RowFormat,
        budget: &Arc<Budget>,
        most_entries: usize,
    ) -> Result<Found> {
        for _ in 0..MAX_ROUNDS {
            let asked = Instant::now();
            if self.tail.is_none() {
                let manifest = self.tailer.look().await?;
                let found = self.judge(base, manifest.as_ref())?;
                let Some(manifest) = manifest.filter(|_| found == Found::There) else {
                    return Ok(found);
                };
                self.tailer.restart_after(&manifest);
                self.tail = Some(Tail::new(base.shard(self.id), format, manifest, budget));
            }
            let end = match Box::pin(self.read_log(budget, most_entries)).await {
                Ok(end) => end,
                // It was flushed meanwhile: the rows are in an SSTable of a newer manifest.
                Err(Error::Wal(WalError::Behind { .. })) => {
                    self.tail = None;
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Read after the end of the log was met (section 6), and after the base version (section 9).
            let manifest = match self.tailer.seen().filter(|_| end == End::Met) {
                Some(manifest) => Some(manifest.clone()),
                None => self.tailer.look().await?,
            };
            let found = self.judge(base, manifest.as_ref())?;
            let Some(manifest) = manifest.filter(|_| found == Found::There) else {
                self.tail = self.tail.take().filter(|_| found == Found::Newer);
                return Ok(found);
            };
            let read_up_to = self.read_up_to();
            if manifest.replay_after > read_up_to {
                // I1: what stood in between is in its SSTables.
                self.tail = None;
                continue;
            }
            if let Some(tail) = &mut self.tail
                && let Err(error) = tail.go_over(manifest, format)
            {
                self.tail = None;
                return Err(error);
            }
            self.known_end = self.known_end.max(read_up_to);
            if end == End::NoRoom {
                self.known_end = self.tailer.find_end(self.known_end).await?;
            }
            if end == End::Met || (end == End::NoRoom && self.known_end == read_up_to) {
                // The rest, if there was more, was of a log that has moved.
                self.known_end = read_up_to;
                self.as_of = Some(asked);
            }
            return Ok(if end == End::Enough { Found::More } else { Found::There });
        }
        Ok(Found::Newer)
    }

    async fn read_log(&mut self, budget: &Arc<Budget>, most_entries: usize) -> Result<End> {
        for _ in 0..most_entries {
            let room = budget.room();
            if room == 0 {
                self.tailer.forget_read_ahead();
                return Ok(End::NoRoom);
            }
            self.tailer.limit_read_ahead(room / SHARDS_AT_ONCE / self.largest.max(1));
            let Some(entry) = self.tailer.next().await? else {
                return Ok(End::Met);
            };
            self.largest = self.largest.max(entry.object_bytes);
            let taken = self.tail.as_mut().map(|tail| tail.take(entry));
            if let Some(Err(error)) = taken {
                // I1: the tailer would go on behind it.
                self.tail = None;
                return Err(error);
            }
        }
        Ok(End::Enough)
    }

    /// What a manifest, read after the base version, is to that.
    fn judge(&mut self, base: &BaseTable, manifest: Option<&ShardManifest>) -> Result<Found> {
        let merged = base.merged().get(&self.id).copied().unwrap_or(Generation::ZERO);
        let there = match manifest {
            Some(manifest) => shards::is_there(base, manifest)?,
            None => false,
        };
        let Some(manifest) = manifest.filter(|_| there) else {
            // One that was merged from had a manifest: it vanished.
            let nothing =
                if manifest.is_some_and(|m| is_superseded(base, m)) { Found::Superseded } else { Found::Nothing };
            return Ok(if merged == Generation::ZERO { nothing } else { Found::Newer });
        };
        let pair = (base.version(), manifest.version);
        if self.fits == Some(pair) {
            return Ok(Found::There);
        }
        if shards::is_behind_its_merges(base, self.id, Some(manifest)) {
            return Ok(Found::Newer);
        }
        let listed: BTreeSet<u64> = manifest.sstables.iter().map(|sstable| sstable.generation.get()).collect();
        if !(merged.get() + 1..manifest.current_generation.get()).all(|generation| listed.contains(&generation)) {
            return Ok(Found::Newer);
        }
        self.fits = Some(pair);
        Ok(Found::There)
    }

    fn read_up_to(&self) -> Position {
        let next = self.tailer.next_position().unwrap_or(Position::ZERO);
        Position::new(next.get().saturating_sub(1))
    }

    /// What it holds, of the last reading that found it there.
    pub(crate) fn view(&self, base: &BaseTable) -> Option<ShardView> {
        let tail = self.tail.as_ref()?;
        let manifest = tail.manifest();
        Some(ShardView {
            shard: self.id,
            value: base.shard_value(self.id, Some(manifest)),
            memtables: tail.rows(),
            sstables: manifest.sstables.iter().rev().cloned().collect(),
        })
    }

    /// Where it stands, if it is there.
    pub(super) fn stand(&self) -> Option<Stand> {
        let manifest = self.tail.as_ref()?.manifest();
        let live = self.tailer.live_up_to().unwrap_or(Position::ZERO);
        Some(Stand {
            shard: self.id,
            manifest: manifest.version,
            position: live.max(manifest.replay_after),
            read_up_to: self.read_up_to(),
            known_end: self.known_end,
            as_of: self.as_of,
        })
    }
}

/// Whether a shard belongs to a layout that the base version has left behind.
fn is_superseded(base: &BaseTable, manifest: &ShardManifest) -> bool {
    manifest.shard_spec_id < base.spec_id() && !shards::is_of_another_table(base, manifest) && manifest.is_initialized()
}
