//! Clones of shards: whose rows they have, what they hold, and what becomes of them when somebody dies half way.

use std::collections::BTreeSet;

use fencepost_sim::Op;
use fencepost_wal::checkpoint::{self, CheckpointLog, CheckpointOptions};
use fencepost_wal::clone::{self, CloneSource};
use fencepost_wal::delete::{Marked, mark_deleted, unmark_deleted};
use fencepost_wal::{
    EntryKind, Error, OpenOptions, Position, Result, Shard, ShardPlace, VerifyOptions, WalAppender, verify,
};

use crate::gc::{flush, merged};
use crate::support::*;
use crate::wal_store::{self, Disk};

/// Three tenures, two SSTables of which one is merged, and rows 3 to 5 in the log, with a sentinel in between.
async fn written(bucket: &Bucket) -> WalAppender {
    let mut w1 = bucket.process().appender().await;
    for id in 1..=2 {
        let position = append(&mut w1, [id]).await.unwrap();
        flush(bucket, &w1, position).await;
    }
    append(&mut w1, [3]).await.unwrap();
    let mut w2 = bucket.process().appender().await;
    append(&mut w2, [4]).await.unwrap();
    append(&mut w2, [5]).await.unwrap();
    w2
}

async fn checkpointed(bucket: &Bucket) -> CloneSource {
    let made = checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
    CloneSource::read(bucket.shard(), made.id).await.unwrap()
}

async fn rows_of(source: &CloneSource) -> Result<Vec<i64>> {
    let mut log = CheckpointLog::open(&source.shard, &source.checkpoint).await?;
    let mut rows = Vec::new();
    while let Some(entry) = log.next().await? {
        rows.extend(ids_of(&entry));
    }
    Ok(rows)
}

/// A writer whose log is in a WAL store.
async fn in_store(bucket: &Bucket, disk: &Disk) -> WalAppender {
    wal_store::open(bucket, disk).await.unwrap().0
}

async fn mark(shard: &Shard) -> Result<Option<Marked>> {
    mark_deleted(shard, &OpenOptions::default()).await
}

async fn is_whole(shard: &Shard) {
    let verified = verify(shard, &VerifyOptions::default()).await.unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
}

#[tokio::test(start_paused = true)]
async fn a_clone_has_its_moments_rows_and_neither_side_sees_the_others() {
    let bucket = bucket().await;
    let mut w = written(&bucket).await;
    let source = checkpointed(&bucket).await;
    append(&mut w, [6]).await.unwrap();
    assert_eq!(rows_of(&source).await.unwrap(), [3, 4, 5]);

    let copy = bucket.elsewhere("clone");
    let copied = clone::clone(&copy.shard(), &source).await.unwrap();
    assert_eq!(copied.entries, 4, "three with rows, and a sentinel");
    let manifest = copy.manifest().await;
    assert_eq!(manifest.sstables.len(), 2);
    let here = ShardPlace::of(&bucket.shard());
    assert!(manifest.sstables.iter().all(|s| s.base.as_ref().unwrap().place == here));
    assert_eq!((manifest.writer_epoch.get(), copy.fences().await), (2, vec![]));
    is_whole(&copy.shard()).await;
    assert_eq!(copy.rows().await, [3, 4, 5]);

    let (mut its, replay) = copy.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [3, 4, 5]);
    assert!(its.tenure().epoch() > manifest.writer_epoch);
    append(&mut its, [7]).await.unwrap();
    append(&mut w, [8]).await.unwrap();
    assert_eq!(copy.rows().await, [3, 4, 5, 7]);
    assert_eq!(bucket.rows().await, [3, 4, 5, 6, 8]);

    // Whatever becomes of the checkpoint and of the source's rows: what the clone shares stays, as long as it is there.
    checkpoint::delete(&bucket.shard(), source.checkpoint.id).await.unwrap();
    let position = append(&mut w, [9]).await.unwrap();
    flush(&bucket, &w, position).await;
    bucket.collector().collect(&merged(3)).await.unwrap();
    bucket.check_nothing_is_missing().await;
    for sstable in &manifest.sstables {
        let file = bucket.shard().root().clone().join(sstable.path.as_str()).join("a");
        assert!(bucket.read(&file).await.is_some(), "{file}");
    }
    let refused = mark(&bucket.shard()).await.unwrap_err();
    assert!(refused.to_string().contains("the clone at memory://tests/clone"), "{refused}");
    append(&mut w, [10]).await.unwrap();

    mark(&copy.shard()).await.unwrap();
    assert!(matches!(append(&mut its, [11]).await, Err(Error::Fenced { .. })));
    checkpoint::release(&bucket.shard(), copy.shard().id()).await.unwrap();
    assert_eq!(bucket.manifest().await.checkpoints(), []);
    mark(&bucket.shard()).await.unwrap();
    assert!(matches!(append(&mut w, [12]).await, Err(Error::Fenced { .. })));
}

