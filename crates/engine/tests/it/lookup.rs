//! Rows by their keys: from every place, in the order of the keys, at a cost that does not grow with what has no row of
//! theirs. The known defects of peers have a test each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Date64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use fencepost::{Error, Sharding, Table, TableOptions, TableSnapshot, TableWriter};
use fencepost_sim::{Op, Rng};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::interop::place::Place;
use crate::merge::merge;
use crate::support::*;

/// `(id, v)` of these keys, in the order of the answer.
async fn got(snapshot: &TableSnapshot, ids: &[i64]) -> Vec<(i64, Option<i64>)> {
    let batch = snapshot.get(&keys(ids), Some(&["id", "v"])).await.unwrap();
    let (ids, vs) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int64Type>());
    ids.values().iter().copied().zip(vs.iter()).collect()
}

async fn elsewhere(bucket: &Bucket) -> TableSnapshot {
    bucket.table().await.snapshot().await.unwrap()
}

/// The newest version of each id in the base table, in SSTables, in a MemTable; some deleted.
async fn everywhere(bucket: &Bucket, buckets: u32) -> TableWriter {
    let writer = keyed(bucket, buckets).await.writer(config()).await.unwrap();
    writer.put(ids(0..40)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&bucket.table().await).await;
    writer.put(rows(&(10..20).map(|id| (id, 100 + id)).collect::<Vec<_>>())).await.unwrap();
    writer.delete(keys(&[0, 1, 10])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(&[(1, 201), (11, 211), (50, 250)])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(&[(12, 312), (50, 350), (60, 360), (50, 351)])).await.unwrap();
    writer.delete(keys(&[11, 39])).await.unwrap();
    writer
}

#[tokio::test]
async fn rows_come_in_the_order_of_the_keys_and_each_once() {
    for buckets in [1, 4] {
        let bucket = Bucket::new();
        let writer = everywhere(&bucket, buckets).await;
        for snapshot in [writer.snapshot().await.unwrap(), elsewhere(&bucket).await] {
            let wanted = [60, 12, 5, 99, 1, 0, 12, 11, 50, 39, 10, 13, 5];
            let expected = [(60, 360), (12, 312), (5, 5), (1, 201), (50, 351), (13, 113)];
            assert_eq!(got(&snapshot, &wanted).await, expected.map(|(id, v)| (id, Some(v))), "{buckets} buckets");
            assert_eq!(got(&snapshot, &[]).await, []);
            assert_eq!(got(&snapshot, &[99, 0]).await, []);

            let all = snapshot.get(&keys(&[50, 13]), None).await.unwrap();
            assert_eq!(all.schema(), snapshot.schema());
            assert_eq!(
                all,
                RecordBatch::try_new(snapshot.schema(), rows(&[(50, 351), (13, 113)]).columns().to_vec()).unwrap()
            );
            let chosen = snapshot.get(&keys(&[13, 5]), Some(&["s", "v"])).await.unwrap();
            let columns: Vec<ArrayRef> =
                vec![Arc::new(StringArray::from(vec!["s113", "s5"])), Arc::new(Int64Array::from(vec![113, 5]))];
            assert_eq!(chosen.columns(), columns);
            assert_eq!(snapshot.get(&keys(&[13, 5, 0, 60]), Some(&[])).await.unwrap().num_rows(), 3);
        }
        // It holds still.
        let before = elsewhere(&bucket).await;
        writer.put(rows(&[(5, 1005)])).await.unwrap();
        writer.delete(keys(&[60])).await.unwrap();
        assert_eq!(got(&before, &[5, 60]).await, [(5, Some(5)), (60, Some(360))]);
        assert_eq!(got(&writer.snapshot().await.unwrap(), &[5, 60]).await, [(5, Some(1005))]);
    }
}

