//! One SSTable into the base table. Every commit here says itself which generation it brings (I5), and Lance refuses
//! it if the base has that generation already, so whoever comes second changes nothing (schedule 25).

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::{Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::transaction::{Operation, Transaction, UpdateMode};
use lance::dataset::{
    CommitBuilder, InsertBuilder, MergeInsertBuilder, UncommittedMergeInsert, WhenMatched, WhenNotMatched, WriteMode,
    WriteParams,
};
use lance_index::mem_wal::CompactedSsTable;

use super::commit::Unbroken;
use super::plan::Pending;
use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::evolution;
use crate::rows::TOMBSTONE;
use crate::sharding::PartOfRows;
use crate::sstable::{self, SsTablePlace};

/// How a generation got into the base table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    /// This call merged it.
    Merged {
        /// Rows inserted or replaced.
        rows: u64,
        /// Rows removed.
        deleted: u64,
    },
    /// The base has it already.
    ByOthers,
}

/// Merges the generation that follows the last one that `base` has. An error leaves the base as it was, or with the
/// deletions done, or with the generation merged; the caller looks at the newest version to find out.
pub(super) async fn apply(base: &BaseTable, pending: &Pending) -> Result<Applied> {
    let changes = Changes::read(base, pending).await?;
    let progress = vec![CompactedSsTable::new(*pending.shard.as_uuid(), pending.sstable.generation.get())];
    let merging = format!(
        "merging generation {} of shard {} into {}",
        pending.sstable.generation,
        pending.shard,
        base.lance_store().describe(None)
    );
    if base.primary_key().is_empty() {
        append(base, &changes.rows, progress).await.map_err(Error::lance(merging))?;
        return Ok(Applied::Merged { rows: changes.row_count(), deleted: 0 });
    }
    let deleted = match changes.deleted_keys.is_empty() {
        true => 0,
        false => delete(base, changes.deleted_keys.clone()).await.map_err(Error::lance(merging.as_str()))?,
    };
    // Not on top of what the deletion's commit answered: a name that came back is no part of the table's history.
    let base = base.refreshed().await?;
    upsert(&base, changes.rows.clone(), progress).await.map_err(Error::lance(merging))?;
    Ok(Applied::Merged { rows: changes.row_count(), deleted })
}

/// What an SSTable changes in the base table. In memory: an SSTable is a MemTable that was written out.
struct Changes {
    /// In the base table's schema.
    rows: Vec<RecordBatch>,
    /// Key columns only.
    deleted_keys: Vec<RecordBatch>,
}

impl Changes {
    async fn read(base: &BaseTable, pending: &Pending) -> Result<Self> {
        let place = SsTablePlace::of(pending.shard, &pending.sstable);
        let described = place.describe(base.lance_store());
        let dataset = place.open(base.lance_store()).await?;
        let part = place.filter.map(|filter| PartOfRows::of(filter, base.sharding(), base.schema())).transpose()?;
        let schema: SchemaRef = Arc::new(Schema::from(base.dataset().schema()));
        let key_columns = base.primary_key().iter().map(|name| schema.index_of(name));
        let key_columns = key_columns.collect::<Result<Vec<_>, _>>().map_err(Error::arrow("finding the key"))?;
        let mut columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        columns.push(TOMBSTONE.to_owned());
        // Columns that were added to the table since are null.
        let columns = evolution::columns_of(&dataset, base, &columns, || described.clone())?;
        let mut batches = sstable::scan(&dataset, Some(&columns), None).await?;
        let (mut rows, mut deleted_keys) = (Vec::new(), Vec::new());
        while let Some(mut batch) = batches.try_next().await? {
            if let Some(part) = &part {
                batch = part.choose(&batch)?;
            }
            let tombstones = batch.remove_column(columns.len() - 1);
            let Some(tombstones) = tombstones.as_boolean_opt() else {
                return Err(Error::Corrupt {
                    url: described,
                    reason: format!("its column `{TOMBSTONE}` is {}, not Boolean", tombstones.data_type()),
                });
            };
            let batch = evolution::with_nulls(&batch, &schema)?;
            let failed = || Error::arrow(format!("reading {described}"));
            let alive = BooleanArray::new(!tombstones.values(), None);
            let live = filter_record_batch(&batch, &alive).map_err(failed())?;
            if live.num_rows() > 0 {
                rows.push(sstable::relabel(&live, &schema)?);
            }
            if live.num_rows() < batch.num_rows() {
                let keys = batch.project(&key_columns).map_err(failed())?;
                let dead = BooleanArray::new(tombstones.values().clone(), None);
                deleted_keys.push(filter_record_batch(&keys, &dead).map_err(failed())?);
            }
        }
        Ok(Self { rows, deleted_keys })
    }

