//! What a collection deletes and what it leaves, one rule at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fencepost_sim::{CountingStore, Fault, FaultStore, Op, Rule};
use fencepost_wal::checkpoint::{self, CheckpointOptions};
use fencepost_wal::gc::{self, BaseProgress, Freed, GcConfig, GcKind, GcOptions, Refusal};
use fencepost_wal::{
    Error, Generation, ManifestStore, OpenOptions, Position, Shard, ShardId, ShardManifest, SsTable, Store,
    WalAppender, WalConfig,
};
use tempfile::TempDir;

use crate::lance::{self, Lance};
use crate::support::{Bucket, append, batch, bucket, replayed, settle};

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn merged(generation: u64) -> BaseProgress {
    BaseProgress { merged: Generation::new(generation), indexes: BTreeMap::new() }
}

/// Publishes an SSTable that covers everything up to `position`.
pub(crate) async fn flush(bucket: &Bucket, w: &WalAppender, position: Position) -> ShardManifest {
    let generation = w.tenure().current_generation().await;
    let name = format!("0badcafe_gen_{generation}");
    bucket.write_sstable(&name).await;
    w.tenure().publish(Some(SsTable::new(generation, name)), position).await.unwrap()
}

async fn positions(bucket: &Bucket) -> Vec<u64> {
    let there = bucket.names().await;
    (1..100).filter(|p| there.contains(bucket.entry_path(*p).as_ref())).collect()
}

#[tokio::test(start_paused = true)]
async fn entries_below_r_go_except_fences_and_the_last_ones_seen() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await; // sentinel 1
    for id in 1..=4 {
        append(&mut w1, [id]).await.unwrap(); // 2 to 5
    }
    let mut w2 = bucket.process().appender().await; // sentinel 6
    for id in 5..=8 {
        append(&mut w2, [id]).await.unwrap(); // 7 to 10
    }
    w2.truncate(Position::new(9)).await.unwrap();
    assert_eq!(bucket.fences().await, [(1, 1), (6, 2)]);
    let plan = {
        let options = GcOptions { min_age: Duration::ZERO, ..GcOptions::default() };
        gc::dry_run(&bucket.shard(), &BaseProgress::default(), &options).await.unwrap()
    };
    let before = bucket.names().await;
    let report = bucket.collect_garbage().await;

    assert_eq!(positions(&bucket).await, [1, 6, 9, 10]);
    assert_eq!(report.of(GcKind::WalEntry).objects, 6);
    assert_eq!((report.kept.fences, report.version), (2, None));
    // The dry run had said so, by name.
    let planned: Vec<String> = plan.deletions.iter().map(|d| format!("{}/{}", bucket.shard().root(), d.path)).collect();
    let gone: Vec<String> = before.difference(&bucket.names().await).cloned().collect();
    assert_eq!(planned.len(), gone.len());
    assert!(planned.iter().all(|path| gone.contains(path)), "{planned:?} {gone:?}");
    let bytes: u64 = plan.deletions.iter().map(|d| d.bytes).sum();
    assert_eq!(report.total(), Freed { objects: 6, bytes });
    assert!(bytes > 6 * 100);

    assert_eq!(bucket.rows().await, [8]);
    // Nothing is left to do.
    let again = bucket.collect_garbage().await;
    assert_eq!(again.total(), Freed::default());
}