#[tokio::test]
async fn what_does_not_fit_is_named() {
    let bucket = Bucket::new();
    everywhere(&bucket, 1).await;
    let snapshot = elsewhere(&bucket).await;
    let text: ArrayRef = Arc::new(StringArray::from(vec!["5"]));
    let null: ArrayRef = Arc::new(Int64Array::from(vec![None]));
    let narrow: ArrayRef = Arc::new(Int32Array::from(vec![5]));
    let two: ArrayRef = Arc::new(Int64Array::from(vec![5]));
    let batch = |columns: &[(&str, &ArrayRef)]| {
        RecordBatch::try_from_iter(columns.iter().map(|(name, column)| (*name, Arc::clone(column)))).unwrap()
    };
    for (keys, word) in [
        (batch(&[("id", &text)]), "`id` is Utf8"),
        (batch(&[("id", &narrow)]), "`id` is Int32"),
        (batch(&[("id", &null)]), "`id` is null in row 0"),
        (batch(&[("v", &two)]), "`v` is not part of the primary key"),
        (batch(&[("id", &two), ("v", &two)]), "`v` is not part of the primary key"),
    ] {
        let error = snapshot.get(&keys, None).await.unwrap_err();
        assert!(matches!(error, Error::InvalidOptions(_)) && error.to_string().contains(word), "{error}");
    }
    let error = snapshot.get(&keys(&[5]), Some(&["id", "w"])).await.unwrap_err();
    assert!(matches!(error, Error::InvalidOptions(_)) && error.to_string().contains("`w` is unknown"), "{error}");

    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let error = elsewhere(&bucket).await.get(&keys(&[5]), None).await.unwrap_err();
    assert!(matches!(error, Error::NotSupported(_)) && error.to_string().contains("primary key"), "{error}");
}

/// SSTables whose rows, or keys by scan, were read, and requests for indexes.
fn read(process: &Process) -> (BTreeSet<String>, BTreeSet<String>) {
    let of = |part: &str| {
        let log = process.faults.log();
        let gets = log.iter().filter(|r| matches!(r.op, Op::Get | Op::Head) && r.path.contains(part));
        gets.map(|r| r.path.split('/').find(|part| part.contains("_gen_")).unwrap_or("base").to_owned()).collect()
    };
    (of("/data/"), of("/_pk_index/"))
}

/// A filter denies, an index knows the place; only what has a row of the answer is opened.
#[tokio::test]
async fn only_sstables_with_a_row_of_the_answer_are_opened() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    for n in 0..12i64 {
        writer.put(ids(n * 100..n * 100 + 100)).await.unwrap();
        writer.flush().await.unwrap();
    }
    let folders: Vec<String> = bucket.manifest().await.sstables.into_iter().map(|sstable| sstable.path).collect();
    let process = bucket.process();
    let snapshot = process.table().await.snapshot().await.unwrap();
    for (wanted, places) in [(vec![305], vec![3]), (vec![1150, 205, 206], vec![2, 11]), (vec![5000], vec![])] {
        process.faults.clear_log();
        let found = got(&snapshot, &wanted).await;
        assert_eq!(found.len(), if places.is_empty() { 0 } else { wanted.len() });
        let places: BTreeSet<String> = places.into_iter().map(|n: usize| folders[n].clone()).collect();
        assert_eq!(read(&process), (places.clone(), places), "{wanted:?}");
    }
    // Everything that is needed to find a row is in memory now, and the row of a key is one range of a file.
    process.faults.clear_log();
    assert_eq!(got(&snapshot, &[306]).await, [(306, Some(306))]);
    let log = process.faults.log();
    assert!(log.iter().all(|r| r.path.contains("/data/")) && log.len() <= 4, "{log:?}");
    process.faults.clear_log();
    assert_eq!(got(&snapshot, &[7000, 8000, 9000]).await, []);
    assert!(process.faults.log().is_empty(), "{:?}", process.faults.log());
}

