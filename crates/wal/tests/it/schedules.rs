//! Schedules of protocol section 13, by number: each breaks a design that is weaker in one point.

use std::time::Duration;

use fencepost_sim::{Fault, Gate, Op, Outcome as Answer};
use fencepost_wal::gc::BaseProgress;
use fencepost_wal::{
    EntryKind, Epoch, Error, Generation, ManifestStore, OpenOptions, Outcome, Position, Shard, ShardId, ShardManifest,
    SsTable, Store, WalAppender, WalConfig,
    checkpoint::{self, CheckpointOptions},
};

use crate::support::{Bucket, append, batch, bucket, ids_of, must_wait, replayed, settle};

fn wide() -> WalConfig {
    WalConfig { max_in_flight: 4, ..WalConfig::default() }
}

/// Commits until the newest manifest is at least version `version`; the shard's owner is a new one then.
async fn go_on_to_version(bucket: &Bucket, version: u64) -> WalAppender {
    loop {
        let appender = bucket.process().appender().await;
        if bucket.manifest().await.version.get() >= version {
            return appender;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn schedule_01_a_put_that_was_stalled_over_takeover_flush_and_gc_is_fenced() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let mut w1 = process.appender().await;
    append(&mut w1, [1]).await.unwrap();
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let stalled = tokio::spawn(async move { append(&mut w1, [99]).await });
    gate.reached().await;

    let mut w2 = bucket.process().appender().await;
    let last = append(&mut w2, [2]).await.unwrap();
    w2.truncate(last).await.unwrap();
    bucket.collect_garbage().await;
    assert!(bucket.read(&bucket.entry_path(2)).await.is_none(), "the row's entry was collected");

    gate.release();
    let error = stalled.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
}

#[tokio::test(start_paused = true)]
async fn schedule_02_a_sentinel_put_into_a_hole_that_gc_made_gives_no_right_to_write() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();

    // W2 claims, reads up to position 3 and stalls before its sentinel there.
    let process = bucket.patient();
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let w2 = tokio::spawn({
        let process = process.clone();
        async move { process.open().await }
    });
    gate.reached().await;

    // W1 lands there, W3 takes over behind it, everything is flushed and collected.
    assert_eq!(append(&mut w1, [2]).await.unwrap(), Position::new(3));
    let mut w3 = bucket.process().appender().await;
    let last = append(&mut w3, [3]).await.unwrap();
    w3.truncate(last).await.unwrap();
    bucket.collect_garbage().await;
    assert!(bucket.read(&bucket.entry_path(3)).await.is_none());

    gate.release();
    let error = w2.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Fenced { epoch, by, .. } if (epoch.get(), by.get()) == (2, 3)), "{error}");
    assert!(bucket.read(&bucket.entry_path(3)).await.is_some(), "its sentinel did go into the hole");
    append(&mut w3, [4]).await.unwrap();
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [4]);
}

#[tokio::test(start_paused = true)]
async fn schedule_03_lost_ack_is_not_a_duplicate_and_no_false_death() {
    for fault in [Fault::LostAckAsExists, Fault::LostAck] {
        let bucket = bucket().await;
        let process = bucket.process();
        let mut w1 = process.appender().await;
        process.faults.on(Op::Create).path_contains("/wal/").times(3).then(fault);
        for id in 1..=5 {
            append(&mut w1, [id]).await.unwrap();
        }
        assert_eq!(bucket.rows().await, [1, 2, 3, 4, 5]);
    }
}

#[tokio::test(start_paused = true)]
async fn schedule_04_a_409_with_nothing_landed_neither_fences_nor_leaves_a_hole() {
    let bucket = bucket().await;
    let process = bucket.process();
    let mut w1 = process.appender().await;
    process.faults.on(Op::Create).path_contains("/wal/").nth(2).times(3).then(Fault::Conflict409);
    for id in 1..=5 {
        assert_eq!(append(&mut w1, [id]).await.unwrap().get(), id as u64 + 1);
    }
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [1, 2, 3, 4, 5]);
}

/// Appends four rows behind the serial zone through a window, the PUTs of some of which go wrong `times` times.
async fn append_four(width: usize, hit: u64, fault: Fault, times: u64) {
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = process.writer(WalConfig { max_in_flight: width, ..WalConfig::default() }).await;
    for id in 1..=33 {
        writer.append(batch([id])).await.unwrap();
    }
    let first = writer.stats().next_position.get();
    let hits = (0..4).filter(|n| hit >> n & 1 == 1);
    let at = |n| bucket.entry_path(first + n).to_string();
    let rules: Vec<_> =
        hits.map(|n| process.faults.on(Op::Create).path_ends_with(at(n)).times(times).then(fault)).collect();
    let mut promises = Vec::new();
    for id in 34..=37 {
        promises.push(writer.append_urgent(batch([id])).await.unwrap());
        settle().await;
    }
    for (position, promise) in (first..).zip(promises) {
        assert_eq!(promise.await.unwrap(), Position::new(position), "{width}, {hit:b}, {fault:?}");
    }
    assert!(rules.iter().all(|rule| rule.fired() > 0));
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, (1..=37).collect::<Vec<_>>(), "{width}, {hit:b}, {fault:?}");
}

