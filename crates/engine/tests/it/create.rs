//! Making and opening tables: what is refused and why, and creations that died on the way.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use fencepost::wal::Error as WalError;
use fencepost::{Error, Sharding, Store, Table, TableOptions, WriterConfig};
use fencepost_sim::{Fault, Op};
use lance::Dataset;
use lance::dataset::InsertBuilder;

use crate::support::*;

fn options(key: &[&str], sharding: &str) -> TableOptions {
    TableOptions { primary_key: key.iter().map(|k| (*k).to_owned()).collect(), sharding: sharding.parse().unwrap() }
}

fn disk(path: &std::path::Path) -> Store {
    Store::open(path.to_str().unwrap(), &HashMap::new()).unwrap()
}

#[tokio::test]
async fn a_table_opens_as_it_was_created() {
    let bucket = Bucket::new();
    let created = Table::create(bucket.process().store, schema(), options(&["id"], "bucket(id,3)")).await.unwrap();
    let opened = bucket.table().await;
    assert_eq!(opened.schema(), schema());
    assert_eq!(opened.primary_key(), ["id"]);
    assert_eq!(opened.sharding(), &Sharding::Bucket { column: "id".into(), buckets: 3 });
    assert_eq!(opened.shard_ids().await.unwrap(), created.shard_ids().await.unwrap());
    assert_eq!(bucket.seen().await, []);
    let inspected = opened.inspect().await.unwrap();
    assert_eq!((inspected.shards.len(), inspected.base.rows), (3, 0));
    assert!(inspected.shards.iter().all(|s| s.writer_epoch == 0 && s.tail == 0 && s.current_generation == 1));
    assert!(created.tailer(created.shard_ids().await.unwrap()[0]).next().await.unwrap().is_none());
}

#[tokio::test]
async fn what_exists_is_not_created_and_what_does_not_is_not_opened() {
    let bucket = Bucket::new();
    let nothing = Table::open(bucket.process().store).await;
    assert!(matches!(&nothing, Err(Error::TableNotFound { reason, .. }) if reason.contains("no Lance dataset")));
    let table = keyed(&bucket, 1).await;
    table.writer(config()).await.unwrap().put(ids(0..2)).await.unwrap();
    for options in [options(&["id"], "unsharded"), options(&[], "bucket(id,2)")] {
        let again = Table::create(bucket.process().store, schema(), options).await;
        assert!(matches!(again, Err(Error::TableExists { .. })), "{again:?}");
    }
    assert_eq!(bucket.seen().await, id_pairs(0..2));
}

#[tokio::test]
async fn other_things_at_the_place_of_a_table_are_named() {
    let dir = tempfile::tempdir().unwrap();
    // A plain Lance dataset.
    let plain = dir.path().join("plain");
    InsertBuilder::new(plain.to_str().unwrap()).execute(vec![RecordBatch::new_empty(schema())]).await.unwrap();
    let opened = Table::open(disk(&plain)).await;
    assert!(matches!(&opened, Err(Error::TableNotFound { reason, .. }) if reason.contains("MemWAL")), "{opened:?}");
    let created = Table::create(disk(&plain), schema(), TableOptions::default()).await;
    assert!(matches!(created, Err(Error::TableExists { .. })), "{created:?}");
    assert_eq!(Dataset::open(plain.to_str().unwrap()).await.unwrap().version().version, 1, "untouched");
    // A file.
    let file = dir.path().join("file");
    std::fs::write(&file, "text").unwrap();
    let refused = Store::open(file.to_str().unwrap(), &HashMap::new());
    assert!(matches!(refused, Err(WalError::InvalidUrl { .. })), "{refused:?}");
    // A folder of other things.
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("notes.txt"), "text").unwrap();
    assert!(matches!(Table::open(disk(&folder)).await, Err(Error::TableNotFound { .. })));
}

#[tokio::test]
async fn options_that_do_not_go_together_create_nothing() {
    let float: SchemaRef = Arc::new(Schema::new(vec![Field::new("id", DataType::Float64, false)]));
    let reserved: SchemaRef = Arc::new(Schema::new(vec![Field::new("_tombstone", DataType::Boolean, false)]));
    let twice: SchemaRef = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false); 2]));
    for (schema, options, words) in [
        (schema(), options(&["nosuch"], "unsharded"), "nosuch"),
        (schema(), options(&["id", "id"], "unsharded"), "twice"),
        (schema(), options(&["id"], "bucket(v,2)"), "not part of the primary key"),
        (schema(), options(&[], "bucket(nosuch,2)"), "nosuch"),
        (float, options(&["id"], "unsharded"), "floats"),
        (reserved, options(&[], "unsharded"), "reserved"),
        (twice, options(&[], "unsharded"), "two columns"),
        (Arc::new(Schema::empty()), options(&[], "unsharded"), "at least one column"),
    ] {
        let bucket = Bucket::new();
        let error = Table::create(bucket.process().store, schema, options).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidOptions(why) if why.contains(words)), "{error} does not say `{words}`");
        assert!(matches!(Table::open(bucket.process().store).await, Err(Error::TableNotFound { .. })));
    }
}

