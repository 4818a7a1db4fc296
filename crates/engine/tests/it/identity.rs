//! Tables with a shard for each value of a column: where rows go, how shards come to be while rows are written, and
//! what happens when that fails or somebody else does it too.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::scalar::ScalarValue;
use fencepost::wal::{Error as WalError, ManifestStore, Shard};
use fencepost::{Error, Outcome, ShardValue, Sharding, Table, TableOptions, TableWriter, WriterConfig, Written};
use fencepost_sim::{Fault, Op};
use futures::poll;

use crate::support::{Bucket, Process, config, small, soon, sql};

fn schema(nullable: bool) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("region", DataType::Utf8, nullable),
        Field::new("id", DataType::Int64, false),
        Field::new("v", DataType::Int64, true),
    ]))
}

/// A table sharded by `region`, with the key `region, id` or none.
async fn create(bucket: &Bucket, keyed: bool) -> Table {
    let primary_key = if keyed { vec!["region".to_owned(), "id".to_owned()] } else { vec![] };
    let options = TableOptions { primary_key, sharding: "identity(region)".parse().unwrap() };
    Table::create(bucket.process().store, schema(!keyed), options).await.unwrap()
}

type Row<'a> = (Option<&'a str>, i64, i64);

fn batch(keyed: bool, rows: &[Row]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.0).collect::<StringArray>()),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
    ];
    RecordBatch::try_new(schema(!keyed), columns).unwrap()
}

/// Rows of a keyed table.
fn rows(rows: &[(&str, i64, i64)]) -> RecordBatch {
    batch(true, &rows.iter().map(|(region, id, v)| (Some(*region), *id, *v)).collect::<Vec<_>>())
}

fn keys(keys: &[(&str, i64)]) -> RecordBatch {
    rows(&keys.iter().map(|(region, id)| (*region, *id, 0)).collect::<Vec<_>>()).project(&[1, 0]).unwrap()
}

async fn seen(provider: Arc<dyn TableProvider>) -> Vec<String> {
    let rows = sql(&provider, "select region, id, v from t order by region nulls first, id, v").await;
    rows.into_iter().map(|row| row.join(" ")).collect()
}

/// What a process that only reads sees.
async fn seen_elsewhere(bucket: &Bucket) -> Vec<String> {
    seen(bucket.table().await.provider().await.unwrap()).await
}

async fn writer(process: &Process) -> TableWriter {
    process.table().await.writer(config()).await.unwrap()
}

fn value(region: Option<&str>) -> ShardValue {
    ShardValue::Identity(ScalarValue::from(region))
}

#[tokio::test]
async fn each_value_has_a_shard_and_its_manifest_says_which() {
    let bucket = Bucket::new();
    let table = create(&bucket, false).await;
    assert_eq!(table.shard_ids().await.unwrap(), [], "no shard before the first row");
    assert_eq!(seen_elsewhere(&bucket).await, [""; 0]);

    let first = writer(&bucket.process()).await;
    let put = [(Some("us"), 1, 1), (None, 2, 2), (Some(""), 3, 3), (Some("null"), 4, 4), (Some("us"), 5, 5)];
    first.put(batch(false, &put)).await.unwrap();
    first.put(batch(false, &[(None, 6, 6), (Some("eu"), 7, 7)])).await.unwrap();
    let expected = ["null 2 2", "null 6 6", " 3 3", "eu 7 7", "null 4 4", "us 1 1", "us 5 5"];
    assert_eq!(seen(first.provider().await.unwrap()).await, expected);
    assert_eq!(seen_elsewhere(&bucket).await, expected);

    let inspected = table.inspect().await.unwrap().shards;
    let values: Vec<ShardValue> = inspected.iter().map(|shard| shard.value.clone()).collect();
    assert_eq!(values, [None, Some(""), Some("eu"), Some("null"), Some("us")].map(value));
    assert_eq!(inspected.iter().map(|shard| shard.rows_in_log).collect::<Vec<_>>(), [2, 1, 1, 1, 2]);
    assert!(inspected.iter().all(|shard| !shard.unadopted));
    assert_eq!(table.shard_ids().await.unwrap(), inspected.iter().map(|shard| shard.shard_id).collect::<Vec<_>>());

    // In whatever order rows come: the same shards in every process.
    drop(first);
    let second = writer(&bucket.process()).await;
    assert_eq!(second.shards().iter().map(|shard| shard.value().clone()).collect::<Vec<_>>(), values);
    second.put(batch(false, &[(Some("asia"), 8, 8), (Some("eu"), 9, 9)])).await.unwrap();
    assert_eq!(second.shards().len(), 6);
    second.close().await.unwrap();
    let inspected = table.inspect().await.unwrap().shards;
    assert_eq!(inspected.iter().map(|shard| shard.sstables.len()).collect::<Vec<_>>(), [1; 6]);
    assert!(inspected.iter().all(|shard| shard.rows_in_log == 0));
    assert_eq!(seen_elsewhere(&bucket).await.len(), 9);
}