#[tokio::test(start_paused = true)]
async fn schedule_03_lost_acks_anywhere_in_a_window_double_no_row() {
    for (width, hit) in [4, 32].into_iter().flat_map(|width| (1..16).map(move |hit| (width, hit))) {
        append_four(width, hit, Fault::LostAckAsExists, 1).await;
        append_four(width, hit, Fault::LostAck, 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn schedule_04_409s_anywhere_in_a_window_leave_no_hole() {
    for (width, hit) in [4, 32].into_iter().flat_map(|width| (1..16).map(move |hit| (width, hit))) {
        append_four(width, hit, Fault::Conflict409, 3).await;
    }
}

/// Leaves a shard whose writer died with four PUTs under way: `lands` says which of them landed. Returns the position
/// of the first. The rows 1, 2, … up to there were acknowledged; 101 to 104 were not.
async fn die_with_four_in_flight(bucket: &Bucket, lands: [bool; 4]) -> (u64, crate::support::Process) {
    let process = bucket.process();
    let writer = process.writer(wide()).await;
    for id in 1..=33 {
        writer.append(batch([id])).await.unwrap();
    }
    let first = writer.stats().next_position.get();
    process.faults.on(Op::Create).path_contains("/wal/").times(4).then(Fault::InFlight);
    for id in 101..=104 {
        drop(writer.append_no_wait(batch([id])).await.unwrap());
        // Each on its own: a non-durable append would wait for company.
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    }
    assert_eq!(process.faults.late().len(), 4);
    for (n, lands) in (0..).zip(lands) {
        if lands {
            let path = bucket.entry_path(first + n).to_string();
            let landed = process.faults.land_late_where(|p| p == path).await;
            assert_eq!(landed[0].outcome, Answer::Ok);
        }
    }
    drop(writer);
    settle().await;
    (first, process)
}

#[tokio::test(start_paused = true)]
async fn schedule_05_the_successors_log_stops_before_a_put_that_never_landed() {
    let bucket = bucket().await;
    let (first, _) = die_with_four_in_flight(&bucket, [true, false, true, true]).await;
    let (mut w2, replay) = bucket.process().open().await.unwrap();
    assert_eq!(w2.tenure().sentinel(), Position::new(first + 1));
    let expected: Vec<i64> = (1..=33).chain([101]).collect();
    assert_eq!(replayed(replay).await, expected);
    // Its own entries go around the stragglers, and the next reader sees it the same way.
    assert_eq!(append(&mut w2, [200]).await.unwrap(), Position::new(first + 4));
    let expected: Vec<i64> = expected.into_iter().chain([200]).collect();
    assert_eq!(bucket.rows().await, expected);
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, expected);
}

#[tokio::test(start_paused = true)]
async fn schedule_06_a_straggler_lands_where_the_successors_successor_is_about_to_write() {
    let bucket = bucket().await;
    let (first, w1) = die_with_four_in_flight(&bucket, [false; 4]).await;
    let w2 = bucket.process().appender().await;
    assert_eq!(w2.tenure().sentinel(), Position::new(first));
    let mut w3 = bucket.process().appender().await;
    assert_eq!(w3.tenure().sentinel(), Position::new(first + 1));
    let landed = w1.faults.land_late().await;
    assert_eq!(landed.iter().filter(|put| put.outcome == Answer::Ok).count(), 2);
    assert_eq!(append(&mut w3, [300]).await.unwrap(), Position::new(first + 4));
    let expected: Vec<i64> = (1..=33).chain([300]).collect();
    assert_eq!(bucket.rows().await, expected);
}

#[tokio::test(start_paused = true)]
async fn schedule_07_a_commit_under_a_pruned_name_is_not_believed() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let mut w1 = process.appender().await;
    let position = append(&mut w1, [1]).await.unwrap();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    let stalled = tokio::spawn(async move {
        let answer = w1.truncate(position).await;
        (w1, answer)
    });
    gate.reached().await;
    let stalled_version = bucket.manifest().await.version.get() + 1;

    let _owner = go_on_to_version(&bucket, stalled_version + 20).await;
    let newest = bucket.manifest().await;
    bucket.collect_garbage().await;
    assert!(bucket.read(&bucket.manifest_path(stalled_version)).await.is_none(), "its name is forgotten");

    gate.release();
    let (mut w1, answer) = stalled.await.unwrap();
    let error = answer.unwrap_err();
    assert!(matches!(error, Error::CommitUnknown { .. }), "{error}");
    assert!(matches!(append(&mut w1, [2]).await, Err(Error::Poisoned { .. })));
    // The name came back, and changed nothing: the newest manifest is the truth, and its rows are all there.
    assert!(bucket.read(&bucket.manifest_path(stalled_version)).await.is_some());
    assert_eq!(bucket.manifest().await, newest);
    assert_eq!(bucket.rows().await, [1]);
}

#[tokio::test(start_paused = true)]
async fn schedule_08_a_commit_whose_answer_was_lost_is_not_applied_twice() {
    for fault in [Fault::LostAckAsExists, Fault::LostAck, Fault::LostAckAsRefusal] {
        let bucket = bucket().await;
        let process = bucket.process();
        let mut w1 = process.appender().await;
        let position = append(&mut w1, [1]).await.unwrap();
        let rule = process.faults.on(Op::Create).path_contains("/manifest/").then(fault);
        let before = bucket.manifest().await;
        let sstable = SsTable::new(Generation::new(1), "0badcafe_gen_1".into());
        let committed = w1.tenure().publish(Some(sstable), position).await.unwrap();
        assert_eq!(rule.fired(), 1);
        assert_eq!(committed.sstables.len(), 1);
        assert_eq!(committed.current_generation, Generation::new(2));
        assert_eq!(committed.version.get(), before.version.get() + 1);
        assert_eq!(bucket.manifest().await, committed);
    }
}

#[tokio::test(start_paused = true)]
async fn schedule_11_nothing_is_published_ahead_of_the_log() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    let last = append(&mut w1, [1]).await.unwrap();
    let ahead = last.next().unwrap();
    let sstable = SsTable::new(Generation::new(1), "0badcafe_gen_1".into());
    let error = w1.tenure().publish(Some(sstable), ahead).await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    assert!(matches!(w1.truncate(ahead).await, Err(Error::InvalidArgument(_))));
    assert!(bucket.manifest().await.sstables.is_empty());
}

