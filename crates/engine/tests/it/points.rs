//! Queries for few keys: which objects they read, and that leaving out the others changes no answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::{ArrayRef, FixedSizeBinaryArray, Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use fencepost::{Sharding, Table, TableOptions};
use fencepost_sim::{CountingStore, Fault, Op, RequestCounts, Rng};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::support::*;

/// A table with this many SSTables; the n-th holds the ids from `n * 100` to `n * 100 + 99`.
async fn with_sstables(bucket: &Bucket, sstables: i64) -> Vec<String> {
    keyed(bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    for n in 0..sstables {
        writer.put(ids(n * 100..n * 100 + 100)).await.unwrap();
        writer.flush().await.unwrap();
    }
    writer.close().await.unwrap();
    bucket.manifest().await.sstables.into_iter().map(|sstable| sstable.path).collect()
}

/// The SSTables of which rows or keys were read.
fn read(process: &Process) -> BTreeSet<String> {
    let log = process.faults.log();
    let data = log.iter().filter(|r| matches!(r.op, Op::Get | Op::Head) && r.path.contains("/data/"));
    data.map(|r| r.path.split('/').find(|part| part.contains("_gen_")).unwrap_or("base").to_owned()).collect()
}

#[tokio::test]
async fn only_sstables_that_may_hold_a_wanted_key_are_read() {
    let bucket = Bucket::new();
    let paths = with_sstables(&bucket, 8).await;
    for (filter, found, places) in [
        ("id = 305", vec!["305"], vec![3]),
        ("305 = id and v < 1000", vec!["305"], vec![3]),
        ("id = 305 and v = 0", vec![], vec![3]),
        ("id in (101, 350, 705)", vec!["101", "350", "705"], vec![1, 3, 7]),
        ("id = 1 or id = 99 or id = 200", vec!["1", "99", "200"], vec![0, 2]),
        ("id = 900", vec![], vec![]),
        ("id = null", vec![], vec![]),
        ("id = 1 and v + 1 = 2 and s like 's%'", vec!["1"], vec![0]),
    ] {
        let process = bucket.process();
        let provider = process.table().await.provider().await.unwrap();
        process.faults.clear_log();
        let rows = sql(&provider, &format!("select id from t where {filter} order by id")).await;
        assert_eq!(rows.concat(), found, "{filter}");
        let expected: BTreeSet<String> = places.into_iter().map(|n: usize| paths[n].clone()).collect();
        assert_eq!(read(&process), expected, "{filter}");
    }
    // What does not name keys reads everything, and no filter.
    let process = bucket.process();
    let provider = process.table().await.provider().await.unwrap();
    assert_eq!(number(&provider, "select count(*) from t where id < 5 or v = 700").await, 6);
    assert_eq!(read(&process).len(), 8);
    assert!(process.faults.log().iter().all(|r| !r.path.contains("bloom")));
}

/// With the filters in memory, SSTables that have nothing to say cost nothing at all.
#[tokio::test]
async fn a_second_point_query_costs_the_same_however_many_sstables_there_are() {
    let mut costs: Vec<(RequestCounts, RequestCounts)> = Vec::new();
    for sstables in [2, 9] {
        let bucket = Bucket::new();
        with_sstables(&bucket, sstables).await;
        let store = CountingStore::new(bucket.inner());
        let counts = store.counts();
        let table = Table::open(bucket.store(Arc::new(store))).await.unwrap();
        let provider = table.provider().await.unwrap();
        let cost = async |id: i64| {
            let before = counts.snapshot();
            assert_eq!(number(&provider, &format!("select v from t where id = {id}")).await, id);
            counts.snapshot() - before
        };
        let first = cost(150).await;
        costs.push((first, cost(50).await));
    }
    let [(first_of_2, second_of_2), (first_of_9, second_of_9)] = costs[..] else { unreachable!() };
    // The time in a dataset's manifest takes a byte more or less.
    let requests = |counts: RequestCounts| RequestCounts { bytes_got: 0, ..counts };
    assert_eq!(requests(second_of_2), requests(second_of_9));
    assert!(second_of_2.get > 0, "an SSTable was read: {second_of_2:?}");
    assert!(first_of_9.requests() > first_of_2.requests(), "the filters are read once, with the first query");
}

/// Deletes and overwrites over MemTables and SSTables of which most queries leave some out.
#[tokio::test]
async fn answers_equal_the_model_across_generations() {
    for seed in 0..2 {
        let mut rng = Rng::new(seed);
        let bucket = Bucket::new();
        let table = keyed(&bucket, if seed % 2 == 0 { 1 } else { 3 }).await;
        let writer = table.writer(lazy()).await.unwrap();
        let mut model: BTreeMap<i64, i64> = BTreeMap::new();
        for generation in 0..6 {
            for _ in 0..3 {
                let some: Vec<i64> = (0..1 + rng.below(3)).map(|_| rng.below(16) as i64).collect();
                if rng.chance(0.4) {
                    writer.delete(keys(&some)).await.unwrap();
                    model.retain(|id, _| !some.contains(id));
                } else {
                    let v = rng.below(4) as i64;
                    writer.put(rows(&some.iter().map(|id| (*id, v)).collect::<Vec<_>>())).await.unwrap();
                    model.extend(some.iter().map(|id| (*id, v)));
                }
            }
            // The last rows are still on their way to the log.
            if generation < 5 {
                writer.flush().await.unwrap();
            }
        }
        let provider = writer.provider().await.unwrap();
        for _ in 0..30 {
            let some: BTreeSet<i64> = (0..1 + rng.below(4)).map(|_| rng.below(18) as i64).collect();
            let v = rng.below(4) as i64;
            let list = some.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
            let either = some.iter().map(|id| format!("id = {id}")).collect::<Vec<_>>().join(" or ");
            let wanted = |check: &dyn Fn(i64) -> bool| -> Vec<String> {
                let found = model.iter().filter(|(id, v)| some.contains(id) && check(**v));
                found.map(|(id, v)| format!("{id} {v}")).collect()
            };
            for (filter, expected) in [
                (format!("id in ({list})"), wanted(&|_| true)),
                (format!("({either}) and v <> {v}"), wanted(&|found| found != v)),
                (
                    format!("({either}) and 6 / (v + 1) = 6 / ({v} + 1)"),
                    wanted(&|found| 6 / (found + 1) == 6 / (v + 1)),
                ),
            ] {
                let query = format!("select id, v from t where {filter} order by id");
                let found: Vec<String> = sql(&provider, &query).await.iter().map(|row| row.join(" ")).collect();
                assert_eq!(found, expected, "seed {seed}: {query}; all rows: {model:?}");
            }
        }
    }
}

/// The newer version is in a source without the wanted key, so that it is left out and hides nothing. The key's type is
/// one that no source filters by itself.
#[tokio::test]
async fn a_row_that_nobody_can_see_does_not_fail_a_point_query() {
    let fields = vec![Field::new("k", DataType::FixedSizeBinary(1), false), Field::new("v", DataType::Int64, true)];
    let schema = Arc::new(Schema::new(fields));
    let batch = |rows: &[(u8, i64)]| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(FixedSizeBinaryArray::try_from_iter(rows.iter().map(|row| [row.0])).unwrap()),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
    };
    let bucket = Bucket::new();
    let options = TableOptions { primary_key: vec!["k".into()], sharding: Sharding::Unsharded };
    let table = Table::create(bucket.process().store, Arc::clone(&schema), options).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    let old = batch(&[(5, 2), (7, 0)]);
    let new = batch(&[(7, 1)]);
    for round in 0..2 {
        writer.put(old.clone()).await.unwrap();
        writer.flush().await.unwrap();
        writer.put(new.clone()).await.unwrap();
        if round == 0 {
            writer.flush().await.unwrap();
        }
        let provider = writer.provider().await.unwrap();
        let query = "select v from t where 10 / v > 1 and k = X'05'";
        assert_eq!(try_sql(&provider, query).await.unwrap(), [["2"]], "round {round}");
    }
}

