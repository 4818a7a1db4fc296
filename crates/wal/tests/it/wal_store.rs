//! A log outside its table (protocol section 10): where it goes, when it moves, and what a wrong, empty or lost store is
//! answered with.

use std::collections::HashMap;
use std::sync::Arc;

use fencepost_sim::{FaultStore, Gate, Op};
use fencepost_wal::gc::BaseProgress;
use fencepost_wal::{
    Error, IDENTITY_OBJECT, OpenOptions, Outcome, Position, Replay, Result, Shard, Store, VerifyOptions, WalAppender,
    WalTailer, checkpoint, verify,
};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::*;

/// A WAL store in memory. Others find it by its URL.
pub(crate) struct Disk {
    pub(crate) store: Store,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let url = format!("memory://disk-{}/w", Uuid::new_v4());
        Self { store: Store::open(&url, &HashMap::new()).unwrap() }
    }

    pub(crate) fn inner(&self) -> &Arc<dyn ObjectStore> {
        self.store.object_store()
    }

    pub(crate) async fn names(&self) -> Vec<Path> {
        self.inner().list(None).map_ok(|object| object.location).try_collect().await.unwrap()
    }

    pub(crate) async fn wipe(&self) {
        for name in self.names().await {
            self.inner().delete(&name).await.unwrap();
        }
    }

    /// The positions of a shard's entries.
    async fn positions(&self, shard: &Shard) -> Vec<u64> {
        let folder = format!("/{}/wal/", shard.id());
        let names = self.names().await;
        let names = names.iter().filter(|name| name.as_ref().contains(&folder));
        let mut found: Vec<u64> = names.filter_map(|name| number(name.filename()?)).collect();
        found.sort_unstable();
        found
    }

    fn entry_path(&self, shard: &Shard, position: u64) -> Path {
        let name = shard.entry_path(Position::new(position));
        Path::from(format!("w/_mem_wal/{}/wal/{}", shard.id(), name.filename().unwrap()))
    }
}

pub(crate) async fn copy(from: &Disk, to: &Disk) {
    for name in from.names().await {
        let bytes = from.inner().get(&name).await.unwrap().bytes().await.unwrap();
        to.inner().put(&name, bytes.into()).await.unwrap();
    }
}

fn number(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".arrow")?, 2).ok().map(u64::reverse_bits)
}

/// The positions of entries in the table's own store.
async fn own_positions(bucket: &Bucket) -> Vec<u64> {
    let names = bucket.names().await;
    let mut found: Vec<u64> =
        names.iter().filter(|n| n.contains("/wal/")).filter_map(|n| number(n.rsplit('/').next()?)).collect();
    found.sort_unstable();
    found
}

pub(crate) async fn open(bucket: &Bucket, disk: &Disk) -> Result<(WalAppender, Replay)> {
    open_with(bucket, disk, &OpenOptions::default()).await
}

async fn open_with(bucket: &Bucket, disk: &Disk, options: &OpenOptions) -> Result<(WalAppender, Replay)> {
    WalAppender::open(&bucket.shard().with_wal_store(disk.store.clone()), options).await
}

/// A writer that has recorded its takeover and is about to look whether the log can go on in the store.
pub(crate) async fn about_to_move(bucket: &Bucket, disk: &Disk) -> (Gate, JoinHandle<Result<(WalAppender, Replay)>>) {
    let faults = FaultStore::new(Arc::clone(disk.inner()));
    let gate = faults.on(Op::List).path_contains("/wal").stall();
    let patient = bucket.patient().shard;
    let retry = patient.store().retry().clone();
    let shard = patient.with_wal_store(disk.store.clone().wrapped(|_| faults.store()).with_retry(retry));
    let opening = tokio::spawn(async move { WalAppender::open(&shard, &OpenOptions::default()).await });
    gate.reached().await;
    (gate, opening)
}

fn abandon() -> OpenOptions {
    OpenOptions { abandon_wal_store: true, ..OpenOptions::default() }
}