#[tokio::test(start_paused = true)]
async fn schedule_11_what_landed_behind_a_put_under_way_is_not_published() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let writer = process.writer(wide()).await;
    for id in 1..=33 {
        writer.append(batch([id])).await.unwrap();
    }
    let first = writer.stats().next_position.get();
    process.faults.on(Op::Create).path_contains("/wal/").then(Fault::InFlight);
    let mut promises = Vec::new();
    for id in 34..=37 {
        promises.push(writer.append_urgent(batch([id])).await.unwrap());
        settle().await;
    }
    let sstable = || Some(SsTable::new(Generation::new(1), "0badcafe_gen_1".into()));
    for position in first..first + 4 {
        assert_eq!(bucket.read(&bucket.entry_path(position)).await.is_some(), position > first);
        let refused = writer.tenure().publish(sstable(), Position::new(position)).await;
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{position}: {refused:?}");
    }
    process.faults.land_late().await;
    for promise in promises {
        promise.await.unwrap();
    }
    let published = writer.tenure().publish(sstable(), Position::new(first + 3)).await.unwrap();
    assert_eq!(published.replay_after, Position::new(first + 3));
}

#[tokio::test]
async fn schedule_12_a_torn_file_is_refused_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display()), &Default::default()).unwrap();
    let shard = Shard::new(store, ShardId::new_random());
    ManifestStore::new(shard.clone()).initialize(ShardManifest::first(shard.id(), 0, vec![])).await.unwrap();
    let (mut w1, _) = WalAppender::open(&shard, &OpenOptions::default()).await.unwrap();
    let mut positions = Vec::new();
    for id in 1..=3 {
        positions.push(append(&mut w1, [id]).await.unwrap());
    }
    let file = format!("/{}", shard.entry_path(positions[1]));
    let whole = std::fs::metadata(&file).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(whole / 2).unwrap();

    let error = WalAppender::open(&shard, &OpenOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains(shard.entry_path(positions[1]).as_ref()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn schedule_13_a_sentinel_that_nobody_recorded_still_fences() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let mut w1 = process.appender().await;
    append(&mut w1, [1]).await.unwrap();
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let stalled = tokio::spawn(async move { append(&mut w1, [99]).await });
    gate.reached().await;

    // W2 puts its sentinel at 3 and dies before its record.
    let dying = bucket.patient();
    let at_record = dying.faults.on(Op::Create).path_contains("/manifest/").nth(2).stall();
    let w2 = tokio::spawn({
        let dying = dying.clone();
        async move { dying.open().await.map(|_| ()) }
    });
    at_record.reached().await;
    w2.abort();
    assert!(w2.await.unwrap_err().is_cancelled());

    let mut w3 = bucket.process().appender().await;
    assert_eq!(w3.tenure().sentinel(), Position::new(4));
    let last = append(&mut w3, [3]).await.unwrap();
    w3.truncate(last).await.unwrap();
    bucket.collect_garbage().await;

    gate.release();
    let error = stalled.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Fenced { by, .. } if by.get() == 2), "{error}");
}

#[tokio::test(start_paused = true)]
async fn schedule_13_a_window_that_slept_through_a_sentinel_that_nobody_recorded_is_fenced() {
    for backwards in [false, true] {
        sleep_through_an_unrecorded_sentinel(backwards).await;
    }
}

