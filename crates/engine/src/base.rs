//! The base table: the Lance dataset that merged rows end up in and every reader starts from. This module opens it,
//! reads what the dataset says about the table (key, sharding, what was merged), and scans it; `create` makes one.
//! It does not know of shards' logs and SSTables.

mod clone;
mod create;
mod details;
mod indexes;
mod layout;
mod one_version;
mod secondary;
mod settle;
mod shard_ids;
mod state;
mod table_id;
mod tags;
#[cfg(test)]
mod tests;
mod types;
mod wal_store;
mod writer_defaults;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow_schema::{Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Expr;
use fencepost_wal::{Generation, Shard, ShardId, ShardManifest, Store};
use lance::Dataset;
use lance::dataset::mem_wal::DatasetMemWalExt;
use lance_core::datatypes::{LANCE_UNENFORCED_PRIMARY_KEY, LANCE_UNENFORCED_PRIMARY_KEY_POSITION};
use lance_index::mem_wal::MemWalIndexDetails;
use lance_table::io::commit::CommitHandler;
use object_store::ObjectStoreExt;
use uuid::Uuid;

pub(crate) use self::clone::CloneOf;
pub(crate) use self::indexes::IndexCoverage;
pub(crate) use self::layout::Resharding;
use self::shard_ids::TableSpec;
#[cfg(test)]
use self::shard_ids::shard_id_for;
pub(crate) use self::shard_ids::shard_id_of_name;
pub(crate) use self::state::TableState;
use self::table_id::{TABLE_ID_KEY, table_id};
use self::wal_store::WalStore;
use crate::error::{Error, Result};
use crate::lance_store::{self, LanceStore};
use crate::sharding::{ShardValue, Sharding};

/// One version of the base table, and what it says about the table. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct BaseTable {
    store: LanceStore,
    dataset: Dataset,
    schema: SchemaRef,
    primary_key: Arc<[String]>,
    spec: Arc<TableSpec>,
    /// `None` for a table that Lance made and nobody adopted.
    table_id: Option<Uuid>,
    /// The shards that the table has from the start and whose ids derive from the table id, in bucket order.
    fixed: Arc<[(ShardId, ShardValue)]>,
    fixed_by_id: Arc<HashMap<ShardId, usize>>,
    merged: Arc<BTreeMap<ShardId, Generation>>,
    /// Where writers want the logs, if not in the table's own store.
    wal_store: Option<WalStore>,
    /// Settings for writers, as they are stored.
    writer_defaults: Arc<HashMap<String, String>>,
}

impl BaseTable {
    /// Creates an empty base table and opens it.
    ///
    /// Key columns become non-nullable: Lance refuses a nullable key, and a row without a key could be neither
    /// updated nor deleted. A creation that died halfway is finished by a repeated one with the same schema and key.
    ///
    /// # Errors
    /// [`Error::TableExists`] if there is a dataset, [`Error::InvalidOptions`] if schema, key and sharding do not go
    /// together.
    pub(crate) async fn create(
        store: &LanceStore,
        schema: &SchemaRef,
        primary_key: &[String],
        sharding: &Sharding,
        wal_store: Option<Store>,
    ) -> Result<Self> {
        create::create(store, schema, primary_key, sharding, wal_store.as_ref()).await?;
        Self::open(store, wal_store).await
    }

    /// Opens the latest version.
    ///
    /// # Errors
    /// [`Error::TableNotFound`] if there is no dataset, or one without a MemWAL index; [`Error::NotSupported`] for a
    /// table whose sharding or columns we do not know.
    pub(crate) async fn open(store: &LanceStore, wal_store: Option<Store>) -> Result<Self> {
        let base = Self::open_in_any_state(store, wal_store).await?;
        base.check_ready()?;
        Ok(base)
    }

    /// As [`open`](Self::open), also a table that is not there yet, or not any more, for everybody.
    pub(crate) async fn open_in_any_state(store: &LanceStore, wal_store: Option<Store>) -> Result<Self> {
        match find(store).await? {
            Found::Dataset(dataset) => {
                let wal_store = WalStore::choose(store, &dataset, wal_store)?;
                Self::of(store, *dataset, wal_store).await
            }
            Found::Nothing => Err(not_found(store, "there is no Lance dataset")),
            Found::File => Err(not_found(store, "it is a file, a table is a folder")),
        }
    }

    /// The latest version of the same table.
    ///
    /// # Errors
    /// [`Error::TableNotReady`] if it was deleted, or another one stands there now.
    pub(crate) async fn refreshed(&self) -> Result<Self> {
        self.in_any_state().await?.if_not_deleted()
    }

