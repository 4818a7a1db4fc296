#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use arrow_array::types::*;
use arrow_array::*;
use lance::dataset::mem_wal::evaluate_sharding_spec;
use proptest::prelude::*;

use super::super::{MAX_BUCKETS, result_type};
use super::*;

fn bucket(buckets: u32) -> Sharding {
    Sharding::Bucket { column: "id".into(), buckets }
}

fn identity() -> Sharding {
    Sharding::Identity { column: "id".into() }
}

fn batch_of(id: ArrayRef) -> RecordBatch {
    let rows = Int64Array::from_iter_values(0..id.len() as i64);
    RecordBatch::try_from_iter_with_nullable([("id", id, true), ("row", Arc::new(rows), false)]).unwrap()
}

fn hash(router: &Router, values: &ArrayRef) -> Vec<u32> {
    match &router.by {
        Some(by @ By { rule: Rule::Bucket { buckets, spec }, .. }) => by.hash(values, *buckets, spec).unwrap(),
        other => panic!("no hash: {other:?}"),
    }
}

fn route(id: ArrayRef, buckets: u32) -> Vec<u32> {
    let batch = batch_of(Arc::clone(&id));
    hash(&Router::try_new(&bucket(buckets), &batch.schema()).unwrap(), &id)
}

/// What Lance itself answers for a table whose sharding spec names the column by its field id.
fn lance_answer(batch: &RecordBatch, transform: &str, result_type: &str, parameters: &[(&str, String)]) -> ArrayRef {
    let field = ShardingField {
        field_id: "bucket".into(),
        source_ids: vec![0],
        transform: Some(transform.into()),
        expression: None,
        result_type: result_type.into(),
        parameters: parameters.iter().map(|(name, value)| ((*name).into(), value.clone())).collect(),
    };
    let schema = lance_core::datatypes::Schema::try_from(batch.schema().as_ref()).unwrap();
    let answer = evaluate_sharding_spec(batch, &ShardingSpec { spec_id: 1, fields: vec![field] }, &schema).unwrap();
    Arc::clone(answer.column(0))
}

fn lance_buckets(batch: &RecordBatch, buckets: u32) -> Vec<u32> {
    let answer = lance_answer(batch, "bucket", "int32", &[("num_buckets", buckets.to_string())]);
    answer.as_primitive::<Int32Type>().values().iter().map(|b| *b as u32).collect()
}

/// The same values as an array of each type that can be hashed.
fn arrays(values: &[Option<i64>]) -> Vec<ArrayRef> {
    fn of<T: ArrowPrimitiveType>(values: &[Option<i64>], convert: impl Fn(i64) -> T::Native) -> ArrayRef {
        Arc::new(values.iter().map(|v| v.map(&convert)).collect::<PrimitiveArray<T>>())
    }
    let text = || values.iter().map(|v| v.map(|v| format!("{v:b}ü")));
    let zoned = values.iter().copied().collect::<TimestampMicrosecondArray>().with_timezone("Europe/Zurich");
    vec![
        Arc::new(values.iter().map(|v| v.map(|v| v % 2 == 0)).collect::<BooleanArray>()),
        of::<Int8Type>(values, |v| v as i8),
        of::<Int16Type>(values, |v| v as i16),
        of::<Int32Type>(values, |v| v as i32),
        of::<Int64Type>(values, |v| v),
        of::<UInt8Type>(values, |v| v as u8),
        of::<UInt16Type>(values, |v| v as u16),
        of::<UInt32Type>(values, |v| v as u32),
        of::<UInt64Type>(values, |v| v as u64),
        of::<Float32Type>(values, |v| f32::from_bits(v as u32)),
        of::<Float64Type>(values, |v| f64::from_bits(v as u64)),
        of::<Date32Type>(values, |v| v as i32),
        of::<Time32SecondType>(values, |v| v as i32),
        of::<Time32MillisecondType>(values, |v| v as i32),
        of::<Time64MicrosecondType>(values, |v| v),
        of::<Time64NanosecondType>(values, |v| v),
        of::<TimestampSecondType>(values, |v| v),
        of::<TimestampMillisecondType>(values, |v| v),
        of::<TimestampMicrosecondType>(values, |v| v),
        of::<TimestampNanosecondType>(values, |v| v),
        Arc::new(zoned),
        Arc::new(text().collect::<StringArray>()),
        Arc::new(text().collect::<LargeStringArray>()),
    ]
}

