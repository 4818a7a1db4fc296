//! Checkpoints of whole tables: that they have exactly their moment's rows, whatever becomes of the table, what they keep, and what
//! becomes of those that are not finished.

use std::sync::Arc;
use std::time::Duration;

use fencepost::wal::gc::GcKind;
use fencepost::wal::{Error as WalError, Position};
use fencepost::{CheckpointOptions, CheckpointScope, Error, Table, TableCheckpoint, TableWriter};
use fencepost_sim::Op;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::cleanup::{CleanupPolicyBuilder, cleanup_old_versions};
use object_store::{ObjectStore, ObjectStoreExt};
use uuid::Uuid;

use crate::gc::gc;
use crate::interop::place::Place;
use crate::merge::merge;
use crate::support::*;

type Rows = Vec<(i64, Option<i64>)>;

const HOUR: Duration = Duration::from_secs(3600);

fn all() -> CheckpointOptions {
    CheckpointOptions { scope: CheckpointScope::All, ..Default::default() }
}

pub(crate) async fn at(bucket: &Bucket, id: Uuid) -> Rows {
    pairs(bucket.table().await.provider_at(id).await.unwrap()).await
}

/// Puts, flushes, deletes, merges: every place has rows.
pub(crate) async fn written(bucket: &Bucket, sharding: &str) -> TableWriter {
    create(bucket, &["id"], sharding).await;
    let writer = bucket.table().await.writer(config()).await.unwrap();
    writer.put(ids(0..40)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&bucket.table().await).await;
    writer.put(ids(30..60)).await.unwrap();
    writer.delete(keys(&[1, 2, 3])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(&[(5, 50), (6, 60)])).await.unwrap();
    writer
}

/// Everything changes, everything moves on, and what nobody needs goes.
async fn go_on(bucket: &Bucket, writer: &TableWriter) {
    writer.put(rows(&(0..60).map(|id| (id, 1_000 + id)).collect::<Vec<_>>())).await.unwrap();
    writer.delete(keys(&(20..30).collect::<Vec<_>>())).await.unwrap();
    writer.flush().await.unwrap();
    merge(&bucket.table().await).await;
    writer.put(ids(100..110)).await.unwrap();
    gc(bucket).await;
}

#[tokio::test]
async fn at_a_checkpoint_the_table_is_as_it_was_whatever_happens_to_it() {
    for sharding in ["unsharded", "bucket(id,4)"] {
        for options in [CheckpointOptions::default(), all()] {
            let bucket = Bucket::new();
            let writer = written(&bucket, sharding).await;
            let before = bucket.seen().await;
            let by_writer = writer.checkpoint(&options).await.unwrap();
            assert_eq!(by_writer.needs_log(), options.scope == CheckpointScope::Durable, "{sharding}");
            let detached = bucket.table().await.checkpoint(&CheckpointOptions::default()).await.unwrap();
            go_on(&bucket, &writer).await;
            go_on(&bucket, &writer).await;
            let now = bucket.seen().await;
            assert_ne!(now, before);
            for made in [&by_writer, &detached] {
                assert_eq!(at(&bucket, made.id).await, before, "{sharding} {:?}", options.scope);
            }
            let provider = bucket.table().await.provider_at(by_writer.id).await.unwrap();
            assert_eq!(sql(&provider, "select v from t where id = 5").await, [["50"]]);
            assert_eq!(number(&provider, "select count(*) from t where id < 4").await, 1);
            // The table itself goes on.
            assert_eq!(pairs(writer.provider().await.unwrap()).await, now);
            assert!(
                bucket
                    .table()
                    .await
                    .verify(|_| ())
                    .await
                    .unwrap()
                    .findings
                    .iter()
                    .all(|f| f.kind.name != "checkpoint-hole")
            );

            // Deleted, it holds nothing any more.
            let table = bucket.table().await;
            for made in [by_writer, detached] {
                table.delete_checkpoint(made.id).await.unwrap();
                assert!(matches!(table.provider_at(made.id).await, Err(Error::NoCheckpoint { .. })));
                assert!(matches!(table.delete_checkpoint(made.id).await, Err(Error::NoCheckpoint { .. })));
            }
            let report = gc(&bucket).await;
            let freed: u64 = report.shards.iter().map(|shard| shard.report.of(GcKind::SsTable).objects).sum();
            assert!(freed > 0, "{sharding}");
            assert_eq!(bucket.seen().await, now);
        }
    }
}