/// Four PUTs sleep, and wake up in the order of their positions or backwards.
async fn sleep_through_an_unrecorded_sentinel(backwards: bool) {
    let bucket = bucket().await;
    let process = bucket.patient();
    let w1 = process.writer(wide()).await;
    for id in 1..=33 {
        w1.append(batch([id])).await.unwrap();
    }
    let first = w1.stats().next_position.get();
    let gates: Vec<_> = (0..4).map(|_| process.faults.on(Op::Create).path_contains("/wal/").stall()).collect();
    let mut promises = Vec::new();
    for (id, gate) in (101..).zip(&gates) {
        promises.push(w1.append_urgent(batch([id])).await.unwrap());
        gate.reached().await;
    }

    let dying = bucket.patient();
    let at_record = dying.faults.on(Op::Create).path_contains("/manifest/").nth(2).stall();
    let w2 = tokio::spawn({
        let dying = dying.clone();
        async move { dying.open().await.map(|_| ()) }
    });
    at_record.reached().await;
    w2.abort();
    assert!(w2.await.unwrap_err().is_cancelled());

    let mut w3 = bucket.process().appender().await;
    assert_eq!(w3.tenure().sentinel(), Position::new(first + 1));
    for id in 201..=203 {
        append(&mut w3, [id]).await.unwrap();
    }
    let last = append(&mut w3, [204]).await.unwrap();
    w3.truncate(last).await.unwrap();
    bucket.collect_garbage().await;
    assert!(bucket.read(&bucket.entry_path(first + 2)).await.is_none(), "there are holes for it to land in");

    for n in 0..4 {
        gates[if backwards { 3 - n } else { n }].release();
        settle().await;
    }
    for (n, promise) in promises.into_iter().enumerate() {
        let error = promise.await.unwrap_err();
        assert!(matches!(error, Error::Fenced { .. }), "{error}");
        // Backwards it meets W3's sentinel first, and cannot know about the one before.
        let expected = if backwards && n == 0 { Outcome::Unknown } else { Outcome::NotWritten };
        assert_eq!(error.outcome(), expected, "{n}");
    }
    append(&mut w3, [205]).await.unwrap();
    assert_eq!(bucket.rows().await, [205]);
}

#[tokio::test(start_paused = true)]
async fn schedule_14_a_dead_entry_on_a_stalled_writers_next_position_stays() {
    let bucket = bucket().await;
    let (first, _) = die_with_four_in_flight(&bucket, [false, true, false, false]).await;
    let process = bucket.patient();
    let mut w2 = process.appender().await;
    assert_eq!(w2.next_position(), Position::new(first + 1));
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let stalled = tokio::spawn(async move { append(&mut w2, [99]).await });
    gate.reached().await;

    let mut w3 = bucket.process().appender().await;
    assert_eq!(w3.tenure().sentinel(), Position::new(first + 2));
    let last = append(&mut w3, [3]).await.unwrap();
    w3.truncate(last).await.unwrap();
    bucket.collect_garbage().await;
    assert!(bucket.read(&bucket.entry_path(first + 1)).await.is_some(), "the dead entry is a fence");

    gate.release();
    let error = stalled.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Fenced { by, .. } if by.get() == 3), "{error}");
}

#[tokio::test(start_paused = true)]
async fn schedule_14_a_writer_with_a_window_sends_one_put_at_a_dead_entry_and_is_fenced_by_it() {
    let bucket = bucket().await;
    let (first, _) = die_with_four_in_flight(&bucket, [false, true, true, false]).await;
    let process = bucket.patient();
    let w2 = process.writer(wide()).await;
    assert_eq!(w2.stats().next_position, Position::new(first + 1));
    let gate = process.faults.on(Op::Create).path_contains("/wal/").always().stall();
    let mut promises = Vec::new();
    for id in 201..=204 {
        promises.push(w2.append_urgent(batch([id])).await.unwrap());
        settle().await;
    }
    assert_eq!(gate.arrivals(), 1, "in reach of stragglers one PUT at a time");

    let mut w3 = bucket.process().appender().await;
    assert_eq!(w3.tenure().sentinel(), Position::new(first + 3));
    let last = append(&mut w3, [3]).await.unwrap();
    w3.truncate(last).await.unwrap();
    bucket.collect_garbage().await;

    gate.release();
    for promise in promises {
        let error = promise.await.unwrap_err();
        assert!(matches!(error, Error::Fenced { by, .. } if by.get() == 3), "{error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
    }
    append(&mut w3, [4]).await.unwrap();
    assert_eq!(bucket.rows().await, [4]);
}

#[tokio::test(start_paused = true)]
async fn schedule_15_a_hanging_put_holds_the_window_by_distance() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let writer = process.writer(wide()).await;
    for id in 1..=33 {
        writer.append(batch([id])).await.unwrap();
    }
    let first = writer.stats().next_position.get();
    process.faults.clear_log();
    process.faults.on(Op::Create).path_contains("/wal/").then(Fault::InFlight);
    let mut appends: Vec<_> = (101..=120).map(|id| Box::pin(writer.append(batch([id])))).collect();
    for append in &mut appends {
        must_wait(append).await;
        settle().await;
    }
    let sent: Vec<String> = process.faults.log().iter().map(|r| r.path.clone()).collect();
    let expected: Vec<String> = (first..first + 4).map(|p| bucket.entry_path(p).to_string()).collect();
    assert_eq!(sent, expected, "not one position further, however many have landed");
    process.faults.land_late().await;
    for (id, append) in (101..).zip(appends) {
        append.await.unwrap_or_else(|error| panic!("{id}: {error}"));
    }
    assert_eq!(bucket.rows().await, (1..=33).chain(101..=120).collect::<Vec<_>>());
}

