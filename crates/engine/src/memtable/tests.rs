#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::ops::Range;

use arrow_array::builder::{ListBuilder, StringViewBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Int32Type, Int64Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Date32Array, FixedSizeListArray, Float32Array, Int32Array, Int64Array, ListArray,
    StringArray, StructArray,
};
use arrow_schema::{DataType, Field, Schema};
use proptest::prelude::*;
use proptest::sample::Index;

use super::batch_store::batch_bytes;
use super::*;
use crate::key::tests::AllCollide;

/// A key of three columns of different types, which stand in another order in the schema.
type Key = (i64, String, i32);

#[derive(Debug, Clone, PartialEq)]
struct Row {
    key: Key,
    value: Option<i32>,
    tombstone: bool,
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("day", DataType::Date32, false),
        Field::new("value", DataType::Int32, true),
        Field::new("name", DataType::Utf8, false),
        Field::new("id", DataType::Int64, false),
        Field::new("_tombstone", DataType::Boolean, false),
    ]))
}

fn encoder() -> KeyEncoder {
    KeyEncoder::try_new(&schema(), &["id".into(), "name".into(), "day".into()]).unwrap()
}

fn columns(rows: &[Row]) -> Vec<ArrayRef> {
    vec![
        Arc::new(Date32Array::from_iter_values(rows.iter().map(|r| r.key.2))),
        Arc::new(rows.iter().map(|r| r.value).collect::<Int32Array>()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.key.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.key.0))),
        Arc::new(rows.iter().map(|r| Some(r.tombstone)).collect::<BooleanArray>()),
    ]
}

fn batch(rows: &[Row]) -> RecordBatch {
    RecordBatch::try_new(schema(), columns(rows)).unwrap()
}

fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let values = batch.column(1).as_primitive::<Int32Type>();
    (0..batch.num_rows())
        .map(|i| Row {
            key: (
                batch.column(3).as_primitive::<Int64Type>().value(i),
                batch.column(2).as_string::<i32>().value(i).to_string(),
                batch.column(0).as_primitive::<Date32Type>().value(i),
            ),
            value: values.is_valid(i).then(|| values.value(i)),
            tombstone: batch.column(4).as_boolean().value(i),
        })
        .collect()
}

fn all_rows(batches: &[RecordBatch]) -> Vec<Row> {
    batches.iter().flat_map(rows_of).collect()
}

fn encode(row: &Row) -> Keys {
    encoder().encode(&batch(std::slice::from_ref(row))).unwrap()
}

fn row(id: i64, value: i32) -> Row {
    Row { key: (id, String::new(), 0), value: Some(value), tombstone: false }
}

fn keyed() -> MemTable {
    MemTable::new(schema(), Some(encoder()), Generation::new(1))
}

fn keyless() -> MemTable {
    MemTable::new(schema(), None, Generation::new(1))
}

/// The newest row of each key, in insert order.
fn newest(rows: &[Row]) -> Vec<Row> {
    let last: HashMap<&Key, usize> = rows.iter().enumerate().map(|(i, r)| (&r.key, i)).collect();
    rows.iter().enumerate().filter(|(i, r)| last[&r.key] == *i).map(|(_, r)| r.clone()).collect()
}

fn any_row() -> impl Strategy<Value = Row> {
    let key = (-2i64..3, "[ab\u{0}]{0,1}", 0i32..2);
    (key, any::<Option<i32>>(), prop::bool::weighted(0.3)).prop_map(|(key, value, tombstone)| Row {
        key,
        value,
        tombstone,
    })
}

