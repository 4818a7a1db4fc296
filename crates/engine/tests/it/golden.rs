//! Golden files: a whole table as committed in `tests/golden/table/`, and the MemWAL index of every sharding. The table
//! must open, with these rows, in this version and in every later one. Made again, its SSTable must have the same bytes,
//! but for what is random or a time. (Log entries and shard manifests carry random ids: `crates/wal/src/golden.rs`.)
//!
//! A wanted change: `FENCEPOST_WRITE_GOLDEN=1 cargo test -p fencepost --test it golden` writes the files anew and fails,
//! so that it is never a green run; look at the difference. Tables like the old one may be on somebody's storage: keep
//! it beside the new one and let both open.

use std::path::{Path, PathBuf};

use fencepost::Sharding;
use fencepost::wal::{Fence, Position};
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_file::format::pb::FileDescriptor;
use lance_table::format::pb;
use prost::Message;

use crate::interop::place::Place;
use crate::support::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Whether the files are to be written anew.
fn writing() -> bool {
    let writing = std::env::var_os("FENCEPOST_WRITE_GOLDEN").is_some();
    assert!(!writing || std::env::var_os("CI").is_none(), "golden files are not written by CI");
    writing
}

/// A keyed table: a flushed SSTable of three rows and a deletion, and one row in the log of a writer that crashed.
async fn make() -> Place {
    let place = Place::new(true).await;
    let writer = place.ours(config()).await;
    writer.put(rows(&[(1, 1), (2, 2)])).await.unwrap();
    writer.put(rows(&[(1, 10), (3, 3)])).await.unwrap();
    writer.delete(keys(&[2])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(&[(4, 4)])).await.unwrap();
    place
}

/// A copy of the committed table.
fn committed() -> Place {
    Place::copy_of(&golden("table"))
}

const ROWS: [(i64, Option<i64>); 3] = [(1, Some(10)), (3, Some(3)), (4, Some(4))];

#[tokio::test]
async fn golden_table_opens_and_goes_on() {
    if writing() {
        let _ = std::fs::remove_dir_all(golden("table"));
        make().await.copy_to(&golden("table"));
        panic!("the golden table was written; look at the difference and run again without FENCEPOST_WRITE_GOLDEN");
    }
    let place = committed();
    assert_eq!(place.seen().await, ROWS);
    let manifest = place.manifest().await;
    assert_eq!((manifest.version.get(), manifest.writer_epoch.get()), (4, 1));
    // Sentinel 1, entries 2 to 4 in the SSTable, entry 5 in the log.
    assert_eq!((manifest.replay_after.get(), manifest.last_seen.get()), (4, 4));
    assert_eq!(manifest.fences(), [Fence { position: Position::new(1), epoch: fencepost::Epoch::new(1) }]);
    let [sstable] = &manifest.sstables[..] else { panic!("one SSTable") };
    assert_eq!((sstable.generation.get(), sstable.physical_rows), (1, Some(3)));
    manifest.collectable().unwrap();

    let copy = place.copy();
    let theirs = copy.theirs().await;
    assert_eq!(theirs.seen().await, ROWS);
    theirs.die().await;
    let writer = place.ours(config()).await;
    writer.put(rows(&[(5, 5)])).await.unwrap();
    writer.close().await.unwrap();
    place.table().await.merge(&Default::default(), |_| {}).await.unwrap();
    assert_eq!(place.seen().await, [&ROWS[..], &[(5, Some(5))]].concat());
}

/// An SSTable that was written before there were statistics.
#[tokio::test]
async fn golden_table_without_statistics_is_read_by_key_and_by_filter() {
    let place = Place::copy_of(&golden("table-without-statistics"));
    assert_eq!(place.seen().await, ROWS);
    let snapshot = place.table().await.snapshot().await.unwrap();
    let found = snapshot.get(&keys(&[4, 2, 1, 3]), None).await.unwrap();
    assert_eq!(found.columns(), rows(&[(4, 4), (1, 10), (3, 3)]).columns());
    assert_eq!(number(&snapshot.provider(), "select count(*) from t where v > 3").await, 2);
    place.table().await.flush(config()).await.unwrap();
    place.table().await.merge(&Default::default(), |_| {}).await.unwrap();
    assert_eq!(place.seen().await, ROWS);
}

