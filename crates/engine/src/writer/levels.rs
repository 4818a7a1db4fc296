//! The in-memory part of a shard: the active MemTable that log entries are applied to, the frozen ones that wait to
//! be written, and the list of SSTables. One lock makes every change of it a single step for readers.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_array::RecordBatch;
use fencepost_wal::{Generation, Held, Landed, LandedEntry, Meter, Position, SsTable};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::sstable_writer::SsTableWriter;
use crate::config::MemTableConfig;
use crate::error::Result;
use crate::memtable::{IndexSet, MemTable, MemTableSnapshot};
use crate::read::OVERLAY;
use crate::rows::RowFormat;

/// A frozen MemTable and what its SSTable covers.
#[derive(Clone)]
pub(super) struct Frozen {
    pub(crate) memtable: Arc<MemTable>,
    /// Makes its files: with the columns that it has, whatever the table has by now.
    pub(crate) sstables: Arc<dyn SsTableWriter>,
    /// Every live row at or below this position is in this MemTable or an older SSTable.
    pub(crate) covers: Position,
}

/// The columns that rows are applied with.
struct Columns {
    format: RowFormat,
    sstables: Arc<dyn SsTableWriter>,
}

/// A MemTable's share of the memory budget.
#[derive(Default)]
struct Counted {
    held: Held,
    /// Bytes of its secondary indexes in that.
    index_bytes: usize,
}

struct State {
    active: Arc<MemTable>,
    counted: Counted,
    /// Everything up to here was applied.
    applied: Position,
    /// Batches of appends that were applied since the writer was opened, to line up with the log's queue.
    landed_batches: u64,
    /// Oldest first, each with its share of the memory budget.
    frozen: VecDeque<(Frozen, Counted)>,
    /// Oldest first.
    sstables: Vec<SsTable>,
    /// R: what the SSTables cover.
    covered: Position,
}

/// The MemTables and SSTables of one shard, shared by the log (which feeds it), the flusher and readers.
pub(crate) struct Levels {
    /// Locked before `state`, and for as long.
    columns: RwLock<Columns>,
    limits: MemTableConfig,
    indexes: IndexSet,
    state: Mutex<State>,
    /// Rung when something was frozen, and when an entry landed: memory that an append waits for may be in it.
    pub(crate) bell: Notify,
    /// Rung when there are rows that secondary indexes may not have.
    pub(crate) to_index: Notify,
    /// Entries that were applied.
    pub(crate) updates: Meter,
}

/// Where an entry that is applied comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This writer's log queue, in which it was so many batches.
    Landed { appended: usize },
    /// The replay of a log that Fencepost wrote.
    Replay,
    /// The replay of entries that Lance stamped with a generation, and of those before them: they are published
    /// together, or the rest of the stamped ones would count as flushed (schedule 31).
    ReplayOfLance,
}

/// One moment of a shard, newest first where there is an order.
pub(crate) struct LevelsView {
    pub(crate) memtables: Vec<MemTableSnapshot>,
    pub(crate) sstables: Vec<SsTable>,
}

/// Sizes of the MemTables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemTableStats {
    /// Generation of the active MemTable.
    pub generation: Generation,
    /// Its rows, older versions of a key included.
    pub rows: usize,
    /// Its batches.
    pub batches: usize,
    /// Bytes of its rows.
    pub bytes: usize,
    /// Bytes of its primary-key index.
    pub index_bytes: usize,
    /// Bytes of each of its secondary indexes, by name; estimated. They lag behind the rows by what is being indexed.
    pub secondary_index_bytes: Vec<(String, usize)>,
    /// MemTables that wait to be written or are being written.
    pub frozen: usize,
    /// Rows in them.
    pub frozen_rows: usize,
    /// Bytes of these rows.
    pub frozen_bytes: usize,
    /// The last log position that was applied.
    pub applied: Position,
}

impl Columns {
    fn empty_memtable(&self, indexes: &IndexSet, generation: Generation) -> Arc<MemTable> {
        let (schema, keys) = (Arc::clone(&self.format.storage), self.format.keys.clone());
        Arc::new(MemTable::with_indexes(schema, keys, generation, indexes))
    }
}

impl Levels {
    pub(super) fn new(
        format: RowFormat,
        sstables_writer: Arc<dyn SsTableWriter>,
        limits: MemTableConfig,
        indexes: IndexSet,
        generation: Generation,
        sstables: Vec<SsTable>,
        covered: Position,
    ) -> Self {
        let columns = Columns { format, sstables: sstables_writer };
        let state = State {
            active: columns.empty_memtable(&indexes, generation),
            counted: Counted::default(),
            applied: covered,
            landed_batches: 0,
            frozen: VecDeque::new(),
            sstables,
            covered,
        };
        Self {
            columns: RwLock::new(columns),
            limits,
            indexes,
            state: Mutex::new(state),
            bell: Notify::new(),
            to_index: Notify::new(),
            updates: Meter::default(),
        }
    }