/// Lance's own cleanup leaves the base version alone for as long as it is tagged, and not longer.
#[tokio::test]
async fn the_base_version_is_kept_by_a_tag_which_goes_last() {
    let place = Place::sharded(true, "bucket(id,2)".parse().unwrap()).await;
    let table = place.table().await;
    let writer = table.writer(config()).await.unwrap();
    writer.put(ids(0..20)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&table).await;
    let made = writer.checkpoint(&all()).await.unwrap();
    for round in 0..3 {
        writer.put(rows(&(0..20).map(|id| (id, round)).collect::<Vec<_>>())).await.unwrap();
        writer.flush().await.unwrap();
        merge(&table).await;
    }
    let clean_up = async || {
        let base = Dataset::open(&place.path()).await.unwrap();
        let mut policy =
            CleanupPolicyBuilder::default().delete_unverified(true).error_if_tagged_old_versions(false).build();
        (policy.before_timestamp, policy.before_version) = (None, Some(base.version().version));
        cleanup_old_versions(&base, policy).await.unwrap()
    };
    clean_up().await;
    assert_eq!(pairs(table.provider_at(made.id).await.unwrap()).await, id_pairs(0..20));
    table.delete_checkpoint(made.id).await.unwrap();
    assert!(clean_up().await.old_versions > 0);
    assert_eq!(pairs(table.provider().await.unwrap()).await.len(), 20);
}

/// Wherever its maker stalls while shards are flushed, merged and collected: what it makes in the end is one moment's.
#[tokio::test]
async fn schedule_20_a_table_that_is_merged_between_the_pins_is_pinned_anew() {
    let (mut stalls, mut anew) = (0, 0);
    for (op, path) in [(Op::Create, "/_refs/tags/"), (Op::Create, "/checkpoints/"), (Op::Create, "/manifest/")] {
        for nth in 1.. {
            let bucket = Bucket::new();
            let writer = written(&bucket, "bucket(id,2)").await;
            let slow = bucket.process();
            let gate = slow.faults.on(op).path_contains(path).nth(nth).stall_after();
            let table = slow.table().await;
            let making = tokio::spawn(async move { table.checkpoint(&CheckpointOptions::default()).await });
            if !meets(&gate, &making).await {
                making.await.unwrap().unwrap();
                break;
            }
            stalls += 1;
            // Nothing that a reader sees changes: so the checkpoint has this, whenever it is made.
            let before = bucket.seen().await;
            writer.flush().await.unwrap();
            merge(&bucket.table().await).await;
            gc(&bucket).await;
            gate.release();
            let made = making.await.unwrap().unwrap();
            anew += usize::from(
                slow.faults.log().iter().filter(|r| r.path.contains("/_refs/tags/") && r.op == Op::Create).count() > 1,
            );
            go_on(&bucket, &writer).await;
            assert_eq!(at(&bucket, made.id).await, before, "{op:?} {path} {nth}");
            let tags = objects(&bucket, "/_refs/tags/").await;
            assert_eq!(tags.len(), 1, "what was given up is gone: {tags:?}");
            assert_eq!(bucket.table().await.checkpoints(None).await.unwrap(), [made]);
        }
    }
    assert!(stalls >= 5 && anew >= 2, "{stalls} stalls, {anew} made anew");
}

