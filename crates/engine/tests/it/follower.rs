//! Followers: they keep up with whatever other processes do to a table, never go back, and never show a row that was not
//! acknowledged. Rounds are asked for by the tests; what has to happen in the middle of one waits at a gate.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use fencepost::wal::{Error as WalError, Position};
use fencepost::{
    Error, Follower, FollowerConfig, FollowerState, Result, ShardId, Store, Table, TableOptions, TableSnapshot,
    TableWriter, WriterConfig, Written,
};
use fencepost_sim::{CountingStore, Gate, Op, Rng};
use object_store::ObjectStoreExt;
use tokio::task::JoinHandle;

use crate::gc::gc;
use crate::merge::merge;
use crate::support::*;

type Rows = Vec<(i64, Option<i64>)>;

/// It moves when it is told to.
fn by_hand() -> FollowerConfig {
    FollowerConfig { polling: false, min_poll: Duration::from_millis(1), ..FollowerConfig::default() }
}

impl Process {
    async fn follower(&self) -> Follower {
        self.table().await.follow(by_hand()).await.unwrap()
    }

    async fn table_writer(&self, config: WriterConfig) -> TableWriter {
        self.table().await.writer(config).await.unwrap()
    }
}

async fn seen(follower: &Follower) -> Rows {
    pairs(follower.snapshot().unwrap().provider()).await
}

/// `None`: an SSTable of the snapshot has been collected since.
async fn seen_unless_collected(follower: &Follower) -> Option<Rows> {
    match try_sql(&follower.snapshot().unwrap().provider(), "select id, v from t order by id, v").await {
        Ok(rows) => Some(rows.iter().map(|row| (row[0].parse().unwrap(), row[1].parse().ok())).collect()),
        Err(error) if fencepost::is_collected(&error) => None,
        Err(error) => panic!("{error:?}"),
    }
}

async fn seen_in(snapshot: &TableSnapshot) -> Rows {
    pairs(snapshot.provider()).await
}

async fn seen_now(follower: &Follower) -> Rows {
    follower.refresh().await.unwrap();
    seen(follower).await
}

fn one(state: &FollowerState) -> fencepost::ShardLag {
    assert_eq!(state.shards.len(), 1);
    state.shards[0]
}

/// A refresh of this follower in a task.
fn refreshing(follower: &Arc<Follower>) -> JoinHandle<Result<FollowerState>> {
    let follower = Arc::clone(follower);
    tokio::spawn(async move { follower.refresh().await })
}

#[tokio::test]
async fn a_follower_keeps_up_and_writes_nothing() {
    for buckets in [1, 3] {
        for keyed in [true, false] {
            let bucket = Bucket::new();
            let key: &[&str] = if keyed { &["id"] } else { &[] };
            let sharding = if buckets == 1 { "unsharded".to_owned() } else { format!("bucket(id,{buckets})") };
            create(&bucket, key, &sharding).await;
            let process = bucket.process();
            let follower = process.follower().await;
            assert_eq!(seen(&follower).await, []);
            let writer = bucket.process().table_writer(config()).await;
            let mut held = vec![];
            for n in 0..4 {
                writer.put(ids(10 * n..10 * n + 10)).await.unwrap();
                assert_eq!(seen_now(&follower).await, id_pairs(0..10 * n + 10));
                held.push(follower.snapshot().unwrap());
                match n {
                    0 | 2 => writer.flush().await.unwrap(),
                    _ => drop(merge(&bucket.table().await).await),
                }
                assert_eq!(seen_now(&follower).await, id_pairs(0..10 * n + 10), "after a flush or a merge");
                gc(&bucket).await;
                assert_eq!(seen_now(&follower).await, id_pairs(0..10 * n + 10), "after a collection");
            }
            if keyed {
                writer.delete(keys(&[3, 17])).await.unwrap();
                let left: Rows = id_pairs(0..40).into_iter().filter(|(id, _)| *id != 3 && *id != 17).collect();
                assert_eq!(seen_now(&follower).await, left);
            }
            // What was taken from memory and base table stays as it was.
            for (n, snapshot) in (0..).zip(&held) {
                if n == 0 {
                    assert_eq!(seen_in(snapshot).await, id_pairs(0..10));
                }
            }
            writer.put(ids(40..41)).await.unwrap();
            writer.close().await.unwrap();
            let writes = process.faults.log().into_iter().filter(|r| !matches!(r.op, Op::Get | Op::Head | Op::List));
            assert_eq!(writes.collect::<Vec<_>>(), []);
            follower.close().await;
        }
    }
}