    /// Applies one log entry. Freezes first what would grow beyond its limit, and last what has reached it.
    pub(crate) fn apply(&self, position: Position, batches: &[RecordBatch], held: Held, origin: Origin) -> Result<()> {
        let started = Instant::now();
        let may_freeze = origin != Origin::ReplayOfLance;
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let columns = self.columns.read();
        let batches = batches.iter().map(|b| columns.format.log_rows(b)).collect::<Result<Vec<_>>>()?;
        let mut state = self.state.lock();
        if may_freeze && !state.active.is_empty() && state.active.rows() + rows > self.limits.max_rows {
            self.freeze(&mut state, &columns)?;
        }
        let before = state.active.bytes();
        state.active.apply(position, &batches)?;
        self.updates.record(rows, state.active.bytes().saturating_sub(before), started.elapsed());
        state.counted.held.merge(held);
        state.applied = position;
        self.to_index.notify_one();
        if let Origin::Landed { appended } = origin {
            state.landed_batches += appended as u64;
        }
        let active = &state.active;
        if may_freeze
            && (active.rows() >= self.limits.max_rows
                || active.batches() >= self.limits.max_batches
                || active.bytes() >= self.limits.max_bytes)
        {
            self.freeze(&mut state, &columns)?;
        }
        Ok(())
    }

    /// After a replay: there is nothing up to here that was not applied.
    pub(crate) fn caught_up_to(&self, position: Position) {
        let mut state = self.state.lock();
        state.applied = state.applied.max(position);
    }

    /// Freezes the active MemTable if it has rows. Returns the generation that must be published so that everything
    /// applied so far is in SSTables, or `None` if everything is.
    pub(crate) fn freeze_active(&self) -> Result<Option<Generation>> {
        let columns = self.columns.read();
        let mut state = self.state.lock();
        if !state.active.is_empty() {
            self.freeze(&mut state, &columns)?;
        }
        Ok(state.frozen.back().map(|(frozen, _)| frozen.memtable.generation()))
    }

    /// Freezes the active MemTable. `None`: it has no rows.
    pub(crate) fn force_freeze(&self) -> Result<Option<Generation>> {
        let columns = self.columns.read();
        let mut state = self.state.lock();
        if state.active.is_empty() {
            return Ok(None);
        }
        let generation = state.active.generation();
        self.freeze(&mut state, &columns)?;
        Ok(Some(generation))
    }

    /// Goes on with more columns. What is in memory keeps those that it has: the active MemTable is frozen if it has
    /// rows. Rows with the columns of before may come after this; they have nulls in the new ones.
    pub(super) fn evolve(&self, format: RowFormat, sstables: Arc<dyn SsTableWriter>) -> Result<()> {
        let mut columns = self.columns.write();
        let mut state = self.state.lock();
        if !state.active.is_empty() {
            self.freeze(&mut state, &columns)?;
        }
        *columns = Columns { format, sstables };
        state.active = columns.empty_memtable(&self.indexes, state.active.generation());
        Ok(())
    }

    /// The newest generation that is frozen and not published.
    pub(crate) fn newest_frozen(&self) -> Option<Generation> {
        self.state.lock().frozen.back().map(|(frozen, _)| frozen.memtable.generation())
    }

    fn freeze(&self, state: &mut State, columns: &Columns) -> Result<()> {
        let next = state.active.generation().next()?;
        let memtable = std::mem::replace(&mut state.active, columns.empty_memtable(&self.indexes, next));
        let counted = std::mem::take(&mut state.counted);
        // I5: everything up to `applied` is in this MemTable or an older one, and the log up to it has landed.
        let frozen = Frozen { memtable, sstables: Arc::clone(&columns.sstables), covers: state.applied };
        state.frozen.push_back((frozen, counted));
        #[cfg(test)]
        if super::mutants::is_on(super::mutants::Mutant::NewestFirst) {
            state.frozen.rotate_right(1);
        }
        self.bell.notify_one();
        Ok(())
    }

    /// The secondary indexes that every MemTable has.
    pub(crate) fn indexes(&self) -> &IndexSet {
        &self.indexes
    }

    /// The MemTables that are read, oldest first.
    pub(crate) fn memtables(&self) -> Vec<Arc<MemTable>> {
        let state = self.state.lock();
        let frozen = state.frozen.iter().map(|(frozen, _)| Arc::clone(&frozen.memtable));
        frozen.chain([Arc::clone(&state.active)]).collect()
    }

