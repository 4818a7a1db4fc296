//! Columns that somebody adds to the table while a writer is open, and other changes, which it cannot follow.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use fencepost::{CheckpointOptions, Error, MergeOptions, Sharding, WriterConfig};
use fencepost_sim::Op;
use futures::TryStreamExt;
use lance::dataset::transaction::{Operation, Transaction};
use lance::dataset::{ColumnAlteration, CommitBuilder, NewColumnTransform};
use lance_core::datatypes::Schema as LanceSchema;

use crate::interop::place::Place;
use crate::merge::merge;
use crate::support::*;

impl Place {
    /// Somebody adds a nullable column with plain Lance.
    async fn add_column(&self, name: &str) {
        let added = Arc::new(Schema::new(vec![Field::new(name, DataType::Utf8, true)]));
        let mut dataset = self.lance().await.dataset;
        dataset.add_columns(NewColumnTransform::AllNulls(added), None, None).await.unwrap();
    }

    /// Somebody adds a column that may not be null, by a commit of their own: Lance's calls refuse it.
    async fn add_column_without_nulls(&self, name: &str) {
        let dataset = self.lance().await.dataset;
        let added = Schema::new(vec![Field::new(name, DataType::Utf8, false)]);
        let mut added = LanceSchema::try_from(&added).unwrap().fields;
        added[0].id = dataset.manifest().max_field_id() + 1;
        let mut schema = dataset.schema().clone();
        schema.fields.extend(added);
        let fragments = dataset.manifest().fragments.to_vec();
        let operation = Operation::Merge { fragments, schema, preserves_nullability: false };
        let transaction = Transaction::new(dataset.version().version, operation, None);
        CommitBuilder::new(Arc::new(dataset)).execute(transaction).await.unwrap();
    }

    async fn alter(&self, change: ColumnAlteration) {
        self.lance().await.dataset.alter_columns(&[change]).await.unwrap();
    }

    async fn noted(&self) -> Vec<String> {
        noted(&self.table().await.provider().await.unwrap()).await
    }
}

