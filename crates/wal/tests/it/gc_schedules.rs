//! The schedules of protocol section 13 that are about collectors alone. (1, 2, 7, 13, 14, 16, 17 and 24 are in
//! `schedules`, and run the same collector.)

use std::time::Duration;

use fencepost_sim::Op;
use fencepost_wal::checkpoint::{self, CheckpointOptions};
use fencepost_wal::gc::{BaseProgress, GcKind};
use fencepost_wal::{Error, ManifestVersion, Position};

use crate::gc::{flush, merged};
use crate::support::{append, bucket, meets, replayed, settle};

/// Whichever of the two commits first: what is listed in the end is whole.
#[tokio::test(start_paused = true)]
async fn schedule_26_a_checkpoint_is_refreshed_while_gc_expires_it() {
    let mut refreshed = [0, 0];
    for (op, stalled) in
        [(Op::List, "/manifest"), (Op::Get, "/manifest/"), (Op::Create, "/manifest/"), (Op::Delete, "/")]
    {
        for nth in 1.. {
            let bucket = bucket().await;
            let mut w = bucket.process().appender().await;
            append(&mut w, [1]).await.unwrap();
            let options = CheckpointOptions { lifetime: Some(Duration::from_secs(3600)), ..Default::default() };
            let made = checkpoint::create(&bucket.shard(), &options).await.unwrap();
            let position = append(&mut w, [2]).await.unwrap();
            flush(&bucket, &w, position).await;

            // The collector's clock is ahead, so it has expired for it alone.
            let collector = bucket.collector();
            let gate = collector.faults.on(op).path_contains(stalled).nth(nth).stall();
            let collecting = tokio::spawn({
                let collector = collector.clone();
                async move { collector.collect(&merged(1)).await }
            });
            if !meets(&gate, &collecting).await {
                collecting.await.unwrap().unwrap();
                break;
            }
            let answer =
                checkpoint::refresh(&bucket.shard(), made.id, Some(Duration::from_secs(365 * 24 * 3600))).await;
            gate.release();
            let report = collecting.await.unwrap().unwrap();
            bucket.check_nothing_is_missing().await;
            match answer {
                Ok(_) => {
                    refreshed[0] += 1;
                    assert_eq!((report.expired_checkpoints, report.kept.live_checkpoints), (0, 1));
                    assert_eq!(checkpoint::read(&bucket.shard(), made.id).await.unwrap().tail, made.tail);
                }
                Err(error) => {
                    refreshed[1] += 1;
                    assert!(matches!(error, Error::NoCheckpoint { .. }), "{error}");
                    assert_eq!(bucket.manifest().await.checkpoints(), []);
                }
            }
        }
    }
    assert!(refreshed.iter().all(|n| *n > 2), "{refreshed:?}");
}

/// Wherever a collector stalls while it reads: the manifest that it acts upon was the newest.
#[tokio::test(start_paused = true)]
async fn schedule_28_a_collector_does_not_act_on_a_manifest_that_came_back() {
    let mut met = 0;
    for after in [false, true] {
        for op in [Op::List, Op::Get] {
            for nth in 1..=3 {
                let bucket = bucket().await;
                let mut w = bucket.process().appender().await;
                let first = append(&mut w, [1]).await.unwrap();
                append(&mut w, [2]).await.unwrap();
                checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
                w.truncate(first).await.unwrap();
                let version = bucket.manifest().await.version.get();

                let collector = bucket.collector();
                let rule = collector.faults.on(op).path_contains("/manifest").nth(nth);
                let gate = if after { rule.stall_after() } else { rule.stall() };
                let collecting = tokio::spawn({
                    let collector = collector.clone();
                    async move { collector.collect(&BaseProgress::default()).await }
                });
                if !meets(&gate, &collecting).await {
                    collecting.await.unwrap().unwrap();
                    continue;
                }
                met += 1;
                // Others go on until the version is pruned, and then its name comes back, from a process that had
                // stalled with a manifest that lists no checkpoint and a much higher R.
                for id in 3..30 {
                    append(&mut w, [id]).await.unwrap();
                    w.tenure().publish(None, first).await.unwrap();
                }
                bucket.collect_garbage().await;
                assert!(bucket.read(&bucket.manifest_path(version)).await.is_none());
                let mut forged = bucket.manifest().await;
                (forged.version, forged.replay_after) = (ManifestVersion::new(version), Position::new(1000));
                forged.extension.as_mut().unwrap().checkpoints.clear();
                let forged = bucket.bytes_of(forged).await;
                bucket.write(&bucket.manifest_path(version), forged).await;

                gate.release();
                collecting.await.unwrap().unwrap();
                bucket.check_nothing_is_missing().await;
                let (_, replay) = bucket.process().open().await.unwrap();
                assert_eq!(replayed(replay).await, (2..30).collect::<Vec<_>>(), "{op:?} {nth} {after}");
            }
        }
    }
    assert!(met >= 6, "{met}");
}

/// 1, 13 and 14 once more, with the stalled writer's bytes in the holes behind its fence: a window of PUTs that wakes up
/// after everything was collected.
#[tokio::test(start_paused = true)]
async fn schedule_01_a_window_that_was_stalled_over_takeover_flush_and_gc_acknowledges_nothing() {
    use crate::support::batch;
    use fencepost_wal::{Outcome, WalConfig};
    let bucket = bucket().await;
    let process = bucket.patient();
    let writer = process.writer(WalConfig { max_in_flight: 4, ..WalConfig::default() }).await;
    for id in 1..=33 {
        writer.append(batch([id])).await.unwrap();
    }
    let first = writer.stats().next_position.get();
    let gates: Vec<_> = (0..4).map(|_| process.faults.on(Op::Create).path_contains("/wal/").stall()).collect();
    let mut promises = Vec::new();
    for (id, gate) in (100..).zip(&gates) {
        promises.push(writer.append_urgent(batch([id])).await.unwrap());
        gate.reached().await;
    }
    let mut w2 = bucket.process().appender().await;
    assert_eq!(w2.tenure().sentinel().get(), first);
    for id in 200..210 {
        append(&mut w2, [id]).await.unwrap();
    }
    let position = append(&mut w2, [210]).await.unwrap();
    flush(&bucket, &w2, position).await;
    assert!(bucket.collect_garbage().await.of(GcKind::WalEntry).objects > 30);

    // All but the first land in holes.
    for gate in gates.iter().rev() {
        gate.release();
        settle().await;
    }
    for promise in promises {
        let error = promise.await.unwrap_err();
        assert!(matches!(error, Error::Fenced { .. }), "{error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
    }
    assert!(bucket.read(&bucket.entry_path(first + 1)).await.is_some());
    append(&mut w2, [211]).await.unwrap();
    assert_eq!(bucket.rows().await, [211]);
    // They go with the next collection.
    assert_eq!(bucket.collect_garbage().await.of(GcKind::WalEntry).objects, 3);
    assert_eq!(bucket.manifest().await.replay_after, Position::new(position.get()));
}