/// Killed in front of, or behind, each of its writes, and run again, by a process that sees what the first one left.
#[tokio::test(start_paused = true)]
async fn a_clone_may_die_at_every_write_and_be_made_again() {
    let mut deaths = 0;
    for behind in [false, true] {
        for nth in 1.. {
            let bucket = bucket().await;
            let mut w = written(&bucket).await;
            let source = checkpointed(&bucket).await;
            let copy = bucket.elsewhere("clone");
            let dying = bucket.patient();
            let rule = dying.faults.on_any([Op::Create, Op::Overwrite]).path_matches(|path| !path.ends_with(".json"));
            let gate = if behind { rule.nth(nth).stall_after() } else { rule.nth(nth).stall() };
            let its = CloneSource { shard: dying.shard.clone(), checkpoint: source.checkpoint.clone() };
            let target = Shard::new(dying.shard.store().sibling("memory://tests/clone").unwrap(), copy.shard().id());
            let task = tokio::spawn(async move { clone::clone(&target, &its).await });
            if !meets(&gate, &task).await {
                task.await.unwrap().unwrap();
                break;
            }
            task.abort();
            deaths += 1;
            let opened = copy.process().open().await.map(|_| ());
            let is_absent = matches!(opened, Err(Error::CloneUnfinished { .. } | Error::ShardNotFound { .. }));
            assert!(is_absent || opened.is_ok(), "{opened:?}");
            let finished = opened.is_ok();
            if !finished {
                assert!(checkpoint::create(&copy.shard(), &CheckpointOptions::default()).await.is_err());
            }
            // Once the pin is there, the checkpoint may go.
            append(&mut w, [6]).await.unwrap();
            clone::clone(&copy.shard(), &source).await.unwrap();
            assert_eq!(copy.rows().await, [3, 4, 5]);
            let pins = bucket.manifest().await.checkpoints().iter().filter(|c| c.is_pin).count();
            assert_eq!(pins, 1);
            is_whole(&copy.shard()).await;
            bucket.check_nothing_is_missing().await;
        }
    }
    assert!(deaths >= 14, "{deaths}");
}

#[tokio::test(start_paused = true)]
async fn a_clone_of_another_moment_does_not_go_on_with_it() {
    let bucket = bucket().await;
    let _w = written(&bucket).await;
    let (first, second) = (checkpointed(&bucket).await, checkpointed(&bucket).await);
    let copy = bucket.elsewhere("clone");
    clone::begin(&copy.shard(), first.first_manifest(&copy.shard())).await.unwrap();
    let error = clone::clone(&copy.shard(), &second).await.unwrap_err();
    assert!(error.to_string().contains("no clone of that checkpoint"), "{error}");
    clone::clone(&copy.shard(), &first).await.unwrap();
    // A repeated run changes nothing, also when the clone has gone on.
    let mut w = copy.process().appender().await;
    append(&mut w, [6]).await.unwrap();
    let version = copy.manifest().await.version;
    clone::clone(&copy.shard(), &first).await.unwrap();
    assert_eq!(copy.manifest().await.version, version);
    assert_eq!(copy.rows().await, [3, 4, 5, 6]);
}