/// A commit that stalls between its create and its lineage check, while others go on to `versions` more; `pruned`
/// says whether its predecessor is gone by then.
async fn stalled_before_the_lineage_check(versions: u64, pruned: bool) {
    let bucket = bucket().await;
    let process = bucket.patient();
    let mut w1 = process.appender().await;
    let position = append(&mut w1, [1]).await.unwrap();
    append(&mut w1, [2]).await.unwrap();
    let gate = process.faults.on(Op::List).path_contains("/manifest").stall();
    let stalled = tokio::spawn(async move {
        let answer = w1.truncate(position).await;
        (w1, answer)
    });
    gate.reached().await;
    let landed = bucket.manifest().await;
    assert_eq!(landed.replay_after, position, "it is there, its committer does not know");

    let _owner = go_on_to_version(&bucket, landed.version.get() + versions).await;
    let newest = bucket.manifest().await;
    if pruned {
        bucket.collect_garbage().await;
        assert!(bucket.read(&bucket.manifest_path(landed.version.get() - 1)).await.is_none());
    }
    let objects = |bucket: Bucket| async move {
        let mut there = Vec::new();
        for version in 1..=newest.version.get() + 1 {
            there.push(bucket.read(&bucket.manifest_path(version)).await);
        }
        there
    };
    let before = objects(bucket.clone()).await;
    gate.release();
    let (mut w1, answer) = stalled.await.unwrap();
    assert_eq!(objects(bucket.clone()).await, before, "nothing is deleted and nothing is run again");
    match pruned {
        true => {
            let error = answer.unwrap_err();
            assert!(matches!(error, Error::CommitUnknown { .. }), "{error}");
            assert!(matches!(append(&mut w1, [3]).await, Err(Error::Poisoned { .. })));
        }
        false => assert_eq!(answer.unwrap(), landed, "the newest leads back to it"),
    }
    assert_eq!(bucket.rows().await, [2]);
}

#[tokio::test(start_paused = true)]
async fn schedule_16_a_committer_that_stalls_before_its_lineage_check_touches_nothing() {
    stalled_before_the_lineage_check(20, true).await;
    stalled_before_the_lineage_check(10, false).await;
}

/// X derives a claim from version v and stalls; W claims and goes on; the old versions are pruned; v comes back; X's
/// claim lands on a forgotten name, and its predecessor stands.
async fn false_claim(bucket: &Bucket) -> (crate::support::Process, WalAppender, Error) {
    let mut w0 = bucket.process().appender().await;
    append(&mut w0, [1]).await.unwrap();
    let derived_from = bucket.manifest().await.version.get();
    let parent = bucket.read(&bucket.manifest_path(derived_from)).await.unwrap();

    let process = bucket.patient();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    let x = tokio::spawn({
        let process = process.clone();
        async move { process.open().await.map(|_| ()) }
    });
    gate.reached().await;

    let mut w = bucket.process().appender().await;
    for id in 2..40 {
        let position = append(&mut w, [id]).await.unwrap();
        w.truncate(position).await.unwrap();
    }
    bucket.collect_garbage().await;
    assert!(bucket.read(&bucket.manifest_path(derived_from)).await.is_none(), "its name is forgotten");
    bucket.write(&bucket.manifest_path(derived_from), parent).await;

    gate.release();
    let error = x.await.unwrap().unwrap_err();
    (process, w, error)
}

#[tokio::test(start_paused = true)]
async fn schedule_17_a_claim_on_a_forgotten_name_is_not_believed_although_its_predecessor_stands() {
    let bucket = bucket().await;
    let (_, w, error) = false_claim(&bucket).await;
    assert!(matches!(error, Error::CommitUnknown { .. }), "{error}");
    assert_eq!(bucket.manifest().await.writer_epoch, w.epoch());
}