/// The columns of [`schema`] and `note`.
fn noted_schema() -> SchemaRef {
    let mut fields: Vec<Field> = schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.push(Field::new("note", DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

/// Rows `(id, v)` with one note.
fn with_note(pairs: &[(i64, i64)], note: &str) -> RecordBatch {
    let mut columns = rows(pairs).columns().to_vec();
    let notes: ArrayRef = Arc::new(StringArray::from(vec![note; pairs.len()]));
    columns.push(notes);
    RecordBatch::try_new(noted_schema(), columns).unwrap()
}

/// Every row as `id v note`, sorted.
async fn noted(provider: &Arc<dyn TableProvider>) -> Vec<String> {
    let rows = sql(provider, "select id, v, note from t order by id, v, note").await;
    rows.iter().map(|row| row.join(" ")).collect()
}

fn cannot_follow(error: &Error, words: &str) {
    assert!(matches!(error, Error::SchemaChanged { .. }), "{error}");
    assert!(error.to_string().contains(words), "{error} does not say `{words}`");
}

#[tokio::test]
async fn a_writer_goes_on_with_the_columns_it_has_until_it_is_told() {
    let place = Place::new(true).await;
    let writer = place.table().await.writer(config()).await.unwrap();
    writer.put(rows(&[(1, 10)])).await.unwrap();
    place.add_column("note").await;
    writer.put(rows(&[(2, 20)])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(&[(3, 30)])).await.unwrap();
    let error = writer.put(with_note(&[(4, 40)], "x")).await.unwrap_err();
    assert!(error.to_string().contains("`note` is unknown"), "{error}");
    assert_eq!(pairs(writer.provider().await.unwrap()).await, [(1, Some(10)), (2, Some(20)), (3, Some(30))]);
    assert_eq!(writer.provider().await.unwrap().schema().fields().len(), 3);
    // Whoever reads the table has the column, in the SSTable and in the log.
    assert_eq!(place.noted().await, ["1 10 null", "2 20 null", "3 30 null"]);
    assert!(place.table().await.verify(|_| {}).await.unwrap().findings.is_empty());
}

/// Rows in every place where they can be when the column comes: merged, in an SSTable, frozen, in the MemTable.
#[tokio::test]
async fn rows_of_before_have_nulls_wherever_they_are() {
    for keyed in [true, false] {
        let place = Place::new(keyed).await;
        let process = place.process();
        let table = process.table().await;
        let writer = table.writer(config()).await.unwrap();
        for id in [1, 2] {
            writer.put(rows(&[(id, 10)])).await.unwrap();
            writer.flush().await.unwrap();
            if id == 1 {
                merge(&place.table().await).await;
            }
        }
        writer.put(rows(&[(3, 10)])).await.unwrap();
        let gate = process.faults.on_any(Op::WRITES).path_contains("_gen_").stall();
        writer.force_freeze().unwrap();
        soon("the flush", gate.reached()).await;
        writer.put(rows(&[(4, 10)])).await.unwrap();
        place.add_column("note").await;
        assert_eq!(writer.refresh_schema().await.unwrap(), ["note"]);
        assert_eq!(writer.refresh_schema().await.unwrap(), Vec::<String>::new());
        assert_eq!(writer.schema(), noted_schema());
        let error = writer.put(rows(&[(9, 9)])).await.unwrap_err();
        assert!(error.to_string().contains("`note` is missing"), "{error}");
        writer.put(with_note(&[(5, 10)], "x")).await.unwrap();
        let mut expected = vec!["1 10 null", "2 10 null", "3 10 null", "4 10 null", "5 10 x"];
        assert_eq!(noted(&writer.provider().await.unwrap()).await, expected);
        assert_eq!(place.noted().await, expected, "from the log");
        if keyed {
            // Every old row is replaced, or deleted, by one with the new column.
            writer.put(with_note(&[(1, 11), (2, 11), (3, 11)], "y")).await.unwrap();
            writer.delete(keys(&[4])).await.unwrap();
            expected = vec!["1 11 y", "2 11 y", "3 11 y", "5 10 x"];
        }
        assert_eq!(noted(&writer.provider().await.unwrap()).await, expected);
        let provider = writer.provider().await.unwrap();
        let nulls = expected.iter().filter(|row| row.ends_with("null")).count() as i64;
        assert_eq!(number(&provider, "select count(*) from t where note is null").await, nulls);
        assert_eq!(number(&provider, "select count(*) from t where note = 'x' and v = 10").await, 1);
        assert_eq!(
            number(&provider, "select count(*) from t where note is null or v > 0").await,
            expected.len() as i64
        );
        gate.release();
        soon("the flush", writer.flush()).await.unwrap();
        assert_eq!(place.noted().await, expected, "from SSTables");
        let provider = place.table().await.provider().await.unwrap();
        assert_eq!(number(&provider, "select count(*) from t where note is null").await, nulls);
        assert_eq!(place.manifest().await.sstables.len(), 5, "four of before, one of now");
        assert!(place.table().await.verify(|_| {}).await.unwrap().findings.is_empty());
        merge(&place.table().await).await;
        assert_eq!(place.noted().await, expected, "from the base table");
        let dataset = place.lance().await.dataset;
        assert_eq!(dataset.count_rows(Some("note is null".to_owned())).await.unwrap(), nulls as usize);
        writer.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_log_of_before_and_after_is_replayed() {
    for config_of in [config, WriterConfig::wal_only] {
        let place = Place::new(true).await;
        let writer = place.ours(config_of()).await;
        writer.put(rows(&[(1, 10), (2, 10)])).await.unwrap();
        place.add_column("note").await;
        assert_eq!(writer.refresh_schema().await.unwrap(), ["note"]);
        writer.put(with_note(&[(2, 20)], "x")).await.unwrap();
        place.add_column("more").await;
        writer.abort().await;
        drop(writer);
        let expected = ["1 10 null", "2 20 x"];
        assert_eq!(place.noted().await, expected);
        let next = place.ours(config()).await;
        assert_eq!(next.schema().fields().len(), 5);
        let found: Vec<RecordBatch> = next.scan().await.unwrap().try_collect().await.unwrap();
        assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
        next.flush().await.unwrap();
        assert_eq!(place.noted().await, expected);
        merge(&place.table().await).await;
        assert_eq!(place.noted().await, expected);
    }
}

/// I8: rows in flight, queued rows and rows that come behind the change keep their order, each with its own columns.
#[tokio::test]
async fn calls_under_way_when_the_columns_change_keep_their_place() {
    for durable in [true, false] {
        for with_memtable in [true, false] {
            let place = Place::new(true).await;
            let process = place.process();
            let mode = if with_memtable { config() } else { WriterConfig::wal_only() };
            let mut config = WriterConfig { durable, ..mode };
            config.wal.max_in_flight = 1;
            let writer = process.writer(config).await;
            let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
            let sent = writer.put_no_wait(rows(&[(1, 10), (2, 10), (3, 10)])).await.unwrap();
            soon("the PUT", gate.reached()).await;
            let queued = writer.put_no_wait(rows(&[(1, 20), (2, 20)])).await.unwrap();
            place.add_column("note").await;
            assert_eq!(writer.refresh_schema().await.unwrap(), ["note"]);
            let behind = writer.put_no_wait(with_note(&[(1, 30)], "x")).await.unwrap();
            let expected = ["1 30 x", "2 20 null", "3 10 null"];
            if with_memtable && !durable {
                // What is not sent yet is seen all the same.
                let seen = writer.scan().await.unwrap().try_collect::<Vec<_>>().await.unwrap();
                assert_eq!(seen.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
            }
            gate.release();
            soon("all rows", async { tokio::try_join!(sent, queued, behind) }).await.unwrap();
            assert_eq!(place.noted().await, expected);
            assert_eq!(writer.stats().wal.entries, 3, "an entry has one schema");
            if with_memtable {
                writer.flush().await.unwrap();
                assert_eq!(place.noted().await, expected);
            }
        }
    }
}

#[tokio::test]
async fn a_shard_that_is_opened_behind_the_change_has_the_new_columns() {
    let place = Place::sharded(true, Sharding::Identity { column: "id".into() }).await;
    let writer = place.table().await.writer(config()).await.unwrap();
    writer.put(rows(&[(1, 10)])).await.unwrap();
    place.add_column("note").await;
    // One that is opened before the writer is told takes what the writer takes.
    writer.put(rows(&[(2, 10)])).await.unwrap();
    assert_eq!(writer.refresh_schema().await.unwrap(), ["note"]);
    writer.put(with_note(&[(1, 20), (2, 20), (3, 20)], "x")).await.unwrap();
    let expected = ["1 20 x", "2 20 x", "3 20 x"];
    assert_eq!(noted(&writer.provider().await.unwrap()).await, expected);
    writer.flush().await.unwrap();
    assert_eq!(place.noted().await, expected);
}

/// A handle of before the change reads what a writer of behind it has written.
#[tokio::test]
async fn rows_with_new_columns_are_read_through_an_older_handle() {
    let place = Place::sharded(true, Sharding::Identity { column: "id".into() }).await;
    let writer = place.table().await.writer(config()).await.unwrap();
    writer.put(rows(&[(1, 10)])).await.unwrap();
    let stale = place.table().await;
    place.add_column("note").await;
    let other = place.table().await.writer(config()).await.unwrap();
    other.put(with_note(&[(2, 20)], "x")).await.unwrap();
    drop(other);
    assert_eq!(noted(&stale.provider().await.unwrap()).await, ["1 10 null", "2 20 x"]);
    assert_eq!(pairs(stale.provider().await.unwrap()).await, [(1, Some(10)), (2, Some(20))]);
    drop(writer);
}

#[tokio::test]
async fn changes_that_nobody_can_follow_are_named() {
    // Lance itself refuses to give a column another type, and to add one that has values, while there is a MemWAL.
    let changes = [
        ("renamed", "column `v` is called `w` now"),
        ("replaced", "`v` was replaced by another one of that name, or got another type"),
        ("dropped", "column `v` was dropped"),
    ];
    for (what, words) in changes {
        let place = Place::new(true).await;
        let table = place.table().await;
        let writer = table.writer(config()).await.unwrap();
        writer.put(rows(&[(1, 10)])).await.unwrap();
        writer.flush().await.unwrap();
        writer.put(rows(&[(2, 20)])).await.unwrap();
        let renamed = what == "renamed";
        match renamed {
            true => place.alter(ColumnAlteration::new("v".to_owned()).rename("w".to_owned())).await,
            false => place.lance().await.dataset.drop_columns(&["v"]).await.unwrap(),
        }
        if what == "replaced" {
            place.add_column("v").await;
        }
        cannot_follow(&writer.refresh_schema().await.unwrap_err(), words);
        cannot_follow(&writer.shards()[0].refresh_schema().await.unwrap_err(), words);
        cannot_follow(&writer.provider().await.err().unwrap(), words);
        // Nothing that it takes is lost by that.
        writer.put(rows(&[(3, 30)])).await.unwrap();
        // Readers, and whoever opens the table, meet the log.
        cannot_follow(&place.table().await.provider().await.err().unwrap(), "log entry");
        cannot_follow(&place.table().await.writer(config()).await.unwrap_err(), "`v`");
        if renamed {
            let once = MergeOptions { attempts: 1, ..crate::merge::options() };
            cannot_follow(&place.table().await.merge(&once, |_| {}).await.unwrap_err(), words);
            place.alter(ColumnAlteration::new("w".to_owned()).rename("v".to_owned())).await;
            assert_eq!(place.seen().await, [(1, Some(10)), (2, Some(20)), (3, Some(30))], "undone");
            merge(&place.table().await).await;
            place.ours(config()).await.close().await.unwrap();
            assert_eq!(place.seen().await, [(1, Some(10)), (2, Some(20)), (3, Some(30))]);
        }
    }
}

/// The rows that a merge has read were those of a column that is no more.
#[tokio::test]
async fn a_column_that_is_replaced_by_its_like_during_a_merge_does_not_get_the_values_of_before() {
    let place = Place::new(true).await;
    let writer = place.ours(config()).await;
    writer.put(rows(&[(1, 10)])).await.unwrap();
    writer.flush().await.unwrap();
    let process = place.process();
    let gate = process.faults.on(Op::Create).path_contains("_versions/").stall();
    let merger = process.merger();
    soon("the merger's commit", gate.reached()).await;
    let mut dataset = place.lance().await.dataset;
    dataset.drop_columns(&["v"]).await.unwrap();
    let same = Arc::new(Schema::new(vec![Field::new("v", DataType::Int64, true)]));
    dataset.add_columns(NewColumnTransform::AllNulls(same), None, None).await.unwrap();
    gate.release();
    let error = soon("the merger", merger).await.unwrap().unwrap_err();
    cannot_follow(&error, "it was replaced by another one of that name");
    assert_eq!(place.lance().await.dataset.count_rows(None).await.unwrap(), 0);
}

#[tokio::test]
async fn a_column_that_may_not_be_null_cannot_be_followed() {
    let place = Place::new(true).await;
    let writer = place.ours(config()).await;
    writer.put(rows(&[(1, 10)])).await.unwrap();
    writer.flush().await.unwrap();
    place.add_column_without_nulls("must").await;
    cannot_follow(&writer.refresh_schema().await.unwrap_err(), "column `must` was added and may not be null");
    let provider = place.table().await.provider().await.unwrap();
    let error = try_sql(&provider, "select must from t").await.unwrap_err().to_string();
    assert!(error.contains("column `must` was added since"), "in an SSTable: {error}");
    writer.put(rows(&[(2, 20)])).await.unwrap();
    let error = place.table().await.provider().await.err().unwrap();
    cannot_follow(&error, "column `must` was added since");
}

/// Another column of the same name: what was written to the first one is not taken for values of the second.
#[tokio::test]
async fn a_column_that_was_dropped_and_added_again_is_another_one() {
    for flushed in [true, false] {
        let place = Place::new(true).await;
        let writer = place.ours(config()).await;
        writer.put(rows(&[(1, 10)])).await.unwrap();
        if flushed {
            writer.flush().await.unwrap();
        }
        drop(writer);
        let mut dataset = place.lance().await.dataset;
        dataset.drop_columns(&["s"]).await.unwrap();
        // An id is given again if it was the highest.
        place.add_column("other").await;
        place.add_column("s").await;
        let answer = match place.table().await.provider().await {
            Ok(provider) => try_sql(&provider, "select s from t").await.unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(answer.contains("columns of the table were changed"), "{answer}");
    }
}

/// A reader, and whoever makes a checkpoint, has read the base table before the column came, and meets rows that have it.
#[tokio::test]
async fn a_moment_has_the_columns_of_all_its_rows() {
    for checkpointing in [true, false] {
        let place = Place::new(true).await;
        let writer = place.table().await.writer(config()).await.unwrap();
        writer.put(rows(&[(1, 10)])).await.unwrap();
        let process = place.process();
        let table = process.table().await;
        let gate = process.faults.on(Op::List).path_contains("_mem_wal").stall();
        let looking = tokio::spawn(async move {
            match checkpointing {
                true => {
                    let made = table.checkpoint(&CheckpointOptions::default()).await.unwrap();
                    noted(&table.provider_at(made.id).await.unwrap()).await
                }
                false => noted(&table.provider().await.unwrap()).await,
            }
        });
        soon("the LIST of the shards", gate.reached()).await;
        place.add_column("note").await;
        writer.refresh_schema().await.unwrap();
        writer.put(with_note(&[(2, 20)], "x")).await.unwrap();
        gate.release();
        assert_eq!(soon("the reader", looking).await.unwrap(), ["1 10 null", "2 20 x"]);
    }
}
