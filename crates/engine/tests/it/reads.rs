//! Reads: one version of each row out of base table, SSTables, MemTables and rows on their way to the log.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{Int64Builder, ListBuilder, StringDictionaryBuilder};
use arrow_array::types::Int32Type;
use arrow_array::*;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use fencepost::{Error, ShardId, Sharding, Store, Table, TableOptions, TableWriter};
use fencepost_sim::Op;
use lance::Dataset;
use lance::dataset::transaction::{Operation, Transaction};
use lance::dataset::{CommitBuilder, InsertBuilder, WriteMode, WriteParams};
use lance_index::mem_wal::CompactedSsTable;

use crate::support::*;

/// A table in a folder, so that plain Lance can play the merger.
struct OnDisk {
    _dir: tempfile::TempDir,
    path: String,
    table: Table,
}

impl OnDisk {
    async fn create(key: &[&str], schema: SchemaRef) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t").to_str().unwrap().to_owned();
        let store = Store::open(&path, &HashMap::new()).unwrap();
        let primary_key = key.iter().map(|k| (*k).to_owned()).collect();
        let options = TableOptions { primary_key, sharding: Sharding::Unsharded };
        let table = Table::create(store, schema, options).await.unwrap();
        Self { _dir: dir, path, table }
    }

    /// Puts rows into the base table.
    async fn append_to_base(&self, batch: RecordBatch) {
        let dataset = Arc::new(Dataset::open(&self.path).await.unwrap());
        let params = WriteParams { mode: WriteMode::Append, ..WriteParams::default() };
        InsertBuilder::new(dataset).with_params(&params).execute(vec![batch]).await.unwrap();
    }

    /// Records in the base table that it holds the SSTables up to a generation.
    async fn record_merged(&self, shard: ShardId, generation: u64) {
        let dataset = Dataset::open(&self.path).await.unwrap();
        let compacted_sstables = vec![CompactedSsTable::new(*shard.as_uuid(), generation)];
        let operation = Operation::UpdateMemWalState { compacted_sstables };
        let version = dataset.version().version;
        CommitBuilder::new(Arc::new(dataset)).execute(Transaction::new(version, operation, None)).await.unwrap();
    }

    async fn writer(&self) -> TableWriter {
        self.table.writer(config()).await.unwrap()
    }

    /// A provider of another process.
    async fn elsewhere(&self) -> Arc<dyn TableProvider> {
        let store = Store::open(&self.path, &HashMap::new()).unwrap();
        Table::open(store).await.unwrap().provider().await.unwrap()
    }
}

/// Where a version of a row is. In the order of age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Base,
    FirstSsTable,
    SecondSsTable,
    MemTable,
    /// Accepted, not sent.
    Pending,
}

const PLACES: [Place; 5] = [Place::Base, Place::FirstSsTable, Place::SecondSsTable, Place::MemTable, Place::Pending];

/// Writes `old` to one place and then what `newer` does to a younger one.
async fn two_versions(old: Place, new: Place, delete: bool) -> (OnDisk, TableWriter) {
    let disk = OnDisk::create(&["id"], schema()).await;
    let mut config = lazy();
    config.wal.max_in_flight = 1;
    let writer = disk.table.writer(config).await.unwrap();
    for place in PLACES {
        let batch = match place {
            _ if place == old => rows(&[(1, 10), (2, 20)]),
            _ if place == new && !delete => rows(&[(1, 11)]),
            _ => rows(&[(100 + place as i64, 0)]),
        };
        match place {
            Place::Base => disk.append_to_base(batch).await,
            _ => {
                writer.put(batch).await.unwrap();
                if place == new && delete {
                    writer.delete(keys(&[1])).await.unwrap();
                }
            }
        }
        match place {
            Place::FirstSsTable | Place::SecondSsTable => writer.flush().await.unwrap(),
            // Durable, and not frozen.
            Place::MemTable => {
                writer.shards()[0].put(rows(&[(200, 0)])).await.unwrap();
                durable(&writer).await;
            }
            Place::Base | Place::Pending => {}
        }
    }
    (disk, writer)
}

