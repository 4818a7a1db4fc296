//! A table: creating, opening, and the ways into it. Holds no rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow_schema::SchemaRef;
use datafusion::catalog::TableProvider;
use fencepost_wal::gc::{GcOptions, GcProgress};
use fencepost_wal::{Error as WalError, ManifestStore, Shard, ShardId, Store, WalTailer};
use futures::future::join;
use futures::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use crate::adopt::{self, Adoption};
use crate::base::BaseTable;
#[cfg(doc)]
use crate::checkpoint::CheckpointScope;
use crate::checkpoint::{self, CheckpointOptions, Pinner, TableCheckpoint};
use crate::clone::{self, CloneOptions, CloneReport};
use crate::config::WriterConfig;
use crate::delete::{self, DeleteOptions, DeleteReport};
use crate::error::{Error, Result};
use crate::follow::{Follower, FollowerConfig, TableFollower};
use crate::gc::{self, ShardGcPlan, TableGcReport};
use crate::index::IndexConfig;
use crate::inspect::{self, Inspection};
use crate::lance_store::LanceStore;
use crate::merge::{self, MergeOptions, MergeProgress, MergeReport};
use crate::read::{SsTableCache, TableSnapshot};
use crate::reshard::{self, ReshardReport};
use crate::sharding::Sharding;
use crate::shards::{self, SHARDS_AT_ONCE};
use crate::verify::{self, Verification, VerifyProgress};
use crate::writer::{ShardWriter, TableWriter};

/// What a table is made of besides its schema. The default: append-only, one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// The columns that identify a row, in order; empty for an append-only table. Key columns become non-nullable.
    pub primary_key: Vec<String>,
    /// How rows are spread over shards. In a keyed table the sharding column is part of the key.
    pub sharding: Sharding,
}

/// A table on an object store. Cheap to clone; reading needs nothing else, writing needs a [`TableWriter`].
#[derive(Debug, Clone)]
pub struct Table {
    store: Store,
    base: BaseTable,
    /// Shared by every reader and writer of this handle.
    cache: Arc<SsTableCache>,
}

impl Table {
    /// Creates an empty table. A creation that died half way is finished by a repeated one.
    ///
    /// The table's [`schema`](Self::schema) has the types that Lance stores: strings and binary without views, and
    /// dictionaries whose keys have 32 bits or more. Batches may keep the form they have.
    ///
    /// # Errors
    /// [`Error::TableExists`]; [`Error::InvalidOptions`] if schema, key and sharding do not go together, or Lance
    /// cannot store a column.
    pub async fn create(store: Store, schema: SchemaRef, options: TableOptions) -> Result<Self> {
        Self::create_in(store, None, schema, options).await
    }

