//! Many SSTables: answers stay right, and no more are opened than the answer needs, or at once. What the tests make is not
//! flushed one by one: a few SSTables are, and their folders are copied for all further generations.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use datafusion::common::stats::Precision;
use fencepost::wal::{ManifestVersion, Shard, ShardManifest};
use fencepost::{Metric, Table};
use fencepost_sim::{Op, Rng};
use futures::TryStreamExt;
use lance_table::format::pb;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;

use crate::at_once::AtOnce;
use crate::search::documents::*;
use crate::support::*;

/// SSTables that are written; the others are copies of them, in turns.
const WRITTEN: u64 = 10;

/// A shard with so many SSTables. Of each ten, nine have five ids of their own, with `v` = `id`, and one overwrites id 0 with
/// 1000 and deletes id 11.
async fn with_sstables(bucket: &Bucket, key: &[&str], count: u64) {
    let table = create(bucket, key, "unsharded").await;
    let writer = table.writer(config()).await.unwrap();
    for n in 0..WRITTEN as i64 {
        match n {
            9 if !key.is_empty() => {
                writer.put(rows(&[(0, 1000)])).await.unwrap();
                writer.delete(keys(&[11])).await.unwrap();
            }
            n => drop(writer.put(ids(n * 10..n * 10 + 5)).await.unwrap()),
        }
        writer.flush().await.unwrap();
    }
    writer.close().await.unwrap();
    copy_sstables(bucket, &table, count).await;
}

/// Gives a shard that has [`WRITTEN`] SSTables, and nothing in its log, so many of them.
async fn copy_sstables(bucket: &Bucket, table: &Table, count: u64) {
    let manifest = bucket.manifest().await;
    assert_eq!(manifest.sstables.len() as u64, WRITTEN);
    let shard = Shard::new(table.store().clone(), table.shard_ids().await.unwrap()[0]);
    let objects = bucket.inner();
    let place = |name: &str| Path::from(format!("t/{}{name}", folder(shard.id())));
    for (n, sstable) in (0..).zip(&manifest.sstables) {
        let from = place(&sstable.path);
        let files: Vec<_> = objects.list(Some(&from)).try_collect().await.unwrap();
        for file in files {
            let bytes = objects.get(&file.location).await.unwrap().bytes().await.unwrap();
            let rest: Vec<String> = file.location.prefix_match(&from).unwrap().map(|p| p.as_ref().to_owned()).collect();
            for generation in (n + 1 + WRITTEN..=count).step_by(WRITTEN as usize) {
                let to = place(&format!("{}/{}", copy_name(generation), rest.join("/")));
                objects.put(&to, bytes.clone().into()).await.unwrap();
            }
        }
    }
    list(bucket, &shard, &manifest, count).await;
}

fn copy_name(generation: u64) -> String {
    format!("{generation:08x}_gen_{generation}")
}

/// The next manifest of a shard, as Lance writes them, with its SSTables and their copies.
async fn list(bucket: &Bucket, shard: &Shard, manifest: &ShardManifest, count: u64) {
    let sstables = (1..=count).zip(manifest.sstables.iter().cycle()).map(|(generation, written)| pb::SsTable {
        generation,
        path: if generation <= WRITTEN { written.path.clone() } else { copy_name(generation) },
        in_memory_bytes: None,
        physical_rows: written.physical_rows,
        primary_key_bytes: None,
    });
    let next = pb::ShardManifest {
        shard_id: Some(pb::Uuid { uuid: shard.id().as_uuid().as_bytes().to_vec() }),
        version: manifest.version.get() + 1,
        shard_spec_id: manifest.shard_spec_id,
        writer_epoch: manifest.writer_epoch.get(),
        replay_after_wal_entry_position: manifest.replay_after.get(),
        wal_entry_position_last_seen: manifest.last_seen.get(),
        current_generation: count + 1,
        sstables: sstables.collect(),
        ..Default::default()
    };
    let path = shard.manifest_path(ManifestVersion::new(next.version));
    bucket.inner().put(&path, next.encode_to_vec().into()).await.unwrap();
}

/// What a scan finds, if the newest SSTable is the last of ten.
fn expected() -> Vec<(i64, Option<i64>)> {
    let ids = (0..WRITTEN as i64 - 1).flat_map(|n| n * 10..n * 10 + 5).filter(|id| *id != 11);
    ids.map(|id| (id, Some(if id == 0 { 1000 } else { id }))).collect()
}

/// The SSTables that were opened, and those of which a sidecar was read.
fn touched(process: &Process) -> (usize, usize) {
    let of = |is_it: &dyn Fn(&str, Op) -> bool| {
        let log = process.faults.log();
        let touched = log.iter().filter(|r| is_it(&r.path, r.op));
        let names = touched.filter_map(|r| r.path.split('/').find(|part| part.contains("_gen_")).map(str::to_owned));
        names.collect::<BTreeSet<String>>().len()
    };
    (of(&|path, op| path.contains("/data/") || op == Op::List), of(&|path, _| path.contains("bloom_filter.bin")))
}