/// Each part has exactly the rows that Lance's answer sends there, in their order, and no row is left out.
fn assert_split(batch: &RecordBatch, parts: &[(ShardValue, RecordBatch)], lance: &[ShardValue]) {
    for (value, part) in parts {
        let rows = part.column(1).as_primitive::<Int64Type>().values().to_vec();
        let expected = (0..lance.len()).filter(|row| lance[*row] == *value).map(|row| row as i64);
        assert_eq!(rows, expected.collect::<Vec<_>>(), "{value}");
    }
    assert_eq!(parts.iter().map(|(_, part)| part.num_rows()).sum::<usize>(), batch.num_rows());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rows_of_every_type_go_where_lance_sends_them_and_keep_their_order(
        values in prop::collection::vec(prop::option::weighted(0.9, any::<i64>()), 0..50),
        buckets in prop_oneof![1u32..6, 1u32..=MAX_BUCKETS],
    ) {
        for array in arrays(&values) {
            let batch = batch_of(Arc::clone(&array));
            let router = Router::try_new(&bucket(buckets), &batch.schema()).unwrap();
            let expected = lance_buckets(&batch, buckets);
            prop_assert_eq!(&hash(&router, &array), &expected);
            let expected: Vec<_> = expected.into_iter().map(ShardValue::Bucket).collect();
            let parts = router.split(&batch, 1).unwrap();
            prop_assert_eq!(router.values(&array).unwrap(), expected.iter().cloned().collect());
            prop_assert!(parts.is_sorted_by(|(a, _), (b, _)| a.order(b).is_lt()));
            assert_split(&batch, &parts, &expected);
        }
    }

    #[test]
    fn rows_of_one_value_stay_together_as_lance_says(
        values in prop::collection::vec(prop::option::weighted(0.8, -3..3_i64), 1..40),
    ) {
        for array in arrays(&values) {
            let Some(name) = result_type(array.data_type()) else { continue };
            let batch = batch_of(array);
            let lance = lance_answer(&batch, "identity", name, &[]);
            let value = |row| ShardValue::Identity(ScalarValue::try_from_array(&lance, row).unwrap());
            let expected: Vec<_> = (0..batch.num_rows()).map(value).collect();
            let router = Router::try_new(&identity(), &batch.schema()).unwrap();
            prop_assert_eq!(router.values(batch.column(0)).unwrap(), expected.iter().cloned().collect());
            let parts = router.split(&batch, 8).unwrap();
            assert_split(&batch, &parts, &expected);
            for (value, part) in &parts {
                router.check(part, value).unwrap();
            }
            let checked = router.check(&batch, &parts[0].0);
            prop_assert_eq!(checked.is_ok(), parts.len() == 1, "{:?}", checked);
            let limited = router.split(&batch, parts.len() - 1);
            let refused = matches!(limited, Err(Error::TooLarge { limit_name: "max_shards", .. }));
            prop_assert!(refused);
        }
    }
}

fn bucket_of_hash(hash: i32) -> u32 {
    (hash & i32::MAX) as u32 % MAX_BUCKETS
}

