//! `verify`: every kind of damage is found and its object named, and nothing that the protocol's own actors leave
//! behind is called damage.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fencepost_sim::{Fault, Op};
use fencepost_wal::verify::confirmed;
use fencepost_wal::verify::kinds::{self, *};
use fencepost_wal::{
    Epoch, Error, Fence, Finding, FindingKind, Generation, ManifestVersion, Position, Severity, Shard, ShardId,
    ShardManifest, SsTable, Store, VerifyCounts, VerifyOptions, VerifyReport, WalAppender, WalEntry, checkpoint, raw,
    verify,
};
use object_store::path::Path;
use uuid::Uuid;

use crate::lance::{self, Lance, lance_entry};
use crate::support::{Bucket, append, bucket, settle};

const SSTABLE: &str = "0badcafe_gen_1";

/// Two tenures: sentinel 1, rows at 2 and 3; sentinel 4, rows at 5 to 8. Up to 5 the rows are in an SSTable, and what
/// is not needed any more was collected.
async fn two_tenures() -> (Bucket, WalAppender) {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    for id in 1..=2 {
        append(&mut w1, [id]).await.unwrap();
    }
    let mut w2 = bucket.process().appender().await;
    for id in 3..=5 {
        append(&mut w2, [id]).await.unwrap();
    }
    put_sstable(&bucket, SSTABLE).await;
    let sstable = SsTable::new(Generation::new(1), SSTABLE.into());
    w2.tenure().publish(Some(sstable), Position::new(5)).await.unwrap();
    append(&mut w2, [6]).await.unwrap();
    bucket.collect_garbage().await;
    settle().await;
    assert_eq!(found(&bucket).await, []);
    assert!(bucket.read(&bucket.entry_path(3)).await.is_none());
    (bucket, w2)
}

async fn damaged_from() -> Bucket {
    two_tenures().await.0
}

/// A folder of two objects, which stands for an SSTable.
async fn put_sstable(bucket: &Bucket, folder: &str) {
    for name in ["a", "b"] {
        bucket.write(&bucket.shard().root().clone().join(folder).join(name), "rows".into()).await;
    }
}

async fn remove_sstable(bucket: &Bucket, folder: &str) {
    for name in ["a", "b"] {
        bucket.delete(&bucket.shard().root().clone().join(folder).join(name)).await;
    }
}

async fn report(bucket: &Bucket) -> VerifyReport {
    verify(&bucket.shard(), &VerifyOptions::default()).await.unwrap()
}

/// Kind and object of everything that was found, each once.
async fn found(bucket: &Bucket) -> Vec<(&'static str, String)> {
    let mut found: Vec<_> = report(bucket).await.findings.into_iter().map(|f| (f.kind.name, f.object)).collect();
    found.sort();
    found.dedup();
    found
}

/// This, and nothing else, is found.
#[track_caller]
fn only(bucket: &Bucket, kind: FindingKind, object: &Path) -> impl Future<Output = ()> {
    let (expected, at) = (vec![(kind.name, object.to_string())], std::panic::Location::caller());
    async move { assert_eq!(found(bucket).await, expected, "at {at}") }
}

/// Rewrites a manifest in its place.
async fn edit(bucket: &Bucket, version: u64, change: impl FnOnce(&mut ShardManifest)) {
    let path = bucket.manifest_path(version);
    let bytes = bucket.read(&path).await.unwrap();
    let mut manifest = raw::decode_manifest("m", &bytes, bucket.shard().id(), ManifestVersion::new(version)).unwrap();
    change(&mut manifest);
    bucket.write(&path, raw::encode_manifest(&manifest).into()).await;
}

async fn newest(bucket: &Bucket) -> u64 {
    bucket.manifest().await.version.get()
}

