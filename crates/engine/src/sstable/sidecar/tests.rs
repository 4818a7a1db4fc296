#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int8Type, UInt64Type};
use arrow_array::*;
use arrow_buffer::i256;
use arrow_schema::{DataType, Field, Schema};
use datafusion::common::ScalarValue;
use fencepost_wal::{Generation, Store};
use lance::dataset::mem_wal::scanner::exec::{compute_pk_hash_from_scalars, is_supported_pk_type};
use lance::dataset::mem_wal::write::IndexStore;
use lance_core::utils::bloomfilter::sbbf::Sbbf;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::base::BaseTable;
use crate::sharding::Sharding;
use crate::sstable::{self, Card};

/// Numbers with the edges of their types, no two the same modulo 128, in no order.
fn numbers() -> Vec<i64> {
    (0..100i64).map(|n| (n * 37) % 101 - 50).collect()
}

/// A column of every type that a key may have, with the values that [`numbers`] stand for.
fn columns(numbers: &[i64]) -> Vec<ArrayRef> {
    fn of<T: ArrowPrimitiveType>(numbers: &[i64], convert: impl Fn(i64) -> T::Native) -> PrimitiveArray<T> {
        numbers.iter().map(|n| Some(convert(*n))).collect()
    }
    use arrow_array::types::*;
    // Longer than a word, with zeros inside, prefixes of each other.
    let bytes = |n: &i64| [vec![0; (n + 50) as usize % 3], format!("key {n}").into_bytes(), vec![0]].concat();
    let text = |n: &i64| format!("{}\0ключ {n:04}", "x".repeat((n + 50) as usize % 20));
    let far = |n: i64| n * (i64::MAX / 64);
    let dictionary: DictionaryArray<Int8Type> =
        numbers.iter().map(text).collect::<Vec<_>>().iter().map(|t| Some(t.as_str())).collect();
    vec![
        Arc::new(of::<Int8Type>(numbers, |n| n as i8)),
        Arc::new(of::<Int16Type>(numbers, |n| (n * 300) as i16)),
        Arc::new(of::<Int32Type>(numbers, |n| (n * 20_000_000) as i32)),
        Arc::new(of::<Int64Type>(numbers, far)),
        Arc::new(of::<UInt8Type>(numbers, |n| (n + 128) as u8)),
        Arc::new(of::<UInt16Type>(numbers, |n| (n * 600) as u16)),
        Arc::new(of::<UInt32Type>(numbers, |n| (n * 40_000_000) as u32)),
        Arc::new(of::<UInt64Type>(numbers, |n| far(n) as u64)),
        Arc::new(of::<Date32Type>(numbers, |n| (n * 20_000_000) as i32)),
        Arc::new(of::<Date64Type>(numbers, |n| if n == 0 { i64::MIN } else { far(n) })),
        Arc::new(of::<Time32SecondType>(numbers, |n| (n + 50) as i32)),
        Arc::new(of::<Time32MillisecondType>(numbers, |n| (n + 50) as i32)),
        Arc::new(of::<Time64MicrosecondType>(numbers, |n| n + 50)),
        Arc::new(of::<Time64NanosecondType>(numbers, |n| n + 50)),
        Arc::new(of::<TimestampSecondType>(numbers, far)),
        Arc::new(of::<TimestampMillisecondType>(numbers, |n| n)),
        Arc::new(of::<TimestampMicrosecondType>(numbers, far).with_timezone("Europe/Zurich")),
        Arc::new(of::<TimestampNanosecondType>(numbers, far).with_timezone("+02:00")),
        Arc::new(of::<DurationSecondType>(numbers, far)),
        Arc::new(of::<DurationNanosecondType>(numbers, far)),
        Arc::new(of::<Decimal128Type>(numbers, |n| i128::from(n) << 90).with_precision_and_scale(38, 5).unwrap()),
        Arc::new(
            of::<Decimal256Type>(numbers, |n| i256::from_i128(i128::from(n) << 100).wrapping_mul(i256::from_i128(99)))
                .with_precision_and_scale(76, -2)
                .unwrap(),
        ),
        Arc::new(numbers.iter().map(text).map(Some).collect::<StringArray>()),
        Arc::new(numbers.iter().map(text).map(Some).collect::<LargeStringArray>()),
        Arc::new(numbers.iter().map(bytes).map(Some).collect::<BinaryArray>()),
        Arc::new(numbers.iter().map(bytes).map(Some).collect::<LargeBinaryArray>()),
        Arc::new(FixedSizeBinaryArray::try_from_iter(numbers.iter().map(|n| far(*n).to_le_bytes())).unwrap()),
        Arc::new(dictionary),
    ]
}