#[tokio::test(start_paused = true)]
async fn what_was_needed_within_min_age_stays() {
    let bucket = bucket().await;
    let mut w = bucket.process().appender().await;
    append(&mut w, [1]).await.unwrap();
    let last = append(&mut w, [2]).await.unwrap();
    w.truncate(last).await.unwrap();
    let young = bucket.process().later(HOUR / 2);
    let report = gc::collect(&young.shard, &BaseProgress::default(), &GcOptions::default(), |_| ()).await.unwrap();
    assert_eq!((report.total().objects, report.kept.young_entries), (0, 1));
    let old = bucket.process().later(HOUR);
    let mut progress = Vec::new();
    let options = GcOptions::default();
    let report = gc::collect(&old.shard, &BaseProgress::default(), &options, |p| progress.push(p)).await.unwrap();
    assert_eq!((report.total().objects, report.kept.young_entries), (1, 0));
    assert_eq!(progress.iter().map(|p| (p.objects, p.of_objects)).collect::<Vec<_>>(), [(1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn merged_sstables_are_dropped_and_then_deleted() {
    let bucket = bucket().await;
    let mut w = bucket.process().appender().await;
    for id in 1..=4 {
        let position = append(&mut w, [id]).await.unwrap();
        flush(&bucket, &w, position).await;
    }
    // A flush that failed after it had written its folder, one that is at work, and things that are none of ours.
    for name in ["deadbeef_gen_2", "deadbeef_gen_5", "deadbeef_gen_x", "other"] {
        bucket.write_sstable(name).await;
    }
    let mut base = merged(3);
    base.indexes.insert("by_text".into(), Generation::new(2));
    base.indexes.insert("by_vector".into(), Generation::new(7));
    let report = bucket.collector().collect(&base).await.unwrap();
    bucket.check_nothing_is_missing().await;
    assert_eq!(report.dropped_sstables, [1, 2].map(Generation::new));
    assert_eq!(report.of(GcKind::SsTable).objects, 6, "three folders of two files");
    assert_eq!(report.kept.lagging_indexes, BTreeMap::from([("by_text".to_owned(), 1)]));
    let manifest = bucket.manifest().await;
    assert_eq!(Some(manifest.version), report.version);
    assert_eq!(manifest.sstables.iter().map(|s| s.generation.get()).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(manifest.current_generation, Generation::new(5));
    let root = bucket.shard().root().to_string();
    let there = bucket.names().await;
    for (folder, stays) in [
        ("0badcafe_gen_1", false),
        ("0badcafe_gen_2", false),
        ("0badcafe_gen_3", true),
        ("0badcafe_gen_4", true),
        ("deadbeef_gen_2", false),
        ("deadbeef_gen_5", true),
        ("deadbeef_gen_x", true),
        ("other", true),
    ] {
        assert_eq!(there.contains(&format!("{root}/{folder}/a")), stays, "{folder}");
    }
    // The writer goes on, and the index catches up.
    let position = append(&mut w, [5]).await.unwrap();
    flush(&bucket, &w, position).await;
    let report = bucket.collector().collect(&merged(3)).await.unwrap();
    assert_eq!(report.dropped_sstables, [Generation::new(3)]);
    bucket.check_nothing_is_missing().await;
}

/// A reader that took the table's state before the merge still finds its SSTables.
#[tokio::test(start_paused = true)]
async fn a_merged_sstable_is_deleted_only_when_it_was_unlisted_for_min_age() {
    let bucket = bucket().await;
    let mut w = bucket.process().appender().await;
    let position = append(&mut w, [1]).await.unwrap();
    flush(&bucket, &w, position).await;
    let collector = bucket.process().later(2 * HOUR);
    let options = GcOptions { min_age: HOUR, fence_retention: None };
    let report = gc::collect(&collector.shard, &merged(1), &options, |_| ()).await.unwrap();
    // Old as it is, until a moment ago the manifest named it.
    assert_eq!((report.dropped_sstables.len(), report.kept.young_sstables), (1, 1));
    assert_eq!(report.of(GcKind::SsTable).objects, 0);
}

#[tokio::test(start_paused = true)]
async fn manifests_go_as_a_prefix_and_each_is_gone_before_the_next() {
    let bucket = bucket().await;
    for _ in 0..10 {
        bucket.process().appender().await; // two versions each
    }
    assert_eq!(bucket.manifest().await.version.get(), 21);
    let young = bucket.process().later(23 * HOUR);
    assert_eq!(young.collect(&BaseProgress::default()).await.unwrap().of(GcKind::Manifest).objects, 0);

    let collector = bucket.collector();
    let rule = collector.faults.on(Op::Delete).path_contains("/manifest/").nth(3).always().then(Fault::Fail);
    collector.collect(&BaseProgress::default()).await.unwrap_err();
    assert_eq!(bucket.oldest_manifest().await, 3);
    rule.cancel();
    collector.faults.clear_log();
    let report = collector.collect(&BaseProgress::default()).await.unwrap();
    assert_eq!((report.of(GcKind::Manifest).objects, report.kept.manifests), (3, 15));
    assert_eq!(bucket.oldest_manifest().await, 6);
    let deleted: Vec<String> =
        collector.faults.log().iter().filter(|r| r.op == Op::Delete).map(|r| r.path.clone()).collect();
    let ascending: Vec<String> = (3..=5).map(|v| bucket.manifest_path(v).to_string()).collect();
    assert_eq!(deleted, ascending);
}

#[tokio::test(start_paused = true)]
async fn what_lance_wrote_to_is_not_collected_until_it_is_adopted() {
    let bucket = bucket().await;
    let mut w = bucket.process().appender().await;
    append(&mut w, [1]).await.unwrap();
    let last = append(&mut w, [2]).await.unwrap();
    w.truncate(last).await.unwrap();
    Lance::open(&bucket).await;
    let before = bucket.names().await;
    let refused = |report: gc::GcReport| {
        assert_eq!(report.refused, Some(Refusal::Unadopted));
        assert!(report.refused.unwrap().to_string().contains("fencepost adopt"));
    };
    refused(bucket.collector().collect(&merged(9)).await.unwrap());
    // Also if the next claim is ours.
    bucket.process().appender().await;
    let claimed = bucket.names().await;
    refused(bucket.collector().collect(&merged(9)).await.unwrap());
    assert_eq!(bucket.names().await, claimed);
    assert!(before.is_subset(&claimed));
    fencepost_wal::adopt(&bucket.shard()).await.unwrap();
    assert!(bucket.collect_garbage().await.total().objects > 0);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_none_or_lances_alone_is_left_alone() {
    let bucket = bucket().await;
    let nobody = Shard::new(bucket.shard().store().clone(), ShardId::new_random());
    let report = gc::collect(&nobody, &merged(1), &GcOptions::default(), |_| ()).await.unwrap();
    assert_eq!(report.refused, Some(Refusal::NoShard));
    lance::commit(&bucket, |manifest| manifest.current_generation = 7).await;
    bucket.prune_below(2).await;
    bucket.write_sstable("deadbeef_gen_2").await;
    let before = bucket.names().await;
    let report = bucket.collector().collect(&merged(9)).await.unwrap();
    assert_eq!(report.refused, Some(Refusal::Unadopted));
    assert_eq!(bucket.names().await, before);
}

#[tokio::test(start_paused = true)]
async fn fences_go_only_if_somebody_asserts_that_nobody_stalls_so_long() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    let mut w2 = bucket.process().appender().await;
    let last = append(&mut w2, [2]).await.unwrap();
    w2.truncate(last).await.unwrap();
    bucket.collect_garbage().await;
    assert_eq!(bucket.fences().await, [(1, 1), (3, 2)]);
    let collector = bucket.collector();
    let keep = |days: u32| GcOptions { min_age: Duration::ZERO, fence_retention: Some(24 * days * HOUR) };
    let report = gc::collect(&collector.shard, &BaseProgress::default(), &keep(3), |_| ()).await.unwrap();
    assert_eq!((report.dropped_fences, report.kept.fences), (0, 2));
    let report = gc::collect(&collector.shard, &BaseProgress::default(), &keep(1), |_| ()).await.unwrap();
    assert_eq!((report.dropped_fences, report.of(GcKind::WalEntry).objects), (2, 2));
    assert_eq!(bucket.fences().await, []);
    bucket.check_nothing_is_missing().await;
}

/// The bulk of a long log, with objects that somebody else has deleted and requests that fail.
#[tokio::test(start_paused = true)]
async fn a_long_log_is_deleted_through_failures() {
    let bucket = bucket().await;
    let mut w = bucket.process().appender().await;
    for id in 0..2500 {
        append(&mut w, [id]).await.unwrap();
    }
    w.truncate(Position::new(2501)).await.unwrap();
    let collector = bucket.collector();
    let rule = collector.faults.on(Op::Delete).path_contains("/wal/").nth(50).times(20).then(Fault::Fail);
    let lost = collector.faults.on(Op::Delete).path_contains("/wal/").nth(1200).times(20).then(Fault::LostAck);
    let report = collector.collect(&BaseProgress::default()).await.unwrap();
    assert_eq!((rule.fired(), lost.fired()), (20, 20));
    assert_eq!(report.of(GcKind::WalEntry).objects, 2499);
    bucket.check_nothing_is_missing().await;
    let there = bucket.names().await;
    let left = (1..=2501).filter(|p| there.contains(bucket.entry_path(*p).as_ref())).collect::<Vec<u64>>();
    assert_eq!(left, [1, 2501]);
}

#[tokio::test(start_paused = true)]
async fn opening_after_a_collection_needs_no_more_requests_than_before() {
    for entries_to_replay in [0, 10] {
        let bucket = bucket().await;
        let mut w = bucket.process().appender().await;
        let mut last = w.tenure().sentinel();
        for id in 0..40 {
            last = append(&mut w, [id]).await.unwrap();
        }
        w.truncate(last).await.unwrap();
        for id in 0..entries_to_replay {
            append(&mut w, [100 + id]).await.unwrap();
        }
        drop(w);
        let open = async || {
            // A copy each, so that both find the same shard.
            let counting = CountingStore::new(bucket.fork().await.shard().store().object_store().clone());
            let counts = counting.counts();
            let store = bucket.shard().store().clone().wrapped(|_| Arc::new(counting));
            let shard = Shard::new(store, bucket.shard().id());
            let (_, replay) = WalAppender::open(&shard, &OpenOptions::default()).await.unwrap();
            let rows = replayed(replay).await;
            settle().await;
            (rows, counts.snapshot())
        };
        let (rows_before, before) = open().await;
        assert_eq!(bucket.collect_garbage().await.of(GcKind::WalEntry).objects, 39);
        let (rows_after, after) = open().await;
        assert_eq!(rows_after, rows_before);
        assert_eq!(rows_after.len() as i64, entries_to_replay);
        // Claim, sentinel, record, and a version hint after each of the two manifests.
        assert_eq!((after.put, after.list, after.head), (5, 4, 0));
        // The manifest, the entries, and the position behind them.
        assert_eq!(after.get, 2 + entries_to_replay as u64);
        assert_eq!(after.requests(), before.requests());
        assert_eq!((after.put, after.get, after.list), (before.put, before.get, before.list));
    }
}

/// Who has opened a checkpoint a moment before it expires is not late yet.
#[tokio::test(start_paused = true)]
async fn what_a_checkpoint_held_stays_for_min_age_after_it_has_expired() {
    let bucket = bucket().await;
    let mut w = bucket.process().appender().await;
    let first = append(&mut w, [1]).await.unwrap();
    flush(&bucket, &w, first).await;
    let held = append(&mut w, [2]).await.unwrap();
    let options = CheckpointOptions { lifetime: Some(HOUR), ..Default::default() };
    let made = checkpoint::create(&bucket.shard(), &options).await.unwrap();
    assert_eq!(made.tail, held);
    append(&mut w, [3]).await.unwrap();
    let last = append(&mut w, [4]).await.unwrap();
    flush(&bucket, &w, last).await;
    let collect = async |half_hours: u32| {
        let at = bucket.process().later(half_hours * HOUR / 2);
        gc::collect(&at.shard, &merged(2), &GcOptions::default(), |_| ()).await.unwrap()
    };
    let root = bucket.shard().root().clone();
    let left = async || {
        let there = bucket.names().await;
        let folder = |name: &str| root.clone().join(name).join("a");
        [
            folder("0badcafe_gen_1"),
            folder("0badcafe_gen_2"),
            bucket.entry_path(held.get()),
            bucket.shard().checkpoint_path(made.id),
        ]
        .map(|path| there.contains(path.as_ref()))
    };
    assert_eq!(collect(1).await.dropped_sstables, [1, 2].map(Generation::new));
    assert_eq!(left().await, [true; 4]);

    let report = collect(3).await;
    assert_eq!((report.version, report.expired_checkpoints, report.kept.live_checkpoints), (None, 0, 1));
    assert_eq!((report.kept.sstables_in_checkpoints, report.kept.entries_in_checkpoints), (1, 1));
    assert_eq!(left().await, [true, false, true, true]);

    assert_eq!(collect(5).await.expired_checkpoints, 1);
    assert_eq!(left().await, [false; 4]);
}

/// One whose maker has failed is nobody's; it is as patient as with any other object.
#[tokio::test(start_paused = true)]
async fn an_unlisted_checkpoint_is_not_deleted_before_min_age() {
    let bucket = bucket().await;
    let mut w = bucket.process().appender().await;
    append(&mut w, [1]).await.unwrap();
    let made = checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
    let path = bucket.shard().checkpoint_path(made.id);
    let object = bucket.read(&path).await.unwrap();
    checkpoint::delete(&bucket.shard(), made.id).await.unwrap();
    assert!(bucket.read(&path).await.is_none(), "who deletes one asks for that");
    bucket.write(&path, object).await;
    for (half_hours, deleted) in [(1, 0), (3, 1)] {
        let at = bucket.process().later(half_hours * HOUR / 2);
        let report = gc::collect(&at.shard, &merged(0), &GcOptions::default(), |_| ()).await.unwrap();
        assert_eq!(report.of(GcKind::Checkpoint).objects, deleted);
        assert_eq!(bucket.read(&path).await.is_none(), deleted == 1);
    }
}

/// What a run costs when there is nothing to do.
#[tokio::test(start_paused = true)]
async fn a_collection_costs_three_lists_and_a_get() {
    let bucket = bucket().await;
    let mut w = bucket.process().appender().await;
    append(&mut w, [1]).await.unwrap();
    settle().await;
    let counting = CountingStore::new(bucket.shard().store().object_store().clone());
    let counts = counting.counts();
    let store = bucket.shard().store().clone().wrapped(|_| Arc::new(counting));
    let shard = Shard::new(store, bucket.shard().id());
    let options = GcOptions::default();
    assert_eq!(gc::collect(&shard, &BaseProgress::default(), &options, |_| ()).await.unwrap().total().objects, 0);
    let cost = counts.snapshot();
    assert_eq!((cost.list, cost.get, cost.requests()), (3, 1, 4));

    // One GET more for each listed checkpoint, and for an object that may be listed yet.
    let made = checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
    let object = bucket.read(&bucket.shard().checkpoint_path(made.id)).await.unwrap();
    checkpoint::delete(&bucket.shard(), made.id).await.unwrap();
    bucket.write(&bucket.shard().checkpoint_path(made.id), object).await;
    checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
    settle().await;
    let before = counts.snapshot();
    assert_eq!(gc::collect(&shard, &BaseProgress::default(), &options, |_| ()).await.unwrap().total().objects, 0);
    let after = counts.snapshot();
    assert_eq!((after.list - before.list, after.get - before.get, after.requests() - before.requests()), (3, 3, 6));
}

#[tokio::test(start_paused = true)]
async fn a_writer_collects_its_own_shard_in_the_background() {
    let bucket = bucket().await;
    let process = bucket.collector();
    let options = GcOptions { min_age: HOUR, fence_retention: None };
    let gc = Some(GcConfig { interval: Duration::from_secs(600), options });
    let writer = process.writer(WalConfig { gc, ..WalConfig::default() }).await;
    for id in 1..=5 {
        writer.append(batch([id])).await.unwrap();
    }
    writer.truncate(Position::new(5)).await.unwrap();
    settle().await;
    process.faults.clear_log();
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert!(process.faults.log().is_empty(), "the first run comes one interval after the open");
    tokio::time::sleep(Duration::from_secs(2)).await;
    settle().await;
    assert_eq!(positions(&bucket).await, [1, 5, 6]);
    let stats = writer.stats().gc;
    assert_eq!((stats.runs, stats.failures, stats.objects), (1, 0, 3));
    assert!(stats.bytes > 0);

    // Failures are counted, and the writer goes on.
    let rule = process.faults.on(Op::List).always().then(Fault::Fail);
    tokio::time::sleep(Duration::from_secs(660)).await;
    let stats = writer.stats().gc;
    assert_eq!((stats.runs, stats.failures), (1, 1));
    assert!(stats.last_failure.unwrap().contains("LIST"), "it says what failed");
    writer.append(batch([6])).await.unwrap();
    rule.cancel();

    // With nothing to do it becomes patient.
    tokio::time::sleep(Duration::from_secs(100 * 600)).await;
    let runs = writer.stats().gc.runs;
    assert!((8..=14).contains(&runs), "{runs}");
    // It ends with the tenure.
    writer.close().await.unwrap();
    settle().await;
    process.faults.clear_log();
    tokio::time::sleep(Duration::from_secs(100 * 600)).await;
    assert!(process.faults.log().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_fenced_writers_collector_stops() {
    let bucket = bucket().await;
    let process = bucket.collector();
    let writer = process.writer(WalConfig::default()).await;
    let _w2 = bucket.process().appender().await;
    assert!(matches!(writer.append(batch([1])).await, Err(Error::Fenced { .. })));
    settle().await;
    process.faults.clear_log();
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert!(process.faults.log().is_empty());
    let config =
        WalConfig { gc: Some(GcConfig { interval: Duration::ZERO, ..GcConfig::default() }), ..WalConfig::default() };
    assert!(config.validate().unwrap_err().to_string().contains("interval"));
}

/// Files without version hints: while one is being written, beside everything else, it is a half-made file itself.
async fn bucket_of_files() -> (TempDir, Bucket, Rule) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display()), &Default::default()).unwrap();
    let faults = FaultStore::new(Arc::clone(store.object_store()));
    let hints = faults.on(Op::Overwrite).path_ends_with("version_hint.json").always().then(Fault::Fail);
    let bucket = Bucket::on(store.wrapped(|_| faults.store())).await;
    (folder, bucket, hints)
}

/// On `file://` a process that is killed in the middle of a PUT leaves a file that no LIST shows.
#[tokio::test]
async fn half_made_files_go_where_nobody_can_be_about_to_use_them() {
    let (_folder, bucket, hints) = bucket_of_files().await;
    let mut w = bucket.process().appender().await;
    for id in 1..=3 {
        append(&mut w, [id]).await.unwrap();
    }
    let r = append(&mut w, [4]).await.unwrap();
    flush(&bucket, &w, r).await;
    let above = append(&mut w, [5]).await.unwrap();
    bucket.write_sstable("deadbeef_gen_1").await;
    let made = checkpoint::create(&bucket.shard(), &CheckpointOptions::default()).await.unwrap();
    checkpoint::delete(&bucket.shard(), made.id).await.unwrap();
    let version = bucket.manifest().await.version.get();
    let file = |path: &object_store::path::Path, end: &str| std::path::PathBuf::from(format!("/{path}{end}"));
    let root = bucket.shard().root().clone();
    let hint = root.clone().join("manifest").join("version_hint.json");
    let gone = [
        file(&bucket.entry_path(2), "#1"),
        file(&bucket.manifest_path(version), "#2"),
        file(&hint, "#7"),
        file(&bucket.shard().checkpoint_path(made.id), "#1"),
        file(&root.clone().join("deadbeef_gen_1").join("a"), "#1"),
    ];
    let stays = [
        file(&bucket.entry_path(above.get()), "#1"),
        file(&bucket.entry_path(above.get() + 1), "#1"),
        file(&bucket.manifest_path(version + 1), "#1"),
        file(&root.clone().join("wal").join("notes"), "#1"),
    ];
    for path in gone.iter().chain(&stays) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "half").unwrap();
    }
    let report = bucket.collect_garbage().await;
    assert_eq!(report.of(GcKind::Leftover), Freed { objects: 4, bytes: 16 });
    assert!(gone.iter().all(|path| !path.exists()), "{gone:?}");
    assert!(stays.iter().all(|path| path.exists()), "{stays:?}");
    assert!(!file(&root.clone().join("deadbeef_gen_1"), "").exists(), "its folder too");
    assert!(file(&root.clone().join("0badcafe_gen_1"), "").exists());
    assert_eq!(bucket.rows().await, [5]);
    assert!(hints.fired() > 0);
    // Half-made ones that are in the way do not stop the writer.
    assert_eq!(append(&mut w, [6]).await.unwrap(), above.next().unwrap());
}

/// A flush that was killed during its first file leaves a folder that no LIST shows, and a collector that dies between
/// the objects and their folder leaves an empty one.
#[tokio::test]
async fn folders_without_an_object_go_too() {
    let (_folder, bucket, hints) = bucket_of_files().await;
    let mut w = bucket.process().appender().await;
    for id in 1..=2 {
        let position = append(&mut w, [id]).await.unwrap();
        flush(&bucket, &w, position).await;
    }
    let place = |name: &str| std::path::PathBuf::from(format!("/{}/{name}", bucket.shard().root()));
    for name in ["deadbeef_gen_1/data", "deadbeef_gen_2", "deadbeef_gen_3/data", "deadbeef_gen_x", "other"] {
        std::fs::create_dir_all(place(name)).unwrap();
    }
    for name in ["deadbeef_gen_1", "deadbeef_gen_3"] {
        std::fs::write(place(name).join("data").join("x.lance#1"), "half").unwrap();
    }
    let gone = ["deadbeef_gen_1", "deadbeef_gen_2"];
    let stays = ["deadbeef_gen_3", "deadbeef_gen_x", "other", "0badcafe_gen_1", "0badcafe_gen_2"];

    let young = bucket.process();
    let report = gc::collect(&young.shard, &merged(0), &GcOptions::default(), |_| ()).await.unwrap();
    assert_eq!((report.kept.young_sstables, report.of(GcKind::SsTable)), (2, Freed::default()));
    assert!(gone.iter().chain(&stays).all(|name| place(name).exists()));

    let report = bucket.collect_garbage().await;
    assert_eq!(report.of(GcKind::SsTable), Freed { objects: 0, bytes: 4 });
    assert_eq!(gone.map(|name| place(name).exists()), [false; 2]);
    assert_eq!(stays.map(|name| place(name).exists()), [true; 5]);
    assert!(bucket.collector().collect(&merged(0)).await.unwrap().freed.is_empty(), "nothing is left to do");
    assert!(hints.fired() > 0);
}

#[tokio::test(start_paused = true)]
async fn an_unlisted_checkpoint_goes_once_it_can_never_be_listed() {
    let bucket = bucket().await;
    let mut w = bucket.process().appender().await;
    append(&mut w, [1]).await.unwrap();
    // A process that dies between its object and its commit.
    let dying = bucket.patient();
    let gate = dying.faults.on(Op::Create).path_contains("/manifest/").stall();
    let task = tokio::spawn({
        let shard = dying.shard.clone();
        async move { checkpoint::create(&shard, &CheckpointOptions::default()).await }
    });
    gate.reached().await;
    bucket.collect_garbage().await;
    let is_there = async || bucket.names().await.iter().any(|name| name.contains("/checkpoints/"));
    assert!(is_there().await, "it may still be listed");
    bucket.write(&bucket.shard().root().clone().join("checkpoints").join("notes.txt"), Bytes::from_static(b"?")).await;
    let other = bucket.shard().checkpoint_path(uuid::Uuid::new_v4());
    bucket.write(&other, Bytes::from_static(b"torn")).await;
    w.truncate(Position::new(2)).await.unwrap();
    let report = bucket.collect_garbage().await;
    assert_eq!((report.of(GcKind::Checkpoint).objects, report.kept.damaged_checkpoints), (1, 1));
    task.abort();
    assert!(bucket.read(&other).await.is_some(), "what it is nobody knows");
    assert_eq!(ManifestStore::new(bucket.shard()).latest_existing().await.unwrap().checkpoints(), []);
}
