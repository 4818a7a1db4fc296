//! Taking over: who owns the shard, where the sentinel goes, and what the writer before may still do.

use std::time::Duration;

use fencepost_sim::{Fault, Op, Rng};
use fencepost_wal::{
    EntryKind, Epoch, Error, ManifestStore, OpenOptions, Outcome, Position, Shard, ShardId, SsTable, Store, WalConfig,
    WalTailer,
};

use crate::support::{append, batch, bucket, ids_of, replayed, settle};

#[tokio::test(start_paused = true)]
async fn a_conditional_put_rejects_the_second_writer() {
    let bucket = bucket().await;
    let mut first = bucket.process().appender().await;
    let mut second = bucket.process().appender().await;
    append(&mut second, [2]).await.unwrap();
    let error = append(&mut first, [1]).await.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
    append(&mut second, [3]).await.unwrap();
    assert_eq!(bucket.rows().await, [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_sentinel_claims_the_next_position_and_blocks_the_old_writer() {
    let bucket = bucket().await;
    let mut old = bucket.process().appender().await;
    assert_eq!(append(&mut old, [1]).await.unwrap(), Position::new(2));
    let new = bucket.process().appender().await;
    assert_eq!(new.tenure().sentinel(), Position::new(3));
    assert_eq!(bucket.log().await[2], (3, 2, EntryKind::Sentinel, vec![]));
    let error = append(&mut old, [2]).await.unwrap_err();
    assert!(matches!(error, Error::Fenced { epoch, by, .. } if (epoch.get(), by.get()) == (1, 2)), "{error}");
    // Also a new clone of its right to write is of no use.
    assert!(old.tenure().check().is_err());
    assert!(matches!(old.close().await, Err(Error::Fenced { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_sentinel_skips_forward_over_entries_that_land_meanwhile() {
    let bucket = bucket().await;
    let mut old = bucket.process().appender().await;
    append(&mut old, [1]).await.unwrap();

    // The new writer has read up to the end and is about to put its sentinel; the old one goes on.
    let process = bucket.patient();
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let opening = tokio::spawn({
        let process = process.clone();
        async move { process.open().await.unwrap() }
    });
    gate.reached().await;
    for id in 2..=4 {
        append(&mut old, [id]).await.unwrap();
    }
    gate.release();
    let (mut new, replay) = opening.await.unwrap();
    // One was beaten, so the next try puts two side by side.
    assert_eq!(new.tenure().sentinel(), Position::new(7));
    assert_eq!(replayed(replay).await, [1, 2, 3, 4]);
    assert!(append(&mut old, [5]).await.is_err());
    assert_eq!(append(&mut new, [6]).await.unwrap(), Position::new(8));
    assert_eq!(bucket.fences().await, [(1, 1), (6, 2), (7, 2)]);
    assert_eq!(bucket.rows().await, [1, 2, 3, 4, 6]);
}

#[tokio::test(start_paused = true)]
async fn positions_stay_unique_through_many_hand_overs() {
    let bucket = bucket().await;
    let mut positions = Vec::new();
    for id in 0..20 {
        let mut appender = bucket.process().appender().await;
        positions.push(appender.tenure().sentinel());
        positions.push(append(&mut appender, [id]).await.unwrap());
    }
    let expected: Vec<Position> = (1..=40).map(Position::new).collect();
    assert_eq!(positions, expected);
    assert_eq!(bucket.rows().await, (0..20).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn every_claim_gets_an_epoch_of_its_own() {
    let bucket = bucket().await;
    for epoch in 1..=5 {
        let appender = bucket.process().appender().await;
        assert_eq!(appender.epoch(), Epoch::new(epoch));
        assert_eq!(bucket.manifest().await.writer_epoch, Epoch::new(epoch));
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_claims_get_different_epochs_and_one_owner_is_left() {
    let bucket = bucket().await;
    let opening = (0..6).map(|_| {
        let process = bucket.process();
        tokio::spawn(async move { process.open().await.map(|(appender, _)| appender) })
    });
    let opened: Vec<_> = futures::future::join_all(opening).await.into_iter().map(Result::unwrap).collect();
    let mut epochs: Vec<u64> = opened.iter().flatten().map(|a| a.epoch().get()).collect();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), opened.iter().filter(|o| o.is_ok()).count());
    let mut able = 0;
    for appender in opened.into_iter().flatten() {
        let mut appender = appender;
        match append(&mut appender, [1]).await {
            Ok(_) => able += 1,
            Err(error) => assert!(matches!(error, Error::Fenced { .. }), "{error}"),
        }
    }
    assert_eq!(able, 1, "exactly the last claim may write");
    assert_eq!(bucket.rows().await, [1]);
}

#[tokio::test(start_paused = true)]
async fn commits_of_an_old_epoch_are_refused() {
    let bucket = bucket().await;
    let mut old = bucket.process().appender().await;
    let position = append(&mut old, [1]).await.unwrap();
    let _new = bucket.process().appender().await;
    let before = bucket.manifest().await;

    let sstable = SsTable::new(bucket.manifest().await.current_generation, "0badcafe_gen_1".into());
    let error = old.tenure().publish(Some(sstable), position).await.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert!(matches!(old.truncate(position).await, Err(Error::Fenced { .. })));
    assert!(matches!(old.close().await, Err(Error::Fenced { .. })));
    assert_eq!(bucket.manifest().await, before);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_was_refused_stops_the_appends_too() {
    let bucket = bucket().await;
    let writer = bucket.process().writer(WalConfig::default()).await;
    let position = writer.append(batch([1])).await.unwrap();
    let _new = bucket.process().appender().await;
    assert!(writer.truncate(position).await.is_err());
    let error = writer.append(batch([2])).await.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
}

#[tokio::test(start_paused = true)]
async fn three_writers_hand_over() {
    let bucket = bucket().await;
    let mut first = bucket.process().appender().await;
    append(&mut first, [1, 2]).await.unwrap();
    let (mut second, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [1, 2]);
    append(&mut second, [3]).await.unwrap();
    let (mut third, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replay.rows(), 3);
    assert_eq!(replayed(replay).await, [1, 2, 3]);
    append(&mut third, [4]).await.unwrap();
    for old in [&mut first, &mut second] {
        assert!(matches!(append(old, [9]).await, Err(Error::Fenced { .. })));
    }
    assert_eq!(bucket.rows().await, [1, 2, 3, 4]);
    let sentinels: Vec<u64> = bucket.log().await.iter().filter(|e| e.2 == EntryKind::Sentinel).map(|e| e.0).collect();
    assert_eq!(bucket.fences().await.iter().map(|f| f.0).collect::<Vec<_>>(), sentinels);
}

#[tokio::test(start_paused = true)]
async fn a_sentinel_never_shows_up_in_reads() {
    let bucket = bucket().await;
    for id in 0..3 {
        append(&mut bucket.process().appender().await, [id]).await.unwrap();
    }
    let mut tailer = WalTailer::new(bucket.shard());
    while let Some(entry) = tailer.next().await.unwrap() {
        assert!(!entry.is_sentinel && !ids_of(&entry).is_empty());
    }
    let (_, mut replay) = bucket.process().open().await.unwrap();
    while let Some(entry) = replay.next().await.unwrap() {
        assert!(!entry.is_sentinel);
    }
}

#[tokio::test(start_paused = true)]
async fn a_drop_without_close_loses_nothing_that_was_acknowledged() {
    let bucket = bucket().await;
    {
        let writer = bucket.process().writer(WalConfig::default()).await;
        for id in 0..10 {
            writer.append(batch([id])).await.unwrap();
        }
    }
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn opening_a_fresh_shard_replays_nothing() {
    let bucket = bucket().await;
    let (appender, replay) = bucket.process().open().await.unwrap();
    assert_eq!((replay.rows(), replay.replay_after()), (0, Position::ZERO));
    assert_eq!(replayed(replay).await, [0; 0]);
    assert_eq!(appender.next_position(), Position::new(2));
    assert_eq!(bucket.rows().await, [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn opening_a_shard_that_does_not_exist_says_so_and_creates_nothing() {
    let bucket = bucket().await;
    let nowhere = Shard::new(bucket.shard().store().clone(), ShardId::new_random());
    let error = fencepost_wal::open(&nowhere, &OpenOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::ShardNotFound { .. }), "{error}");
    assert!(ManifestStore::new(nowhere).latest().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_higher_epoch_in_the_replay_aborts_the_open() {
    let bucket = bucket().await;
    let mut appender = bucket.process().appender().await;
    append(&mut appender, [1]).await.unwrap();
    // Epoch 3 is in the log already when epoch 2 is about to read it.
    let process = bucket.patient();
    let gate = process.faults.on(Op::List).path_contains("/wal").stall();
    let opening = tokio::spawn({
        let process = process.clone();
        async move { process.open().await }
    });
    gate.reached().await;
    let newer = bucket.process().appender().await;
    assert_eq!(newer.epoch(), Epoch::new(3));
    gate.release();
    let error = opening.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Fenced { epoch, by, .. } if (epoch.get(), by.get()) == (2, 3)), "{error}");
    assert_eq!(process.requests(Op::Create, "/wal/"), 0, "it sent no sentinel");
}

#[tokio::test(start_paused = true)]
async fn a_higher_epoch_where_the_sentinel_should_go_aborts_the_open() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let opening = tokio::spawn({
        let process = process.clone();
        async move { process.open().await }
    });
    gate.reached().await;
    let mut newer = bucket.process().appender().await;
    append(&mut newer, [1]).await.unwrap();
    gate.release();
    let error = opening.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    append(&mut newer, [2]).await.unwrap();
    assert_eq!(bucket.rows().await, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn the_sentinel_survives_lost_answers_and_409s() {
    for fault in [Fault::LostAck, Fault::LostAckAsExists, Fault::Conflict409, Fault::Fail, Fault::LateLanding] {
        let bucket = bucket().await;
        let process = bucket.process();
        let rule = process.faults.on(Op::Create).path_contains("/wal/").then(fault);
        let mut appender = process.appender().await;
        assert_eq!(rule.fired(), 1);
        assert_eq!(appender.tenure().sentinel(), Position::new(1));
        append(&mut appender, [1]).await.unwrap();
        process.faults.land_late().await;
        assert_eq!(bucket.rows().await, [1], "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_before_the_record() {
    let bucket = bucket().await;
    let process = bucket.attempts(2);
    process.faults.on(Op::Create).path_contains("/manifest/").nth(2).always().then(Fault::Fail);
    let error = process.open().await.unwrap_err();
    assert!(matches!(error, Error::CommitUnknown { .. }), "{error}");
    // The sentinel that nobody recorded is found, skipped and recorded by the next claim.
    let mut next = bucket.process().appender().await;
    assert_eq!(next.tenure().sentinel(), Position::new(2));
    assert_eq!(bucket.fences().await, [(1, 1), (2, 2)]);
    append(&mut next, [1]).await.unwrap();
    assert_eq!(bucket.rows().await, [1]);
}

#[tokio::test(start_paused = true)]
async fn after_a_clean_close_the_sentinel_need_not_stay() {
    let bucket = bucket().await;
    let mut first = bucket.process().appender().await;
    append(&mut first, [1]).await.unwrap();
    first.close().await.unwrap();
    assert_eq!(bucket.manifest().await.extension.unwrap().closed_cleanly_epoch, Epoch::new(1));
    let _second = bucket.process().appender().await;
    // (3, 2), the second one's sentinel, is not kept; (1, 1) is above R and always is.
    assert_eq!(bucket.fences().await, [(1, 1)]);
    // The second one was not closed, so the third one's stays, and the second one's with it.
    let _third = bucket.process().appender().await;
    assert_eq!(bucket.fences().await, [(1, 1), (3, 2), (4, 3)]);
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_tenure_never_closes_cleanly() {
    let bucket = bucket().await;
    let process = bucket.attempts(2);
    let mut appender = process.appender().await;
    process.faults.on(Op::Create).path_contains("/wal/").times(2).then(Fault::Fail);
    append(&mut appender, [1]).await.unwrap_err();
    assert!(matches!(appender.close().await, Err(Error::Poisoned { .. })));
    assert_eq!(bucket.manifest().await.extension.unwrap().closed_cleanly_epoch, Epoch::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_closed_tenure_publishes_nothing_more() {
    let bucket = bucket().await;
    let mut appender = bucket.process().appender().await;
    let position = append(&mut appender, [1]).await.unwrap();
    let tenure = appender.tenure().clone();
    appender.close().await.unwrap();
    assert!(matches!(tenure.truncate(position).await, Err(Error::Closed { .. })));
}

#[tokio::test(start_paused = true)]
async fn stats_are_right_at_once_after_a_reopen() {
    let bucket = bucket().await;
    for round in 0..3u64 {
        let writer = bucket.process().writer(WalConfig::default()).await;
        let stats = writer.stats();
        // Each tenure so far left a sentinel and two entries.
        assert_eq!(stats.acknowledged, Position::new(3 * round + 1));
        assert_eq!(stats.next_position, Position::new(3 * round + 2));
        assert_eq!(stats.epoch, Epoch::new(round + 1));
        assert_eq!((stats.appends, stats.entries, stats.unflushed_bytes), (0, 0, 0));
        for id in [1, 2] {
            writer.append(batch([id])).await.unwrap();
        }
        let stats = writer.stats();
        assert_eq!((stats.appends, stats.rows, stats.entries, stats.unflushed_bytes), (2, 2, 2, 0));
        assert_eq!(stats.acknowledged, Position::new(3 * round + 3));
        // Whether R moved or not, the next position goes on counting.
        if round == 1 {
            writer.truncate(stats.acknowledged).await.unwrap();
        }
        writer.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_append_after_opening_probes_nothing() {
    let bucket = bucket().await;
    append(&mut bucket.process().appender().await, 0..5).await.unwrap();
    let process = bucket.process();
    let mut appender = process.appender().await;
    settle().await;
    process.faults.clear_log();
    append(&mut appender, [5]).await.unwrap();
    assert_eq!(process.faults.log().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_small_replay_budget_reads_the_rest_again_and_returns_the_same() {
    let bucket = bucket().await;
    let mut expected = Vec::new();
    for writer in 0..3 {
        let mut appender = bucket.process().appender().await;
        for id in 0..10 {
            append(&mut appender, [writer * 100 + id]).await.unwrap();
            expected.push(writer * 100 + id);
        }
        // A straggler of the writer before, dead where it stands.
        if writer == 1 {
            let next = appender.next_position().get();
            bucket.copy_entry(2, next).await;
            append(&mut appender, [150]).await.unwrap();
            expected.push(150);
        }
    }
    for replay_budget_bytes in [0, 1, 3_000, 20_000, usize::MAX] {
        for prefetch in [0, 1, 64] {
            let options = OpenOptions { replay_budget_bytes, prefetch, ..OpenOptions::default() };
            let opened = fencepost_wal::open(&bucket.shard(), &options).await.unwrap();
            assert_eq!(opened.replay.rows(), expected.len() as u64);
            assert_eq!(replayed(opened.replay).await, expected, "budget {replay_budget_bytes}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_predecessor_does_not_outrun_a_claim() {
    // Every request takes 10 ms, and the old writer lands an entry every 10 to 25 ms: faster than a claimant that
    // collides, reads, and collides with the next one. There is room for a sentinel now and then.
    let bucket = bucket().await;
    let slow = |process: &crate::support::Process| {
        for op in [Op::Create, Op::Get, Op::List] {
            process.faults.on(op).always().then(Fault::Delay(Duration::from_millis(10)));
        }
    };
    let process = bucket.process();
    slow(&process);
    let old = process.writer(WalConfig::default()).await;
    let busy = tokio::spawn(async move {
        let mut rng = Rng::new(7);
        let mut acknowledged = Vec::new();
        for id in 0.. {
            match old.append(batch([id])).await {
                Ok(position) => acknowledged.push(position),
                Err(error) => return (acknowledged, error),
            }
            tokio::time::sleep(Duration::from_millis(rng.below(16))).await;
        }
        unreachable!()
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    let process = bucket.process();
    slow(&process);
    let opening = tokio::time::timeout(Duration::from_secs(2), process.open());
    let (new, _) = opening.await.expect("the claim never got its sentinel in").unwrap();
    let (acknowledged, error) = busy.await.unwrap();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    let log = bucket.log().await;
    let first = log.iter().find(|e| e.1 == new.epoch().get() && e.2 == EntryKind::Sentinel).unwrap();
    assert_eq!(acknowledged.last().unwrap().next().unwrap().get(), first.0);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_a_writer_without_pause_outruns_ends_with_an_error() {
    // The old writer has 32 PUTs under way at every moment, and each takes less time than one of the claimant's: all
    // that a claimant may reach for is taken before its PUT arrives. If it is far away, it is not even done reading.
    for (distance, is_done_reading) in [(150, true), (600, false)] {
        outrun(distance, is_done_reading).await;
    }
}

async fn outrun(distance: u64, is_done_reading: bool) {
    let bucket = bucket().await;
    let slow = |process: &crate::support::Process, millis| {
        for op in [Op::Create, Op::Get, Op::List] {
            process.faults.on(op).always().then(Fault::Delay(Duration::from_millis(millis)));
        }
    };
    let process = bucket.process();
    slow(&process, 100);
    let config = WalConfig { max_in_flight: 32, ..WalConfig::default() };
    let old = std::sync::Arc::new(process.writer(config).await);
    for id in 0..33 {
        old.append(batch([id])).await.unwrap();
    }
    let busy: Vec<_> = (0..32)
        .map(|n| {
            let writing = std::sync::Arc::clone(&old);
            tokio::spawn(async move {
                // Each has a PUT of its own.
                tokio::time::sleep(Duration::from_millis(3 * n)).await;
                while writing.append(batch([1])).await.is_ok() {}
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let process = bucket.process();
    slow(&process, distance);
    let error = process.open().await.unwrap_err();
    assert!(matches!(error, Error::Outrun { attempts, .. } if (attempts > 0) == is_done_reading), "{error}");
    busy.iter().for_each(|client| client.abort());
    // The claim is in the manifest all the same: what the old writer commits next stops it.
    let error = old.truncate(old.stats().acknowledged).await.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
}

#[tokio::test]
async fn the_same_on_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), &Default::default()).unwrap();
    let shard = Shard::new(store, ShardId::new_random());
    let first = fencepost_wal::ShardManifest::first(shard.id(), 0, vec![]);
    ManifestStore::new(shard.clone()).initialize(first).await.unwrap();
    let options = OpenOptions::default();
    let (mut old, _) = fencepost_wal::WalAppender::open(&shard, &options).await.unwrap();
    append(&mut old, [1]).await.unwrap();
    let (mut new, replay) = fencepost_wal::WalAppender::open(&shard, &options).await.unwrap();
    assert_eq!(replayed(replay).await, [1]);
    assert!(matches!(append(&mut old, [2]).await, Err(Error::Fenced { .. })));
    append(&mut new, [3]).await.unwrap();
    new.close().await.unwrap();
    let (_, replay) = fencepost_wal::WalAppender::open(&shard, &options).await.unwrap();
    assert_eq!(replayed(replay).await, [1, 3]);
}

#[tokio::test]
async fn the_same_on_s3() {
    let folder = tempfile::tempdir().unwrap();
    let server = fencepost_sim::S3Server::start(folder.path()).unwrap();
    let store = Store::open(&server.url("t"), &server.storage_options()).unwrap();
    let shard = Shard::new(store, ShardId::new_random());
    let first = fencepost_wal::ShardManifest::first(shard.id(), 0, vec![]);
    ManifestStore::new(shard.clone()).initialize(first).await.unwrap();
    let options = OpenOptions::default();
    let (mut old, _) = fencepost_wal::WalAppender::open(&shard, &options).await.unwrap();
    append(&mut old, [1]).await.unwrap();
    let (mut new, replay) = fencepost_wal::WalAppender::open(&shard, &options).await.unwrap();
    assert_eq!(replayed(replay).await, [1]);
    assert!(matches!(append(&mut old, [2]).await, Err(Error::Fenced { .. })));
    append(&mut new, [3]).await.unwrap();
    let mut tailer = WalTailer::new(shard);
    assert_eq!(ids_of(&tailer.next().await.unwrap().unwrap()), [1]);
    assert_eq!(ids_of(&tailer.next().await.unwrap().unwrap()), [3]);
    assert!(tailer.next().await.unwrap().is_none());
}