/// One entry: batches of rows; and whether a snapshot is taken after it.
fn any_entry() -> impl Strategy<Value = (Vec<Vec<Row>>, bool)> {
    (prop::collection::vec(prop::collection::vec(any_row(), 0..8), 0..4), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn snapshots_stay_exact_while_the_memtable_grows(
        entries in prop::collection::vec(any_entry(), 1..40), asked in prop::collection::vec(any_row(), 10)
    ) {
        let (keyed, keyless) = (keyed(), keyless());
        let mut applied: Vec<Row> = vec![];
        let mut snapshots = vec![];
        for (i, (entry, take)) in entries.iter().enumerate() {
            let batches: Vec<_> = entry.iter().map(|rows| batch(rows)).collect();
            let position = Position::new(i as u64 * 2 + 5);
            keyed.apply(position, &batches).unwrap();
            keyless.apply(position, &batches).unwrap();
            applied.extend(entry.iter().flatten().cloned());
            if *take {
                snapshots.push((applied.len(), keyed.snapshot(), keyless.snapshot()));
            }
        }
        prop_assert_eq!(keyed.rows(), applied.len());
        prop_assert_eq!(all_rows(&keyed.for_flush().unwrap()), newest(&applied));
        prop_assert_eq!(&all_rows(&keyless.for_flush().unwrap()), &applied);

        let asked: Vec<Key> = applied.iter().chain(&asked).map(|r| r.key.clone()).collect();
        let asked_rows: Vec<_> = asked.iter().map(|k| Row { key: k.clone(), value: None, tombstone: false }).collect();
        let asked_keys = encoder().encode(&batch(&asked_rows)).unwrap();
        for (count, keyed, keyless) in snapshots {
            let moment = &applied[..count];
            prop_assert_eq!(keyed.rows(), count);
            prop_assert_eq!(all_rows(&keyed.live_batches().unwrap()), newest(moment));
            prop_assert_eq!(&all_rows(&keyless.live_batches().unwrap()), moment);
            let values: usize = keyed.live_columns(&[1]).unwrap().iter().map(|b| b.num_rows()).sum();
            prop_assert_eq!(values, newest(moment).len());

            let members = keyed.contains_keys(&asked_keys);
            prop_assert_eq!(keyless.contains_keys(&asked_keys).count_set_bits(), 0);
            let found: Vec<usize> =
                keyed.newest_rows(asked_keys.iter()).into_iter().flatten().collect();
            let expected = asked.iter().filter_map(|key| moment.iter().rev().find(|row| row.key == *key).cloned());
            prop_assert_eq!(rows_of(&keyed.take(&found, &[0, 1, 2, 3, 4]).unwrap()), expected.collect::<Vec<_>>());
            prop_assert!(keyed.take(&[count], &[0]).is_err());
            for (i, key) in asked.iter().enumerate() {
                let expected = moment.iter().rev().find(|r| r.key == *key);
                prop_assert_eq!(members.value(i), expected.is_some());
            }
        }
    }

    #[test]
    fn the_index_is_exact_at_every_watermark_whatever_the_hasher(
        keys in prop::collection::vec(prop::collection::vec(0u8..3, 0..3), 0..60), at in any::<Index>(), from in any::<Index>()
    ) {
        fn check<S: BuildHasher>(mut index: PkIndex<S>, keys: &[Vec<u8>], watermark: usize, range: Range<usize>) {
            keys.iter().for_each(|key| index.push(key));
            let before = &keys[..watermark];
            for key in keys {
                assert_eq!(index.contains(key, watermark), before.contains(key));
                assert_eq!(index.newest_of(key, watermark), before.iter().rposition(|known| known == key));
            }
            assert!(!index.contains(b"never written", watermark));
            let newest: Vec<bool> = range.clone().map(|i| !before[i + 1..].contains(&before[i])).collect();
            assert_eq!(index.newest(range, watermark).iter().collect::<Vec<_>>(), newest);
        }
        let watermark = at.index(keys.len() + 1);
        let from = from.index(watermark + 1);
        check(PkIndex::new(), &keys, watermark, from..watermark);
        check(PkIndex::with_hasher(AllCollide), &keys, watermark, from..watermark);
    }

    #[test]
    fn a_view_shares_chunks_and_stays_as_it_is(sizes in prop::collection::vec(0usize..4, 0..300), at in any::<Index>()) {
        let mut store = BatchStore::default();
        let mut next = 0;
        let mut views = vec![];
        let cut = at.index(sizes.len() + 1);
        for (i, size) in sizes.iter().enumerate() {
            if i == cut {
                views.push((next, store.view()));
            }
            store.push(batch(&(next..next + size).map(|n| row(n as i64, 0)).collect::<Vec<_>>()));
            next += size;
        }
        prop_assert_eq!(store.batches(), sizes.iter().filter(|s| **s > 0).count());
        views.push((next, store.view()));
        for (rows, view) in views {
            prop_assert_eq!(view.rows(), rows);
            let ids = view.iter().flat_map(|s| rows_of(&s.batch)).map(|r| r.key.0 as usize);
            prop_assert!(ids.eq(0..rows));
        }
    }
}

#[test]
fn an_entry_is_applied_as_a_whole_or_not_at_all() {
    let table = keyed();
    table.apply(Position::new(1), &[batch(&[row(1, 10)])]).unwrap();

    let mut fields: Vec<Field> = schema().fields().iter().map(|f| f.as_ref().clone()).collect();
    fields[2] = Field::new("name", DataType::Utf8, true);
    let mut nulls = columns(&[row(2, 0), row(3, 0)]);
    nulls[2] = Arc::new(StringArray::from(vec![Some(""), None]));
    let with_null = RecordBatch::try_new(Arc::new(Schema::new(fields)), nulls).unwrap();
    let without_column = batch(&[row(2, 0)]).project(&[0, 1, 2, 3]).unwrap();

    for bad in [with_null, without_column] {
        let error = table.apply(Position::new(2), &[batch(&[row(1, 11), row(2, 0)]), bad]).unwrap_err();
        assert!(matches!(error, Error::InvalidBatch(_)), "{error}");
        assert_eq!((table.rows(), table.batches()), (1, 1));
        assert!(!table.snapshot().contains_keys(&encode(&row(2, 0))).value(0));
        assert_eq!(all_rows(&table.for_flush().unwrap()), [row(1, 10)]);
    }
}

#[test]
fn a_null_in_a_key_is_refused_also_where_the_schema_would_allow_it() {
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
    let keys = KeyEncoder::try_new(&schema, &["id".into()]).unwrap();
    let table = MemTable::new(schema.clone(), Some(keys), Generation::new(1));
    let batch = RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![Some(1), None]))]).unwrap();
    let error = table.apply(Position::new(1), &[batch]).unwrap_err();
    assert!(error.to_string().contains("`id` is null in row 1"), "{error}");
    assert!(table.is_empty());
}