/// Dies at every request that writes, before it is sent and after it landed; a second process then finishes.
#[tokio::test]
async fn a_creation_that_died_anywhere_is_finished_by_the_next_one() {
    for after in [false, true] {
        let mut deaths = 0;
        for nth in 1.. {
            let bucket = Bucket::new();
            let process = bucket.process();
            let rule = process.faults.on(Op::Create).nth(nth);
            let gate = match after {
                false => rule.stall(),
                true => rule.stall_after(),
            };
            let store = process.store.clone();
            let mut creating = tokio::spawn(Table::create(store, schema(), options(&["id"], "bucket(id,3)")));
            let done = soon("the creation", async {
                tokio::select! {
                    done = &mut creating => Some(done),
                    () = gate.reached() => None,
                }
            })
            .await;
            if let Some(done) = done {
                done.unwrap().unwrap();
                break;
            }
            creating.abort();
            let _ = creating.await;
            deaths += 1;

            let again = Table::create(bucket.process().store, schema(), options(&["id"], "bucket(id,3)")).await;
            assert!(matches!(again, Ok(_) | Err(Error::TableExists { .. })), "{after} {nth}: {again:?}");
            // Shards that are still missing are made by whoever writes; readers do without.
            assert_eq!(bucket.seen().await, []);
            assert_eq!(bucket.table().await.inspect().await.unwrap().shards.len(), 3);
            let writer = bucket.table().await.writer(config()).await.unwrap();
            writer.put(ids(0..20)).await.unwrap();
            writer.close().await.unwrap();
            assert_eq!(bucket.seen().await, id_pairs(0..20));
        }
        assert!(deaths >= 4, "two commits of Lance's and three shards, but {deaths}");
    }
}

#[tokio::test]
async fn lost_answers_do_not_fail_a_creation() {
    for fault in [Fault::LostAckAsExists, Fault::LostAck, Fault::Conflict409] {
        let bucket = Bucket::new();
        let process = bucket.process();
        let rule = process.faults.on(Op::Create).path_contains("/manifest/").times(1).then(fault);
        Table::create(process.store, schema(), options(&["id"], "bucket(id,2)")).await.unwrap();
        assert_eq!(rule.fired(), 1);
        assert_eq!(bucket.seen().await, []);
    }
}

#[tokio::test]
async fn two_processes_that_create_or_write_at_once_leave_one_table() {
    let bucket = Bucket::new();
    let (one, two) = (bucket.process(), bucket.process());
    let (a, b) = tokio::join!(
        Table::create(one.store.clone(), schema(), options(&["id"], "bucket(id,4)")),
        Table::create(two.store.clone(), schema(), options(&["id"], "bucket(id,4)")),
    );
    assert!(a.is_ok() || b.is_ok());
    for result in [&a, &b] {
        assert!(matches!(result, Ok(_) | Err(Error::TableExists { .. })), "{result:?}");
    }
    let writer = bucket.table().await.writer(WriterConfig::default()).await.unwrap();
    writer.put(ids(0..5)).await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..5));
}

/// Plain Lance opens a table that was flushed, and each of its SSTables.
#[tokio::test]
async fn plain_lance_opens_table_and_sstables() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let table = Table::create(disk(&path), schema(), options(&["id"], "unsharded")).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    writer.put(ids(0..10)).await.unwrap();
    writer.delete(keys(&[3])).await.unwrap();
    writer.close().await.unwrap();
    let inspected = table.inspect().await.unwrap();
    let shard = &inspected.shards[0];
    assert_eq!(shard.sstables[0].rows, Some(10), "a tombstone among them");
    let folder = path.join(folder(shard.shard_id)).join(&shard.sstables[0].path);
    let sstable = Dataset::open(folder.to_str().unwrap()).await.unwrap();
    assert_eq!(sstable.count_rows(None).await.unwrap(), 10);
    assert_eq!(sstable.count_rows(Some("_tombstone".into())).await.unwrap(), 1);
    assert_eq!(Dataset::open(path.to_str().unwrap()).await.unwrap().count_rows(None).await.unwrap(), 0);
}
