//! After another engine wrote (protocol section 11): what a claim takes from older manifests, what it refuses, what it
//! does not believe, and what `adopt` finds.

use fencepost_sim::{Fault, Gate, Op};
use fencepost_wal::{Epoch, Error, Fence, Outcome, Position, ShardManifest, Store, WalAppender, WalTailer, adopt};

use crate::lance::{Lance, commit, lance_entry, sentinel_of};
use crate::support::{Bucket, Process, append, batch, bucket, ids_of, replayed, settle};

fn fence(position: u64, epoch: u64) -> Fence {
    Fence { position: Position::new(position), epoch: Epoch::new(epoch) }
}

fn assert_unadopted(bucket: &Bucket, error: &Error) {
    assert!(matches!(error, Error::Unadopted { shard, .. } if *shard == bucket.shard().id()), "{error}");
    let text = error.to_string();
    assert!(text.contains(&bucket.shard().id().to_string()) && text.contains("fencepost adopt"), "{text}");
}

/// Fencepost (epoch 1: sentinel 1, row 2), Lance (epoch 2: sentinel 3, row 4, a dead straggler of epoch 1 at 5, row 6,
/// all flushed), Fencepost (epoch 3: sentinel 7). The fences of 3 and 5 were made without us.
async fn three_owners() -> Bucket {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    let mut lance = Lance::open(&bucket).await;
    assert_eq!(lance.append([2]).await, 4);
    bucket.copy_entry(2, 5).await;
    let last = lance.append([3]).await;
    lance.flush(last).await;
    let w3 = bucket.process().appender().await;
    assert_eq!(w3.tenure().sentinel(), Position::new(7));
    bucket
}