/// What is pinned by nothing cannot be cloned: expired, deleted, or of a shard that is being deleted.
#[tokio::test(start_paused = true)]
async fn what_nothing_holds_is_not_cloned() {
    let bucket = bucket().await;
    let _w = written(&bucket).await;
    let source = checkpointed(&bucket).await;
    let short = CheckpointOptions { lifetime: Some(std::time::Duration::from_secs(3600)), ..Default::default() };
    let short = checkpoint::create(&bucket.shard(), &short).await.unwrap();
    let later = bucket.collector();
    assert!(matches!(CloneSource::read(later.shard.clone(), short.id).await, Err(Error::NoCheckpoint { .. })));
    let read = CloneSource::read(bucket.shard(), short.id).await.unwrap();
    let expired = CloneSource { shard: later.shard.clone(), ..read };
    let error = clone::clone(&bucket.elsewhere("clone").shard(), &expired).await.unwrap_err();
    assert!(error.to_string().contains("has expired"), "{error}");
    checkpoint::delete(&bucket.shard(), short.id).await.unwrap();
    let refused = mark(&bucket.shard()).await.unwrap_err();
    assert!(refused.to_string().contains(&source.checkpoint.id.to_string()), "{refused}");
    checkpoint::delete(&bucket.shard(), source.checkpoint.id).await.unwrap();
    let copy = bucket.elsewhere("clone");
    let error = clone::clone(&copy.shard(), &source).await.unwrap_err();
    assert!(error.to_string().contains("is not listed"), "{error}");
    assert!(matches!(copy.process().open().await, Err(Error::CloneUnfinished { .. })));

    mark(&bucket.shard()).await.unwrap();
    let error = checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::ShardClosed { state: "deleted", .. }), "{error}");
    unmark_deleted(&bucket.shard(), bucket.manifest().await.version).await.unwrap();
    checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
}

/// Scope `All` leaves nothing in the log, whatever stands in front of it.
#[tokio::test(start_paused = true)]
async fn schedule_09_a_checkpoint_of_all_right_after_a_takeover_needs_no_log() {
    for takeovers in 1..=3 {
        let (bucket, disk) = (bucket().await, Disk::new());
        let mut w1 = in_store(&bucket, &disk).await;
        let position = append(&mut w1, [1]).await.unwrap();
        flush(&bucket, &w1, position).await;
        let mut w = w1;
        for _ in 0..takeovers {
            w = in_store(&bucket, &disk).await;
        }
        // Its MemTable is empty: R is behind, by the sentinels.
        let sentinel = w.tenure().sentinel();
        assert!(bucket.manifest().await.replay_after < sentinel);
        let made = w.tenure().checkpoint(Some(sentinel), &CheckpointOptions::default()).await.unwrap();
        assert_eq!((made.replay_after, made.tail), (sentinel, sentinel));
        let version = bucket.manifest().await.version;
        assert_eq!(made.version, version, "the very manifest that lists it");
        disk.wipe().await;

        let (copy, other) = (bucket.elsewhere("clone"), Disk::new());
        let source = CloneSource::read(bucket.shard(), made.id).await.unwrap();
        let target = copy.shard().with_wal_store(other.store.clone());
        clone::clone(&target, &source).await.unwrap();
        let (mut its, replay) = WalAppender::open(&copy.shard(), &OpenOptions::default()).await.unwrap();
        assert_eq!(replayed(replay).await, [0; 0]);
        append(&mut its, [2]).await.unwrap();
        assert_eq!(copy.rows().await, [2]);
        assert!(other.names().await.iter().any(|name| name.to_string().ends_with(".arrow")), "its log is there");
        assert_eq!(copy.manifest().await.wal_store().unwrap().url, other.store.url().to_string());
        is_whole(&copy.shard()).await;
    }
}