/// Waits until what was accepted has landed, without freezing anything.
async fn durable(writer: &TableWriter) {
    let shard = &writer.shards()[0];
    // A batch of half an entry's size makes the log send everything without waiting for its interval.
    let before = shard.memtable_stats().unwrap().applied;
    shard.put(wide_row(300, 6 << 20)).await.unwrap();
    shard.put(wide_row(300, 6 << 20)).await.unwrap();
    soon("the rows to land", async {
        while shard.memtable_stats().unwrap().applied == before || shard.stats().wal.acknowledged == before {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A filter that an old version matches and the new one does not finds nothing, wherever the two are.
#[tokio::test]
async fn a_filter_never_brings_an_old_version_back() {
    for (n, old) in PLACES.into_iter().enumerate() {
        for new in PLACES.into_iter().skip(n + 1) {
            for delete in [false, true] {
                let (disk, writer) = two_versions(old, new, delete).await;
                let case = format!("{old:?} under {new:?}, delete: {delete}");
                let provider = writer.provider().await.unwrap();
                let count = |filter: &'static str| {
                    let provider = Arc::clone(&provider);
                    async move { number(&provider, &format!("select count(*) from t where {filter}")).await }
                };
                assert_eq!(count("v = 10").await, 0, "{case}");
                assert_eq!(count("v < 11 and id = 1").await, 0, "{case}");
                assert_eq!(count("s = 's10'").await, 0, "{case}");
                assert_eq!(count("v = 20").await, 1, "{case}");
                assert_eq!(count("v = 11").await, i64::from(!delete), "{case}");
                assert_eq!(count("id = 1").await, i64::from(!delete), "{case}");
                assert_eq!(count("v is not null and id <= 2").await, 2 - i64::from(delete), "{case}");
                if new != Place::Pending && old != Place::Pending {
                    let provider = disk.elsewhere().await;
                    assert_eq!(number(&provider, "select count(*) from t where v = 10").await, 0, "{case}");
                }
            }
        }
    }
}

/// A source evaluates a pushed filter for hidden rows too: one that can fail must not be pushed.
#[tokio::test]
async fn a_hidden_row_cannot_fail_a_query() {
    let disk = OnDisk::create(&["id"], schema()).await;
    disk.append_to_base(rows(&[(1, 0), (2, 2)])).await;
    let writer = disk.writer().await;
    writer.put(rows(&[(3, 0), (4, 4)])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(&[(1, 5), (3, 5)])).await.unwrap();
    let provider = writer.provider().await.unwrap();
    let found = sql(&provider, "select id from t where 20 / v = 4 order by id").await;
    assert_eq!(found, [["1"], ["3"]]);
    let found = sql(&provider, "select id from t where cast(s as varchar) = 's5' and 20 / v > 3 order by id").await;
    assert_eq!(found, [["1"], ["3"]]);
    // A volatile function is evaluated once for each visible row.
    assert_eq!(number(&provider, "select count(*) from t where random() < 2").await, 4);
}

/// 0.0 and -0.0 are one value to Lance and two to DataFusion; what a filter finds must not depend on where a row is.
#[tokio::test]
async fn floats_compare_alike_in_every_source() {
    let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Float64, true)]));
    let values = [Some(0.0), Some(-0.0), Some(f64::NAN), Some(-f64::NAN), Some(1.5), None];
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Float64Array::from(values.to_vec()))]).unwrap();
    let disk = OnDisk::create(&[], Arc::clone(&schema)).await;
    let writer = disk.writer().await;
    writer.put(batch).await.unwrap();
    let in_memory = writer.provider().await.unwrap();
    writer.flush().await.unwrap();
    let in_sstable = writer.provider().await.unwrap();
    for operator in ["=", "<>", "<", "<=", ">", ">=", "is distinct from", "is not distinct from"] {
        for literal in ["0.0", "-0.0", "1.5", "arrow_cast('NaN', 'Float64')"] {
            let query = format!("select x from t where x {operator} {literal} order by x nulls first");
            assert_eq!(sql(&in_sstable, &query).await, sql(&in_memory, &query).await, "{query}");
        }
    }
    for list in ["(0.0, 7.0)", "(-0.0, 7.0)", "(0.0, 1.0, 2.0, 3.0, 4.0)", "(-0.0, 1.0, 2.0, 3.0, 4.0)"] {
        let query = format!("select x from t where x not in {list} order by x nulls first");
        assert_eq!(sql(&in_sstable, &query).await, sql(&in_memory, &query).await, "{query}");
    }
}

