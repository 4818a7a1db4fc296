//! The writer of one shard: rows become durable in its log, are applied to its MemTable when they have landed, and
//! are flushed to SSTables in the background.

mod flush;
mod indexing;
mod levels;
#[cfg(test)]
mod mutants;
mod open_shards;
#[cfg(test)]
mod simulation;
mod sstable_writer;
mod stats;
mod table;

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use fencepost_wal::checkpoint::{Checkpoint, CheckpointOptions};
use fencepost_wal::gc::{BackgroundGc, BaseProgress};
use fencepost_wal::{
    BackgroundTask, Durability as Landing, Epoch, Error as WalError, Generation, Meter, Opened, Position, Replay,
    SeenManifest, Shard, ShardId, Tenure, WalOnly, WalWriter,
};
use futures::future::{BoxFuture, FutureExt};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::base::BaseTable;
use crate::checkpoint::CheckpointScope;
use crate::config::{MemTableConfig, WriterConfig};
use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::evolution;
use crate::gc;
use crate::memtable::{IndexSet, batch_bytes};
use crate::read::{ShardView, Snapshot, SsTableCache, TableSnapshot};
use crate::reshard;
use crate::rows::RowFormat;
use crate::sharding::{Router, ShardValue};
use crate::shards;
use crate::written::Written;
use flush::{Flusher, Progress};
use levels::{Feed, Levels, Origin};
use sstable_writer::{LanceWriter, SsTableWriter};

pub use levels::MemTableStats;
pub(crate) use open_shards::OpenShards;
pub use stats::WriterStats;
pub use table::TableWriter;

/// Writes to one shard. Only one writer of a shard can acknowledge anything: opening it takes the shard over.
///
/// Rows of one key follow the order in which the futures of their puts and deletes were first polled. Dropping the
/// writer without [`close`](Self::close) is like a crash: nothing acknowledged is lost.
#[derive(Debug)]
pub struct ShardWriter {
    shard: Shard,
    cache: Arc<SsTableCache>,
    value: ShardValue,
    columns: RwLock<Arc<Columns>>,
    indexes: IndexSet,
    durable: bool,
    wal: Arc<WalWriter>,
    memory: Option<Memory>,
    gc: Option<BackgroundGc>,
    /// Calls that took rows.
    puts: Meter,
}

/// The columns that a writer takes, and the version of the base table that it knows them from.
#[derive(Debug)]
struct Columns {
    base: BaseTable,
    format: RowFormat,
    /// Where the shard's value says which rows it takes.
    router: Option<Router>,
}

impl Columns {
    fn of(base: &BaseTable, value: &ShardValue) -> Result<Arc<Self>> {
        let format = RowFormat::of(base)?;
        let router = match value {
            ShardValue::Bucket(_) | ShardValue::Identity(_) => Some(Router::try_new(base.sharding(), &format.user)?),
            ShardValue::All | ShardValue::Unknown => None,
        };
        Ok(Arc::new(Self { base: base.clone(), format, router }))
    }
}

/// What a writer with a MemTable has and a WAL-only one has not.
struct Memory {
    levels: Arc<Levels>,
    flusher: Arc<Flusher>,
    task: BackgroundTask,
    indexing: BackgroundTask,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("stats", &self.levels.stats()).finish_non_exhaustive()
    }
}

impl ShardWriter {
    /// Takes the shard over, replays its log, and starts to write. One that is sealed is not there any more, or not yet, for writers: the error
    /// says which layout the table has.
    pub(crate) async fn open(
        base: BaseTable,
        cache: Arc<SsTableCache>,
        shard: Shard,
        config: WriterConfig,
    ) -> Result<Self> {
        Self::open_seen(base, cache, shard, config, None).await
    }