/// Rows above R as somebody reads them who was told nothing of any WAL store.
async fn rows(bucket: &Bucket) -> Vec<i64> {
    bucket.rows().await
}

#[tokio::test(start_paused = true)]
async fn entries_go_to_the_store_that_was_given_and_all_else_stays() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let (mut writer, _) = open(&bucket, &disk).await.unwrap();
    for id in 1..=3 {
        append(&mut writer, [id]).await.unwrap();
    }
    let manifest = bucket.manifest().await;
    let recorded = manifest.wal_store().unwrap().clone();
    assert_eq!((recorded.url.as_str(), recorded.after), (disk.store.url().as_str(), Position::new(1)));
    assert_eq!((own_positions(&bucket).await, disk.positions(&bucket.shard()).await), (vec![1], vec![2, 3, 4]));
    let others: Vec<_> = disk.names().await.into_iter().filter(|name| !name.as_ref().contains("/wal/")).collect();
    assert_eq!(others, [Path::from(format!("w/{IDENTITY_OBJECT}"))]);
    assert_eq!(rows(&bucket).await, [1, 2, 3]);
    assert!(manifest.fences().is_empty(), "nobody had ever claimed the shard: {:?}", manifest.fences());

    // The next writer need not be told, and one that is told stays.
    writer.close().await.unwrap();
    let (writer, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [1, 2, 3]);
    drop(writer);
    let (mut writer, replay) = open(&bucket, &disk).await.unwrap();
    assert_eq!(replayed(replay).await, [1, 2, 3]);
    assert_eq!(append(&mut writer, [4]).await.unwrap(), Position::new(7));
    assert_eq!(bucket.manifest().await.wal_store(), Some(&recorded));
    assert_eq!((own_positions(&bucket).await, rows(&bucket).await), (vec![1], vec![1, 2, 3, 4]));
}

#[tokio::test(start_paused = true)]
async fn the_log_stays_while_rows_above_r_are_in_it() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let mut writer = bucket.process().appender().await;
    append(&mut writer, [1]).await.unwrap();
    let (mut writer, replay) = open(&bucket, &disk).await.unwrap();
    assert_eq!(replayed(replay).await, [1]);
    append(&mut writer, [2]).await.unwrap();
    assert_eq!((bucket.manifest().await.wal_store(), writer.tenure().log().wal_store()), (None, None));
    writer.truncate(Position::new(4)).await.unwrap();
    let (mut writer, _) = open(&bucket, &disk).await.unwrap();
    assert_eq!(append(&mut writer, [3]).await.unwrap(), Position::new(6));
    assert_eq!(disk.positions(&bucket.shard()).await, [6]);
    assert_eq!(rows(&bucket).await, [3]);
}