#[tokio::test]
async fn keyless_rows_of_all_sources_are_put_together() {
    let disk = OnDisk::create(&[], schema()).await;
    disk.append_to_base(ids(0..2)).await;
    let writer = disk.writer().await;
    for id in 2..8 {
        writer.put(ids(id..id + 1)).await.unwrap();
        if id % 2 == 0 {
            writer.flush().await.unwrap();
        }
    }
    writer.put(ids(0..1)).await.unwrap();
    let mut expected = id_pairs(0..8);
    expected.insert(0, (0, Some(0)));
    assert_eq!(pairs(writer.provider().await.unwrap()).await, expected);
    assert_eq!(pairs(disk.elsewhere().await).await, expected);
    assert_eq!(number(&disk.elsewhere().await, "select count(*) from t where id = 0").await, 2);
    writer.close().await.unwrap();
    assert_eq!(pairs(disk.elsewhere().await).await, expected);
}

#[tokio::test]
async fn sql_projects_filters_limits_and_counts() {
    let disk = OnDisk::create(&["id"], schema()).await;
    disk.append_to_base(ids(0..10)).await;
    let writer = disk.writer().await;
    writer.put(rows(&(5..15).map(|id| (id, id * 100)).collect::<Vec<_>>())).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(&[(14, 7), (15, 7), (16, 7)])).await.unwrap();
    writer.delete(keys(&[0, 1, 16])).await.unwrap();
    for provider in [writer.provider().await.unwrap(), disk.elsewhere().await] {
        assert_eq!(number(&provider, "select count(*) from t").await, 14);
        assert_eq!(number(&provider, "select count(s) from t where v = 7").await, 2);
        assert_eq!(sql(&provider, "select v, id from t where id = 14").await, [["7", "14"]]);
        assert_eq!(sql(&provider, "select id from t where s = 's600'").await, [["6"]]);
        assert_eq!(sql(&provider, "select s from t where s like 's9%' order by s").await, [["s900"]]);
        let in_list = "select id from t where v in (2, 3, 700) or id between 14 and 15 order by id";
        assert_eq!(sql(&provider, in_list).await, [["2"], ["3"], ["7"], ["14"], ["15"]]);
        assert_eq!(sql(&provider, "select id from t where not (id < 15)").await, [["15"]]);
        for limit in [0, 1, 3, 13, 14, 100] {
            let rows = sql(&provider, &format!("select id from t limit {limit}")).await;
            assert_eq!(rows.len(), limit.min(14), "limit {limit}");
            let rows = sql(&provider, &format!("select id from t where v = 7 limit {limit}")).await;
            assert_eq!(rows.len(), limit.min(2));
        }
        assert_eq!(sql(&provider, "select id from t order by id limit 2 offset 3").await, [["5"], ["6"]]);
        assert_eq!(sql(&provider, "select t.id from t join t as u on t.id = u.v order by 1").await.len(), 5);
        assert_eq!(sql(&provider, "select 1 from t where false").await.len(), 0);
    }
}

#[tokio::test]
async fn a_snapshot_holds_still() {
    for keyed_table in [true, false] {
        let bucket = Bucket::new();
        let table = match keyed_table {
            true => keyed(&bucket, 2).await,
            false => keyless(&bucket, 2).await,
        };
        let writer = table.writer(small(3)).await.unwrap();
        writer.put(ids(0..10)).await.unwrap();
        let moments = [writer.provider().await.unwrap(), bucket.table().await.provider().await.unwrap()];
        for round in 0..5 {
            writer.put(ids(10 * round..10 * round + 20)).await.unwrap();
            if keyed_table {
                writer.delete(keys(&[0, 1, 2])).await.unwrap();
            }
            writer.flush().await.unwrap();
            for moment in &moments {
                assert_eq!(pairs(Arc::clone(moment)).await, id_pairs(0..10), "round {round}");
            }
        }
    }
}