    /// As [`open`](Self::open), with the shard's manifest if the caller has read it a moment ago.
    pub(crate) async fn open_seen(
        base: BaseTable,
        cache: Arc<SsTableCache>,
        shard: Shard,
        config: WriterConfig,
        seen: Option<SeenManifest>,
    ) -> Result<Self> {
        match Self::open_in_layout(base.clone(), Arc::clone(&cache), shard.clone(), config.clone(), seen).await {
            Err(Error::Wal(error @ WalError::ShardClosed { state: "sealed", .. })) => {
                match reshard::unseal(&base, &shard).await? {
                    true => Self::open_in_layout(base, cache, shard, config, None).await,
                    false => Err(reshard::too_late(&base, error.into()).await),
                }
            }
            opened => opened,
        }
    }

    /// [`open_seen`](Self::open_seen) without a word about layouts.
    pub(crate) async fn open_in_layout(
        base: BaseTable,
        cache: Arc<SsTableCache>,
        shard: Shard,
        config: WriterConfig,
        seen: Option<SeenManifest>,
    ) -> Result<Self> {
        let indexes = indexing::indexes_of(&base, &config).await?;
        let sstables = lance_writer(&base, &indexes);
        Self::open_with(base, cache, shard, config, seen, sstables).await
    }

    /// [`open_seen`](Self::open_seen) with SSTables of another form, which only their writer can read.
    async fn open_with(
        base: BaseTable,
        cache: Arc<SsTableCache>,
        shard: Shard,
        config: WriterConfig,
        seen: Option<SeenManifest>,
        sstables: Arc<dyn SsTableWriter>,
    ) -> Result<Self> {
        // Before anybody is fenced.
        config.validate()?;
        // Whether it can be written to at all.
        RowFormat::of(&base)?;
        let indexes = indexing::indexes_of(&base, &config).await?;
        let seen = shards::see_for_writing(&base, shard.id(), seen).await?;
        let Opened { tenure, replay } = fencepost_wal::open_seen(&shard, &config.open, seen).await?;
        let value = base.shard_value(shard.id(), Some(&tenure.manifest().await));
        let columns = Columns::of(&base, &value)?;
        let format = &columns.format;
        let WriterConfig { durable, wal, memtable, .. } = config;
        let collected = (tenure.clone(), wal.gc.clone());
        let (wal, memory) = match memtable {
            Some(memtable) => {
                let (wal, memory) = Memory::open(sstables, format, &indexes, tenure, replay, wal, memtable).await?;
                (wal, Some(memory))
            }
            None => (Arc::new(WalWriter::start(tenure, Arc::clone(&format.user), wal, WalOnly)?), None),
        };
        let gc = match collected {
            (tenure, Some(config)) => {
                Some(BackgroundGc::start(tenure, config, base_progress(base.clone(), shard.id())))
            }
            (_, None) => None,
        };
        let columns = RwLock::new(columns);
        Ok(Self { shard, cache, value, columns, indexes, durable, wal, memory, gc, puts: Meter::default() })
    }

    /// The shard.
    pub fn shard_id(&self) -> ShardId {
        self.shard.id()
    }

    /// Which rows the shard takes. [`ShardValue::Unknown`]: the caller decides.
    pub fn value(&self) -> &ShardValue {
        &self.value
    }

    /// The writer epoch.
    pub fn epoch(&self) -> Epoch {
        self.tenure().epoch()
    }

    /// The columns that it takes now.
    fn columns(&self) -> Arc<Columns> {
        Arc::clone(&self.columns.read())
    }

