//! `Table::verify`: damage to SSTables, sidecars, shards and the base table's record, one kind at a time, and none in
//! what flushes, merges and takeovers leave.

use std::sync::Mutex;

use fencepost::verify::kinds;
use fencepost::wal::{
    FindingKind, Generation, ManifestVersion, Severity, Shard, ShardManifest, raw, verify::kinds as log,
};
use fencepost::{ShardId, Table, Verification, VerifyProgress};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::merge::merge;
use crate::support::*;

async fn verified(bucket: &Bucket) -> Verification {
    bucket.table().await.verify(|_| {}).await.unwrap()
}

async fn found(bucket: &Bucket) -> Vec<(&'static str, String)> {
    let mut found: Vec<_> = verified(bucket).await.findings.into_iter().map(|f| (f.kind.name, f.object)).collect();
    found.sort();
    found.dedup();
    found
}

async fn only(bucket: &Bucket, kind: FindingKind, object: &str) {
    assert_eq!(found(bucket).await, [(kind.name, object.to_owned())]);
}

/// Two generations, the second with a deletion, and rows in the log.
async fn two_generations(key: &[&str]) -> (Bucket, Table) {
    let bucket = Bucket::new();
    let table = create(&bucket, key, "unsharded").await;
    let writer = bucket.process().writer(config()).await;
    writer.put(rows(&[(1, 10), (2, 20), (3, 30)])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(&[(2, 21), (4, 40)])).await.unwrap();
    if !key.is_empty() {
        writer.delete(keys(&[3])).await.unwrap();
    }
    writer.flush().await.unwrap();
    writer.put(rows(&[(5, 50)])).await.unwrap();
    writer.close().await.unwrap();
    assert_eq!(found(&bucket).await, []);
    (bucket, table)
}

async fn objects(bucket: &Bucket, below: &str) -> Vec<Path> {
    let inner = bucket.inner();
    let mut listed = inner.list(Some(&Path::from(below)));
    let mut found = Vec::new();
    while let Some(object) = listed.try_next().await.unwrap() {
        found.push(object.location);
    }
    found.sort();
    found
}

/// The folder of the generation's SSTable.
async fn folder(bucket: &Bucket, generation: usize) -> String {
    let manifest = bucket.manifest().await;
    format!("t/_mem_wal/{}/{}", manifest.shard_id, manifest.sstables[generation - 1].path)
}

/// The only object of that kind in the generation's SSTable.
async fn object(bucket: &Bucket, generation: usize, part: &str) -> Path {
    let found = objects(bucket, &folder(bucket, generation).await).await;
    let found: Vec<_> = found.into_iter().filter(|path| path.as_ref().contains(part)).collect();
    assert_eq!(found.len(), 1, "{part}: {found:?}");
    found[0].clone()
}

async fn bytes(bucket: &Bucket, path: &Path) -> Vec<u8> {
    bucket.inner().get(path).await.unwrap().bytes().await.unwrap().to_vec()
}

async fn put(bucket: &Bucket, path: &Path, bytes: Vec<u8>) {
    bucket.inner().put(path, bytes.into()).await.unwrap();
}

async fn delete(bucket: &Bucket, path: &Path) {
    bucket.inner().delete(path).await.unwrap();
}

async fn shard(bucket: &Bucket) -> Shard {
    Shard::new(bucket.table().await.store().clone(), bucket.manifest().await.shard_id)
}

/// Rewrites the newest manifest in its place; its path.
async fn edit(bucket: &Bucket, change: impl FnOnce(&mut ShardManifest)) -> Path {
    let manifest = bucket.manifest().await;
    let path = shard(bucket).await.manifest_path(manifest.version);
    let mut manifest =
        raw::decode_manifest("m", &bytes(bucket, &path).await, manifest.shard_id, manifest.version).unwrap();
    change(&mut manifest);
    put(bucket, &path, raw::encode_manifest(&manifest)).await;
    path
}

#[tokio::test]
async fn a_healthy_table_is_counted() {
    let (bucket, table) = two_generations(&["id"]).await;
    let last = Mutex::new(None);
    let report = table.verify(|progress| *last.lock().unwrap() = Some(progress)).await.unwrap();
    assert!(!report.is_damaged());
    assert_eq!((report.sstable_rows, report.base_rows, report.shards.len()), (7, 0, 1));
    let counts = report.shards[0].counts;
    // A close flushes: three SSTables, nothing to replay.
    assert_eq!((counts.sstables, counts.rows, counts.sentinels), (3, 0, 1));
    let VerifyProgress { objects, of_objects } = last.into_inner().unwrap().unwrap();
    assert_eq!(objects, of_objects);
    assert_eq!(objects, counts.manifests + counts.entries + counts.sstables);
    assert_eq!(found(&bucket).await, []);
}