/// Its columns were not compared with those of the newest base version (I9), so it must not be found by anybody.
#[tokio::test]
async fn a_checkpoint_whose_base_version_cannot_be_read_again_is_given_up() {
    let bucket = Bucket::new();
    let _writer = written(&bucket, "unsharded").await;
    let process = bucket.process();
    let table = process.table().await;
    // First it is read when it was tagged.
    let gate = process.faults.on(Op::Get).path_contains("/_refs/tags/").nth(2).stall();
    let making = tokio::spawn(async move { table.checkpoint(&CheckpointOptions::default()).await });
    assert!(meets(&gate, &making).await);
    let parts = objects(&bucket, "/checkpoints/").await;
    assert_eq!(parts.len(), 1, "everything is pinned: {parts:?}");
    for tag in objects(&bucket, "/_refs/tags/").await {
        bucket.inner().put(&tag.as_str().into(), "{".into()).await.unwrap();
    }
    gate.release();
    making.await.unwrap().unwrap_err();
    assert_eq!(bucket.table().await.checkpoints(None).await.unwrap(), []);
    assert_eq!(objects(&bucket, "/_refs/tags/").await, [""; 0]);
}

pub(crate) async fn meets<T>(gate: &fencepost_sim::Gate, task: &tokio::task::JoinHandle<T>) -> bool {
    while gate.arrivals() == 0 && !task.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    gate.arrivals() > 0
}

pub(crate) async fn objects(bucket: &Bucket, part: &str) -> Vec<String> {
    let listed: Vec<_> = bucket.inner().list(None).try_collect().await.unwrap();
    let names = listed.into_iter().map(|object| format!("/{}", object.location));
    names.filter(|name| name.contains(part)).collect()
}

#[tokio::test]
async fn checkpoints_have_names_and_lifetimes() {
    let bucket = Bucket::new();
    let writer = written(&bucket, "bucket(id,2)").await;
    let named = |name: &str, lifetime| CheckpointOptions { name: Some(name.into()), lifetime, ..Default::default() };
    let short = writer.checkpoint(&named("nightly", Some(HOUR))).await.unwrap();
    let before = bucket.seen().await;
    let long = writer.checkpoint(&named("nightly", Some(HOUR))).await.unwrap();
    writer.put(ids(70..80)).await.unwrap();
    let table = bucket.table().await;
    assert_eq!(table.checkpoints(Some("nightly")).await.unwrap(), [short.clone(), long.clone()]);
    assert_eq!(table.checkpoints(Some("weekly")).await.unwrap(), []);
    assert_eq!(table.find_checkpoint("nightly").await.unwrap(), long);
    assert_eq!(table.find_checkpoint(&short.id.to_string()).await.unwrap(), short);
    let error = table.find_checkpoint("weekly").await.unwrap_err().to_string();
    assert!(error.contains("`weekly`") && error.contains("list them"), "{error}");
    let refreshed = table.refresh_checkpoint(long.id, None).await.unwrap();
    assert_eq!((refreshed.expires_at_ms, refreshed.shards), (None, long.shards));

    // One of the same moment, with a life of its own.
    let of_it = CheckpointOptions { source: Some(long.id), ..named("kept", Some(1000 * HOUR)) };
    let copied = table.checkpoint(&of_it).await.unwrap();
    table.delete_checkpoint(long.id).await.unwrap();
    go_on(&bucket, &writer).await;
    assert_eq!(at(&bucket, copied.id).await, before);

    // 48 hours later.
    let report = gc(&bucket).await;
    assert_eq!(report.shards.iter().map(|s| s.report.expired_checkpoints).sum::<u64>(), 0, "the first run dropped it");
    let left: Vec<TableCheckpoint> = bucket.table().await.checkpoints(None).await.unwrap();
    assert_eq!(left.iter().map(|c| c.id).collect::<Vec<_>>(), [copied.id]);
    for gone in [short.id, long.id] {
        assert!(matches!(table.refresh_checkpoint(gone, None).await, Err(Error::NoCheckpoint { .. })));
        let of_it = CheckpointOptions { source: Some(gone), ..Default::default() };
        assert!(matches!(table.checkpoint(&of_it).await, Err(Error::NoCheckpoint { .. })));
    }
    let tags = objects(&bucket, "/_refs/tags/").await;
    assert_eq!(tags.len(), 1, "the others' base versions were given up: {tags:?}");
}