/// W1 stalls before PUT n in store A; W2 opens with store B. Without a sentinel in A, W1 would acknowledge.
#[tokio::test(start_paused = true)]
async fn schedule_19_a_writer_that_stalls_in_the_old_store_is_fenced_there() {
    for first_is_own in [true, false] {
        let (bucket, a, b) = (bucket().await, Disk::new(), Disk::new());
        let (w1, faults) = if first_is_own {
            let w1 = bucket.patient();
            (w1.shard.clone(), w1.faults)
        } else {
            let faults = FaultStore::new(Arc::clone(a.inner()));
            let shard = bucket.patient().shard;
            let retry = shard.store().retry().clone();
            let store = a.store.clone().wrapped(|_| faults.store()).with_retry(retry);
            (shard.with_wal_store(store), faults)
        };
        let (mut w1, _) = WalAppender::open(&w1, &OpenOptions::default()).await.unwrap();
        let flushed = append(&mut w1, [1]).await.unwrap();
        w1.truncate(flushed).await.unwrap();
        let gate = faults.on(Op::Create).path_contains("/wal/").stall();
        let stalled = tokio::spawn(async move { append(&mut w1, [2]).await });
        gate.reached().await;

        let (mut w2, _) = open(&bucket, &b).await.unwrap();
        append(&mut w2, [3]).await.unwrap();
        w2.truncate(w2.tenure().sentinel()).await.unwrap();
        let later = bucket.collector().shard.with_wal_store(b.store.clone());
        let options = fencepost_wal::gc::GcOptions { min_age: std::time::Duration::ZERO, ..Default::default() };
        fencepost_wal::gc::collect(&later, &BaseProgress::default(), &options, |_| ()).await.unwrap();
        gate.release();
        let answer = stalled.await.unwrap();
        assert!(matches!(&answer, Err(Error::Fenced { outcome: Outcome::NotWritten, .. })), "{answer:?}");
        assert_eq!(rows(&bucket).await, [3], "first_is_own: {first_is_own}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_or_wrong_store_is_refused_before_anybody_is_fenced() {
    let (bucket, disk, other) = (bucket().await, Disk::new(), Disk::new());
    let (mut writer, _) = open(&bucket, &disk).await.unwrap();
    append(&mut writer, [1]).await.unwrap();
    let identity = Path::from(format!("w/{IDENTITY_OBJECT}"));
    let kept = disk.inner().get(&identity).await.unwrap().bytes().await.unwrap();
    let version = bucket.manifest().await.version;

    // Wiped: whoever looks is told, whatever options it has.
    disk.inner().delete(&identity).await.unwrap();
    let url = disk.store.url().to_string();
    for error in [
        bucket.process().open().await.unwrap_err(),
        open(&bucket, &other).await.unwrap_err(),
        WalTailer::new(bucket.shard()).next().await.unwrap_err(),
        checkpoint::create(&bucket.shard(), &Default::default()).await.unwrap_err(),
        verify(&bucket.shard(), &VerifyOptions::default()).await.unwrap_err(),
    ] {
        assert!(matches!(&error, Error::WalStoreMissing { recorded, url: at, .. } if *recorded == url && *at == url));
        assert!(error.to_string().contains("--abandon-wal-store"), "{error}");
    }
    // Another store under the same URL.
    disk.inner().put(&identity, format!("fencepost-wal-store 1 {}\n", Uuid::new_v4()).into()).await.unwrap();
    let error = bucket.process().open().await.unwrap_err();
    assert!(matches!(&error, Error::WalStoreMismatch { .. }), "{error}");
    disk.inner().put(&identity, "something else".into()).await.unwrap();
    assert!(matches!(bucket.process().open().await, Err(Error::Corrupt { .. })));
    assert_eq!(bucket.manifest().await.version, version);

    // The writer was not fenced, and with its store back all is there. It may also have moved.
    disk.inner().put(&identity, kept.clone().into()).await.unwrap();
    append(&mut writer, [2]).await.unwrap();
    assert_eq!(rows(&bucket).await, [1, 2]);
    let mut follower = WalTailer::new(bucket.shard());
    for id in [1, 2] {
        assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [id]);
    }
    let elsewhere = Disk::new();
    copy(&disk, &elsewhere).await;
    disk.wipe().await;
    let (mut writer, replay) = open(&bucket, &elsewhere).await.unwrap();
    assert_eq!(replayed(replay).await, [1, 2]);
    // And is found there from now on, also by who knew it before.
    append(&mut writer, [3]).await.unwrap();
    assert_eq!(rows(&bucket).await, [1, 2, 3]);
    assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [3]);
}