#[tokio::test]
async fn a_missing_sstable_is_found() {
    let (bucket, _) = two_generations(&["id"]).await;
    let folder = folder(&bucket, 2).await;
    for path in objects(&bucket, &folder).await {
        delete(&bucket, &path).await;
    }
    let found = found(&bucket).await;
    assert!(found.contains(&(log::SSTABLE_MISSING.name, folder.clone())), "{found:?}");
    assert!(found.iter().all(|(_, object)| object.starts_with(&folder)), "{found:?}");
}

#[tokio::test]
async fn an_sstable_that_does_not_open_is_found() {
    let (bucket, _) = two_generations(&["id"]).await;
    let manifest = object(&bucket, 1, "/_versions/").await;
    let whole = bytes(&bucket, &manifest).await;
    for cut in [whole[..whole.len() / 2].to_vec(), vec![]] {
        put(&bucket, &manifest, cut).await;
        only(&bucket, kinds::SSTABLE_DAMAGED, &folder(&bucket, 1).await).await;
    }
    delete(&bucket, &manifest).await;
    only(&bucket, kinds::SSTABLE_DAMAGED, &folder(&bucket, 1).await).await;
}

#[tokio::test]
async fn a_torn_or_missing_data_file_is_found_by_name() {
    for key in [&["id"] as &[&str], &[]] {
        let (bucket, _) = two_generations(key).await;
        let data = object(&bucket, 2, "/data/").await;
        let whole = bytes(&bucket, &data).await;
        put(&bucket, &data, whole[..whole.len() / 2].to_vec()).await;
        only(&bucket, kinds::SSTABLE_DAMAGED, data.as_ref()).await;
        delete(&bucket, &data).await;
        only(&bucket, kinds::SSTABLE_DAMAGED, data.as_ref()).await;
        put(&bucket, &data, whole).await;
        assert_eq!(found(&bucket).await, []);
    }
}

#[tokio::test]
async fn rows_that_are_not_those_of_the_manifest_are_found() {
    for key in [&["id"] as &[&str], &[]] {
        let (bucket, _) = two_generations(key).await;
        edit(&bucket, |m| m.sstables[1].physical_rows = Some(9)).await;
        only(&bucket, kinds::SSTABLE_ROWS_WRONG, &folder(&bucket, 2).await).await;
    }
}

#[tokio::test]
async fn the_folder_of_something_else_is_found() {
    // The base table itself, which has no `_tombstone`.
    let (bucket, _) = two_generations(&["id"]).await;
    merge(&bucket.table().await).await;
    let folder = folder(&bucket, 1).await;
    for path in objects(&bucket, &folder).await {
        delete(&bucket, &path).await;
    }
    for path in objects(&bucket, "t").await {
        let Some(of_base) = path.as_ref().strip_prefix("t/").filter(|p| !p.starts_with("_mem_wal")) else { continue };
        put(&bucket, &Path::from(format!("{folder}/{of_base}")), bytes(&bucket, &path).await).await;
    }
    only(&bucket, kinds::SSTABLE_COLUMNS_WRONG, &folder).await;
}

#[tokio::test]
async fn a_key_index_that_does_not_agree_is_found() {
    for key in [&["id"] as &[&str], &["id", "s"]] {
        for file in ["page_data.lance", "page_lookup.lance"] {
            let (bucket, _) = two_generations_of(key).await;
            let path = object(&bucket, 1, file).await;
            let whole = bytes(&bucket, &path).await;
            put(&bucket, &path, whole[..whole.len() / 2].to_vec()).await;
            only(&bucket, kinds::KEY_INDEX_DAMAGED, path.as_ref()).await;
            // Another SSTable's.
            let other = bytes(&bucket, &object(&bucket, 2, file).await).await;
            put(&bucket, &path, other).await;
            only(&bucket, kinds::KEY_INDEX_DAMAGED, path.as_ref()).await;
            delete(&bucket, &path).await;
            only(&bucket, kinds::KEY_INDEX_DAMAGED, path.as_ref()).await;
        }
    }
}

