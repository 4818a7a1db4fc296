//! Writers: what they accept and refuse, what their answers mean, limits, and the life of a handle.

use std::future::Future;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use fencepost::wal::Error as WalError;
use fencepost::{Error, MemTableConfig, Outcome, Result, TableWriter, WriterConfig, Written};
use fencepost_sim::{Fault, Op};
use futures::future::join_all;

use crate::support::*;

fn limited(change: impl FnOnce(&mut MemTableConfig)) -> WriterConfig {
    let mut config = config();
    change(config.memtable.as_mut().unwrap());
    config
}

fn column(name: &str, array: ArrayRef) -> (String, ArrayRef) {
    (name.to_owned(), array)
}

fn refused(result: Result<Written>, words: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::InvalidBatch(_)), "{error}");
    assert!(error.to_string().contains(words), "{error} does not say `{words}`");
    assert_eq!(error.outcome(), Outcome::NotWritten);
}

#[tokio::test]
async fn put_delete_flush_and_close_do_what_they_say() {
    for buckets in [1, 4] {
        let bucket = Bucket::new();
        let table = keyed(&bucket, buckets).await;
        let writer = table.writer(config()).await.unwrap();
        writer.put(rows(&[(1, 10), (2, 20), (3, 30)])).await.unwrap();
        writer.put(rows(&[(2, 21)])).await.unwrap();
        writer.delete(keys(&[3, 77])).await.unwrap();
        let expected = [(1, Some(10)), (2, Some(21))];
        assert_eq!(pairs(writer.provider().await.unwrap()).await, expected);
        assert_eq!(bucket.seen().await, expected);
        writer.flush().await.unwrap();
        assert_eq!(pairs(writer.provider().await.unwrap()).await, expected);
        writer.put(rows(&[(3, 31)])).await.unwrap();
        writer.close().await.unwrap();
        assert_eq!(bucket.seen().await, [(1, Some(10)), (2, Some(21)), (3, Some(31))]);
        for shard in table.inspect().await.unwrap().shards {
            assert_eq!((shard.replay_after, shard.rows_in_log), (shard.tail, 0));
        }
    }
}

/// A table with thousands of clients has thousands of these in memory at once: what is rare (opening shards, waiting for memory or for
/// admission, explaining errors) is kept out of them.
#[tokio::test]
async fn what_waits_for_a_row_is_small() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 1).await;
    let writer = table.writer(config()).await.unwrap();
    let row = || rows(&[(1, 1)]);
    let shard = writer.shards().pop().unwrap();
    let sizes = [
        ("TableWriter::put", size_of_val(&writer.put(row()))),
        ("TableWriter::delete", size_of_val(&writer.delete(keys(&[1])))),
        ("TableWriter::put_no_wait", size_of_val(&writer.put_no_wait(row()))),
        ("ShardWriter::put", size_of_val(&shard.put(row()))),
    ];
    assert!(sizes.iter().all(|(_, bytes)| *bytes <= 2048), "bytes: {sizes:?}");
}

#[tokio::test]
async fn stats_tell_what_happened() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    assert_eq!((writer.epoch().get(), writer.stats().wal.next_position.get()), (1, 2));
    writer.put(ids(0..5)).await.unwrap();
    writer.put(ids(3..7)).await.unwrap();
    writer.delete(keys(&[0])).await.unwrap();
    let (stats, memory) = (writer.stats(), writer.memtable_stats().unwrap());
    assert_eq!((stats.wal.appends, stats.wal.rows, stats.wal.entries), (3, 10, 3));
    assert_eq!((stats.wal.acknowledged.get(), stats.wal.next_position.get()), (4, 5));
    assert_eq!((memory.rows, memory.batches, memory.frozen, memory.applied.get()), (10, 3, 0, 4));
    assert!(memory.bytes > 10 * 16 && memory.index_bytes > 0);
    assert!(stats.wal.unflushed_bytes > 0);
    writer.flush().await.unwrap();
    let (stats, memory) = (writer.stats(), writer.memtable_stats().unwrap());
    assert_eq!((stats.flushes, stats.flushed_rows, stats.flush_failures), (1, 7, 0));
    assert_eq!((memory.generation.get(), memory.rows, memory.frozen_rows), (2, 0, 0));
    assert_eq!(stats.wal.unflushed_bytes, 0, "a flush gives the memory back");
    drop(writer);
    // Right at once after a reopen, before anything is written.
    let next = bucket.process().writer(config()).await;
    assert_eq!((next.epoch().get(), next.stats().wal.next_position.get()), (2, 6));
    assert_eq!(next.memtable_stats().unwrap().applied.get(), 5);
}