/// A writer stalls; another takes over, flushes and closes cleanly; the store is wiped. What would fence the stalled one is
/// gone: only a store without fences may be wiped, and only after a clean close with nothing left in it.
#[tokio::test(start_paused = true)]
async fn schedule_29_a_wiped_store_opens_only_if_nobody_is_left_whom_it_would_stop() {
    // No clean close.
    let (bucket_1, disk) = (bucket().await, Disk::new());
    let (mut writer, _) = open(&bucket_1, &disk).await.unwrap();
    let last = append(&mut writer, [1]).await.unwrap();
    writer.truncate(last).await.unwrap();
    drop(writer);
    disk.wipe().await;
    let refused = open(&bucket_1, &disk).await;
    assert!(matches!(&refused, Err(Error::WalStoreMissing { .. })), "{refused:?}");

    // A clean close, but a fence.
    let (bucket_2, disk) = (bucket().await, Disk::new());
    let (mut stalled, _) = open(&bucket_2, &disk).await.unwrap();
    let (mut writer, _) = open(&bucket_2, &disk).await.unwrap();
    let last = append(&mut writer, [1]).await.unwrap();
    writer.truncate(last).await.unwrap();
    writer.close().await.unwrap();
    assert_eq!(bucket_2.fences().await.len(), 1);
    disk.wipe().await;
    let refused = open(&bucket_2, &disk).await;
    assert!(matches!(&refused, Err(Error::WalStoreMissing { .. })), "{refused:?}");
    // This is what the fence was for, and what `--abandon-wal-store` asserts away.
    assert!(append(&mut stalled, [9]).await.is_ok());

    // A clean close, no fence, but rows.
    let (bucket_3, disk) = (bucket().await, Disk::new());
    let (mut writer, _) = open(&bucket_3, &disk).await.unwrap();
    append(&mut writer, [1]).await.unwrap();
    writer.close().await.unwrap();
    disk.wipe().await;
    assert!(open(&bucket_3, &disk).await.is_err());

    // Nothing is needed: it opens, and positions count on.
    let (bucket_4, disk) = (bucket().await, Disk::new());
    let (mut writer, _) = open(&bucket_4, &disk).await.unwrap();
    let last = append(&mut writer, [1]).await.unwrap();
    let pinned = checkpoint::create(&bucket_4.shard(), &Default::default()).await.unwrap();
    writer.truncate(last).await.unwrap();
    writer.close().await.unwrap();
    assert!(!bucket_4.manifest().await.wal_store_may_be_wiped(), "a checkpoint holds an entry");
    checkpoint::delete(&bucket_4.shard(), pinned.id).await.unwrap();
    assert!(bucket_4.manifest().await.wal_store_may_be_wiped());
    disk.wipe().await;
    let (mut writer, replay) = open(&bucket_4, &disk).await.unwrap();
    assert_eq!(replayed(replay).await, [0; 0]);
    assert!(append(&mut writer, [2]).await.unwrap() > last);
    assert_eq!(rows(&bucket_4).await, [2]);
    assert_eq!(bucket_4.manifest().await.wal_store().unwrap().url, disk.store.url().as_str());
}