/// From another process, while the writer writes, flushes, and stands still in the middle of a flush.
#[tokio::test]
async fn another_process_sees_acknowledged_rows_at_any_moment() {
    for stalled in ["_gen_1/data", "_gen_1/_versions", "/manifest/"] {
        let bucket = Bucket::new();
        keyless(&bucket, 1).await;
        let process = bucket.process();
        let writer = Arc::new(process.writer(config()).await);
        writer.put(ids(0..5)).await.unwrap();
        let gate = match stalled {
            "_gen_1/data" => process.faults.on(Op::Overwrite).path_contains(stalled).stall(),
            _ => process.faults.on(Op::Create).path_contains(stalled).stall(),
        };
        let flushing = tokio::spawn({
            let writer = Arc::clone(&writer);
            async move { writer.flush().await }
        });
        soon(stalled, gate.reached()).await;
        assert_eq!(bucket.seen().await, id_pairs(0..5), "{stalled}");
        writer.put(ids(5..7)).await.unwrap();
        assert_eq!(bucket.seen().await, id_pairs(0..7), "{stalled}");
        assert_eq!(scanned(&writer).await, id_pairs(0..7), "{stalled}");
        gate.release();
        flushing.await.unwrap().unwrap();
        assert_eq!(bucket.seen().await, id_pairs(0..7), "{stalled}");
        assert_eq!(scanned(&writer).await, id_pairs(0..7), "{stalled}");
    }
}

#[tokio::test]
async fn what_was_merged_is_read_in_the_base_table() {
    let disk = OnDisk::create(&[], schema()).await;
    let writer = disk.writer().await;
    writer.put(ids(0..3)).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(ids(3..5)).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(ids(5..6)).await.unwrap();
    let before = writer.provider().await.unwrap();
    disk.append_to_base(ids(0..3)).await;
    disk.record_merged(disk.table.shard_ids().await.unwrap()[0], 1).await;
    assert_eq!(disk.table.inspect().await.unwrap().base.merged[0].generation, 1);
    assert_eq!(pairs(disk.elsewhere().await).await, id_pairs(0..6));
    assert_eq!(pairs(writer.provider().await.unwrap()).await, id_pairs(0..6));
    assert_eq!(pairs(disk.table.provider().await.unwrap()).await, id_pairs(0..6));
    assert_eq!(pairs(before).await, id_pairs(0..6), "the older moment");
    writer.close().await.unwrap();
    assert_eq!(pairs(disk.elsewhere().await).await, id_pairs(0..6));
}

/// Key sets and footers of SSTables are read once for a handle, not once for a query.
#[tokio::test]
async fn a_second_snapshot_does_not_read_the_sstables_keys_again() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    for round in 0..3 {
        writer.put(ids(0..50 + round)).await.unwrap();
        writer.flush().await.unwrap();
    }
    let process = bucket.process();
    let table = process.table().await;
    let query = "select count(*) from t";
    assert_eq!(number(&table.provider().await.unwrap(), query).await, 52);
    process.faults.clear_log();
    assert_eq!(number(&table.provider().await.unwrap(), query).await, 52);
    let opened = process.faults.log().into_iter().filter(|r| r.op == Op::List && r.path.contains("_gen_")).count();
    assert_eq!(opened, 0, "an SSTable was opened again: {:?}", process.faults.log());
    let second = process.faults.log().iter().filter(|r| r.op == Op::Get && r.path.contains("_gen_")).count();
    process.faults.clear_log();
    assert_eq!(number(&bucket_table(&process).await, query).await, 52);
    let fresh = process.faults.log().iter().filter(|r| r.op == Op::Get && r.path.contains("_gen_")).count();
    assert!(second < fresh, "{second} GETs, {fresh} by a fresh handle");
}

async fn bucket_table(process: &Process) -> Arc<dyn TableProvider> {
    process.table().await.provider().await.unwrap()
}