/// Rows that were accepted into memory are seen by the writer's own queries before they are sent, while they are
/// sent, and afterwards, each once.
#[tokio::test]
async fn rows_acknowledged_from_memory_are_visible_at_once_and_once() {
    for keyed_table in [true, false] {
        let bucket = Bucket::new();
        let table = match keyed_table {
            true => keyed(&bucket, 2).await,
            false => keyless(&bucket, 2).await,
        };
        let process = bucket.process();
        let table = fencepost::Table::open(table.store().clone().wrapped(|_| process.faults.store())).await.unwrap();
        let writer = Arc::new(table.writer(lazy()).await.unwrap());
        writer.put(ids(0..6)).await.unwrap();
        assert_eq!(pairs(writer.provider().await.unwrap()).await, id_pairs(0..6), "queued");
        assert_eq!(bucket.seen().await, []);

        // One shard's PUT lands and its answer is held back, the other's is not sent.
        let answer = process.faults.on(Op::Create).path_contains("/wal/").stall_after();
        let request = process.faults.on(Op::Create).path_contains("/wal/").nth(2).stall();
        let flushing = tokio::spawn({
            let writer = Arc::clone(&writer);
            async move { writer.flush().await }
        });
        soon("both PUTs", async { tokio::join!(answer.reached(), request.reached()) }).await;
        writer.put(ids(6..9)).await.unwrap();
        assert_eq!(pairs(writer.provider().await.unwrap()).await, id_pairs(0..9), "in flight");
        answer.release();
        request.release();
        while !flushing.is_finished() {
            assert_eq!(pairs(writer.provider().await.unwrap()).await, id_pairs(0..9), "while landing");
            tokio::task::yield_now().await;
        }
        flushing.await.unwrap().unwrap();
        assert_eq!(pairs(writer.provider().await.unwrap()).await, id_pairs(0..9));
        writer.flush().await.unwrap();
        assert_eq!(bucket.seen().await, id_pairs(0..9));
    }
}

/// The same under load, with as many threads as there are: a row is in the queue, in an entry or in a MemTable, and
/// never between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_accepted_row_is_out_of_sight_while_it_moves() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let mut config = WriterConfig { durable: false, ..small(64) };
    config.wal.flush_interval = std::time::Duration::from_millis(1);
    let writer = Arc::new(bucket.process().writer(config).await);
    let writing = tokio::spawn({
        let writer = Arc::clone(&writer);
        async move {
            for id in 0..400 {
                writer.put(ids(id..id + 1)).await.unwrap();
                if id % 16 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    let mut seen = 0;
    while !writing.is_finished() {
        let found = scanned(&writer).await;
        assert_eq!(found, id_pairs(0..found.len() as i64), "a gap or a double");
        assert!(found.len() >= seen, "{} rows after {seen}", found.len());
        seen = found.len();
    }
    writing.await.unwrap();
    writer.flush().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..400));
}

#[tokio::test]
async fn durable_rows_survive_a_drop_and_others_may_not() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    writer.put(ids(0..3)).await.unwrap();
    drop(writer);
    let writer = bucket.process().writer(lazy()).await;
    writer.put(ids(3..5)).await.unwrap();
    drop(writer);
    assert_eq!(bucket.seen().await, id_pairs(0..3));
    let writer = bucket.process().writer(lazy()).await;
    writer.put(ids(3..5)).await.unwrap();
    writer.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..5));
}