#[tokio::test(start_paused = true)]
async fn a_lost_store_is_given_up_only_on_demand() {
    for goes_elsewhere in [true, false] {
        let (bucket, disk, other) = (bucket().await, Disk::new(), Disk::new());
        let (mut writer, _) = open(&bucket, &disk).await.unwrap();
        append(&mut writer, [1]).await.unwrap();
        let last = append(&mut writer, [2]).await.unwrap();
        writer.truncate(Position::new(2)).await.unwrap();
        drop(writer);
        disk.wipe().await;
        let (mut writer, replay) = match goes_elsewhere {
            true => open_with(&bucket, &other, &abandon()).await.unwrap(),
            false => WalAppender::open(&bucket.shard(), &abandon()).await.unwrap(),
        };
        assert_eq!(replayed(replay).await, [0; 0], "row 2 is given up");
        assert!(append(&mut writer, [3]).await.unwrap() > last);
        assert_eq!(bucket.manifest().await.wal_store().is_some(), goes_elsewhere);
        assert_eq!(rows(&bucket).await, [3]);
        // And from then on nothing is special.
        let (_, replay) = bucket.process().open().await.unwrap();
        assert_eq!(replayed(replay).await, [3]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_goes_along() {
    let (bucket, a, b) = (bucket().await, Disk::new(), Disk::new());
    let mut w1 = bucket.process().appender().await;
    let mut follower = WalTailer::new(bucket.shard());
    append(&mut w1, [1]).await.unwrap();
    assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [1]);
    w1.truncate(Position::new(2)).await.unwrap();
    for (disk, id) in [(&a, 2), (&b, 3), (&a, 4)] {
        assert!(follower.next().await.unwrap().is_none());
        let (mut writer, _) = open(&bucket, disk).await.unwrap();
        let at = append(&mut writer, [id]).await.unwrap();
        // What the follower was at is a sentinel below R by now, or the place behind the last entry: either way it
        // learns where the log goes on.
        let next = match follower.next().await {
            Err(Error::Behind { .. }) => {
                follower.restart();
                follower.next().await
            }
            next => next,
        };
        assert_eq!(ids_of(&next.unwrap().unwrap()), [id]);
        writer.truncate(at).await.unwrap();
    }
    assert!(follower.next().await.unwrap().is_none());
    // An end in a wiped store is none.
    let (mut writer, _) = open(&bucket, &a).await.unwrap();
    append(&mut writer, [5]).await.unwrap();
    a.wipe().await;
    let lost = WalTailer::new(bucket.shard()).next().await;
    assert!(matches!(&lost, Err(Error::WalStoreMissing { .. })), "{lost:?}");
    let lost = follower.next().await;
    assert!(matches!(&lost, Err(Error::WalStoreMissing { .. })), "{lost:?}");
}

/// What a writer of the log's first stay in a store still had on the wire.
#[tokio::test(start_paused = true)]
async fn a_log_that_comes_back_goes_around_stragglers_and_refuses_anything_else() {
    let (bucket, a, b) = (bucket().await, Disk::new(), Disk::new());
    let shard = bucket.shard();
    let (mut w1, _) = open(&bucket, &a).await.unwrap();
    let last = append(&mut w1, [1]).await.unwrap();
    w1.truncate(last).await.unwrap();
    let straggler = a.inner().get(&a.entry_path(&shard, last.get())).await.unwrap().bytes().await.unwrap();
    let (w2, _) = open(&bucket, &b).await.unwrap();
    let sentinel = w2.tenure().sentinel().get();
    drop(w2);
    // W4's is behind that of the one that is refused: so this stands right behind where it moves.
    a.inner().put(&a.entry_path(&shard, sentinel + 3), straggler.clone().into()).await.unwrap();
    let far = a.entry_path(&shard, sentinel + 40);
    a.inner().put(&far, straggler.into()).await.unwrap();
    let refused = open(&bucket, &a).await;
    assert!(matches!(&refused, Err(Error::WalStoreInUse { object, .. }) if *object == far.to_string()), "{refused:?}");
    a.inner().delete(&far).await.unwrap();
    let (mut w4, _) = open(&bucket, &a).await.unwrap();
    let mut at = Vec::new();
    for id in 2..=5 {
        at.push(append(&mut w4, [id]).await.unwrap().get() - sentinel);
    }
    assert_eq!(rows(&bucket).await, [2, 3, 4, 5]);
    assert_eq!(at, [4, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn both_stores_are_collected_and_the_shard_is_whole() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let mut w1 = bucket.process().appender().await;
    let mut last = Position::ZERO;
    for id in 1..=5 {
        last = append(&mut w1, [id]).await.unwrap();
    }
    w1.truncate(last).await.unwrap();
    let (mut w2, _) = open(&bucket, &disk).await.unwrap();
    for id in 6..=9 {
        last = append(&mut w2, [id]).await.unwrap();
    }
    let pinned = checkpoint::create(&bucket.shard(), &Default::default()).await.unwrap();
    append(&mut w2, [10]).await.unwrap();
    w2.truncate(Position::new(last.get() + 1)).await.unwrap();
    append(&mut w2, [11]).await.unwrap();
    let w2_fence = w2.tenure().sentinel().get();
    drop(w2);
    let w3 = open(&bucket, &disk).await.unwrap().0;
    w3.truncate(w3.tenure().sentinel()).await.unwrap();

    let report = bucket.collector().collect(&BaseProgress::default()).await.unwrap();
    assert_eq!(report.refused, None);
    assert_eq!(own_positions(&bucket).await, [1, w2_fence], "the fences of the first store stay");
    let there = disk.positions(&bucket.shard()).await;
    let held: Vec<u64> = (pinned.replay_after.get() + 1..=pinned.tail.get()).collect();
    assert!(held.iter().all(|at| there.contains(at)), "{there:?} without all of {held:?}");
    assert!(!there.contains(&(last.get() + 1)), "{there:?}");
    let verified = verify(&bucket.shard(), &VerifyOptions::default()).await.unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    checkpoint::delete(&bucket.shard(), pinned.id).await.unwrap();
    bucket.collector().collect(&BaseProgress::default()).await.unwrap();
    let there = disk.positions(&bucket.shard()).await;
    assert!(there.len() < 4, "{there:?}");
}

/// A reader needs nothing of a store that a clean close left empty.
#[tokio::test(start_paused = true)]
async fn a_store_that_was_rightly_wiped_is_not_missed_by_readers() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let (mut writer, _) = open(&bucket, &disk).await.unwrap();
    let last = append(&mut writer, [1]).await.unwrap();
    writer.truncate(last).await.unwrap();
    let mut follower = WalTailer::new(bucket.shard());
    assert!(follower.next().await.unwrap().is_none());
    writer.close().await.unwrap();
    disk.wipe().await;
    assert_eq!(rows(&bucket).await, [0; 0]);
    let verified = verify(&bucket.shard(), &VerifyOptions::default()).await.unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    bucket.collector().collect(&BaseProgress::default()).await.unwrap();
    let (mut writer, _) = open(&bucket, &disk).await.unwrap();
    append(&mut writer, [2]).await.unwrap();
    assert_eq!(rows(&bucket).await, [2]);
    let mut follower = WalTailer::new(bucket.shard());
    assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [2]);
}

/// As schedule 44: what looks like damage to a claimant that was replaced is none. Another has moved the log where this one
/// wanted it, and gone on.
#[tokio::test(start_paused = true)]
async fn a_claimant_that_was_replaced_before_it_moved_the_log_is_fenced() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let (gate, opening) = about_to_move(&bucket, &disk).await;
    let (mut writer, _) = open(&bucket, &disk).await.unwrap();
    append(&mut writer, [1]).await.unwrap();
    gate.release();
    let answer = opening.await.unwrap();
    assert!(matches!(&answer, Err(Error::Fenced { .. })), "{answer:?}");
    append(&mut writer, [2]).await.unwrap();
    assert_eq!(rows(&bucket).await, [1, 2]);
}

/// A follower passes stragglers behind a sentinel; the log moves, and others take their positions in the new store.
#[tokio::test(start_paused = true)]
async fn schedule_47_a_follower_that_passed_stragglers_misses_nothing_where_the_log_goes_on() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let mut w1 = bucket.process().appender().await;
    let first = append(&mut w1, [1]).await.unwrap();
    w1.truncate(first).await.unwrap();
    let (gate, opening) = about_to_move(&bucket, &disk).await;
    // Its sentinel is at 3.
    for straggler in [4, 5] {
        bucket.copy_entry(first.get(), straggler).await;
    }
    let mut follower = WalTailer::new(bucket.shard());
    assert!(follower.next().await.unwrap().is_none());
    assert_eq!(follower.next_position(), Some(Position::new(6)));
    gate.release();
    let (mut w2, _) = opening.await.unwrap().unwrap();
    let mut last = Position::ZERO;
    for id in [2, 3] {
        last = append(&mut w2, [id]).await.unwrap();
    }
    w2.truncate(last).await.unwrap();
    append(&mut w2, [4]).await.unwrap();
    // Rows 2 and 3 are flushed: it has to read that first.
    let next = follower.next().await;
    assert!(matches!(&next, Err(Error::Behind { replay_after, .. }) if *replay_after == last), "{next:?}");
    follower.restart();
    assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [4]);
}