/// A batch with a column of every kind that a table may have, two rows and a third of nulls; `id` is the key.
fn every_type() -> RecordBatch {
    let item = |data_type| Arc::new(Field::new("item", data_type, true));
    let mut lists = ListBuilder::new(Int64Builder::new());
    lists.append_value([Some(1), None, Some(3)]);
    lists.append_value([]);
    lists.append_null();
    let vectors = FixedSizeListArray::new(
        item(DataType::Float32),
        2,
        Arc::new(Float32Array::from(vec![0.5, 1.5, -2.0, 3.0, 0.0, 0.0])),
        Some(vec![true, true, false].into()),
    );
    let inner = Fields::from(vec![
        Field::new("a", DataType::Int32, true),
        Field::new("b", DataType::Struct(vec![Field::new("c", DataType::Utf8, true)].into()), true),
    ]);
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None, None]));
    let deepest = StructArray::new(
        vec![Field::new("c", DataType::Utf8, true)].into(),
        vec![texts],
        Some(vec![true, false, true].into()),
    );
    let nested = StructArray::new(
        inner,
        vec![Arc::new(Int32Array::from(vec![Some(1), None, None])), Arc::new(deepest)],
        Some(vec![true, true, false].into()),
    );
    let mut dictionary = StringDictionaryBuilder::<Int32Type>::new();
    dictionary.append_value("red");
    dictionary.append_value("green");
    dictionary.append_null();
    let mut structs_in_list = ListBuilder::new(arrow_array::builder::StructBuilder::from_fields(
        vec![Field::new("k", DataType::Utf8, true)],
        2,
    ));
    let values = structs_in_list.values();
    values.field_builder::<arrow_array::builder::StringBuilder>(0).unwrap().append_value("in a list");
    values.append(true);
    structs_in_list.append(true);
    structs_in_list.append(true);
    structs_in_list.append(false);

    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3]))),
        ("boolean", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        ("i8", Arc::new(Int8Array::from(vec![Some(-1), Some(i8::MAX), None]))),
        ("u64", Arc::new(UInt64Array::from(vec![Some(0), Some(u64::MAX), None]))),
        ("f32", Arc::new(Float32Array::from(vec![Some(0.5), Some(f32::NAN), None]))),
        ("f64", Arc::new(Float64Array::from(vec![Some(-0.0), Some(f64::INFINITY), None]))),
        ("utf8", Arc::new(StringArray::from(vec![Some(""), Some("ünï"), None]))),
        ("large_utf8", Arc::new(LargeStringArray::from(vec![Some("a"), Some("b"), None]))),
        ("binary", Arc::new(BinaryArray::from(vec![Some(&b"\0\xff"[..]), Some(&b""[..]), None]))),
        ("large_binary", Arc::new(LargeBinaryArray::from(vec![Some(&b"a"[..]), Some(&b"bc"[..]), None]))),
        ("date32", Arc::new(Date32Array::from(vec![Some(0), Some(20_000), None]))),
        ("time64", Arc::new(Time64MicrosecondArray::from(vec![Some(0), Some(86_399_999_999), None]))),
        (
            "stamp_tz",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(0), Some(1), None]).with_timezone("Europe/Berlin")),
        ),
        ("stamp", Arc::new(TimestampNanosecondArray::from(vec![Some(0), Some(1), None]))),
        ("duration", Arc::new(DurationMillisecondArray::from(vec![Some(0), Some(1), None]))),
        (
            "decimal",
            Arc::new(Decimal128Array::from(vec![Some(12345), Some(-1), None]).with_precision_and_scale(20, 3).unwrap()),
        ),
        ("fixed_binary", Arc::new(fixed_binary())),
        ("list", Arc::new(lists.finish())),
        ("vector", Arc::new(vectors)),
        ("nested", Arc::new(nested)),
        ("structs", Arc::new(structs_in_list.finish())),
        ("dictionary", Arc::new(dictionary.finish())),
    ];
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), *name != "id")).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

fn fixed_binary() -> FixedSizeBinaryArray {
    let values = [Some(&[1u8, 2][..]), Some(&[3, 4][..]), None];
    FixedSizeBinaryArray::try_from_sparse_iter_with_size(values.into_iter(), 2).unwrap()
}

fn texts(batch: &RecordBatch) -> Vec<Vec<String>> {
    let text = |array: &ArrayRef, row| match array.is_null(row) {
        true => "null".to_owned(),
        false => arrow_cast::display::array_value_to_string(array, row).unwrap(),
    };
    (0..batch.num_rows()).map(|row| batch.columns().iter().map(|array| text(array, row)).collect()).collect()
}