#[tokio::test]
async fn entries_are_read_once_and_a_round_with_nothing_new_costs_little() {
    for buckets in [1, 4, 16] {
        let bucket = Bucket::new();
        keyed(&bucket, buckets).await;
        let writer = bucket.process().table_writer(config()).await;
        for n in 0..20 {
            writer.put(ids(50 * n..50 * n + 50)).await.unwrap();
        }
        let counting = CountingStore::new(bucket.inner());
        let counts = counting.counts();
        let table = Table::open(bucket.store(Arc::new(counting))).await.unwrap();
        let follower = table.follow(by_hand()).await.unwrap();
        follower.refresh().await.unwrap();
        let shards = u64::from(buckets);

        let before = counts.snapshot();
        follower.refresh().await.unwrap();
        let idle = counts.snapshot() - before;
        println!("a round with nothing new, {buckets} shards: {idle:?}");
        assert_eq!(idle.put + idle.delete, 0);
        // docs/figures.md: two LISTs for the newest base version and the shards, and for each shard the GET of the position
        // behind its last entry, and the LIST of its manifests.
        assert_eq!((idle.get, idle.list, idle.head), (shards, shards + 2, 0), "{idle:?}");

        // A put of one row: its entry, and because there is one, another position is read ahead.
        writer.put(rows(&[(1, 100)])).await.unwrap();
        let before = counts.snapshot();
        follower.refresh().await.unwrap();
        let found = counts.snapshot() - before;
        println!("a round that finds an entry, {buckets} shards: {found:?}");
        assert_eq!((found.get, found.list), (idle.get + 2, idle.list), "{found:?}");

        // A snapshot costs nothing, and neither does the state.
        let before = counts.snapshot();
        let snapshot = follower.snapshot().unwrap();
        assert!(follower.state().is_up_to_date());
        assert_eq!((counts.snapshot() - before).requests(), 0);
        assert_eq!(seen_in(&snapshot).await.len(), 1000);
    }
}

#[tokio::test]
async fn rows_that_were_flushed_leave_its_memory_and_are_there_once() {
    for keyed in [true, false] {
        let bucket = Bucket::new();
        create(&bucket, if keyed { &["id"] } else { &[] }, "unsharded").await;
        let writer = bucket.process().writer(config()).await;
        let follower = bucket.process().follower().await;
        writer.put(ids(0..1000)).await.unwrap();
        let full = follower.refresh().await.unwrap();
        assert!(full.memory_bytes > 1000 * 16, "{full:?}");
        writer.flush().await.unwrap();
        writer.put(ids(1000..1010)).await.unwrap();
        let before = follower.snapshot().unwrap();
        let flushed = follower.refresh().await.unwrap();
        assert!(flushed.memory_bytes < full.memory_bytes / 10, "{flushed:?} after {full:?}");
        assert_eq!(seen(&follower).await, id_pairs(0..1010));
        assert_eq!(seen_in(&before).await, id_pairs(0..1000));
        drop(follower);
    }
}

#[tokio::test]
async fn read_your_writes_from_another_process() {
    let bucket = Bucket::new();
    keyed(&bucket, 4).await;
    let writer = bucket.process().table_writer(config()).await;
    let follower = bucket.process().follower().await;
    let second = Duration::from_secs(30);
    let mut all = Written::default();
    for n in 0..5 {
        let written = writer.put(ids(10 * n..10 * n + 10)).await.unwrap();
        assert!(written.positions().len() > 1);
        // An older snapshot does not have them.
        assert_eq!(seen(&follower).await, id_pairs(0..10 * n));
        let snapshot = follower.wait_for(&written, second).await.unwrap();
        assert_eq!(seen_in(&snapshot).await, id_pairs(0..10 * n + 10));
        all = all.and(written);
    }
    // Nothing to wait for: no request, whatever the timeout.
    follower.wait_for(&all, Duration::ZERO).await.unwrap();
    follower.wait_for(&Written::default(), Duration::ZERO).await.unwrap();
    // Also if it is flushed and collected before anybody looks.
    let written = writer.put(ids(50..60)).await.unwrap();
    writer.flush().await.unwrap();
    gc(&bucket).await;
    let snapshot = follower.wait_for(&written, second).await.unwrap();
    assert_eq!(seen_in(&snapshot).await, id_pairs(0..60));

    let deleted = writer.delete(keys(&[0, 1, 2, 3])).await.unwrap();
    let snapshot = follower.wait_for(&deleted, second).await.unwrap();
    assert_eq!(seen_in(&snapshot).await, id_pairs(4..60));
}