/// And with nothing flushed, it reads their positions again in the new store.
#[tokio::test(start_paused = true)]
async fn a_follower_that_passed_stragglers_reads_their_positions_in_the_new_store() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let mut w1 = bucket.process().appender().await;
    let first = append(&mut w1, [1]).await.unwrap();
    w1.truncate(first).await.unwrap();
    let (gate, opening) = about_to_move(&bucket, &disk).await;
    bucket.copy_entry(first.get(), 4).await;
    let mut follower = WalTailer::new(bucket.shard());
    assert!(follower.next().await.unwrap().is_none());
    gate.release();
    let (mut w2, _) = opening.await.unwrap().unwrap();
    for id in [2, 3] {
        append(&mut w2, [id]).await.unwrap();
    }
    for id in [2, 3] {
        assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [id]);
    }
}

/// Fences that stood in a lost store are nobody's any more, and `verify` does not miss them.
#[tokio::test(start_paused = true)]
async fn a_log_that_was_given_up_leaves_a_whole_shard() {
    let (bucket, disk) = (bucket().await, Disk::new());
    drop(open(&bucket, &disk).await.unwrap());
    let (mut writer, _) = open(&bucket, &disk).await.unwrap();
    append(&mut writer, [1]).await.unwrap();
    assert_eq!(bucket.fences().await.len(), 1);
    disk.wipe().await;
    let (mut writer, _) = WalAppender::open(&bucket.shard(), &abandon()).await.unwrap();
    let last = append(&mut writer, [2]).await.unwrap();
    assert_eq!(rows(&bucket).await, [2]);
    writer.truncate(last).await.unwrap();
    let verified = verify(&bucket.shard(), &VerifyOptions::default()).await.unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
}