#[tokio::test]
async fn answers_equal_the_model() {
    for (seed, sharding, key) in [
        (1, "unsharded", &["id"][..]),
        (2, "bucket(id,3)", &["id"]),
        (3, "identity(id)", &["id"]),
        (4, "bucket(id,2)", &["s", "id"]),
    ] {
        let mut rng = Rng::new(seed);
        let bucket = Bucket::new();
        let table = create(&bucket, key, sharding).await;
        let is_composite = key.len() > 1;
        // In a composite key `s` is one of two texts, chosen by the step.
        let key_of = |id: i64, text: u64| (id, if is_composite { format!("t{}", text % 2) } else { String::new() });
        let mut writer = table.writer(small(30)).await.unwrap();
        let mut model: BTreeMap<(i64, String), i64> = BTreeMap::new();
        let keys_batch = |keys: &[(i64, String)]| {
            let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.iter().map(|k| k.0)));
            let texts: ArrayRef = Arc::new(StringArray::from_iter_values(keys.iter().map(|k| &k.1)));
            match is_composite {
                false => RecordBatch::try_from_iter([("id", ids)]).unwrap(),
                true => RecordBatch::try_from_iter([("id", ids), ("s", texts)]).unwrap(),
            }
        };
        for step in 0..60i64 {
            let some: Vec<(i64, String)> =
                (0..1 + rng.below(6)).map(|_| key_of(rng.below(24) as i64, rng.next_u64())).collect();
            match rng.below(12) {
                0..=4 => {
                    let pairs: Vec<(i64, i64)> = some.iter().map(|key| (key.0, step)).collect();
                    let texts: Vec<String> = some.iter().map(|key| key.1.clone()).collect();
                    writer.put(rows_with_texts(&pairs, &texts)).await.unwrap();
                    model.extend(some.into_iter().map(|key| (key, step)));
                }
                5..=6 => {
                    writer.delete(keys_batch(&some)).await.unwrap();
                    model.retain(|key, _| !some.contains(key));
                }
                7..=8 => writer.flush().await.unwrap(),
                9 => drop(merge(&bucket.table().await).await),
                10 => {
                    drop(writer);
                    writer = table.writer(small(30)).await.unwrap();
                }
                _ => {}
            }
            if step % 3 > 0 {
                continue;
            }
            let snapshots = [writer.snapshot().await.unwrap(), elsewhere(&bucket).await];
            let asked: Vec<(i64, String)> =
                (0..1 + rng.below(30)).map(|_| key_of(rng.below(26) as i64, rng.next_u64())).collect();
            let mut seen = BTreeSet::new();
            let firsts = asked.iter().filter(|key| seen.insert((*key).clone()));
            let expected: Vec<((i64, String), i64)> =
                firsts.filter_map(|key| Some((key.clone(), *model.get(key)?))).collect();
            for snapshot in snapshots {
                let batch = snapshot.get(&keys_batch(&asked), None).await.unwrap();
                let ids = batch.column(0).as_primitive::<Int64Type>().values().iter();
                let (vs, texts) =
                    (batch.column(1).as_primitive::<Int64Type>().values(), batch.column(2).as_string::<i32>());
                let text = |text: Option<&str>| if is_composite { text.unwrap().to_owned() } else { String::new() };
                let found: Vec<((i64, String), i64)> =
                    ids.zip(texts.iter()).zip(vs).map(|((id, t), v)| ((*id, text(t)), *v)).collect();
                assert_eq!(found, expected, "seed {seed}, step {step}: {asked:?}");
            }
        }
    }
}

/// The SSTables of a shard that was split hold keys of others.
#[tokio::test]
async fn a_shard_that_was_split_finds_its_own_keys_only() {
    let bucket = Bucket::new();
    let writer = everywhere(&bucket, 2).await;
    let expected: Vec<(i64, Option<i64>)> = bucket.seen().await;
    drop(writer);
    for buckets in [8, 4, 1] {
        let Ok(_) = bucket.table().await.reshard(buckets, config()).await else { continue };
        let all: Vec<i64> = (0..70).collect();
        assert_eq!(got(&elsewhere(&bucket).await, &all).await, expected, "{buckets}");
    }
}

