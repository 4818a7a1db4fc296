//! Making a base table, in two commits: the first creates the dataset with schema, key and table id; the second adds
//! the MemWAL index with the sharding. The table exists with the second; what died in between is taken up again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_schema::{Field, Schema, SchemaRef};
use fencepost_wal::Store;
use lance::Dataset;
use lance::dataset::CommitBuilder;
use lance::dataset::mem_wal::scanner::exec::validate_pk_types;
use lance::dataset::mem_wal::{DatasetMemWalExt, TOMBSTONE};
use lance::dataset::transaction::{Operation, Transaction};
use lance_core::datatypes::{
    LANCE_FIELD_ID_KEY, LANCE_UNENFORCED_PRIMARY_KEY, LANCE_UNENFORCED_PRIMARY_KEY_POSITION, Schema as LanceSchema,
};
use lance_index::mem_wal::{MemWalIndexDetails, ShardingSpec};
use lance_table::system_index::mem_wal::new_mem_wal_index_meta;
use uuid::Uuid;

use super::one_version::OnlyVersion;
use super::table_id::TABLE_ID_KEY;
use super::types::{check_types, stored};
use super::wal_store::WAL_STORE_KEY;
use super::{BaseTable, Found, find, is_key_metadata, mem_wal_details, shard_ids};
use crate::error::{Error, Result, without_location};
use crate::key::KeyEncoder;
use crate::lance_store::LanceStore;
use crate::sharding::Sharding;

/// See [`super::BaseTable::create`].
pub(super) async fn create(
    store: &LanceStore,
    schema: &SchemaRef,
    primary_key: &[String],
    sharding: &Sharding,
    wal_store: Option<&Store>,
) -> Result<()> {
    // First, because Lance checks the sharding with the second commit, when the dataset is there already.
    sharding.validate(schema, primary_key)?;
    let schema = table_schema(schema, primary_key)?;
    let begun = match find(store).await? {
        Found::Nothing => begin(store, schema, wal_store).await?,
        Found::File => {
            let place = store.describe(None);
            return Err(Error::InvalidOptions(format!("{place} is a file, a table is a folder; choose another place")));
        }
        Found::Dataset(found) if is_begun(store, &found, &schema).await? => *found,
        Found::Dataset(found) => {
            if let Ok(base) = BaseTable::of(store, *found, None).await {
                base.check_ready()?;
            }
            return Err(exists(store));
        }
    };
    finish(store, begun, sharding).await
}

/// Whether a dataset is what [`begin`] leaves behind, for the same schema and key: our marker, one version, no rows,
/// no MemWAL index. Anything else is somebody's table.
async fn is_begun(store: &LanceStore, dataset: &Dataset, schema: &LanceSchema) -> Result<bool> {
    Ok(dataset.config().contains_key(TABLE_ID_KEY)
        && dataset.version().version == 1
        && dataset.manifest().fragments.is_empty()
        && Schema::from(dataset.schema()) == Schema::from(schema)
        && mem_wal_details(store, dataset).await?.is_none())
}

/// The first commit. It never touches a dataset that is there already, however two creators race.
pub(super) async fn begin(store: &LanceStore, schema: LanceSchema, wal_store: Option<&Store>) -> Result<Dataset> {
    let mut config = HashMap::from([(TABLE_ID_KEY.to_owned(), Uuid::new_v4().to_string())]);
    config.extend(wal_store.map(|wal_store| (WAL_STORE_KEY.to_owned(), wal_store.url().to_string())));
    let create =
        Operation::Overwrite { fragments: Vec::new(), schema, config_upsert_values: Some(config), initial_bases: None };
    let uri = store.uri(None);
    let created = CommitBuilder::new(uri.as_str())
        .with_session(Arc::clone(store.session()))
        .with_commit_handler(Arc::new(OnlyVersion {
            version: 1,
            otherwise: |path| lance::Error::dataset_already_exists(path.to_string()),
        }))
        .execute(Transaction::new(0, create, None))
        .await;
    match created {
        // Opened anew, because this dataset would carry on with `OnlyVersion`.
        Ok(_) => store.open_dataset(None).await,
        Err(lance::Error::DatasetAlreadyExists { .. }) => Err(exists(store)),
        Err(e) => Err(Error::lance(format!("creating {}", store.describe(None)))(e)),
    }
}

/// The second commit. Of two creators who finish the same beginning Lance lets one through.
async fn finish(store: &LanceStore, dataset: Dataset, sharding: &Sharding) -> Result<()> {
    let initialized = match lance_hashes_key(&dataset) {
        true => initialize_by_lance(dataset, sharding).await,
        false => {
            let spec = shard_ids::new_spec(&dataset, sharding)?;
            initialize(store, dataset, sharding.shards(), vec![spec]).await
        }
    };
    let Err(error) = initialized else {
        return Ok(());
    };
    if let Ok(Some(now)) = store.try_open_dataset(None).await
        && let Ok(Some(_)) = mem_wal_details(store, &now).await
    {
        return Err(exists(store));
    }
    Err(Error::lance(format!("creating the MemWAL index of {}", store.describe(None)))(error))
}