fn batch(columns: Vec<ArrayRef>) -> RecordBatch {
    let named = columns.into_iter().zip('a'..).map(|(column, name)| (name.to_string(), column));
    RecordBatch::try_from_iter(named).unwrap()
}

fn names(batch: &RecordBatch) -> Vec<String> {
    batch.schema().fields().iter().map(|field| field.name().clone()).collect()
}

/// Keys of one column of every type, and of two and three columns. The first column of those takes only two values.
fn keys() -> Vec<RecordBatch> {
    let numbers = numbers();
    let halves: Vec<i64> = numbers.iter().map(|n| n % 2).collect();
    let single = columns(&numbers).into_iter().map(|column| batch(vec![column]));
    let pairs = columns(&halves).into_iter().zip(columns(&numbers)).map(|(a, b)| batch(vec![a, b]));
    let flags: BooleanArray = numbers.iter().map(|n| Some(n % 3 == 0)).collect();
    let flagged = columns(&halves).into_iter().zip(columns(&numbers));
    let flagged = flagged.map(|(a, b)| batch(vec![a, Arc::new(flags.clone()), b]));
    let flag_alone = batch(vec![Arc::new(BooleanArray::from(vec![true, false]))]);
    single.chain(pairs).chain(flagged).chain([flag_alone]).collect()
}

/// The sidecars of the rows, given in three batches.
async fn sidecars(rows: &RecordBatch) -> Sidecars {
    let cut = rows.num_rows() / 3;
    let batches = [rows.slice(0, cut), rows.slice(cut, cut), rows.slice(2 * cut, rows.num_rows() - 2 * cut)];
    Sidecars::of(&rows.schema(), &batches, &names(rows)).await.unwrap()
}

fn positions(pages: &[RecordBatch]) -> Vec<u64> {
    pages.iter().flat_map(|page| page.column(1).as_primitive::<UInt64Type>().values().to_vec()).collect()
}

/// Lance's own page batches of the same rows.
fn lances(rows: &RecordBatch) -> Vec<RecordBatch> {
    let columns: Vec<(String, i32)> = names(rows).into_iter().zip(0..).collect();
    let mut index = IndexStore::new();
    index.enable_pk_index(&columns);
    index.insert(rows, 0).unwrap();
    index.pk_training_batches(8192).unwrap()
}

fn encodable(data_type: &DataType) -> bool {
    is_supported_pk_type(data_type)
        || matches!(data_type, DataType::Date32 | DataType::Date64 | DataType::FixedSizeBinary(_))
}

#[tokio::test]
async fn the_index_is_what_lance_makes_of_the_same_keys() {
    let mut compared = 0;
    for rows in keys() {
        let ours = sidecars(&rows).await.index;
        if !rows.columns().iter().all(|column| encodable(column.data_type())) {
            continue;
        }
        compared += 1;
        assert_eq!(ours, lances(&rows), "{:?}", rows.schema());
    }
    assert!(compared > 40, "{compared} of the kinds of keys are Lance's");
}

