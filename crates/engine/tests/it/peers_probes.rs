//! The faults that were injected into Lance MemWAL's tables, injected here: one test per probe of docs/faults.md that
//! needs a table. Those of the log alone are in the log's tests, under the same numbers.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, Int64Array, LargeStringArray, RecordBatch, StringArray, UInt64Array};
use arrow_schema::Schema;
use datafusion::common::ScalarValue;
use fencepost::wal::{ManifestStore, Shard};
use fencepost::{Sharding, Store, Table, TableOptions};
use fencepost_sim::{Fault, Op, Rule};
use lance::Dataset;
use lance::dataset::mem_wal::ShardSnapshot;
use lance::dataset::mem_wal::scanner::{LsmDataSourceCollector, LsmPointLookupPlanner};
use lance_core::utils::bloomfilter::sbbf::Sbbf;

use crate::support::*;

const FAULTS: [Fault; 2] = [Fault::LostAckAsExists, Fault::Conflict409];

async fn table(bucket: &Bucket, has_key: bool) {
    match has_key {
        true => drop(keyed(bucket, 1).await),
        false => drop(keyless(bucket, 1).await),
    }
}

/// The next entry but `nth - 1` of the log meets a fault.
fn on_entry(process: &Process, nth: u64, fault: Fault) -> Rule {
    process.faults.on(Op::Create).path_contains("/wal/").nth(nth).then(fault)
}

/// What a new writer has after it has replayed the log, and what a reader without a writer sees.
async fn reopened(bucket: &Bucket) -> Vec<(i64, Option<i64>)> {
    let seen = bucket.seen().await;
    let writer = bucket.process().writer(lazy()).await;
    assert_eq!(scanned(&writer).await, seen, "a reader sees something else than the next writer");
    seen
}

/// Probe 1: of 100 rows in a MemTable without a key Lance returned one, and after the first SSTable an error.
#[tokio::test]
async fn p1_a_table_without_a_key_is_read_from_memory_and_after_its_first_sstable() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let writer = bucket.process().writer(lazy()).await;
    writer.put(ids(0..100)).await.unwrap();
    assert_eq!(scanned(&writer).await, id_pairs(0..100));
    writer.flush().await.unwrap();
    assert_eq!(bucket.manifest().await.sstables.len(), 1);
    assert_eq!(bucket.seen().await, id_pairs(0..100));
    writer.put(ids(100..120)).await.unwrap();
    assert_eq!(scanned(&writer).await, id_pairs(0..120));
    writer.flush().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..120));
}

/// Probe 2: without a key the row of the lost ack came back twice from Lance's replay; with one it was hidden.
#[tokio::test]
async fn p2_a_lost_ack_doubles_no_row_with_a_key_and_without() {
    for has_key in [false, true] {
        let bucket = Bucket::new();
        table(&bucket, has_key).await;
        let process = bucket.process();
        let writer = process.writer(config()).await;
        let rule = on_entry(&process, 3, Fault::LostAckAsExists);
        for id in 0..5 {
            writer.put(ids(id..id + 1)).await.unwrap();
        }
        assert_eq!(rule.fired(), 1);
        assert_eq!(scanned(&writer).await, id_pairs(0..5), "key: {has_key}");
        drop(writer);
        assert_eq!(reopened(&bucket).await, id_pairs(0..5), "key: {has_key}");
    }
}

/// Probe 2b: Lance's manifest listed the SSTable twice, and all five acknowledged rows were invisible. 4e: a conflict.
#[tokio::test]
async fn p2b_a_lost_ack_or_a_conflict_of_a_flush_hides_no_row() {
    for (has_key, fault) in [(true, FAULTS[0]), (true, FAULTS[1]), (false, FAULTS[0]), (false, FAULTS[1])] {
        let bucket = Bucket::new();
        table(&bucket, has_key).await;
        let process = bucket.process();
        let writer = process.writer(config()).await;
        writer.put(ids(0..5)).await.unwrap();
        let rule = process.faults.on(Op::Create).path_contains("/manifest/").then(fault);
        writer.flush().await.unwrap();
        assert_eq!(rule.fired(), 1);
        assert_eq!(bucket.manifest().await.sstables.len(), 1, "{fault:?}");
        assert_eq!(bucket.seen().await, id_pairs(0..5), "{fault:?}");
        drop(writer);
        assert_eq!(bucket.seen().await, id_pairs(0..5), "{fault:?}");
        bucket.process().writer(config()).await.close().await.unwrap();
        assert_eq!(bucket.seen().await, id_pairs(0..5), "{fault:?}");
    }
}

/// Ten rows, each in an entry of its own, the fourth of which met a conflict; the writer is gone.
async fn ten_with_a_conflict(has_key: bool) -> Bucket {
    let bucket = Bucket::new();
    table(&bucket, has_key).await;
    let process = bucket.process();
    let writer = process.writer(config()).await;
    let rule = on_entry(&process, 4, Fault::Conflict409);
    for id in 0..10 {
        writer.put(ids(id..id + 1)).await.unwrap();
    }
    assert_eq!(rule.fired(), 1);
    bucket
}

/// Probes 4, 4b, 4c: seven of Lance's ten acknowledged rows were gone from view, for good after the next flush; without
/// one, three new rows brought them back in another order.
#[tokio::test]
async fn p4_no_row_behind_a_conflict_is_lost_flushed_or_not() {
    for has_key in [true, false] {
        for flushes in [true, false] {
            let bucket = ten_with_a_conflict(has_key).await;
            assert_eq!(bucket.seen().await, id_pairs(0..10));
            let writer = bucket.process().writer(config()).await;
            for id in 10..13 {
                writer.put(ids(id..id + 1)).await.unwrap();
            }
            if flushes {
                writer.flush().await.unwrap();
                assert_eq!(bucket.manifest().await.sstables.len(), 1);
            }
            drop(writer);
            assert_eq!(bucket.seen().await, id_pairs(0..13), "key: {has_key}, flushes: {flushes}");
            drop(bucket.process().writer(config()).await);
            assert_eq!(bucket.seen().await, id_pairs(0..13), "key: {has_key}, flushes: {flushes}");
        }
    }
}