#[tokio::test]
async fn values_of_every_type_come_back_from_every_place() {
    for key in [&["id"][..], &[]] {
        let batch = every_type();
        let disk = OnDisk::create(key, batch.schema()).await;
        let writer = disk.writer().await;
        writer.put(batch.clone()).await.unwrap();
        let query = "select * from t order by id";
        let expected = texts(&batch);
        assert_eq!(sql(&writer.provider().await.unwrap(), query).await, expected, "MemTable");
        assert_eq!(sql(&disk.elsewhere().await, query).await, expected, "log");
        writer.flush().await.unwrap();
        assert_eq!(sql(&writer.provider().await.unwrap(), query).await, expected, "SSTable");
        if key.is_empty() {
            continue;
        }
        // Tombstones have nulls of every type.
        let key = batch.project(&[0]).unwrap().slice(0, 1);
        writer.delete(key).await.unwrap();
        assert_eq!(sql(&writer.provider().await.unwrap(), query).await, expected[1..]);
        writer.flush().await.unwrap();
        assert_eq!(sql(&disk.elsewhere().await, query).await, expected[1..]);
        drop(writer);
        let again = disk.writer().await;
        again.put(batch.clone()).await.unwrap();
        again.close().await.unwrap();
        assert_eq!(sql(&disk.elsewhere().await, query).await, expected);
    }
}

/// A filter of every type gives the same rows as it does on the batch itself, hidden versions or not.
#[tokio::test]
async fn filters_of_every_type_agree_with_datafusion() {
    let batch = every_type();
    let disk = OnDisk::create(&["id"], batch.schema()).await;
    let writer = disk.writer().await;
    writer.put(batch.clone()).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(batch.slice(2, 1)).await.unwrap();
    let provider = writer.provider().await.unwrap();
    let memory: Arc<dyn TableProvider> =
        Arc::new(datafusion::datasource::MemTable::try_new(batch.schema(), vec![vec![batch.clone()]]).unwrap());
    let filters = [
        "boolean",
        "not boolean",
        "i8 > 0",
        "u64 = 18446744073709551615",
        "f32 > 0.25",
        "f64 = 0",
        "f64 < 1e300",
        "utf8 = 'ünï'",
        "utf8 in ('', 'x')",
        "large_utf8 >= 'b'",
        "binary = X'00ff'",
        "date32 > date '2000-01-01'",
        "stamp_tz > timestamp '1970-01-01T00:00:00Z'",
        "stamp_tz = '1970-01-01T00:00:00Z'",
        "stamp >= timestamp '1970-01-01T00:00:00.000000001'",
        "decimal > 12.3",
        "decimal = -0.001",
        "dictionary = 'green'",
        "dictionary in ('red', 'blue')",
        "nested is null",
        "nested['a'] = 1",
        "list is null",
        "list[1] = 1",
        "vector is not null",
        "structs is null",
        "fixed_binary is null",
        "i8 is distinct from 127",
        "utf8 like '%n%'",
        "abs(i8) = 1",
        "i8 + id = 0",
        "cast(date32 as varchar) = '1970-01-01'",
        "time64 < time '00:00:01'",
    ];
    for filter in filters {
        let query = format!("select id from t where {filter} order by id");
        let expected = try_sql(&memory, &query).await;
        let found = try_sql(&provider, &query).await;
        match (expected, found) {
            (Ok(expected), Ok(found)) => assert_eq!(found, expected, "{filter}"),
            (Err(_), Err(_)) => {}
            (expected, found) => panic!("{filter}: {found:?} instead of {expected:?}"),
        }
    }
}

#[tokio::test]
async fn views_are_stored_or_refused_by_name() {
    for data_type in [DataType::Utf8View, DataType::BinaryView] {
        let fields = vec![Field::new("id", DataType::Int64, false), Field::new("view", data_type.clone(), true)];
        let schema = Arc::new(Schema::new(fields));
        let bucket = Bucket::new();
        let options = TableOptions { primary_key: vec!["id".into()], sharding: Sharding::Unsharded };
        let table = match Table::create(bucket.process().store, Arc::clone(&schema), options).await {
            Ok(table) => table,
            Err(Error::InvalidOptions(why) | Error::NotSupported(why)) => {
                assert!(why.contains("view") || why.contains("View"), "{why}");
                continue;
            }
            Err(other) => panic!("{data_type}: {other}"),
        };
        let long = "a text that is too long to be stored inline";
        let strings: ArrayRef = Arc::new(StringViewArray::from(vec![Some(long), None]));
        let view = arrow_cast::cast(&strings, &data_type).unwrap();
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let batch = RecordBatch::try_new(schema, vec![ids, view]).unwrap();
        let writer = table.writer(config()).await.unwrap();
        writer.put(batch.clone()).await.unwrap();
        let query = "select * from t order by id";
        let expected = texts(&batch);
        let provider = writer.provider().await.unwrap();
        assert_eq!(sql(&provider, query).await, expected, "{data_type}");
        assert_eq!(number(&provider, &format!("select count(*) from t where view = '{long}'")).await, 1);
        writer.close().await.unwrap();
        assert_eq!(sql(&bucket.table().await.provider().await.unwrap(), query).await, expected, "{data_type}");
    }
}