/// As [`two_generations`], without deletions, whose keys need every key column.
async fn two_generations_of(key: &[&str]) -> (Bucket, Table) {
    let bucket = Bucket::new();
    let table = create(&bucket, key, "unsharded").await;
    let writer = bucket.process().writer(config()).await;
    for first in [1, 4] {
        writer.put(rows(&[(first, 10), (first + 1, 20), (first + 2, 30)])).await.unwrap();
        writer.flush().await.unwrap();
    }
    writer.close().await.unwrap();
    assert_eq!(found(&bucket).await, []);
    (bucket, table)
}

#[tokio::test]
async fn a_bloom_filter_that_does_not_agree_is_found() {
    let (bucket, _) = two_generations(&["id"]).await;
    let path = object(&bucket, 1, "bloom_filter.bin").await;
    let whole = bytes(&bucket, &path).await;
    let mut flipped = whole.clone();
    flipped[100] ^= 1;
    for damaged in [flipped, whole[..32].to_vec(), vec![]] {
        put(&bucket, &path, damaged).await;
        only(&bucket, kinds::BLOOM_FILTER_DAMAGED, path.as_ref()).await;
    }
    delete(&bucket, &path).await;
    only(&bucket, kinds::BLOOM_FILTER_DAMAGED, path.as_ref()).await;
}

/// Each digit of them: of the number of rows, of field ids, nulls, and the bytes of the ends.
#[tokio::test]
async fn statistics_that_say_other_than_the_rows_are_found() {
    for key in [&["id"] as &[&str], &[]] {
        let (bucket, _) = two_generations(key).await;
        let path = object(&bucket, 2, "/_versions/").await;
        let whole = bytes(&bucket, &path).await;
        let name = b"fencepost.statistics";
        let at = whole.windows(name.len()).position(|part| part == name).unwrap() + name.len();
        // The value's tag and its length, below 128, in one byte each.
        let text = at + 2..at + 2 + usize::from(whole[at + 1]);
        let digits: Vec<usize> = text.filter(|at| whole[*at].is_ascii_hexdigit()).collect();
        assert!(digits.len() > 50, "{}", digits.len());
        for place in digits {
            let mut damaged = whole.clone();
            damaged[place] = if whole[place] == b'1' { b'2' } else { b'1' };
            put(&bucket, &path, damaged).await;
            only(&bucket, kinds::SSTABLE_STATISTICS_WRONG, &folder(&bucket, 2).await).await;
        }
        let mut unreadable = whole.clone();
        unreadable[at + 2] = b'x';
        put(&bucket, &path, unreadable).await;
        only(&bucket, kinds::SSTABLE_STATISTICS_WRONG, &folder(&bucket, 2).await).await;
        put(&bucket, &path, whole).await;
        assert_eq!(found(&bucket).await, []);
    }
}

#[tokio::test]
async fn a_missing_generation_is_found() {
    let (bucket, _) = two_generations(&["id"]).await;
    let gone = folder(&bucket, 2).await;
    let path = edit(&bucket, |m| drop(m.sstables.remove(1))).await;
    let mut expected = vec![(kinds::GENERATION_MISSING.name, path.to_string()), (log::UNLISTED_SSTABLE.name, gone)];
    expected.sort();
    assert_eq!(found(&bucket).await, expected);
}

#[tokio::test]
async fn a_shard_that_is_gone_or_older_than_what_was_merged_is_found() {
    let (bucket, _) = two_generations(&["id"]).await;
    merge(&bucket.table().await).await;
    assert_eq!(found(&bucket).await, []);
    let manifest = bucket.manifest().await;
    let root = shard(&bucket).await.root().to_string();
    // The merge record points beyond the shard's generations.
    let path = edit(&bucket, |m| m.current_generation = Generation::new(3)).await;
    let found_now = found(&bucket).await;
    assert!(found_now.contains(&(kinds::SHARD_LOST.name, root.clone())), "{found_now:?}");
    assert!(found_now.iter().all(|(_, object)| *object == root || *object == path.to_string()), "{found_now:?}");
    for path in objects(&bucket, &root).await {
        delete(&bucket, &path).await;
    }
    only(&bucket, kinds::SHARD_LOST, &root).await;
    assert!(manifest.version > ManifestVersion::new(1));
}

#[tokio::test]
async fn damage_of_the_base_table_is_found() {
    let (bucket, _) = two_generations(&["id"]).await;
    merge(&bucket.table().await).await;
    let table = bucket.table().await;
    let data: Vec<_> = objects(&bucket, "t/data").await;
    for path in data {
        delete(&bucket, &path).await;
    }
    let report = table.verify(|_| {}).await.unwrap();
    let damage: Vec<_> = report.findings.iter().map(|f| (f.kind, f.object.as_str())).collect();
    assert!(damage.contains(&(kinds::BASE_DAMAGED, "t")), "{:?}", report.findings);
}