/// Killed behind each of its writes: what is left holds nothing for ever, and is no checkpoint.
#[tokio::test]
async fn a_checkpoint_whose_maker_dies_is_none_and_goes() {
    let (mut deaths, mut seen_unfinished) = (0, 0);
    for nth in 1.. {
        let bucket = Bucket::new();
        let writer = written(&bucket, "bucket(id,3)").await;
        let before = bucket.seen().await;
        let dying = bucket.process();
        let is_write = |path: &str| ["/_refs/tags/", "/checkpoints/", "/manifest/"].iter().any(|p| path.contains(p));
        let gate = dying.faults.on(Op::Create).path_matches(is_write).nth(nth).stall_after();
        let table = dying.table().await;
        let options = CheckpointOptions { lifetime: Some(HOUR), ..Default::default() };
        let making = tokio::spawn(async move { table.checkpoint(&options).await });
        if !meets(&gate, &making).await {
            making.await.unwrap().unwrap();
            break;
        }
        making.abort();
        deaths += 1;
        let there = bucket.table().await.checkpoints(None).await.unwrap();
        for made in &there {
            assert_eq!(at(&bucket, made.id).await, before);
        }
        let unfinished = bucket.table().await.unfinished_checkpoints().await.unwrap();
        seen_unfinished += unfinished.len();
        assert!(there.len() + unfinished.len() <= 1);
        go_on(&bucket, &writer).await;
        gc(&bucket).await;
        assert_eq!(bucket.table().await.checkpoints(None).await.unwrap(), []);
        assert_eq!(objects(&bucket, "/_refs/tags/").await, [""; 0]);
        assert_eq!(objects(&bucket, "/checkpoints/").await, [""; 0]);
    }
    assert!(deaths >= 7 && seen_unfinished >= 2, "{deaths} {seen_unfinished}");
}