/// The bytes in the manifest are what Lance says they are, so another reader of the format finds the value too.
#[tokio::test]
async fn integers_and_booleans_name_shards_too() {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("n", Arc::new(arrow_array::Int16Array::from(vec![Some(-2), None, Some(258)]))),
        ("flag", Arc::new(arrow_array::BooleanArray::from(vec![Some(true), Some(false), None]))),
    ];
    for (column, expected) in [("n", vec![vec![2, 1], vec![254, 255]]), ("flag", vec![vec![0], vec![1]])] {
        let rows = RecordBatch::try_from_iter(columns.clone()).unwrap();
        let options = TableOptions { primary_key: vec![], sharding: Sharding::Identity { column: column.to_owned() } };
        let store = Bucket::new().process().store;
        let table = Table::create(store.clone(), rows.schema(), options).await.unwrap();
        let writer = table.writer(config()).await.unwrap();
        writer.put(rows).await.unwrap();
        writer.close().await.unwrap();
        let mut told = Vec::new();
        for id in table.shard_ids().await.unwrap() {
            let manifest = ManifestStore::new(Shard::new(store.clone(), id)).latest_existing().await.unwrap();
            let [entry] = manifest.shard_field_entries.as_slice() else { panic!("{manifest:?}") };
            match entry.field_id.as_str() {
                "bucket" => told.push(entry.value.clone()),
                other => assert_eq!((other, entry.value.as_slice()), ("fencepost.null", &b"bucket"[..])),
            }
        }
        told.sort();
        assert_eq!(told, expected);
        let provider = table.provider().await.unwrap();
        assert_eq!(sql(&provider, "select count(*) from t").await, [["3"]]);
    }
}

#[tokio::test]
async fn keyed_rows_are_overwritten_deleted_and_recovered() {
    let bucket = Bucket::new();
    create(&bucket, true).await;
    let first = writer(&bucket.process()).await;
    first.put(rows(&[("eu", 1, 1), ("us", 1, 1), ("eu", 2, 2)])).await.unwrap();
    first.put(rows(&[("eu", 1, 10), ("asia", 3, 3)])).await.unwrap();
    // The columns of keys may stand in any order; a value without a shard gets one, as for any write.
    first.delete(keys(&[("us", 1), ("mars", 9)])).await.unwrap();
    let expected = ["asia 3 3", "eu 1 10", "eu 2 2"];
    assert_eq!(seen(first.provider().await.unwrap()).await, expected);
    // Killed before anything was flushed.
    drop(first);
    assert_eq!(seen_elsewhere(&bucket).await, expected);
    let second = bucket.process().table().await.writer(small(2)).await.unwrap();
    assert_eq!(seen(second.provider().await.unwrap()).await, expected);
    second.put(rows(&[("us", 1, 11), ("asia", 3, 30)])).await.unwrap();
    second.flush().await.unwrap();
    second.put(rows(&[("new", 1, 1)])).await.unwrap();
    let expected = ["asia 3 30", "eu 1 10", "eu 2 2", "new 1 1", "us 1 11"];
    assert_eq!(seen(second.provider().await.unwrap()).await, expected);
    second.close().await.unwrap();
    assert_eq!(seen_elsewhere(&bucket).await, expected);
    bucket.table().await.flush(config()).await.unwrap();
    assert_eq!(seen_elsewhere(&bucket).await, expected);
}