    /// Counts what a MemTable's secondary indexes have grown by as memory of the writer, if it is not published yet.
    pub(crate) fn count_indexes(&self, memtable: &Arc<MemTable>, hold: impl FnOnce(usize) -> Held) {
        let bytes: usize = memtable.secondary_index_bytes().iter().map(|(_, bytes)| bytes).sum();
        let mut state = self.state.lock();
        let State { active, counted, frozen, .. } = &mut *state;
        let counted = match frozen.iter_mut().find(|(frozen, _)| Arc::ptr_eq(&frozen.memtable, memtable)) {
            Some((_, counted)) => counted,
            None if Arc::ptr_eq(active, memtable) => counted,
            None => return,
        };
        counted.held.merge(hold(bytes.saturating_sub(counted.index_bytes)));
        counted.index_bytes = bytes.max(counted.index_bytes);
    }

    /// The oldest frozen MemTable.
    pub(super) fn oldest_frozen(&self) -> Option<Frozen> {
        let state = self.state.lock();
        let (oldest, _) = state.frozen.front()?;
        #[cfg(test)]
        if super::mutants::is_on(super::mutants::Mutant::CoversAllFrozen) {
            let covers = state.frozen.back().map_or(oldest.covers, |(newest, _)| newest.covers);
            return Some(Frozen { covers, ..oldest.clone() });
        }
        Some(oldest.clone())
    }

    /// The oldest frozen MemTable was published: readers find it among the SSTables from now on.
    pub(crate) fn published(&self, generation: Generation, sstables: Vec<SsTable>, covered: Position) {
        let released = {
            let mut state = self.state.lock();
            state.sstables = sstables;
            state.covered = state.covered.max(covered);
            match state.frozen.front().is_some_and(|(frozen, _)| frozen.memtable.generation() == generation) {
                true => state.frozen.pop_front(),
                false => None,
            }
        };
        drop(released);
    }

    /// If nothing in memory has rows: the position up to which R may rise without an SSTable.
    pub(crate) fn gap_without_rows(&self) -> Option<Position> {
        let state = self.state.lock();
        let empty = state.active.is_empty() && state.frozen.is_empty();
        #[cfg(test)]
        let empty = empty || super::mutants::is_on(super::mutants::Mutant::RaisesOverRows);
        (empty && state.applied > state.covered).then_some(state.applied)
    }

    /// R rose without an SSTable.
    pub(crate) fn covered_up_to(&self, position: Position) {
        let mut state = self.state.lock();
        state.covered = state.covered.max(position);
    }

    /// This moment. `pending` is asked for the batches that were accepted and have not landed, while nothing can
    /// land; those come back as the newest MemTable.
    pub(crate) fn view(&self, pending: impl FnOnce() -> (u64, Vec<RecordBatch>)) -> Result<LevelsView> {
        let columns = self.columns.read();
        let (accepted, mut memtables, sstables) = {
            let state = self.state.lock();
            let (landed, mut accepted) = pending();
            // The log counts a batch as landed only after it was applied here.
            let applied = usize::try_from(state.landed_batches.saturating_sub(landed)).unwrap_or(usize::MAX);
            accepted.drain(..applied.min(accepted.len()));
            let frozen = state.frozen.iter().rev().map(|(frozen, _)| frozen.memtable.snapshot());
            let memtables: Vec<_> = std::iter::once(state.active.snapshot()).chain(frozen).collect();
            (accepted, memtables, state.sstables.iter().rev().cloned().collect())
        };
        let overlay = columns.empty_memtable(&IndexSet::default(), OVERLAY);
        for (n, batch) in (1..).zip(&accepted) {
            overlay.apply(Position::new(n), &[columns.format.log_rows(batch)?])?;
        }
        memtables.insert(0, overlay.snapshot());
        memtables.retain(|memtable| memtable.rows() > 0);
        Ok(LevelsView { memtables, sstables })
    }

    pub(crate) fn stats(&self) -> MemTableStats {
        let state = self.state.lock();
        MemTableStats {
            generation: state.active.generation(),
            rows: state.active.rows(),
            batches: state.active.batches(),
            bytes: state.active.bytes(),
            index_bytes: state.active.index_bytes(),
            secondary_index_bytes: state.active.secondary_index_bytes(),
            frozen: state.frozen.len(),
            frozen_rows: state.frozen.iter().map(|(frozen, _)| frozen.memtable.rows()).sum(),
            frozen_bytes: state.frozen.iter().map(|(frozen, _)| frozen.memtable.bytes()).sum(),
            applied: state.applied,
        }
    }
}

/// Feeds the levels with what lands.
pub(crate) struct Feed {
    pub(crate) levels: Arc<Levels>,
}

impl Landed for Feed {
    fn landed(&mut self, LandedEntry { position, batches, appended, held }: LandedEntry) -> Result<(), String> {
        let applied = self.levels.apply(position, &batches, held, Origin::Landed { appended });
        self.levels.bell.notify_one();
        applied.map_err(|e| format!("entry {position} landed but cannot be applied to the MemTable: {e}"))
    }
}