/// Rows go on being put by other tasks: those that were accepted before are in, and of each task a prefix.
#[tokio::test]
async fn a_checkpoint_of_all_closes_the_gap_while_appends_go_on() {
    let bucket = Bucket::new();
    create(&bucket, &["id"], "bucket(id,2)").await;
    let writer = Arc::new(bucket.table().await.writer(small(50)).await.unwrap());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let tasks = (0..4).map(|task| {
        let (writer, stopped) = (Arc::clone(&writer), stopped.clone());
        tokio::spawn(async move {
            let mut n = 0;
            while !*stopped.borrow() {
                let id = task * 1_000_000 + n;
                writer.put(rows(&[(id, id)])).await.unwrap();
                n += 1;
            }
            n
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut made = Vec::new();
    for round in 0..4 {
        let mark = 9_000_000 + round;
        writer.put(rows(&[(mark, 0)])).await.unwrap();
        let checkpoint = writer.checkpoint(&all()).await.unwrap();
        assert!(!checkpoint.needs_log());
        made.push((mark, checkpoint));
    }
    stop.send(true).unwrap();
    let mut written = Vec::new();
    for task in tasks {
        written.push(task.await.unwrap());
    }
    let mut of_shards = Vec::new();
    for shard in writer.shards() {
        of_shards.push(scanned(&shard).await.into_iter().map(|(id, _)| id).collect::<Vec<_>>());
    }
    for (mark, checkpoint) in made {
        let rows = at(&bucket, checkpoint.id).await;
        assert!(rows.iter().any(|(id, _)| *id == mark));
        for (task, written) in (0..).zip(&written) {
            let own = |id: &i64| id / 1_000_000 == task && *id < 9_000_000;
            assert!(rows.iter().filter(|(id, _)| own(id)).count() as i64 <= *written);
            // A task waits for each of its puts, and a shard has one moment: what is missing of a shard comes behind what is there.
            for shard in &of_shards {
                let all: Vec<i64> = shard.iter().copied().filter(own).collect();
                let there: Vec<i64> = all.iter().copied().filter(|id| rows.iter().any(|(row, _)| row == id)).collect();
                assert_eq!(there, all[..there.len()], "task {task}");
            }
        }
    }
    let seen = bucket.seen().await;
    assert_eq!(seen.len() as i64, written.iter().sum::<i64>() + 4);
}

/// An empty MemTable right after one takeover, or several: R passes over the sentinels in the manifest that lists the checkpoint.
#[tokio::test]
async fn a_checkpoint_of_all_right_after_takeovers_needs_no_log() {
    for takeovers in 1..=3 {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let writer = bucket.process().writer(config()).await;
        writer.put(ids(0..5)).await.unwrap();
        writer.flush().await.unwrap();
        drop(writer);
        for _ in 1..takeovers {
            drop(bucket.process().writer(config()).await);
        }
        let writer = bucket.process().writer(config()).await;
        let part = writer.checkpoint(CheckpointScope::All, &Default::default()).await.unwrap();
        let manifest = bucket.manifest().await;
        assert_eq!(
            (part.replay_after, part.tail, part.version),
            (manifest.replay_after, part.replay_after, manifest.version)
        );
        assert_eq!(part.tail, Position::new(2 + takeovers));
        // Again, with nothing to do.
        let again = writer.checkpoint(CheckpointScope::All, &Default::default()).await.unwrap();
        assert_eq!(again.tail, part.tail);
    }
}

#[tokio::test]
async fn what_a_checkpoint_cannot_be_made_of_is_said() {
    let bucket = Bucket::new();
    let table = create(&bucket, &["id"], "identity(id)").await;
    let error = table.checkpoint(&CheckpointOptions::default()).await.unwrap_err().to_string();
    assert!(error.contains("has no shard yet"), "{error}");
    assert_eq!(objects(&bucket, "/_refs/tags/").await, [""; 0]);
    let writer = table.writer(fencepost::WriterConfig::wal_only()).await.unwrap();
    writer.put(ids(0..3)).await.unwrap();
    let error = writer.checkpoint(&all()).await.unwrap_err().to_string();
    assert!(error.contains("needs a MemTable"), "{error}");
    let made = writer.checkpoint(&CheckpointOptions::default()).await.unwrap();
    assert_eq!(made.shards.len(), 3);
    // A replaced writer pins nothing.
    let _successor = bucket.table().await.writer(config()).await.unwrap();
    let keyed = Bucket::new();
    let old = written(&keyed, "bucket(id,2)").await;
    let _new = keyed.table().await.writer(config()).await.unwrap();
    let error = old.checkpoint(&all()).await.unwrap_err();
    assert!(matches!(error, Error::Wal(WalError::Fenced { .. })), "{error}");
    assert_eq!(keyed.table().await.checkpoints(None).await.unwrap(), []);
    assert_eq!(objects(&keyed, "/_refs/tags/").await, [""; 0]);
}

/// A log that was lost: with scope `All` nothing is missed, otherwise the first missing entry is named.
#[tokio::test]
async fn a_checkpoint_of_all_outlives_the_log() {
    let bucket = Bucket::new();
    let writer = written(&bucket, "bucket(id,2)").await;
    let before = bucket.seen().await;
    let durable = writer.checkpoint(&CheckpointOptions::default()).await.unwrap();
    let all = writer.checkpoint(&all()).await.unwrap();
    writer.close().await.unwrap();
    for object in objects(&bucket, "/wal/").await {
        bucket.inner().delete(&object[1..].into()).await.unwrap();
    }
    assert_eq!(at(&bucket, all.id).await, before);
    let Err(error) = bucket.table().await.provider_at(durable.id).await else { panic!("it is lost") };
    assert!(matches!(&error, Error::Wal(WalError::CheckpointLost { .. })), "{error}");
    assert!(error.to_string().contains(".arrow does not exist"), "{error}");
}

/// With a table that Lance has closed in on: what the table is opened with is what a checkpoint is read with.
#[tokio::test]
async fn a_checkpoint_is_read_by_processes_that_did_not_make_it() {
    let bucket = Bucket::new();
    let writer = written(&bucket, "bucket(id,2)").await;
    let made = writer.checkpoint(&CheckpointOptions::default()).await.unwrap();
    drop(writer);
    let reader = Table::open(bucket.process().store).await.unwrap();
    let provider = reader.provider_at(made.id).await.unwrap();
    // The same answer again and again while a successor writes.
    let successor = bucket.table().await.writer(config()).await.unwrap();
    let first = pairs(Arc::clone(&provider)).await;
    go_on(&bucket, &successor).await;
    assert_eq!(pairs(provider).await, first);
}