#[tokio::test]
async fn without_a_memtable_what_needs_one_is_a_typed_error() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 1).await;
    let writer = bucket.process().writer(WriterConfig::wal_only()).await;
    writer.put(rows(&[(1, 10), (1, 11)])).await.unwrap();
    let unsupported =
        |error: Error| assert!(matches!(&error, Error::NotSupported(why) if why.contains("WAL-only")), "{error}");
    unsupported(writer.memtable_stats().unwrap_err());
    unsupported(writer.scan().await.err().unwrap());
    unsupported(writer.delete(keys(&[1])).await.unwrap_err());
    writer.flush().await.unwrap();
    assert_eq!(writer.stats().flushes, 0);
    drop(writer);
    let table_writer = table.writer(WriterConfig::wal_only()).await.unwrap();
    unsupported(table_writer.provider().await.err().unwrap());
    drop(table_writer);
    assert!(matches!(table.flush(WriterConfig::wal_only()).await, Err(Error::InvalidOptions(_))));
    assert_eq!(bucket.seen().await, [(1, Some(11))], "also rows of a WAL-only log are one per key");
    // The consumer's own truncation moves R; with a MemTable it is refused.
    let writer = bucket.process().writer(WriterConfig::wal_only()).await;
    writer.truncate(writer.stats().wal.acknowledged).await.unwrap();
    assert_eq!(bucket.seen().await, []);
    drop(writer);
    let writer = bucket.process().writer(config()).await;
    assert!(matches!(writer.truncate(fencepost::Position::new(1)).await, Err(Error::NotSupported(_))));
}

#[tokio::test]
async fn bad_limits_and_indexes_are_refused_before_anybody_is_fenced() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 1).await;
    let alive = bucket.process().writer(config()).await;
    let bad_wal = |change: fn(&mut fencepost::wal::WalConfig)| {
        let mut config = config();
        change(&mut config.wal);
        config
    };
    let configs = [
        limited(|m| m.indexes = vec![fencepost::IndexConfig::btree("nosuch")]),
        limited(|m| m.max_rows = 0),
        limited(|m| m.max_bytes = 0),
        limited(|m| m.max_batches = 0),
        limited(|m| m.flush_attempts = 0),
        bad_wal(|w| w.max_in_flight = 0),
        bad_wal(|w| w.max_in_flight = 33),
        bad_wal(|w| w.max_buffer_bytes = 1),
        bad_wal(|w| w.max_unflushed_bytes = 0),
    ];
    for config in configs {
        let error = table.writer(config.clone()).await.unwrap_err();
        let invalid = matches!(
            error,
            Error::InvalidOptions(_) | Error::NotSupported(_) | Error::Wal(WalError::InvalidArgument(_))
        );
        assert!(invalid, "{config:?}: {error}");
    }
    alive.put(ids(0..1)).await.unwrap();
    let unknown = table.shard_writer(fencepost::ShardId::new_random(), config()).await;
    assert!(matches!(unknown, Err(Error::InvalidOptions(_))));
}

#[tokio::test]
async fn batches_that_do_not_fit_change_nothing() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 2).await;
    let writer = table.writer(config()).await.unwrap();
    let id = || column("id", Arc::new(Int64Array::from(vec![1])));
    let v = || column("v", Arc::new(Int64Array::from(vec![1])));
    let s = || column("s", Arc::new(StringArray::from(vec!["a"])));
    let batch = |columns: Vec<(String, ArrayRef)>| RecordBatch::try_from_iter(columns).unwrap();
    let put = |columns: Vec<(String, ArrayRef)>| writer.put(batch(columns));

    refused(put(vec![id(), v()]).await, "`s` is missing");
    refused(put(vec![id(), v(), s(), column("x", v().1)]).await, "`x` is unknown");
    refused(put(vec![id(), v(), s(), column("_tombstone", v().1)]).await, "`_tombstone` is unknown");
    let twice = RecordBatch::try_new(
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("v", DataType::Int64, true),
            Field::new("v", DataType::Int64, true),
            Field::new("s", DataType::Utf8, true),
        ])),
        vec![id().1, v().1, v().1, s().1],
    )
    .unwrap();
    refused(writer.put(twice).await, "`v` appears twice");
    refused(put(vec![id(), column("v", Arc::new(Int32Array::from(vec![1]))), s()]).await, "`v`");
    refused(put(vec![column("id", Arc::new(Int32Array::from(vec![1]))), v(), s()]).await, "`id`");
    let null = column("id", Arc::new(Int64Array::from(vec![None::<i64>])));
    refused(put(vec![null, v(), s()]).await, "`id` is null in row 0");

    refused(writer.delete(batch(vec![id(), v()])).await, "`v` is not part of the primary key");
    refused(writer.delete(batch(vec![v()])).await, "`v` is not part of the primary key");
    refused(writer.delete(batch(vec![column("id", s().1)])).await, "`id`");
    let null_key = batch(vec![column("id", Arc::new(Int64Array::from(vec![Some(1), None])))]);
    refused(writer.delete(null_key).await, "`id` is null in row 1");
    let two_ids = Schema::new(vec![Field::new("id", DataType::Int64, false); 2]);
    let two_ids = RecordBatch::try_new(Arc::new(two_ids), vec![id().1, id().1]).unwrap();
    refused(writer.delete(two_ids).await, "`id` appears twice");

    assert_eq!(writer.shards().iter().map(|s| s.stats().wal.entries).sum::<u64>(), 0);
    // Another order of columns and other nullability is fine, and so is nothing at all.
    put(vec![s(), v(), id()]).await.unwrap();
    writer.put(ids(0..0)).await.unwrap();
    writer.delete(keys(&[])).await.unwrap();
    assert_eq!(pairs(writer.provider().await.unwrap()).await, [(1, Some(1))]);

    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    assert!(matches!(writer.delete(keys(&[1])).await, Err(Error::NotSupported(_))));
}