#[tokio::test]
async fn what_does_not_come_in_time_is_an_error_that_says_how_far_it_is() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let writer = bucket.process().writer(config()).await;
    let config = FollowerConfig { max_wait: Duration::from_secs(1), max_waiting: 1, ..by_hand() };
    let follower = process.table().await.follow(config).await.unwrap();
    let written = writer.put(ids(0..5)).await.unwrap();

    // It cannot reach the log.
    let rule = process.faults.on(Op::Get).path_contains("/wal/").always().stall();
    let short = Duration::from_millis(20);
    let error = follower.wait_for(&written, short).await.unwrap_err();
    let Error::NotReached { position, reached: Some(reached), .. } = &error else { panic!("{error:?}") };
    assert!(reached < position, "{error}");
    assert!(error.to_string().contains("it is at 0") || error.to_string().contains("it is at 1"), "{error}");

    let too_long = follower.wait_for(&written, Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(&too_long, Error::InvalidOptions(text) if text.contains("max_wait")), "{too_long}");
    let mut waiting = Box::pin(follower.wait_for(&written, Duration::from_secs(1)));
    assert!(futures::poll!(&mut waiting).is_pending());
    let too_many = follower.wait_for(&written, short).await.unwrap_err();
    assert!(matches!(&too_many, Error::NotSupported(text) if text.contains("max_waiting")), "{too_many}");
    rule.release();
    assert_eq!(seen_in(&waiting.await.unwrap()).await, id_pairs(0..5));

    // A shard that is not there.
    let other = Bucket::new();
    keyed(&other, 1).await;
    let elsewhere = other.process().writer(crate::support::config()).await.put(ids(0..1)).await.unwrap();
    let error = follower.wait_for(&elsewhere, short).await.unwrap_err();
    assert!(error.to_string().contains("knows no such shard"), "{error}");
}

#[tokio::test]
async fn it_says_how_far_behind_it_is() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    let process = bucket.process();
    let follower = process.follower().await;
    writer.put(ids(0..5)).await.unwrap();
    let state = follower.refresh().await.unwrap();
    assert!(state.is_up_to_date() && state.positions_behind() == 0 && !state.is_full, "{state:?}");
    assert_eq!(one(&state).position, Position::new(2), "the sentinel, and an entry");

    // The store does not answer: the state of before stays, and time goes on.
    let number = state.number;
    let rule = process.faults.on_any([Op::Get, Op::List]).always().then(fencepost_sim::Fault::Fail);
    writer.put(ids(5..9)).await.unwrap();
    let error = follower.refresh().await.unwrap_err();
    assert!(matches!(error, Error::NotRefreshed { .. }), "{error}");
    let behind = follower.state();
    assert!(behind.last_error.is_some() && !behind.is_up_to_date(), "{behind:?}");
    assert!(behind.behind_for > Duration::ZERO && behind.number == number, "{behind:?}");
    rule.cancel();
    assert_eq!(seen_in(&follower.snapshot().unwrap()).await, id_pairs(0..5));
    let state = follower.refresh().await.unwrap();
    assert!(state.is_up_to_date() && state.last_error.is_none() && state.number > number, "{state:?}");
    assert!(state.behind_for < behind.behind_for + Duration::from_secs(60), "{state:?}");
    let same = follower.refresh().await.unwrap();
    assert_eq!(same.number, state.number, "nothing has changed");
    assert_eq!(seen(&follower).await, id_pairs(0..9));
}

#[tokio::test]
async fn its_memory_is_bounded_and_a_flush_lets_it_go_on() {
    for buckets in [1, 3] {
        let bucket = Bucket::new();
        keyed(&bucket, buckets).await;
        let writer = bucket.process().table_writer(config()).await;
        const WIDE: usize = 10_000;
        let mut last = Written::default();
        for id in 0..100 {
            last = last.and(writer.put(wide_row(id, WIDE)).await.unwrap());
        }
        // A tenth of what there is, and an entry of each shard on top.
        let max_bytes = 10 * WIDE;
        let most = max_bytes + buckets as usize * 2 * WIDE;
        let config = FollowerConfig { max_bytes, ..by_hand() };
        let follower = bucket.process().table().await.follow(config).await.unwrap();
        let state = follower.state();
        assert!(state.is_full && !state.is_up_to_date(), "{state:?}");
        assert!(state.memory_bytes <= most && state.memory_bytes >= max_bytes, "{state:?}");
        let rows = seen(&follower).await;
        assert!(rows.len() >= 8 && rows.len() <= 20, "{rows:?}");
        assert_eq!(state.positions_behind() as usize, 100 - rows.len(), "{state:?}");
        // As long as nobody flushes it stays where it is, and knows how far the log goes.
        writer.put(wide_row(100, WIDE)).await.unwrap();
        let state = follower.refresh().await.unwrap();
        assert_eq!((state.is_full, state.positions_behind() as usize), (true, 101 - rows.len()), "{state:?}");
        assert_eq!(seen(&follower).await, rows);
        let error = follower.wait_for(&last, Duration::from_millis(5)).await.unwrap_err();
        assert!(error.to_string().contains("max_bytes"), "{error}");

        writer.flush().await.unwrap();
        let state = follower.refresh().await.unwrap();
        assert!(state.is_up_to_date() && !state.is_full && state.memory_bytes < WIDE, "{state:?}");
        assert_eq!(seen(&follower).await, id_pairs(0..101));
        writer.put(wide_row(101, WIDE)).await.unwrap();
        assert_eq!(seen_now(&follower).await, id_pairs(0..102));
    }
}