/// Lance's SSTables have several rows of a key, of which a deletion vector leaves one by its hash, and an index that points to all.
#[tokio::test]
async fn rows_in_sstables_of_lance_are_found_by_reading_their_keys() {
    let place = Place::new(true).await;
    let theirs = place.theirs().await;
    theirs.put(&[(1, 1), (2, 2), (3, 3)]).await;
    theirs.put(&[(2, 20), (4, 4)]).await;
    theirs.delete(&[3]).await;
    theirs.flush().await;
    theirs.put(&[(1, 100), (1, 101), (5, 5)]).await;
    theirs.delete(&[4]).await;
    theirs.flush().await;
    theirs.put(&[(6, 6)]).await;
    theirs.close().await;
    let expected = [(5, Some(5)), (1, Some(101)), (2, Some(20)), (6, Some(6))];
    let snapshot = place.table().await.snapshot().await.unwrap();
    assert_eq!(got(&snapshot, &[5, 4, 3, 1, 2, 6, 7, 1]).await, expected);
    // And beside ours.
    let writer = place.table().await.writer(config()).await.unwrap();
    writer.put(rows(&[(4, 40)])).await.unwrap();
    writer.delete(keys(&[5])).await.unwrap();
    writer.flush().await.unwrap();
    for snapshot in [writer.snapshot().await.unwrap(), place.table().await.snapshot().await.unwrap()] {
        assert_eq!(got(&snapshot, &[5, 4, 1, 2, 6]).await, [&[(4, Some(40))], &expected[1..]].concat());
        assert_eq!(sql(&snapshot.provider(), "select v from t where id in (2, 4)").await.len(), 2);
    }
}

/// With and without an index of Lance's on the key, and with rows that it does not cover.
#[tokio::test]
async fn the_base_table_is_asked_by_its_index_if_it_has_one() {
    let place = Place::new(true).await;
    let writer = place.table().await.writer(config()).await.unwrap();
    writer.put(ids(0..3_000)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&place.table().await).await;
    let wanted = [2_999, 3_000, 5, 7, 3_001, 40_000, 5];
    let found = got(&place.table().await.snapshot().await.unwrap(), &wanted).await;
    assert_eq!(found, [(2_999, Some(2_999)), (5, Some(5)), (7, Some(7))]);
    place.index_by_lance("id").await;
    writer.put(rows(&[(7, 70), (3_001, 1)])).await.unwrap();
    writer.delete(keys(&[5])).await.unwrap();
    writer.flush().await.unwrap();
    for merged in [false, true] {
        if merged {
            merge(&place.table().await).await;
        }
        let found = got(&place.table().await.snapshot().await.unwrap(), &wanted).await;
        assert_eq!(found, [(2_999, Some(2_999)), (7, Some(70)), (3_001, Some(1))]);
    }
    // More keys than a filter names.
    let many: Vec<i64> = (-8_000..8_000).rev().collect();
    let found = got(&place.table().await.snapshot().await.unwrap(), &many).await;
    assert_eq!(found.len(), 3_000);
    assert!(found.is_sorted_by(|a, b| a.0 > b.0), "in the order of the keys");
}

/// Two pages and more of index.
#[tokio::test]
async fn keys_are_found_on_every_page_of_an_index() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    // Even numbers only, so that what lies between has a page and no row.
    writer.put(rows(&(0..20_000).map(|n| (n * 2, n)).collect::<Vec<_>>())).await.unwrap();
    writer.flush().await.unwrap();
    let snapshot = elsewhere(&bucket).await;
    let edges = [0, 8191, 8192, 16_383, 16_384, 19_999, 12_345];
    let wanted: Vec<i64> = edges.iter().flat_map(|n| [n * 2, n * 2 + 1]).chain([-2, 40_000]).collect();
    let expected: Vec<(i64, Option<i64>)> = edges.iter().map(|n| (n * 2, Some(*n))).collect();
    assert_eq!(got(&snapshot, &wanted).await, expected);
}