#[tokio::test(start_paused = true)]
async fn schedule_27_a_false_claim_sends_no_sentinel_and_harms_no_healthy_writer() {
    let bucket = bucket().await;
    let (x, mut w, _) = false_claim(&bucket).await;
    assert_eq!(x.requests(Op::Create, "/wal/"), 0);
    append(&mut w, [40]).await.unwrap();
    assert_eq!(bucket.rows().await, [40]);
    w.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn schedule_18_a_partly_flushed_replay_keeps_the_rest() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    for id in 1..=10 {
        append(&mut w1, [id]).await.unwrap();
    }
    {
        let (w2, mut replay) = bucket.process().open().await.unwrap();
        let mut covered = Position::ZERO;
        for _ in 0..5 {
            covered = replay.next().await.unwrap().unwrap().position;
        }
        let sstable = SsTable::new(Generation::new(1), "0badcafe_gen_1".into());
        let manifest = w2.tenure().publish(Some(sstable), covered).await.unwrap();
        assert_eq!(manifest.replay_after_epoch(), Epoch::new(1), "that of the rows covered, not the writer's");
        assert!(manifest.last_seen >= w2.tenure().sentinel());
    }
    let (w3, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [6, 7, 8, 9, 10]);
    // And once everything below its sentinel is flushed, the epoch follows.
    let manifest = w3.tenure().publish(None, w3.tenure().sentinel()).await.unwrap();
    assert_eq!(manifest.replay_after_epoch(), Epoch::new(3));
    assert_eq!(bucket.rows().await, [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn schedule_18_a_truncated_replay_keeps_the_rest() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    for id in 1..=10 {
        append(&mut w1, [id]).await.unwrap();
    }
    let w2 = bucket.process().appender().await;
    let manifest = w2.truncate(Position::new(6)).await.unwrap();
    assert_eq!(manifest.replay_after_epoch(), Epoch::new(1));
    drop(w2);
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [6, 7, 8, 9, 10]);
}

#[tokio::test(start_paused = true)]
async fn schedule_22_closing_a_wal_only_shard_keeps_its_rows() {
    let bucket = bucket().await;
    let writer = bucket.process().writer(WalConfig::default()).await;
    for id in 1..=5 {
        writer.append(batch([id])).await.unwrap();
    }
    let before = bucket.manifest().await.replay_after;
    writer.close().await.unwrap();
    assert_eq!(bucket.manifest().await.replay_after, before);
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn schedule_33_forty_entries_between_two_looks_are_no_hole() {
    // Wherever the claimant stalls while it looks for the end of the log.
    let mut stalls = 0;
    for (op, path) in [(Op::List, "/wal"), (Op::Get, "/wal/")] {
        for answer_held_back in [false, true] {
            for nth in 1..=3 {
                let bucket = bucket().await;
                let mut w1 = bucket.process().appender().await;
                append(&mut w1, [0]).await.unwrap();
                let process = bucket.patient();
                let rule = process.faults.on(op).path_contains(path).nth(nth);
                let gate = if answer_held_back { rule.stall_after() } else { rule.stall() };
                let opening = tokio::spawn({
                    let process = process.clone();
                    async move { process.open().await }
                });
                settle().await;
                if gate.arrivals() == 0 {
                    opening.await.unwrap().unwrap();
                    continue; // It does not look that often.
                }
                stalls += 1;
                for id in 1..=40 {
                    append(&mut w1, [id]).await.unwrap();
                }
                gate.release();
                let (_, replay) = opening.await.unwrap().unwrap();
                assert_eq!(replayed(replay).await, (0..=40).collect::<Vec<_>>(), "{op:?} {nth}");
            }
        }
    }
    assert!(stalls >= 6, "{stalls}");
}

/// Wherever a claimant stalls while it reads the log: that it was replaced, and that its successor's entries were
/// collected, is no damage.
#[tokio::test(start_paused = true)]
async fn schedule_44_what_was_collected_under_a_replaced_claimant_is_no_damage() {
    let mut fenced = 0;
    for (op, path) in [(Op::List, "/wal"), (Op::Get, "/wal/")] {
        for answer_held_back in [false, true] {
            for nth in [1, 2, 20] {
                let bucket = bucket().await;
                let mut w1 = bucket.process().appender().await;
                for id in 0..60 {
                    append(&mut w1, [id]).await.unwrap();
                }
                let process = bucket.patient();
                let rule = process.faults.on(op).path_contains(path).nth(nth);
                let gate = if answer_held_back { rule.stall_after() } else { rule.stall() };
                let opening = tokio::spawn({
                    let process = process.clone();
                    async move {
                        let options = OpenOptions { prefetch: 1, ..OpenOptions::default() };
                        WalAppender::open(&process.shard, &options).await.map(|_| ())
                    }
                });
                settle().await;
                if gate.arrivals() == 0 {
                    opening.await.unwrap().unwrap();
                    continue; // It does not look that often.
                }
                let mut w3 = bucket.process().appender().await;
                let last = append(&mut w3, [60]).await.unwrap();
                w3.truncate(last).await.unwrap();
                bucket.collect_garbage().await;
                gate.release();
                let error = opening.await.unwrap().unwrap_err();
                assert!(matches!(error, Error::Fenced { .. }), "{op:?} {nth}: {error}");
                fenced += 1;
            }
        }
    }
    assert!(fenced >= 6, "{fenced}");
}

#[tokio::test(start_paused = true)]
async fn schedule_24_a_follower_does_not_read_a_zombie_in_a_hole_that_gc_made() {
    use fencepost_wal::WalTailer;
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    let mut follower = WalTailer::new(bucket.shard());
    assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [1]);
    assert!(follower.next().await.unwrap().is_none());
    let position = follower.next_position().unwrap();

    // A row at that position, flushed and collected; then a claimant that stalled puts its sentinel there.
    append(&mut w1, [2]).await.unwrap();
    let mut w2 = bucket.process().appender().await;
    let last = append(&mut w2, [3]).await.unwrap();
    w2.truncate(last).await.unwrap();
    bucket.collect_garbage().await;
    bucket.copy_entry(1, position.get()).await;
    assert_eq!(bucket.log().await.iter().filter(|e| e.2 == EntryKind::Rows).count(), 0);

    let error = follower.next().await.unwrap_err();
    assert!(matches!(error, Error::Behind { .. }), "{error}");
    // It stays behind until it is told to start again.
    assert!(matches!(follower.next().await, Err(Error::Behind { .. })));
    follower.restart();
    append(&mut w2, [4]).await.unwrap();
    assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [4]);
}