#[tokio::test]
async fn a_damaged_filter_of_ours_is_named_by_those_who_need_it() {
    let bucket = Bucket::new();
    let paths = with_sstables(&bucket, 3).await;
    let shard = bucket.table().await.shard_ids().await.unwrap()[0];
    let object = Path::from(format!("t/{}{}/bloom_filter.bin", folder(shard), paths[1]));
    let whole = bucket.inner().get(&object).await.unwrap().bytes().await.unwrap();
    bucket.inner().put(&object, whole.slice(..whole.len() / 2).into()).await.unwrap();
    let provider = bucket.table().await.provider().await.unwrap();
    let error = try_sql(&provider, "select * from t where id = 155").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&paths[1]) && text.contains("bloom_filter.bin") && text.contains("checksum"), "{text}");
    assert_eq!(number(&provider, "select count(*) from t where id < 5").await, 5, "others do not need it");
    bucket.inner().delete(&object).await.unwrap();
    let provider = bucket.table().await.provider().await.unwrap();
    let error = try_sql(&provider, "select * from t where id = 155").await.unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

const FILES: [&str; 4] = ["/data/", "_pk_index/page_data.lance", "_pk_index/page_lookup.lance", "bloom_filter.bin"];

/// A folder that has a dataset is whole: its manifest waits for every other file, whichever is slow.
#[tokio::test]
async fn the_sidecars_are_there_before_the_dataset_is() {
    for slow in FILES {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let process = bucket.process();
        let writer = process.writer(config()).await;
        writer.put(ids(0..10)).await.unwrap();
        process.faults.clear_log();
        let gate = process.faults.on(Op::Overwrite).path_contains(slow).times(1).stall();
        let written = || {
            let log = process.faults.log().into_iter();
            let writes = log.filter(|r| matches!(r.op, Op::Create | Op::Overwrite | Op::CompleteMultipart));
            writes.map(|r| r.path).filter(|path| path.contains("_gen_")).collect::<Vec<_>>()
        };
        let mut flush = Box::pin(writer.flush());
        soon(slow, async {
            tokio::select! {
                _ = &mut flush => panic!("flushed without {slow}"),
                () = gate.reached() => {}
            }
        })
        .await;
        // Whatever does not wait for the gate runs until it does.
        for _ in 0..200 {
            assert!(futures::poll!(&mut flush).is_pending());
            tokio::task::yield_now().await;
        }
        assert!(written().iter().all(|path| !path.contains("_versions")), "{slow}: {:?}", written());
        gate.release();
        soon(slow, flush).await.unwrap();
        let written = written();
        let (last, before) = written.split_last().unwrap();
        assert!(last.contains("/_versions/") && before.len() == FILES.len(), "{written:?}");
        assert!(FILES.iter().all(|file| before.iter().any(|path| path.contains(file))), "{written:?}");
    }
}