#[tokio::test]
async fn column_names_may_be_what_people_write() {
    let names = [
        "Id",
        "id",
        "with space",
        "quo\"te",
        "apo'strophe",
        "1digit",
        "select",
        "ünï-cøde",
        "a,b",
        "a(b)",
        "*",
        "%",
        "_distance",
        "_score",
        "count(*)",
        "t",
        "\\",
        "#",
        "$1",
        "a:b",
        "[0]",
    ];
    let fields: Vec<Field> =
        names.iter().enumerate().map(|(n, name)| Field::new(*name, DataType::Int64, n > 0)).collect();
    let schema = Arc::new(Schema::new(fields));
    let batch = |first: i64| {
        let column = |n: usize| Arc::new(Int64Array::from(vec![first + n as i64, 1000 + first + n as i64])) as ArrayRef;
        RecordBatch::try_new(Arc::clone(&schema), (0..names.len()).map(column).collect()).unwrap()
    };
    let disk = OnDisk::create(&["Id"], Arc::clone(&schema)).await;
    disk.append_to_base(batch(0)).await;
    let writer = disk.writer().await;
    writer.put(batch(100)).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(batch(200)).await.unwrap();
    for provider in [writer.provider().await.unwrap(), disk.elsewhere().await] {
        assert_eq!(sql(&provider, "select * from t").await.len(), 6);
        for (n, name) in names.iter().enumerate() {
            let quoted = format!("\"{}\"", name.replace('"', "\"\""));
            for first in [0, 100, 200, 1000, 1100, 1200] {
                let value = first + n as i64;
                let query = format!("select {quoted} as x, \"Id\" as y from t where {quoted} = {value}");
                assert_eq!(sql(&provider, &query).await, [[value.to_string(), first.to_string()]], "{name}");
            }
        }
    }
    // What Lance would take for a path.
    for name in ["a.b", "a`b", "`a`"] {
        let schema = Arc::new(Schema::new(vec![Field::new(name, DataType::Int64, true)]));
        let refused = Table::create(Bucket::new().process().store, schema, TableOptions::default()).await;
        assert!(matches!(&refused, Err(Error::InvalidOptions(why)) if why.contains(name)), "{refused:?}");
    }
}

/// Keys of several columns, in another order than the schema's, of types that a filter may touch.
#[tokio::test]
async fn composite_keys_of_many_types_identify_rows() {
    let stamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema = Arc::new(Schema::new(vec![
        Field::new("value", DataType::Int64, true),
        Field::new("at", stamp, true),
        Field::new("name", DataType::Utf8, true),
        Field::new("small", DataType::Int16, true),
    ]));
    let batch = |rows: &[(i64, i64, &str, i16)]| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.1)).with_timezone("UTC")),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.2))),
            Arc::new(Int16Array::from_iter_values(rows.iter().map(|r| r.3))),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
    };
    let bucket = Bucket::new();
    let options = TableOptions {
        primary_key: vec!["small".into(), "name".into(), "at".into()],
        sharding: Sharding::Bucket { column: "name".into(), buckets: 3 },
    };
    let table = Table::create(bucket.process().store, Arc::clone(&schema), options).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    writer.put(batch(&[(1, 5, "a", 0), (2, 5, "b", 0), (3, 6, "a", 0), (4, 5, "a", 1)])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(batch(&[(11, 5, "a", 0), (14, 5, "a", 1)])).await.unwrap();
    writer.delete(batch(&[(0, 6, "a", 0)]).project(&[3, 1, 2]).unwrap()).await.unwrap();
    let query = "select value from t order by value";
    for provider in [writer.provider().await.unwrap(), bucket.table().await.provider().await.unwrap()] {
        assert_eq!(sql(&provider, query).await, [["2"], ["11"], ["14"]]);
        assert_eq!(sql(&provider, "select value from t where name = 'a' and small = 0").await, [["11"]]);
    }
    writer.close().await.unwrap();
    assert_eq!(sql(&bucket.table().await.provider().await.unwrap(), query).await, [["2"], ["11"], ["14"]]);
}