/// The only SSTable's folder.
async fn sstable_of(place: &Place) -> PathBuf {
    let folder = place.manifest().await.sstables[0].path.clone();
    Path::new(&place.path()).join("_mem_wal").join(place.shard().await.id().to_string()).join(folder)
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// The only file in a folder whose name ends so.
fn only_file(folder: &Path, ending: &str) -> Vec<u8> {
    let found: Vec<_> = names(folder).into_iter().filter(|name| name.ends_with(ending)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    std::fs::read(folder.join(&found[0])).unwrap()
}

/// A Lance file's bytes without its schema, and that: a message whose maps have no order.
fn apart(file: &[u8]) -> (Vec<u8>, FileDescriptor) {
    let number = |at: usize| usize::try_from(u64::from_le_bytes(file[at..at + 8].try_into().unwrap())).unwrap();
    // The third number of the footer is where the table of global buffers is; the schema is the first of these.
    let table = number(file.len() - 40 + 16);
    let (at, length) = (number(table), number(table + 8));
    let schema = FileDescriptor::decode(&file[at..at + length]).unwrap();
    ([&file[..at], &file[at + length..]].concat(), schema)
}

/// A Lance manifest without its times and random names, as a message, and what stands around it in its file.
fn normalised(file: &[u8]) -> (Vec<u8>, pb::Manifest) {
    // The message's place, the format's version and a magic word end the file.
    let (rest, footer) = file.split_at(file.len() - 16);
    let at = usize::try_from(u64::from_le_bytes(footer[..8].try_into().unwrap())).unwrap();
    let length = u32::from_le_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
    let mut manifest = pb::Manifest::decode(&rest[at + 4..]).unwrap();
    assert_eq!(at + 4 + length, rest.len());
    assert!(manifest.timestamp.take().is_some());
    for file in manifest.fragments.iter_mut().flat_map(|fragment| &mut fragment.files) {
        assert!(file.path.ends_with(".lance"));
        file.path = "FILE.lance".to_owned();
    }
    ([&rest[..at], &footer[8..]].concat(), manifest)
}

#[tokio::test]
async fn golden_sstable_has_the_same_bytes_when_it_is_made_again() {
    if writing() {
        return;
    }
    let (old_place, new_place) = (committed(), make().await);
    let (old, new) = (sstable_of(&old_place).await, sstable_of(&new_place).await);
    let same = |file: &str, old: Vec<u8>, new: Vec<u8>| {
        let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
        assert!(old == new, "{file}: the bytes written now differ from byte {same} on");
    };
    assert_eq!(names(&new), ["_pk_index", "_versions", "bloom_filter.bin", "data"]);
    for folder in ["", "_pk_index", "_versions"] {
        assert_eq!(names(&old.join(folder)), names(&new.join(folder)));
    }
    for (folder, file) in [("data", ".lance"), ("_pk_index", "page_data.lance"), ("_pk_index", "page_lookup.lance")] {
        let file = |place: &Path| apart(&only_file(&place.join(folder), file));
        let ((old, old_schema), (new, new_schema)) = (file(&old), file(&new));
        assert_eq!(old_schema, new_schema);
        same(folder, old, new);
    }
    let bloom = |place: &Path| only_file(place, "bloom_filter.bin");
    same("bloom_filter.bin", bloom(&old), bloom(&new));
    let manifest = |folder: &Path| normalised(&only_file(&folder.join("_versions"), ".manifest"));
    let ((old_around, old), (new_around, new)) = (manifest(&old), manifest(&new));
    assert_eq!(old, new);
    same("what is around its Lance manifest", old_around, new_around);
}

/// The details of the MemWAL index as the base table's manifest holds them.
async fn index_details(place: &Place) -> Vec<u8> {
    let dataset = Dataset::open(&place.path()).await.unwrap();
    let indexes = dataset.load_indices().await.unwrap();
    let index = indexes.iter().find(|index| index.name == "__lance_mem_wal").unwrap();
    index.index_details.as_ref().unwrap().value.clone()
}

#[tokio::test]
async fn golden_index_details_of_every_sharding() {
    let of_id = || "id".to_owned();
    for (name, num_shards, result_type, sharding) in [
        ("unsharded", 1, "int32", Sharding::Unsharded),
        ("bucket", 4, "int32", Sharding::Bucket { column: of_id(), buckets: 4 }),
        ("identity", 0, "int64", Sharding::Identity { column: of_id() }),
    ] {
        let place = Place::sharded(true, sharding.clone()).await;
        let now = index_details(&place).await;
        let file = golden(&format!("index-details-{name}.binpb"));
        if writing() {
            std::fs::write(&file, &now).unwrap();
        }
        let committed = std::fs::read(&file).unwrap();
        assert!(committed == now, "{}: {now:02x?}", file.display());
        let details = pb::MemWalIndexDetails::decode(committed.as_slice()).unwrap();
        assert_eq!(details.num_shards, num_shards);
        let [spec] = &details.sharding_specs[..] else { panic!("one spec") };
        let [field] = &spec.fields[..] else { panic!("one field") };
        assert_eq!((spec.spec_id, field.field_id.as_str(), field.result_type.as_str()), (1, "bucket", result_type));
        assert_eq!(field.transform.as_deref(), Some(name));
        assert_eq!(field.source_ids, if name == "unsharded" { vec![] } else { vec![0] });
        let buckets = field.parameters.get("num_buckets").map(String::as_str);
        assert_eq!(buckets, (name == "bucket").then_some("4"));
        assert_eq!(place.table().await.sharding(), &sharding);
    }
    assert!(!writing(), "the golden index details were written; look at the difference");
}