/// Rows that only the lost store had: the clone fails, and names the first of them.
#[tokio::test(start_paused = true)]
async fn schedule_10_a_clone_from_a_wrong_or_empty_wal_store_loses_nothing_in_silence() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let mut w = in_store(&bucket, &disk).await;
    let position = append(&mut w, [1]).await.unwrap();
    flush(&bucket, &w, position).await;
    let mut w = in_store(&bucket, &disk).await; // A sentinel at R + 1.
    let first = append(&mut w, [2]).await.unwrap();
    append(&mut w, [3]).await.unwrap();
    let source = checkpointed(&bucket).await;
    let wiped = Disk::new();
    wal_store::copy(&disk, &wiped).await;
    disk.wipe().await;
    for wrong in [None, Some(Disk::new())] {
        let shard = match &wrong {
            // Another store, which has an identity of its own.
            Some(wrong) => {
                let other = crate::support::bucket().await;
                drop(in_store(&other, wrong).await);
                bucket.shard().with_wal_store(wrong.store.clone())
            }
            None => bucket.shard(),
        };
        let source = CloneSource { shard, checkpoint: source.checkpoint.clone() };
        let copy = bucket.elsewhere("clone");
        let error = clone::clone(&copy.shard(), &source).await.unwrap_err();
        assert!(matches!(&error, Error::CheckpointLost { position, .. } if *position == first), "{error}");
        assert!(error.to_string().contains("scope `all`"), "{error}");
        let error = rows_of(&source).await.unwrap_err();
        assert!(matches!(&error, Error::CheckpointLost { position, .. } if *position == first), "{error}");
        assert!(matches!(copy.process().open().await, Err(Error::CloneUnfinished { .. })));
    }
    // A clone that was begun without the store, which has a sentinel in the way of rows, is finished with it.
    let begun = bucket.elsewhere("begun");
    let without = CloneSource { shard: bucket.shard(), checkpoint: source.checkpoint.clone() };
    assert!(matches!(clone::clone(&begun.shard(), &without).await, Err(Error::CheckpointLost { .. })));
    assert!(begun.names().await.iter().any(|name| name.contains("/wal/")), "a sentinel where no rows were");
    let with = CloneSource { shard: bucket.shard().with_wal_store(wiped.store.clone()), ..without };
    clone::clone(&begun.shard(), &with).await.unwrap();
    assert_eq!(begun.rows().await, [2, 3]);
    is_whole(&begun.shard()).await;
    // The store that has the identity, mounted elsewhere.
    let there = CloneSource { shard: bucket.shard().with_wal_store(wiped.store.clone()), ..source };
    let copy = bucket.elsewhere("clone");
    clone::clone(&copy.shard(), &there).await.unwrap();
    assert_eq!(copy.rows().await, [2, 3]);
    assert_eq!(copy.manifest().await.wal_store(), None, "the parent's WAL store is not inherited");
}

/// Positions that are known to have held no rows are no loss.
#[tokio::test(start_paused = true)]
async fn a_log_of_sentinels_and_dead_entries_can_be_cloned_without_its_store() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let mut w = in_store(&bucket, &disk).await;
    let position = append(&mut w, [1]).await.unwrap();
    flush(&bucket, &w, position).await;
    for _ in 0..2 {
        drop(in_store(&bucket, &disk).await);
    }
    let source = checkpointed(&bucket).await;
    assert_eq!(source.checkpoint.tail.get(), position.get() + 2);
    disk.wipe().await;
    assert_eq!(rows_of(&source).await.unwrap(), [0; 0]);
    let copy = bucket.elsewhere("clone");
    clone::clone(&copy.shard(), &source).await.unwrap();
    let log = copy.log().await;
    assert!(log.iter().all(|(_, _, kind, _)| *kind == EntryKind::Sentinel), "{log:?}");
    assert_eq!(log.len(), 2);
    let mut its = copy.process().appender().await;
    append(&mut its, [2]).await.unwrap();
    assert_eq!(copy.rows().await, [2]);
    is_whole(&copy.shard()).await;
}

