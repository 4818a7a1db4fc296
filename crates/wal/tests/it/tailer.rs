//! Reading without owning: order, read-ahead, following, dead entries, and never skipping what was not read.

use std::time::Duration;

use fencepost_sim::{Fault, Op};
use fencepost_wal::{EntryKind, Error, FollowOptions, Position, Shard, ShardId, WalTailer};
use tokio::time::Instant;

use crate::support::{Bucket, append, bucket, ids_of, must_wait, settle};

async fn with_entries(ids: std::ops::Range<i64>) -> Bucket {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    for id in ids {
        append(&mut w1, [id]).await.unwrap();
    }
    bucket
}

async fn read_all(tailer: &mut WalTailer) -> Vec<i64> {
    let mut ids = Vec::new();
    while let Some(entry) = tailer.next().await.unwrap() {
        ids.extend(ids_of(&entry));
    }
    ids
}

#[tokio::test(start_paused = true)]
async fn reads_in_order_and_again_when_more_has_come() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    let mut tailer = WalTailer::new(bucket.shard());
    assert_eq!(tailer.next_position(), None);
    let mut next = 0;
    for more in [0, 1, 5, 100, 0, 3] {
        for id in next..next + more {
            append(&mut w1, [id]).await.unwrap();
        }
        assert_eq!(read_all(&mut tailer).await, (next..next + more).collect::<Vec<_>>());
        next += more;
    }
    assert_eq!(tailer.next_position(), Some(Position::new(next as u64 + 2)));
}

#[tokio::test(start_paused = true)]
async fn reads_ahead_with_many_gets_at_once() {
    let bucket = with_entries(0..500).await;
    let process = bucket.process();
    process.faults.on(Op::Get).path_contains("/wal/").always().then(Fault::Delay(Duration::from_millis(100)));
    let started = Instant::now();
    assert_eq!(read_all(&mut WalTailer::new(process.shard.clone())).await.len(), 500);
    let seconds = started.elapsed().as_secs_f64();
    assert!(seconds < 2.0, "one after the other would have taken 50 seconds, this took {seconds}");
    // A tailer at the end asks for one position at a time.
    let mut tailer = WalTailer::new(process.shard.clone());
    read_all(&mut tailer).await;
    process.faults.clear_log();
    assert!(tailer.next().await.unwrap().is_none());
    assert_eq!(process.requests(Op::Get, "/wal/"), 1);
}

#[tokio::test(start_paused = true)]
async fn follows_with_growing_pauses_and_finds_what_comes() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    let process = bucket.process();
    let mut tailer = WalTailer::new(process.shard.clone());
    let options = FollowOptions { min_poll: Duration::from_millis(100), max_poll: Duration::from_secs(2) };
    assert!(tailer.next().await.unwrap().is_none());
    process.faults.clear_log();

    let started = Instant::now();
    let following = tokio::spawn(async move {
        let entry = tailer.follow(&options).await.unwrap();
        (tailer, entry, Instant::now())
    });
    tokio::time::sleep(Duration::from_millis(9_999)).await;
    // 0, 0.1, 0.3, 0.7, 1.5, 3.1 and then every two seconds: 5.1, 7.1, 9.1
    assert_eq!(process.requests(Op::Get, "/wal/"), 9);
    append(&mut w1, [1]).await.unwrap();
    let (mut tailer, entry, found) = following.await.unwrap();
    assert_eq!(ids_of(&entry), [1]);
    assert!(found - started <= Duration::from_millis(11_200));
    // What is there already is returned at once.
    append(&mut w1, [2]).await.unwrap();
    let before = Instant::now();
    assert_eq!(ids_of(&tailer.follow(&FollowOptions::default()).await.unwrap()), [2]);
    assert_eq!(Instant::now(), before);
}

