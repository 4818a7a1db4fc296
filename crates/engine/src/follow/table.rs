//! A whole table as a reader without a tenure sees it, one consistent moment after the other. It owns the order (protocol
//! section 9: the base version, then a LIST of the shards, then each shard) and decides what fits together. It does not
//! know when to ask.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fencepost_wal::ShardId;
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::budget::Budget;
use super::shard::{Found, ShardFollower, Stand};
use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::read::{MAX_ROUNDS, ShardView, Snapshot, SsTableCache, moved_on};
use crate::rows::RowFormat;
use crate::shards::{self, SHARDS_AT_ONCE};

/// A reader of all shards of a table.
#[derive(Debug)]
pub(crate) struct TableFollower {
    base: BaseTable,
    format: RowFormat,
    cache: Arc<SsTableCache>,
    budget: Arc<Budget>,
    shards: BTreeMap<ShardId, ShardFollower>,
    /// Shards that were the table's in an earlier layout.
    superseded: BTreeSet<ShardId>,
}

/// One consistent moment: the base version, and where each shard stands.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    pub(super) base_version: u64,
    pub(super) stands: Vec<Stand>,
    /// More of a log can be read at once.
    pub(super) is_more: bool,
    /// When the round began.
    pub(super) asked: Instant,
}

impl Moment {
    /// Whether queries have the same answers, and readers have come as far.
    pub(super) fn is_same(&self, other: &Moment) -> bool {
        let key = |stand: &Stand| (stand.shard, stand.manifest, stand.read_up_to, stand.position);
        self.base_version == other.base_version && self.stands.iter().map(key).eq(other.stands.iter().map(key))
    }
}

impl TableFollower {
    /// A reader that has read nothing yet.
    pub(crate) fn new(base: &BaseTable, cache: &Arc<SsTableCache>, budget: &Arc<Budget>) -> Result<Self> {
        Ok(Self {
            format: RowFormat::of(base)?,
            base: base.clone(),
            cache: Arc::clone(cache),
            budget: Arc::clone(budget),
            shards: BTreeMap::new(),
            superseded: BTreeSet::new(),
        })
    }

    /// The table as storage has it now, for a reader that asks once.
    ///
    /// # Errors
    /// Errors of reading; damaged objects are named.
    pub(crate) async fn once(base: &BaseTable, cache: &Arc<SsTableCache>) -> Result<Snapshot> {
        let mut reader = Self::new(base, cache, &Budget::unlimited())?;
        Box::pin(reader.round(usize::MAX)).await?;
        Ok(reader.snapshot())
    }

    /// Reads what has come, at most this many entries of each log. May be given up at any await: what was read stays, and is
    /// not read again.
    ///
    /// # Errors
    /// [`Error::TableNotReady`] or [`Error::TableNotFound`] if the table is gone; errors of reading, after which it may be
    /// called again.
    pub(super) async fn round(&mut self, most_entries: usize) -> Result<Moment> {
        for _ in 0..MAX_ROUNDS {
            let asked = Instant::now();
            // Section 9: the base version first, then the shards. The other order could miss rows that are merged in
            // between; this one finds out.
            let before = self.base.version();
            self.take_base().await?;
            let listed = shards::list(&self.base).await?;
            if shards::vanished(&self.base, &listed).is_some() {
                continue;
            }
            self.shards.retain(|id, _| listed.contains(id));
            for id in listed {
                self.shards.entry(id).or_insert_with(|| ShardFollower::new(&self.base, id));
            }
            let found = match self.read_shards(most_entries).await {
                Ok(found) => found,
                Err(error) => {
                    // A table that is being deleted, or gets another column, looks damaged to who has read it before.
                    let seen = self.base.version();
                    self.take_base().await?;
                    match self.base.version() == seen {
                        true => return Err(error),
                        false => continue,
                    }
                }
            };
            if found.values().any(|found| *found == Found::Newer) || self.base.version() < before {
                continue;
            }
            let left = found.iter().filter(|(_, found)| **found == Found::Superseded).map(|(id, _)| *id);
            self.superseded.extend(left);
            return Ok(Moment {
                base_version: self.base.version(),
                stands: self.shards.values().filter_map(ShardFollower::stand).collect(),
                is_more: found.values().any(|found| *found == Found::More),
                asked,
            });
        }
        Err(Box::pin(moved_on(&self.base)).await)
    }

    /// The newest base version.
    async fn take_base(&mut self) -> Result<()> {
        // What Lance does there is large, and would be on the stack of everybody who reads.
        let base = match Box::pin(self.base.refreshed()).await {
            Ok(base) => base,
            // Its files may be gone altogether.
            Err(error @ Error::Lance { .. }) => match Box::pin(BaseTable::open(self.base.lance_store(), None)).await {
                Err(gone @ (Error::TableNotFound { .. } | Error::TableNotReady { .. })) => return Err(gone),
                _ => return Err(error),
            },
            Err(error) => return Err(error),
        };
        if base.version() != self.base.version() {
            self.format = RowFormat::of(&base)?;
            self.base = base;
        }
        Ok(())
    }

    /// Reads all shards, each as far as it goes; the first failure comes after that.
    async fn read_shards(&mut self, most_entries: usize) -> Result<BTreeMap<ShardId, Found>> {
        let (base, format, budget) = (&self.base, &self.format, &self.budget);
        let reads = self.shards.iter_mut().map(|(id, shard)| {
            Box::pin(async move {
                let found = shard.read(base, format, budget, most_entries).await;
                found.map(|found| (*id, found))
            })
        });
        let reads: Vec<_> = reads.collect();
        let found: Vec<Result<(ShardId, Found)>> = stream::iter(reads).buffer_unordered(SHARDS_AT_ONCE).collect().await;
        found.into_iter().collect()
    }

    /// What the last round read, as queries see it. Both sides of a flush change in it at once: an SSTable comes and the
    /// rows that are in it go.
    pub(super) fn snapshot(&self) -> Snapshot {
        let views: Vec<ShardView> = self.shards.values().filter_map(|shard| shard.view(&self.base)).collect();
        Snapshot::of_table(self.base.clone(), self.format.clone(), &self.cache, views)
    }

    /// Shards of earlier layouts: all that they had is in the table's.
    pub(super) fn superseded(&self) -> &BTreeSet<ShardId> {
        &self.superseded
    }
}
