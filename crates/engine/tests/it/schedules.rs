//! Schedules of protocol section 13 that reach up into the engine, each by its number.

use std::sync::Arc;

use fencepost::wal::Error as WalError;
use fencepost::{Error, Outcome, WriterConfig};
use fencepost_sim::{Fault, Op};

use crate::support::*;

fn is_fenced(error: &Error) -> bool {
    matches!(error, Error::Wal(WalError::Fenced { .. }))
}

/// 3: the PUT lands, its answer is lost, the client library retries and meets its own object. In a table without a
/// key a doubled append would be two rows.
#[tokio::test]
async fn s03_a_lost_answer_doubles_no_row_of_a_keyless_table() {
    for fault in [Fault::LostAckAsExists, Fault::LostAck] {
        let bucket = Bucket::new();
        keyless(&bucket, 1).await;
        let process = bucket.process();
        let writer = process.writer(config()).await;
        writer.put(ids(0..2)).await.unwrap();
        let rule = process.faults.on(Op::Create).path_contains("/wal/").times(2).then(fault);
        writer.put(ids(2..4)).await.unwrap();
        writer.put(ids(4..6)).await.unwrap();
        assert_eq!(rule.fired(), 2);
        assert_eq!(bucket.seen().await, id_pairs(0..6));
        writer.close().await.unwrap();
        assert_eq!(bucket.seen().await, id_pairs(0..6));
    }
}

/// 4: a 409 with nothing landed. Passing the position over would cut the log there.
#[tokio::test]
async fn s04_a_409_with_nothing_landed_loses_no_row_behind_it() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let process = bucket.process();
    let writer = process.writer(config()).await;
    let rule = process.faults.on(Op::Create).path_contains("/wal/").times(3).then(Fault::Conflict409);
    for id in 0..4 {
        writer.put(ids(id..id + 1)).await.unwrap();
    }
    assert_eq!(rule.fired(), 3);
    drop(writer);
    let next = bucket.process().writer(config()).await;
    assert_eq!(scanned(&next).await, id_pairs(0..4));
}

/// 8: the manifest that publishes an SSTable lands and its answer is lost.
#[tokio::test]
async fn s08_an_sstable_whose_commit_lost_its_answer_is_listed_once() {
    for fault in [Fault::LostAckAsExists, Fault::LostAck] {
        let bucket = Bucket::new();
        let table = keyless(&bucket, 1).await;
        let process = bucket.process();
        let writer = process.writer(config()).await;
        writer.put(ids(0..5)).await.unwrap();
        let rule = process.faults.on(Op::Create).path_contains("/manifest/").then(fault);
        writer.flush().await.unwrap();
        assert_eq!(rule.fired(), 1);
        let shard = table.inspect().await.unwrap().shards.remove(0);
        assert_eq!((shard.sstables.len(), shard.current_generation), (1, 2));
        assert_eq!((shard.replay_after, shard.rows_in_log), (shard.tail, 0));
        assert_eq!(bucket.seen().await, id_pairs(0..5));
        // The writer goes on with the right generation.
        writer.put(ids(5..6)).await.unwrap();
        writer.close().await.unwrap();
        assert_eq!(bucket.seen().await, id_pairs(0..6));
        assert_eq!(table.inspect().await.unwrap().shards[0].sstables.len(), 2);
    }
}