    /// As [`refreshed`](Self::refreshed), opened anew, with another way to commit; what is refreshed from it has that too.
    pub(crate) async fn committing_by(&self, commit_handler: Arc<dyn CommitHandler>) -> Result<Self> {
        let store = self.store.committing_by(commit_handler);
        let dataset = store.open_dataset(None).await?;
        self.if_same(Self::of(&store, dataset, self.wal_store.clone()).await?)?.if_not_deleted()
    }

    fn if_not_deleted(self) -> Result<Self> {
        if self.state()? == TableState::Deleting {
            self.check_ready()?;
        }
        Ok(self)
    }

    /// This table in a version that a commit by a dataset of this handle has answered. Nobody has looked whether it is part of the
    /// table's history.
    pub(crate) async fn answered(&self, dataset: Dataset) -> Result<Self> {
        self.if_same(Self::of(&self.store, dataset, self.wal_store.clone()).await?)
    }

    /// As [`refreshed`](Self::refreshed), also a table that is being deleted.
    pub(crate) async fn in_any_state(&self) -> Result<Self> {
        self.if_same(self.newest_version().await?)
    }

    fn if_same(&self, latest: Self) -> Result<Self> {
        // An adoption gives an id to a table that has none.
        match self.table_id.is_none_or(|id| latest.table_id == Some(id)) {
            true => Ok(latest),
            false => Err(Error::TableNotReady {
                url: self.store.describe(None),
                reason: "another table was made there since this handle was opened; open it again".to_owned(),
            }),
        }
    }

    async fn newest_version(&self) -> Result<Self> {
        let mut dataset = self.dataset.clone();
        dataset
            .checkout_latest()
            .await
            .map_err(Error::lance(format!("opening the latest version of {}", self.store.describe(None))))?;
        if dataset.version().version == self.dataset.version().version {
            return Ok(self.clone());
        }
        Self::of(&self.store, dataset, self.wal_store.clone()).await
    }

    async fn of(store: &LanceStore, dataset: Dataset, wal_store: Option<WalStore>) -> Result<Self> {
        let details = mem_wal_details(store, &dataset).await?;
        let Some(details) = details else {
            let reason = match (dataset.config().contains_key(TABLE_ID_KEY), dataset.version().version) {
                (true, 1) => "its creation did not finish; create it again with the same schema and key",
                _ => "the Lance dataset there has no MemWAL index",
            };
            return Err(not_found(store, reason));
        };
        types::refuse_special_columns(dataset.schema())?;
        let table_id = table_id(store, &dataset)?;
        let spec = shard_ids::parse_spec(store, &dataset, &details)?;
        let derived = |value: ShardValue| Some((spec.shard_id(table_id?, &value)?, value));
        let fixed: Vec<(ShardId, ShardValue)> = spec.fixed_values().into_iter().filter_map(derived).collect();
        let fixed_by_id = (0..).zip(&fixed).map(|(n, (id, _))| (*id, n)).collect();
        let primary_key = dataset.schema().unenforced_primary_key().iter().map(|field| field.name.clone()).collect();
        let merged = details
            .compacted_sstables
            .iter()
            .map(|done| (ShardId::from_uuid(done.shard_id), Generation::new(done.generation)))
            .collect();
        Ok(Self {
            store: store.clone(),
            schema: user_schema(&dataset),
            primary_key,
            spec: Arc::new(spec),
            table_id,
            fixed: fixed.into(),
            fixed_by_id: Arc::new(fixed_by_id),
            merged: Arc::new(merged),
            wal_store,
            writer_defaults: Arc::new(details.writer_config_defaults),
            dataset,
        })
    }

    /// The store that the table lies in.
    pub(crate) fn lance_store(&self) -> &LanceStore {
        &self.store
    }

    /// A shard of the table, with the store that its log is to be in.
    pub(crate) fn shard(&self, id: ShardId) -> Shard {
        let shard = Shard::new(self.store.store().clone(), id);
        match &self.wal_store {
            Some(wal_store) => wal_store.of(shard),
            None => shard,
        }
    }

    /// The Lance dataset, at one version.
    pub(crate) fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The user's columns as Lance gives them back: key columns non-nullable, the items of a fixed size list named
    /// `item` and nullable, whatever they were when the table was created. Lance's own metadata is left out.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The key columns in key order; empty for an append-only table.
    pub(crate) fn primary_key(&self) -> &[String] {
        &self.primary_key
    }

    /// How rows are spread over shards.
    pub(crate) fn sharding(&self) -> &Sharding {
        &self.spec.sharding
    }

    /// The shards that the table has from the start and whose ids derive from the table id, in bucket order. Empty
    /// for a table that was not adopted.
    pub(crate) fn fixed_shards(&self) -> &[(ShardId, ShardValue)] {
        &self.fixed
    }