#[tokio::test]
async fn defect_a_reader_of_12_600_generations_does_not_open_them_all() {
    let bucket = Bucket::new();
    with_sstables(&bucket, &["id"], 12_600).await;
    let process = bucket.process();
    let snapshot = process.table().await.snapshot().await.unwrap();
    process.faults.clear_log();

    // Rows that the newest ten have.
    let batch = soon("get", snapshot.get(&keys(&[84, 0, 11, 22]), Some(&["v"]))).await.unwrap();
    assert_eq!(batch.column(0).as_primitive::<Int64Type>().values(), &[84, 1000, 22]);
    let (opened, asked) = touched(&process);
    assert!(opened <= 4 && asked <= 4 + 16, "{opened} {asked}");
    let provider = snapshot.provider();
    assert_eq!(sql(&provider, "select v from t where id in (3, 3, 51)").await.len(), 2);
    let (opened, asked) = touched(&process);
    assert!(opened <= 6 && asked <= 4 + 16, "{opened} {asked}");

    // A key that nobody has: statistics say so, or filters, and nothing is opened for it.
    process.faults.clear_log();
    assert_eq!(soon("get", snapshot.get(&keys(&[7]), None)).await.unwrap().num_rows(), 0);
    let (opened, asked) = touched(&process);
    assert!(opened == 0 && (1_000..=1_260).contains(&asked), "{opened} {asked}");
    process.faults.clear_log();
    assert_eq!(snapshot.get(&keys(&[7, 17, 18]), None).await.unwrap().num_rows(), 0);
    let (opened, asked) = touched(&process);
    assert!(opened == 0 && asked <= 2 * 1_260, "{opened} {asked}");
    process.faults.clear_log();
    assert_eq!(snapshot.get(&keys(&[17]), None).await.unwrap().num_rows(), 0);
    assert!(process.faults.log().is_empty(), "{:?}", process.faults.log());

    process.faults.clear_log();
    assert_eq!(soon("limit", sql(&provider, "select * from t limit 7")).await.len(), 7);
    let (opened, _) = touched(&process);
    assert!(opened < 200, "{opened} SSTables were opened for 7 rows");
}

#[tokio::test]
async fn an_append_only_table_of_12_600_generations_answers_a_query_with_a_limit() {
    let bucket = Bucket::new();
    with_sstables(&bucket, &[], 12_600).await;
    let process = bucket.process();
    let provider = process.table().await.provider().await.unwrap();
    process.faults.clear_log();
    assert_eq!(soon("limit", sql(&provider, "select * from t limit 20")).await.len(), 20);
    let (opened, _) = touched(&process);
    assert!(opened < 100, "{opened} SSTables were opened for 20 rows");
}

#[tokio::test]
async fn answers_are_right_with_1_000_sstables_of_which_few_are_read_at_once() {
    let bucket = Bucket::new();
    with_sstables(&bucket, &["id"], 1_000).await;
    let process = bucket.process();
    let at_once = AtOnce::new(process.faults.store());
    let table = Table::open(bucket.store(Arc::new(at_once.clone()))).await.unwrap();
    let snapshot = table.snapshot().await.unwrap();
    let all: Vec<i64> = (-1..120).collect();
    let batch = snapshot.get(&keys(&all), Some(&["id", "v"])).await.unwrap();
    let column = |n: usize| batch.column(n).as_primitive::<Int64Type>().values().to_vec();
    let found: Vec<(i64, Option<i64>)> = column(0).into_iter().zip(column(1).into_iter().map(Some)).collect();
    assert_eq!(found, expected());
    // docs/reads.md: a lookup asks groups of 64 at most.
    let most = at_once.most();
    println!("a lookup reads {most} SSTables at once");
    assert!((2..=64).contains(&most), "{most}");
    assert_eq!(pairs(snapshot.provider()).await, expected());
    // 16 for their rows, and 8 for their keys.
    let most = at_once.most();
    println!("a scan reads {most} SSTables at once");
    assert!((8..=16 + 8).contains(&most), "{most}");
    // Nine of ten have no such value, and hide older rows that do.
    process.faults.clear_log();
    assert_eq!(sql(&snapshot.provider(), "select id from t where v > 900").await, [["0"]]);
    let (opened, _) = touched(&process);
    assert!(opened <= 100, "{opened}");
}