/// 11: whatever asks for a flush, nothing is published that is not in the log yet.
#[tokio::test]
async fn s11_r_never_runs_ahead_of_the_log() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let process = bucket.process();
    let config = WriterConfig { durable: false, ..small(4) };
    let writer = Arc::new(process.writer(config).await);
    writer.put(ids(0..4)).await.unwrap();
    writer.flush().await.unwrap();
    let before = bucket.manifest().await;
    assert_eq!((before.replay_after.get(), before.sstables.len()), (2, 1), "the sentinel and one entry");

    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    writer.put(ids(4..8)).await.unwrap();
    let flushing = tokio::spawn({
        let writer = Arc::clone(&writer);
        async move { writer.flush().await }
    });
    soon("the PUT of the second entry", gate.reached()).await;
    // As many MemTable limits as one likes are exceeded by rows that are only in memory.
    writer.put(ids(8..20)).await.unwrap();
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    let provider = process.table().await.provider().await.unwrap();
    assert_eq!(pairs(provider).await, id_pairs(0..4), "nobody else sees what is not durable");
    assert_eq!(scanned(&writer).await, id_pairs(0..20), "the writer does");
    let stalled = bucket.manifest().await;
    assert_eq!((stalled.replay_after, stalled.sstables), (before.replay_after, before.sstables));
    assert!(!flushing.is_finished(), "a flush waits for the log");

    // The process dies there.
    flushing.abort();
    let _ = flushing.await;
    drop(writer);
    let next = bucket.process().writer(small(100)).await;
    assert_eq!(scanned(&next).await, id_pairs(0..4));
}

/// 11 with a window: entries that landed behind a stalled one are not acknowledged, so they are in no MemTable.
#[tokio::test]
async fn s11_entries_behind_a_stalled_one_are_not_flushed() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let process = bucket.process();
    let mut config = small(8);
    config.wal.max_in_flight = 4;
    let writer = process.writer(config).await;
    // Beyond the serial zone.
    for id in 0..40 {
        writer.put(ids(id..id + 1)).await.unwrap();
    }
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let mut stalled = Box::pin(writer.put(ids(40..41)));
    assert!(futures::poll!(&mut stalled).is_pending());
    soon("the first of the window", async {
        tokio::select! {
            _ = &mut stalled => panic!("acknowledged while its PUT is stalled"),
            () = gate.reached() => {}
        }
    })
    .await;
    let landed_before = process.faults.count(Op::Create);
    let mut behind: Vec<_> = (41..44).map(|id| Box::pin(writer.put(ids(id..id + 1)))).collect();
    soon("a PUT behind it", async {
        while process.faults.count(Op::Create) == landed_before {
            for put in &mut behind {
                assert!(futures::poll!(put).is_pending(), "acknowledged before an earlier entry");
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert!(bucket.manifest().await.replay_after.get() <= 41, "the sentinel and forty entries");
    drop((stalled, behind));
    drop(writer);
    let next = bucket.process().writer(config_with_window()).await;
    assert_eq!(scanned(&next).await, id_pairs(0..40));
    next.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..40));
}

fn config_with_window() -> WriterConfig {
    let mut config = config();
    config.wal.max_in_flight = 4;
    config
}

/// 18: W2 replays ten entries of W1, publishes the first five as its MemTable is smaller, and dies.
#[tokio::test]
async fn s18_the_rest_of_a_partly_flushed_replay_is_not_lost() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let w1 = bucket.process().writer(config()).await;
    for id in 0..10 {
        w1.put(ids(id..id + 1)).await.unwrap();
    }
    drop(w1);

    let process = bucket.process();
    // W2's manifests: its claim, its record, the first SSTable; it dies before the second.
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").nth(4).stall();
    let table = process.table().await;
    let shard = table.shard_ids().await.unwrap()[0];
    let opening = tokio::spawn(async move { table.shard_writer(shard, small(5)).await });
    soon("the second publish", gate.reached()).await;
    opening.abort();
    assert!(opening.await.unwrap_err().is_cancelled());

    let manifest = bucket.manifest().await;
    assert_eq!((manifest.sstables.len(), manifest.replay_after.get()), (1, 6));
    assert_eq!(manifest.replay_after_epoch().get(), 1, "of the rows that it covers, not of who flushed them");
    assert_eq!(bucket.seen().await, id_pairs(0..10));

    let w3 = bucket.process().writer(small(3)).await;
    assert_eq!(scanned(&w3).await, id_pairs(0..10));
    assert!(w3.memtable_stats().unwrap().rows < 3);
    w3.put(ids(10..11)).await.unwrap();
    w3.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..11));
}