#[tokio::test]
async fn limits_that_make_no_sense_are_refused() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 1).await;
    let good = FollowerConfig::default;
    for (config, name) in [
        (FollowerConfig { min_poll: Duration::ZERO, ..good() }, "min_poll"),
        (FollowerConfig { min_poll: Duration::from_secs(3), ..good() }, "max_poll"),
        (FollowerConfig { max_bytes: 0, ..good() }, "max_bytes"),
        (FollowerConfig { max_waiting: 0, ..good() }, "max_waiting"),
    ] {
        let error = table.follow(config).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidOptions(text) if text.contains(name)), "{error}");
    }
}

/// By itself: what comes is seen without anybody's asking.
#[tokio::test]
async fn it_asks_by_itself() {
    let bucket = Bucket::new();
    keyed(&bucket, 2).await;
    let writer = bucket.process().table_writer(config()).await;
    let config = FollowerConfig {
        min_poll: Duration::from_millis(1),
        max_poll: Duration::from_millis(20),
        ..FollowerConfig::default()
    };
    let follower = bucket.process().table().await.follow(config).await.unwrap();
    let mut number = follower.state().number;
    for n in 0..5 {
        writer.put(ids(10 * n..10 * n + 10)).await.unwrap();
        // The two shards may come one after the other.
        while seen(&follower).await != id_pairs(0..10 * n + 10) {
            number = soon("a change", follower.changed_since(number)).await.unwrap().number;
        }
    }
    soon("the end", follower.close()).await;
}

/// The pauses grow: half a minute of nothing is some fifteen rounds, not three hundred.
#[tokio::test(start_paused = true)]
async fn it_asks_less_often_when_nothing_happens() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let follower = process.table().await.follow(FollowerConfig::default()).await.unwrap();
    process.faults.clear_log();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let rounds = process.faults.log().iter().filter(|r| r.op == Op::List && r.path.ends_with("_mem_wal")).count();
    assert!((2..=24).contains(&rounds), "{rounds}");
    follower.close().await;
}

#[tokio::test]
async fn shards_that_are_made_later_are_found() {
    let bucket = Bucket::new();
    create(&bucket, &["id"], "identity(id)").await;
    let follower = bucket.process().follower().await;
    assert_eq!(follower.state().shards, []);
    let writer = bucket.process().table_writer(config()).await;
    for id in 0..4 {
        let written = writer.put(ids(id..id + 1)).await.unwrap();
        let snapshot = follower.wait_for(&written, Duration::from_secs(30)).await.unwrap();
        assert_eq!(seen_in(&snapshot).await, id_pairs(0..id + 1));
        assert_eq!(follower.state().shards.len(), id as usize + 1);
    }
}