#[tokio::test]
async fn a_writer_of_one_value_refuses_rows_of_others() {
    let bucket = Bucket::new();
    let table = create(&bucket, true).await;
    writer(&bucket.process()).await.put(rows(&[("eu", 1, 1), ("us", 1, 1)])).await.unwrap();
    let eu = table.shard_ids().await.unwrap()[0];
    let shard = table.shard_writer(eu, config()).await.unwrap();
    shard.put(rows(&[("eu", 2, 2)])).await.unwrap();
    for refused in [shard.put(rows(&[("eu", 3, 3), ("us", 2, 2)])).await, shard.delete(keys(&[("us", 1)])).await] {
        let error = refused.unwrap_err();
        assert!(matches!(&error, Error::InvalidBatch(why) if why.contains("value `us`")), "{error}");
    }
    assert_eq!(seen_elsewhere(&bucket).await, ["eu 1 1", "eu 2 2", "us 1 1"]);
    let nobody = table.shard_writer(fencepost::ShardId::new_random(), config()).await;
    assert!(matches!(nobody, Err(Error::InvalidOptions(_))), "{nobody:?}");
}

/// I8, while the shard of a value is being opened.
#[tokio::test]
async fn rows_of_one_key_follow_the_order_of_first_polls_while_shards_open() {
    let bucket = Bucket::new();
    create(&bucket, true).await;
    let process = bucket.process();
    let writer = writer(&process).await;
    writer.put(rows(&[("us", 1, 0)])).await.unwrap();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    let mut one = Box::pin(writer.put(rows(&[("eu", 1, 1), ("us", 1, 1)])));
    let mut two = Box::pin(writer.put(rows(&[("us", 1, 2)])));
    let mut three = Box::pin(writer.delete(keys(&[("eu", 1)])));
    let mut four = Box::pin(writer.put(rows(&[("eu", 1, 4), ("asia", 1, 4)])));
    let mut five = Box::pin(writer.put(rows(&[("asia", 1, 5)])));
    for call in [&mut one as &mut (dyn Future<Output = _> + Unpin), &mut two, &mut three, &mut four, &mut five] {
        assert!(poll!(call).is_pending());
    }
    soon("the shard's first manifest", async {
        tokio::select! {
            _ = &mut one => panic!("acknowledged without a shard"),
            () = gate.reached() => {}
        }
    })
    .await;
    // Polled again in another order, and more than once.
    for call in [&mut five as &mut (dyn Future<Output = _> + Unpin), &mut three, &mut two] {
        assert!(poll!(call).is_pending(), "overtook a call that was first");
    }
    gate.release();
    let done = soon("the calls", futures::future::join5(five, four, three, two, one)).await;
    done.0.and(done.1).and(done.2).and(done.3).and(done.4).unwrap();
    let expected = ["asia 1 5", "eu 1 4", "us 1 2"];
    assert_eq!(seen(writer.provider().await.unwrap()).await, expected);
    drop(writer);
    assert_eq!(seen_elsewhere(&bucket).await, expected, "the log has the same order");
}

