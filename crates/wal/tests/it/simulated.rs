//! Schedules that the simulation found, in their shortest form.

use fencepost_sim::Op;
use fencepost_wal::Error;
use fencepost_wal::checkpoint::{self, CheckpointOptions};
use fencepost_wal::gc::{BaseProgress, GcOptions, collect};

use crate::support::bucket;

/// A collector has read the manifest and stalls; the checkpoint that it lists is deleted meanwhile, object and all.
/// "Damaged, restore it from a copy" would be a false alarm.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_went_while_a_collector_stalled_is_no_damage() {
    let bucket = bucket().await;
    let keeper = bucket.process();
    let made = checkpoint::create(&keeper.shard, &CheckpointOptions::default()).await.unwrap();
    let collector = bucket.patient();
    let gate = collector.faults.on(Op::Get).path_contains("checkpoints/").stall();
    let shard = collector.shard.clone();
    let collecting =
        tokio::spawn(async move { collect(&shard, &BaseProgress::default(), &GcOptions::default(), |_| ()).await });
    gate.reached().await;
    checkpoint::delete(&keeper.shard, made.id).await.unwrap();
    gate.release();
    let report = collecting.await.unwrap().unwrap();
    assert_eq!((report.refused, report.kept.live_checkpoints), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_went_while_it_was_read_is_no_damage() {
    let bucket = bucket().await;
    let keeper = bucket.process();
    let made = checkpoint::create(&keeper.shard, &CheckpointOptions::default()).await.unwrap();
    let reader = bucket.patient();
    let gate = reader.faults.on(Op::Get).path_contains("checkpoints/").stall();
    let shard = reader.shard.clone();
    let reading = tokio::spawn(async move { checkpoint::read(&shard, made.id).await });
    gate.reached().await;
    checkpoint::delete(&keeper.shard, made.id).await.unwrap();
    gate.release();
    let error = reading.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::NoCheckpoint { .. }), "{error}");
}

/// What is missing although the latest manifest lists it is damage.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_is_listed_and_missing_is_damage() {
    let bucket = bucket().await;
    let keeper = bucket.process();
    let made = checkpoint::create(&keeper.shard, &CheckpointOptions::default()).await.unwrap();
    bucket.delete(&bucket.shard().root().clone().join("checkpoints").join(format!("{}.binpb", made.id))).await;
    let error = collect(&keeper.shard, &BaseProgress::default(), &GcOptions::default(), |_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    let error = checkpoint::read(&keeper.shard, made.id).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}
