//! Tables whose rows lie in a base table, in SSTables and in a MemTable: the same rows in the same layers for Fencepost
//! and for Lance.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchIterator};
use arrow_schema::ArrowError;
use fencepost::{MergeOptions, Store};
use lance::Dataset;
use lance::dataset::mem_wal::ShardWriterConfig;
use lance::dataset::mem_wal::scanner::{LsmDataSourceCollector, ShardSnapshot};
use lance::dataset::{MergeInsertBuilder, WhenMatched, WhenNotMatched};

use super::{Fencepost, Lance, Writer, dataset};
use crate::Result;
use crate::rows::{Rows, Shape};

/// Ids of each layer, oldest first. Later layers overwrite earlier ones.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    pub(crate) base: Vec<i64>,
    pub(crate) sstables: Vec<Vec<i64>>,
    pub(crate) memtable: Vec<i64>,
}

/// Rows of one batch.
const BATCH: usize = 1000;

fn batches(ids: &[i64]) -> Result<Vec<Rows>> {
    ids.chunks(BATCH).map(|ids| Shape::Text.rows(ids.iter().copied())).collect()
}

impl Layers {
    /// In a table of Fencepost's.
    pub(crate) async fn fencepost(&self, store: &Store) -> Result<Fencepost> {
        let made = Fencepost::open_unlimited(store, Shape::Text).await?;
        if !self.base.is_empty() {
            put_all(&made, &self.base).await?;
            made.writer.flush().await?;
            made.table.merge(&MergeOptions::default(), |_| {}).await?;
        }
        for ids in &self.sstables {
            put_all(&made, ids).await?;
            made.writer.flush().await?;
        }
        put_all(&made, &self.memtable).await?;
        Ok(made)
    }

    /// In a table of Lance's.
    pub(crate) async fn lance(&self, store: &Store) -> Result<Lance> {
        let mut table = dataset(store, Shape::Text).await?;
        if !self.base.is_empty() {
            let rows = batches(&self.base)?.into_iter().map(|rows| rows.lance).collect();
            table.append(reader(rows), None).await?;
        }
        let most = self.base.len().max(self.memtable.len()).max(self.sstables.iter().map(Vec::len).max().unwrap_or(0));
        let config = ShardWriterConfig::default()
            .with_max_wal_flush_interval(std::time::Duration::from_millis(1))
            .with_max_memtable_rows(most + BATCH)
            .with_max_memtable_size(4 << 30)
            .with_max_unflushed_memtable_bytes(12 << 30);
        let made = Lance::open_on(table, config).await?;
        for ids in &self.sstables {
            put_all(&made, ids).await?;
            made.writer.force_freeze_active().await?.wait().await?;
        }
        put_all(&made, &self.memtable).await?;
        Ok(made)
    }
}

async fn put_all(writer: &impl Writer, ids: &[i64]) -> Result<()> {
    let mut durable = Vec::new();
    for rows in batches(ids)? {
        durable.push(writer.put_no_wait(&rows).await?);
    }
    futures::future::try_join_all(durable).await?;
    Ok(())
}

fn reader(batches: Vec<RecordBatch>) -> RecordBatchIterator<impl Iterator<Item = Result<RecordBatch, ArrowError>>> {
    RecordBatchIterator::new(batches.into_iter().map(Ok), Shape::Text.lance_schema())
}

impl Lance {
    /// What its readers are told of the SSTables.
    pub(crate) async fn shard_snapshot(&self) -> Result<ShardSnapshot> {
        let snapshot = ShardSnapshot::new(super::LANCE_SHARD);
        let Some(manifest) = self.writer.manifest().await? else {
            return Ok(snapshot);
        };
        let snapshot = snapshot.with_current_generation(manifest.current_generation);
        Ok(manifest.sstables.iter().fold(snapshot, |s, table| s.with_sstable(table.generation, table.path.clone())))
    }

    /// The sources of a read: base table, SSTables and MemTables.
    pub(crate) async fn sources(&self) -> Result<LsmDataSourceCollector> {
        let memtables = self.writer.in_memory_memtable_refs().await?;
        let snapshot = self.shard_snapshot().await?;
        let collector = LsmDataSourceCollector::new(Arc::new(self.dataset.clone()), vec![snapshot]);
        Ok(collector.with_in_memory_memtables(super::LANCE_SHARD, memtables))
    }
}

/// Lance's own merge of rows into a dataset, by key.
pub(crate) async fn merge_insert(dataset: Dataset, ids: &[i64]) -> Result<Dataset> {
    let rows = batches(ids)?.into_iter().map(|rows| rows.lance).collect();
    let mut merge = MergeInsertBuilder::try_new(Arc::new(dataset), vec!["id".into()])?;
    merge.when_matched(WhenMatched::UpdateAll).when_not_matched(WhenNotMatched::InsertAll);
    let (merged, _) = merge.try_build()?.execute_reader(reader(rows)).await?;
    Ok(merged.as_ref().clone())
}
