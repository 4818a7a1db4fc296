//! A collector that dies, or stalls, before every single one of its writes; and two at once. Each start has everything
//! that there is to collect: log entries, SSTables merged and orphaned, checkpoints expired and left over, manifests.

use std::collections::BTreeSet;
use std::time::Duration;

use fencepost_sim::{Fault, Op};
use fencepost_wal::checkpoint::{self, CheckpointOptions};
use fencepost_wal::gc::GcKind;

use crate::gc::{flush, merged};
use crate::support::{Bucket, append, bucket, meets, replayed, settle};

/// A shard with work for a collector of each kind; its rows above R are 100 and 101.
async fn littered() -> Bucket {
    let bucket = bucket().await;
    let lifetime =
        |days: u64| CheckpointOptions { lifetime: Some(Duration::from_secs(days * 24 * 3600)), ..Default::default() };
    for tenure in 0..8 {
        let mut w = bucket.process().appender().await;
        let position = append(&mut w, [tenure]).await.unwrap();
        append(&mut w, [10 + tenure]).await.unwrap();
        match tenure {
            2 | 4 | 6 => drop(flush(&bucket, &w, position).await),
            1 => drop(checkpoint::create(&bucket.shard(), &lifetime(1)).await.unwrap()),
            3 => drop(checkpoint::create(&bucket.shard(), &lifetime(30)).await.unwrap()),
            _ => {}
        }
    }
    let mut w = bucket.process().appender().await;
    let position = append(&mut w, [20]).await.unwrap();
    flush(&bucket, &w, position).await;
    for id in [100, 101] {
        append(&mut w, [id]).await.unwrap();
    }
    bucket.write_sstable("deadbeef_gen_2").await;
    // A checkpoint that its maker did not come to list.
    let dying = bucket.patient();
    let gate = dying.faults.on(Op::Create).path_contains("/manifest/").stall();
    let task = tokio::spawn({
        let shard = dying.shard.clone();
        async move { checkpoint::create(&shard, &CheckpointOptions::default()).await }
    });
    gate.reached().await;
    task.abort();
    append(&mut w, [102]).await.unwrap();
    w.tenure().publish(None, position).await.unwrap();
    settle().await;
    bucket
}

const ROWS: [i64; 3] = [100, 101, 102];

async fn is_whole(bucket: &Bucket) {
    bucket.check_nothing_is_missing().await;
    bucket.oldest_manifest().await;
    assert_eq!(bucket.rows().await, ROWS);
}

/// What is left after a collection that nothing disturbed.
async fn collected(bucket: &Bucket) -> BTreeSet<String> {
    let report = bucket.collector().collect(&merged(3)).await.unwrap();
    for kind in [GcKind::WalEntry, GcKind::SsTable, GcKind::Checkpoint, GcKind::Manifest] {
        assert!(report.of(kind).objects > 0, "{kind:?}: {report:?}");
    }
    assert_eq!((report.dropped_sstables.len(), report.expired_checkpoints), (3, 1));
    settle().await;
    names(bucket).await
}