#[tokio::test]
async fn a_table_with_other_buckets_is_followed_into_them() {
    let bucket = Bucket::new();
    keyed(&bucket, 2).await;
    let writer = bucket.process().table_writer(config()).await;
    writer.put(ids(0..40)).await.unwrap();
    let follower = bucket.process().follower().await;
    let before = follower.snapshot().unwrap();
    let last = writer.put(ids(40..50)).await.unwrap();
    bucket.table().await.reshard(4, config()).await.unwrap();
    // The shards that it was written to are not the table's any more: what they had is in the new ones.
    let snapshot = follower.wait_for(&last, Duration::from_secs(30)).await.unwrap();
    assert_eq!(seen_in(&snapshot).await, id_pairs(0..50));
    assert_eq!(follower.state().shards.len(), 4);
    let writer = bucket.process().table_writer(config()).await;
    writer.put(ids(50..60)).await.unwrap();
    assert_eq!(seen_now(&follower).await, id_pairs(0..60));
    writer.close().await.unwrap();
    bucket.table().await.reshard(1, config()).await.unwrap();
    merge(&bucket.table().await).await;
    gc(&bucket).await;
    assert_eq!(seen_now(&follower).await, id_pairs(0..60));
    assert_eq!(follower.state().shards.len(), 1);
    assert_eq!(seen_in(&before).await, id_pairs(0..40));
    follower.wait_for(&last, Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_deleted_table_ends_it() {
    for purge in [false, true] {
        let bucket = Bucket::new();
        keyed(&bucket, 2).await;
        let writer = bucket.process().table_writer(config()).await;
        let written = writer.put(ids(0..4)).await.unwrap();
        drop(writer);
        let polls = FollowerConfig {
            min_poll: Duration::from_millis(1),
            max_poll: Duration::from_millis(5),
            ..FollowerConfig::default()
        };
        let (by_hand, by_itself) =
            (bucket.process().follower().await, bucket.process().table().await.follow(polls).await.unwrap());
        let options = fencepost::DeleteOptions { purge, ..fencepost::DeleteOptions::default() };
        Table::delete(bucket.process().store, &options).await.unwrap();
        let is_end = |error: Error| assert!(matches!(error, Error::FollowerEnded { .. }), "purge {purge}: {error:?}");
        is_end(by_hand.refresh().await.unwrap_err());
        is_end(by_hand.refresh().await.unwrap_err());
        is_end(by_hand.snapshot().unwrap_err());
        is_end(by_hand.wait_for(&written, Duration::from_secs(1)).await.unwrap_err());
        is_end(soon("the end", by_itself.changed_since(u64::MAX)).await.unwrap_err());
        soon("its close", by_itself.close()).await;
    }
}

#[tokio::test]
async fn a_table_whose_log_is_elsewhere_is_followed_also_where_it_moves() {
    let name = uuid::Uuid::new_v4();
    let store = |place: &str| Store::open(&format!("memory://{name}/{place}"), &HashMap::new()).unwrap();
    let options = TableOptions { primary_key: vec!["id".to_owned()], sharding: "bucket(id,2)".parse().unwrap() };
    let table = Table::create_with_wal_store(store("t"), store("w"), schema(), options).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    writer.put(ids(0..20)).await.unwrap();
    let follower = Table::open(store("t")).await.unwrap().follow(by_hand()).await.unwrap();
    assert_eq!(seen(&follower).await, id_pairs(0..20));
    writer.put(ids(20..30)).await.unwrap();
    assert_eq!(seen_now(&follower).await, id_pairs(0..30));
    writer.close().await.unwrap();

    // To another store, while it does not look, and while it does.
    for (n, place) in [(30, "w2"), (40, "w3")] {
        let moved = Table::open_with_wal_store(store("t"), store(place)).await.unwrap();
        let writer = moved.writer(config()).await.unwrap();
        if n == 40 {
            assert_eq!(seen_now(&follower).await, id_pairs(0..n));
        }
        let written = writer.put(ids(n..n + 10)).await.unwrap();
        let snapshot = follower.wait_for(&written, Duration::from_secs(30)).await.unwrap();
        assert_eq!(seen_in(&snapshot).await, id_pairs(0..n + 10));
        writer.close().await.unwrap();
    }
    table.merge(&crate::merge::options(), |_| ()).await.unwrap();
    table.gc(&crate::gc::at_once(), |_| ()).await.unwrap();
    assert_eq!(seen_now(&follower).await, id_pairs(0..50));
}

/// 24: acknowledged rows were flushed and collected behind the follower's back, and a zombie's bytes stand where it would
/// read next.
#[tokio::test]
async fn schedule_24_a_follower_of_a_table_does_not_take_a_zombie_in_a_hole_for_the_end() {
    for keyed in [true, false] {
        let bucket = Bucket::new();
        create(&bucket, if keyed { &["id"] } else { &[] }, "unsharded").await;
        let w1 = bucket.process().writer(config()).await;
        w1.put(ids(0..2)).await.unwrap();
        let follower = bucket.process().follower().await;
        let next = one(&follower.state()).position.get() + 1;
        let path = |position: u64| {
            let shard = fencepost::wal::Shard::new(bucket.process().store, w1.shard_id());
            shard.entry_path(Position::new(position))
        };
        // The claim of a writer that will stall before its sentinel is what the first one left: its bytes, epoch 1.
        let sentinel = bucket.inner().get(&path(1)).await.unwrap().bytes().await.unwrap();
        w1.put(ids(2..4)).await.unwrap();
        let w2 = bucket.process().writer(config()).await;
        w2.put(ids(4..6)).await.unwrap();
        w2.flush().await.unwrap();
        w2.put(ids(6..7)).await.unwrap();
        gc(&bucket).await;
        let hole = path(next);
        assert!(bucket.inner().head(&hole).await.is_err(), "it was collected");
        bucket.inner().put(&hole, sentinel.into()).await.unwrap();

        assert_eq!(seen_now(&follower).await, id_pairs(0..7));
        let state = follower.state();
        assert!(state.is_up_to_date() && one(&state).position.get() > next, "{state:?}");
        w2.put(ids(7..8)).await.unwrap();
        assert_eq!(seen_now(&follower).await, id_pairs(0..8));
    }
}

/// A writer that was taken over from has PUTs on the wire; one lands behind its successor's sentinel, one in a hole that
/// a collection made.
#[tokio::test]
async fn what_a_replaced_writer_sends_late_is_never_seen() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let old = bucket.process();
    let mut window = config();
    window.wal.max_in_flight = 4;
    let w1 = Arc::new(old.writer(window).await);
    // Beyond the serial zone.
    for id in 0..40 {
        w1.put(ids(id..id + 1)).await.unwrap();
    }
    let follower = bucket.process().follower().await;
    assert_eq!(seen(&follower).await, id_pairs(0..40));
    // The next PUT never gets there, the one behind it does, and the third is late.
    let first = old.faults.on(Op::Create).path_contains("/wal/").stall();
    let third = old.faults.on(Op::Create).path_contains("/wal/").nth(3).stall();
    let mut puts = vec![];
    for id in [1000, 1001, 1002] {
        let w1 = Arc::clone(&w1);
        let arrivals = old.faults.count(Op::Create);
        puts.push(tokio::spawn(async move { w1.put(ids(id..id + 1)).await }));
        soon("its PUT", async {
            while old.faults.count(Op::Create) == arrivals {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    soon("two to stall", async { (first.reached().await, third.reached().await) }).await;
    // What has landed behind a gap is not acknowledged, and not seen.
    assert_eq!(seen_now(&follower).await, id_pairs(0..40));

    let w2 = bucket.process().writer(config()).await;
    assert_eq!(seen_now(&follower).await, id_pairs(0..40));
    for id in 40..44 {
        w2.put(ids(id..id + 1)).await.unwrap();
        assert_eq!(seen_now(&follower).await, id_pairs(0..id + 1));
    }
    w2.flush().await.unwrap();
    gc(&bucket).await;
    third.release();
    first.release();
    for put in puts {
        let answer = soon("its answer", put).await.unwrap();
        assert!(matches!(answer, Err(Error::Wal(WalError::Fenced { .. }))), "{answer:?}");
    }
    assert_eq!(seen_now(&follower).await, id_pairs(0..44));
    w2.put(ids(44..45)).await.unwrap();
    assert_eq!(seen_now(&follower).await, id_pairs(0..45));
    assert_eq!(bucket.seen().await, id_pairs(0..45));
    // One that begins now sees the same.
    assert_eq!(seen(&bucket.process().follower().await).await, id_pairs(0..45));
}

/// A round is stopped before each of its requests in turn, while the table is flushed, merged and collected.
#[tokio::test]
async fn a_round_that_sleeps_anywhere_over_flush_merge_and_gc_shows_every_row_once() {
    for keyed in [true, false] {
        for nth in 1..30 {
            let bucket = Bucket::new();
            create(&bucket, if keyed { &["id"] } else { &[] }, "unsharded").await;
            let writer = bucket.process().writer(config()).await;
            writer.put(ids(0..3)).await.unwrap();
            let process = bucket.process();
            let follower = Arc::new(process.follower().await);
            writer.put(ids(3..6)).await.unwrap();
            let gate = process.faults.on_any([Op::Get, Op::Head, Op::List]).nth(nth).stall_after();
            let round = refreshing(&follower);
            if !reached_or_done(&gate, &round).await {
                round.await.unwrap().unwrap();
                assert!(nth > 4, "so few requests");
                break;
            }
            writer.flush().await.unwrap();
            writer.put(ids(6..9)).await.unwrap();
            merge(&bucket.table().await).await;
            gc(&bucket).await;
            writer.flush().await.unwrap();
            writer.put(ids(9..12)).await.unwrap();
            gate.release();
            soon("the round", round).await.unwrap().unwrap();
            if let Some(rows) = seen_unless_collected(&follower).await {
                assert!([6, 9, 12].iter().any(|n| rows == id_pairs(0..*n)), "stopped at {nth}: {rows:?}");
            }
            assert_eq!(seen_now(&follower).await, id_pairs(0..12), "stopped at {nth}");
        }
    }
}

/// Whether the gate was reached before the refresh ended.
async fn reached_or_done<T>(gate: &Gate, task: &JoinHandle<T>) -> bool {
    soon("the gate, or the end", async {
        while gate.arrivals() == 0 && !task.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    gate.arrivals() > 0
}

/// A query is in the middle of an SSTable when that is collected: it fails, and the next snapshot has the rows elsewhere.
#[tokio::test]
async fn an_sstable_that_vanishes_under_a_query_is_in_the_next_snapshot_no_more() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    writer.put(ids(0..10)).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(ids(10..20)).await.unwrap();
    let process = bucket.process();
    let follower = Arc::new(process.follower().await);
    let old = follower.snapshot().unwrap();
    // Its query opens the SSTable's dataset, and sleeps.
    let gate = process.faults.on_any([Op::Get, Op::Head, Op::List]).path_contains("_gen_").stall();
    let query = tokio::spawn({
        let provider = old.provider();
        async move { try_sql(&provider, "select id, v from t").await }
    });
    soon("the query", gate.reached()).await;
    merge(&bucket.table().await).await;
    gc(&bucket).await;
    gate.release();
    let error = soon("its answer", query).await.unwrap().unwrap_err();
    assert!(fencepost::is_collected(&error), "{error:?}");
    // The round itself opens no SSTable: also one that began before the collection goes on.
    assert_eq!(seen_now(&follower).await, id_pairs(0..20));
    let other = try_sql(&follower.snapshot().unwrap().provider(), "select nothing from t").await.unwrap_err();
    assert!(!fencepost::is_collected(&other), "{other:?}");
}

/// A round that was given up half way is gone on with, and nothing is lost or doubled by it.
#[tokio::test]
async fn a_refresh_may_be_given_up_anywhere() {
    for nth in 1..40 {
        let bucket = Bucket::new();
        keyless(&bucket, 2).await;
        let writer = bucket.process().table_writer(config()).await;
        let process = bucket.process();
        let follower = Arc::new(process.follower().await);
        for n in 0..4 {
            writer.put(ids(10 * n..10 * n + 10)).await.unwrap();
            if n == 1 {
                writer.flush().await.unwrap();
            }
        }
        let gate = process.faults.on_any([Op::Get, Op::Head, Op::List]).nth(nth).stall();
        let round = refreshing(&follower);
        let stalled = reached_or_done(&gate, &round).await;
        round.abort();
        let _ = round.await;
        gate.release();
        assert_eq!(seen_now(&follower).await, id_pairs(0..40), "given up at {nth}");
        if !stalled {
            assert!(nth > 8, "so few requests");
            return;
        }
    }
    panic!("more requests than were tried");
}

/// What was acknowledged to one shard, in order: the rows that each call put (`None`: deleted).
#[derive(Default)]
struct History {
    calls: Vec<Vec<(i64, Option<i64>)>>,
    /// So many of them the follower has shown.
    shown: usize,
}

impl History {
    fn rows(&self, calls: usize, keyed: bool) -> Rows {
        let mut rows: Rows = vec![];
        for (id, v) in self.calls[..calls].iter().flatten() {
            if keyed {
                rows.retain(|row| row.0 != *id);
            }
            rows.extend(v.map(|v| (*id, Some(v))));
        }
        rows.sort_unstable();
        rows
    }
}

/// A keyed or keyless table of some buckets, its writer, its zombies, and a follower.
struct World {
    bucket: Bucket,
    keyed: bool,
    shard_of: HashMap<i64, ShardId>,
    histories: BTreeMap<ShardId, History>,
    process: Process,
    writer: TableWriter,
    zombies: Vec<(Gate, JoinHandle<Result<Written>>)>,
    reader: Process,
    follower: Arc<Follower>,
    next_value: i64,
    last: Written,
    trace: Vec<String>,
}

const KEYS: i64 = 9;

impl World {
    async fn new(keyed: bool, buckets: u32) -> Self {
        let bucket = Bucket::new();
        let sharding = if buckets == 1 { "unsharded".to_owned() } else { format!("bucket(id,{buckets})") };
        create(&bucket, if keyed { &["id"] } else { &[] }, &sharding).await;
        let process = bucket.process();
        let writer = process.table_writer(small(7)).await;
        let reader = bucket.process();
        let follower = Arc::new(reader.follower().await);
        let (histories, shard_of, last) = (BTreeMap::new(), HashMap::new(), Written::default());
        let (zombies, trace) = (vec![], vec![]);
        let mut world = Self {
            bucket,
            keyed,
            shard_of,
            histories,
            process,
            writer,
            zombies,
            reader,
            follower,
            next_value: 0,
            last,
            trace,
        };
        for id in 0..KEYS {
            let written = world.writer.put(rows(&[(id, -1)])).await.unwrap();
            let (shard, _) = written.positions().next().unwrap();
            world.shard_of.insert(id, shard);
            world.histories.entry(shard).or_default().calls.push(vec![(id, Some(-1))]);
            world.last = world.last.and(written);
        }
        world
    }

    fn acknowledged(&mut self, changes: &[(i64, Option<i64>)], written: Written) {
        let mut by_shard: BTreeMap<ShardId, Vec<(i64, Option<i64>)>> = BTreeMap::new();
        for change in changes {
            by_shard.entry(self.shard_of[&change.0]).or_default().push(*change);
        }
        for (shard, changes) in by_shard {
            self.histories.get_mut(&shard).unwrap().calls.push(changes);
        }
        self.last = self.last.clone().and(written);
    }

    async fn act(&mut self, rng: &mut Rng) {
        match rng.below(12) {
            0..5 => {
                let ids: Vec<i64> = (0..1 + rng.below(4)).map(|_| rng.below(KEYS as u64) as i64).collect();
                let changes: Vec<(i64, i64)> = ids.iter().zip(self.next_value..).map(|(id, v)| (*id, v)).collect();
                self.next_value += 10;
                self.trace.push(format!("put {changes:?}"));
                let written = self.writer.put(rows(&changes)).await.unwrap();
                let changes: Vec<_> = changes.into_iter().map(|(id, v)| (id, Some(v))).collect();
                self.acknowledged(&changes, written);
            }
            5 if self.keyed => {
                let ids: Vec<i64> = (0..1 + rng.below(3)).map(|_| rng.below(KEYS as u64) as i64).collect();
                self.trace.push(format!("delete {ids:?}"));
                let written = self.writer.delete(keys(&ids)).await.unwrap();
                let changes: Vec<_> = ids.into_iter().map(|id| (id, None)).collect();
                self.acknowledged(&changes, written);
            }
            5 | 6 => {
                self.trace.push("flush".into());
                self.writer.flush().await.unwrap();
            }
            7 => {
                self.trace.push("merge".into());
                merge(&self.bucket.table().await).await;
            }
            8 | 9 => {
                self.trace.push("gc".into());
                gc(&self.bucket).await;
            }
            10 => self.take_over(rng).await,
            _ => {
                self.trace.push("wake the zombies".into());
                self.wake_zombies().await;
            }
        }
    }

    /// Another process takes over; the old writer may have a PUT that sleeps through it.
    async fn take_over(&mut self, rng: &mut Rng) {
        let process = self.bucket.process();
        let zombie = rng.chance(0.6);
        self.trace.push(format!("take over, zombie: {zombie}"));
        let id = rng.below(KEYS as u64) as i64;
        let gate = zombie.then(|| self.process.faults.on(Op::Create).path_contains("/wal/").always().stall());
        let old = std::mem::replace(&mut self.writer, process.table_writer(small(7)).await);
        if let Some(gate) = gate {
            let put = tokio::spawn(async move { old.put(rows(&[(id, 1_000_000)])).await });
            // Its flush may have told it already.
            reached_or_done(&gate, &put).await;
            self.zombies.push((gate, put));
        }
        self.process = process;
    }

    async fn wake_zombies(&mut self) {
        for (gate, put) in std::mem::take(&mut self.zombies) {
            gate.release();
            let answer = soon("a zombie's answer", put).await.unwrap();
            assert!(answer.is_err(), "a writer that was taken over from acknowledges: {answer:?}");
        }
    }

    /// What the follower shows is a prefix of each shard's history, and none that it was beyond before.
    async fn check(&mut self, at_least_all: bool) {
        // A round that slept for long may end with an old moment.
        let Some(observed) = seen_unless_collected(&self.follower).await else {
            assert!(!at_least_all, "nobody has collected anything since\n{:#?}", self.trace);
            return;
        };
        let mut by_shard: BTreeMap<ShardId, Rows> = BTreeMap::new();
        for row in observed {
            by_shard.entry(self.shard_of[&row.0]).or_default().push(row);
        }
        for (shard, history) in &mut self.histories {
            let rows = by_shard.remove(shard).unwrap_or_default();
            let least = if at_least_all { history.calls.len() } else { history.shown };
            let found = (least..=history.calls.len()).find(|n| history.rows(*n, self.keyed) == rows);
            let Some(found) = found else {
                panic!(
                    "shard {shard}: {rows:?} are the state after no prefix of {least} calls or more of {:?}\n{:#?}",
                    history.calls, self.trace
                );
            };
            history.shown = found;
        }
    }
}

async fn history(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut world = World::new(seed.is_multiple_of(2), *rng.pick(&[1, 1, 3]).unwrap()).await;
    for _ in 0..30 {
        if rng.chance(0.45) {
            world.act(&mut rng).await;
            continue;
        }
        match rng.below(3) {
            0 => {
                world.trace.push("refresh".into());
                world.follower.refresh().await.unwrap();
                world.check(true).await;
            }
            1 => {
                world.trace.push("wait".into());
                let all = world.follower.wait_for(&world.last, Duration::from_secs(60)).await.unwrap();
                assert_eq!(all.base_version(), world.follower.snapshot().unwrap().base_version());
                // If it had come so far already, it did not ask.
                if seen_unless_collected(&world.follower).await.is_some() {
                    world.check(true).await;
                }
            }
            _ => {
                // A round that sleeps somewhere while other things happen.
                let nth = 1 + rng.below(14);
                world.trace.push(format!("a round that sleeps at its request {nth}"));
                let rule = world.reader.faults.on_any([Op::Get, Op::Head, Op::List]).nth(nth);
                let gate = if rng.chance(0.5) { rule.stall() } else { rule.stall_after() };
                let round = refreshing(&world.follower);
                reached_or_done(&gate, &round).await;
                for _ in 0..1 + rng.below(4) {
                    world.act(&mut rng).await;
                }
                gate.release();
                world.reader.faults.clear_rules();
                soon("the round", round).await.unwrap().unwrap();
                world.check(false).await;
            }
        }
    }
    world.wake_zombies().await;
    world.follower.refresh().await.unwrap();
    world.check(true).await;
}

/// `FENCEPOST_FOLLOWER_SEEDS=a..b`: these seeds.
#[tokio::test]
async fn random_histories_show_a_prefix_of_what_was_acknowledged_and_never_go_back() {
    let seeds = std::env::var("FENCEPOST_FOLLOWER_SEEDS").ok();
    let seeds = match seeds.as_deref().and_then(|text| text.split_once("..")) {
        Some((from, to)) => from.parse().unwrap()..to.parse().unwrap(),
        None => 0..16,
    };
    for seed in seeds {
        println!("seed {seed}");
        soon_or("a history", Duration::from_secs(300), history(seed)).await;
    }
}

async fn soon_or<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("{what}: still not done"))
}
