//! Primary keys as bytes. [`KeyEncoder`] turns the key columns of a batch into one byte string per row, such that two
//! rows have equal bytes exactly if they have equal keys; [`KeySet`] holds such byte strings and never takes one key
//! for another. It knows nothing of row versions: that is the MemTable's index.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use arrow_row::{RowConverter, Rows, SortField};
use arrow_schema::{DataType, Schema};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::error::{Error, Result};

/// The hasher of keys. It only spreads them: equality is always decided on whole keys.
pub(crate) type KeyHasher = foldhash::fast::RandomState;

/// Encodes the primary key of each row of a batch as bytes (with `arrow_row`): equal bytes are equal keys, and the
/// order of the bytes is the order of the keys, column by column. Clone is cheap.
///
/// A key may have any type that `arrow_row` encodes, except floats, also inside of lists and structs: `0.0` and
/// `-0.0`, and the many NaNs, are one key to some parts of Arrow and Lance and several to others, so that "the newest
/// row of a key" would depend on who asks.
#[derive(Debug, Clone)]
pub(crate) struct KeyEncoder {
    columns: Arc<[KeyColumn]>,
    converter: Arc<RowConverter>,
}

#[derive(Debug)]
struct KeyColumn {
    name: String,
    data_type: DataType,
}

impl KeyEncoder {
    /// An encoder for the key made of these top-level columns of `schema`, in this order.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if a column is missing, named twice, or has a type that cannot be a key.
    pub(crate) fn try_new(schema: &Schema, names: &[String]) -> Result<Self> {
        if names.is_empty() {
            return Err(Error::InvalidOptions("a primary key needs at least one column".into()));
        }
        let mut columns: Vec<KeyColumn> = Vec::with_capacity(names.len());
        for name in names {
            let Ok(field) = schema.field_with_name(name) else {
                return Err(Error::InvalidOptions(format!("primary-key column `{name}` is not in the table's schema")));
            };
            if columns.iter().any(|c| c.name == *name) {
                return Err(Error::InvalidOptions(format!("primary-key column `{name}` is named twice")));
            }
            let data_type = field.data_type().clone();
            check_key_type(name, &data_type)?;
            columns.push(KeyColumn { name: name.clone(), data_type });
        }
        let fields = columns.iter().map(|c| SortField::new(c.data_type.clone())).collect();
        let converter = RowConverter::new(fields).map_err(|e| {
            Error::InvalidOptions(format!("the primary key ({}) cannot be encoded: {e}", names.join(", ")))
        })?;
        Ok(Self { columns: columns.into(), converter: Arc::new(converter) })
    }

    /// The keys of the batch's rows. The batch may have other columns too, and its columns may stand in any order.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] if a key column is missing, has another type than the table's, or holds a null.
    pub(crate) fn encode(&self, batch: &RecordBatch) -> Result<Rows> {
        let mut arrays = Vec::with_capacity(self.columns.len());
        for KeyColumn { name, data_type } in self.columns.iter() {
            let Some(array) = batch.column_by_name(name) else {
                return Err(Error::InvalidBatch(format!("the primary-key column `{name}` is missing")));
            };
            if !array.data_type().equals_datatype(data_type) {
                let found = array.data_type();
                return Err(Error::InvalidBatch(format!(
                    "the primary-key column `{name}` is {found} but the table's is {data_type}"
                )));
            }
            // Logical: a dictionary's row is null also where it points to a null.
            if let Some(nulls) = array.logical_nulls().filter(|n| n.null_count() > 0) {
                let row = nulls.iter().position(|valid| !valid).unwrap_or_default();
                return Err(Error::InvalidBatch(format!(
                    "the primary-key column `{name}` is null in row {row} (counted from 0); every row needs its whole key"
                )));
            }
            arrays.push(Arc::clone(array));
        }
        self.converter.convert_columns(&arrays).map_err(Error::arrow("encoding primary keys"))
    }
}

fn check_key_type(name: &str, data_type: &DataType) -> Result<()> {
    let reason = if holds_float(data_type) {
        "floats have values that are equal in one place and different in another (0.0 and -0.0, NaN); \
         use a decimal, an integer or a string"
    } else if *data_type == DataType::Null {
        "it has no values"
    } else if !RowConverter::supports_fields(&[SortField::new(data_type.clone())]) {
        "values of this type cannot be compared as whole keys"
    } else {
        return Ok(());
    };
    Err(Error::InvalidOptions(format!("column `{name}` of type {data_type} cannot be in the primary key: {reason}")))
}

