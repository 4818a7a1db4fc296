//! Shards that a query does not read: exactly those that cannot hold a row which it wants, and never more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use fencepost::{MergeOptions, ShardValue, Table, TableOptions};
use fencepost_sim::{Op, Rng};

use crate::support::{Bucket, config, folder, sql, try_sql};

/// `k` of some type, `id`, `v`; `k` given as texts.
fn schema(k: &DataType, keyed: bool) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", k.clone(), !keyed),
        Field::new("id", DataType::Int64, false),
        Field::new("v", DataType::Int64, true),
    ]))
}

type Row = (Option<&'static str>, i64, i64);

fn batch(schema: &SchemaRef, rows: &[Row]) -> RecordBatch {
    let texts: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<StringArray>());
    let columns: Vec<ArrayRef> = vec![
        cast(&texts, schema.field(0).data_type()).unwrap(),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
    ];
    RecordBatch::try_new(Arc::clone(schema), columns).unwrap()
}

/// How a query writes a value.
fn literal(k: &DataType, text: &str) -> String {
    match k {
        DataType::Utf8 | DataType::LargeUtf8 => format!("'{text}'"),
        DataType::Date32 => format!("date '{text}'"),
        DataType::Timestamp(..) => format!("timestamp '{text}'"),
        _ => text.to_owned(),
    }
}

const FILTERS: [&str; 29] = [
    "k = {a}",
    "{a} = k",
    "k in ({a}, {b})",
    "k in ({a}, null)",
    "k not in ({a}, {b})",
    "k = {a} or k = {b}",
    "k = {a} or k is null",
    "k = {a} or id = 1",
    "k = {a} or (k = {b} and v > 2)",
    "k is null",
    "k is not null",
    "(k = {a}) is null",
    "not (k = {a})",
    "k <> {a}",
    "k > {a}",
    "k between {a} and {b}",
    "k is distinct from {a}",
    "k is not distinct from {a}",
    "k is not distinct from null",
    "k = {a} and k = {b}",
    "k = {a} and id = 1",
    "(k = {a} and id = 1) or (k = {b} and id = 2)",
    "coalesce(k, {a}) = {a}",
    "nullif(k, {a}) is null",
    "cast(k as varchar) = 'eu'",
    "case when k = {a} then v > 2 else k = {b} end",
    "k = {a} and random() < 2",
    "k = {a} and v in (select id from t where k = {b})",
    "id = 1 and v < 3",
];