/// The MemTable is frozen and flushed by itself as soon as any limit is reached.
#[tokio::test]
async fn every_limit_freezes() {
    let configs = [limited(|m| m.max_rows = 10), limited(|m| m.max_bytes = 2_400), limited(|m| m.max_batches = 10)];
    for config in configs {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let writer = bucket.process().writer(config).await;
        for id in 0..25 {
            writer.put(wide_row(id, 200)).await.unwrap();
        }
        soon("two flushes in the background", async {
            while writer.stats().flushes < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(scanned(&writer).await, id_pairs(0..25));
        writer.flush().await.unwrap();
        assert_eq!(writer.stats().flushes, 3, "{:?}", writer.stats());
        assert_eq!(writer.stats().flushed_rows, 25);
    }
}

#[tokio::test]
async fn a_put_larger_than_a_memtable_or_an_entry_is_spread() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let mut config = small(10);
    config.wal.max_buffer_bytes = 8 << 10;
    let writer = bucket.process().writer(config).await;
    writer.put(ids(0..95)).await.unwrap();
    let texts = vec!["y".repeat(3_000); 20];
    let pairs: Vec<(i64, i64)> = (95..115).map(|id| (id, id)).collect();
    writer.put(rows_with_texts(&pairs, &texts)).await.unwrap();
    assert_eq!(scanned(&writer).await, id_pairs(0..115));
    assert!(writer.stats().wal.entries >= 8, "{:?}", writer.stats());
    soon("a flush in the background", async {
        while writer.stats().flushes == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(writer);
    assert_eq!(bucket.seen().await, id_pairs(0..115));
}

/// A row that fits no entry is refused with the limit's name, also in the middle of others: never dropped in silence.
#[tokio::test]
async fn a_row_larger_than_a_limit_is_refused_by_the_limits_name() {
    for durable in [true, false] {
        let bucket = Bucket::new();
        keyless(&bucket, 1).await;
        let mut config = WriterConfig { durable, ..config() };
        config.wal.max_buffer_bytes = 8 << 10;
        config.wal.max_unflushed_bytes = 64 << 10;
        let writer = bucket.process().writer(config).await;
        let refused = |error: Error, limit: &str| {
            let named = match &error {
                Error::TooLarge { limit_name, .. } | Error::Wal(WalError::TooLarge { limit_name, .. }) => *limit_name,
                other => panic!("{other}"),
            };
            assert_eq!((named, error.outcome()), (limit, Outcome::NotWritten), "{error}");
            assert!(error.to_string().contains(limit), "{error}");
        };
        refused(writer.put(wide_row(0, 20_000)).await.unwrap_err(), "max_buffer_bytes");
        let middle = ["a".to_owned(), "b".repeat(20_000), "c".to_owned()];
        let error = writer.put(rows_with_texts(&[(1, 1), (2, 2), (3, 3)], &middle)).await.unwrap_err();
        refused(error, "max_buffer_bytes");
        refused(writer.put(wide_row(4, 100_000)).await.unwrap_err(), "max_unflushed_bytes");
        writer.put(ids(5..6)).await.unwrap();
        writer.flush().await.unwrap();
        assert_eq!(bucket.seen().await, id_pairs(5..6));
    }
}

#[tokio::test]
async fn a_put_of_which_only_a_part_landed_does_not_say_not_written() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let process = bucket.process();
    let mut config = config();
    config.wal.max_buffer_bytes = 4 << 10;
    let writer = process.writer(config).await;
    let texts = vec!["z".repeat(500); 12];
    let batch = rows_with_texts(&(0..12).map(|id| (id, id)).collect::<Vec<_>>(), &texts);
    process.faults.on(Op::Create).path_contains("/wal/").nth(2).always().then(Fault::Fail);
    let error = writer.put(batch).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    drop(writer);
    let seen = bucket.seen().await;
    assert_eq!(seen, id_pairs(0..seen.len() as i64), "in order");
    assert!(!seen.is_empty() && seen.len() < 12, "{} rows", seen.len());
}

/// One row after another is waited for in a budget that holds only a few.
#[tokio::test]
async fn a_small_budget_forces_flushes_and_never_blocks_for_ever() {
    for durable in [true, false] {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let mut config = WriterConfig { durable, ..config() };
        config.wal.max_unflushed_bytes = 10_000;
        let writer = bucket.process().writer(config).await;
        let puts = join_all((0..60).map(|id| writer.put(wide_row(id, 1_000))));
        soon("sixty puts", puts).await.into_iter().collect::<Result<Vec<_>>>().unwrap();
        assert!(writer.stats().flushes >= 5, "{:?}", writer.stats());
        assert!(writer.stats().wal.unflushed_bytes <= 10_000);
        soon("the flush", writer.flush()).await.unwrap();
        assert_eq!(bucket.seen().await, id_pairs(0..60));
    }
}

/// The budget is used up by an entry that has not landed when the flusher looks: there is nothing to freeze yet. It
/// must look again when the entry has landed.
#[tokio::test]
async fn memory_that_is_wanted_before_the_entry_that_holds_it_landed_is_given_back_after() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let mut config = config();
    config.wal.max_unflushed_bytes = 3_000;
    let writer = process.writer(config).await;
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let mut first = Box::pin(writer.put(wide_row(0, 2_000)));
    soon("the first PUT", async {
        tokio::select! {
            _ = &mut first => panic!("not landed yet"),
            () = gate.reached() => {}
        }
    })
    .await;
    let mut second = Box::pin(writer.put(wide_row(1, 2_000)));
    for _ in 0..100 {
        assert!(futures::poll!(&mut second).is_pending());
        tokio::task::yield_now().await;
    }
    gate.release();
    soon("the first put", first).await.unwrap();
    soon("the second put", second).await.unwrap();
    assert_eq!(scanned(&writer).await, id_pairs(0..2));
}

#[tokio::test]
async fn a_flush_that_keeps_failing_is_reported_retried_and_heals() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let process = bucket.process();
    let writer = process.writer(limited(|m| m.flush_attempts = 3)).await;
    writer.put(ids(0..5)).await.unwrap();
    let rule = process.faults.on(Op::Create).path_contains("_gen_").always().then(Fault::Fail);
    let error = soon("the flush", writer.flush()).await.unwrap_err();
    assert!(matches!(error, Error::FlushFailed { generation, .. } if generation.get() == 1), "{error}");
    assert_eq!(error.outcome(), Outcome::Written, "the rows are in the log");
    assert!(writer.stats().flush_failures >= 3);
    assert!(writer.stats().last_flush_failure.is_some());
    writer.put(ids(5..7)).await.unwrap();
    assert_eq!(scanned(&writer).await, id_pairs(0..7));
    assert_eq!(bucket.seen().await, id_pairs(0..7));
    rule.cancel();
    soon("the next flush", writer.flush()).await.unwrap();
    assert_eq!(writer.memtable_stats().unwrap().frozen, 0);
    assert_eq!(bucket.seen().await, id_pairs(0..7));

    // Closing says that it could not flush, and closes all the same.
    process.faults.on(Op::Create).path_contains("_gen_").always().then(Fault::Fail);
    writer.put(ids(7..8)).await.unwrap();
    assert!(matches!(soon("close", writer.close()).await, Err(Error::FlushFailed { .. })));
    let next = bucket.process().writer(config()).await;
    assert_eq!(scanned(&next).await, id_pairs(0..8));
}

