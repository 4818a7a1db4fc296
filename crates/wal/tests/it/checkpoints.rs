//! Checkpoints: what they pin, how long, and what may happen between the steps of making one.

use std::time::Duration;

use fencepost_sim::{Fault, Op};
use fencepost_wal::checkpoint::{self, CheckpointOptions};
use fencepost_wal::gc::GcKind;
use fencepost_wal::{Error, Position};

use crate::gc::{flush, merged};
use crate::lance;
use crate::support::{Bucket, append, bucket, meets};

fn named(name: &str) -> CheckpointOptions {
    CheckpointOptions { name: Some(name.into()), ..Default::default() }
}

/// Two tenures, an SSTable, and a log of three rows and a sentinel above R.
async fn written(bucket: &Bucket) -> fencepost_wal::WalAppender {
    let mut w1 = bucket.process().appender().await; // 1
    let position = append(&mut w1, [1]).await.unwrap(); // 2
    flush(bucket, &w1, position).await;
    append(&mut w1, [2]).await.unwrap(); // 3
    append(&mut w1, [3]).await.unwrap(); // 4
    w1.close().await.unwrap();
    let mut w2 = bucket.process().appender().await; // 5, which need not stay after a clean close
    append(&mut w2, [4]).await.unwrap(); // 6
    w2
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_pins_the_manifest_and_the_log_behind_it() {
    let bucket = bucket().await;
    let mut w = written(&bucket).await;
    let before = bucket.manifest().await;
    let (made, known) = checkpoint::create_and_read(&bucket.shard(), &named("nightly")).await.unwrap();
    assert_eq!((made.replay_after, made.tail, made.version), (Position::new(2), Position::new(6), before.version));
    let read = checkpoint::read(&bucket.shard(), made.id).await.unwrap();
    assert_eq!(known, read, "its maker knows what it reads");
    assert_eq!((read.id, read.tail, read.derived_from), (made.id, made.tail, before.version));
    assert_eq!(read.manifest.sstables, before.sstables);
    // It lists the sentinel that the manifest does not have to keep.
    assert_eq!(before.fences().iter().map(|f| f.position.get()).collect::<Vec<_>>(), [1]);
    assert_eq!(read.manifest.fences().iter().map(|f| f.position.get()).collect::<Vec<_>>(), [1, 5]);
    let list = checkpoint::list(&bucket.shard(), Some("nightly")).await.unwrap();
    assert_eq!(list, std::slice::from_ref(&made));
    assert_eq!(checkpoint::list(&bucket.shard(), Some("weekly")).await.unwrap(), []);

    // Everything is flushed and merged, and what the checkpoint holds stays.
    let position = append(&mut w, [5]).await.unwrap();
    flush(&bucket, &w, position).await;
    let report = bucket.collector().collect(&merged(2)).await.unwrap();
    bucket.check_nothing_is_missing().await;
    assert_eq!((report.dropped_sstables.len(), report.kept.sstables_in_checkpoints), (2, 1));
    assert_eq!((report.kept.entries_in_checkpoints, report.kept.live_checkpoints), (4, 1));
    assert_eq!(report.of(GcKind::WalEntry).objects, 1, "its own R is not needed: {report:?}");

    // Until it is deleted.
    checkpoint::delete(&bucket.shard(), made.id).await.unwrap();
    let error = checkpoint::read(&bucket.shard(), made.id).await.unwrap_err();
    assert!(matches!(error, Error::NoCheckpoint { .. }), "{error}");
    let report = bucket.collector().collect(&merged(2)).await.unwrap();
    assert_eq!((report.of(GcKind::WalEntry).objects, report.of(GcKind::SsTable).objects), (4, 2));
    assert_eq!(bucket.rows().await, [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_expires_unless_it_is_refreshed() {
    let bucket = bucket().await;
    let mut w = written(&bucket).await;
    let day = Duration::from_secs(24 * 3600);
    let options = CheckpointOptions { lifetime: Some(day), ..Default::default() };
    let short = checkpoint::create(&bucket.shard(), &options).await.unwrap();
    let long = checkpoint::create(&bucket.shard(), &options).await.unwrap();
    let refreshed = checkpoint::refresh(&bucket.shard(), long.id, Some(30 * day)).await.unwrap();
    assert!(refreshed.expires_at_ms > long.expires_at_ms);
    assert_eq!(refreshed.tail, long.tail);
    let position = append(&mut w, [5]).await.unwrap();
    w.truncate(position).await.unwrap();

    let later = bucket.collector();
    assert_eq!(checkpoint::list(&later.shard, None).await.unwrap().iter().map(|c| c.id).collect::<Vec<_>>(), [long.id]);
    let error = checkpoint::refresh(&later.shard, short.id, None).await.unwrap_err();
    assert!(error.to_string().contains("has expired"), "{error}");
    let report = bucket.collector().collect(&merged(0)).await.unwrap();
    assert_eq!((report.expired_checkpoints, report.of(GcKind::Checkpoint).objects), (1, 1));
    bucket.check_nothing_is_missing().await;
    // Not even by a process whose clock is behind.
    let error = checkpoint::refresh(&bucket.shard(), short.id, None).await.unwrap_err();
    assert!(error.to_string().contains("is not listed"), "{error}");
    checkpoint::refresh(&bucket.shard(), long.id, None).await.unwrap();
    assert_eq!(checkpoint::list(&later.shard, None).await.unwrap()[0].expires_at_ms, None);
}

/// Wherever its maker stalls while others flush and collect: what is listed in the end is whole.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_lost_the_race_is_made_anew() {
    let mut stalls = 0;
    for (op, path) in [(Op::List, "/manifest"), (Op::Get, "/manifest/"), (Op::Get, "/wal/"), (Op::Create, "/")] {
        for nth in 1.. {
            let bucket = bucket().await;
            let mut w = written(&bucket).await;
            let slow = bucket.patient();
            let gate = slow.faults.on(op).path_contains(path).nth(nth).stall();
            let task = tokio::spawn({
                let shard = slow.shard.clone();
                async move { checkpoint::create(&shard, &CheckpointOptions::default()).await }
            });
            if !meets(&gate, &task).await {
                task.await.unwrap().unwrap();
                break;
            }
            stalls += 1;
            let position = append(&mut w, [5]).await.unwrap();
            flush(&bucket, &w, position).await;
            append(&mut w, [6]).await.unwrap();
            bucket.collector().collect(&merged(2)).await.unwrap();
            gate.release();
            let made = task.await.unwrap().unwrap();
            bucket.check_nothing_is_missing().await;
            checkpoint::read(&bucket.shard(), made.id).await.unwrap();
            // What it left behind on the way goes with the next collection.
            append(&mut w, [7]).await.unwrap();
            w.tenure().publish(None, Position::new(7)).await.ok();
            bucket.collector().collect(&merged(2)).await.unwrap();
            let objects = bucket.names().await.iter().filter(|name| name.contains("/checkpoints/")).count();
            assert_eq!(objects, 1, "{op:?} {path} {nth}");
            assert_eq!(checkpoint::list(&bucket.shard(), None).await.unwrap().len(), 1);
        }
    }
    assert!(stalls > 10, "{stalls}");
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_whose_answers_are_lost_is_made_once() {
    for fault in [Fault::LostAck, Fault::LostAckAsExists, Fault::Conflict409] {
        let bucket = bucket().await;
        let _w = written(&bucket).await;
        let process = bucket.process();
        let object = process.faults.on(Op::Create).path_contains("/checkpoints/").then(fault);
        let manifest = process.faults.on(Op::Create).path_contains("/manifest/").then(fault);
        let made = checkpoint::create(&process.shard, &CheckpointOptions::default()).await.unwrap();
        assert_eq!((object.fired(), manifest.fired()), (1, 1));
        assert_eq!(bucket.manifest().await.checkpoints(), [made]);
        bucket.check_nothing_is_missing().await;
    }
}

/// It landed, and another engine's manifest, which names no parent, stands on it before its lineage was checked.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_lance_commits_upon_is_made_once() {
    let bucket = bucket().await;
    let _w = written(&bucket).await;
    let process = bucket.process();
    let next = bucket.manifest_path(bucket.manifest().await.version.get() + 1);
    process.faults.on(Op::Create).path_contains("/manifest/").then(Fault::LostAckAsExists);
    let gate = process.faults.on(Op::Get).path_contains(next.filename().unwrap()).stall();
    let shard = process.shard.clone();
    let making = tokio::spawn(async move { checkpoint::create(&shard, &CheckpointOptions::default()).await });
    gate.reached().await;
    lance::commit(&bucket, |_| {}).await;
    gate.release();
    let made = making.await.unwrap().unwrap();
    assert_eq!(checkpoint::list(&bucket.shard(), None).await.unwrap(), [made]);
}

/// Lance drops our fields; a claim or an adoption takes them up again, with the checkpoints.
#[tokio::test(start_paused = true)]
async fn checkpoints_survive_a_manifest_of_lances() {
    for pruned in [false, true] {
        let bucket = bucket().await;
        let mut w = written(&bucket).await;
        let options =
            CheckpointOptions { name: Some("kept".into()), lifetime: Some(Duration::from_secs(60)), table: None };
        let made = checkpoint::create(&bucket.shard(), &options).await.unwrap();
        let position = append(&mut w, [5]).await.unwrap();
        flush(&bucket, &w, position).await;
        drop(w);
        lance::commit(&bucket, |manifest| manifest.writer_epoch += 1).await;
        assert_eq!(bucket.manifest().await.checkpoints(), []);
        if pruned {
            bucket.prune_below(bucket.manifest().await.version.get()).await;
        } else {
            assert_eq!(checkpoint::list(&bucket.shard(), Some("kept")).await.unwrap(), std::slice::from_ref(&made));
            // Another one, beside Lance, does not hide what Lance's writers left.
            let second = checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
            assert!(bucket.manifest().await.extension.unwrap().unadopted);
            checkpoint::delete(&bucket.shard(), second.id).await.unwrap();
            lance::commit(&bucket, |manifest| manifest.writer_epoch += 1).await;
        }
        fencepost_wal::adopt(&bucket.shard()).await.unwrap();
        let listed = checkpoint::list(&bucket.shard(), None).await.unwrap();
        assert_eq!(listed.iter().map(|c| (c.id, c.tail)).collect::<Vec<_>>(), [(made.id, made.tail)]);
        // When it was to expire only the lost manifests knew.
        assert_eq!(listed[0].expires_at_ms, if pruned { None } else { made.expires_at_ms });
        let in_time = bucket.process();
        in_time.collect(&merged(2)).await.unwrap();
        bucket.check_nothing_is_missing().await;
        checkpoint::read(&bucket.shard(), made.id).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_live_checkpoint_stops_the_collection_and_is_named() {
    let bucket = bucket().await;
    let mut w = written(&bucket).await;
    let made = checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
    let position = append(&mut w, [5]).await.unwrap();
    w.truncate(position).await.unwrap();
    let path = bucket.shard().checkpoint_path(made.id);
    let whole = bucket.read(&path).await.unwrap();
    bucket.write(&path, whole.slice(..whole.len() / 2)).await;
    let before = bucket.names().await;
    let error = bucket.collector().collect(&merged(1)).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains(path.as_ref()), "{error}");
    bucket.delete(&path).await;
    let error = bucket.collector().collect(&merged(1)).await.unwrap_err();
    assert!(error.to_string().contains("it is missing"), "{error}");
    assert!(before.difference(&bucket.names().await).eq([path.as_ref()]));
    // Deleting it gives up what it held.
    checkpoint::delete(&bucket.shard(), made.id).await.unwrap();
    assert!(bucket.collect_garbage().await.total().objects > 0);
}