/// A clone is deleted and made again at the same place; a writer of the first one wakes up.
#[tokio::test(start_paused = true)]
async fn schedule_21_a_writer_of_a_deleted_clone_writes_nothing_into_its_successor() {
    let bucket = bucket().await;
    let mut w = written(&bucket).await;
    let source = checkpointed(&bucket).await;
    let first = bucket.elsewhere("clone");
    clone::clone(&first.shard(), &source).await.unwrap();
    let slow = first.patient();
    let mut zombie = slow.appender().await;
    append(&mut zombie, [6]).await.unwrap();
    let gate = slow.faults.on(Op::Create).path_contains("/wal/").stall();
    let late = tokio::spawn(async move { append(&mut zombie, [7]).await });
    assert!(meets(&gate, &late).await);
    let marked = mark(&first.shard()).await.unwrap().unwrap();
    assert!(marked.manifest.is_deleted());
    // Another deleter takes the mark over.
    assert!(mark(&first.shard()).await.unwrap().unwrap().manifest.version > marked.manifest.version);
    for name in first.names().await {
        first.delete(&name.into()).await;
    }
    checkpoint::release(&bucket.shard(), first.shard().id()).await.unwrap();

    let second = bucket.elsewhere("clone");
    assert_ne!(second.shard().id(), first.shard().id());
    clone::clone(&second.shard(), &source).await.unwrap();
    let mut its = second.process().appender().await;
    append(&mut its, [8]).await.unwrap();
    gate.release();
    // Its own log is gone, and nobody reads what it leaves there.
    let _ = late.await.unwrap();
    assert_eq!(second.rows().await, [3, 4, 5, 8]);
    append(&mut w, [9]).await.unwrap();
    assert_eq!(bucket.rows().await, [3, 4, 5, 9]);
    is_whole(&second.shard()).await;
}

/// A clone of a clone holds what it shares with the first, through every deletion in between.
#[tokio::test(start_paused = true)]
async fn schedule_34_a_clone_that_another_one_pins_is_not_deleted() {
    let bucket = bucket().await;
    let mut w = written(&bucket).await;
    let source = checkpointed(&bucket).await;
    let middle = bucket.elsewhere("middle");
    clone::clone(&middle.shard(), &source).await.unwrap();
    let mut its = middle.process().appender().await;
    let position = append(&mut its, [6]).await.unwrap();
    flush(&middle, &its, position).await;
    let of_middle = checkpointed(&middle).await;
    assert_eq!(of_middle.places(), [ShardPlace::of(&middle.shard()), ShardPlace::of(&bucket.shard())]);
    let last = bucket.elsewhere("last");
    clone::clone(&last.shard(), &of_middle).await.unwrap();
    let places: BTreeSet<_> = last.manifest().await.sstables.iter().map(|s| s.base.clone().unwrap().place).collect();
    assert_eq!(places.len(), 2);

    // The users' checkpoints in between go, and the source goes on.
    checkpoint::delete(&bucket.shard(), source.checkpoint.id).await.unwrap();
    checkpoint::delete(&middle.shard(), of_middle.checkpoint.id).await.unwrap();
    let refused = mark(&middle.shard()).await.unwrap_err();
    assert!(refused.to_string().contains("memory://tests/last"), "{refused}");
    // Also if the first clone gave up its own pin, against the rules: the last one has one of its own.
    checkpoint::release(&bucket.shard(), middle.shard().id()).await.unwrap();
    let position = append(&mut w, [7]).await.unwrap();
    flush(&bucket, &w, position).await;
    bucket.collector().collect(&merged(3)).await.unwrap();
    let position = append(&mut its, [8]).await.unwrap();
    flush(&middle, &its, position).await;
    middle.collector().collect(&merged(9)).await.unwrap();
    for sstable in last.manifest().await.sstables {
        let place = sstable.base.unwrap().place.open(bucket.shard().store()).unwrap();
        assert!(bucket.read(&place.root().clone().join(sstable.path.as_str()).join("a")).await.is_some());
    }

    // A deletion and a clone at once: whoever commits first wins.
    let source = checkpointed(&middle).await;
    let slow = middle.patient();
    let gate = slow.faults.on(Op::Create).path_contains("/manifest/").stall();
    let its_view = CloneSource { shard: slow.shard.clone(), checkpoint: source.checkpoint.clone() };
    let late = bucket.elsewhere("late");
    let target = late.shard();
    let cloning = tokio::spawn(async move { clone::clone(&target, &its_view).await });
    assert!(meets(&gate, &cloning).await);
    checkpoint::delete(&middle.shard(), source.checkpoint.id).await.unwrap();
    mark(&last.shard()).await.unwrap();
    checkpoint::release(&middle.shard(), last.shard().id()).await.unwrap();
    mark(&middle.shard()).await.unwrap();
    gate.release();
    let error = cloning.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::ShardClosed { .. } | Error::NoCheckpoint { .. }), "{error}");
    assert!(matches!(late.process().open().await, Err(Error::CloneUnfinished { .. })));
}