/// Rows with vectors and words in so many SSTables: of each ten, nine have rows of their own, and the last one overwrites some
/// of these and deletes one.
async fn with_documents(bucket: &Bucket, count: u64) -> Rows {
    let table = create_documents(bucket, true, "unsharded").await;
    for index in all_indexes(Metric::L2) {
        table.create_index(&index).await.unwrap();
    }
    let writer = table.writer(config()).await.unwrap();
    let document = |id: i64, n: i64| Document {
        n: Some(n),
        words: Some(vec![(id % 7) as usize, (id % 5) as usize, (id / 10 % 3) as usize]),
        vector: Some([id as f32, n as f32 / 10.0, 1.0, -1.0]),
    };
    let mut rows: Rows = vec![];
    for n in 0..WRITTEN as i64 {
        let own: Rows = match n {
            9 => (0..90).step_by(30).map(|id| (id, document(id, 1000 + id))).collect(),
            n => (n * 10..n * 10 + 3).map(|id| (id, document(id, id))).collect(),
        };
        writer.put(batch(&own)).await.unwrap();
        rows.retain(|(id, _)| own.iter().all(|(other, _)| other != id));
        rows.extend(own);
        if n == 9 {
            writer.delete(keys(&[11])).await.unwrap();
            rows.retain(|(id, _)| *id != 11);
        }
        writer.flush().await.unwrap();
    }
    writer.close().await.unwrap();
    copy_sstables(bucket, &table, count).await;
    rows
}

#[tokio::test]
async fn searches_are_right_with_1_000_sstables_of_which_few_are_read_at_once() {
    let bucket = Bucket::new();
    let rows = with_documents(&bucket, 1_000).await;
    let process = bucket.process();
    let at_once = AtOnce::new(process.faults.store());
    let table = Table::open(bucket.store(Arc::new(at_once.clone()))).await.unwrap();
    let snapshot = table.snapshot().await.unwrap();
    // docs/search.md: 8 for what they have, and 8 for their keys.
    let few_at_once = |what: &str| {
        let most = at_once.most();
        println!("{what} reads {most} SSTables at once");
        assert!((2..=8 + 8).contains(&most), "{what}: {most}");
    };
    let near = Near { metric: Metric::L2, to: [40.0, 3.0, 1.0, -1.0], k: 10, filter: None, exactly: false };
    let words = Match { words: vec![0, 3], all: false, k: 10, filter: None };
    check_near(&snapshot, &rows, &near).await;
    few_at_once("a vector search");
    check_match(&snapshot, &rows, &words).await;
    few_at_once("a text search");

    // Nine of ten have no such number: their statistics say so, and they hide all the same what is older.
    let filter = Some(Condition::AtLeast(1000));
    let (near, words) = (Near { filter: filter.clone(), ..near }, Match { filter, ..words });
    process.faults.clear_log();
    check_hybrid(&snapshot, &rows, &near, &words, 10).await;
    few_at_once("a hybrid search");
    let (opened, _) = touched(&process);
    assert!(opened <= 100, "{opened}");
}

/// What the statistics say is exact also where the newest version of a row does not match any more: an SSTable that is
/// left out hides older rows all the same.
#[tokio::test]
async fn sstables_are_left_out_by_their_statistics_and_hide_all_the_same() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    for n in 0..6i64 {
        writer.put(ids(n * 100..n * 100 + 100)).await.unwrap();
        writer.flush().await.unwrap();
    }
    // Newer versions that match nothing below: of other values, null, deleted.
    writer.put(rows(&[(110, 9_000)])).await.unwrap();
    writer.flush().await.unwrap();
    writer.delete(keys(&[111])).await.unwrap();
    writer.flush().await.unwrap();
    let folders: Vec<String> = bucket.manifest().await.sstables.into_iter().map(|sstable| sstable.path).collect();
    let read = |process: &Process| -> Vec<usize> {
        let log = process.faults.log();
        let is_read = |name: &&String| log.iter().any(|r| r.path.contains(&format!("{name}/data/")));
        (0..folders.len()).filter(|n| is_read(&&folders[*n])).collect()
    };
    for (filter, found, places) in [
        ("v >= 570", 31, vec![5, 6]),
        ("v > 599 and v < 9000", 0, vec![]),
        ("v between 250 and 320", 71, vec![2, 3]),
        ("v = 42 or s = 's142'", 2, vec![0, 1]),
        ("s in ('s142', 's143', 'zzz')", 2, vec![0, 1]),
        ("'s143' = s", 1, vec![0, 1]),
        ("v is null", 0, vec![7]),
    ] {
        let process = bucket.process();
        let provider = process.table().await.provider().await.unwrap();
        let rows = provider.statistics().unwrap().num_rows;
        assert_eq!(rows, Precision::Inexact(602), "an estimate: older versions and tombstones count");
        process.faults.clear_log();
        assert_eq!(number(&provider, &format!("select count(*) from t where {filter}")).await, found, "{filter}");
        // Newer ones are read for their keys, as far as an older one that is read needs them.
        let read = read(&process);
        assert!(places.iter().all(|place| read.contains(place)), "{filter}: {read:?}");
        let oldest = places.first().copied().unwrap_or(folders.len());
        assert!(read.iter().all(|place| *place >= oldest), "{filter}: {read:?}");
    }
    for process in [bucket.process(), bucket.process()] {
        let provider = process.table().await.provider().await.unwrap();
        for (query, found) in [
            ("select count(*) from t where v between 105 and 115", 9),
            ("select count(*) from t where v >= 110 and v <= 111", 0),
            ("select count(*) from t where s > 's109' and s < 's112'", 1),
        ] {
            assert_eq!(number(&provider, query).await, found, "{query}");
        }
    }
}