    /// What the shards hold that the table has from the start, whether or not their ids derive.
    pub(crate) fn fixed_values(&self) -> Vec<ShardValue> {
        self.spec.fixed_values()
    }

    /// What the shard holds if it is one of [`fixed_shards`](Self::fixed_shards).
    pub(crate) fn fixed_value(&self, id: ShardId) -> Option<&ShardValue> {
        let (_, value) = self.fixed.get(*self.fixed_by_id.get(&id)?)?;
        Some(value)
    }

    /// What a shard holds, as its id or its manifest says.
    pub(crate) fn shard_value(&self, id: ShardId, manifest: Option<&ShardManifest>) -> ShardValue {
        let told = || manifest.map(|manifest| self.spec.value_of(manifest));
        self.fixed_value(id).cloned().or_else(told).unwrap_or(ShardValue::Unknown)
    }

    /// The id that the shard of a value gets if it is made now.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for a table that was not adopted.
    pub(crate) fn derived_id(&self, value: &ShardValue) -> Result<ShardId> {
        let derived = self.table_id.and_then(|table_id| self.spec.shard_id(table_id, value));
        derived.ok_or_else(|| self.not_adopted(value))
    }

    /// The id that the shard of a value has in another table of the same layout.
    pub(crate) fn id_in_table(&self, table_id: Uuid, value: &ShardValue) -> Option<ShardId> {
        self.spec.shard_id(table_id, value)
    }

    /// The first manifest of the shard of a value.
    pub(crate) fn first_manifest(&self, id: ShardId, value: &ShardValue) -> ShardManifest {
        self.spec.first_manifest(id, value).of_table(self.table_id)
    }

    /// The answer to who needs a shard that is not there and cannot be named.
    pub(crate) fn not_adopted(&self, value: &ShardValue) -> Error {
        Error::NotSupported(format!(
            "the table at {} has no shard for {value}, and was made by another program: its config has no \
             `{TABLE_ID_KEY}`, from which the ids of new shards derive; run `fencepost adopt` (`Table::adopt`) once",
            self.store.describe(None)
        ))
    }

    /// Per shard, the highest generation whose SSTable this version holds already. A shard of which nothing was
    /// merged is absent.
    pub(crate) fn merged(&self) -> &BTreeMap<ShardId, Generation> {
        &self.merged
    }

    /// The dataset's version.
    pub(crate) fn version(&self) -> u64 {
        self.dataset.version().version
    }

    /// The dataset's version and how many rows it has.
    pub(crate) async fn version_and_rows(&self) -> Result<(u64, u64)> {
        let rows = self
            .dataset
            .count_rows(None)
            .await
            .map_err(Error::lance(format!("counting the rows of {}", self.store.describe(None))))?;
        Ok((self.version(), rows as u64))
    }

    /// Streams the merged rows; see [`lance_store::scan`].
    pub(crate) async fn scan(
        &self,
        projection: Option<&[String]>,
        filter: Option<Expr>,
        limit: Option<usize>,
    ) -> Result<SendableRecordBatchStream> {
        lance_store::scan(&self.dataset, projection, filter, limit).await
    }
}

/// What is at the place of a table.
enum Found {
    Dataset(Box<Dataset>),
    Nothing,
    File,
}

async fn find(store: &LanceStore) -> Result<Found> {
    let found = store.try_open_dataset(None).await;
    if let Ok(Some(dataset)) = found {
        return Ok(Found::Dataset(Box::new(dataset)));
    }
    // A file instead of a folder fails in ways that depend on the store; ask only when something is wrong anyway.
    if store.store().object_store().head(store.store().root()).await.is_ok() {
        return Ok(Found::File);
    }
    found.map(|_| Found::Nothing)
}

async fn mem_wal_details(store: &LanceStore, dataset: &Dataset) -> Result<Option<MemWalIndexDetails>> {
    dataset
        .mem_wal_index_details()
        .await
        .map_err(Error::lance(format!("reading the MemWAL index of {}", store.describe(None))))
}

fn not_found(store: &LanceStore, reason: &str) -> Error {
    Error::TableNotFound { url: store.describe(None), reason: reason.to_owned() }
}

/// The dataset's schema without the metadata that marks Lance's key.
fn user_schema(dataset: &Dataset) -> SchemaRef {
    let schema = Schema::from(dataset.schema());
    let fields = schema.fields().iter().map(|field| {
        let metadata: HashMap<String, String> = field
            .metadata()
            .iter()
            .filter(|(key, _)| !is_key_metadata(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Arc::new(field.as_ref().clone().with_metadata(metadata))
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

fn is_key_metadata(key: &str) -> bool {
    key == LANCE_UNENFORCED_PRIMARY_KEY || key == LANCE_UNENFORCED_PRIMARY_KEY_POSITION
}
