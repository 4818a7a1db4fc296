//! Lance's own reader of MemWAL tables on what Fencepost flushed: the same rows, found by the sidecars.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use fencepost::wal::{ManifestStore, Shard};
use fencepost::{Sharding, Store, Table, TableOptions};
use lance::Dataset;
use lance::dataset::mem_wal::scanner::{LsmDataSourceCollector, LsmPointLookupPlanner};
use lance::dataset::mem_wal::{LsmScanner, ShardSnapshot};
use lance::dataset::{InsertBuilder, WriteMode, WriteParams};
use lance_core::utils::bloomfilter::sbbf::Sbbf;

use crate::support::*;

const IDS: i64 = 40;

fn two_part_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("part", DataType::Utf8, false),
        Field::new("v", DataType::Int64, true),
    ]))
}

fn part(id: i64) -> String {
    format!("{}\0", id % 3)
}

fn batch(rows: &[(i64, i64)]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| part(row.0)))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
    ];
    RecordBatch::try_new(two_part_schema(), columns).unwrap()
}

/// Rows in the base table and in three SSTables that overwrite and delete each other's.
async fn flushed(path: &str, key: &[String]) -> Table {
    let store = Store::open(path, &HashMap::new()).unwrap();
    let options = TableOptions { primary_key: key.to_vec(), sharding: Sharding::Unsharded };
    let table = Table::create(store, two_part_schema(), options).await.unwrap();
    let base = Arc::new(Dataset::open(path).await.unwrap());
    let params = WriteParams { mode: WriteMode::Append, ..WriteParams::default() };
    let rows = |ids: std::ops::Range<i64>, add| batch(&ids.map(|id| (id, id + add)).collect::<Vec<_>>());
    InsertBuilder::new(base).with_params(&params).execute(vec![rows(0..20, 0)]).await.unwrap();
    let keys_of = |ids: &[i64]| {
        let all = batch(&ids.iter().map(|id| (*id, 0)).collect::<Vec<_>>());
        let columns: Vec<usize> = key.iter().map(|name| all.schema().index_of(name).unwrap()).collect();
        all.project(&columns).unwrap()
    };
    let writer = table.writer(config()).await.unwrap();
    writer.put(rows(10..30, 100)).await.unwrap();
    writer.delete(keys_of(&[0, 1, 25])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(12..15, 200)).await.unwrap();
    writer.put(rows(0..1, 200)).await.unwrap();
    writer.delete(keys_of(&[13, 28])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(28..35, 300)).await.unwrap();
    writer.delete(keys_of(&[14])).await.unwrap();
    writer.close().await.unwrap();
    table
}

#[tokio::test]
async fn lances_scans_and_lookups_find_the_rows_of_our_sstables() {
    for key in [vec!["id".to_owned()], vec!["part".to_owned(), "id".to_owned()]] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t").to_str().unwrap().to_owned();
        let table = flushed(&path, &key).await;
        let rows = sql(&table.provider().await.unwrap(), "select id, v from t order by id").await;
        let expected: Vec<(i64, i64)> =
            rows.iter().map(|row| (row[0].parse().unwrap(), row[1].parse().unwrap())).collect();
        assert_eq!(expected.len(), 31);

        let shard = Shard::new(table.store().clone(), table.shard_ids().await.unwrap()[0]);
        let manifest = ManifestStore::new(shard).latest_existing().await.unwrap();
        let mut snapshot = ShardSnapshot::new(*table.shard_ids().await.unwrap()[0].as_uuid())
            .with_current_generation(manifest.current_generation.get());
        let mut filters = Vec::new();
        for sstable in &manifest.sstables {
            let generation = sstable.generation.get();
            snapshot = snapshot.with_sstable(generation, sstable.path.clone());
            let file =
                format!("{path}/{}{}/bloom_filter.bin", folder(table.shard_ids().await.unwrap()[0]), sstable.path);
            filters.push((generation, Arc::new(Sbbf::new(&std::fs::read(file).unwrap()).unwrap())));
        }
        let base = Arc::new(Dataset::open(&path).await.unwrap());

        let scanner = LsmScanner::new(Arc::clone(&base), vec![snapshot.clone()], key.clone());
        let found = scanner.try_into_batch().await.unwrap();
        let column = |name: &str| found.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().to_vec();
        let mut found: Vec<(i64, i64)> = column("id").into_iter().zip(column("v")).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{key:?}");

        // Which keys the SSTables have, tombstones too.
        let all = batch(&(0..IDS).map(|id| (id, 0)).collect::<Vec<_>>());
        let written: Vec<bool> = (0..IDS).map(|id| id < 2 || (10..35).contains(&id)).collect();
        assert_eq!(scanner.contains_pks(&all).await.unwrap(), written, "{key:?}");

        let collector = LsmDataSourceCollector::new(Arc::clone(&base), vec![snapshot]);
        let schema = Arc::new(Schema::from(base.schema()));
        let planner = LsmPointLookupPlanner::new(collector, key.clone(), schema).unwrap().with_bloom_filters(filters);
        for id in 0..IDS {
            let value = |name: &String| match name.as_str() {
                "id" => ScalarValue::Int64(Some(id)),
                _ => ScalarValue::Utf8(Some(part(id))),
            };
            let row = planner.lookup(&key.iter().map(value).collect::<Vec<_>>(), None).await.unwrap();
            let v = row.map(|row| row.column_by_name("v").unwrap().as_primitive::<Int64Type>().value(0));
            let expected = expected.iter().find(|row| row.0 == id).map(|row| row.1);
            assert_eq!(v, expected, "id {id} of {key:?}");
        }
    }
}