/// 18, the memory side: a long log opens with a small MemTable and a small budget, whichever binds first.
#[tokio::test]
async fn s18_a_log_written_with_larger_limits_opens_in_bounded_memory() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let w1 = bucket.process().writer(config()).await;
    for id in 0..60 {
        w1.put(wide_row(id, 1000)).await.unwrap();
    }
    drop(w1);

    let w2 = bucket.process().writer(small(7)).await;
    let (stats, memory) = (w2.stats(), w2.memtable_stats().unwrap());
    assert_eq!((stats.flushes, stats.flushed_rows), (8, 56));
    assert_eq!((memory.rows, memory.frozen), (4, 0));
    drop(w2);

    let mut budget = config();
    budget.wal.max_unflushed_bytes = 3_000;
    budget.open.replay_budget_bytes = 5_000;
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let w1 = bucket.process().writer(config()).await;
    for id in 0..30 {
        w1.put(wide_row(id, 1000)).await.unwrap();
    }
    drop(w1);
    let w2 = bucket.process().writer(budget).await;
    assert!(w2.stats().flushes >= 8, "{:?}", w2.stats());
    assert!(w2.memtable_stats().unwrap().bytes <= 4_000, "{:?}", w2.memtable_stats());
    assert_eq!(scanned(&w2).await, id_pairs(0..30));
    // And the budget is not lost for appends.
    soon("an append", w2.put(wide_row(30, 1000))).await.unwrap();
    w2.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..31));
}

/// 22: closing a WAL-only writer leaves R where it is.
#[tokio::test]
async fn s22_closing_a_wal_only_writer_keeps_its_rows() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let writer = bucket.process().writer(WriterConfig::wal_only()).await;
    writer.put(ids(0..3)).await.unwrap();
    writer.put(ids(3..5)).await.unwrap();
    writer.flush().await.unwrap();
    writer.close().await.unwrap();
    let manifest = bucket.manifest().await;
    assert_eq!((manifest.replay_after.get(), manifest.sstables.len()), (0, 0));
    assert_eq!(bucket.seen().await, id_pairs(0..5));
    let next = bucket.process().writer(config()).await;
    assert_eq!(scanned(&next).await, id_pairs(0..5));
    next.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..5));
    assert_eq!(bucket.manifest().await.sstables.len(), 1);
}

/// W1 has written its SSTable and stalls before the manifest that publishes it; W2 takes over and flushes the same
/// rows. In a table without a key both SSTables together would be every row twice.
#[tokio::test]
async fn a_takeover_during_a_flush_neither_loses_nor_doubles_rows() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let (p1, p2) = (bucket.process(), bucket.process());
    let w1 = Arc::new(p1.writer(config()).await);
    w1.put(ids(0..6)).await.unwrap();
    let gate = p1.faults.on(Op::Create).path_contains("/manifest/").stall();
    let flushing = tokio::spawn({
        let w1 = Arc::clone(&w1);
        async move { w1.flush().await }
    });
    soon("the publish", gate.reached()).await;

    let w2 = p2.writer(config()).await;
    assert_eq!(scanned(&w2).await, id_pairs(0..6));
    w2.put(ids(6..8)).await.unwrap();
    w2.flush().await.unwrap();

    gate.release();
    let error = soon("the fenced flush", flushing).await.unwrap().unwrap_err();
    assert!(is_fenced(&error), "{error}");
    assert_ne!(error.outcome(), Outcome::NotWritten, "the rows are in the table");
    assert!(is_fenced(&w1.put(ids(99..100)).await.unwrap_err()));
    assert!(w1.scan().await.is_err(), "a fenced writer does not serve reads");
    assert_eq!(bucket.seen().await, id_pairs(0..8));
    w2.put(ids(8..9)).await.unwrap();
    w2.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..9));
    assert_eq!(bucket.manifest().await.sstables.len(), 2);
}