/// Whether Lance's MemWAL reader can hash the key: integers, Booleans, strings, binary. Its initializer refuses others.
fn lance_hashes_key(dataset: &Dataset) -> bool {
    let key: Vec<String> = dataset.schema().unenforced_primary_key().iter().map(|field| field.name.clone()).collect();
    validate_pk_types(&Schema::from(dataset.schema()), &key).is_ok()
}

async fn initialize_by_lance(mut dataset: Dataset, sharding: &Sharding) -> lance::Result<()> {
    let builder = dataset.initialize_mem_wal();
    let builder = match sharding {
        Sharding::Manual => builder,
        Sharding::Unsharded => builder.unsharded(),
        Sharding::Bucket { column, buckets } => builder.bucket_sharding(column, *buckets),
        Sharding::Identity { column } => builder.identity_sharding(column),
    };
    builder.execute().await
}

/// The same index for a key of dates, timestamps or decimals: Lance reads the merged table, and every SSTable as a
/// dataset, but cannot write to such a shard itself.
pub(super) async fn initialize(
    store: &LanceStore,
    dataset: Dataset,
    shards: u32,
    specs: Vec<ShardingSpec>,
) -> lance::Result<()> {
    let details = MemWalIndexDetails {
        num_shards: shards,
        sharding_specs: specs,
        maintain_all_indexes: true,
        ..Default::default()
    };
    let version = dataset.version().version;
    let index = new_mem_wal_index_meta(version, details)?;
    let operation = Operation::CreateIndex { new_indices: vec![index], removed_indices: vec![] };
    CommitBuilder::new(Arc::new(dataset))
        .with_session(Arc::clone(store.session()))
        .with_commit_handler(Arc::clone(store.commit_handler()))
        .execute(Transaction::new(version, operation, None))
        .await
        .map(|_| ())
}

fn exists(store: &LanceStore) -> Error {
    Error::TableExists { url: store.describe(None) }
}

/// The schema as it is written: the user's columns, in types that Lance stores, those of the key marked as Lance's
/// unenforced primary key, with their place in a composite one, and non-nullable, which Lance demands.
pub(super) fn table_schema(schema: &Schema, primary_key: &[String]) -> Result<LanceSchema> {
    check_columns(schema, primary_key)?;
    let fields = schema.fields().iter().map(|field| {
        let mut metadata = field.metadata().clone();
        metadata.retain(|key, _| !is_key_metadata(key) && key != LANCE_FIELD_ID_KEY);
        let place = primary_key.iter().position(|key| key == field.name());
        if let Some(place) = place {
            // The flag alone is what readers before composite keys know.
            metadata.insert(LANCE_UNENFORCED_PRIMARY_KEY.to_owned(), "true".to_owned());
            metadata.insert(LANCE_UNENFORCED_PRIMARY_KEY_POSITION.to_owned(), (place + 1).to_string());
        }
        let nullable = field.is_nullable() && place.is_none();
        stored(field).with_nullable(nullable).with_metadata(metadata)
    });
    let schema = Schema::new_with_metadata(fields.collect::<Vec<Field>>(), schema.metadata().clone());
    LanceSchema::try_from(&schema)
        .map_err(|e| Error::InvalidOptions(format!("Lance cannot store this schema: {}", without_location(&e))))
}

fn check_columns(schema: &Schema, primary_key: &[String]) -> Result<()> {
    let invalid = |reason: String| Err(Error::InvalidOptions(reason));
    if schema.fields().is_empty() {
        return invalid("a table needs at least one column".to_owned());
    }
    let mut names = HashSet::new();
    for field in schema.fields() {
        let name = field.name();
        if name == TOMBSTONE || lance_core::is_system_column(name) {
            return invalid(format!("the column name `{name}` is reserved; choose another"));
        }
        if name.contains('`') {
            return invalid(format!(
                "the column name `{name}` has a backtick, which Lance takes for a quote; rename it"
            ));
        }
        if !names.insert(name) {
            return invalid(format!("two columns have the name `{name}`"));
        }
    }
    check_types(schema)?;
    let mut keys = HashSet::new();
    for key in primary_key {
        if !names.contains(key) {
            return invalid(format!("the primary key names `{key}`, which is not a column"));
        }
        if !keys.insert(key) {
            return invalid(format!("the primary key names `{key}` twice"));
        }
    }
    if primary_key.is_empty() {
        return Ok(());
    }
    // Lance's own MemWAL reader knows fewer key types than its format allows (no dates, timestamps or decimals);
    // what the format allows and we can compare is a key.
    let nested = |key: &&String| schema.field_with_name(key).is_ok_and(|field| field.data_type().is_nested());
    if let Some(key) = primary_key.iter().find(nested) {
        return invalid(format!("the primary-key column `{key}` is nested; a key column holds single values"));
    }
    KeyEncoder::try_new(schema, primary_key).map(|_| ())
}