async fn sharded(bucket: &Bucket) -> (TableWriter, fencepost_sim::FaultStore) {
    keyed(bucket, 4).await;
    let process = bucket.process();
    (process.table().await.writer(config()).await.unwrap(), process.faults)
}

#[tokio::test]
async fn rows_are_routed_to_their_shards_and_read_as_one_table() {
    let bucket = Bucket::new();
    let (writer, _) = sharded(&bucket).await;
    writer.put(ids(0..100)).await.unwrap();
    let rows_of: Vec<u64> = writer.shards().iter().map(|s| s.stats().wal.rows).collect();
    assert_eq!(rows_of.iter().sum::<u64>(), 100);
    assert!(rows_of.iter().all(|rows| *rows > 10), "{rows_of:?}");
    for shard in writer.shards() {
        assert_eq!(scanned(&shard).await.len() as u64, shard.stats().wal.rows);
    }
    writer.delete(keys(&(0..50).collect::<Vec<_>>())).await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(50..100));
    writer.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(50..100));
}

#[tokio::test]
async fn a_put_that_some_shards_took_says_so() {
    let bucket = Bucket::new();
    let (writer, faults) = sharded(&bucket).await;
    let broken = writer.shards()[1].shard_id();
    let path = format!("{}wal/", folder(broken));
    faults.on(Op::Create).path_contains(path).always().then(Fault::Fail);
    let error = writer.put(ids(0..40)).await.unwrap_err();
    match &error {
        Error::PartlyWritten { written: 3, shards: 4, failed, .. } => assert_eq!(*failed, broken),
        other => panic!("{other}"),
    }
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(writer.provider().await.is_err(), "a shard's writer stopped");
    drop(writer);
    let seen = bucket.seen().await.len();
    assert!(seen < 40 && seen > 10, "{seen}");
    let next = bucket.process().table().await.writer(config()).await.unwrap();
    next.put(ids(0..40)).await.unwrap();
    next.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..40), "with a key, repeating it doubles nothing");
}