/// A copy of an entry, changed.
async fn put_changed(bucket: &Bucket, from: u64, to: u64, change: impl FnOnce(&mut WalEntry)) {
    let bytes = bucket.read(&bucket.entry_path(from)).await.unwrap();
    let mut entry = raw::decode_entry("e", Position::new(from), &bytes).unwrap();
    change(&mut entry);
    bucket.write(&bucket.entry_path(to), raw::encode_entry(&entry).unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_looked_at_is_counted() {
    let (bucket, _w2) = two_tenures().await;
    let (objects, read) = (AtomicU64::new(0), AtomicU64::new(0));
    let progress = |more, done| {
        objects.fetch_add(more, Ordering::Relaxed);
        read.fetch_add(done, Ordering::Relaxed);
    };
    let options = VerifyOptions { progress: Some(&progress), ..VerifyOptions::default() };
    let report = verify(&bucket.shard(), &options).await.unwrap();
    assert!(!report.is_damaged());
    let VerifyCounts { manifests, manifest_version, writer_epoch, replay_after, tail, .. } = report.counts;
    assert_eq!((manifests, manifest_version.get(), writer_epoch.get()), (6, 6, 2));
    assert_eq!((replay_after.get(), tail.get()), (5, 8));
    let VerifyCounts { entries, sentinels, dead, rows, sstables, bytes, .. } = report.counts;
    assert_eq!((entries, sentinels, dead, rows, sstables), (6, 2, 0, 3, 1));
    assert!(bytes > 1000);
    assert_eq!((objects.into_inner(), read.into_inner()), (12, 12));
}

#[tokio::test(start_paused = true)]
async fn a_fresh_shard_is_healthy_and_none_is_an_error() {
    let bucket = bucket().await;
    assert_eq!(found(&bucket).await, []);
    let nowhere = Shard::new(bucket.shard().store().clone(), ShardId::new_random());
    assert!(matches!(verify(&nowhere, &VerifyOptions::default()).await, Err(Error::ShardNotFound { .. })));
    let process = bucket.attempts(1);
    process.faults.on(Op::Get).then(Fault::Fail);
    let failed = verify(&process.shard, &VerifyOptions::default()).await;
    assert!(matches!(failed, Err(Error::Store { .. })), "{failed:?}");
}

/// What a process on `file://` leaves that dies before its first manifest or entry is there.
#[tokio::test]
async fn folders_with_nothing_but_half_made_files_are_no_shard() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display()), &Default::default()).unwrap();
    let shard = Shard::new(store, ShardId::new_random());
    let on_disk = |path: Path| std::path::PathBuf::from(format!("/{path}"));
    let missing = async || {
        let answer = verify(&shard, &VerifyOptions::default()).await;
        matches!(answer, Err(Error::ShardNotFound { .. }))
    };
    for name in ["manifest", "wal", "checkpoints"] {
        std::fs::create_dir_all(on_disk(shard.root().clone().join(name))).unwrap();
        assert!(missing().await, "{name}");
    }
    let manifest = on_disk(shard.manifest_path(ManifestVersion::new(1)));
    std::fs::write(format!("{}#1", manifest.display()), "half").unwrap();
    assert!(missing().await);
    std::fs::write(on_disk(shard.entry_path(Position::new(1))), "an object").unwrap();
    assert!(verify(&shard, &VerifyOptions::default()).await.unwrap().is_damaged());
}