/// Base table, SSTables and logs with rows of every value, several versions of some, and what must be seen.
async fn filled(table: &Table, k: &DataType, keyed: bool, pool: &[Option<&'static str>], rng: &mut Rng) -> Vec<Row> {
    let schema = schema(k, keyed);
    let mut model: BTreeMap<(Option<&'static str>, i64, usize), i64> = BTreeMap::new();
    let writer = table.writer(config()).await.unwrap();
    for round in 0..4 {
        let rows: Vec<Row> =
            (0..12).map(|_| (*rng.pick(pool).unwrap(), rng.below(4) as i64, rng.below(6) as i64)).collect();
        let rows: Vec<Row> = rows.into_iter().filter(|row| !keyed || row.0.is_some()).collect();
        writer.put(batch(&schema, &rows)).await.unwrap();
        for (n, (k, id, v)) in rows.into_iter().enumerate() {
            model.insert((k, id, if keyed { 0 } else { 100 * round + n }), v);
        }
        if keyed {
            let gone: Vec<Row> = model.keys().filter(|_| rng.chance(0.1)).map(|key| (key.0, key.1, 0)).collect();
            writer.delete(batch(&schema, &gone).project(&[0, 1]).unwrap()).await.unwrap();
            model.retain(|key, _| !gone.iter().any(|row| (row.0, row.1) == (key.0, key.1)));
        }
        match round {
            0 => {
                writer.flush().await.unwrap();
                table.merge(&MergeOptions::default(), |_| {}).await.unwrap();
            }
            1 | 2 => writer.flush().await.unwrap(),
            _ => {}
        }
    }
    model.into_iter().map(|((k, id, _), v)| (k, id, v)).collect()
}

/// Every filter finds what it finds in a plain table of the same rows, from outside and through the writer's eyes.
async fn agrees(k: DataType, keyed: bool, sharding: &str, pool: &[Option<&'static str>]) {
    let mut rng = Rng::new(7);
    let bucket = Bucket::new();
    let schema = schema(&k, keyed);
    let primary_key = if keyed { vec!["k".to_owned(), "id".to_owned()] } else { vec![] };
    let options = TableOptions { primary_key, sharding: sharding.parse().unwrap() };
    let table = Table::create(bucket.process().store, Arc::clone(&schema), options).await.unwrap();
    let rows = filled(&table, &k, keyed, pool, &mut rng).await;
    let plain = MemTable::try_new(Arc::clone(&schema), vec![vec![batch(&schema, &rows)]]).unwrap();
    let plain: Arc<dyn TableProvider> = Arc::new(plain);
    let provider = bucket.table().await.provider().await.unwrap();
    let values: Vec<&str> = pool.iter().flatten().copied().collect();
    for filter in FILTERS {
        for _ in 0..2 {
            let [a, b] = [rng.pick(&values).unwrap(), rng.pick(&values).unwrap()].map(|text| literal(&k, text));
            let filter = filter.replace("{a}", &a).replace("{b}", &b);
            let query = format!("select id, v from t where {filter} order by id, v");
            let found = try_sql(&provider, &query).await;
            match try_sql(&plain, &query).await {
                Ok(expected) => assert_eq!(found.unwrap(), expected, "{sharding} of {k}: {filter}"),
                // A comparison that the type does not have.
                Err(_) => assert!(found.is_err(), "{sharding} of {k}: {filter}"),
            }
        }
    }
}

const REGIONS: [Option<&str>; 6] = [Some("eu"), Some("us"), Some(""), Some("EU"), Some("null"), None];
const NUMBERS: [Option<&str>; 6] = [Some("0"), Some("-1"), Some("7"), Some("300"), Some("2147483647"), None];
const FLAGS: [Option<&str>; 3] = [Some("true"), Some("false"), None];
const FLOATS: [Option<&str>; 5] = [Some("0.0"), Some("-0.0"), Some("1.5"), Some("1e300"), None];
const DAYS: [Option<&str>; 4] = [Some("1970-01-01"), Some("2020-02-29"), Some("1969-12-31"), None];

#[tokio::test]
async fn filters_on_tables_of_values_find_what_they_find_elsewhere() {
    for (k, keyed, pool) in [
        (DataType::Utf8, true, &REGIONS[..]),
        (DataType::LargeUtf8, false, &REGIONS),
        (DataType::Int32, true, &NUMBERS),
        (DataType::Int64, false, &NUMBERS),
        (DataType::Boolean, false, &FLAGS),
    ] {
        agrees(k, keyed, "identity(k)", pool).await;
    }
}

#[tokio::test]
async fn filters_on_tables_of_buckets_find_what_they_find_elsewhere() {
    for (k, keyed, pool) in [
        (DataType::Utf8, true, &REGIONS[..]),
        (DataType::Int32, false, &NUMBERS),
        (DataType::Date32, false, &DAYS),
        (DataType::Float64, false, &FLOATS),
        (DataType::Timestamp(TimeUnit::Microsecond, None), true, &DAYS),
    ] {
        agrees(k, keyed, "bucket(k,5)", pool).await;
    }
}

/// The shards whose SSTables a query of a fresh process asks for.
async fn touched(bucket: &Bucket, filter: &str) -> BTreeSet<String> {
    let process = bucket.process();
    let table = process.table().await;
    let inspected = table.inspect().await.unwrap().shards;
    let provider = table.provider().await.unwrap();
    process.faults.clear_log();
    sql(&provider, &format!("select count(v) from t where {filter}")).await;
    let log = process.faults.log();
    let asked = |id| log.iter().any(|r| r.op == Op::Get && r.path.contains(&folder(id)));
    inspected.iter().filter(|shard| asked(shard.shard_id)).map(|shard| shard.value.to_string()).collect()
}

#[tokio::test]
async fn only_the_shards_of_wanted_values_are_read() {
    let bucket = Bucket::new();
    let schema = schema(&DataType::Utf8, false);
    let options = TableOptions { primary_key: vec![], sharding: "identity(k)".parse().unwrap() };
    let table = Table::create(bucket.process().store, Arc::clone(&schema), options).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    let rows: Vec<Row> = [Some("eu"), Some("us"), Some("asia"), None].into_iter().map(|k| (k, 1, 1)).collect();
    writer.put(batch(&schema, &rows)).await.unwrap();
    writer.close().await.unwrap();
    let all = ["asia", "eu", "null", "us"];
    for (filter, expected) in [
        ("true", &all[..]),
        ("id = 1", &all),
        ("k = 'eu'", &["eu"]),
        ("k = 'nowhere'", &[]),
        ("k in ('eu', 'us', 'nowhere')", &["eu", "us"]),
        ("k = 'eu' or k is null", &["eu", "null"]),
        ("k is null", &["null"]),
        ("k is not null", &["asia", "eu", "us"]),
        ("k > 'b'", &["eu", "us"]),
        ("k <> 'eu'", &["asia", "us"]),
        ("k is distinct from 'eu'", &["asia", "null", "us"]),
        ("upper(k) = 'EU'", &["eu"]),
        ("k like '%s%'", &["asia", "us"]),
        ("(k = 'eu' and id = 1) or (k = 'us' and v = 3)", &["eu", "us"]),
        ("k = 'eu' or id = 1", &all),
        ("k = 'eu' and random() < 2", &["eu"]),
        // May differ from value to value: says nothing.
        ("k = case when random() < 2 then 'eu' else 'us' end", &all),
    ] {
        let expected: BTreeSet<String> = expected.iter().map(|value| shown(value)).collect();
        assert_eq!(touched(&bucket, filter).await, expected, "{filter}");
    }
}

fn shown(value: &str) -> String {
    match value {
        "null" => "value null".to_owned(),
        value => format!("value `{value}`"),
    }
}

#[tokio::test]
async fn only_the_buckets_of_wanted_values_are_read() {
    let bucket = Bucket::new();
    let table = crate::support::keyed(&bucket, 8).await;
    let writer = table.writer(config()).await.unwrap();
    writer.put(crate::support::ids(0..100)).await.unwrap();
    // Which bucket an id is in, by asking for it.
    writer.close().await.unwrap();
    let all = touched(&bucket, "true").await;
    assert_eq!(all, (0..8).map(|n| ShardValue::Bucket(n).to_string()).collect());
    let mut of_id = Vec::new();
    for id in 0..4 {
        let one = touched(&bucket, &format!("id = {id}")).await;
        assert_eq!(one.len(), 1, "{one:?}");
        of_id.extend(one);
    }
    let buckets = |ids: &[usize]| ids.iter().map(|id| of_id[*id].clone()).collect::<BTreeSet<_>>();
    assert_eq!(touched(&bucket, "id in (0, 1, 2)").await, buckets(&[0, 1, 2]));
    assert_eq!(touched(&bucket, "id = 0 or (id = 3 and v > 1)").await, buckets(&[0, 3]));
    assert_eq!(touched(&bucket, "id = 0 and id = 3").await, BTreeSet::new());
    assert_eq!(touched(&bucket, "id < 2").await, all, "a hash keeps no order");
    assert_eq!(touched(&bucket, "v = 1").await, all, "another column");
}

/// A new version in a shard that is left out hides nothing, and an old one below it does not come back.
#[tokio::test]
async fn what_a_shard_that_is_left_out_hides_is_not_wanted_either() {
    let bucket = Bucket::new();
    let schema = schema(&DataType::Utf8, true);
    let options = TableOptions { primary_key: vec!["k".into(), "id".into()], sharding: "identity(k)".parse().unwrap() };
    let table = Table::create(bucket.process().store, Arc::clone(&schema), options).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    writer.put(batch(&schema, &[(Some("eu"), 1, 1), (Some("us"), 1, 1)])).await.unwrap();
    writer.flush().await.unwrap();
    table.merge(&MergeOptions::default(), |_| {}).await.unwrap();
    writer.put(batch(&schema, &[(Some("eu"), 1, 2)])).await.unwrap();
    writer.flush().await.unwrap();
    writer.delete(batch(&schema, &[(Some("us"), 1, 0)]).project(&[0, 1]).unwrap()).await.unwrap();
    for provider in [writer.provider().await.unwrap(), bucket.table().await.provider().await.unwrap()] {
        for (filter, expected) in [
            ("k = 'eu'", &["2"][..]),
            ("k = 'us'", &[]),
            ("k <> 'us'", &["2"]),
            ("v = 1", &[]),
            ("k = 'us' or v = 1", &[]),
            ("k in ('us', 'eu')", &["2"]),
        ] {
            let found = sql(&provider, &format!("select v from t where {filter}")).await;
            assert_eq!(found.concat(), expected, "{filter}");
        }
    }
}

/// Left out with its shard, a newer version no longer hides the older one in the base table: that must not reach a filter
/// that fails on it.
#[tokio::test]
async fn a_row_that_a_left_out_shard_hides_cannot_fail_a_query() {
    for (sharding, k) in [("identity(k)", DataType::Utf8), ("bucket(k,64)", DataType::Utf8)] {
        let bucket = Bucket::new();
        let schema = schema(&k, true);
        let options = TableOptions { primary_key: vec!["k".into(), "id".into()], sharding: sharding.parse().unwrap() };
        let table = Table::create(bucket.process().store, Arc::clone(&schema), options).await.unwrap();
        let writer = table.writer(config()).await.unwrap();
        writer.put(batch(&schema, &[(Some("eu"), 1, 0), (Some("us"), 1, 5)])).await.unwrap();
        writer.flush().await.unwrap();
        table.merge(&MergeOptions::default(), |_| {}).await.unwrap();
        writer.put(batch(&schema, &[(Some("eu"), 1, 5)])).await.unwrap();
        for provider in [writer.provider().await.unwrap(), bucket.table().await.provider().await.unwrap()] {
            for filter in ["upper(k) = 'US'", "k = 'us'", "k in ('us', 'asia')"] {
                let found = sql(&provider, &format!("select id from t where 20 / v = 4 and {filter}")).await;
                assert_eq!(found, [["1"]], "{sharding}: {filter}");
            }
        }
    }
}