fn holds_float(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(f)
        | DataType::LargeList(f)
        | DataType::ListView(f)
        | DataType::LargeListView(f)
        | DataType::FixedSizeList(f, _)
        | DataType::Map(f, _)
        | DataType::RunEndEncoded(_, f) => holds_float(f.data_type()),
        DataType::Struct(fields) => fields.iter().any(|f| holds_float(f.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, f)| holds_float(f.data_type())),
        DataType::Dictionary(_, values) => holds_float(values),
        other => other.is_floating(),
    }
}

/// A set of encoded keys, exact: found by a 64-bit hash, decided on the whole key. Keys are numbered 0, 1, 2 … as
/// they come; they cannot be removed.
pub(crate) struct KeySet<S = KeyHasher> {
    /// All keys, one after the other.
    bytes: Vec<u8>,
    /// Where the key of each number ends in `bytes`.
    ends: Vec<usize>,
    /// Key numbers by the hash of their key, which is kept so that growing reads no key again.
    table: HashTable<(u64, usize)>,
    hasher: S,
}

impl KeySet {
    /// An empty set.
    pub(crate) fn new() -> Self {
        Self::with_hasher(KeyHasher::default())
    }
}

impl Default for KeySet {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: BuildHasher> KeySet<S> {
    /// An empty set with this hasher. Any hasher gives right answers, a bad one gives slow ones.
    pub(crate) fn with_hasher(hasher: S) -> Self {
        Self { bytes: Vec::new(), ends: Vec::new(), table: HashTable::new(), hasher }
    }

    /// The number of the key, which is [`len`](Self::len) before the call if it is new.
    pub(crate) fn insert(&mut self, key: &[u8]) -> usize {
        let Self { bytes, ends, table, hasher } = self;
        let hash = hasher.hash_one(key);
        let is_same = |&(other, number): &(u64, usize)| other == hash && key_at(bytes, ends, number) == Some(key);
        match table.entry(hash, is_same, |&(hash, _)| hash) {
            Entry::Occupied(found) => found.get().1,
            Entry::Vacant(place) => {
                let number = ends.len();
                place.insert((hash, number));
                bytes.extend_from_slice(key);
                ends.push(bytes.len());
                number
            }
        }
    }

    /// The number of the key, if it is in the set.
    pub(crate) fn find(&self, key: &[u8]) -> Option<usize> {
        let hash = self.hasher.hash_one(key);
        let is_same =
            |&(other, number): &(u64, usize)| other == hash && key_at(&self.bytes, &self.ends, number) == Some(key);
        self.table.find(hash, is_same).map(|(_, number)| *number)
    }

    /// How many different keys the set holds.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The memory that the set holds, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>() + self.table.allocation_size()
    }
}

fn key_at<'a>(bytes: &'a [u8], ends: &[usize], number: usize) -> Option<&'a [u8]> {
    let start = match number.checked_sub(1) {
        Some(previous) => *ends.get(previous)?,
        None => 0,
    };
    bytes.get(start..*ends.get(number)?)
}

impl<S> fmt::Debug for KeySet<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.ends.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::collections::HashMap;
    use std::hash::Hasher;

    use arrow_array::types::Int8Type;
    use arrow_array::{
        ArrayRef, BinaryArray, DictionaryArray, Int8Array, Int32Array, Int64Array, StringArray, StringViewArray,
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
                    prop_assert_eq!(keys.row(i).data().cmp(keys.row(j).data()), left.cmp(right));
                }
            }
        }

        #[test]
        fn a_key_set_is_exact_whatever_the_hasher(
            inserted in prop::collection::vec(prop::collection::vec(0u8..3, 0..4), 0..60),
            asked in prop::collection::vec(prop::collection::vec(0u8..3, 0..4), 0..30),
        ) {
            fn check<S: BuildHasher>(mut set: KeySet<S>, inserted: &[Vec<u8>], asked: &[Vec<u8>]) {
                let mut model: HashMap<&[u8], usize> = HashMap::new();
                for key in inserted {
                    let next = model.len();
                    let number = *model.entry(key).or_insert(next);
                    assert_eq!(set.insert(key), number);
                }
                assert_eq!(set.len(), model.len());
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
            assert_eq!(keys.row(0).data(), keys.row(1).data());
            assert_ne!(keys.row(0).data(), keys.row(2).data());
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
}