#[test]
fn entries_are_applied_in_log_order_and_once() {
    let table = keyed();
    table.apply(Position::new(4), &[batch(&[row(1, 1)])]).unwrap();
    for position in [3, 4] {
        let error = table.apply(Position::new(position), &[batch(&[row(1, 2)])]).unwrap_err();
        assert!(error.to_string().contains("behind entry 4"), "{error}");
    }
    assert_eq!(table.rows(), 1);
}

#[test]
fn an_entry_without_rows_leaves_nothing_behind() {
    let table = keyed();
    table.apply(Position::new(7), &[]).unwrap();
    table.apply(Position::new(8), &[batch(&[])]).unwrap();
    assert_eq!((table.is_empty(), table.batches(), table.bytes()), (true, 0, 0));
    assert!(table.for_flush().unwrap().is_empty());
}

#[test]
fn the_metadata_of_a_log_entry_does_not_reach_the_rows() {
    let table = keyed();
    let metadata = HashMap::from([("writer_epoch".to_string(), "3".to_string())]);
    let entry_schema = Arc::new(schema().as_ref().clone().with_metadata(metadata));
    let entry = RecordBatch::try_new(entry_schema, columns(&[row(1, 1)])).unwrap();
    table.apply(Position::new(1), std::slice::from_ref(&entry)).unwrap();
    let live = table.snapshot().live_batches().unwrap();
    assert_eq!(live[0].schema(), schema());
    assert!(Arc::ptr_eq(live[0].column(0), entry.column(0)), "buffers are shared");
}

#[test]
fn flush_batches_are_bounded_and_filled() {
    let table = keyed();
    let mut id = 0;
    for (position, size) in (1..).zip([1usize, 2, 20_000, 5, 8_192, 3, 3]) {
        let rows: Vec<Row> = (id..id + size as i64).map(|id| row(id, 0)).collect();
        id += size as i64;
        table.apply(Position::new(position), &[batch(&rows)]).unwrap();
    }
    let flushed = table.for_flush().unwrap();
    assert!(flushed.iter().all(|b| b.num_rows() <= snapshot::FLUSH_BATCH_ROWS));
    assert!(flushed.len() <= 7, "{}", flushed.len());
    let ids: Vec<i64> = all_rows(&flushed).iter().map(|r| r.key.0).collect();
    assert!(ids.into_iter().eq(0..id));
}

#[test]
fn readers_see_whole_entries_while_the_writer_goes_on() {
    const KEYS: i64 = 50;
    let table = keyed();
    let last = encode(&row(KEYS - 1, 0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 1..=300 {
                let halves = [0..KEYS / 2, KEYS / 2..KEYS];
                let entry = halves.map(|ids| batch(&ids.map(|id| row(id, n)).collect::<Vec<_>>()));
                table.apply(Position::new(n as u64), &entry).unwrap();
            }
        });
        loop {
            let done = writer.is_finished();
            let snapshot = table.snapshot();
            let n = i32::try_from(snapshot.rows() as i64 / KEYS).unwrap();
            if n > 0 {
                let live = all_rows(&snapshot.live_batches().unwrap());
                assert_eq!(live, (0..KEYS).map(|id| row(id, n)).collect::<Vec<_>>());
                assert!(snapshot.contains_keys(&last).value(0));
            }
            if done {
                break;
            }
        }
    });
}

#[test]
fn snapshots_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<MemTable>();
    shared::<MemTableSnapshot>();
}

#[test]
fn a_slice_counts_only_its_own_bytes() {
    let texts: Vec<String> = (0..10_000).map(|n| format!("a text that is not stored inline {n}")).collect();
    let mut views = StringViewBuilder::new();
    texts.iter().for_each(|t| views.append_value(t));
    let mut lists = ListBuilder::new(arrow_array::builder::Int64Builder::new());
    (0..10_000).for_each(|n| lists.append_value([Some(n), None, Some(n)]));
    let lists: ListArray = lists.finish();
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let vectors = FixedSizeListArray::new(item, 4, Arc::new(Float32Array::from(vec![0.5; 40_000])), None);
    let strings: ArrayRef = Arc::new(StringArray::from(texts));
    let structs = StructArray::from(vec![(Arc::new(Field::new("s", DataType::Utf8, false)), strings.clone())]);
    let all: [ArrayRef; 5] = [strings, Arc::new(views.finish()), Arc::new(lists), Arc::new(vectors), Arc::new(structs)];
    for array in all {
        let name = array.data_type().to_string();
        let batch = RecordBatch::try_from_iter([("c", array)]).unwrap();
        let (whole, part) = (batch_bytes(&batch), batch_bytes(&batch.slice(5_000, 100)));
        assert!(whole >= 10_000 * 16, "{name}: {whole}");
        assert!(part < whole / 80 && part > whole / 125, "{name}: {part} of {whole}");
        assert_eq!(batch_bytes(&batch.slice(0, 0)), 0);
    }
}
