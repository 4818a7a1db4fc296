#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use arrow_array::types::Int8Type;
use arrow_array::{
    ArrayRef, BinaryArray, DictionaryArray, Int8Array, Int32Array, Int64Array, StringArray, StringViewArray,
    UInt8Array, UInt64Array,
};
use arrow_schema::{Field, Fields};
use proptest::prelude::*;

use super::*;

/// Gives every key the same hash.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllCollide;

pub(crate) struct Zero;

impl BuildHasher for AllCollide {
    type Hasher = Zero;
    fn build_hasher(&self) -> Zero {
        Zero
    }
}

impl Hasher for Zero {
    fn finish(&self) -> u64 {
        0
    }
    fn write(&mut self, _: &[u8]) {}
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}

fn encoder(batch: &RecordBatch, columns: &[&str]) -> KeyEncoder {
    KeyEncoder::try_new(&batch.schema(), &names(columns)).unwrap()
}

proptest! {
    /// Also with empty strings, embedded zeros and values that would run into each other if just joined.
    #[test]
    fn encoded_keys_are_equal_and_ordered_exactly_as_the_tuples(
        rows in prop::collection::vec((-2i64..3, "[a\u{0}]{0,3}", prop::collection::vec(0u8..2, 0..3)), 1..40)
    ) {
        let batch = RecordBatch::try_from_iter([
            ("c", Arc::new(BinaryArray::from_iter_values(rows.iter().map(|r| &r.2))) as ArrayRef),
            ("b", Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.1)))),
            ("a", Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0)))),
        ]).unwrap();
        let keys = encoder(&batch, &["a", "b", "c"]).encode(&batch).unwrap();
        for (i, left) in rows.iter().enumerate() {
            for (j, right) in rows.iter().enumerate() {
                prop_assert_eq!(keys.get(i).cmp(keys.get(j)), left.cmp(right));
            }
        }
    }

    /// A key of a single column has a form of its own.
    #[test]
    fn a_single_column_is_encoded_in_its_order_too(
        signed in prop::collection::vec(prop_oneof![-3i64..3, any::<i64>()], 1..20),
        unsigned in prop::collection::vec(prop_oneof![0u64..3, any::<u64>()], 1..20),
        texts in prop::collection::vec("[a\u{0}é]{0,3}", 1..20),
    ) {
        fn check<T: Ord>(values: &[T], columns: Vec<ArrayRef>) {
            for column in columns {
                let (whole, rows) = (RecordBatch::try_from_iter([("a", column)]).unwrap(), values.len());
                let encoder = encoder(&whole, &["a"]);
                // Of a slice only its rows are encoded.
                for from in [0, rows / 2] {
                    let keys = encoder.encode(&whole.slice(from, rows - from)).unwrap();
                    assert_eq!(keys.len(), rows - from);
                    assert_eq!(keys.iter().count(), rows - from);
                    assert!(keys.get(rows - from).is_empty());
                    for (i, left) in values[from..].iter().enumerate() {
                        for (j, right) in values[from..].iter().enumerate() {
                            assert_eq!(keys.get(i).cmp(keys.get(j)), left.cmp(right), "{}", whole.schema());
                        }
                    }
                }
            }
        }
        let column = |numbers: &[i64], to: &DataType| arrow_cast::cast(&Int64Array::from(numbers.to_vec()), to).unwrap();
        let micros = DataType::Timestamp(arrow_schema::TimeUnit::Microsecond, Some("UTC".into()));
        let decimal = DataType::Decimal128(38, 0);
        let as_they_are = [DataType::Int64, micros, decimal].iter().map(|to| column(&signed, to)).collect();
        check(&signed, as_they_are);
        let short: Vec<i64> = signed.iter().map(|n| i64::from(*n as i8)).collect();
        let narrow = [DataType::Int8, DataType::Int16, DataType::Int32, DataType::Date32].iter();
        check(&short, narrow.map(|to| column(&short, to)).collect());
        let bytes: Vec<u8> = unsigned.iter().map(|n| *n as u8).collect();
        check(&unsigned, vec![Arc::new(UInt64Array::from(unsigned.clone()))]);
        check(&bytes, vec![Arc::new(UInt8Array::from(bytes.clone()))]);
        let strings = StringArray::from_iter_values(&texts);
        let forms = [DataType::Utf8, DataType::Binary, DataType::LargeUtf8, DataType::Utf8View].iter();
        check(&texts, forms.map(|to| arrow_cast::cast(&strings, to).unwrap()).collect());
    }

    /// As long as all keys have eight bytes it has another form.
    #[test]
    fn a_key_set_is_exact_whatever_the_hasher(
        inserted in prop_oneof![
            prop::collection::vec(prop::collection::vec(0u8..3, 0..4), 0..60),
            prop::collection::vec(prop::collection::vec(0u8..2, 8), 0..60),
            prop::collection::vec(prop_oneof![9 => prop::collection::vec(0u8..2, 8), 1 => prop::collection::vec(0u8..2, 7..10)], 0..60),
        ],
        asked in prop::collection::vec(prop_oneof![prop::collection::vec(0u8..3, 0..4), prop::collection::vec(0u8..2, 8)], 0..30),
    ) {
        fn check<S: BuildHasher>(mut set: KeySet<S>, inserted: &[Vec<u8>], asked: &[Vec<u8>]) {
            let mut model: HashMap<&[u8], usize> = HashMap::new();
            for key in inserted {
                let next = model.len();
                let number = *model.entry(key).or_insert(next);
                assert_eq!(set.insert(key), number);
                assert_eq!(set.len(), model.len());
            }
            for key in inserted.iter().chain(asked) {
                assert_eq!(set.find(key), model.get(key.as_slice()).copied());
            }
        }
        check(KeySet::new(), &inserted, &asked);
        check(KeySet::with_hasher(AllCollide), &inserted, &asked);
    }
}