/// With only the identity lost, the entries are there still: they are given up all the same, not in part.
#[tokio::test(start_paused = true)]
async fn of_a_log_that_was_given_up_nothing_comes_back() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let (mut writer, _) = open(&bucket, &disk).await.unwrap();
    for id in 1..=3 {
        append(&mut writer, [id]).await.unwrap();
    }
    drop(writer);
    disk.inner().delete(&Path::from(format!("w/{IDENTITY_OBJECT}"))).await.unwrap();
    let (mut writer, replay) = open_with(&bucket, &disk, &abandon()).await.unwrap();
    assert_eq!(replayed(replay).await, [0; 0]);
    append(&mut writer, [4]).await.unwrap();
    assert_eq!(rows(&bucket).await, [4]);
}

/// A store that a reader could do without, because it was left empty, comes back, and the log goes on in it.
#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_is_read_again() {
    let (bucket, disk) = (bucket().await, Disk::new());
    let (mut writer, _) = open(&bucket, &disk).await.unwrap();
    let last = append(&mut writer, [1]).await.unwrap();
    writer.truncate(last).await.unwrap();
    writer.close().await.unwrap();
    let unmounted = Disk::new();
    copy(&disk, &unmounted).await;
    disk.wipe().await;
    let mut follower = WalTailer::new(bucket.shard());
    assert!(follower.next().await.unwrap().is_none());
    copy(&unmounted, &disk).await;
    let (mut writer, _) = open(&bucket, &disk).await.unwrap();
    append(&mut writer, [2]).await.unwrap();
    let next = match follower.next().await {
        Err(Error::Behind { .. }) => {
            follower.restart();
            follower.next().await
        }
        next => next,
    };
    assert_eq!(ids_of(&next.unwrap().unwrap()), [2]);
}

/// The store that a table was created with was copied, identity and all, and the log went on in the copy.
#[tokio::test(start_paused = true)]
async fn what_is_recorded_goes_before_a_default() {
    let (bucket, old, new) = (bucket().await, Disk::new(), Disk::new());
    let (mut writer, _) = open(&bucket, &old).await.unwrap();
    append(&mut writer, [1]).await.unwrap();
    copy(&old, &new).await;
    let (mut writer, _) = open(&bucket, &new).await.unwrap();
    append(&mut writer, [2]).await.unwrap();
    let by_default = bucket.shard().with_default_wal_store(old.store.clone());
    let (_, replay) = WalAppender::open(&by_default, &OpenOptions::default()).await.unwrap();
    assert_eq!(replayed(replay).await, [1, 2]);
}
