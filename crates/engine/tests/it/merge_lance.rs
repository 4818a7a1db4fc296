//! Merging into a base table that plain Lance works on, too: with indexes of its own, and rows that it appends.

use std::sync::Arc;

use arrow_array::RecordBatchIterator;
use fencepost::MergeOptions;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::mem_wal::DatasetMemWalExt;
use lance::dataset::{WriteMode, WriteParams};
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::ScalarIndexParams;

use crate::interop::place::Place;
use crate::merge::{merge, options};
use crate::support::*;

impl Place {
    pub(crate) async fn index_by_lance(&self, column: &str) {
        let mut dataset = self.lance().await.dataset;
        let parameters = ScalarIndexParams::default();
        dataset.create_index(&[column], IndexType::BTree, None, &parameters, false).await.unwrap();
    }

    /// How many rows plain Lance finds by a filter that an index may answer.
    async fn found(&self, filter: &str) -> usize {
        let dataset = self.lance().await.dataset;
        let mut scan = dataset.scan();
        scan.filter(filter).unwrap();
        let batches: Vec<_> = scan.try_into_stream().await.unwrap().try_collect().await.unwrap();
        batches.iter().map(|batch| batch.num_rows()).sum()
    }

    /// For each SSTable that was merged, the indexes that do not cover it.
    async fn awaited_by(&self) -> Vec<Vec<String>> {
        let inspection = self.table().await.inspect().await.unwrap();
        let sstables = inspection.shards[0].sstables.iter();
        sstables.inspect(|sstable| assert!(sstable.merged)).map(|sstable| sstable.awaited_by.clone()).collect()
    }

    /// Up to which generation an index covers what was merged; 0 if it does not say.
    async fn caught_up(&self, index: &str) -> u64 {
        let details = self.lance().await.dataset.mem_wal_index_details().await.unwrap().unwrap();
        let caught_up = details.index_catchup.iter().find(|c| c.index_name == index);
        caught_up.and_then(|c| c.caught_up_generations.first()).map_or(0, |g| g.generation)
    }
}

/// With an index on the key Lance finds the rows to replace by it, which is another way through its code.
#[tokio::test]
async fn a_base_table_with_an_index_on_its_key_is_merged_into() {
    let place = Place::new(true).await;
    let writer = place.table().await.writer(config()).await.unwrap();
    writer.put(ids(0..50)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&place.table().await).await;
    place.index_by_lance("id").await;
    for round in 1..4 {
        writer.put(rows(&[(1, round), (60 + round, 7)])).await.unwrap();
        writer.delete(keys(&[10 + round, 60 + round - 1, 999])).await.unwrap();
        writer.flush().await.unwrap();
        merge(&place.table().await).await;
    }
    let mut expected = id_pairs(0..50);
    expected.retain(|(id, _)| ![11, 12, 13].contains(id));
    expected[1].1 = Some(3);
    expected.push((63, Some(7)));
    assert_eq!(pairs(place.table().await.provider().await.unwrap()).await, expected);
    assert_eq!(place.found("id >= 0").await, expected.len());
    assert_eq!(place.found("id = 1").await, 1);
    assert_eq!(place.found("id = 62").await, 0);
}

/// Rows that were merged are found through an index that does not cover them, and `optimize_indexes` makes it cover
/// them; Lance's record of that is in step.
#[tokio::test]
async fn indexes_of_the_base_table_find_merged_rows_and_are_brought_up_to_date() {
    for keyed in [true, false] {
        let place = Place::new(keyed).await;
        let writer = place.table().await.writer(config()).await.unwrap();
        writer.put(ids(0..20)).await.unwrap();
        writer.flush().await.unwrap();
        merge(&place.table().await).await;
        place.index_by_lance("v").await;
        writer.put(rows(&[(100, 5), (101, 6)])).await.unwrap();
        writer.flush().await.unwrap();

        let report = merge(&place.table().await).await;
        assert_eq!((report.sstables, report.optimized.len()), (1, 0));
        assert_eq!(place.found("v = 5").await, 2);
        assert!(place.caught_up("v_idx").await < 2, "the index does not know generation 2 yet");
        assert_eq!(place.awaited_by().await, [vec![], vec!["v_idx".to_owned()]]);

        let optimize = MergeOptions { optimize_indexes: true, ..options() };
        let report = place.table().await.merge(&optimize, |_| {}).await.unwrap();
        assert_eq!((report.sstables, report.optimized), (0, vec!["v_idx".to_owned()]));
        assert_eq!(place.found("v = 5").await, 2);
        assert_eq!(place.caught_up("v_idx").await, 2);
        assert_eq!(place.awaited_by().await, [vec![], Vec::<String>::new()]);
    }
}

/// Somebody adds rows to an append-only base table between two merges, and while one is under way.
#[tokio::test]
async fn rows_that_plain_lance_appends_stay_beside_merged_ones() {
    let place = Place::new(false).await;
    let writer = place.table().await.writer(config()).await.unwrap();
    for round in 0..3 {
        writer.put(ids(0..3)).await.unwrap();
        writer.flush().await.unwrap();
        let append = WriteParams { mode: WriteMode::Append, ..WriteParams::default() };
        let batch = rows(&[(100 + round, 1)]);
        let reader = RecordBatchIterator::new([Ok(batch.clone())], batch.schema());
        let (table, dataset) = (place.table().await, place.lance().await.dataset);
        let options = options();
        let (merged, appended) =
            tokio::join!(table.merge(&options, |_| {}), Dataset::write(reader, Arc::new(dataset), Some(append)));
        appended.unwrap();
        assert_eq!(merged.unwrap().sstables, 1);
    }
    assert_eq!(place.found("id < 100").await, 9);
    assert_eq!(place.found("id >= 100").await, 3);
}