#[tokio::test]
async fn a_put_that_no_shard_took_says_not_written() {
    let bucket = Bucket::new();
    let (writer, _) = sharded(&bucket).await;
    let successor = bucket.process().table().await.writer(config()).await.unwrap();
    let error = writer.put(ids(0..40)).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotWritten, "{error}");
    assert!(matches!(error, Error::Wal(WalError::Fenced { .. })), "{error}");
    // What a fenced writer accepted into memory before is another matter.
    assert_eq!(writer.flush().await.unwrap_err().outcome(), Outcome::Unknown);
    successor.put(ids(0..40)).await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..40));
}

/// The order of calls is the order of their first polls, in every shard, however many there are.
#[tokio::test]
async fn calls_keep_their_order_in_every_one_of_many_shards() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 48).await;
    let writer = table.writer(config()).await.unwrap();
    let mut calls: Vec<_> =
        (0..4).map(|v| Box::pin(writer.put(rows(&(0..300).map(|id| (id, v)).collect::<Vec<_>>())))).collect();
    for call in &mut calls {
        assert!(futures::poll!(call).is_pending());
    }
    calls.reverse();
    join_all(calls).await.into_iter().collect::<Result<Vec<_>>>().unwrap();
    assert_eq!(bucket.seen().await, (0..300).map(|id| (id, Some(3))).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_put_whose_future_is_dropped_is_taken_whole_or_not_at_all() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    // Never polled: not there. Polled once: queued, and cannot be taken back.
    drop(writer.put(ids(0..3)));
    let mut polled = Box::pin(writer.put(ids(3..6)));
    assert!(futures::poll!(&mut polled).is_pending());
    drop(polled);
    writer.put(ids(6..8)).await.unwrap();
    assert_eq!(scanned(&writer).await, id_pairs(3..8));
    writer.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(3..8));
}

/// Futures that wait for memory and are dropped give up their place, and nobody waits for them.
#[tokio::test]
async fn a_dropped_put_that_waited_for_memory_leaves_nothing_behind() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let mut config = config();
    config.wal.max_unflushed_bytes = 3_000;
    let writer = process.writer(config).await;
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let mut first = Box::pin(writer.put(wide_row(0, 2_000)));
    let mut second = Box::pin(writer.put(wide_row(1, 2_000)));
    assert!(futures::poll!(&mut first).is_pending());
    assert!(futures::poll!(&mut second).is_pending());
    drop(second);
    gate.release();
    soon("the first", first).await.unwrap();
    soon("the third", writer.put(wide_row(2, 2_000))).await.unwrap();
    assert_eq!(scanned(&writer).await, [(0, Some(0)), (2, Some(2))]);
}