#[tokio::test(start_paused = true)]
async fn a_claim_after_lance_takes_our_fields_from_the_newest_version_that_has_them() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    let w2 = bucket.process().appender().await;
    w2.truncate(w2.tenure().sentinel()).await.unwrap();
    let ours = bucket.manifest().await;
    let mut lance = Lance::open(&bucket).await;
    lance.append([2]).await;
    let theirs = bucket.manifest().await;
    assert_eq!((theirs.extension.as_ref(), theirs.fences()), (None, &[] as &[Fence]));
    assert_unadopted(&bucket, &theirs.collectable().unwrap_err());

    let (w4, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [2]);
    let taken = bucket.manifest().await;
    assert_eq!((taken.writer_epoch, w4.epoch()), (Epoch::new(4), Epoch::new(4)));
    assert_eq!(taken.replay_after_epoch(), ours.replay_after_epoch());
    assert_eq!(taken.fences(), [fence(1, 1), fence(3, 2), fence(4, 3), fence(6, 4)]);
    assert_unadopted(&bucket, &taken.collectable().unwrap_err());
    // It stays so, whoever opens the shard, until somebody adopts it.
    bucket.process().appender().await.close().await.unwrap();
    assert!(bucket.manifest().await.collectable().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_only_fencepost_wrote_to_is_collectable() {
    let bucket = bucket().await;
    bucket.manifest().await.collectable().unwrap();
    let mut w1 = bucket.process().appender().await;
    let last = append(&mut w1, [1]).await.unwrap();
    w1.truncate(last).await.unwrap();
    w1.close().await.unwrap();
    bucket.manifest().await.collectable().unwrap();
}

#[tokio::test(start_paused = true)]
async fn adopting_adds_every_sentinel_and_every_dead_entry_also_those_below_r() {
    let bucket = three_owners().await;
    assert_eq!(bucket.fences().await, [(1, 1), (7, 3)]);
    let before = bucket.manifest().await;
    let adopted = adopt(&bucket.shard()).await.unwrap();
    assert_eq!(adopted.fences, [fence(3, 2), fence(5, 1)]);

    let after = bucket.manifest().await;
    assert_eq!(adopted.version, Some(after.version));
    assert_eq!(after.version, before.version.next().unwrap());
    after.collectable().unwrap();
    assert_eq!(bucket.fences().await, [(1, 1), (3, 2), (5, 1), (7, 3)]);
    // Nothing else changed.
    let mut same = after.clone();
    (same.version, same.extension) = (before.version, before.extension.clone());
    assert_eq!(same, before);
    let owner = |m: &ShardManifest| m.extension.as_ref().map(|x| (x.writer_id, x.replay_after_epoch));
    assert_eq!(owner(&after), owner(&before));
}

#[tokio::test(start_paused = true)]
async fn adopting_a_shard_that_needs_it_not_writes_nothing() {
    let bucket = three_owners().await;
    adopt(&bucket.shard()).await.unwrap();
    let newest = bucket.manifest().await;
    let process = bucket.process();
    assert_eq!(adopt(&process.shard).await.unwrap(), Default::default());
    assert_eq!(process.requests(Op::Create, "") + process.requests(Op::Get, "/wal/"), 0);
    assert_eq!(bucket.manifest().await, newest);
}

#[tokio::test(start_paused = true)]
async fn adopting_a_shard_that_does_not_exist_says_so() {
    let bucket = bucket().await;
    let nowhere = fencepost_wal::Shard::new(bucket.shard().store().clone(), fencepost_wal::ShardId::new_random());
    assert!(matches!(adopt(&nowhere).await, Err(Error::ShardNotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn adopting_beside_a_live_writer_disturbs_neither() {
    let bucket = three_owners().await;
    let mut live = bucket.process().appender().await;
    let first = append(&mut live, [10]).await.unwrap();
    adopt(&bucket.shard()).await.unwrap();
    // Its next commit derives from the adoption, and keeps it.
    append(&mut live, [11]).await.unwrap();
    live.truncate(first).await.unwrap();
    append(&mut live, [12]).await.unwrap();
    live.close().await.unwrap();
    let manifest = bucket.manifest().await;
    manifest.collectable().unwrap();
    assert_eq!((manifest.writer_epoch.get(), manifest.fences().len()), (4, 5));
    assert_eq!(bucket.rows().await, [11, 12]);
}

/// An adoption that stands at `gate`, in a process of its own.
async fn stalled(
    process: &Process,
    gate: &Gate,
) -> tokio::task::JoinHandle<fencepost_wal::Result<fencepost_wal::Adopted>> {
    let shard = process.shard.clone();
    let adopting = tokio::spawn(async move { adopt(&shard).await });
    gate.reached().await;
    adopting
}

#[tokio::test(start_paused = true)]
async fn of_two_adoptions_at_once_one_commits_and_the_other_finds_it_done() {
    let bucket = three_owners().await;
    let process = bucket.patient();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    let slow = stalled(&process, &gate).await;
    let quick = adopt(&bucket.shard()).await.unwrap();
    assert_eq!(quick.fences.len(), 2);
    gate.release();
    assert_eq!(slow.await.unwrap().unwrap(), Default::default());
    assert_eq!(Some(bucket.manifest().await.version), quick.version);
}

/// A scan that was made for an older manifest is not enough for a newer one.
#[tokio::test(start_paused = true)]
async fn schedule_37_adopting_finds_the_fence_of_a_lance_that_took_over_meanwhile() {
    let bucket = three_owners().await;
    let process = bucket.patient();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    let adopting = stalled(&process, &gate).await;
    let mut lance = Lance::open(&bucket).await;
    let last = lance.append([9]).await;
    lance.flush(last).await;
    drop(bucket.process().appender().await);
    gate.release();
    let adopted = adopting.await.unwrap().unwrap();
    assert_eq!(adopted.fences, [fence(3, 2), fence(5, 1), fence(8, 4)]);
    assert_eq!(bucket.fences().await, [(1, 1), (3, 2), (5, 1), (7, 3), (8, 4), (10, 5)]);
    // What it had read it did not read again.
    assert_eq!(process.requests(Op::Get, "/wal/"), 10);
}

#[tokio::test(start_paused = true)]
async fn an_adoption_that_dies_anywhere_can_be_repeated() {
    for op in [Op::Get, Op::Create, Op::List] {
        for nth in 1..=3 {
            for after in [false, true] {
                let bucket = three_owners().await;
                let process = bucket.patient();
                let rule = process.faults.on(op).nth(nth);
                let gate = if after { rule.stall_after() } else { rule.stall() };
                let shard = process.shard.clone();
                let dying = tokio::spawn(async move { adopt(&shard).await });
                for _ in 0..10 {
                    settle().await;
                }
                assert!(gate.arrivals() == 1 || dying.is_finished(), "{op:?} {nth}");
                dying.abort();
                let _ = dying.await;
                adopt(&bucket.shard()).await.unwrap();
                assert_eq!(bucket.fences().await, [(1, 1), (3, 2), (5, 1), (7, 3)], "{op:?} {nth}");
                bucket.manifest().await.collectable().unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_adoption_whose_answer_is_lost_is_committed_once() {
    for fault in [Fault::LostAck, Fault::LostAckAsExists, Fault::Conflict409, Fault::Fail] {
        let bucket = three_owners().await;
        let before = bucket.manifest().await.version.get();
        let process = bucket.process();
        process.faults.on(Op::Create).path_contains("/manifest/").then(fault);
        let adopted = adopt(&process.shard).await.unwrap();
        assert_eq!(adopted.version.unwrap().get(), before + 1, "{fault:?}");
        assert_eq!(bucket.manifest().await.version.get(), before + 1, "{fault:?}");
    }
}

/// The commit lands on a name that was pruned while it stalled: it starts over from what is there.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_lands_on_a_forgotten_name_starts_over() {
    let bucket = three_owners().await;
    let process = bucket.patient();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    let adopting = stalled(&process, &gate).await;
    let mut live = bucket.process().appender().await;
    for id in 0..20 {
        let position = append(&mut live, [id]).await.unwrap();
        live.truncate(position).await.unwrap();
    }
    let newest = bucket.manifest().await;
    bucket.prune_below(newest.version.get()).await;
    gate.release();
    let adopted = adopting.await.unwrap().unwrap();
    assert_eq!(adopted.version, Some(newest.version.next().unwrap()));
    assert_eq!(bucket.fences().await, [(1, 1), (3, 2), (5, 1), (7, 3), (8, 4)]);
    live.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_damaged_entry_stops_an_adoption_and_is_named() {
    let bucket = three_owners().await;
    let newest = bucket.manifest().await;
    let path = bucket.entry_path(4);
    bucket.write(&path, "what is this?".into()).await;
    let error = adopt(&bucket.shard()).await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt { object, .. } if *object == path.to_string()), "{error}");
    assert_eq!(bucket.manifest().await, newest);
}

/// A dead entry of many rows is known by its first bytes, whether the schema fits in there or not.
#[tokio::test(start_paused = true)]
async fn of_a_large_entry_no_more_is_read_than_adopting_needs() {
    use arrow_array::{ArrayRef, Int64Array, RecordBatch};
    let many_columns: RecordBatch = RecordBatch::try_from_iter((0..1_000).map(|n| {
        (format!("column {n} {}", "x".repeat(50)), std::sync::Arc::new(Int64Array::from(vec![n])) as ArrayRef)
    }))
    .unwrap();
    for (rows, whole) in [(batch(0..40_000), false), (many_columns, true)] {
        let bucket = bucket().await;
        let mut w1 = bucket.process().appender().await;
        w1.append(&rows.schema(), &[rows]).await.unwrap();
        let mut lance = Lance::open(&bucket).await;
        bucket.copy_entry(2, 4).await;
        let last = lance.append([5]).await;
        lance.flush(last).await;
        assert!(bucket.read(&bucket.entry_path(4)).await.unwrap().len() > 64 << 10);
        drop(bucket.process().appender().await);
        let process = bucket.process();
        let adopted = adopt(&process.shard).await.unwrap();
        assert_eq!(adopted.fences, [fence(3, 2), fence(4, 1)]);
        // Six entries, of which two are large.
        assert_eq!(process.requests(Op::Get, "/wal/"), if whole { 8 } else { 6 });
    }
}

/// Lance's writer goes on beside it and drops our fields again; the next claim finds those of the adoption.
#[tokio::test(start_paused = true)]
async fn adopting_while_lance_owns_the_shard_fences_nobody_and_is_not_forgotten() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    let mut lance = Lance::open(&bucket).await;
    let last = lance.append([2]).await;
    lance.flush(last).await;
    let adopted = adopt(&bucket.shard()).await.unwrap();
    assert_eq!(adopted.fences, [fence(3, 2)]);
    let manifest = bucket.manifest().await;
    manifest.collectable().unwrap();
    assert_eq!(manifest.writer_epoch.get(), lance.epoch);
    let error = append(&mut w1, [9]).await.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");

    let last = lance.append([3]).await;
    lance.flush(last).await;
    assert!(bucket.manifest().await.collectable().is_err());
    drop(bucket.process().appender().await);
    assert_eq!(bucket.fences().await, [(1, 1), (3, 2), (6, 3)]);
    assert!(bucket.manifest().await.collectable().is_err());
}

/// The claim that our fields name is not given the shard back by an adoption: another engine may own that epoch.
#[tokio::test(start_paused = true)]
async fn adopting_gives_the_shard_to_nobody() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    let position = append(&mut w1, [1]).await.unwrap();
    // What Lance's older tailers did.
    commit(&bucket, |m| m.last_seen = 2).await;
    adopt(&bucket.shard()).await.unwrap();
    let error = w1.truncate(position).await.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
}

/// Lance prunes manifests; ours are gone, our log is not.
async fn forgotten() -> Bucket {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    let mut lance = Lance::open(&bucket).await;
    let last = lance.append([2]).await;
    lance.flush(last).await;
    lance.append([3]).await;
    bucket.prune_below(bucket.manifest().await.version.get()).await;
    bucket
}

#[tokio::test(start_paused = true)]
async fn a_shard_whose_fields_are_all_lost_is_refused_until_it_is_adopted() {
    let bucket = forgotten().await;
    let newest = bucket.manifest().await;
    let process = bucket.process();
    assert_unadopted(&bucket, &process.open().await.unwrap_err());
    assert_eq!(process.requests(Op::Create, ""), 0, "nothing was claimed");
    assert_eq!(bucket.manifest().await, newest);

    let adopted = adopt(&bucket.shard()).await.unwrap();
    assert_eq!(adopted.fences, [fence(1, 1), fence(3, 2)]);
    bucket.manifest().await.collectable().unwrap();
    let (mut w3, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [3]);
    append(&mut w3, [4]).await.unwrap();
    assert_eq!(bucket.fences().await, [(1, 1), (3, 2), (6, 3)]);
    bucket.manifest().await.collectable().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shard_with_checkpoints_of_ours_and_no_manifest_of_ours_is_refused_too() {
    let bucket = forgotten().await;
    for position in 1..=5 {
        bucket.delete(&bucket.entry_path(position)).await;
    }
    let checkpoint = bucket.shard().root().clone().join("checkpoints").join("a.binpb");
    bucket.write(&checkpoint, "pinned".into()).await;
    assert_unadopted(&bucket, &bucket.process().open().await.unwrap_err());
    bucket.delete(&checkpoint).await;
    bucket.process().open().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn looking_for_entries_of_ours_stops_at_the_first() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    for id in 0..100 {
        append(&mut w1, [id]).await.unwrap();
    }
    drop(Lance::open(&bucket).await);
    bucket.prune_below(bucket.manifest().await.version.get()).await;
    let process = bucket.process();
    process.open().await.unwrap_err();
    let asked = process.requests(Op::Get, "/wal/");
    assert!(asked <= 16, "{asked} of 102 entries");
}

/// A shard of Lance's own: entries and manifests, none of them ours.
async fn lances_own() -> (Bucket, Lance) {
    let bucket = bucket().await;
    commit(&bucket, |_| {}).await;
    bucket.prune_below(2).await;
    let mut lance = Lance::open(&bucket).await;
    for id in 1..=5 {
        lance.append([id]).await;
    }
    lance.flush(2).await;
    (bucket, lance)
}

#[tokio::test(start_paused = true)]
async fn a_shard_of_lances_own_is_taken_over() {
    let (bucket, _) = lances_own().await;
    // Generation 1 was flushed up to 2, as Lance's stamps say of all five; those of generation 2 are live.
    bucket.write(&bucket.entry_path(6), lance_entry(1, Some(2), &[6])).await;
    let (mut ours, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [6]);
    assert_eq!((ours.epoch().get(), ours.tenure().sentinel().get()), (2, 7));
    append(&mut ours, [7]).await.unwrap();
    assert_unadopted(&bucket, &bucket.manifest().await.collectable().unwrap_err());
    adopt(&bucket.shard()).await.unwrap();
    assert_eq!(bucket.fences().await, [(7, 2)]);
}

/// Lance claimed epoch 2 and published the first half of what epoch 1 had acknowledged.
#[tokio::test(start_paused = true)]
async fn lances_epoch_does_not_declare_the_rest_of_an_older_tenure_dead() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    for id in 1..=10 {
        append(&mut w1, [id]).await.unwrap();
    }
    Lance::open(&bucket).await.flush(6).await;
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [6, 7, 8, 9, 10]);
    assert_eq!(bucket.rows().await, [6, 7, 8, 9, 10]);
}

/// A claimant of epoch 2 that was replaced before its sentinel put it into a hole below R. Entries of epoch 1 above R
/// are acknowledged all the same, and our fields, begun anew, must not say otherwise.
#[tokio::test(start_paused = true)]
async fn schedule_38_an_adoption_does_not_take_an_unrecorded_sentinel_below_r_for_the_epoch_of_r() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    for id in 1..=5 {
        append(&mut w1, [id]).await.unwrap();
    }
    commit(&bucket, |m| (m.replay_after, m.writer_epoch) = (3, 3)).await;
    bucket.write(&bucket.entry_path(2), sentinel_of(2)).await;
    bucket.prune_below(bucket.manifest().await.version.get()).await;
    adopt(&bucket.shard()).await.unwrap();
    assert_eq!(bucket.rows().await, [3, 4, 5]);
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [3, 4, 5]);
}

/// Four PUTs in flight, the second never landed: another engine's tailer that read the third says "seen up to there".
#[tokio::test(start_paused = true)]
async fn schedule_39_what_another_engine_says_has_landed_does_not_make_a_hole() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    for id in 1..=3 {
        append(&mut w1, [id]).await.unwrap();
    }
    bucket.copy_entry(4, 6).await;
    commit(&bucket, |m| m.last_seen = 6).await;
    assert_eq!(bucket.rows().await, [1, 2, 3], "for a reader");
    let mut tailer = WalTailer::new(bucket.shard());
    for id in 1..=3 {
        assert_eq!(ids_of(&tailer.next().await.unwrap().unwrap()), [id]);
    }
    assert!(tailer.next().await.unwrap().is_none());

    let (mut w2, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [1, 2, 3], "and for a claim");
    assert_eq!(w2.tenure().sentinel().get(), 5);
    // Nor is it carried on: the value is ours again.
    assert_eq!(bucket.manifest().await.last_seen.get(), 5);
    append(&mut w2, [4]).await.unwrap();
    assert_eq!(bucket.rows().await, [1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn what_fencepost_said_has_landed_must_be_there_also_after_another_engine() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    for id in 1..=3 {
        append(&mut w1, [id]).await.unwrap();
    }
    w1.close().await.unwrap();
    commit(&bucket, |m| (m.last_seen, m.writer_epoch) = (0, 2)).await;
    bucket.delete(&bucket.entry_path(4)).await;
    let error = bucket.process().open().await.unwrap_err();
    assert!(matches!(error, Error::LogHole { position, .. } if position.get() == 4), "{error}");
}

fn assert_stranded(error: &Error, at: u64) {
    assert!(matches!(error, Error::Stranded { position, .. } if position.get() == at), "{error}");
}

/// Lance met a 409 with nothing landed, passed the position over, and acknowledged the next. Its own replay fills the
/// hole with a sentinel and goes on; ours in that place would declare the entry dead.
#[tokio::test(start_paused = true)]
async fn schedule_40_an_entry_of_lances_behind_a_hole_is_not_declared_dead() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    let mut lance = Lance::open(&bucket).await;
    lance.append([2]).await;
    bucket.write(&bucket.entry_path(6), lance_entry(lance.epoch, Some(1), &[3])).await;
    let process = bucket.process();
    assert_stranded(&process.open().await.unwrap_err(), 6);
    assert_eq!(process.requests(Op::Create, "/wal/"), 0, "no sentinel was put into the hole");
    // Lance fills the hole. Until it has flushed, its older writer's entry is still the only place of the row.
    drop(Lance::open(&bucket).await);
    assert_stranded(&bucket.process().open().await.unwrap_err(), 6);
    let mut lance = Lance::open(&bucket).await;
    let last = lance.append([4]).await;
    lance.flush(last).await;
    let (_, replay) = bucket.process().open().await.unwrap();
    assert!(replayed(replay).await.is_empty(), "all of it is in Lance's SSTable");
}

/// The same after our sentinel: Lance's writer may have acknowledged what stands on our next position.
#[tokio::test(start_paused = true)]
async fn schedule_40_an_entry_of_lances_on_our_next_position_is_not_passed_over() {
    let bucket = bucket().await;
    let lance = Lance::open(&bucket).await;
    let mut ours = bucket.process().appender().await;
    let next = ours.next_position();
    bucket.write(&bucket.entry_path(next.get()), lance_entry(lance.epoch, Some(1), &[1])).await;
    let error = append(&mut ours, [2]).await.unwrap_err();
    assert!(matches!(error, Error::Poisoned { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert_stranded(&bucket.process().open().await.unwrap_err(), next.get());
}

/// A sentinel of Lance's has no rows that could be lost.
#[tokio::test(start_paused = true)]
async fn a_sentinel_of_lances_behind_a_hole_or_a_higher_epoch_is_none_of_our_business() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    commit(&bucket, |m| m.writer_epoch = 2).await;
    bucket.write(&bucket.entry_path(5), sentinel_of(2)).await;
    let (mut w3, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [1]);
    append(&mut w3, [3]).await.unwrap();
    append(&mut w3, [4]).await.unwrap();
    assert_eq!(bucket.rows().await, [1, 3, 4]);
}

/// "Closed cleanly" is believed of the very version that a claim derives from, and this one does not say it.
#[tokio::test(start_paused = true)]
async fn a_clean_close_before_another_engine_is_none() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    w1.close().await.unwrap();
    commit(&bucket, |m| m.last_seen = 2).await;
    let w2 = bucket.process().appender().await;
    assert!(bucket.fences().await.contains(&(w2.tenure().sentinel().get(), 2)));
}

#[tokio::test(start_paused = true)]
async fn old_manifests_are_searched_with_many_gets_at_once() {
    let bucket = bucket().await;
    drop(bucket.process().appender().await);
    for _ in 0..40 {
        commit(&bucket, |m| m.writer_epoch += 1).await;
    }
    let process = bucket.process();
    process
        .faults
        .on(Op::Get)
        .path_contains("/manifest/")
        .always()
        .then(Fault::Delay(std::time::Duration::from_secs(1)));
    let begun = tokio::time::Instant::now();
    process.appender().await;
    assert!(begun.elapsed().as_secs() <= 10, "{:?}", begun.elapsed());
    assert_eq!(bucket.fences().await[0], (1, 1));
}

#[tokio::test]
async fn the_same_on_files_and_on_s3() {
    let folder = tempfile::tempdir().unwrap();
    let server = fencepost_sim::S3Server::start(folder.path()).unwrap();
    let files = tempfile::tempdir().unwrap();
    let stores = [
        Store::open(files.path().to_str().unwrap(), &Default::default()).unwrap(),
        Store::open(&server.url("t"), &server.storage_options()).unwrap(),
    ];
    for store in stores {
        let bucket = Bucket::on(store).await;
        let mut w1 = WalAppender::open(&bucket.shard(), &Default::default()).await.unwrap().0;
        append(&mut w1, [1]).await.unwrap();
        drop(Lance::open(&bucket).await);
        bucket.prune_below(bucket.manifest().await.version.get()).await;
        assert_unadopted(&bucket, &fencepost_wal::open(&bucket.shard(), &Default::default()).await.unwrap_err());
        assert_eq!(adopt(&bucket.shard()).await.unwrap().fences, [fence(1, 1), fence(3, 2)]);
        let opened = fencepost_wal::open(&bucket.shard(), &Default::default()).await.unwrap();
        assert_eq!(replayed(opened.replay).await, [1]);
    }
}