#[tokio::test(start_paused = true)]
async fn foreign_names_are_found() {
    let entry = format!("{:064b}.arrow", 9u64.reverse_bits());
    let names = [
        "wal/notes.txt".to_owned(),
        "wal/9.arrow".to_owned(),
        format!("wal/{:064b}.arrow", 0),
        format!("wal/{:064b}.arrow.bak", 9u64.reverse_bits()),
        format!("wal/copy/{entry}"),
        format!("manifest/{entry}"),
        "manifest/7.binpb".to_owned(),
    ];
    for name in names {
        let bucket = damaged_from().await;
        let path: Path = bucket.shard().root().parts().chain(Path::from(name).parts()).collect();
        bucket.copy_entry(8, 50).await;
        let bytes = bucket.read(&bucket.entry_path(50)).await.unwrap();
        bucket.delete(&bucket.entry_path(50)).await;
        bucket.write(&path, bytes).await;
        only(&bucket, FOREIGN_OBJECT, &path).await;
    }
    for (name, object) in [("notes.txt", "notes.txt"), ("backup/notes.txt", "backup")] {
        let bucket = damaged_from().await;
        let root = bucket.shard().root().clone();
        bucket.write(&root.parts().chain(Path::from(name).parts()).collect(), "x".into()).await;
        only(&bucket, UNKNOWN_OBJECT, &root.join(object)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_manifest_is_found() {
    for version in [1, 4, 6] {
        let bucket = damaged_from().await;
        let path = bucket.manifest_path(version);
        let whole = bucket.read(&path).await.unwrap();
        bucket.write(&path, whole.slice(..whole.len() - 1)).await;
        only(&bucket, MANIFEST_DAMAGED, &path).await;
        let mut flipped = whole.to_vec();
        *flipped.last_mut().unwrap() ^= 4;
        bucket.write(&path, flipped.into()).await;
        only(&bucket, MANIFEST_DAMAGED, &path).await;
        // Another version's, under this name; another shard's.
        let other = bucket.read(&bucket.manifest_path(version % 6 + 1)).await.unwrap();
        bucket.write(&path, other).await;
        only(&bucket, MANIFEST_DAMAGED, &path).await;
        let mut foreign =
            raw::decode_manifest("m", &whole, bucket.shard().id(), ManifestVersion::new(version)).unwrap();
        foreign.shard_id = ShardId::new_random();
        bucket.write(&path, raw::encode_manifest(&foreign).into()).await;
        only(&bucket, MANIFEST_DAMAGED, &path).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_manifest_is_found() {
    for version in 2..=5 {
        let bucket = damaged_from().await;
        bucket.delete(&bucket.manifest_path(version)).await;
        only(&bucket, MANIFEST_MISSING, &bucket.manifest_path(version)).await;
    }
    let bucket = damaged_from().await;
    for version in 1..=6 {
        bucket.delete(&bucket.manifest_path(version)).await;
    }
    let folder = bucket.shard().root().clone().join("manifest");
    assert_eq!(found(&bucket).await, [(MANIFEST_MISSING.name, folder.to_string())]);
}

#[tokio::test(start_paused = true)]
async fn pruning_leaves_a_healthy_shard_also_where_a_version_came_back() {
    let bucket = damaged_from().await;
    let first = bucket.read(&bucket.manifest_path(1)).await.unwrap();
    for keep_from in 2..=6 {
        bucket.prune_below(keep_from).await;
        assert_eq!(found(&bucket).await, [], "{keep_from}");
    }
    bucket.write(&bucket.manifest_path(1), first).await;
    only(&bucket, FORGOTTEN_MANIFEST, &bucket.manifest_path(1)).await;
    assert!(!report(&bucket).await.is_damaged());
}

/// Manifests 30 to 46, the older ones pruned, and what a committer that stalled on 28 makes at 29. The one that did not
/// stall claimed epoch 3 there.
async fn pruned_to_30() -> (Bucket, bytes::Bytes) {
    let (bucket, _) = two_tenures().await;
    let next = async |commit_id: u128, writer_id: Option<u128>| {
        let mut next = bucket.manifest().await;
        next.version = ManifestVersion::new(next.version.get() + 1);
        let extension = next.extension.as_mut().unwrap();
        extension.parent_commit_id = std::mem::replace(&mut extension.commit_id, Uuid::from_u128(commit_id));
        if let Some(writer_id) = writer_id {
            extension.writer_id = Uuid::from_u128(writer_id);
            next.writer_epoch = Epoch::new(3);
        }
        (bucket.manifest_path(next.version.get()), bytes::Bytes::from(raw::encode_manifest(&next)))
    };
    for version in 7..=28 {
        let (path, bytes) = next(version, None).await;
        bucket.write(&path, bytes).await;
    }
    let (_, forgotten) = next(1_000, Some(1_000)).await;
    for version in 29..=46 {
        let (path, bytes) = next(version, Some(29)).await;
        bucket.write(&path, bytes).await;
    }
    bucket.prune_below(30).await;
    settle().await;
    assert_eq!(found(&bucket).await, []);
    (bucket, forgotten)
}

#[tokio::test(start_paused = true)]
async fn a_version_that_came_back_right_below_the_history_is_none_of_it() {
    let (bucket, forgotten) = pruned_to_30().await;
    bucket.write(&bucket.manifest_path(29), forgotten).await;
    only(&bucket, FORGOTTEN_MANIFEST, &bucket.manifest_path(29)).await;
    // Nor does its claim count.
    let owner = |entry: &mut WalEntry| {
        (entry.writer_epoch, entry.writer_id) = (Epoch::new(3), Some(Uuid::from_u128(29)));
    };
    put_changed(&bucket, 8, 9, owner).await;
    only(&bucket, FORGOTTEN_MANIFEST, &bucket.manifest_path(29)).await;
    // In the middle it is damage, and so it is if the next version is the younger one.
    let (bucket, _) = pruned_to_30().await;
    edit(&bucket, 31, |m| m.extension.as_mut().unwrap().commit_id = Uuid::from_u128(7)).await;
    assert!(found(&bucket).await.contains(&(LINEAGE_BROKEN.name, bucket.manifest_path(32).to_string())));
    let (bucket, forgotten) = pruned_to_30().await;
    bucket.write(&bucket.manifest_path(29), forgotten).await;
    edit(&bucket, 30, |_| ()).await;
    assert!(found(&bucket).await.contains(&(LINEAGE_BROKEN.name, bucket.manifest_path(30).to_string())));
}

#[tokio::test(start_paused = true)]
async fn a_broken_lineage_is_found() {
    for version in 1..6 {
        let bucket = damaged_from().await;
        edit(&bucket, version, |m| m.extension.as_mut().unwrap().commit_id = Uuid::from_u128(7)).await;
        only(&bucket, LINEAGE_BROKEN, &bucket.manifest_path(version + 1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn numbers_that_go_down_are_found() {
    type Change = fn(&mut ShardManifest);
    let changes: [Change; 5] = [
        |m| m.writer_epoch = Epoch::new(9),
        |m| m.replay_after = Position::new(6),
        |m| m.last_seen = Position::new(9),
        |m| m.current_generation = Generation::new(9),
        |m| m.extension.as_mut().unwrap().replay_after_epoch = Epoch::new(3),
    ];
    for change in changes {
        let bucket = damaged_from().await;
        edit(&bucket, 5, change).await;
        only(&bucket, MANIFEST_WENT_BACK, &bucket.manifest_path(6)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_contradicts_itself_is_found() {
    type Change = fn(&mut ShardManifest);
    let changes: [(FindingKind, Change); 6] = [
        (MANIFEST_INCONSISTENT, |m| m.replay_after = Position::new(8)),
        (MANIFEST_INCONSISTENT, |m| m.extension.as_mut().unwrap().closed_cleanly_epoch = Epoch::new(3)),
        (MANIFEST_INCONSISTENT, |m| m.extension.as_mut().unwrap().fences.reverse()),
        (SSTABLES_INCONSISTENT, |m| m.sstables.push(m.sstables[0].clone())),
        (SSTABLES_INCONSISTENT, |m| m.sstables[0].generation = Generation::new(2)),
        (SSTABLES_INCONSISTENT, |m| m.sstables[0].generation = Generation::ZERO),
    ];
    for (kind, change) in changes {
        let bucket = damaged_from().await;
        edit(&bucket, 6, change).await;
        only(&bucket, kind, &bucket.manifest_path(6)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn sstables_out_of_order_are_found() {
    let (bucket, w2) = two_tenures().await;
    let folder = "0badcafe_gen_2";
    put_sstable(&bucket, folder).await;
    let sstable = SsTable::new(Generation::new(2), folder.into());
    w2.tenure().publish(Some(sstable), Position::new(6)).await.unwrap();
    settle().await;
    assert_eq!(found(&bucket).await, []);
    edit(&bucket, 7, |m| m.sstables.reverse()).await;
    only(&bucket, SSTABLES_INCONSISTENT, &bucket.manifest_path(7)).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_and_an_unlisted_sstable_are_told_apart() {
    let bucket = damaged_from().await;
    remove_sstable(&bucket, SSTABLE).await;
    only(&bucket, SSTABLE_MISSING, &bucket.shard().root().clone().join(SSTABLE)).await;
    let bucket = damaged_from().await;
    put_sstable(&bucket, "deadbeef_gen_2").await;
    only(&bucket, UNLISTED_SSTABLE, &bucket.shard().root().clone().join("deadbeef_gen_2")).await;
}

#[tokio::test(start_paused = true)]
async fn checkpoints_and_what_they_hold_are_checked() {
    // Holds the entries 6 to 8, which are flushed then, and the first SSTable.
    let with_checkpoint = async || {
        let (bucket, mut w2) = two_tenures().await;
        let options = checkpoint::CheckpointOptions::default();
        let checkpoint = checkpoint::create(&bucket.shard(), &options).await.unwrap();
        assert_eq!((checkpoint.replay_after.get(), checkpoint.tail.get()), (5, 8));
        let last = append(&mut w2, [7]).await.unwrap();
        w2.truncate(last).await.unwrap();
        settle().await;
        assert_eq!(found(&bucket).await, []);
        let path = bucket.shard().checkpoint_path(checkpoint.id);
        (bucket, path)
    };
    let (bucket, path) = with_checkpoint().await;
    bucket.delete(&bucket.entry_path(7)).await;
    only(&bucket, CHECKPOINT_HOLE, &bucket.entry_path(7)).await;
    let (bucket, path_of) = with_checkpoint().await;
    let whole = bucket.read(&path_of).await.unwrap();
    bucket.write(&path_of, whole.slice(..whole.len() - 1)).await;
    only(&bucket, CHECKPOINT_DAMAGED, &path_of).await;
    bucket.delete(&path_of).await;
    only(&bucket, CHECKPOINT_MISSING, &path_of).await;
    bucket.write(&path_of, whole).await;
    let version = newest(&bucket).await;
    edit(&bucket, version, |m| m.extension.as_mut().unwrap().checkpoints[0].tail = Position::new(7)).await;
    only(&bucket, CHECKPOINT_DAMAGED, &path_of).await;
    edit(&bucket, version, |m| m.extension.as_mut().unwrap().checkpoints.clear()).await;
    only(&bucket, UNLISTED_CHECKPOINT, &path_of).await;
    // An SSTable that only the checkpoint names, and a name that is none.
    let (bucket, _) = with_checkpoint().await;
    let version = newest(&bucket).await;
    edit(&bucket, version, |m| m.sstables.clear()).await;
    assert_eq!(found(&bucket).await, []);
    remove_sstable(&bucket, SSTABLE).await;
    only(&bucket, SSTABLE_MISSING, &bucket.shard().root().clone().join(SSTABLE)).await;
    let (bucket, _) = with_checkpoint().await;
    let foreign = bucket.shard().root().clone().join("checkpoints").join("monday.binpb");
    bucket.write(&foreign, bucket.read(&path).await.unwrap_or_default()).await;
    only(&bucket, FOREIGN_OBJECT, &foreign).await;
}

#[tokio::test(start_paused = true)]
async fn the_hint_is_believed_by_nobody_and_checked_all_the_same() {
    let bucket = damaged_from().await;
    let hint = bucket.shard().root().clone().join("manifest").join("version_hint.json");
    for (text, is_right) in
        [("{\"version\":6}", true), ("{\"version\": 2}", true), ("{\"version\":99}", false), ("{}", false), ("", false)]
    {
        bucket.write(&hint, text.into()).await;
        match is_right {
            true => assert_eq!(found(&bucket).await, [], "{text}"),
            false => only(&bucket, HINT_WRONG, &hint).await,
        }
        assert!(!report(&bucket).await.is_damaged());
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_entry_is_found_wherever_it_stands() {
    // A fence, R, one above R, the last one.
    for position in [1, 5, 6, 8] {
        let bucket = damaged_from().await;
        let path = bucket.entry_path(position);
        let whole = bucket.read(&path).await.unwrap();
        let flipped = |at: usize| {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1;
            bytes.into()
        };
        let trailer = whole.len() - 16;
        let torn = [whole.slice(..0), whole.slice(..trailer), flipped(40), flipped(trailer + 5), flipped(trailer + 9)];
        for bytes in torn {
            bucket.write(&path, bytes).await;
            only(&bucket, ENTRY_DAMAGED, &path).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_entry_is_found() {
    for position in [6, 7] {
        let bucket = damaged_from().await;
        bucket.delete(&bucket.entry_path(position)).await;
        only(&bucket, LOG_HOLE, &bucket.entry_path(position)).await;
    }
    let bucket = damaged_from().await;
    bucket.delete(&bucket.entry_path(5)).await;
    only(&bucket, REPLAY_POINT_MISSING, &bucket.entry_path(5)).await;
    // Behind what the manifest knows, only what stands too far behind it proves that an entry is missing.
    let bucket = damaged_from().await;
    bucket.copy_entry(8, 9 + 32).await;
    only(&bucket, BEYOND_THE_END, &bucket.entry_path(41)).await;
    bucket.copy_entry(8, 9 + 33).await;
    assert_eq!(found(&bucket).await, [(LOG_HOLE.name, bucket.entry_path(9).to_string())]);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_claims_the_whole_range_of_positions_is_reported_in_bounds() {
    let bucket = damaged_from().await;
    edit(&bucket, 6, |m| m.last_seen = Position::new(u64::MAX)).await;
    let report = report(&bucket).await;
    assert!(report.findings.len() <= 1_001, "{}", report.findings.len());
    assert!(report.findings.iter().all(|f| f.kind == LOG_HOLE));
    assert_eq!(report.findings.iter().filter(|f| f.object == bucket.entry_path(9).to_string()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn fences_must_be_there_and_be_the_ones_listed() {
    for position in [1, 4] {
        let bucket = damaged_from().await;
        bucket.delete(&bucket.entry_path(position)).await;
        only(&bucket, FENCE_MISSING, &bucket.entry_path(position)).await;
    }
    let bucket = damaged_from().await;
    bucket.copy_entry(1, 4).await;
    only(&bucket, FENCE_REPLACED, &bucket.entry_path(4)).await;
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_nobody_claimed_is_found() {
    for position in [3, 9] {
        let bucket = damaged_from().await;
        put_changed(&bucket, 8, position, |entry| entry.writer_epoch = Epoch::new(3)).await;
        only(&bucket, EPOCH_UNCLAIMED, &bucket.entry_path(position)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_writers_of_one_epoch_are_found() {
    let bucket = damaged_from().await;
    put_changed(&bucket, 8, 9, |entry| entry.writer_id = Some(Uuid::from_u128(7))).await;
    only(&bucket, EPOCH_SHARED, &bucket.entry_path(9)).await;
    // Of epoch 1 the manifests of its writer are pruned.
    bucket.prune_below(6).await;
    bucket.delete(&bucket.entry_path(9)).await;
    put_changed(&bucket, 1, 2, |entry| entry.writer_id = Some(Uuid::from_u128(7))).await;
    only(&bucket, EPOCH_SHARED, &bucket.entry_path(2)).await;
    let bucket = damaged_from().await;
    bucket.write(&bucket.entry_path(9), lance_entry(2, None, &[9])).await;
    only(&bucket, EPOCH_SHARED, &bucket.entry_path(9)).await;
    let bucket = damaged_from().await;
    edit(&bucket, 5, |m| m.extension.as_mut().unwrap().writer_id = Uuid::from_u128(7)).await;
    assert!(found(&bucket).await.contains(&(EPOCH_SHARED.name, bucket.manifest_path(6).to_string())));
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_would_start_with_another_epoch_is_found() {
    for epoch in [0, 1] {
        let bucket = damaged_from().await;
        edit(&bucket, 6, |m| m.extension.as_mut().unwrap().replay_after_epoch = Epoch::new(epoch)).await;
        only(&bucket, REPLAY_EPOCH_WRONG, &bucket.manifest_path(6)).await;
    }
    // Too high: the rows behind R would be dead. A claim that has come no further makes it possible.
    let bucket = damaged_from().await;
    let process = bucket.attempts(1);
    process.faults.on(Op::Create).path_contains("/wal/").then(Fault::Fail);
    process.open().await.unwrap_err();
    settle().await;
    assert_eq!(found(&bucket).await, []);
    edit(&bucket, 7, |m| m.extension.as_mut().unwrap().replay_after_epoch = Epoch::new(3)).await;
    let damage: Vec<_> =
        report(&bucket).await.findings.into_iter().filter(|f| f.severity() == Severity::Damage).collect();
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert_eq!((damage[0].kind, &damage[0].object), (REPLAY_EPOCH_WRONG, &bucket.manifest_path(7).to_string()));
}

#[tokio::test(start_paused = true)]
async fn rows_of_other_columns_are_found() {
    let bucket = damaged_from().await;
    put_changed(&bucket, 8, 9, |entry| {
        let columns = entry.batches.iter().flat_map(|b| b.columns()).map(Arc::clone);
        let named = columns.map(|column| ("other", column, false));
        let batch = arrow_array::RecordBatch::try_from_iter_with_nullable(named).unwrap();
        (entry.schema, entry.batches) = (batch.schema(), vec![batch]);
    })
    .await;
    only(&bucket, COLUMNS_CHANGE, &bucket.entry_path(9)).await;

    let check = |entry: &WalEntry| match entry.schema.field(0).name().as_str() {
        "id" => Ok(()),
        name => Err(format!("the table has no column `{name}`")),
    };
    let options = VerifyOptions { check_rows: Some(&check), ..VerifyOptions::default() };
    let report = verify(&bucket.shard(), &options).await.unwrap();
    let misfits: Vec<_> = report.findings.iter().filter(|f| f.kind == ENTRY_MISFIT).collect();
    assert_eq!(misfits.len(), 1, "{report:?}");
    assert_eq!(misfits[0].object, bucket.entry_path(9).to_string());
    assert!(misfits[0].detail.contains("`other`"));
}

#[tokio::test(start_paused = true)]
async fn what_lance_leaves_is_a_warning_until_adopted_and_its_stranded_rows_are_damage() {
    let bucket = damaged_from().await;
    let mut lance = Lance::open(&bucket).await;
    assert_eq!(lance.append([7]).await, 10);
    let lances = bucket.manifest_path(newest(&bucket).await);
    let infos = |found: Vec<(&'static str, String)>| -> Vec<_> {
        found.into_iter().filter(|(kind, _)| *kind != UNLISTED_SENTINEL.name).collect()
    };
    assert_eq!(infos(found(&bucket).await), [(UNADOPTED.name, lances.to_string())]);

    // Behind a hole, and behind the sentinel of a writer that replaced it.
    bucket.write(&bucket.entry_path(12), lance_entry(lance.epoch, Some(2), &[8])).await;
    let stranded = (STRANDED.name, bucket.entry_path(12).to_string());
    assert_eq!(infos(found(&bucket).await), [stranded, (UNADOPTED.name, lances.to_string())]);
    bucket.delete(&bucket.entry_path(12)).await;
    let w4 = bucket.process().appender().await;
    bucket.write(&bucket.entry_path(12), lance_entry(lance.epoch, Some(2), &[8])).await;
    assert_eq!(w4.tenure().sentinel().get(), 11);
    let ours = bucket.manifest_path(newest(&bucket).await);
    let stranded = (STRANDED.name, bucket.entry_path(12).to_string());
    assert_eq!(infos(found(&bucket).await), [stranded, (UNADOPTED.name, ours.to_string())]);
    bucket.delete(&bucket.entry_path(12)).await;
    fencepost_wal::adopt(&bucket.shard()).await.unwrap();
    settle().await;
    assert_eq!(found(&bucket).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_lance_flushed_and_carried_on_is_healthy_but_for_its_adoption() {
    let bucket = damaged_from().await;
    let mut lance = Lance::open(&bucket).await;
    let last = lance.append([7]).await;
    lance.flush(last).await;
    lance.append([8]).await;
    // A position recorded in front of which a PUT never landed (schedule 39).
    lance::commit(&bucket, |m| m.last_seen = 20).await;
    for finding in report(&bucket).await.findings {
        assert!(finding.severity() <= Severity::Warning, "{finding}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_straggler_and_a_claimants_sentinel_are_no_damage() {
    let (bucket, w2) = two_tenures().await;
    drop(w2);
    // A claimant that dies before its record, then one that comes through, and a straggler of its predecessor.
    let process = bucket.attempts(1);
    process.faults.on(Op::Create).path_contains("/manifest/").nth(2).then(Fault::Fail);
    process.open().await.unwrap_err();
    let sentinel = bucket.entry_path(9);
    assert!(bucket.read(&sentinel).await.is_some());
    assert_eq!(found(&bucket).await, []);
    let claimed = bucket.attempts(1);
    claimed.faults.on(Op::Create).path_contains("/wal/").then(Fault::Fail);
    claimed.open().await.unwrap_err();
    assert_eq!(found(&bucket).await, [(UNLISTED_SENTINEL.name, sentinel.to_string())]);
    bucket.copy_entry(8, 10).await;
    let infos = [(DEAD_ENTRY.name, bucket.entry_path(10).to_string()), (UNLISTED_SENTINEL.name, sentinel.to_string())];
    assert_eq!(found(&bucket).await, infos);
    assert_eq!(report(&bucket).await.counts.dead, 1);
    bucket.process().appender().await;
    let dead = bucket.manifest().await.fences().contains(&Fence { position: Position::new(10), epoch: Epoch::new(2) });
    assert!(dead, "the claim listed it");
    assert!(!report(&bucket).await.is_damaged());
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_goes_on_while_it_is_verified_is_not_damaged() {
    // The verifier stalls between its steps, and meanwhile rows are appended, published and collected, manifests pruned.
    for (op, part) in [(Op::Get, "/wal/"), (Op::List, "/manifest"), (Op::Get, "/manifest/")] {
        for nth in 1..=3 {
            let (bucket, mut w2) = two_tenures().await;
            let process = bucket.patient();
            let gate = process.faults.on(op).path_contains(part).nth(nth).stall();
            let shard = process.shard.clone();
            let verifying = tokio::spawn(async move { verify(&shard, &VerifyOptions::default()).await });
            if nth == 1 || op == Op::Get {
                gate.reached().await;
            }
            for id in 10..50 {
                append(&mut w2, [id]).await.unwrap();
            }
            let acknowledged = w2.tenure().acknowledged();
            w2.truncate(Position::new(acknowledged.get() - 2)).await.unwrap();
            bucket.collect_garbage().await;
            bucket.prune_below(5).await;
            append(&mut w2, [50]).await.unwrap();
            gate.release();
            let report = verifying.await.unwrap().unwrap();
            assert!(!report.is_damaged(), "{op:?} {part} {nth}: {:?}", report.findings);
        }
    }
}

/// The pages of a LIST are of different moments and not in the order of the positions, so that late entries may be in it
/// and earlier ones not.
#[tokio::test(start_paused = true)]
async fn what_a_list_left_out_is_asked_for_before_it_is_called_missing() {
    // Behind what the manifest knows, and up to there, more than are named in a report.
    for last_seen in [8, 1_200] {
        let bucket = damaged_from().await;
        bucket.copy_entry(8, 1_201).await;
        edit(&bucket, 6, |m| m.last_seen = Position::new(last_seen)).await;
        let process = bucket.patient();
        let gate = process.faults.on(Op::Get).path_contains("/wal/").nth(1).stall();
        let shard = process.shard.clone();
        let verifying = tokio::spawn(async move { verify(&shard, &VerifyOptions::default()).await });
        gate.reached().await;
        for position in 9..=1_200 {
            bucket.copy_entry(8, position).await;
        }
        gate.release();
        let report = verifying.await.unwrap().unwrap();
        assert_eq!((report.findings, report.counts.tail.get()), (vec![], 1_201), "{last_seen}");
        assert_eq!(process.requests(Op::List, "/wal"), 1, "one look was enough");
    }
}

#[tokio::test]
async fn damage_is_what_two_looks_agree_on() {
    let hole = |n: u64| Finding::new(LOG_HOLE, n, "x");
    let look = |findings: &[Finding]| Ok::<_, Error>(VerifyReport::new(findings.to_vec(), VerifyCounts::default()));
    let run = async |looks: Vec<Vec<Finding>>| {
        let mut looks = looks.into_iter();
        let report = confirmed(|| std::future::ready(look(&looks.next().unwrap()))).await.unwrap();
        assert_eq!(looks.next(), None, "every look was taken");
        report.findings
    };
    let info = Finding::new(DEAD_ENTRY, 1, "x");
    assert_eq!(run(vec![vec![info.clone()]]).await, std::slice::from_ref(&info));
    assert_eq!(run(vec![vec![hole(1)], vec![hole(1)]]).await, [hole(1)]);
    assert_eq!(run(vec![vec![hole(1)], vec![info.clone()]]).await, [info]);
    assert_eq!(run(vec![vec![hole(1)], vec![hole(1), hole(2)], vec![hole(1)]]).await, [hole(1)]);
    let moving = run((1..=4).map(|n| vec![hole(9), hole(n)]).collect()).await;
    assert_eq!(
        moving.iter().map(|f| (f.kind, f.object.as_str())).collect::<Vec<_>>(),
        [(LOG_HOLE, "9"), (IN_DOUBT, "4")]
    );
}

#[test]
fn the_operations_page_explains_every_kind() {
    let page = include_str!("../../../../docs/operations.md");
    for kind in kinds::ALL {
        assert!(page.contains(&format!("`{}`", kind.name)), "{} is not explained", kind.name);
    }
}

/// For random histories: whatever its actors did, and wherever they stand, nothing of it is damage.
pub(crate) async fn assert_healthy(bucket: &Bucket) {
    let report = report(bucket).await;
    assert!(!report.is_damaged(), "{:#?}\n{:#?}", report.findings, report.counts);
}