    /// The columns that puts have. See [`refresh_schema`](Self::refresh_schema) for those that were added to the table
    /// since the writer was opened.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.columns().format.user)
    }

    /// Looks whether nullable columns were added to the table, as by Lance's `add_columns`, and goes on with them: puts
    /// have them from then on, and queries see them. Returns the names of those that are new to this writer.
    ///
    /// Nothing else does that: until this is called, the writer takes the columns that the table had when it was opened,
    /// and goes on undisturbed. What it has written before has nulls in the new columns: in the log, in SSTables, and in
    /// its MemTable, which is frozen if it has rows. Whether calls that are under way have the columns of before or of
    /// now does not matter.
    ///
    /// # Errors
    /// [`Error::SchemaChanged`] if columns were dropped, renamed or given another type, or one was added that may not be
    /// null. The writer goes on with the columns that it has. Errors of reading.
    pub async fn refresh_schema(&self) -> Result<Vec<String>> {
        let base = self.columns().base.refreshed().await?;
        self.evolve_to(&base)
    }

    fn evolve_to(&self, base: &BaseTable) -> Result<Vec<String>> {
        // One at a time, and no put in between that has the columns of one and the storage schema of the other.
        let mut columns = self.columns.write();
        if base.version() <= columns.base.version() {
            return Ok(Vec::new());
        }
        let added = evolution::added_columns(&columns.base, base)?;
        if added.is_empty() {
            return Ok(added);
        }
        let next = Columns::of(base, &self.value)?;
        // In the order in which rows come back from the log: whoever gets them knows their columns first.
        let logged = match &self.memory {
            Some(memory) => {
                memory.levels.evolve(next.format.clone(), lance_writer(base, &self.indexes))?;
                &next.format.storage
            }
            None => &next.format.user,
        };
        self.wal.add_columns(Arc::clone(logged))?;
        *columns = next;
        Ok(added)
    }

    fn tenure(&self) -> &Tenure {
        self.wal.tenure()
    }

    /// Inserts rows, or replaces the rows of the same keys. Durable when it returns, unless the writer was opened
    /// with `durable: false`.
    ///
    /// A batch larger than one WAL entry is spread over several: if the process dies before this returns, some of
    /// its rows may be in the table and others not.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`], also for a row that belongs to another shard, and [`Error::TooLarge`] change nothing.
    /// Errors of the log say in [`Error::outcome`] what is true of the rows.
    pub async fn put(&self, batch: RecordBatch) -> Result<Written> {
        let checked = self.columns().format.check_put(&batch)?;
        self.indexes.check_rows(&checked)?;
        self.check_shard(&checked)?;
        self.put_checked(checked).await
    }

    /// Reads that leave a shard out by its value rely on it.
    fn check_shard(&self, batch: &RecordBatch) -> Result<()> {
        self.columns().router.as_ref().map_or(Ok(()), |router| router.check(batch, &self.value))
    }

    /// As [`put`](Self::put), but returns when the rows are queued in memory (at once, if there is room). What it
    /// returns resolves when they are durable, and may be dropped. They are sent when those of a `put` of this writer
    /// would be: as soon as a PUT may start, or with `durable: false` within
    /// [`flush_interval`](fencepost_wal::WalConfig::flush_interval).
    ///
    /// # Errors
    /// As [`put`](Self::put), if the rows could not be queued; nothing of them is written then.
    pub async fn put_no_wait(&self, batch: RecordBatch) -> Result<Durability> {
        let checked = self.columns().format.check_put(&batch)?;
        self.indexes.check_rows(&checked)?;
        self.check_shard(&checked)?;
        self.put_checked_no_wait(checked).await
    }

    /// [`put`](Self::put) of rows that were checked, and belong here.
    async fn put_checked(&self, checked: RecordBatch) -> Result<Written> {
        self.append(self.logged(checked)?).await
    }

    async fn put_checked_no_wait(&self, checked: RecordBatch) -> Result<Durability> {
        self.append_no_wait(self.logged(checked)?).await
    }

    /// Checked rows as they are logged.
    fn logged(&self, checked: RecordBatch) -> Result<RecordBatch> {
        match &self.memory {
            Some(_) => self.columns().format.to_storage(&checked),
            None => Ok(checked),
        }
    }

    /// Deletes the rows of these keys, given as a batch of the primary-key columns. Keys without a row are allowed.
    ///
    /// # Errors
    /// As [`put`](Self::put); [`Error::NotSupported`] without a primary key, and in WAL-only mode, whose log holds
    /// rows only.
    pub async fn delete(&self, keys: RecordBatch) -> Result<Written> {
        self.memory("delete")?;
        let keys = self.columns().format.check_keys(&keys)?;
        self.check_shard(&keys)?;
        self.delete_checked(keys).await
    }

    /// As [`delete`](Self::delete), but returns when the deletions are queued in memory; see
    /// [`put_no_wait`](Self::put_no_wait).
    ///
    /// # Errors
    /// As [`delete`](Self::delete), if they could not be queued; nothing of them is written then.
    pub async fn delete_no_wait(&self, keys: RecordBatch) -> Result<Durability> {
        self.memory("delete")?;
        let keys = self.columns().format.check_keys(&keys)?;
        self.check_shard(&keys)?;
        self.delete_checked_no_wait(keys).await
    }

    /// [`delete`](Self::delete) of keys that were checked, and belong here.
    async fn delete_checked(&self, keys: RecordBatch) -> Result<Written> {
        self.memory("delete")?;
        let tombstones = self.columns().format.tombstones(&keys)?;
        self.append(tombstones).await
    }

    async fn delete_checked_no_wait(&self, keys: RecordBatch) -> Result<Durability> {
        self.memory("delete")?;
        let tombstones = self.columns().format.tombstones(&keys)?;
        self.append_no_wait(tombstones).await
    }

    async fn append(&self, batch: RecordBatch) -> Result<Written> {
        let (rows, started) = (batch.num_rows(), Instant::now());
        if rows == 0 {
            return Ok(Written::default());
        }
        let queued = self.queue(batch).await?;
        let bytes = queued.bytes();
        let written = match self.durable {
            true => Written::in_shard(self.shard.id(), queued.await?),
            false => Written::default(),
        };
        self.puts.record(rows, bytes, started.elapsed());
        Ok(written)
    }

    async fn append_no_wait(&self, batch: RecordBatch) -> Result<Durability> {
        let (rows, started) = (batch.num_rows(), Instant::now());
        if rows == 0 {
            return Ok(Durability::of_nothing());
        }
        let queued = self.queue(batch).await?;
        self.puts.record(rows, queued.bytes(), started.elapsed());
        let shard = self.shard.id();
        Ok(Durability::new(async move { Ok(Written::in_shard(shard, queued.await?)) }))
    }

    /// I8: gives rows their place in the log with its first poll.
    async fn queue(&self, batch: RecordBatch) -> Result<Landing> {
        Ok(match self.durable {
            true => self.wal.append_urgent(batch).await?,
            false => self.wal.append_no_wait(batch).await?,
        })
    }

    /// Waits until every row accepted so far is durable and, with a MemTable, in an SSTable. Afterwards R is at the
    /// end of the log.
    ///
    /// # Errors
    /// [`Error::FlushFailed`] if SSTables cannot be written; the rows are safe in the log and the writer goes on
    /// trying. Errors of the log as for [`put`](Self::put).
    pub async fn flush(&self) -> Result<()> {
        self.flush_accepted().await.map_err(Error::about_earlier_rows)
    }

    async fn flush_accepted(&self) -> Result<()> {
        self.wal.flush().await?;
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        if let Some(generation) = memory.levels.freeze_active()? {
            memory.flusher.wait_for(generation).await?;
        }
        // Sentinels and dead entries count too: no gap is left between R and the end of the log.
        if let Some(position) = memory.levels.gap_without_rows() {
            let raised = self.tenure().publish(None, position).await;
            // The rows are in SSTables; only R could not be raised, unless the writer stopped.
            raised.map_err(|error| match self.tenure().check() {
                Err(_) => Error::from(error),
                Ok(()) => {
                    Error::FlushFailed { generation: memory.levels.stats().generation, reason: error.to_string() }
                }
            })?;
            memory.levels.covered_up_to(position);
        }
        Ok(())
    }

    /// Freezes the active MemTable, which is then written as an SSTable in the background. Returns its generation, or
    /// `None` if it has no rows. Its rows are those that are durable by now: rows that are still on their way, of calls
    /// that were not answered, come into the next MemTable; [`flush`](Self::flush) waits for these, too.
    ///
    /// # Errors
    /// [`Error::NotSupported`] in WAL-only mode; the error that stopped the writer, if one did.
    pub fn force_freeze(&self) -> Result<Option<Generation>> {
        let memory = self.memory("force_freeze")?;
        self.tenure().check()?;
        memory.levels.force_freeze()
    }

    /// Waits until every MemTable that is frozen by now is published as an SSTable. The active one is not waited for,
    /// and neither are those that are frozen later.
    ///
    /// # Errors
    /// [`Error::NotSupported`] in WAL-only mode; as [`flush`](Self::flush). Frozen rows are durable in any case.
    pub async fn wait_for_flush_drain(&self) -> Result<()> {
        let memory = self.memory("wait_for_flush_drain")?;
        match memory.levels.newest_frozen() {
            Some(generation) => memory.flusher.wait_for(generation).await.map_err(Error::about_durable_rows),
            None => Ok(()),
        }
    }

    /// Stops at once, as if the process had died, but tidily: it returns when every task of this writer has ended. Calls
    /// that wait are answered with [`Aborted`](fencepost_wal::Error::Aborted): "not written" if nothing of their rows
    /// was sent, "unknown" otherwise; later calls fail too. Nothing that was acknowledged is lost: the next writer
    /// replays it. Nothing is written by this call, so the next writer finds no clean close.
    pub async fn abort(&self) {
        self.wal.abort().await;
        if let Some(memory) = &self.memory {
            // I5: a flush that is stopped anywhere is like a crash there; R moves with a publish or not at all.
            memory.task.stop();
            memory.indexing.stop();
            memory.task.ended().await;
            memory.indexing.ended().await;
            memory.flusher.ended();
        }
        if let Some(gc) = &self.gc {
            gc.ended().await;
        }
    }

    /// Pins this shard as this writer knows it, while it goes on writing: every row that was accepted before the call is in. With scope
    /// [`All`](CheckpointScope::All) these are flushed first, and the same manifest that lists the checkpoint has R at its end, so
    /// that it needs no entry of the log.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for scope `All` in WAL-only mode; as [`flush`](Self::flush); errors of
    /// [`checkpoint::create`](fencepost_wal::checkpoint::create()).
    pub async fn checkpoint(&self, scope: CheckpointScope, options: &CheckpointOptions) -> Result<Checkpoint> {
        match scope {
            CheckpointScope::Durable => {
                self.wal.flush().await.map_err(|error| Error::from(error).about_earlier_rows())?;
                Ok(fencepost_wal::checkpoint::create(&self.shard, options).await?)
            }
            CheckpointScope::All => {
                let memory = self.memory("a checkpoint of scope `All`")?;
                self.flush().await?;
                // Rows that came since stay behind R. Without any, it passes over sentinels and dead entries (schedule 9).
                let covers = memory.levels.gap_without_rows();
                let made = self.tenure().checkpoint(covers, options).await?;
                memory.levels.covered_up_to(made.replay_after);
                Ok(made)
            }
        }
    }

    /// Flushes, ends the tenure cleanly, and seals the shard.
    pub(crate) async fn seal(self) -> Result<()> {
        self.flush().await?;
        let covers = self.memory("sealing")?.levels.gap_without_rows();
        self.tenure().seal(covers).await?;
        Ok(())
    }

    /// Flushes and ends the tenure cleanly. In WAL-only mode the log stays as it is, for its consumer.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); what could not be flushed is replayed by the next writer.
    pub async fn close(self) -> Result<()> {
        self.end().await
    }

    /// [`close`](Self::close) of a writer that others may still hold: their calls fail from now on.
    async fn end(&self) -> Result<()> {
        let flushed = self.flush().await;
        let closed = self.wal.close().await;
        flushed?;
        closed.map_err(|error| Error::from(error).about_earlier_rows())
    }

    /// The rows of this shard that are not merged into the base table yet: one row per key, newest first wins,
    /// deletions applied.
    ///
    /// # Errors
    /// [`Error::NotSupported`] in WAL-only mode; the error that stopped the writer, if one did.
    pub async fn scan(&self) -> Result<SendableRecordBatchStream> {
        let (base, columns, view) = self.moment().await?;
        Snapshot::of_shard(base, columns.format.clone(), &self.cache, view).scan()
    }

    /// What this writer has on top of a base version, and the columns that it knows.
    async fn moment(&self) -> Result<(BaseTable, Arc<Columns>, ShardView)> {
        // Section 9: the base first, so that what was merged is left out.
        let columns = self.columns();
        let base = columns.base.refreshed().await?;
        reshard::check_layout(&columns.base, &base, self.shard.id()).await?;
        evolution::added_columns(&columns.base, &base)?;
        let view = self.view()?;
        self.confirm_on(&base).await?;
        Ok((base, columns, view))
    }

    /// The error that fenced this writer, if one did and it knows.
    fn fenced(&self) -> Option<WalError> {
        self.tenure().check().err().filter(|error| matches!(error, WalError::Fenced { .. }))
    }

    /// Whether what this writer knows can be read together with a base version. If the base has merged a generation
    /// that this writer has not seen published, either the publish has landed and its answer is on the way, or a
    /// successor has numbered other rows so: then a MemTable of that number holds neither what the base has nor what
    /// is behind it.
    async fn confirm_on(&self, base: &BaseTable) -> Result<()> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        let stats = memory.levels.stats();
        let unpublished = stats.generation.get().saturating_sub(stats.frozen as u64);
        match base.merged().get(&self.shard.id()) {
            Some(merged) if merged.get() >= unpublished => Ok(self.tenure().confirm().await?),
            _ => Ok(()),
        }
    }

    /// What this shard has on top of the base table, to be asked more than once, as [`scan`](Self::scan) sees it, together with
    /// the base table's rows.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    pub async fn snapshot(&self) -> Result<TableSnapshot> {
        let (base, columns, view) = self.moment().await?;
        Ok(TableSnapshot::new(Snapshot::of_table(base, columns.format.clone(), &self.cache, vec![view])))
    }

    /// Brings the secondary indexes up to every row that was acknowledged before the call. Nobody has to: searches look at
    /// what an index has not got yet. But a vector index is slow to make, and faster to ask than its rows.
    ///
    /// # Errors
    /// [`Error::NotSupported`] in WAL-only mode; Lance's, after which rows are found without the index.
    pub async fn catch_up_indexes(&self) -> Result<()> {
        let memory = self.memory("catch_up_indexes")?;
        indexing::catch_up(&memory.levels, &self.wal).await
    }

    /// What readers see of this shard now.
    pub(crate) fn view(&self) -> Result<ShardView> {
        let memory = self.memory("reading through the writer")?;
        // A poisoned writer does not serve reads: it no longer knows what is true.
        self.tenure().check()?;
        let pending = || match self.durable {
            true => (u64::MAX, Vec::new()),
            false => self.wal.pending(),
        };
        let view = memory.levels.view(pending)?;
        let (shard, value) = (self.shard.id(), self.value.clone());
        Ok(ShardView { shard, value, memtables: view.memtables, sstables: view.sstables })
    }

    /// Declares the log entries at or below a position consumed. For WAL-only writers; with a MemTable the flusher
    /// does it.
    ///
    /// # Errors
    /// [`Error::NotSupported`] with a MemTable; errors of [`Tenure::truncate`].
    pub async fn truncate(&self, position: Position) -> Result<()> {
        if self.memory.is_some() {
            return Err(Error::NotSupported(
                "the log of a writer with a MemTable is truncated by flushing; call `flush`".into(),
            ));
        }
        self.wal.truncate(position).await?;
        Ok(())
    }

    /// Counters of this writer.
    pub fn stats(&self) -> WriterStats {
        let mut wal = self.wal.stats();
        wal.gc = self.gc.as_ref().map(BackgroundGc::stats).unwrap_or_default();
        let stats = WriterStats::of_log(wal, self.puts.stats());
        match &self.memory {
            Some(Memory { levels, flusher, .. }) => {
                let progress = flusher.progress.borrow().clone();
                stats.with_memtable(levels.updates.stats(), flusher.flushes.stats(), progress)
            }
            None => stats,
        }
    }

    /// Sizes of the MemTables.
    ///
    /// # Errors
    /// [`Error::NotSupported`] in WAL-only mode.
    pub fn memtable_stats(&self) -> Result<MemTableStats> {
        Ok(self.memory("memtable_stats")?.levels.stats())
    }

    fn memory(&self, what: &str) -> Result<&Memory> {
        self.memory.as_ref().ok_or_else(|| {
            Error::NotSupported(format!("{what} needs a MemTable, and this writer was opened in WAL-only mode"))
        })
    }
}