#[tokio::test]
async fn the_index_orders_every_kind_of_key_and_knows_where_it_is() {
    for rows in keys() {
        let Sidecars { index, .. } = sidecars(&rows).await;
        let positions = positions(&index);
        assert_eq!(positions.iter().collect::<HashSet<_>>().len(), rows.num_rows());
        let encoder = KeyEncoder::try_new(&rows.schema(), &names(&rows)).unwrap();
        let encoded = encoder.encode(&rows).unwrap();
        let at = |position: u64| encoded.get(position as usize);
        assert!(positions.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{:?}", rows.schema());
        // The values ascend too, which is what Lance's lookup relies on.
        let values = arrow_select::concat::concat(&index.iter().map(|p| p.column(0).as_ref()).collect::<Vec<_>>());
        let values = values.unwrap();
        let sorted = arrow_ord::sort::sort(&values, None).unwrap();
        assert_eq!(&values, &sorted, "{:?}", rows.schema());
        if let [column] = rows.columns() {
            let at_positions = arrow_select::take::take(column, &UInt64Array::from(positions), None).unwrap();
            assert_eq!(&arrow_cast::cast(&at_positions, values.data_type()).unwrap(), &values);
        }
    }
}

#[tokio::test]
async fn many_keys_make_pages_of_lances_size() {
    let numbers: Vec<i64> = (0..20_000).map(|n| (n * 7_919) % 20_000).collect();
    let rows = batch(vec![Arc::new(Int64Array::from(numbers))]);
    let pages = sidecars(&rows).await.index;
    assert_eq!(pages.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [8192, 8192, 3616]);
    assert_eq!(pages, lances(&rows));
}

#[tokio::test]
async fn the_bloom_filter_denies_no_key_to_lances_readers() {
    for rows in keys() {
        let filter = Sbbf::new(&sidecars(&rows).await.bloom.unwrap()).unwrap();
        for row in 0..rows.num_rows() {
            let key = rows.columns().iter().map(|column| match ScalarValue::try_from_array(column, row).unwrap() {
                // By value, as the table's schema would have Lance's reader ask without dictionaries.
                ScalarValue::Dictionary(_, value) => *value,
                // Lance's own hash panics at it.
                ScalarValue::Date64(Some(i64::MIN)) => ScalarValue::Date64(Some(-i64::MAX)),
                value => value,
            });
            let hash = compute_pk_hash_from_scalars(&key.collect::<Vec<_>>());
            assert!(filter.check_hash(hash), "row {row} of {:?}", rows.schema());
        }
    }
}

#[tokio::test]
async fn equal_keys_hash_alike_whatever_array_holds_them() {
    let texts = ["a", "b that is too long to be inlined", "", "a"];
    let plain: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
    let expected = key_hashes(&batch(vec![plain]), &["a".to_owned()]).unwrap();
    assert_eq!(expected[0], expected[3]);
    assert_eq!(expected.iter().collect::<HashSet<_>>().len(), 3);
    let one: DictionaryArray<Int8Type> = texts.into_iter().map(Some).collect();
    // Values in another order, one twice, one that nobody uses.
    let values = StringArray::from(vec!["a", "", "unused", "b that is too long to be inlined", "a"]);
    let other = DictionaryArray::<Int8Type>::new(Int8Array::from(vec![4, 3, 1, 0]), Arc::new(values));
    let views = StringViewArray::from(texts.to_vec());
    for array in [Arc::new(one) as ArrayRef, Arc::new(other), Arc::new(views)] {
        assert_eq!(key_hashes(&batch(vec![array]), &["a".to_owned()]).unwrap(), expected);
    }
}

proptest! {
    #[test]
    fn a_bloom_filter_has_every_key_and_few_others(
        inserted in prop::collection::hash_set((any::<i64>(), "[a-c]{0,3}"), 1..200),
        asked in prop::collection::vec((any::<i64>(), "[a-c]{0,3}"), 200),
    ) {
        let rows = |keys: &[(i64, String)]| batch(vec![
            Arc::new(Int64Array::from_iter_values(keys.iter().map(|key| key.0))),
            Arc::new(StringArray::from_iter_values(keys.iter().map(|key| &key.1))),
        ]);
        let inserted: Vec<_> = inserted.into_iter().collect();
        let filter = BloomFilter::of_keys(&[rows(&inserted)]).unwrap();
        let hashes = |keys: &[(i64, String)]| key_hashes(&rows(keys), &["a".to_owned(), "b".to_owned()]).unwrap();
        for hash in hashes(&inserted) {
            prop_assert!(filter.may_hold_any(&[hash]));
        }
        let found = hashes(&asked).iter().filter(|hash| filter.may_hold_any(&[**hash])).count();
        prop_assert!(found <= 5, "{} of 200", found);
        prop_assert!(!filter.may_hold_any(&[]));
    }
}

/// An SSTable of one Int64 key column (or Int8, if Lance's hash is not to be believed) with the keys 0, 1, 2.
async fn written(data_type: DataType) -> (LanceStore, BaseTable, String) {
    let url = format!("memory://sidecar-{}/t", Uuid::new_v4());
    let store = LanceStore::new(&Store::open(&url, &HashMap::new()).unwrap());
    let schema = Arc::new(Schema::new(vec![Field::new("id", data_type.clone(), false)]));
    let base = BaseTable::create(&store, &schema, &["id".to_owned()], &Sharding::Unsharded, None).await.unwrap();
    let dir = sstable::relative_dir(
        base.fixed_shards()[0].0,
        &sstable::directory_name(uuid::Uuid::new_v4(), Generation::new(1)),
    );
    let storage = sstable::storage_schema(base.dataset());
    let ids = arrow_cast::cast(&Int64Array::from(vec![0, 1, 2]), &data_type).unwrap();
    let rows = RecordBatch::try_new(storage, vec![ids, Arc::new(BooleanArray::from(vec![false; 3]))]).unwrap();
    sstable::write(&store, base.dataset(), &dir, vec![rows], &["id".to_owned()]).await.unwrap();
    (store, base, dir)
}

async fn load(store: &LanceStore, dir: &str) -> Result<Option<BloomFilter>> {
    let dataset = sstable::open(store, dir).await?;
    BloomFilter::load(store, dir, &Card::of(&dataset), &["id".to_owned()]).await
}

/// Rewrites the mark in the dataset's config.
async fn remark(store: &LanceStore, dir: &str, mark: Option<&str>) {
    let mut dataset = sstable::open(store, dir).await.unwrap();
    dataset.update_config([(bloom::MARK, mark)]).await.unwrap();
}

fn bloom_path(store: &LanceStore, dir: &str) -> Path {
    store.path(Some(&format!("{dir}/bloom_filter.bin")))
}

#[tokio::test]
async fn a_filter_of_ours_is_loaded_and_a_damaged_one_is_an_error_that_names_it() {
    for data_type in [DataType::Int64, DataType::Int8] {
        let (store, _, dir) = written(data_type.clone()).await;
        let filter = load(&store, &dir).await.unwrap().expect("it is ours");
        let asked = |id| {
            let ids = arrow_cast::cast(&Int64Array::from(vec![id]), &data_type).unwrap();
            filter
                .may_hold_any(&key_hashes(&RecordBatch::try_from_iter([("id", ids)]).unwrap(), &["id".into()]).unwrap())
        };
        assert!(asked(0) && asked(1) && asked(2) && !asked(3));

        let (objects, path) = (Arc::clone(store.store().object_store()), bloom_path(&store, &dir));
        let whole = objects.get(&path).await.unwrap().bytes().await.unwrap();
        let mut flipped = whole.to_vec();
        flipped[1000] ^= 1;
        for (bytes, reason) in [
            (Some(flipped), "checksum"),
            (Some(whole[..whole.len() - 32].to_vec()), "checksum"),
            (Some(vec![]), "checksum"),
            (None, "missing"),
        ] {
            match bytes {
                Some(bytes) => drop(objects.put(&path, bytes.into()).await.unwrap()),
                None => objects.delete(&path).await.unwrap(),
            }
            let error = load(&store, &dir).await.unwrap_err();
            assert!(matches!(&error, Error::Corrupt { url, .. } if url.ends_with("bloom_filter.bin")), "{error}");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}

#[tokio::test]
async fn without_our_mark_only_what_lance_hashes_rightly_is_believed() {
    let (store, _, dir) = written(DataType::Int64).await;
    remark(&store, &dir, None).await;
    assert!(load(&store, &dir).await.unwrap().is_some());
    let (objects, path) = (Arc::clone(store.store().object_store()), bloom_path(&store, &dir));
    for damaged in [vec![], vec![0; 33]] {
        objects.put(&path, damaged.into()).await.unwrap();
        assert!(load(&store, &dir).await.unwrap().is_none());
    }
    objects.delete(&path).await.unwrap();
    assert!(load(&store, &dir).await.unwrap().is_none());

    let (store, _, dir) = written(DataType::Int8).await;
    remark(&store, &dir, None).await;
    assert!(load(&store, &dir).await.unwrap().is_none(), "Lance's hash of every Int8 is the same");
}

#[tokio::test]
async fn a_filter_made_with_another_hash_is_not_used() {
    let (store, _, dir) = written(DataType::Int64).await;
    let dataset = sstable::open(&store, &dir).await.unwrap();
    let mark = dataset.config()[bloom::MARK].clone();
    let (checksum, sample) = mark.split_once('-').unwrap();
    let other = format!("{:016x}", u64::from_str_radix(sample, 16).unwrap() ^ 1);
    for mark in [format!("{checksum}-{other}"), "2".to_owned(), format!("{mark}-later"), String::new()] {
        remark(&store, &dir, Some(&mark)).await;
        assert!(load(&store, &dir).await.unwrap().is_none(), "{mark}");
    }
    remark(&store, &dir, Some(&mark)).await;
    assert!(load(&store, &dir).await.unwrap().is_some());
}

/// If this fails after an upgrade, filters written before it are ignored from now on, which is slower and not wrong.
#[test]
fn the_hash_of_keys_is_the_one_of_lance_14() {
    let ids = batch(vec![Arc::new(Int64Array::from(vec![7]))]);
    assert_eq!(key_hashes(&ids, &["a".to_owned()]).unwrap(), [2_385_165_658_784_093_366]);
    assert_eq!(bloom::mark(b"").unwrap(), "00000000-775ec84dc70dceff");
}

#[tokio::test]
async fn a_table_without_a_key_has_no_sidecars() {
    let rows = batch(columns(&numbers()));
    let sidecars = Sidecars::of(&rows.schema(), &[rows], &[]).await.unwrap();
    assert!(sidecars.index.is_empty() && sidecars.bloom.is_none());
    assert_eq!(sidecars.config().unwrap().into_keys().collect::<Vec<_>>(), [STATISTICS]);
}