    fn row_count(&self) -> u64 {
        self.rows.iter().map(|batch| batch.num_rows() as u64).sum()
    }
}

/// Removes the rows of these keys, in a commit of its own that brings no progress. It may be done twice: readers
/// see these deletions in the SSTable until the base has the generation.
///
/// Which rows go is decided on exactly the version of `base`, which has everything below the generation and nothing
/// of it or above, and they are named by address. So a commit that comes late, even if Lance moves it on top of newer
/// versions, never removes what a later generation has put under the same key. Running the deletion again on a newer
/// version could; that is why Lance's own retry is not used.
async fn delete(base: &BaseTable, keys: Vec<RecordBatch>) -> lance::Result<u64> {
    let mut merge = job(base)?;
    let job = merge.when_matched(WhenMatched::Delete).when_not_matched(WhenNotMatched::DoNothing).try_build()?;
    let uncommitted = job.execute_uncommitted_batches(keys).await?;
    let deleted = uncommitted.stats.num_deleted_rows;
    if deleted > 0 {
        commit(base, uncommitted).await?;
    }
    Ok(deleted)
}

/// Inserts the rows or replaces those of the same key, and records the generation, in one commit.
async fn upsert(base: &BaseTable, rows: Vec<RecordBatch>, progress: Vec<CompactedSsTable>) -> lance::Result<()> {
    if rows.is_empty() {
        let operation = Operation::UpdateMemWalState { compacted_sstables: progress };
        return execute(base, operation).await;
    }
    let mut merge = job(base)?;
    let job = merge
        .when_matched(WhenMatched::UpdateAll)
        .when_not_matched(WhenNotMatched::InsertAll)
        .mark_sstables_as_compacted(progress)
        .try_build()?;
    commit(base, job.execute_uncommitted_batches(rows).await?).await
}

/// Appends the rows and records the generation, in one commit. Lance's own append cannot carry the record, an update
/// that replaces nothing can.
async fn append(base: &BaseTable, rows: &[RecordBatch], progress: Vec<CompactedSsTable>) -> lance::Result<()> {
    let params = WriteParams { mode: WriteMode::Append, ..base.lance_store().write_params() };
    let new_fragments = match rows.is_empty() {
        true => Vec::new(),
        false => {
            let insert = InsertBuilder::new(dataset(base)).with_params(&params);
            match insert.execute_uncommitted(rows.to_vec()).await?.operation {
                Operation::Append { fragments } => fragments,
                other => return Err(lance::Error::internal(format!("an append was prepared as {}", other.name()))),
            }
        }
    };
    let operation = Operation::Update {
        removed_fragment_ids: vec![],
        updated_fragments: vec![],
        new_fragments,
        fields_modified: vec![],
        compacted_sstables: progress,
        // Every field: no index may take the new fragments for rows that it knows from elsewhere.
        fields_for_preserving_frag_bitmap: field_ids(base.dataset()),
        update_mode: Some(UpdateMode::RewriteRows),
        inserted_rows_filter: None,
        updated_fragment_offsets: None,
    };
    execute(base, operation).await
}

fn job(base: &BaseTable) -> lance::Result<MergeInsertBuilder> {
    MergeInsertBuilder::try_new(dataset(base), base.primary_key().to_vec())
}

async fn commit(base: &BaseTable, uncommitted: UncommittedMergeInsert) -> lance::Result<()> {
    let mut builder = commit_of(base);
    if let Some(affected) = uncommitted.affected_rows {
        builder = builder.with_affected_rows(affected);
    }
    builder.execute(uncommitted.transaction).await.map(|_| ())
}

async fn execute(base: &BaseTable, operation: Operation) -> lance::Result<()> {
    commit_of(base).execute(Transaction::new(base.version(), operation, None)).await.map(|_| ())
}

/// A commit of what was computed on this version of the base.
fn commit_of(base: &BaseTable) -> CommitBuilder<'static> {
    CommitBuilder::new(dataset(base))
        .with_commit_handler(Arc::new(Unbroken { read_version: base.version(), spec_id: base.spec_id() }))
}

fn dataset(base: &BaseTable) -> Arc<Dataset> {
    Arc::new(base.dataset().clone())
}

fn field_ids(dataset: &Dataset) -> Vec<u32> {
    dataset.schema().fields_pre_order().filter_map(|field| u32::try_from(field.id).ok()).collect()
}