/// Makes SSTables that go with a base table.
fn lance_writer(base: &BaseTable, indexes: &IndexSet) -> Arc<dyn SsTableWriter> {
    Arc::new(LanceWriter { base: base.clone(), indexes: indexes.clone() })
}

/// What the collector of a shard asks before each run.
fn base_progress(base: BaseTable, id: ShardId) -> impl Fn() -> BoxFuture<'static, Result<BaseProgress, String>> {
    move || {
        let base = base.clone();
        async move { gc::progress(&base, id).await.map_err(|error| error.to_string()) }.boxed()
    }
}

impl Memory {
    async fn open(
        sstables: Arc<dyn SsTableWriter>,
        format: &RowFormat,
        indexes: &IndexSet,
        tenure: Tenure,
        replay: Replay,
        wal: fencepost_wal::WalConfig,
        config: MemTableConfig,
    ) -> Result<(Arc<WalWriter>, Self)> {
        let manifest = tenure.manifest().await;
        let levels = Arc::new(Levels::new(
            format.clone(),
            sstables,
            config.clone(),
            indexes.clone(),
            manifest.current_generation,
            manifest.sstables,
            replay.replay_after(),
        ));
        let feed = Feed { levels: Arc::clone(&levels) };
        let wal = Arc::new(WalWriter::start(tenure.clone(), Arc::clone(&format.storage), wal, feed)?);
        let flusher = Arc::new(Flusher {
            tenure: tenure.clone(),
            levels: Arc::clone(&levels),
            config,
            progress: watch::Sender::new(Progress::default()),
            flushes: Meter::default(),
        });
        replay_into(&levels, &flusher, &wal, replay).await?;
        levels.caught_up_to(tenure.sentinel());
        let task = BackgroundTask::spawn(Arc::clone(&flusher).run(Arc::clone(&wal)));
        let indexing = BackgroundTask::spawn(indexing::run(Arc::clone(&levels), tenure, Arc::clone(&wal)));
        Ok((wal, Self { levels, flusher, task, indexing }))
    }
}

/// Rebuilds the MemTable from the log. Whatever reaches the limits is flushed on the way, so that a log written with
/// larger limits opens in the memory that these allow (schedule 18).
async fn replay_into(levels: &Levels, flusher: &Flusher, wal: &WalWriter, mut replay: Replay) -> Result<()> {
    let stamped_up_to = replay.stamped_up_to().unwrap_or(Position::ZERO);
    while let Some(entry) = replay.next().await? {
        let bytes = entry.batches.iter().map(batch_bytes).sum();
        let held = wal.hold(bytes);
        let in_budget = held.bytes() >= bytes;
        // Schedule 31: also what is ours, if Lance's comes behind it.
        let origin = match entry.position > stamped_up_to {
            true => Origin::Replay,
            false => Origin::ReplayOfLance,
        };
        levels
            .apply(entry.position, &entry.batches, held, origin)
            .map_err(|error| error.in_log_entry(flusher.tenure.shard(), entry.position))?;
        if !in_budget && origin == Origin::Replay {
            levels.freeze_active()?;
        }
        flusher.flush_frozen().await?;
    }
    Ok(())
}