/// Without the manifests that a commit more or less makes.
async fn names(bucket: &Bucket) -> BTreeSet<String> {
    bucket.names().await.into_iter().filter(|name| !name.contains("/manifest/")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_collector_may_die_at_every_write() {
    let littered = littered().await;
    let expected = collected(&littered.fork().await).await;
    for fault in [Fault::Fail, Fault::LostAck] {
        for nth in 1.. {
            let bucket = littered.fork().await;
            let collector = bucket.attempts(1).later(Duration::from_secs(2 * 24 * 3600));
            // The last thing that it sends may land or not; after that nothing is sent.
            let writes =
                || collector.faults.on_any(Op::WRITES).path_matches(|path| !path.ends_with("version_hint.json"));
            let last = writes().nth(nth).then(fault);
            writes().nth(nth + 1).always().then(Fault::Fail);
            let died = collector.collect(&merged(3)).await;
            is_whole(&bucket).await;
            if last.fired() == 0 {
                assert!(nth > 20, "{nth}");
                died.unwrap();
                assert_eq!(names(&bucket).await, expected);
                break;
            }
            // Whoever comes next finishes it.
            bucket.collector().collect(&merged(3)).await.unwrap();
            is_whole(&bucket).await;
            assert_eq!(names(&bucket).await, expected, "{fault:?} {nth}");
            let (_, replay) = bucket.process().open().await.unwrap();
            assert_eq!(replayed(replay).await, ROWS);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_collectors_at_once_do_what_one_does() {
    let littered = littered().await;
    let expected = collected(&littered.fork().await).await;
    for op in [Op::Create, Op::Delete, Op::List, Op::Get] {
        for nth in 1.. {
            let bucket = littered.fork().await;
            let slow = bucket.collector();
            let gate = slow.faults.on(op).path_matches(|path| !path.ends_with("version_hint.json")).nth(nth).stall();
            let task = tokio::spawn({
                let slow = slow.clone();
                async move { slow.collect(&merged(3)).await }
            });
            let met = meets(&gate, &task).await;
            let fast = bucket.collector().collect(&merged(3)).await.unwrap();
            is_whole(&bucket).await;
            gate.release();
            let slow = task.await.unwrap().unwrap();
            is_whole(&bucket).await;
            settle().await;
            assert_eq!(names(&bucket).await, expected, "{op:?} {nth}");
            assert!(fast.version.is_some() as u8 + slow.version.is_some() as u8 == 1, "one of them commits");
            if !met {
                break;
            }
        }
    }
}

/// A collector stalls with its plan while the shard lives on: takeovers, flushes, merges, checkpoints, other collectors.
#[tokio::test(start_paused = true)]
async fn a_collector_that_works_on_an_old_plan_is_harmless() {
    let littered = littered().await;
    let mut stalls = 0;
    for op in [Op::Create, Op::Delete] {
        for nth in 1.. {
            let bucket = littered.fork().await;
            let slow = bucket.collector();
            let gate = slow.faults.on(op).path_matches(|path| !path.ends_with("version_hint.json")).nth(nth).stall();
            let task = tokio::spawn({
                let slow = slow.clone();
                async move { slow.collect(&merged(3)).await }
            });
            if !meets(&gate, &task).await {
                task.await.unwrap().unwrap();
                break;
            }
            stalls += 1;
            // A writer that stalls before its next PUT, and everything that fences it.
            let stalled = bucket.patient();
            let mut w0 = stalled.appender().await;
            let put = stalled.faults.on(Op::Create).path_contains("/wal/").stall();
            let zombie = tokio::spawn(async move { append(&mut w0, [-1]).await });
            put.reached().await;
            let mut rows = Vec::new();
            for id in 200..210 {
                let mut w = bucket.process().appender().await;
                let position = append(&mut w, [id]).await.unwrap();
                append(&mut w, [id + 100]).await.unwrap();
                rows.extend([id, id + 100]);
                match id {
                    203 | 206 => {
                        checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
                        flush(&bucket, &w, position).await;
                        rows = vec![id + 100];
                    }
                    208 => drop(bucket.collector().collect(&merged(5)).await.unwrap()),
                    _ => {}
                }
            }
            bucket.check_nothing_is_missing().await;
            gate.release();
            // Its commit, if it had not sent it, is decided anew.
            task.await.unwrap().unwrap();
            bucket.check_nothing_is_missing().await;
            bucket.oldest_manifest().await;
            put.release();
            zombie.await.unwrap().unwrap_err();
            assert_eq!(bucket.rows().await, rows, "{op:?} {nth}");
            let (_, replay) = bucket.process().open().await.unwrap();
            assert_eq!(replayed(replay).await, rows);
        }
    }
    assert!(stalls > 20, "{stalls}");
}
