//! A table: creating, opening, and the ways into it. Holds no rows.

use std::sync::Arc;

use arrow_schema::SchemaRef;
use datafusion::catalog::TableProvider;
use fencepost_wal::{ManifestStore, Shard, ShardFieldEntry, ShardId, ShardManifest, Store, WalTailer};
use futures::{StreamExt, TryStreamExt, stream};

use crate::base::{self, BaseTable};
use crate::config::WriterConfig;
use crate::error::{Error, Result};
use crate::inspect::{self, Inspection};
use crate::lance_store::LanceStore;
use crate::read::{LsmTable, SsTableCache, snapshot_from_storage};
use crate::sharding::Sharding;
use crate::writer::{ShardWriter, TableWriter};

/// Shards that are created or taken over at once.
const SHARDS_AT_ONCE: usize = 8;

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
        let TableOptions { primary_key, sharding } = options;
        sharding.validate(&schema, &primary_key)?;
        let lance = LanceStore::new(&store);
        let base = BaseTable::create(&lance, &schema, &primary_key, &sharding).await?;
        let table = Self::of(store, base);
        table.create_shards().await?;
        Ok(table)
    }

    /// Opens a table. Nothing is written and nobody is fenced.
    ///
    /// # Errors
    /// [`Error::TableNotFound`], saying what was found instead.
    pub async fn open(store: Store) -> Result<Self> {
        let base = BaseTable::open(&LanceStore::new(&store)).await?;
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

    /// The shards, in bucket order.
    pub fn shard_ids(&self) -> Vec<ShardId> {
        self.base.shard_ids()
    }

    fn shard(&self, id: ShardId) -> Shard {
        Shard::new(self.store.clone(), id)
    }

    /// Takes every shard over for writing. Writers of this table in this or other processes are fenced by it; see
    /// [`open`](fencepost_wal::open()).
    ///
    /// # Errors
    /// The first shard's error; [`Error::InvalidOptions`] for limits out of range.
    pub async fn writer(&self, config: WriterConfig) -> Result<TableWriter> {
        let base = self.base.refreshed().await?;
        // A creation may have died before it made the last shards.
        self.create_shards().await?;
        let shards = stream::iter(self.shard_ids()).map(|id| {
            let (base, cache, config) = (base.clone(), Arc::clone(&self.cache), config.clone());
            let shard = self.shard(id);
            async move { ShardWriter::open(base, cache, shard, config).await }
        });
        let shards = shards.buffered(SHARDS_AT_ONCE).try_collect().await?;
        TableWriter::new(base, Arc::clone(&self.cache), shards)
    }

    /// Takes one shard over for writing. Its rows are the caller's to choose: they must belong there.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if the table has no such shard; otherwise as [`writer`](Self::writer).
    pub async fn shard_writer(&self, shard: ShardId, config: WriterConfig) -> Result<ShardWriter> {
        if !self.shard_ids().contains(&shard) {
            return Err(Error::InvalidOptions(format!("the table at {} has no shard {shard}", self.store.url())));
        }
        self.create_shards().await?;
        let base = self.base.refreshed().await?;
        ShardWriter::open(base, Arc::clone(&self.cache), self.shard(shard), config).await
    }

    /// The table as storage has it now, for SQL: base table, SSTables and the tail of each log. Writes nothing and
    /// fences nobody, so it can be used beside a writer of another process. The tails are held in memory.
    ///
    /// # Errors
    /// Errors of reading; damaged objects are named.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>> {
        Ok(Arc::new(LsmTable::new(snapshot_from_storage(&self.base, &self.cache).await?)))
    }

    /// Where every shard stands.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn inspect(&self) -> Result<Inspection> {
        inspect::inspect(&self.base.refreshed().await?).await
    }

    /// Takes every shard over, flushes what its log holds, and closes it.
    ///
    /// # Errors
    /// As [`writer`](Self::writer) and [`TableWriter::close`]; [`Error::InvalidOptions`] for a WAL-only configuration,
    /// which has nothing to flush into.
    pub async fn flush(&self, config: WriterConfig) -> Result<()> {
        if config.memtable.is_none() {
            return Err(Error::InvalidOptions(
                "flushing needs a MemTable: set `memtable` in the writer's config".into(),
            ));
        }
        self.writer(config).await?.close().await
    }

    /// A reader of one shard's log.
    pub fn tailer(&self, shard: ShardId) -> WalTailer {
        WalTailer::new(self.shard(shard))
    }

    /// Creates the shards that do not exist. Their names derive from the table's id, so two processes that do this
    /// at once make the same ones.
    async fn create_shards(&self) -> Result<()> {
        let spec = self.base.sharding_spec_id();
        let bucketed = *self.base.sharding() != Sharding::Unsharded;
        let shards = stream::iter(self.shard_ids().into_iter().zip(0u32..)).map(|(id, bucket)| {
            let entries = match bucketed {
                true => {
                    let (field_id, value) = base::bucket_field_entry(bucket);
                    vec![ShardFieldEntry { field_id, value }]
                }
                false => vec![],
            };
            let manifests = ManifestStore::new(self.shard(id));
            async move {
                match manifests.latest().await? {
                    Some(_) => Ok(()),
                    None => manifests.initialize(ShardManifest::first(id, spec, entries)).await.map_err(Error::from),
                }
            }
        });
        shards.buffer_unordered(SHARDS_AT_ONCE).try_collect().await
    }
}