#[tokio::test]
async fn shards_that_no_row_can_be_routed_to_are_warnings() {
    let bucket = Bucket::new();
    let table = create(&bucket, &["id"], "bucket(id,2)").await;
    let shards = table.shard_ids().await.unwrap();
    let root = |id: ShardId| format!("t/_mem_wal/{id}");
    let make = async |change: &dyn Fn(&mut ShardManifest)| {
        let of = |id| Shard::new(bucket.process().store, id);
        let first = of(shards[0]).manifest_path(ManifestVersion::new(1));
        let first = bytes(&bucket, &first).await;
        let mut made = raw::decode_manifest("m", &first, shards[0], ManifestVersion::new(1)).unwrap();
        made.shard_id = ShardId::new_random();
        change(&mut made);
        put(&bucket, &of(made.shard_id).manifest_path(made.version), raw::encode_manifest(&made)).await;
        made.shard_id
    };
    let unknown = make(&|m| m.shard_field_entries.clear()).await;
    only(&bucket, kinds::SHARD_UNKNOWN, &root(unknown)).await;
    for path in objects(&bucket, &root(unknown)).await {
        delete(&bucket, &path).await;
    }
    let twin = make(&|_| {}).await;
    let found_now = found(&bucket).await;
    assert_eq!(found_now.len(), 1, "{found_now:?}");
    assert_eq!(found_now[0].0, kinds::SHARDS_OVERLAP.name);
    assert!([root(twin), root(shards[0])].contains(&found_now[0].1));
    for path in objects(&bucket, &root(twin)).await {
        delete(&bucket, &path).await;
    }
    for path in objects(&bucket, &root(shards[1])).await {
        delete(&bucket, &path).await;
    }
    only(&bucket, kinds::SHARD_NOT_MADE, &root(shards[1])).await;
    assert!(verified(&bucket).await.findings.iter().all(|f| f.severity() == Severity::Warning));
}

#[tokio::test]
async fn rows_in_the_log_that_are_another_tables_are_found() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    writer.put(rows(&[(1, 10)])).await.unwrap();
    drop(writer);
    let other = Bucket::new();
    fencepost::Table::create(
        other.process().store,
        std::sync::Arc::new(arrow_schema::Schema::new(vec![arrow_schema::Field::new(
            "name",
            arrow_schema::DataType::Utf8,
            false,
        )])),
        fencepost::TableOptions { primary_key: vec!["name".into()], ..Default::default() },
    )
    .await
    .unwrap();
    let shard_of_other = shard(&other).await;
    let of = |n| fencepost::Position::new(n);
    let entry = bytes(&bucket, &shard(&bucket).await.entry_path(of(2))).await;
    let sentinel = bytes(&bucket, &shard(&bucket).await.entry_path(of(1))).await;
    // A claim, and then the entries of the other table.
    let path = edit(&other, |m| m.writer_epoch = m.writer_epoch.next().unwrap()).await;
    put(&other, &shard_of_other.entry_path(of(1)), sentinel).await;
    put(&other, &shard_of_other.entry_path(of(2)), entry).await;
    let misfit = shard_of_other.entry_path(of(2)).to_string();
    let found = found(&other).await;
    assert_eq!(found, [(log::ENTRY_MISFIT.name, misfit)], "{path}");
}

#[tokio::test]
async fn what_writers_and_mergers_leave_is_healthy_whenever_it_is_looked_at() {
    let bucket = Bucket::new();
    keyed(&bucket, 2).await;
    for round in 0..6 {
        let writer = bucket.table().await.writer(config()).await.unwrap();
        for n in 0..5 {
            writer.put(rows(&[(n, round), (n + 100, round), (round, n)])).await.unwrap();
        }
        assert_eq!(found(&bucket).await, [], "beside a writer, round {round}");
        match round % 3 {
            0 => writer.close().await.unwrap(),
            1 => writer.flush().await.unwrap(),
            _ => drop(writer),
        }
        if round % 2 == 1 {
            merge(&bucket.table().await).await;
        }
        for finding in verified(&bucket).await.findings {
            assert!(finding.severity() == Severity::Info, "{finding}");
        }
    }
}

#[test]
fn the_operations_page_explains_every_kind() {
    let page = include_str!("../../../../docs/operations.md");
    for kind in kinds::ALL {
        assert!(page.contains(&format!("`{}`", kind.name)), "{} is not explained", kind.name);
    }
}