    /// As [`create`](Self::create), with the logs of all shards, also of those that are made later, in a store of their own: one
    /// of low latency, say, and the table where bytes are cheap. The table remembers the URL; options of that store are
    /// given again at [`open_with_wal_store`](Self::open_with_wal_store). Lance must not write to such a table's shards.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub async fn create_with_wal_store(
        store: Store,
        wal_store: Store,
        schema: SchemaRef,
        options: TableOptions,
    ) -> Result<Self> {
        Self::create_in(store, Some(wal_store), schema, options).await
    }

    async fn create_in(
        store: Store,
        wal_store: Option<Store>,
        schema: SchemaRef,
        options: TableOptions,
    ) -> Result<Self> {
        let TableOptions { primary_key, sharding } = options;
        sharding.validate(&schema, &primary_key)?;
        let lance = LanceStore::new(&store);
        let base = BaseTable::create(&lance, &schema, &primary_key, &sharding, wal_store).await?;
        let base = &base;
        let fixed = stream::iter(base.fixed_shards().to_vec());
        let fixed = fixed.map(|(id, value)| async move { shards::make(base, id, &value).await });
        fixed.buffer_unordered(SHARDS_AT_ONCE).try_collect::<()>().await?;
        Ok(Self::of(store, base.clone()))
    }

    /// Opens a table that Fencepost or Lance made. Nothing is written and nobody is fenced.
    ///
    /// # Errors
    /// [`Error::TableNotFound`], saying what was found instead; [`Error::NotSupported`] for a sharding that is none of
    /// [`Sharding`]'s.
    pub async fn open(store: Store) -> Result<Self> {
        let base = BaseTable::open(&LanceStore::new(&store), None).await?;
        Ok(Self::of(store, base))
    }

    /// As [`open`](Self::open), with a WAL store. Writers move the log of a shard there when they open it and find no rows above R
    /// in it (protocol section 10): after a [`flush`](Self::flush) or a clean close, that is. Readers follow what is
    /// recorded; to them this only gives the options of that store.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with_wal_store(store: Store, wal_store: Store) -> Result<Self> {
        let base = BaseTable::open(&LanceStore::new(&store), Some(wal_store)).await?;
        Ok(Self::of(store, base))
    }

    fn of(store: Store, base: BaseTable) -> Self {
        let cache = Arc::new(SsTableCache::new(base.lance_store().clone()));
        Self { store, base, cache }
    }

    /// The columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(self.base.schema())
    }

    /// The key columns in key order; empty for an append-only table.
    pub fn primary_key(&self) -> &[String] {
        self.base.primary_key()
    }

    /// How rows are spread over shards.
    pub fn sharding(&self) -> &Sharding {
        self.base.sharding()
    }

    /// The store that the table lies in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The shards, in the order of their buckets or values, those whose rows their writers choose last. Found with one
    /// LIST, and for shards that Lance made, or that hold one value each, their manifests.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn shard_ids(&self) -> Result<Vec<ShardId>> {
        let base = self.base.refreshed().await?;
        Ok(shards::discover(&base).await?.into_iter().map(|shard| shard.id).collect())
    }

    fn shard(&self, id: ShardId) -> Shard {
        self.base.shard(id)
    }

    /// The settings that writers of this table should have: the defaults, with those applied that the table keeps, see
    /// [`set_writer_defaults`](Self::set_writer_defaults). What a caller wants otherwise it changes before it opens a
    /// writer with them; a config that does not come from here knows nothing of the table's.
    ///
    /// ```no_run
    /// # async fn example(table: fencepost::Table) -> fencepost::Result<()> {
    /// let mut config = table.writer_config().await?;
    /// config.wal.max_in_flight = 8; // whatever the table says
    /// let writer = table.writer(config).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// These are `writer_config_defaults` of Lance's MemWAL index, which Lance stores and does not read:
    ///
    /// | setting of the table | field of [`WriterConfig`] |
    /// |---|---|
    /// | `durable_write` | `durable` |
    /// | `enable_memtable` | whether there is a `memtable` |
    /// | `max_memtable_size`, `max_memtable_rows`, `max_memtable_batches` | `memtable.max_bytes`, `max_rows`, `max_batches` |
    /// | `max_wal_buffer_size` | `wal.max_buffer_bytes` |
    /// | `max_wal_flush_interval_ms` | `wal.flush_interval` |
    /// | `max_unflushed_memtable_bytes` | `wal.max_unflushed_bytes` |
    /// | `backpressure_log_interval_ms` | `wal.backpressure_log_interval` |
    /// | `fencepost.max_in_flight`, `fencepost.linger_us`, `fencepost.max_puts_per_second` | `wal.max_in_flight`, `linger`, `max_puts_per_second` |
    /// | `fencepost.max_shards` | `max_shards` |
    ///
    /// A size or time that Lance allows and Fencepost does not is taken to the nearest that it does. Other settings are
    /// ignored, among them Lance's `max_wal_persist_retries` and `wal_persist_retry_base_delay_ms`: how often a request is
    /// tried again is a property of the [`Store`].
    ///
    /// # Errors
    /// [`Error::InvalidOptions`], naming setting and value, if a value cannot be read; errors of reading.
    pub async fn writer_config(&self) -> Result<WriterConfig> {
        self.base.refreshed().await?.writer_config()
    }

    /// Stores settings for the writers of this table, for [`writer_config`](Self::writer_config): those of its fields that
    /// are listed there, if they differ from the defaults. Times are stored to the millisecond, `linger` to the
    /// microsecond. Settings of Lance's that Fencepost does not know stay as they are. Writers that are open keep theirs.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] for limits out of range; errors of committing, after which it may be called again.
    pub async fn set_writer_defaults(&self, config: &WriterConfig) -> Result<()> {
        config.validate()?;
        self.base.set_writer_defaults(config).await.map(|_| ())
    }

    /// Takes every shard over for writing. Writers of this table in this or other processes are fenced by it; see
    /// [`open`](fencepost_wal::open()).
    ///
    /// # Errors
    /// The first shard's error; [`Error::InvalidOptions`] for limits out of range; [`Error::TooLarge`] for a table of
    /// more shards than [`max_shards`](WriterConfig::max_shards). [`Error::NotSupported`] for a table that Lance made,
    /// if a row could belong to several shards or to none: use [`shard_writer`](Self::shard_writer) or
    /// [`adopt`](Self::adopt), as the message says.
    pub async fn writer(&self, config: WriterConfig) -> Result<TableWriter> {
        config.validate()?;
        // Side by side, because each takes its time. A shard that cannot be read now is read again, and its error told, when
        // it is its turn.
        let discovered = async {
            let base = self.base.refreshed().await?;
            let found = shards::discover(&base).await?;
            Ok::<_, Error>((base, found))
        };
        let (discovered, seen) = join(discovered, shards::see_few(&self.base)).await;
        let (base, found) = discovered?;
        TableWriter::open(base, Arc::clone(&self.cache), config, found, &seen.unwrap_or_default()).await
    }

    /// Takes one shard over for writing. If the shard has a bucket or a value, its rows must belong there; otherwise
    /// they are the caller's to choose. Two versions of a row in two shards have no order.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if the table has no such shard; otherwise as [`writer`](Self::writer).
    pub async fn shard_writer(&self, shard: ShardId, config: WriterConfig) -> Result<ShardWriter> {
        config.validate()?;
        let base = self.base.refreshed().await?;
        if ManifestStore::new(self.shard(shard)).latest().await?.is_none() {
            let Some(value) = base.fixed_value(shard) else {
                return Err(Error::InvalidOptions(format!("the table at {} has no shard {shard}", self.store.url())));
            };
            // A creation may have died before it made the last shards.
            shards::make(&base, shard, value).await?;
            base.refreshed().await?;
        }
        ShardWriter::open(base, Arc::clone(&self.cache), self.shard(shard), config).await
    }

    /// Makes a table that Lance made, or wrote to, one that Fencepost looks after: gives it the id from which new
    /// shards get their names, and each shard the fences that garbage collection leaves. May be repeated, and run by
    /// several processes at once. Nobody is fenced.
    ///
    /// # Errors
    /// Lance's and the log's; what was done until then stays.
    pub async fn adopt(&self) -> Result<Adoption> {
        adopt::adopt(&self.base).await
    }

    /// The table as storage has it now, for SQL: base table, SSTables and the tail of each log. Writes nothing and
    /// fences nobody, so it can be used beside a writer of another process. The tails are held in memory.
    ///
    /// # Errors
    /// Errors of reading; damaged objects are named.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>> {
        Ok(self.snapshot().await?.provider())
    }

    /// The table as storage has it now, to be asked more than once; see [`provider`](Self::provider).
    ///
    /// # Errors
    /// Errors of reading; damaged objects are named.
    pub async fn snapshot(&self) -> Result<TableSnapshot> {
        Ok(TableSnapshot::new(Box::pin(TableFollower::once(&self.base, &self.cache)).await?))
    }

    /// Follows the table: a reader that keeps up with what any process writes, by asking again. It has SSTables and base table as
    /// [`snapshot`](Self::snapshot) has them, and reads each entry of the logs once. Writes nothing and fences nobody. When it is
    /// returned it has read the table once, as far as [`max_bytes`](FollowerConfig::max_bytes) allows.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] for limits that make no sense; errors of reading; damaged objects are named.
    pub async fn follow(&self, config: FollowerConfig) -> Result<Follower> {
        Follower::start(&self.base, config).await
    }

    /// Pins the table as it is now, so that it can be [read](Self::provider_at) and cloned as of then for as long as the checkpoint
    /// is there: base table, SSTables, and with scope [`Durable`](CheckpointScope::Durable) the rows that are in the log only.
    /// Nobody is fenced by that; rows that a writer has on the wire may or may not be in.
    ///
    /// With scope [`All`](CheckpointScope::All) every shard is taken over and flushed first, as by [`flush`](Self::flush), which
    /// fences its writer: a process that writes uses [`TableWriter::checkpoint`] instead.
    ///
    /// The moment is one per shard: rows that a [`TableWriter`] puts into several shards at once appear together only if it does
    /// not write meanwhile. A checkpoint takes a Lance tag of the base table, `fencepost-checkpoint-{id}`: run Lance's own cleanup
    /// with `error_if_tagged_old_versions` off.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] for a `source` that is gone; [`Error::NotSupported`] if the table has no shard yet; the first
    /// shard's, after which nothing is pinned.
    pub async fn checkpoint(&self, options: &CheckpointOptions) -> Result<TableCheckpoint> {
        let config = WriterConfig::default();
        let pinner = Pinner::Anybody(Arc::clone(&self.cache), Box::new(config));
        let made = checkpoint::make(&self.base.refreshed().await?, options, &pinner).await?;
        Ok(made.checkpoint)
    }

    /// The checkpoints of the table, oldest first; with a name, those that are called so.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn checkpoints(&self, name: Option<&str>) -> Result<Vec<TableCheckpoint>> {
        checkpoint::list(&self.base, name).await
    }

    /// The ids of checkpoints of which parts are missing, with the number of parts that are there. They are being made or deleted, or somebody
    /// died at that; until they expire, or are [deleted](Self::delete_checkpoint), they hold what their parts hold.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn unfinished_checkpoints(&self) -> Result<BTreeMap<Uuid, u64>> {
        checkpoint::unfinished(&self.base).await
    }

    /// The checkpoint of this id; or the newest of this name.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] if it is not there, has expired, or is not whole.
    pub async fn find_checkpoint(&self, id_or_name: &str) -> Result<TableCheckpoint> {
        checkpoint::find_named(&self.base, id_or_name).await
    }

    /// Sets a checkpoint's lifetime anew, counted from now; `None`: until it is deleted.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] if it is not there or has expired; errors of the log, after which it may be called again: the
    /// shortest lifetime of its parts counts.
    pub async fn refresh_checkpoint(&self, id: Uuid, lifetime: Option<Duration>) -> Result<TableCheckpoint> {
        checkpoint::refresh(&self.base, id, lifetime).await
    }

    /// Deletes a checkpoint, or what is left of one. What only it held goes with the next [`gc`](Self::gc), and protects nobody
    /// any more who reads it at the moment.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] if nothing of it is there; errors of the log, after which it may be called again.
    pub async fn delete_checkpoint(&self, id: Uuid) -> Result<()> {
        checkpoint::delete(&self.base, id).await
    }

    /// The table as a checkpoint has it, for SQL. Read-only; fences nobody. The rows that are in the log only are held in memory.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`]; [`CheckpointLost`](fencepost_wal::Error::CheckpointLost) if its log is gone.
    pub async fn provider_at(&self, checkpoint: Uuid) -> Result<Arc<dyn TableProvider>> {
        Ok(self.snapshot_at(checkpoint).await?.provider())
    }

    /// The table as a checkpoint has it, to be asked more than once; see [`provider_at`](Self::provider_at).
    ///
    /// # Errors
    /// As [`provider_at`](Self::provider_at).
    pub async fn snapshot_at(&self, checkpoint: Uuid) -> Result<TableSnapshot> {
        let checkpoint = checkpoint::find(&self.base, checkpoint).await?;
        Ok(TableSnapshot::new(checkpoint::snapshot_at(&self.base, &checkpoint).await?))
    }

    /// Clones the table to another place, as a checkpoint has it or as it is now: a table of its own, which shares the files of this one
    /// and copies only what is in the log behind the last flush. Neither sees what the other one writes from then on. Nobody is
    /// fenced.
    ///
    /// This table cannot be deleted as long as the clone is there, and keeps what the clone shares. A call that died is repeated with the
    /// same arguments; until then the clone opens for nobody. Where the logs of this table are is found as for reading, see
    /// [`open_with_wal_store`](Self::open_with_wal_store).
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`]; [`Error::TableExists`]; [`Error::NotSupported`] if another clone was begun there, or the base table
    /// cannot be shared; [`CheckpointLost`](fencepost_wal::Error::CheckpointLost), which names the first entry of the log that is missing.
    pub async fn clone_to(&self, target: Store, options: &CloneOptions) -> Result<(Self, CloneReport)> {
        let pinner = Pinner::Anybody(Arc::clone(&self.cache), Box::default());
        let (base, report) = clone::clone_to(&self.base, &target, options, &pinner).await?;
        Ok((Self::of(target, base), report))
    }

    /// Gives a table that is sharded by buckets another number of them: more by a power of two (a split) or less (a join). No SSTable is copied: the new
    /// shards list those of the old ones, each with the rows that are its own, until they are merged.
    ///
    /// Every shard is taken over, flushed and sealed; its writer is fenced, and told the new layout ([`Error::Resharded`]). Readers go on: they see the
    /// old layout until one commit of the base table switches to the new one, and nothing in between. A call that died leaves one or
    /// the other; until it is repeated with the same number, or [given up](Self::give_up_resharding), no shard that it has sealed takes a
    /// writer.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for another sharding; [`Error::InvalidOptions`] for a number that is no multiple or part by a power of two;
    /// errors of taking a shard over and flushing it.
    pub async fn reshard(&self, buckets: u32, config: WriterConfig) -> Result<ReshardReport> {
        reshard::reshard(&self.base, &self.cache, buckets, &config).await
    }

    /// Gives up a [`reshard`](Self::reshard) that was not finished: the table stays as it was, and takes writers again. False: none was under way.
    ///
    /// # Errors
    /// Errors of committing; it may be repeated.
    pub async fn give_up_resharding(&self) -> Result<bool> {
        reshard::give_up(&self.base).await
    }

    /// Where the table was cloned from; `None`: it is no clone.
    pub fn origin(&self) -> Option<String> {
        self.base.origins().into_iter().next()
    }

    /// Deletes a table, also a clone that was not finished. Every shard is taken over first, so that its writer acknowledges nothing any
    /// more. A few objects of under 1 KiB stay for each, which a writer that has stalled since before has to meet; see
    /// [`DeleteOptions::purge`]. A call that died is repeated.
    ///
    /// # Errors
    /// [`TableNotFound`](Error::TableNotFound); [`Pinned`](fencepost_wal::Error::Pinned) while a checkpoint is live or a clone shares its
    /// files, after which nothing has changed.
    pub async fn delete(store: Store, options: &DeleteOptions) -> Result<DeleteReport> {
        delete::delete(&store, options).await
    }

    /// Makes a secondary index of the table, in one commit of the base table. Writers that are opened from now on maintain it
    /// for rows that are not merged yet; the rows of open writers, and of SSTables that have no such index, are found all the
    /// same, by reading them.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if the index cannot be on its column, or its name is taken; Lance's.
    pub async fn create_index(&self, index: &IndexConfig) -> Result<()> {
        self.base.refreshed().await?.create_index(index).await
    }

    /// Drops a secondary index of the base table, in one commit. SSTables keep theirs until they are merged.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if there is none of this name; Lance's.
    pub async fn drop_index(&self, name: &str) -> Result<()> {
        self.base.refreshed().await?.drop_index(name).await
    }

    /// The secondary indexes of the base table, in the order of their names. Of a vector index only the metric is told.
    /// Indexes of other kinds, which Lance may have made, are left out.
    ///
    /// # Errors
    /// Lance's.
    pub async fn indexes(&self) -> Result<Vec<IndexConfig>> {
        self.base.refreshed().await?.secondary_indexes().await
    }

    /// Where every shard stands.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn inspect(&self) -> Result<Inspection> {
        inspect::inspect(&self.base.refreshed().await?).await
    }

    /// Reads every object of every shard, and says what is missing, damaged or contradicts another one, and what to do
    /// about it. Of the base table, metadata and record of merges are checked, not its rows. Writes nothing and fences
    /// nobody; may run beside writers, mergers and collectors, whose steps are not taken for damage. `progress` is
    /// called with every object.
    ///
    /// # Errors
    /// Errors of reading that say nothing about the table: the store does not answer. Damage is in the result.
    pub async fn verify(&self, progress: impl Fn(VerifyProgress) + Send + Sync) -> Result<Verification> {
        verify::verify(&self.base, &progress).await
    }

    /// Takes every shard over, flushes what its log holds, and closes it. Also works where [`writer`](Self::writer)
    /// cannot choose a shard.
    ///
    /// # Errors
    /// The first shard's, as [`shard_writer`](Self::shard_writer) and [`ShardWriter::close`]; the others are flushed
    /// all the same. [`Error::InvalidOptions`] for a WAL-only configuration, which has nothing to flush into.
    pub async fn flush(&self, config: WriterConfig) -> Result<()> {
        if config.memtable.is_none() {
            return Err(Error::InvalidOptions(
                "flushing needs a MemTable: set `memtable` in the writer's config".into(),
            ));
        }
        let base = self.base.refreshed().await?;
        let made = shards::discover(&base).await?.into_iter().filter(|shard| shard.made);
        let flushed = stream::iter(made).map(|shard| {
            let (base, cache, config) = (base.clone(), Arc::clone(&self.cache), config.clone());
            let shard = self.shard(shard.id);
            async move {
                match ShardWriter::open(base, cache, shard, config).await {
                    Ok(writer) => writer.close().await,
                    // A folder is all that there is of it.
                    Err(Error::Wal(WalError::ShardNotFound { .. })) => Ok(()),
                    Err(error) => Err(error),
                }
            }
        });
        let flushed: Vec<Result<()>> = flushed.buffer_unordered(SHARDS_AT_ONCE).collect().await;
        flushed.into_iter().collect()
    }

    /// Merges the SSTables of every shard into the base table, one generation per commit of the base. Writes nothing to
    /// the shards and fences nobody: it can run beside writers, and beside other mergers. What is flushed while it
    /// runs waits for the next call. `progress` is called at the start and after every SSTable.
    ///
    /// One SSTable at a time is held in memory.
    ///
    /// # Errors
    /// What was merged before stays merged, and the call can be repeated. [`Error::Corrupt`] if a generation is missing,
    /// [`Error::Lance`] if one could not be merged in [`MergeOptions::attempts`] attempts.
    pub async fn merge(&self, options: &MergeOptions, progress: impl FnMut(MergeProgress)) -> Result<MergeReport> {
        merge::merge(&self.base, options, progress).await
    }

    /// Deletes what nobody needs any more of every shard: log entries that were flushed, SSTables that the base table has,
    /// expired checkpoints, old manifests. It fences nobody and may run beside writers, readers and other collectors; a
    /// writer does the same for its own shard, see [`WalConfig::gc`](fencepost_wal::WalConfig::gc). `progress` is called
    /// after every request that deletes.
    ///
    /// # Errors
    /// The first shard's; the others are collected all the same, and the call can be repeated.
    pub async fn gc(&self, options: &GcOptions, progress: impl FnMut(GcProgress) + Send) -> Result<TableGcReport> {
        gc::collect(&self.base, options, progress).await
    }

    /// What [`gc`](Self::gc) would do now. Writes nothing.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn gc_dry_run(&self, options: &GcOptions) -> Result<Vec<ShardGcPlan>> {
        gc::dry_run(&self.base, options).await
    }

    /// A reader of one shard's log.
    pub fn tailer(&self, shard: ShardId) -> WalTailer {
        WalTailer::new(self.shard(shard))
    }
}