#[tokio::test]
async fn a_flush_comes_behind_the_calls_that_wait_for_their_shards() {
    let bucket = Bucket::new();
    let table = create(&bucket, true).await;
    let process = bucket.process();
    let writer = writer(&process).await;
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    let mut put = Box::pin(writer.put(rows(&[("eu", 1, 1)])));
    let mut flush = Box::pin(writer.flush());
    assert!(poll!(&mut put).is_pending() && poll!(&mut flush).is_pending());
    gate.release();
    let (put, flush) = soon("both", futures::future::join(put, flush)).await;
    put.and(flush).unwrap();
    let shards = table.inspect().await.unwrap().shards;
    assert_eq!((shards.len(), shards[0].sstables.len(), shards[0].rows_in_log), (1, 1, 0));
}

#[tokio::test]
async fn a_call_given_up_while_its_shard_opens_changes_nothing_for_others() {
    let bucket = Bucket::new();
    create(&bucket, true).await;
    for nth in 1..=3 {
        let process = bucket.process();
        let writer = writer(&process).await;
        let region = format!("r{nth}");
        let gate = process.faults.on(Op::Create).path_contains("/manifest/").nth(nth).stall();
        let mut one = Box::pin(writer.put(rows(&[(&region, 1, 1)])));
        let mut two = Box::pin(writer.put(rows(&[(&region, 2, 2)])));
        soon("a manifest", async {
            tokio::select! {
                _ = &mut one => panic!("acknowledged without a shard"),
                _ = &mut two => panic!("overtook"),
                () = gate.reached() => {}
            }
        })
        .await;
        drop(one);
        gate.release();
        soon("the second", two).await.unwrap();
        let found = seen(writer.provider().await.unwrap()).await;
        assert_eq!(found, (1..=nth).map(|n| format!("r{n} 2 2")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn too_many_values_write_nothing() {
    let bucket = Bucket::new();
    let table = create(&bucket, true).await;
    let process = bucket.process();
    let limited = |max_shards| WriterConfig { max_shards, ..config() };
    let writer = process.table().await.writer(limited(3)).await.unwrap();
    process.faults.clear_log();
    let too_large = |result: Result<Written, Error>, actual| {
        let error = result.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotWritten);
        let text = error.to_string();
        let told =
            matches!(error, Error::TooLarge { actual: a, limit_name: "max_shards", limit: 3, .. } if a == actual);
        assert!(told, "{text}");
    };
    too_large(writer.put(rows(&[("a", 1, 1), ("b", 1, 1), ("c", 1, 1), ("d", 1, 1)])).await, 4);
    assert_eq!(process.faults.log().len(), 0, "nothing was asked of the store");
    writer.put(rows(&[("a", 1, 1), ("b", 1, 1)])).await.unwrap();
    too_large(writer.put(rows(&[("a", 1, 2), ("c", 1, 1), ("d", 1, 1)])).await, 4);
    writer.put(rows(&[("a", 1, 3), ("c", 1, 1)])).await.unwrap();
    assert_eq!(seen_elsewhere(&bucket).await, ["a 1 3", "b 1 1", "c 1 1"]);
    // A table that has more already is not opened, and nobody is fenced.
    let refused = table.writer(limited(2)).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { actual: 3, limit_name: "max_shards", limit: 2, .. }), "{refused}");
    writer.put(rows(&[("a", 1, 4)])).await.unwrap();
    assert!(matches!(table.writer(limited(0)).await, Err(Error::InvalidOptions(_))));
    // Flushing sends no row anywhere.
    table.flush(limited(1)).await.unwrap();
    assert_eq!(seen_elsewhere(&bucket).await, ["a 1 4", "b 1 1", "c 1 1"]);
}

fn is_fenced(error: &Error) -> bool {
    match error {
        Error::Wal(WalError::Fenced { .. }) => true,
        Error::ShardNotOpened { source, .. } => is_fenced(source),
        _ => false,
    }
}

#[tokio::test]
async fn of_two_writers_the_one_that_opens_a_shard_later_has_it() {
    let bucket = Bucket::new();
    create(&bucket, true).await;
    let (a, b) = (writer(&bucket.process()).await, writer(&bucket.process()).await);
    a.put(rows(&[("eu", 1, 1), ("us", 1, 1)])).await.unwrap();
    b.put(rows(&[("asia", 1, 1)])).await.unwrap();
    let expected = ["asia 1 1", "eu 1 1", "us 1 1"];
    for provider in [a.provider().await.unwrap(), b.provider().await.unwrap()] {
        assert_eq!(seen(provider).await, expected, "also what the other one made");
    }
    b.put(rows(&[("eu", 1, 2)])).await.unwrap();
    let error = a.put(rows(&[("eu", 1, 3)])).await.unwrap_err();
    assert!(is_fenced(&error) && error.outcome() == Outcome::NotWritten, "{error}");
    a.put(rows(&[("us", 1, 2)])).await.unwrap();
    // Now it knows that somebody replaces it: it keeps what it has and takes no more.
    let error = a.put(rows(&[("africa", 1, 1), ("us", 1, 3)])).await.unwrap_err();
    assert!(is_fenced(&error) && matches!(error, Error::ShardNotOpened { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert_eq!(seen_elsewhere(&bucket).await, ["asia 1 1", "eu 1 2", "us 1 2"]);
    b.put(rows(&[("eu", 1, 4)])).await.unwrap();
    b.close().await.unwrap();
    assert_eq!(seen_elsewhere(&bucket).await, ["asia 1 1", "eu 1 4", "us 1 2"]);
}

/// Two processes that both opened anew what the other one took would fence each other for ever.
#[tokio::test]
async fn a_shard_that_was_lost_while_it_was_opened_is_not_opened_again() {
    let bucket = Bucket::new();
    create(&bucket, true).await;
    let process = bucket.process();
    let (a, b) = (writer(&process).await, writer(&bucket.process()).await);
    // The shard's first manifest, the claim, the record.
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").nth(3).stall();
    let mut put = Box::pin(a.put(rows(&[("eu", 1, 1)])));
    soon("the record", async {
        tokio::select! {
            _ = &mut put => panic!("acknowledged without a record"),
            () = gate.reached() => {}
        }
    })
    .await;
    b.put(rows(&[("eu", 1, 2)])).await.unwrap();
    gate.release();
    let first = put.await.unwrap_err();
    process.faults.clear_log();
    let second = a.put(rows(&[("eu", 1, 3)])).await.unwrap_err();
    for error in [first, second] {
        assert!(is_fenced(&error) && error.outcome() == Outcome::NotWritten, "{error}");
        assert!(error.to_string().contains("for value `eu`"), "{error}");
    }
    assert_eq!(process.faults.log().len(), 0);
    b.put(rows(&[("eu", 1, 4)])).await.unwrap();
    assert_eq!(seen_elsewhere(&bucket).await, ["eu 1 4"]);
}

/// Whatever happened to the manifests of a new shard: the rows of the call are nowhere, and it can be repeated.
#[tokio::test]
async fn a_shard_that_cannot_be_opened_leaves_the_whole_call_unwritten() {
    for (nth, fault) in [(1, Fault::Fail), (2, Fault::Fail), (3, Fault::Fail), (2, Fault::LostAck), (3, Fault::LostAck)]
    {
        let bucket = Bucket::new();
        create(&bucket, true).await;
        let process = bucket.process();
        let writer = writer(&process).await;
        writer.put(rows(&[("us", 1, 1)])).await.unwrap();
        let rule = process.faults.on(Op::Create).path_contains("/manifest/").nth(nth).always().then(fault);
        // What has landed cannot be looked at either.
        let blind = process.faults.on(Op::Get).path_contains("/manifest/").nth(nth).always().then(Fault::Fail);
        let result = writer.put(rows(&[("us", 1, 2), ("eu", 1, 2)])).await;
        let case = format!("{fault:?} of manifest {nth}: {result:?}");
        let error = result.expect_err(&case);
        assert!(rule.fired() > 0 || blind.fired() > 0, "{case}");
        assert!(matches!(error, Error::ShardNotOpened { .. }), "{case}");
        assert_eq!(error.outcome(), Outcome::NotWritten, "{case}");
        assert_eq!(seen_elsewhere(&bucket).await, ["us 1 1"], "{case}");
        rule.cancel();
        blind.cancel();
        writer.put(rows(&[("us", 1, 3), ("eu", 1, 3)])).await.unwrap();
        assert_eq!(seen_elsewhere(&bucket).await, ["eu 1 3", "us 1 3"], "{case}");
    }
}

/// Dies at every request of a put that makes a shard, before it is sent and after it landed.
#[tokio::test]
async fn a_process_that_dies_while_it_makes_a_shard_leaves_a_table_that_opens() {
    for after in [false, true] {
        let mut deaths = 0;
        for nth in 1.. {
            let bucket = Bucket::new();
            create(&bucket, true).await;
            let process = bucket.process();
            let writer = Arc::new(writer(&process).await);
            writer.put(rows(&[("us", 1, 1)])).await.unwrap();
            let rule = process.faults.on(Op::Create).nth(nth);
            let gate = match after {
                false => rule.stall(),
                true => rule.stall_after(),
            };
            let mut putting = tokio::spawn({
                let writer = Arc::clone(&writer);
                async move { writer.put(rows(&[("eu", 1, 1)])).await }
            });
            let done = soon("the put", async {
                tokio::select! {
                    done = &mut putting => Some(done),
                    () = gate.reached() => None,
                }
            })
            .await;
            if let Some(done) = done {
                done.unwrap().unwrap();
                break;
            }
            putting.abort();
            let _ = putting.await;
            drop(writer);
            deaths += 1;
            let found = seen_elsewhere(&bucket).await;
            assert!(found == ["us 1 1"] || found == ["eu 1 1", "us 1 1"], "{after} {nth}: {found:?}");
            let next = bucket.table().await.writer(config()).await.unwrap();
            next.put(rows(&[("eu", 1, 2), ("us", 1, 2)])).await.unwrap();
            next.close().await.unwrap();
            assert_eq!(seen_elsewhere(&bucket).await, ["eu 1 2", "us 1 2"], "{after} {nth}");
        }
        assert!(deaths >= 5, "three manifests, a sentinel and an entry, but {deaths}");
    }
}

/// Fencepost's own shards need no LIST but the one of the table, and none of their manifests more than once.
#[tokio::test]
async fn finding_the_shards_costs_one_list() {
    for buckets in [1, 5] {
        let bucket = Bucket::new();
        crate::support::keyed(&bucket, buckets).await;
        let process = bucket.process();
        let table = process.table().await;
        process.faults.clear_log();
        assert_eq!(table.shard_ids().await.unwrap().len(), buckets as usize);
        let of_shards = |path: &str| path.contains("_mem_wal");
        let log = process.faults.log();
        let ops: Vec<_> = log.iter().filter(|r| of_shards(&r.path)).map(|r| (r.op, r.path.as_str())).collect();
        assert_eq!(ops, [(Op::List, "t/_mem_wal")]);
        process.faults.clear_log();
        table.provider().await.unwrap();
        let log = process.faults.log();
        assert_eq!(log.iter().filter(|r| r.op == Op::List && r.path == "t/_mem_wal").count(), 1);
    }
    let bucket = Bucket::new();
    create(&bucket, true).await;
    writer(&bucket.process()).await.put(rows(&[("eu", 1, 1), ("us", 1, 1), ("asia", 1, 1)])).await.unwrap();
    let process = bucket.process();
    let table = process.table().await;
    process.faults.clear_log();
    assert_eq!(table.shard_ids().await.unwrap().len(), 3);
    let log = process.faults.log();
    let count = |op| log.iter().filter(|r| r.op == op && r.path.contains("_mem_wal")).count();
    assert_eq!((count(Op::List), count(Op::Get)), (4, 3), "the table's, and each shard's manifest");
}