#[tokio::test(start_paused = true)]
async fn dead_entries_are_skipped_and_shown_to_who_asks() {
    let bucket = with_entries(0..3).await;
    let w2 = bucket.process().appender().await;
    let next = w2.next_position().get();
    bucket.copy_entry(2, next).await;
    assert_eq!(read_all(&mut WalTailer::new(bucket.shard())).await, [0, 1, 2]);
    let kinds: Vec<EntryKind> = bucket.log().await.iter().map(|e| e.2).collect();
    use EntryKind::{Dead, Rows, Sentinel};
    assert_eq!(kinds, [Sentinel, Rows, Rows, Rows, Sentinel, Dead]);
}

#[tokio::test(start_paused = true)]
async fn starts_behind_r_with_the_epoch_that_belongs_to_it() {
    let bucket = with_entries(0..5).await;
    let w2 = bucket.process().appender().await;
    let sentinel = w2.tenure().sentinel();
    w2.truncate(sentinel).await.unwrap();
    // A straggler of epoch 1 right behind R: the sentinel in front of it is not read any more.
    bucket.copy_entry(2, sentinel.get() + 1).await;
    assert_eq!(read_all(&mut WalTailer::new(bucket.shard())).await, [0; 0]);
    let mut tailer = WalTailer::after(bucket.shard(), &bucket.manifest().await);
    assert_eq!(tailer.next_any().await.unwrap().unwrap().0, EntryKind::Dead);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_fell_behind_is_told_at_an_absent_position_and_at_a_sentinel() {
    for sentinel_stays in [false, true] {
        let bucket = bucket().await;
        let mut w1 = bucket.process().appender().await;
        let mut tailer = WalTailer::new(bucket.shard());
        assert!(tailer.next().await.unwrap().is_none());
        let mut w1 = match sentinel_stays {
            // Its sentinel is the very next object that the tailer reads.
            true => bucket.process().appender().await,
            false => {
                append(&mut w1, [1]).await.unwrap();
                w1
            }
        };
        append(&mut w1, [2]).await.unwrap();
        let last = append(&mut w1, [3]).await.unwrap();
        w1.truncate(last).await.unwrap();
        bucket.collect_garbage().await;
        let error = tailer.next().await.unwrap_err();
        assert!(matches!(error, Error::Behind { replay_after, .. } if replay_after == last), "{error}");
        tailer.restart();
        append(&mut w1, [4]).await.unwrap();
        assert_eq!(read_all(&mut tailer).await, [4]);
    }
}

/// An entry that is absent although it had landed is a hole, unless R has passed it since.
#[tokio::test(start_paused = true)]
async fn a_reader_that_stalls_over_flush_and_gc_is_behind_and_meets_no_hole() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    let last = append(&mut w1, [1]).await.unwrap();
    let process = bucket.process();
    let mut tailer = WalTailer::new(process.shard.clone());
    assert_eq!(ids_of(&tailer.next().await.unwrap().unwrap()), [1]);
    assert!(tailer.next().await.unwrap().is_none());
    let hidden = append(&mut w1, [2]).await.unwrap();
    append(&mut w1, [3]).await.unwrap();
    // A manifest that says that it landed, with R still below it.
    w1.truncate(last).await.unwrap();
    bucket.delete(&bucket.entry_path(hidden.get())).await;
    let again = process.faults.on(Op::Get).path_ends_with(bucket.entry_path(hidden.get()).as_ref()).nth(2).stall();
    let reading = tokio::spawn(async move {
        let read = tailer.next().await;
        (tailer, read)
    });
    again.reached().await;
    w1.truncate(w1.tenure().acknowledged()).await.unwrap();
    again.release();
    let (mut tailer, read) = reading.await.unwrap();
    assert!(matches!(read, Err(Error::Behind { .. })), "{read:?}");
    tailer.restart();
    assert!(tailer.next().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_failed_read_is_not_passed_over() {
    let bucket = with_entries(0..100).await;
    let process = bucket.attempts(1);
    process.faults.on(Op::Get).path_contains("/wal/").nth(50).times(5).then(Fault::Fail);
    let mut tailer = WalTailer::new(process.shard.clone());
    let mut ids = Vec::new();
    let mut failures = 0;
    loop {
        match tailer.next().await {
            Ok(Some(entry)) => ids.extend(ids_of(&entry)),
            Ok(None) => break,
            Err(error) => {
                assert!(matches!(error, Error::Store { .. }), "{error}");
                failures += 1;
            }
        }
    }
    assert!(failures > 0);
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_damaged_entry_is_not_passed_over_either() {
    let bucket = with_entries(0..10).await;
    bucket.write(&bucket.entry_path(5), "garbage".into()).await;
    let mut tailer = WalTailer::new(bucket.shard());
    let mut ids = Vec::new();
    for _ in 0..30 {
        match tailer.next().await {
            Ok(Some(entry)) => ids.extend(ids_of(&entry)),
            Ok(None) => panic!("the log does not end here"),
            Err(error) => assert!(error.to_string().contains(bucket.entry_path(5).as_ref()), "{error}"),
        }
    }
    assert_eq!(ids, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_was_dropped_half_way_loses_nothing() {
    let bucket = with_entries(0..40).await;
    let process = bucket.patient();
    let mut tailer = WalTailer::new(process.shard.clone());
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.extend(ids_of(&tailer.next().await.unwrap().unwrap()));
    }
    // The GETs under way hang from here on; whoever waits for one gives up, several times.
    let gate = process.faults.on(Op::Get).path_contains("/wal/").always().stall();
    while let Ok(entry) = tokio::time::timeout(Duration::from_millis(10), tailer.next()).await {
        ids.extend(ids_of(&entry.unwrap().unwrap()));
    }
    for _ in 0..3 {
        assert!(tokio::time::timeout(Duration::from_millis(10), tailer.next()).await.is_err());
    }
    gate.release();
    ids.extend(read_all(&mut tailer).await);
    assert_eq!(ids, (0..40).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_sentinel_whose_check_failed_or_was_dropped_still_counts() {
    for dropped in [false, true] {
        let bucket = with_entries(0..3).await;
        let w2 = bucket.process().appender().await;
        bucket.copy_entry(2, w2.next_position().get()).await;
        let process = if dropped { bucket.patient() } else { bucket.attempts(1) };
        let mut tailer = WalTailer::new(process.shard.clone());
        for expected in 0..3 {
            assert_eq!(ids_of(&tailer.next().await.unwrap().unwrap()), [expected]);
        }
        // The tailer meets the sentinel at 5, and the manifest cannot be read.
        let rule = process.faults.on(Op::List).path_contains("/manifest");
        match dropped {
            false => {
                rule.then(Fault::Fail);
                assert!(matches!(tailer.next().await, Err(Error::Store { .. })));
            }
            true => {
                let gate = rule.stall();
                let mut reading = Box::pin(tailer.next());
                while gate.arrivals() == 0 {
                    must_wait(&mut reading).await;
                    settle().await;
                }
                drop(reading);
            }
        }
        // Behind it stands a straggler of epoch 1, which is dead because of that sentinel.
        assert_eq!(read_all(&mut tailer).await, [0; 0], "dropped: {dropped}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tailer_writes_nothing_and_fences_nobody() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    let process = bucket.process();
    let mut tailer = WalTailer::new(process.shard.clone());
    for id in 0..5 {
        append(&mut w1, [id]).await.unwrap();
        assert_eq!(read_all(&mut tailer).await, [id]);
    }
    assert!(process.faults.log().iter().all(|r| matches!(r.op, Op::Get | Op::List)));
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_does_not_exist_is_an_error() {
    let bucket = bucket().await;
    let nowhere = Shard::new(bucket.shard().store().clone(), ShardId::new_random());
    assert!(matches!(WalTailer::new(nowhere).next().await, Err(Error::ShardNotFound { .. })));
}
