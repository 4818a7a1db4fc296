//! SSTables: a frozen MemTable as one Lance dataset of one fragment, in a folder that no other attempt has used, with
//! sidecars for its keys. This module writes, opens and scans them, and knows the schema that MemTables and WAL entries share with them. It does not choose their
//! rows (duplicate keys are resolved before) and does not publish them: a folder becomes an SSTable when the shard's
//! manifest lists it.

mod card;
mod columns;
mod indexed;
mod place;
mod relabel;
mod sidecar;
mod statistics;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use fencepost_wal::{Generation, ShardId};
use futures::future::try_join;
use futures::stream;
use lance::Dataset;
use lance::dataset::WriteParams;
use lance::dataset::fragment::write::FragmentCreateBuilder;
use lance::dataset::mem_wal::{arrow_schema_with_field_ids, relax_non_pk_nullability, schema_with_tombstone};
use lance_core::datatypes::Schema as LanceSchema;
use lance_table::feature_flags::apply_feature_flags;
use lance_table::format::{DataStorageFormat, Fragment, Manifest};
use lance_table::io::commit::{CommitError, ManifestNamingScheme, write_manifest_file_to_path};
use uuid::Uuid;

pub(crate) use self::card::Card;
pub(crate) use self::columns::columns;
pub(crate) use self::indexed::Indexed;
pub(crate) use self::place::SsTablePlace;
pub(crate) use self::relabel::relabel;
use self::sidecar::Sidecars;
pub(crate) use self::sidecar::{
    BloomFilter, IndexKeys, KeyIndexFiles, KeyPage, PageRanges, SidecarCheck, SidecarFault, key_hashes,
};
pub(crate) use self::statistics::{ColumnStatistics, Statistics, StatisticsCheck, ends_of, has_statistics};
use crate::error::{Error, Result};
use crate::lance_store::{self, LanceStore};
use crate::memtable::array_bytes;

/// What the shard's manifest says about an SSTable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SsTableMeta {
    /// Rows, tombstones among them.
    pub(crate) physical_rows: u64,
    /// Size of the rows in memory.
    pub(crate) in_memory_bytes: u64,
    /// Size of the key columns' part of it; `None` without a key.
    pub(crate) primary_key_bytes: Option<u64>,
}

/// A folder name that no other attempt has used, so that a failed one needs no cleaning up: `{8 hex}_gen_{generation}`.
/// `fresh_id` is random, and nobody else's.
pub(crate) fn directory_name(fresh_id: Uuid, generation: Generation) -> String {
    let (random, ..) = fresh_id.as_fields();
    format!("{random:08x}_gen_{generation}")
}

/// The place of an SSTable, relative to its table.
pub(crate) fn relative_dir(shard: ShardId, directory_name: &str) -> String {
    format!("_mem_wal/{shard}/{directory_name}")
}

/// The schema of MemTables, WAL entries and SSTables: the base table's columns with their field ids, those outside of
/// the key nullable (a deletion has nothing but the key), and `_tombstone` last.
pub(crate) fn storage_schema(base: &Dataset) -> SchemaRef {
    let primary_key = base.schema().unenforced_primary_key();
    let primary_key: Vec<String> = primary_key.into_iter().map(|field| field.name.clone()).collect();
    relax_non_pk_nullability(&schema_with_tombstone(&arrow_schema_with_field_ids(base.schema())), &primary_key)
}

/// Writes the rows, in the order given, as a dataset of one fragment with the base table's field ids and storage
/// version; with a primary key also the sidecars, which need each key once. When it returns, every file is as durable
/// as the store makes it. The dataset's manifest comes last, so a folder that has one is whole.
///
/// `rel_dir` must come from [`relative_dir`] and a fresh [`directory_name`] at every attempt.
///
/// # Errors
/// [`Error::InvalidBatch`] if a batch does not have the [`storage_schema`]'s columns, or there is no row at all.
pub(crate) async fn write(
    store: &LanceStore,
    base: &Dataset,
    rel_dir: &str,
    batches: Vec<RecordBatch>,
    primary_key: &[String],
) -> Result<SsTableMeta> {
    let schema = storage_schema(base);
    let batches = batches.iter().map(|batch| relabel(batch, &schema)).collect::<Result<Vec<_>>>()?;
    let meta = measure(&batches, primary_key);
    if meta.physical_rows == 0 {
        return Err(Error::InvalidBatch("an SSTable needs at least one row".to_owned()));
    }
    let place = store.describe(Some(rel_dir));
    let failed = || Error::lance(format!("writing {place}"));
    // The ids come with the fields' metadata; `_tombstone` gets the next free one.
    let lance_schema = LanceSchema::try_from(schema.as_ref()).map_err(failed())?;
    let format = base.manifest().data_storage_format.clone();
    let sidecars = Sidecars::of(&schema, &batches, primary_key);
    let sidecars = async {
        let sidecars = sidecars.await?;
        let config = sidecars.config()?;
        sidecars.write(store, rel_dir).await?;
        Ok(config)
    };
    let rows = async {
        write_fragment(store, rel_dir, &lance_schema, &format, Arc::clone(&schema), batches.clone())
            .await
            .map_err(failed())
    };
    // The caller's rows are hashed and sorted while they are written.
    let (fragment, config) = try_join(rows, sidecars).await?;
    commit(store, rel_dir, lance_schema, format, fragment, config).await?;
    Ok(meta)
}