/// Vectors from Appendix B of the Iceberg spec, for the types that both hash as eight bytes; a published
/// murmur3 (x86, 32 bit, seed 0) vector for a string of four bytes.
#[test]
fn eight_byte_values_hash_to_the_published_vectors() {
    let evening_us = (22 * 3600 + 31 * 60 + 8) * 1_000_000;
    let moment_us = 1_510_871_468_000_000; // 2017-11-16T22:31:08
    let cases: [(ArrayRef, i32); 4] = [
        (Arc::new(Int64Array::from(vec![34])), 2017239379),
        (Arc::new(Time64MicrosecondArray::from(vec![evening_us])), -662762989),
        (Arc::new(TimestampMicrosecondArray::from(vec![moment_us])), -2047944441),
        (Arc::new(StringArray::from(vec!["test"])), 0xba6b_d213_u32 as i32),
    ];
    for (array, hash) in cases {
        assert_eq!(route(array, MAX_BUCKETS), [bucket_of_hash(hash)]);
    }
}

/// Placement is written to storage by where rows are, so it must never change. The vectors are those of Lance's own
/// tests. MemWAL hashes narrow integers as four bytes, and the tail of a string byte by byte, so these are not
/// Iceberg's buckets.
#[test]
fn placement_never_changes() {
    assert_eq!(route(Arc::new(Int32Array::from(vec![Some(1), Some(2), None, Some(3)])), 8), [2, 7, 0, 1]);
    assert_eq!(route(Arc::new(Date32Array::from(vec![Some(1), Some(2), None, Some(3)])), 8), [2, 7, 0, 1]);
    assert_eq!(route(Arc::new(StringArray::from(vec![Some("a"), Some("b"), None])), 8), [1, 5, 0]);
    assert_eq!(route(Arc::new(BooleanArray::from(vec![true])), 8), [2]);
    assert_eq!(route(Arc::new(Float32Array::from(vec![1.25])), 8), [0]);
    assert_eq!(route(Arc::new(Float64Array::from(vec![1.25])), 8), [0]);
    assert_ne!(route(Arc::new(StringArray::from(vec!["iceberg"])), MAX_BUCKETS), [bucket_of_hash(1210000089)]);
}

#[test]
fn a_batch_for_one_shard_is_passed_on_without_a_copy() {
    let batch = batch_of(Arc::new(Int64Array::from(vec![7; 5])));
    for sharding in [Sharding::Unsharded, bucket(1), bucket(16), identity()] {
        let parts = Router::try_new(&sharding, &batch.schema()).unwrap().split(&batch, 1).unwrap();
        assert_eq!(parts.len(), 1);
        assert!(Arc::ptr_eq(parts[0].1.column(0), batch.column(0)));
    }
}

#[test]
fn a_batch_with_another_type_than_the_table_is_refused() {
    let table = batch_of(Arc::new(Int64Array::from(vec![1])));
    for sharding in [bucket(4), identity()] {
        let router = Router::try_new(&sharding, &table.schema()).unwrap();
        let error = router.split(&batch_of(Arc::new(Int32Array::from(vec![1]))), 9).unwrap_err();
        assert!(error.to_string().contains("`id` is Int32 but the table's is Int64"), "{error}");
        let error = router.split(&table.project(&[1]).unwrap(), 9).unwrap_err();
        assert!(error.to_string().contains("`id` is missing"), "{error}");
    }
}

#[test]
fn a_row_of_another_shard_is_named() {
    let batch = batch_of(Arc::new(Int64Array::from(vec![Some(7), Some(7), None])));
    let router = Router::try_new(&identity(), &batch.schema()).unwrap();
    let error = router.check(&batch, &ShardValue::Identity(ScalarValue::from(7_i64))).unwrap_err();
    assert!(error.to_string().contains("row 2 (counted from 0) belongs to the shard of value null"), "{error}");
}

#[test]
fn what_validates_can_be_routed() {
    for array in arrays(&[Some(1)]) {
        let batch = batch_of(array);
        bucket(2).validate(&batch.schema(), &[]).unwrap();
        Router::try_new(&bucket(2), &batch.schema()).unwrap().split(&batch, 1).unwrap();
        let has_values = result_type(batch.column(0).data_type()).is_some();
        assert_eq!(identity().validate(&batch.schema(), &[]).is_ok(), has_values);
        assert_eq!(Router::try_new(&identity(), &batch.schema()).is_ok(), has_values);
    }
}
