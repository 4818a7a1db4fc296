//! Committing a manifest (protocol section 3): every answer that a create can get, and what it means.

use std::time::Duration;

use fencepost_sim::{Fault, Op};
use fencepost_wal::{Error, ManifestStore, ManifestVersion, Outcome, Position, ShardManifest};

use crate::support::{Bucket, Process, append, bucket, settle};

/// A writer with two rows, whose next commit is a truncation at the first.
async fn about_to_commit(process: &Process) -> (fencepost_wal::WalAppender, Position) {
    let mut appender = process.appender().await;
    let first = append(&mut appender, [1]).await.unwrap();
    append(&mut appender, [2]).await.unwrap();
    settle().await;
    process.faults.clear_log();
    (appender, first)
}

/// Every version's commit leads back to the one before.
async fn assert_one_lineage(bucket: &Bucket) {
    let manifests = ManifestStore::new(bucket.shard());
    let newest = bucket.manifest().await.version.get();
    let mut parent = None;
    for version in 1..=newest {
        let manifest = manifests.read(ManifestVersion::new(version)).await.unwrap().unwrap();
        let extension = manifest.extension.unwrap();
        if let Some(parent) = parent {
            assert_eq!(extension.parent_commit_id, parent, "version {version}");
        }
        parent = Some(extension.commit_id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_costs_one_put_and_one_list() {
    let bucket = bucket().await;
    let process = bucket.process();
    let (w1, position) = about_to_commit(&process).await;
    w1.truncate(position).await.unwrap();
    let ops: Vec<Op> = process.faults.log().iter().map(|r| r.op).collect();
    assert_eq!(ops, [Op::Create, Op::List]);
    assert_one_lineage(&bucket).await;
}

#[tokio::test(start_paused = true)]
async fn every_ambiguous_answer_is_resolved_to_one_commit() {
    for fault in [Fault::LostAck, Fault::LostAckAsExists, Fault::Conflict409, Fault::Fail, Fault::LateLanding] {
        for times in [1, 3] {
            let bucket = bucket().await;
            let process = bucket.process();
            let (w1, position) = about_to_commit(&process).await;
            let before = bucket.manifest().await.version.get();
            process.faults.on(Op::Create).path_contains("/manifest/").times(times).then(fault);
            let committed = w1.truncate(position).await.unwrap();
            process.faults.land_late().await;
            assert_eq!(committed.version.get(), before + 1, "{fault:?}");
            assert_eq!(bucket.manifest().await, committed);
            assert_eq!(bucket.rows().await, [2]);
            assert_one_lineage(&bucket).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_create_that_never_answers_is_unknown_and_poisons() {
    for fault in [Fault::Fail, Fault::LateLanding, Fault::Conflict409] {
        let bucket = bucket().await;
        let process = bucket.attempts(3);
        let (mut w1, position) = about_to_commit(&process).await;
        let rule = process.faults.on(Op::Create).path_contains("/manifest/").always().then(fault);
        let error = w1.truncate(position).await.unwrap_err();
        assert!(matches!(error, Error::CommitUnknown { .. }), "{fault:?}: {error}");
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert_eq!(rule.fired(), 3);
        process.faults.clear_rules();
        assert!(matches!(append(&mut w1, [3]).await, Err(Error::Poisoned { .. })));
        process.faults.land_late().await;
        let rows = bucket.rows().await;
        assert_eq!(rows, if fault == Fault::LateLanding { vec![2] } else { vec![1, 2] });
        assert_one_lineage(&bucket).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lineage_check_that_gets_no_answer_leaves_the_commit_unknown() {
    let bucket = bucket().await;
    let process = bucket.attempts(2);
    let (mut w1, position) = about_to_commit(&process).await;
    process.faults.on(Op::List).path_contains("/manifest").always().then(Fault::Fail);
    let error = w1.truncate(position).await.unwrap_err();
    assert!(matches!(error, Error::CommitUnknown { .. }), "{error}");
    assert!(matches!(append(&mut w1, [3]).await, Err(Error::Poisoned { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_misses_the_commit_leaves_it_unknown() {
    let bucket = bucket().await;
    let process = bucket.process();
    let (w1, position) = about_to_commit(&process).await;
    process.faults.on(Op::List).path_contains("/manifest").then(Fault::Swallow);
    assert!(matches!(w1.truncate(position).await, Err(Error::CommitUnknown { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_derived_anew_from_what_somebody_else_committed() {
    // Both commit from the same version: the claim loses, reads again and is derived from the truncation.
    let bucket = bucket().await;
    let (w1, position) = about_to_commit(&bucket.process()).await;
    let process = bucket.patient();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    let opening = tokio::spawn({
        let process = process.clone();
        async move { process.open().await }
    });
    gate.reached().await;
    w1.truncate(position).await.unwrap();
    gate.release();
    let (w2, replay) = opening.await.unwrap().unwrap();
    assert_eq!(replay.replay_after(), position);
    assert_eq!(w2.epoch().get(), 2);
    assert_eq!(crate::support::replayed(replay).await, [2]);
    assert_one_lineage(&bucket).await;
}

#[tokio::test(start_paused = true)]
async fn a_clean_close_that_comes_between_is_seen_by_the_claim_that_is_derived_anew() {
    let bucket = bucket().await;
    let (w1, _) = about_to_commit(&bucket.process()).await;
    let process = bucket.patient();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    let opening = tokio::spawn({
        let process = process.clone();
        async move { process.open().await }
    });
    gate.reached().await;
    w1.close().await.unwrap();
    gate.release();
    let (w2, _) = opening.await.unwrap().unwrap();
    assert!(!bucket.fences().await.contains(&(w2.tenure().sentinel().get(), 2)), "no fence is needed after it");
}

#[tokio::test(start_paused = true)]
async fn a_refused_change_commits_nothing() {
    let bucket = bucket().await;
    let process = bucket.process();
    let (w1, position) = about_to_commit(&process).await;
    w1.truncate(position).await.unwrap();
    settle().await;
    process.faults.clear_log();
    let error = w1.truncate(Position::new(1)).await.unwrap_err();
    assert!(error.to_string().contains("starts after 2 already"), "{error}");
    assert_eq!(process.requests(Op::Create, ""), 0);
    // And the writer is none the worse for it.
    w1.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wrong_generation_is_refused() {
    use fencepost_wal::{Generation, SsTable};
    let bucket = bucket().await;
    let (w1, position) = about_to_commit(&bucket.process()).await;
    for generation in [0, 2] {
        let sstable = SsTable::new(Generation::new(generation), "0badcafe_gen_1".into());
        assert!(matches!(w1.tenure().publish(Some(sstable), position).await, Err(Error::InvalidArgument(_))));
    }
    assert!(bucket.manifest().await.sstables.is_empty());
}

#[tokio::test(start_paused = true)]
async fn r_never_decreases() {
    use fencepost_wal::{Generation, SsTable};
    let bucket = bucket().await;
    let (w1, position) = about_to_commit(&bucket.process()).await;
    let acknowledged = w1.tenure().acknowledged();
    w1.truncate(acknowledged).await.unwrap();
    let sstable = SsTable::new(Generation::new(1), "0badcafe_gen_1".into());
    let manifest = w1.tenure().publish(Some(sstable), position).await.unwrap();
    assert_eq!(manifest.replay_after, acknowledged);
}

#[tokio::test(start_paused = true)]
async fn commits_of_one_tenure_follow_each_other() {
    let bucket = bucket().await;
    let process = bucket.process();
    let mut w1 = process.appender().await;
    let mut positions = Vec::new();
    for id in 0..10 {
        positions.push(append(&mut w1, [id]).await.unwrap());
    }
    let before = bucket.manifest().await.version.get();
    let truncations = positions.iter().map(|p| w1.truncate(*p));
    let answers = futures::future::join_all(truncations).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(bucket.manifest().await.version.get(), before + 10);
    assert_one_lineage(&bucket).await;
}

#[tokio::test(start_paused = true)]
async fn endless_conflicts_end_in_contention() {
    // A claimant that stalls before each of its creates, while the owner commits.
    let bucket = bucket().await;
    let (mut w1, position) = about_to_commit(&bucket.process()).await;
    let process = bucket.patient();
    let stalls: Vec<_> =
        (1..=64).map(|nth| process.faults.on(Op::Create).path_contains("/manifest/").nth(nth).stall()).collect();
    let opening = tokio::spawn({
        let process = process.clone();
        async move { process.open().await.map(|_| ()) }
    });
    for gate in stalls {
        gate.reached().await;
        w1.truncate(position).await.unwrap();
        gate.release();
    }
    let error = opening.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Contention { attempts: 64, .. }), "{error}");
    append(&mut w1, [3]).await.unwrap();
    assert_one_lineage(&bucket).await;
}

#[tokio::test(start_paused = true)]
async fn a_held_manifest_is_not_used_after_an_hour() {
    let bucket = bucket().await;
    let process = bucket.process();
    let (w1, position) = about_to_commit(&process).await;
    tokio::time::advance(Duration::from_secs(3601)).await;
    w1.truncate(position).await.unwrap();
    let ops: Vec<Op> = process.faults.log().iter().map(|r| r.op).collect();
    assert_eq!(ops, [Op::List, Op::Get, Op::Create, Op::List]);
}

#[tokio::test(start_paused = true)]
async fn the_hint_is_written_after_the_check_and_never_needed() {
    let bucket = bucket().await;
    let process = bucket.process();
    process.faults.on(Op::Overwrite).path_contains("version_hint").always().then(Fault::Fail);
    let (w1, position) = about_to_commit(&process).await;
    w1.truncate(position).await.unwrap();
    settle().await;
    let log = process.faults.log();
    assert_eq!(log.last().unwrap().op, Op::Overwrite, "{log:?}");
    // A hint that lies is believed by nobody.
    let hint = bucket.shard().root().clone().join("manifest").join("version_hint.json");
    bucket.write(&hint, "{\"version\":1}".into()).await;
    assert_eq!(bucket.process().appender().await.epoch().get(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_latest_is_asked_for_again_when_it_was_pruned_between_list_and_get() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    let process = bucket.patient();
    let gate = process.faults.on(Op::List).path_contains("/manifest").stall_after();
    let reading = tokio::spawn({
        let manifests = ManifestStore::new(process.shard.clone());
        async move { manifests.latest().await }
    });
    gate.reached().await;
    for id in 0..3 {
        let position = append(&mut w1, [id]).await.unwrap();
        w1.truncate(position).await.unwrap();
    }
    let newest = bucket.manifest().await;
    bucket.prune_below(newest.version.get()).await;
    gate.release();
    assert_eq!(reading.await.unwrap().unwrap().unwrap(), newest);
}

#[tokio::test(start_paused = true)]
async fn a_slow_read_is_asked_for_again() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    let process = bucket.patient();
    process.faults.on(Op::Get).path_contains("/manifest/").then(Fault::Delay(Duration::from_secs(61)));
    let reading = tokio::spawn({
        let manifests = ManifestStore::new(process.shard.clone());
        async move { manifests.latest().await }
    });
    settle().await;
    let position = append(&mut w1, [1]).await.unwrap();
    w1.truncate(position).await.unwrap();
    let newest = bucket.manifest().await;
    assert_eq!(reading.await.unwrap().unwrap().unwrap(), newest);
}

#[tokio::test(start_paused = true)]
async fn creating_a_shard_again_changes_nothing_also_when_its_first_versions_were_pruned() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    let manifests = ManifestStore::new(bucket.shard());
    let again = || manifests.initialize(ShardManifest::first(bucket.shard().id(), 7, vec![]));
    again().await.unwrap();
    let newest = bucket.manifest().await;
    bucket.prune_below(newest.version.get()).await;
    again().await.unwrap();
    assert!(bucket.read(&bucket.manifest_path(1)).await.is_none(), "a pruned name did not come back");
    assert_eq!(bucket.manifest().await, newest);
    append(&mut w1, [2]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_closed_shard_takes_no_writer() {
    // Nothing in this crate seals or deletes a shard yet; the states are read all the same.
    for (state, change) in [
        ("sealed", (|m| m.status = fencepost_wal::ShardStatus::Sealed) as fn(&mut ShardManifest)),
        ("deleted", |m| m.extension.as_mut().unwrap().deleted = true),
    ] {
        let bucket = bucket().await;
        let shard = fencepost_wal::Shard::new(bucket.shard().store().clone(), fencepost_wal::ShardId::new_random());
        let mut first = ShardManifest::first(shard.id(), 0, vec![]);
        change(&mut first);
        ManifestStore::new(shard.clone()).initialize(first).await.unwrap();
        let error = fencepost_wal::open(&shard, &Default::default()).await.unwrap_err();
        assert!(matches!(error, Error::ShardClosed { state: s, .. } if s == state), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_was_dropped_half_way_is_not_applied_twice() {
    use fencepost_wal::{Generation, SsTable};
    let bucket = bucket().await;
    let process = bucket.patient();
    let (w1, position) = about_to_commit(&process).await;
    let publish = |generation| {
        let sstable = SsTable::new(Generation::new(generation), format!("0badcafe_gen_{generation}"));
        w1.tenure().publish(Some(sstable), position)
    };
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall_after();
    let mut dropped = Box::pin(publish(1));
    crate::support::must_wait(&mut dropped).await;
    assert_eq!(gate.arrivals(), 1);
    drop(dropped);
    // It is there, and the same again is refused rather than listed twice.
    assert!(matches!(publish(1).await, Err(Error::InvalidArgument(_))));
    let manifest = publish(2).await.unwrap();
    assert_eq!(manifest.sstables.len(), 2);
    assert_one_lineage(&bucket).await;
}