#[tokio::test]
async fn a_damaged_index_of_ours_is_named() {
    for file in ["page_data.lance", "page_lookup.lance"] {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let writer = bucket.process().writer(config()).await;
        for first in [0, 100_000] {
            writer.put(ids(first..first + 9_000)).await.unwrap();
            writer.flush().await.unwrap();
        }
        let shard = bucket.table().await.shard_ids().await.unwrap()[0];
        let paths: Vec<Path> = bucket
            .manifest()
            .await
            .sstables
            .iter()
            .map(|sstable| Path::from(format!("t/{}{}/_pk_index/{file}", folder(shard), sstable.path)))
            .collect();
        // The index of the other SSTable: it points to rows of other keys, or knows none of them.
        let other = bucket.inner().get(&paths[1]).await.unwrap().bytes().await.unwrap();
        let whole = bucket.inner().get(&paths[0]).await.unwrap().bytes().await.unwrap();
        bucket.inner().delete(&paths[0]).await.unwrap();
        let error = elsewhere(&bucket).await.get(&keys(&[5]), None).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Corrupt { .. }) && text.contains(file) && text.contains("missing"), "{text}");
        bucket.inner().put(&paths[0], whole.slice(..whole.len() / 2).into()).await.unwrap();
        let error = elsewhere(&bucket).await.get(&keys(&[5]), None).await.unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
        bucket.inner().put(&paths[0], other.into()).await.unwrap();
        assert_eq!(got(&elsewhere(&bucket).await, &[100_005]).await, [(100_005, Some(100_005))]);
        bucket.inner().put(&paths[0], whole.into()).await.unwrap();
        assert_eq!(got(&elsewhere(&bucket).await, &[5]).await, [(5, Some(5))]);
    }
}

/// Lance keeps one row per 64-bit hash of the key in an SSTable. The two keys here have the same one, because Lance's hash
/// panics at the least Date64, which therefore counts as the next.
#[tokio::test]
async fn defect_two_keys_with_the_same_hash_are_two_rows() {
    let fields = vec![Field::new("k", DataType::Date64, false), Field::new("v", DataType::Int64, true)];
    let schema = Arc::new(Schema::new(fields));
    let twins = [i64::MIN, -i64::MAX];
    let batch = |rows: &[(i64, i64)]| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Date64Array::from_iter_values(rows.iter().map(|row| row.0))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
    };
    let bucket = Bucket::new();
    let options = TableOptions { primary_key: vec!["k".into()], sharding: Sharding::Unsharded };
    let table = Table::create(bucket.process().store, Arc::clone(&schema), options).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    let values = async |expected: &[i64]| {
        let snapshots = [writer.snapshot().await.unwrap(), elsewhere(&bucket).await];
        for snapshot in snapshots {
            let wanted = batch(&twins.map(|k| (k, 0))).project(&[0]).unwrap();
            let found = snapshot.get(&wanted, Some(&["v"])).await.unwrap();
            assert_eq!(found.column(0).as_primitive::<Int64Type>().values(), expected);
            let scanned = sql(&snapshot.provider(), "select v from t order by v").await.concat();
            assert_eq!(scanned, expected.iter().map(i64::to_string).collect::<Vec<_>>());
        }
    };
    writer.put(batch(&[(twins[0], 1), (twins[1], 2)])).await.unwrap();
    values(&[1, 2]).await;
    writer.flush().await.unwrap();
    values(&[1, 2]).await;
    writer.put(batch(&[(twins[0], 3)])).await.unwrap();
    writer.flush().await.unwrap();
    let scanned = sql(&elsewhere(&bucket).await.provider(), "select v from t order by v").await.concat();
    assert_eq!(scanned, ["2", "3"]);
    writer.put(batch(&[(twins[0], 1)])).await.unwrap();
    writer.flush().await.unwrap();
    values(&[1, 2]).await;
    merge(&bucket.table().await).await;
    values(&[1, 2]).await;
    writer.delete(batch(&[(twins[0], 0)]).project(&[0]).unwrap()).await.unwrap();
    writer.flush().await.unwrap();
    values(&[2]).await;
}

/// A reader sees an SSTable only when its index and its filter are there. While either is written, its rows come from the
/// MemTable or the log.
#[tokio::test]
async fn defect_an_sstable_is_not_listed_before_its_sidecars_are_there() {
    for slow in ["_pk_index/page_data.lance", "_pk_index/page_lookup.lance", "bloom_filter.bin"] {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let process = bucket.process();
        let table = process.table().await;
        let writer = Arc::new(table.writer(config()).await.unwrap());
        writer.put(ids(0..10)).await.unwrap();
        let gate = process.faults.on(Op::Overwrite).path_contains(slow).times(1).stall();
        let flush = tokio::spawn({
            let writer = Arc::clone(&writer);
            async move { writer.flush().await }
        });
        soon(slow, gate.reached()).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(bucket.manifest().await.sstables.is_empty(), "{slow}");
        for snapshot in [writer.snapshot().await.unwrap(), elsewhere(&bucket).await] {
            assert_eq!(got(&snapshot, &[3, 9]).await, [(3, Some(3)), (9, Some(9))], "{slow}");
            assert_eq!(pairs(snapshot.provider()).await, id_pairs(0..10), "{slow}");
        }
        gate.release();
        flush.await.unwrap().unwrap();
        assert_eq!(bucket.manifest().await.sstables.len(), 1);
        assert_eq!(got(&elsewhere(&bucket).await, &[3, 9]).await, [(3, Some(3)), (9, Some(9))], "{slow}");
    }
}