/// Probe 4d: an acknowledged update of row 5 was visible, and after the next reopen the old value was back.
#[tokio::test]
async fn p4d_an_update_after_a_conflict_stays() {
    for flushes in [true, false] {
        let bucket = ten_with_a_conflict(true).await;
        let writer = bucket.process().writer(config()).await;
        writer.put(rows(&[(5, 500)])).await.unwrap();
        if flushes {
            writer.flush().await.unwrap();
        }
        drop(writer);
        let expected: Vec<_> = (0..10).map(|id| (id, Some(if id == 5 { 500 } else { id }))).collect();
        for _ in 0..3 {
            assert_eq!(bucket.seen().await, expected, "flushes: {flushes}");
            drop(bucket.process().writer(config()).await);
        }
    }
}

/// Fifty keys of one type, as a column and as values, and fifty that are not in the table.
fn keys_of_type(name: &str) -> (ArrayRef, Vec<ScalarValue>, Vec<ScalarValue>) {
    let column: ArrayRef = match name {
        "int64" => Arc::new(Int64Array::from_iter_values(0..100)),
        "int32" => Arc::new(Int32Array::from_iter_values(0..100)),
        "uint64" => Arc::new(UInt64Array::from_iter_values(0..100)),
        "utf8" => Arc::new(StringArray::from_iter_values((0..100).map(|n| format!("key {n}")))),
        _ => Arc::new(LargeStringArray::from_iter_values((0..100).map(|n| format!("key {n}")))),
    };
    let value = |n| ScalarValue::try_from_array(&column, n).unwrap();
    (column.slice(0, 50), (0..50).map(value).collect(), (50..100).map(value).collect())
}

/// Probe 3: with the filter that Lance stored, its lookup found none of fifty keys of type `uint64` or `large_utf8`.
/// Here its lookup reads the filter that we stored.
#[tokio::test]
async fn p3_stored_bloom_filters_deny_no_key_of_any_probed_type() {
    for name in ["int64", "int32", "utf8", "uint64", "large_utf8"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t").to_str().unwrap().to_owned();
        let (column, present, absent) = keys_of_type(name);
        let batch = RecordBatch::try_from_iter_with_nullable([("k", column, false)]).unwrap();
        let options = TableOptions { primary_key: vec!["k".to_owned()], sharding: Sharding::Unsharded };
        let store = Store::open(&path, &HashMap::new()).unwrap();
        let table = Table::create(store, batch.schema(), options).await.unwrap();
        let writer = table.writer(config()).await.unwrap();
        writer.put(batch.clone()).await.unwrap();
        writer.close().await.unwrap();

        let id = table.shard_ids().await.unwrap()[0];
        let manifest = ManifestStore::new(Shard::new(table.store().clone(), id)).latest_existing().await.unwrap();
        let [sstable] = &manifest.sstables[..] else { panic!("{manifest:?}") };
        let generation = sstable.generation.get();
        let snapshot = ShardSnapshot::new(*id.as_uuid())
            .with_current_generation(manifest.current_generation.get())
            .with_sstable(generation, sstable.path.clone());
        let file = format!("{path}/{}{}/bloom_filter.bin", folder(id), sstable.path);
        let filter = Sbbf::new(&std::fs::read(file).unwrap()).unwrap();

        let base = Arc::new(Dataset::open(&path).await.unwrap());
        let schema = Arc::new(Schema::from(base.schema()));
        let collector = LsmDataSourceCollector::new(base, vec![snapshot]);
        let planner = LsmPointLookupPlanner::new(collector, vec!["k".to_owned()], schema)
            .unwrap()
            .with_bloom_filters(vec![(generation, Arc::new(filter))]);
        let mut found = [0, 0];
        for (keys, found) in [&present, &absent].into_iter().zip(&mut found) {
            for key in keys {
                *found += usize::from(planner.lookup(std::slice::from_ref(key), None).await.unwrap().is_some());
            }
        }
        assert_eq!(found, [50, 0], "{name}");
    }
}

/// Every file of a table on `file://` is written by the store object, which fsyncs it and its folders before it answers.
/// Lance writes none beside it.
#[tokio::test]
async fn no_file_of_a_table_is_written_past_the_store_that_fsyncs() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap().join("t");
    let store = Store::open(root.to_str().unwrap(), &HashMap::new()).unwrap();
    let faults = fencepost_sim::FaultStore::new(Arc::clone(store.object_store()));
    let store = store.wrapped(|_| faults.store());
    let options = TableOptions { primary_key: vec!["id".to_owned()], sharding: "bucket(id,2)".parse().unwrap() };
    let table = Table::create(store, schema(), options).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    for generation in 0..3 {
        writer.put(ids(generation * 5..generation * 5 + 10)).await.unwrap();
        writer.flush().await.unwrap();
    }
    writer.delete(keys(&[3])).await.unwrap();
    writer.close().await.unwrap();
    crate::merge::merge(&table).await;

    let log = faults.log();
    let writes = log.iter().filter(|record| Op::WRITES.contains(&record.op) && record.op != Op::Delete);
    let written: std::collections::BTreeSet<String> = writes.map(|record| record.path.clone()).collect();
    let mut files = Vec::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        let object = object_store::path::Path::from_absolute_path(&file).unwrap();
        assert!(written.contains(object.as_ref()), "{} was written past the store", file.display());
    }
}