#[tokio::test]
async fn a_log_of_either_mode_opens_in_the_other() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let memtable = bucket.process().writer(config()).await;
    memtable.put(rows(&[(1, 10), (2, 20), (3, 30)])).await.unwrap();
    memtable.delete(keys(&[2])).await.unwrap();
    drop(memtable);
    let wal_only = bucket.process().writer(WriterConfig::wal_only()).await;
    wal_only.put(rows(&[(3, 31), (4, 40)])).await.unwrap();
    assert_eq!(bucket.seen().await, [(1, Some(10)), (3, Some(31)), (4, Some(40))]);
    wal_only.close().await.unwrap();
    let memtable = bucket.process().writer(small(3)).await;
    memtable.put(rows(&[(5, 50)])).await.unwrap();
    let expected = [(1, Some(10)), (3, Some(31)), (4, Some(40)), (5, Some(50))];
    assert_eq!(scanned(&memtable).await, expected);
    memtable.close().await.unwrap();
    assert_eq!(bucket.seen().await, expected);
}

#[tokio::test]
async fn a_poisoned_writer_refuses_everything_and_a_new_one_goes_on() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let writer = process.writer(config()).await;
    writer.put(ids(0..2)).await.unwrap();
    process.faults.on(Op::Create).path_contains("/wal/").times(8).then(Fault::LostAckAsExists);
    process.faults.on(Op::Get).path_contains("/wal/").times(8).then(Fault::Fail);
    let error = writer.put(ids(2..4)).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert_eq!(writer.put(ids(4..5)).await.unwrap_err().outcome(), Outcome::NotWritten);
    assert!(writer.scan().await.is_err());
    assert_ne!(writer.flush().await.unwrap_err().outcome(), Outcome::NotWritten);
    assert!(writer.close().await.is_err());
    let next = bucket.process().writer(config()).await;
    assert_eq!(scanned(&next).await, id_pairs(0..4), "it had landed");
}

/// The log holds an entry that is whole but is none of this table's.
#[tokio::test]
async fn a_log_entry_of_another_schema_is_named_and_nothing_is_skipped() {
    use fencepost::wal::{OpenOptions, Shard, WalAppender};
    let bucket = Bucket::new();
    let table = keyed(&bucket, 1).await;
    let shard = Shard::new(table.store().clone(), table.shard_ids().await.unwrap()[0]);
    let (mut appender, _) = WalAppender::open(&shard, &OpenOptions::default()).await.unwrap();
    // Without a column that is older than another one that it has.
    let stranger = ids(1..2).project(&[0, 2]).unwrap();
    let position = appender.append(&stranger.schema(), &[stranger]).await.unwrap();
    drop(appender);
    let path = shard.entry_path(position).to_string();
    for error in [table.writer(config()).await.unwrap_err(), table.provider().await.unwrap_err()] {
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(&path) && error.to_string().contains("`v` is missing"), "{error}");
    }
}

/// All rows are in SSTables and only R is behind a sentinel; the commit that raises it never gets an answer.
#[tokio::test]
async fn a_flush_that_cannot_raise_r_does_not_say_that_rows_are_not_written() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let writer = process.writer(config()).await;
    let rule = process.faults.on(Op::Create).path_contains("/manifest/").always().then(Fault::Conflict409);
    let error = writer.flush().await.unwrap_err();
    assert_ne!(error.outcome(), Outcome::NotWritten, "{error}");
    rule.cancel();
    drop(writer);
    let next = bucket.process().writer(config()).await;
    next.put(ids(0..1)).await.unwrap();
    next.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..1));
}

#[test]
fn handles_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn sendable<F: Future + Send>(_: F) {}
    shared::<fencepost::Table>();
    shared::<TableWriter>();
    shared::<fencepost::ShardWriter>();
    #[allow(dead_code)]
    fn futures(writer: &TableWriter, table: &fencepost::Table, batch: RecordBatch) {
        sendable(writer.put(batch.clone()));
        sendable(writer.delete(batch));
        sendable(writer.flush());
        sendable(writer.provider());
        sendable(table.provider());
        sendable(table.inspect());
        sendable(table.writer(WriterConfig::default()));
    }
}