/// The writer's own readers see rows that are frozen and not flushed, older and newer ones.
#[tokio::test]
async fn defect_frozen_rows_are_visible_in_the_middle_of_a_flush() {
    for key in [&["id"][..], &[]] {
        let bucket = Bucket::new();
        create(&bucket, key, "unsharded").await;
        let process = bucket.process();
        let writer = Arc::new(process.table().await.writer(config()).await.unwrap());
        writer.put(ids(0..5)).await.unwrap();
        writer.flush().await.unwrap();
        writer.put(ids(5..8)).await.unwrap();
        let gate = process.faults.on(Op::Create).path_contains("/manifest/").times(1).stall();
        let flush = tokio::spawn({
            let writer = Arc::clone(&writer);
            async move { writer.flush().await }
        });
        soon("flush", gate.reached()).await;
        writer.put(ids(8..10)).await.unwrap();
        let snapshot = writer.snapshot().await.unwrap();
        assert_eq!(pairs(snapshot.provider()).await, id_pairs(0..10));
        if !key.is_empty() {
            assert_eq!(got(&snapshot, &[9, 6, 1]).await, [(9, Some(9)), (6, Some(6)), (1, Some(1))]);
            // The frozen version hides the flushed one, and the newest the frozen one.
            writer.put(rows(&[(6, 600)])).await.unwrap();
            writer.delete(keys(&[7])).await.unwrap();
            let newest = writer.snapshot().await.unwrap();
            assert_eq!(got(&newest, &[6, 7]).await, [(6, Some(600))]);
            assert_eq!(got(&snapshot, &[6, 7]).await, [(6, Some(6)), (7, Some(7))]);
        }
        gate.release();
        flush.await.unwrap().unwrap();
        assert_eq!(pairs(snapshot.provider()).await, id_pairs(0..10), "the same moment afterwards");
    }
}

/// Lance's scan needs an index of keys, which an append-only table does not have.
#[tokio::test]
async fn defect_append_only_tables_are_scanned_after_a_flush() {
    let bucket = Bucket::new();
    let writer = keyless(&bucket, 1).await.writer(config()).await.unwrap();
    for round in 0..3 {
        writer.put(ids(0..5)).await.unwrap();
        writer.flush().await.unwrap();
        writer.put(ids(round..round + 1)).await.unwrap();
        for snapshot in [writer.snapshot().await.unwrap(), elsewhere(&bucket).await] {
            let count = number(&snapshot.provider(), "select count(*) from t").await;
            assert_eq!(count, (round + 1) * 6);
            let twos = number(&snapshot.provider(), "select count(*) from t where id = 2").await;
            assert_eq!(twos, round + 1 + i64::from(round == 2));
        }
    }
}

#[tokio::test]
async fn defect_a_key_that_is_named_twice_has_its_row_once() {
    let bucket = Bucket::new();
    let writer = everywhere(&bucket, 1).await;
    for snapshot in [writer.snapshot().await.unwrap(), elsewhere(&bucket).await] {
        let provider = snapshot.provider();
        for filter in ["id in (50, 50, 5, 13, 5)", "id = 5 or id = 50 or id = 5 or id in (13, 13)"] {
            let found = sql(&provider, &format!("select id from t where {filter} order by id")).await.concat();
            assert_eq!(found, ["5", "13", "50"], "{filter}");
        }
        assert_eq!(got(&snapshot, &[50, 50, 5, 13, 5]).await, [(50, Some(351)), (5, Some(5)), (13, Some(113))]);
    }
}