#[tokio::test(start_paused = true)]
async fn schedule_45_a_follower_whose_clock_stood_still_does_not_believe_a_zombie_because_of_a_forgotten_manifest() {
    use fencepost_wal::WalTailer;
    let bucket = bucket().await;
    let mut w = bucket.patient().appender().await;
    append(&mut w, [1]).await.unwrap();
    let process = bucket.patient();
    let mut follower = WalTailer::new(process.shard.clone());
    assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [1]);
    assert!(follower.next().await.unwrap().is_none());
    let position = follower.next_position().unwrap();
    append(&mut w, [2]).await.unwrap();
    let last = append(&mut w, [3]).await.unwrap();

    // A claim that derives from before R rose, and stalls before its PUT.
    let version = bucket.manifest().await.version.get() + 1;
    let claimant = bucket.patient();
    let claim = claimant.faults.on(Op::Create).path_contains("/manifest/").stall();
    let claiming = tokio::spawn(async move { claimant.open().await.map(|_| ()) });
    claim.reached().await;
    w.truncate(last).await.unwrap();
    assert_eq!(bucket.manifest().await.version.get(), version);
    bucket.collect_garbage().await;
    assert!(bucket.read(&bucket.entry_path(position.get())).await.is_none());
    bucket.copy_entry(1, position.get()).await;

    // The follower meets the zombie's sentinel, lists, and is suspended.
    let look = process.faults.on(Op::Get).path_contains(bucket.manifest_path(version).to_string()).stall();
    let following = tokio::spawn(async move { follower.next().await });
    look.reached().await;
    go_on_until_pruned(&bucket, version).await;
    claim.release();
    assert!(matches!(claiming.await.unwrap(), Err(Error::CommitUnknown { .. })));
    look.release();
    let met = following.await.unwrap();
    assert!(matches!(met, Err(Error::Behind { .. })), "{met:?}");
}

/// As schedule 45, of a log that has moved: the manifest that came back is from before the move. (A follower that has read the one
/// from behind it does not read that name again.)
#[tokio::test(start_paused = true)]
async fn schedule_46_a_follower_does_not_go_back_to_where_the_log_was_because_of_a_forgotten_manifest() {
    use crate::wal_store::{Disk, about_to_move};
    use fencepost_wal::WalTailer;
    let (bucket, disk) = (bucket().await, Disk::new());
    let mut w1 = bucket.process().appender().await;
    let first = append(&mut w1, [1]).await.unwrap();
    w1.truncate(first).await.unwrap();
    let process = bucket.patient();
    let mut follower = WalTailer::new(process.shard.clone());
    assert!(follower.next().await.unwrap().is_none());

    // W2 has recorded its takeover and is about to move the log; a claim that derives from before stalls.
    let (before_move, opening) = about_to_move(&bucket, &disk).await;
    let claimant = bucket.patient();
    let claim = claimant.faults.on(Op::Create).path_contains("/manifest/").stall();
    let claiming = tokio::spawn(async move { claimant.open().await.map(|_| ()) });
    claim.reached().await;
    before_move.release();
    let (mut w2, _) = opening.await.unwrap().unwrap();
    let version = bucket.manifest().await.version.get();
    append(&mut w2, [2]).await.unwrap();

    // The follower is at the end of where the log was, lists, and is suspended.
    let look = process.faults.on(Op::Get).path_contains(bucket.manifest_path(version).to_string()).stall();
    let following = tokio::spawn(async move { (follower.next().await, follower) });
    look.reached().await;
    for _ in 0..20 {
        checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
    }
    bucket.collector().collect(&BaseProgress::default()).await.unwrap();
    assert!(bucket.read(&bucket.manifest_path(version)).await.is_none(), "its name is forgotten");
    claim.release();
    assert!(matches!(claiming.await.unwrap(), Err(Error::CommitUnknown { .. })));
    look.release();
    let (met, mut follower) = following.await.unwrap();
    // By what came back it is behind, and begins anew.
    assert!(matches!(met, Err(Error::Behind { .. })), "{met:?}");
    follower.restart();
    append(&mut w2, [3]).await.unwrap();
    for id in [2, 3] {
        assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [id]);
    }
    // With what it has read now it needs no GET to meet the end again.
    process.faults.clear_log();
    assert!(follower.next().await.unwrap().is_none());
    assert_eq!(process.requests(Op::Get, "/manifest/"), 0);
}