/// Opens an SSTable.
pub(crate) async fn open(store: &LanceStore, rel_dir: &str) -> Result<Dataset> {
    store.open_dataset(Some(rel_dir)).await
}

/// Streams an SSTable's rows in insert order, tombstones included; see [`lance_store::scan`].
pub(crate) async fn scan(
    dataset: &Dataset,
    projection: Option<&[String]>,
    filter: Option<Expr>,
) -> Result<SendableRecordBatchStream> {
    lance_store::scan(dataset, projection, filter, None).await
}

/// Writes the data file. This builder makes exactly one, whatever the number of rows.
async fn write_fragment(
    store: &LanceStore,
    rel_dir: &str,
    lance_schema: &LanceSchema,
    format: &DataStorageFormat,
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
) -> lance::Result<Fragment> {
    let params = WriteParams {
        max_rows_per_file: usize::MAX,
        data_storage_version: Some(format.lance_file_format().to_selector()),
        ..store.write_params()
    };
    let rows = RecordBatchStreamAdapter::new(schema, stream::iter(batches.into_iter().map(Ok)));
    let rows: SendableRecordBatchStream = Box::pin(rows);
    FragmentCreateBuilder::new(&store.uri(Some(rel_dir)))
        .schema(lance_schema)
        .write_params(&params)
        .write(rows, Some(0))
        .await
}

/// Makes the data file a dataset. The manifest is put together here, because Lance's public way to create a dataset
/// numbers the fields anew, and readers of SSTables match columns by the base table's ids.
async fn commit(
    store: &LanceStore,
    rel_dir: &str,
    schema: LanceSchema,
    format: DataStorageFormat,
    fragment: Fragment,
    config: HashMap<String, String>,
) -> Result<()> {
    let place = store.describe(Some(rel_dir));
    let failed = || Error::lance(format!("committing {place}"));
    let files: Vec<String> = fragment.files.iter().map(|file| file.path.clone()).collect();
    let mut manifest = Manifest::new(schema, Arc::new(vec![fragment]), format, HashMap::new());
    manifest.config = config;
    apply_feature_flags(&mut manifest, false, false).map_err(failed())?;
    manifest.update_max_fragment_id();
    manifest.set_timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos());
    let object_store = store.object_store().await?;
    let committed = store
        .commit_handler()
        .commit(
            &mut manifest,
            None,
            &store.path(Some(rel_dir)),
            &object_store,
            write_manifest_file_to_path,
            ManifestNamingScheme::V2,
            None,
        )
        .await;
    match committed {
        Ok(_) => Ok(()),
        // The answer to a PUT that landed may be lost and its repetition refused. The data file's name is ours alone.
        Err(CommitError::CommitConflict) if is_ours(store, rel_dir, &files).await? => Ok(()),
        Err(e) => Err(failed()(e.into())),
    }
}

async fn is_ours(store: &LanceStore, rel_dir: &str, files: &[String]) -> Result<bool> {
    let found = open(store, rel_dir).await?;
    let found = found.manifest().fragments.iter().flat_map(|fragment| fragment.files.iter().map(|file| &file.path));
    Ok(found.eq(files))
}

fn measure(batches: &[RecordBatch], primary_key: &[String]) -> SsTableMeta {
    let mut meta =
        SsTableMeta { physical_rows: 0, in_memory_bytes: 0, primary_key_bytes: (!primary_key.is_empty()).then_some(0) };
    for batch in batches {
        meta.physical_rows += batch.num_rows() as u64;
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            let bytes = array_bytes(column) as u64;
            meta.in_memory_bytes += bytes;
            if let Some(key_bytes) = meta.primary_key_bytes.as_mut().filter(|_| primary_key.contains(field.name())) {
                *key_bytes += bytes;
            }
        }
    }
    meta
}