/// Random filters over random rows with nulls, deletions, and values that move between SSTables.
#[tokio::test]
async fn random_filters_equal_the_model() {
    for seed in 0..2 {
        let mut rng = Rng::new(seed);
        let bucket = Bucket::new();
        let keyed = seed % 2 == 0;
        let table = create(&bucket, if keyed { &["id"] } else { &[] }, "unsharded").await;
        let writer = table.writer(config()).await.unwrap();
        let mut model: Vec<(i64, i64)> = Vec::new();
        for generation in 0..6i64 {
            let some: Vec<(i64, i64)> =
                (0..6).map(|_| (rng.below(20) as i64, generation * 3 + rng.below(5) as i64)).collect();
            writer.put(rows(&some)).await.unwrap();
            for row in some {
                if keyed {
                    model.retain(|(id, _)| *id != row.0);
                }
                model.push(row);
            }
            if keyed && rng.chance(0.5) {
                let id = rng.below(20) as i64;
                writer.delete(crate::support::keys(&[id])).await.unwrap();
                model.retain(|(found, _)| *found != id);
            }
            writer.flush().await.unwrap();
        }
        let provider = bucket.table().await.provider().await.unwrap();
        for _ in 0..24 {
            let (a, b) = (rng.below(30) as i64 - 2, rng.below(30) as i64 - 2);
            let (filter, matches): (String, Box<dyn Fn(i64, i64) -> bool>) = match rng.below(8) {
                0 => (format!("v > {a}"), Box::new(move |_, v| v > a)),
                1 => (format!("v <= {a}"), Box::new(move |_, v| v <= a)),
                2 => (format!("v between {a} and {b}"), Box::new(move |_, v| v >= a && v <= b)),
                3 => (format!("v in ({a}, {b}, {a})"), Box::new(move |_, v| v == a || v == b)),
                4 => (format!("v < {a} or v >= {b}"), Box::new(move |_, v| v < a || v >= b)),
                5 => (format!("not (v < {a}) and id > 5"), Box::new(move |id, v| v >= a && id > 5)),
                6 => (format!("v <> {a} and v < {b}"), Box::new(move |_, v| v != a && v < b)),
                _ => (format!("s = 's{a}' or {b} = v"), Box::new(move |_, v| v == a || v == b)),
            };
            let mut expected: Vec<(i64, i64)> = model.iter().copied().filter(|(id, v)| matches(*id, *v)).collect();
            expected.sort_unstable();
            let found = sql(&provider, &format!("select id, v from t where {filter} order by id, v")).await;
            let found: Vec<(i64, i64)> =
                found.iter().map(|row| (row[0].parse().unwrap(), row[1].parse().unwrap())).collect();
            assert_eq!(found, expected, "seed {seed}: {filter}");
        }
    }
}

/// A snapshot asks newer and older moments of the same shard beside each other.
#[tokio::test]
async fn moments_of_a_shard_share_keys_and_do_not_mix() {
    let bucket = Bucket::new();
    let table = Arc::new(keyed(&bucket, 1).await);
    let writer = table.writer(config()).await.unwrap();
    let mut moments = Vec::new();
    for n in 0..12i64 {
        writer.put(rows(&[(n % 4, n), (100 + n, n)])).await.unwrap();
        if n % 3 == 2 {
            writer.delete(keys(&[100 + n - 1])).await.unwrap();
        }
        writer.flush().await.unwrap();
        let mut expected: Vec<(i64, Option<i64>)> =
            (0..=n.min(3)).map(|id| (id, Some((0..=n).rev().find(|m| m % 4 == id).unwrap()))).collect();
        expected.extend((0..=n).filter(|m| m % 3 != 1 || m + 1 > n).map(|m| (100 + m, Some(m))));
        moments.push((writer.snapshot().await.unwrap(), expected));
    }
    let mut rng = Rng::new(7);
    for _ in 0..30 {
        let (snapshot, expected) = rng.pick(&moments).unwrap();
        assert_eq!(&pairs(snapshot.provider()).await, expected);
    }
}