/// Whether a process came to its gate, or ended before.
async fn comes_to<T>(gate: &Gate, task: &mut tokio::task::JoinHandle<T>) -> bool {
    loop {
        settle().await;
        if gate.arrivals() > 0 || task.is_finished() {
            return gate.arrivals() > 0;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn schedule_32_a_truncation_at_every_point_of_a_takeover_is_done_before_it_or_refused() {
    let (mut done, mut refused) = (0, 0);
    for nth in 1.. {
        let bucket = bucket().await;
        let mut w1 = bucket.patient().appender().await;
        for id in 1..=3 {
            append(&mut w1, [id]).await.unwrap();
        }
        let process = bucket.patient();
        let gate = process.faults.on_any([Op::Create, Op::Get, Op::List]).nth(nth).stall();
        let mut opening = tokio::spawn(async move { process.open().await });
        if !comes_to(&gate, &mut opening).await {
            break;
        }
        let answer = w1.truncate(Position::new(3)).await;
        gate.release();
        let (mut w2, replay) = opening.await.unwrap().unwrap();
        let mut rows = match answer {
            Ok(_) => vec![3],
            Err(error) => {
                assert!(matches!(error, Error::Fenced { .. }), "{nth}: {error}");
                vec![1, 2, 3]
            }
        };
        if rows.len() == 1 {
            done += 1
        } else {
            refused += 1
        }
        assert_eq!(replayed(replay).await, rows, "{nth}");
        assert!(append(&mut w2, [4]).await.unwrap() > bucket.manifest().await.replay_after, "{nth}");
        rows.push(4);
        assert_eq!(bucket.rows().await, rows, "{nth}");
    }
    assert!(done > 2 && refused > 4, "{done} truncations came before the claim, {refused} after it");
}

#[tokio::test(start_paused = true)]
async fn schedule_32_a_truncation_that_sleeps_through_a_takeover_takes_nothing_from_it() {
    let mut points = 0;
    for nth in 1.. {
        let bucket = bucket().await;
        let process = bucket.patient();
        let mut w1 = process.appender().await;
        for id in 1..=3 {
            append(&mut w1, [id]).await.unwrap();
        }
        let gate = process.faults.on_any([Op::Create, Op::Get, Op::List]).nth(nth).stall();
        let mut truncating = tokio::spawn(async move { w1.truncate(Position::new(4)).await.map(|_| ()) });
        if !comes_to(&gate, &mut truncating).await {
            truncating.await.unwrap().unwrap();
            break;
        }
        points += 1;
        let before = bucket.manifest().await.replay_after;
        let mut w2 = bucket.process().appender().await;
        let acknowledged = append(&mut w2, [4]).await.unwrap();
        gate.release();
        let answer = truncating.await.unwrap();
        assert!(
            matches!(answer, Ok(()) | Err(Error::Fenced { .. } | Error::CommitUnknown { .. })),
            "{nth}: {answer:?}"
        );
        // It landed before the takeover, or never will.
        let manifest = bucket.manifest().await;
        assert_eq!(manifest.replay_after, before, "{nth}");
        assert!(manifest.replay_after < acknowledged, "{nth}");
        let rows = if before == Position::new(4) { vec![4] } else { vec![1, 2, 3, 4] };
        assert_eq!(answer.is_ok(), rows.len() == 1, "{nth}");
        assert_eq!(bucket.rows().await, rows, "{nth}");
    }
    assert!(points >= 2, "{points}");
}

/// A checkpoint's maker, which derives from the newest manifest and stalls before its PUT.
async fn stalled_committer(bucket: &Bucket) -> (Gate, tokio::task::JoinHandle<()>) {
    let process = bucket.patient();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    let task = tokio::spawn(async move {
        // Whatever it is told, it tries again elsewhere.
        let _ = checkpoint::create(&process.shard, &CheckpointOptions::default()).await;
    });
    gate.reached().await;
    (gate, task)
}

/// Commits that take the shard from nobody, until a collector prunes `version`.
async fn go_on_until_pruned(bucket: &Bucket, version: u64) {
    for _ in 0..20 {
        checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
    }
    bucket.collect_garbage().await;
    assert!(bucket.read(&bucket.manifest_path(version)).await.is_none(), "its name is forgotten");
}

#[tokio::test(start_paused = true)]
async fn schedule_42_a_commit_that_landed_and_was_forgotten_is_not_made_again() {
    let bucket = bucket().await;
    bucket.write_sstable("0badcafe_gen_1").await;
    let process = bucket.patient();
    let mut w = process.appender().await;
    let position = append(&mut w, [1]).await.unwrap();
    let version = bucket.manifest().await.version.get() + 1;
    let (committer, _task) = stalled_committer(&bucket).await;

    // It lands, the answer says that something is there, and the look at what it is stalls.
    process.faults.on(Op::Create).path_contains("/manifest/").then(Fault::LostAckAsExists);
    let look = process.faults.on(Op::Get).path_contains(bucket.manifest_path(version).to_string()).stall();
    let publishing = tokio::spawn(async move {
        let sstable = SsTable::new(Generation::new(1), "0badcafe_gen_1".into());
        let answer = w.tenure().publish(Some(sstable), position).await;
        (w, answer)
    });
    look.reached().await;
    assert_eq!(bucket.manifest().await.sstables.len(), 1, "it landed");

    go_on_until_pruned(&bucket, version).await;
    committer.release();
    settle().await;
    assert!(bucket.read(&bucket.manifest_path(version)).await.is_some(), "the name came back");

    look.release();
    let (mut w, answer) = publishing.await.unwrap();
    let error = answer.unwrap_err();
    assert!(matches!(error, Error::CommitUnknown { .. }), "{error}");
    assert!(matches!(append(&mut w, [2]).await, Err(Error::Poisoned { .. })));
    assert_eq!(bucket.manifest().await.sstables.len(), 1);
    assert_eq!(bucket.manifest().await.replay_after, position);
}

#[tokio::test(start_paused = true)]
async fn schedule_43_a_claim_under_a_forgotten_name_fences_nobody() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let mut w = process.appender().await;
    append(&mut w, [1]).await.unwrap();
    let version = bucket.manifest().await.version.get() + 1;

    let claimant = bucket.patient();
    let claim = claimant.faults.on(Op::Create).path_contains("/manifest/").stall();
    let claiming = tokio::spawn(async move { claimant.open().await.map(|_| ()) });
    claim.reached().await;
    checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
    assert_eq!(bucket.manifest().await.version.get(), version);

    let look = process.faults.on(Op::Get).path_contains(bucket.manifest_path(version).to_string()).stall();
    let asking = tokio::spawn(async move {
        let answer = w.tenure().confirm().await;
        (w, answer)
    });
    look.reached().await;
    go_on_until_pruned(&bucket, version).await;
    claim.release();
    let error = claiming.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::CommitUnknown { .. }), "{error}");

    look.release();
    let (mut w, answer) = asking.await.unwrap();
    answer.unwrap();
    append(&mut w, [2]).await.unwrap();
    assert_eq!(bucket.rows().await, [1, 2]);
}