/// Appends go on while everything is flushed and pinned; the checkpoint ends where its R is.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_of_all_is_made_anew_when_somebody_else_commits() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let mut w = process.appender().await;
    let first = append(&mut w, [1]).await.unwrap();
    bucket.write_sstable("0badcafe_gen_1").await;
    let gate = process.faults.on(Op::Create).path_contains("/checkpoints/").stall_after();
    let tenure = w.tenure().clone();
    let making = tokio::spawn(async move { tenure.checkpoint(None, &CheckpointOptions::default()).await });
    assert!(meets(&gate, &making).await);
    append(&mut w, [2]).await.unwrap();
    // Somebody without a tenure lists another one: this attempt derives from an old version.
    let other = checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
    gate.release();
    let made = making.await.unwrap().unwrap();
    let manifest = bucket.manifest().await;
    assert_eq!(manifest.checkpoints().iter().map(|c| c.id).collect::<Vec<_>>(), [other.id, made.id]);
    let read = checkpoint::read(&bucket.shard(), made.id).await.unwrap();
    assert_eq!((read.manifest.version, read.tail), (manifest.version, manifest.replay_after));
    assert!(read.tail < first);
    let error = w.tenure().checkpoint(Some(Position::new(99)), &CheckpointOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("only 3 is acknowledged"), "{error}");
    // A replaced writer pins nothing.
    let _w2 = bucket.process().appender().await;
    let error = w.tenure().checkpoint(None, &CheckpointOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
}

/// Another lifetime and another name for the same moment.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_can_be_made_of_a_checkpoint() {
    let bucket = bucket().await;
    let mut w = written(&bucket).await;
    let source = checkpointed(&bucket).await;
    append(&mut w, [6]).await.unwrap();
    let named = CheckpointOptions { name: Some("again".into()), ..Default::default() };
    let again = checkpoint::copy(&bucket.shard(), source.checkpoint.id, &named).await.unwrap();
    checkpoint::delete(&bucket.shard(), source.checkpoint.id).await.unwrap();
    let again = CloneSource::read(bucket.shard(), again.id).await.unwrap();
    assert_eq!(rows_of(&again).await.unwrap(), [3, 4, 5]);
    assert_eq!(again.checkpoint.manifest, source.checkpoint.manifest);
    bucket.collector().collect(&merged(2)).await.unwrap();
    bucket.check_nothing_is_missing().await;
    let gone = checkpoint::copy(&bucket.shard(), source.checkpoint.id, &named).await.unwrap_err();
    assert!(matches!(gone, Error::NoCheckpoint { .. }), "{gone}");
}
