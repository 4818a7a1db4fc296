//! A table whose logs are in a store of their own, through the engine: writing, reading, flushing, merging, collecting,
//! moving, and what is answered when that store is lost.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_schema::SchemaRef;
use fencepost::{Error, MergeOptions, Store, Table, TableOptions, WriterConfig};
use fencepost_wal::Error as WalError;
use fencepost_wal::gc::GcOptions;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use uuid::Uuid;

use crate::support::pairs;

fn store(place: &str) -> Store {
    Store::open(&format!("memory://wal-store-{}/{place}", Uuid::new_v4()), &HashMap::new()).unwrap()
}

fn batch(ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.into_iter().collect();
    let v: ArrayRef = Arc::new(ids.iter().map(|id| Some(id * 10)).collect::<Int64Array>());
    let ids: ArrayRef = Arc::new(Int64Array::from(ids));
    RecordBatch::try_from_iter_with_nullable([("id", ids, false), ("v", v, true)]).unwrap()
}

fn schema() -> SchemaRef {
    batch([]).schema()
}

async fn names(store: &Store) -> Vec<String> {
    let names = store.object_store().list(None).map_ok(|object| object.location.to_string());
    names.try_collect().await.unwrap()
}

async fn wipe(store: &Store) {
    for name in names(store).await {
        store.object_store().delete(&name.into()).await.unwrap();
    }
}

async fn put(table: &Table, ids: std::ops::Range<i64>) {
    let writer = table.writer(WriterConfig::default()).await.unwrap();
    writer.put(batch(ids)).await.unwrap();
    writer.close().await.unwrap();
}

async fn ids(table: &Table) -> Vec<i64> {
    pairs(table.provider().await.unwrap()).await.into_iter().map(|(id, _)| id).collect()
}

fn options(sharding: &str) -> TableOptions {
    TableOptions { primary_key: vec!["id".to_owned()], sharding: sharding.parse().unwrap() }
}

async fn logs_of(table: &Table) -> Vec<Option<String>> {
    table.inspect().await.unwrap().shards.into_iter().map(|shard| shard.wal_store).collect()
}

#[tokio::test]
async fn a_table_with_its_logs_elsewhere_is_a_table() {
    let (place, wal) = (store("t"), store("w"));
    let created = Table::create_with_wal_store(place.clone(), wal.clone(), schema(), options("bucket(id,2)")).await;
    put(&created.unwrap(), 0..50).await;
    // Who opens it later need not know.
    let table = Table::open(place.clone()).await.unwrap();
    let writer = table.writer(WriterConfig::default()).await.unwrap();
    writer.put(batch(50..60)).await.unwrap();
    let entries = |names: Vec<String>| names.into_iter().filter(|name| name.contains("/wal/")).count();
    // A sentinel for each of two shards, from before the log moved.
    assert_eq!(entries(names(&place).await), 2);
    assert!(entries(names(&wal).await) >= 4);
    assert_eq!(ids(&table).await, (0..60).collect::<Vec<_>>());
    assert_eq!(logs_of(&table).await, vec![Some(wal.url().to_string()); 2]);
    drop(writer);
    table.flush(WriterConfig::default()).await.unwrap();
    table.merge(&MergeOptions::default(), |_| ()).await.unwrap();
    table.gc(&GcOptions { min_age: std::time::Duration::ZERO, ..Default::default() }, |_| ()).await.unwrap();
    assert_eq!(ids(&table).await, (0..60).collect::<Vec<_>>());
    assert!(table.verify(|_| ()).await.unwrap().findings.is_empty());
}

#[tokio::test]
async fn logs_move_when_nothing_is_left_in_them() {
    let (place, first, second) = (store("t"), store("a"), store("b"));
    let table = Table::create(place.clone(), schema(), options("unsharded")).await.unwrap();
    put(&table, 0..10).await;
    for (n, wal) in [&first, &second, &first].into_iter().enumerate() {
        let table = Table::open_with_wal_store(place.clone(), wal.clone()).await.unwrap();
        let from = 10 * (n as i64 + 1);
        put(&table, from..from + 10).await;
        assert_eq!(logs_of(&table).await, [Some(wal.url().to_string())]);
        assert_eq!(ids(&Table::open(place.clone()).await.unwrap()).await, (0..from + 10).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_lost_wal_store_is_an_error_that_names_it_and_the_way_out() {
    let (place, wal) = (store("t"), store("w"));
    let table = Table::create_with_wal_store(place.clone(), wal.clone(), schema(), options("unsharded")).await.unwrap();
    put(&table, 0..10).await;
    let writer = table.writer(WriterConfig::default()).await.unwrap();
    writer.put(batch(10..20)).await.unwrap();
    drop(writer);
    wipe(&wal).await;
    let table = Table::open(place.clone()).await.unwrap();
    for error in [
        table.writer(WriterConfig::default()).await.map(|_| ()).unwrap_err(),
        table.provider().await.map(|_| ()).unwrap_err(),
        table.inspect().await.map(|_| ()).unwrap_err(),
    ] {
        assert!(
            matches!(&error, Error::Wal(WalError::WalStoreMissing { recorded, .. }) if recorded == wal.url().as_str())
        );
        assert!(error.to_string().contains("--abandon-wal-store"), "{error}");
    }
    let mut config = WriterConfig::default();
    config.open.abandon_wal_store = true;
    let writer = table.writer(config).await.unwrap();
    writer.put(batch(20..30)).await.unwrap();
    writer.close().await.unwrap();
    // What was flushed is there, what was in the lost log only is not.
    let expected: Vec<i64> = (0..10).chain(20..30).collect();
    assert_eq!(ids(&table).await, expected);
}

/// After a clean close and a flush nothing in the store is needed, so it may be wiped: on a disk that comes and goes, say.
#[tokio::test]
async fn a_wal_store_may_be_wiped_after_a_clean_close() {
    let (place, wal) = (store("t"), store("w"));
    let table =
        Table::create_with_wal_store(place.clone(), wal.clone(), schema(), options("bucket(id,2)")).await.unwrap();
    for n in 0..3 {
        put(&table, n * 10..(n + 1) * 10).await;
        wipe(&wal).await;
        assert_eq!(ids(&Table::open(place.clone()).await.unwrap()).await, (0..(n + 1) * 10).collect::<Vec<_>>());
    }
}