/// The same, stalled inside of the SSTable, so that its publish begins only after the takeover.
#[tokio::test]
async fn a_fenced_writer_finishes_its_sstable_in_vain() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let (p1, p2) = (bucket.process(), bucket.process());
    let w1 = Arc::new(p1.writer(config()).await);
    w1.put(ids(0..6)).await.unwrap();
    let gate = p1.faults.on(Op::Create).path_contains("_gen_1/_versions/").stall();
    let flushing = tokio::spawn({
        let w1 = Arc::clone(&w1);
        async move { w1.flush().await }
    });
    soon("the SSTable's manifest", gate.reached()).await;
    let w2 = p2.writer(config()).await;
    gate.release();
    let error = soon("the fenced flush", flushing).await.unwrap().unwrap_err();
    assert!(is_fenced(&error), "{error}");
    assert_eq!(bucket.manifest().await.sstables.len(), 0);
    w2.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..6));
    assert_eq!(bucket.manifest().await.sstables.len(), 1);
}

/// Appends that wait for memory which only a flush gives back find out that there will be no flush any more.
#[tokio::test]
async fn appends_that_wait_for_memory_learn_that_the_writer_was_fenced_by_its_publish() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let (p1, p2) = (bucket.process(), bucket.process());
    let mut config = config();
    config.wal.max_unflushed_bytes = 3_000;
    let w1 = p1.writer(config).await;
    let gate = p1.faults.on(Op::Create).path_contains("/manifest/").stall();
    w1.put(wide_row(0, 2_000)).await.unwrap();
    let mut waiting = Box::pin(w1.put(wide_row(1, 2_000)));
    soon("the flush that makes room", async {
        tokio::select! {
            _ = &mut waiting => panic!("there was no room"),
            () = gate.reached() => {}
        }
    })
    .await;
    drop(p2.writer(WriterConfig::default()).await);
    gate.release();
    let error = soon("the append", waiting).await.unwrap_err();
    assert!(is_fenced(&error), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert_eq!(bucket.seen().await, [(0, Some(0))]);
}

/// Dead stragglers and sentinels between the last row and the end of the log are covered too.
#[tokio::test]
async fn a_flush_leaves_no_gap_between_r_and_the_tail() {
    let bucket = Bucket::new();
    let table = keyless(&bucket, 1).await;
    for round in 0..3 {
        let writer = bucket.process().writer(config()).await;
        if round == 1 {
            writer.put(ids(0..2)).await.unwrap();
        }
        writer.flush().await.unwrap();
        let shard = table.inspect().await.unwrap().shards.remove(0);
        assert_eq!((shard.replay_after, shard.rows_in_log), (shard.tail, 0), "round {round}");
    }
    // A straggler of a dead writer on the successor's next position.
    let p1 = bucket.process();
    let w1 = p1.writer(config()).await;
    let rule = p1.faults.on(Op::Create).path_contains("/wal/").then(Fault::InFlight);
    let mut lost = Box::pin(w1.put(ids(50..51)));
    soon("the PUT on the wire", async {
        while rule.fired() == 0 {
            assert!(futures::poll!(&mut lost).is_pending());
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(lost);
    drop(w1);
    // Its name is taken by the successor's sentinel; it lands in vain.
    let w2 = bucket.process().writer(config()).await;
    p1.faults.land_late().await;
    w2.put(ids(2..3)).await.unwrap();
    w2.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..3));
    let shard = table.inspect().await.unwrap().shards.remove(0);
    assert_eq!(shard.replay_after, shard.tail);
}

/// A reader that has read the manifest stalls; meanwhile everything is flushed and flushed again. It sees every row
/// once, wherever it finds it.
#[tokio::test]
async fn a_reader_that_stalls_between_manifest_and_log_sees_every_row_once() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    writer.put(ids(0..3)).await.unwrap();
    let reader = bucket.process();
    let table = reader.table().await;
    let gate = reader.faults.on(Op::Get).path_contains("/wal/").stall();
    let reading = tokio::spawn(async move { pairs(table.provider().await.unwrap()).await });
    soon("the reader's first entry", gate.reached()).await;
    writer.flush().await.unwrap();
    writer.put(ids(3..5)).await.unwrap();
    writer.flush().await.unwrap();
    gate.release();
    let seen = soon("the reader", reading).await.unwrap();
    assert!(seen == id_pairs(0..3) || seen == id_pairs(0..5), "{seen:?}");
}