#[test]
fn a_null_in_a_key_is_refused_with_its_column_and_row() {
    let batch = RecordBatch::try_from_iter([
        ("a", Arc::new(Int32Array::from(vec![1, 2, 3])) as ArrayRef),
        ("b", Arc::new(StringArray::from(vec![Some("x"), Some("y"), None]))),
    ])
    .unwrap();
    let error = encoder(&batch, &["a", "b"]).encode(&batch).unwrap_err();
    assert!(matches!(&error, Error::InvalidBatch(_)));
    assert!(error.to_string().contains("`b` is null in row 2"), "{error}");
}

#[test]
fn a_null_behind_a_dictionary_is_refused_too() {
    let values = Arc::new(StringArray::from(vec![Some("x"), None]));
    let array = DictionaryArray::<Int8Type>::new(Int8Array::from(vec![0, 1]), values);
    let batch = RecordBatch::try_from_iter([("a", Arc::new(array) as ArrayRef)]).unwrap();
    let error = encoder(&batch, &["a"]).encode(&batch).unwrap_err();
    assert!(error.to_string().contains("`a` is null in row 1"), "{error}");
}

#[test]
fn a_key_column_of_another_type_or_missing_is_refused() {
    let table = RecordBatch::try_from_iter([("a", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    let encoder = encoder(&table, &["a"]);
    let other = RecordBatch::try_from_iter([("a", Arc::new(Int32Array::from(vec![1])) as ArrayRef)]).unwrap();
    let missing = RecordBatch::try_from_iter([("b", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    assert!(encoder.encode(&other).unwrap_err().to_string().contains("`a` is Int32 but the table's is Int64"));
    assert!(encoder.encode(&missing).unwrap_err().to_string().contains("`a` is missing"));
}

#[test]
fn views_and_dictionaries_compare_by_value() {
    let dictionary = DictionaryArray::<Int8Type>::new(
        Int8Array::from(vec![0, 1, 2]),
        Arc::new(StringArray::from(vec!["same", "same", "other"])),
    );
    let views = StringViewArray::from(vec!["a string that is not inlined", "a string that is not inlined", "b"]);
    for array in [Arc::new(dictionary) as ArrayRef, Arc::new(views)] {
        let batch = RecordBatch::try_from_iter([("a", array)]).unwrap();
        let keys = encoder(&batch, &["a"]).encode(&batch).unwrap();
        assert_eq!(keys.get(0), keys.get(1));
        assert_ne!(keys.get(0), keys.get(2));
    }
}

#[test]
fn columns_that_cannot_be_a_key_are_refused_when_the_encoder_is_made() {
    let float = Arc::new(Field::new("item", DataType::Float32, true));
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("float", DataType::Float64, false),
        Field::new("vector", DataType::FixedSizeList(float.clone(), 4), false),
        Field::new("struct", DataType::Struct(Fields::from(vec![float])), false),
        Field::new("null", DataType::Null, true),
    ]);
    for (columns, reason) in [
        (vec![], "at least one column"),
        (vec!["id", "nosuch"], "`nosuch` is not in"),
        (vec!["id", "id"], "`id` is named twice"),
        (vec!["float"], "`float`"),
        (vec!["id", "vector"], "`vector`"),
        (vec!["struct"], "`struct`"),
        (vec!["null"], "it has no values"),
    ] {
        let error = KeyEncoder::try_new(&schema, &names(&columns)).unwrap_err();
        assert!(matches!(&error, Error::InvalidOptions(_)), "{columns:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}
