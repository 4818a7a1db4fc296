//! One SSTable into the base table. Every commit here says itself which generation it brings (I5), and Lance refuses
//! it if the base has that generation already, so whoever comes second changes nothing (schedule 25).

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::{Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use futures::future::join;
use futures::{FutureExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::transaction::{Operation, Transaction, UpdateMode};
use lance::dataset::{
    CommitBuilder, InsertBuilder, MergeInsertBuilder, UncommittedMergeInsert, WhenMatched, WhenNotMatched, WriteMode,
    WriteParams,
};
use lance_core::datatypes::Schema as LanceSchema;
use lance_index::mem_wal::CompactedSsTable;

use super::commit::Unbroken;
use super::is_next;
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

/// A version of the base table to merge into.
#[derive(Debug)]
pub(super) struct Onto<'a> {
    /// Opened to commit by `unbroken`.
    pub(super) base: &'a BaseTable,
    pub(super) unbroken: &'a Unbroken,
    /// The version is what a commit of this merge answered, and nobody has looked since. A name that came back when newer versions were
    /// cleaned up is no part of the table's history.
    pub(super) is_answered: bool,
}

/// Merges the generation that follows the last one that the base has, and returns the base as the commit answered it. `None`: that the
/// version is the newest was not known, and is not true. An error leaves the base as it was, or with the deletions done, or with the
/// generation merged; the caller looks at the newest version to find out.
pub(super) async fn apply(
    onto: &Onto<'_>,
    pending: &Pending,
    changes: &Changes,
) -> Result<Option<(Applied, BaseTable)>> {
    let Onto { base, unbroken, is_answered } = *onto;
    let progress = vec![CompactedSsTable::new(*pending.shard.as_uuid(), pending.sstable.generation.get())];
    let merging = format!(
        "merging generation {} of shard {} into {}",
        pending.sstable.generation,
        pending.shard,
        base.lance_store().describe(None)
    );
    let failed = || Error::lance(merging.as_str());
    let rows = changes.row_count();
    let applied = |deleted| Applied::Merged { rows, deleted };
    if base.primary_key().is_empty() {
        let (prepared, is_newest) =
            join(prepare_append(base, &changes.rows, progress).boxed(), is_newest(base, is_answered)).await;
        if !is_newest? {
            return Ok(None);
        }
        let dataset = execute(base, unbroken, prepared.map_err(failed())?).await.map_err(failed())?;
        return Ok(Some((applied(0), base.answered(dataset).await?)));
    }
    let mut deleted = 0;
    let mut newer = None;
    if !changes.deleted_keys.is_empty() {
        if !is_newest(base, is_answered).await? {
            return Ok(None);
        }
        let committed = delete(base, unbroken, changes.deleted_keys.clone()).await.map_err(failed())?;
        if let Some((rows, dataset)) = committed {
            deleted = rows;
            // Not on top of what the deletion's commit answered unless that is the newest version: it may have landed late, under a name
            // that came back, and the deletion would be no part of the table's history.
            let newest = base.refreshed().await?;
            if newest.version() != dataset.version().version || !is_next(&newest, pending)? {
                return Err(failed()(lance::Error::not_supported(
                    "other versions came behind that of the deletions; it starts again from the newest version"
                        .to_owned(),
                )));
            }
            newer = Some(newest);
        }
    }
    let (base, is_answered) = newer.as_ref().map_or((base, is_answered), |newer| (newer, false));
    let dataset = match changes.rows.is_empty() {
        true => {
            if !is_newest(base, is_answered).await? {
                return Ok(None);
            }
            execute(base, unbroken, Operation::UpdateMemWalState { compacted_sstables: progress }).await
        }
        false => {
            let (prepared, is_newest) =
                join(prepare_upsert(base, changes.rows.clone(), progress).boxed(), is_newest(base, is_answered)).await;
            if !is_newest? {
                return Ok(None);
            }
            commit(base, unbroken, prepared.map_err(failed())?).await
        }
    };
    Ok(Some((applied(deleted), base.answered(dataset.map_err(failed())?).await?)))
}

/// Whether a version that a commit answered is the newest one. It is asked while rows are written, and known before anything is
/// committed (I5). If it is, nothing newer was ever there: the newest version is never cleaned up.
async fn is_newest(base: &BaseTable, is_answered: bool) -> Result<bool> {
    Ok(!is_answered || base.refreshed().await?.version() == base.version())
}

/// What an SSTable changes in the base table. In memory: an SSTable is a MemTable that was written out.
#[derive(Debug)]
pub(super) struct Changes {
    /// The base table's, with the ids of its fields: a column that was dropped and added anew is another one.
    schema: LanceSchema,
    /// In the base table's schema.
    rows: Vec<RecordBatch>,
    /// Key columns only.
    deleted_keys: Vec<RecordBatch>,
}

impl Changes {
    /// The rows of an SSTable that is to be merged into a version of the base table, or one with the same columns.
    pub(super) async fn read(base: &BaseTable, pending: &Pending) -> Result<Self> {
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
        Ok(Self { schema: base.dataset().schema().clone(), rows, deleted_keys })
    }

    /// Whether this version of the base table has the columns for which the rows were read.
    pub(super) fn fit(&self, base: &BaseTable) -> bool {
        self.schema == *base.dataset().schema()
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
/// version could; that is why Lance's own retry is not used. `None`: there is no such row.
async fn delete(
    base: &BaseTable,
    unbroken: &Unbroken,
    keys: Vec<RecordBatch>,
) -> lance::Result<Option<(u64, Dataset)>> {
    let mut merge = job(base)?;
    let job = merge.when_matched(WhenMatched::Delete).when_not_matched(WhenNotMatched::DoNothing).try_build()?;
    let uncommitted = job.execute_uncommitted_batches(keys).await?;
    match uncommitted.stats.num_deleted_rows {
        0 => Ok(None),
        deleted => Ok(Some((deleted, commit(base, unbroken, uncommitted).await?))),
    }
}

/// Inserts the rows or replaces those of the same key, and records the generation, in one commit.
async fn prepare_upsert(
    base: &BaseTable,
    rows: Vec<RecordBatch>,
    progress: Vec<CompactedSsTable>,
) -> lance::Result<UncommittedMergeInsert> {
    let mut merge = job(base)?;
    let job = merge
        .when_matched(WhenMatched::UpdateAll)
        .when_not_matched(WhenNotMatched::InsertAll)
        .mark_sstables_as_compacted(progress)
        .try_build()?;
    job.execute_uncommitted_batches(rows).await
}

/// Appends the rows and records the generation, in one commit. Lance's own append cannot carry the record, an update
/// that replaces nothing can.
async fn prepare_append(
    base: &BaseTable,
    rows: &[RecordBatch],
    progress: Vec<CompactedSsTable>,
) -> lance::Result<Operation> {
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
    Ok(Operation::Update {
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
    })
}

fn job(base: &BaseTable) -> lance::Result<MergeInsertBuilder> {
    MergeInsertBuilder::try_new(dataset(base), base.primary_key().to_vec())
}

async fn commit(base: &BaseTable, unbroken: &Unbroken, uncommitted: UncommittedMergeInsert) -> lance::Result<Dataset> {
    let mut builder = commit_of(base, unbroken);
    if let Some(affected) = uncommitted.affected_rows {
        builder = builder.with_affected_rows(affected);
    }
    builder.execute(uncommitted.transaction).await
}

async fn execute(base: &BaseTable, unbroken: &Unbroken, operation: Operation) -> lance::Result<Dataset> {
    commit_of(base, unbroken).execute(Transaction::new(base.version(), operation, None)).await
}

/// A commit of what was computed on this version of the base.
fn commit_of(base: &BaseTable, unbroken: &Unbroken) -> CommitBuilder<'static> {
    unbroken.begin(base.version(), base.spec_id());
    CommitBuilder::new(dataset(base))
}

fn dataset(base: &BaseTable) -> Arc<Dataset> {
    Arc::new(base.dataset().clone())
}

fn field_ids(dataset: &Dataset) -> Vec<u32> {
    dataset.schema().fields_pre_order().filter_map(|field| u32::try_from(field.id).ok()).collect()
}