/// A failed request of either sidecar is a failed attempt, and the next one makes a whole folder.
#[tokio::test]
async fn a_sidecar_that_cannot_be_written_is_written_with_the_next_attempt() {
    for file in FILES {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let process = bucket.process();
        let rule = process.faults.on(Op::Overwrite).path_contains(file).times(1).then(Fault::Fail);
        let writer = process.writer(config()).await;
        writer.put(ids(0..10)).await.unwrap();
        writer.flush().await.unwrap();
        assert_eq!((rule.fired(), bucket.manifest().await.sstables.len()), (1, 1), "{file}");
        let provider = bucket.table().await.provider().await.unwrap();
        assert_eq!(sql(&provider, "select v from t where id = 7").await, [["7"]], "{file}");
    }
}

#[tokio::test]
async fn without_a_key_there_are_no_sidecars() {
    let bucket = Bucket::new();
    let writer = keyless(&bucket, 1).await.writer(config()).await.unwrap();
    writer.put(ids(0..10)).await.unwrap();
    writer.flush().await.unwrap();
    let path = bucket.manifest().await.sstables[0].path.clone();
    let folder = Path::from(format!("t/{}{path}", folder(writer.shards()[0].shard_id())));
    let listed = bucket.inner().list_with_delimiter(Some(&folder)).await.unwrap();
    assert!(listed.objects.is_empty() && listed.common_prefixes.len() == 2, "{listed:?}");
}

/// Unlike a damaged one, a filter that cannot be read for a passing reason is read again.
#[tokio::test]
async fn passing_failures_of_reading_a_filter_do_not_fail_a_query() {
    let bucket = Bucket::new();
    with_sstables(&bucket, 2).await;
    let process = bucket.process();
    let rule = process.faults.on(Op::Get).path_contains("bloom_filter").times(3).then(Fault::Fail);
    let provider = process.table().await.provider().await.unwrap();
    assert_eq!(number(&provider, "select v from t where id = 150").await, 150);
    assert_eq!(rule.fired(), 3);
}
