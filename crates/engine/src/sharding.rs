//! Which shard a row belongs to. [`Sharding`] is the table's choice, [`Router`] applies it to batches. The hash is
//! Lance's own, called and not copied, so that Lance and Fencepost always agree on the place of a row.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Schema};
use arrow_select::take::take_record_batch;
use lance::dataset::mem_wal::evaluate_sharding_spec_with_embedded_columns;
use lance_index::mem_wal::{ShardingField, ShardingSpec};

use crate::error::{Error, Result};

/// The most buckets that a table may have: the limit of Lance's MemWAL.
pub(crate) const MAX_BUCKETS: u32 = 1024;

/// How a table's rows are spread over its shards. Written as `unsharded` or `bucket(column,buckets)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sharding {
    /// One shard holds every row.
    #[default]
    Unsharded,
    /// The hash of one column chooses the shard, as the `bucket` transform of Lance's MemWAL does; nulls go to
    /// bucket 0.
    Bucket {
        /// The column. In a table with a primary key it is part of the key, so that all versions of a row meet in
        /// one shard.
        column: String,
        /// The number of shards, 1 to 1024.
        buckets: u32,
    },
}

impl Sharding {
    /// Checks that rows of this schema and primary key (empty: none) can be sharded like this.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] that says what to change.
    pub fn validate(&self, schema: &Schema, primary_key: &[String]) -> Result<()> {
        let Self::Bucket { column, buckets } = self else {
            return Ok(());
        };
        let refuse = |reason: String| Err(Error::InvalidOptions(format!("sharding `{self}`: {reason}")));
        if !(1..=MAX_BUCKETS).contains(buckets) {
            return refuse(format!("the number of buckets must be 1 to {MAX_BUCKETS}"));
        }
        let Ok(field) = schema.field_with_name(column) else {
            return refuse(format!("column `{column}` is not in the table's schema"));
        };
        if !is_hashable(field.data_type()) {
            return refuse(format!(
                "column `{column}` is {}, which cannot be hashed; choose a column of booleans, integers, floats, \
                 32-bit dates, times, timestamps or strings (Utf8 or LargeUtf8)",
                field.data_type()
            ));
        }
        if !primary_key.is_empty() && !primary_key.contains(column) {
            return refuse(format!(
                "column `{column}` is not part of the primary key ({}), so versions of one row could land in \
                 different shards; shard by a key column",
                primary_key.join(", ")
            ));
        }
        Ok(())
    }

    /// The number of shards.
    pub(crate) fn shards(&self) -> u32 {
        match self {
            Self::Unsharded => 1,
            Self::Bucket { buckets, .. } => *buckets,
        }
    }
}

impl fmt::Display for Sharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsharded => f.write_str("unsharded"),
            Self::Bucket { column, buckets } => write!(f, "bucket({column},{buckets})"),
        }
    }
}

impl FromStr for Sharding {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text == "unsharded" {
            return Ok(Self::Unsharded);
        }
        let refuse = |reason: &str| Err(Error::InvalidOptions(format!("sharding `{text}`: {reason}")));
        let Some(arguments) = text.strip_prefix("bucket(").and_then(|rest| rest.strip_suffix(')')) else {
            return refuse("write `unsharded` or `bucket(column,buckets)`, for example `bucket(id,4)`");
        };
        // The last comma: a column's name may hold one.
        let Some((column, buckets)) = arguments.rsplit_once(',') else {
            return refuse("a bucket sharding names a column and a number of buckets, for example `bucket(id,4)`");
        };
        let column = column.trim();
        if column.is_empty() {
            return refuse("the column's name is missing, write for example `bucket(id,4)`");
        }
        match buckets.trim().parse() {
            Ok(buckets) if (1..=MAX_BUCKETS).contains(&buckets) => Ok(Self::Bucket { column: column.into(), buckets }),
            _ => refuse(&format!("the number of buckets must be 1 to {MAX_BUCKETS}, not `{}`", buckets.trim())),
        }
    }
}

/// The types that MemWAL's `bucket` transform hashes.
fn is_hashable(data_type: &DataType) -> bool {
    use DataType::*;
    matches!(
        data_type,
        Boolean
            | Int8
            | Int16
            | Int32
            | Int64
            | UInt8
            | UInt16
            | UInt32
            | UInt64
            | Float32
            | Float64
            | Date32
            | Time32(_)
            | Time64(_)
            | Timestamp(_, _)
            | Utf8
            | LargeUtf8
    )
}

/// Sends the rows of batches to buckets. Bucket numbers are those of [`Sharding::Bucket`]; an unsharded table has
/// only bucket 0.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    hash: Option<Hash>,
}

#[derive(Debug, Clone)]
struct Hash {
    column: String,
    data_type: DataType,
    buckets: u32,
    spec: ShardingSpec,
}

/// What the hashed column is called in the one-column batches that go to Lance.
const HASHED: &str = "value";

impl Router {
    /// A router for a table with this schema; `sharding` must be valid for it.
    ///
    /// # Errors
    /// As [`Sharding::validate`] for a table without a primary key.
    pub(crate) fn try_new(sharding: &Sharding, schema: &Schema) -> Result<Self> {
        sharding.validate(schema, &[])?;
        let Sharding::Bucket { column, buckets } = sharding else {
            return Ok(Self { hash: None });
        };
        let field = schema.field_with_name(column).map_err(Error::arrow(format!("sharding `{sharding}`")))?;
        let field_spec = ShardingField {
            field_id: "bucket".into(),
            source_ids: vec![],
            transform: Some("bucket".into()),
            expression: None,
            result_type: "int32".into(),
            parameters: HashMap::from([("num_buckets".into(), buckets.to_string()), ("column".into(), HASHED.into())]),
        };
        let spec = ShardingSpec { spec_id: 1, fields: vec![field_spec] };
        let data_type = field.data_type().clone();
        Ok(Self { hash: Some(Hash { column: column.clone(), data_type, buckets: *buckets, spec }) })
    }

    /// The bucket of each row.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] if the sharding column is missing or has another type than the table's, which would
    /// hash the same value to another shard.
    pub(crate) fn route(&self, batch: &RecordBatch) -> Result<Vec<u32>> {
        let Some(Hash { column, data_type, buckets, spec }) = &self.hash else {
            return Ok(vec![0; batch.num_rows()]);
        };
        let Some(array) = batch.column_by_name(column) else {
            return Err(Error::InvalidBatch(format!("the sharding column `{column}` is missing")));
        };
        if array.data_type() != data_type {
            return Err(Error::InvalidBatch(format!(
                "the sharding column `{column}` is {} but the table's is {data_type}",
                array.data_type()
            )));
        }
        let hashed = RecordBatch::try_from_iter_with_nullable([(HASHED, array.clone(), true)])
            .map_err(Error::arrow("preparing the sharding column"))?;
        let evaluated = evaluate_sharding_spec_with_embedded_columns(&hashed, spec)
            .map_err(Error::lance(format!("hashing the sharding column `{column}`")))?;
        let routed = evaluated.columns().first().and_then(|c| c.as_primitive_opt::<Int32Type>());
        // Pair check: a bucket out of range would lose the row.
        let in_range = |bucket: &i32| u32::try_from(*bucket).ok().filter(|b| b < buckets);
        routed
            .filter(|r| r.null_count() == 0 && r.len() == batch.num_rows())
            .and_then(|r| r.values().iter().map(in_range).collect::<Option<Vec<u32>>>())
            .ok_or_else(|| Error::NotSupported(format!("this Lance does not give bucket numbers for `{column}`")))
    }

    /// The batch's rows by bucket, in bucket order, only buckets that have rows. Rows keep their order. If all go to
    /// one bucket, the batch is passed on as it is.
    ///
    /// # Errors
    /// As [`route`](Self::route).
    pub(crate) fn split(&self, batch: &RecordBatch) -> Result<Vec<(u32, RecordBatch)>> {
        if batch.num_rows() == 0 {
            return Ok(vec![]);
        }
        let Some(hash) = &self.hash else {
            return Ok(vec![(0, batch.clone())]);
        };
        let routed = self.route(batch)?;
        if let Some(first) = routed.first()
            && routed.iter().all(|bucket| bucket == first)
        {
            return Ok(vec![(*first, batch.clone())]);
        }
        let mut rows_of: Vec<Vec<u64>> = vec![vec![]; hash.buckets as usize];
        for (row, bucket) in (0u64..).zip(&routed) {
            if let Some(rows) = rows_of.get_mut(*bucket as usize) {
                rows.push(row);
            }
        }
        (0u32..)
            .zip(rows_of)
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(bucket, rows)| {
                let part = take_record_batch(batch, &UInt64Array::from(rows))
                    .map_err(Error::arrow(format!("taking the rows of bucket {bucket}")))?;
                Ok((bucket, part))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::sync::Arc;

    use arrow_array::types::*;
    use arrow_array::*;
    use arrow_schema::Field;
    use arrow_schema::TimeUnit::*;
    use lance::dataset::mem_wal::evaluate_sharding_spec;
    use proptest::prelude::*;

    use super::*;

    fn bucket(buckets: u32) -> Sharding {
        Sharding::Bucket { column: "id".into(), buckets }
    }

    fn batch_of(id: ArrayRef) -> RecordBatch {
        let rows = Int64Array::from_iter_values(0..id.len() as i64);
        RecordBatch::try_from_iter_with_nullable([("id", id, true), ("row", Arc::new(rows), false)]).unwrap()
    }

    fn route(id: ArrayRef, buckets: u32) -> Vec<u32> {
        let batch = batch_of(id);
        Router::try_new(&bucket(buckets), &batch.schema()).unwrap().route(&batch).unwrap()
    }

    /// What Lance itself answers for a table whose sharding spec names the column by its field id.
    fn lance_route(batch: &RecordBatch, buckets: u32) -> Vec<u32> {
        let field = ShardingField {
            field_id: "bucket".into(),
            source_ids: vec![0],
            transform: Some("bucket".into()),
            expression: None,
            result_type: "int32".into(),
            parameters: HashMap::from([("num_buckets".into(), buckets.to_string())]),
        };
        let schema = lance_core::datatypes::Schema::try_from(batch.schema().as_ref()).unwrap();
        let answer = evaluate_sharding_spec(batch, &ShardingSpec { spec_id: 1, fields: vec![field] }, &schema).unwrap();
        answer.column(0).as_primitive::<Int32Type>().values().iter().map(|b| *b as u32).collect()
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn rows_of_every_type_go_where_lance_sends_them_and_keep_their_order(
            values in prop::collection::vec(prop::option::weighted(0.9, any::<i64>()), 0..50),
            buckets in prop_oneof![1u32..6, 1u32..=MAX_BUCKETS],
        ) {
            for array in arrays(&values) {
                let batch = batch_of(array);
                let router = Router::try_new(&bucket(buckets), &batch.schema()).unwrap();
                let expected = lance_route(&batch, buckets);
                prop_assert_eq!(&router.route(&batch).unwrap(), &expected);

                let mut seen = 0;
                for (bucket, part) in router.split(&batch).unwrap() {
                    let rows = part.column(1).as_primitive::<Int64Type>().values().to_vec();
                    let of_bucket = (0..expected.len()).filter(|r| expected[*r] == bucket).map(|r| r as i64);
                    prop_assert_eq!(rows, of_bucket.collect::<Vec<_>>());
                    seen += part.num_rows();
                }
                prop_assert_eq!(seen, batch.num_rows());
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

    /// Placement is written to storage by where rows are, so it must never change. MemWAL hashes narrow integers as
    /// four bytes, and the tail of a string byte by byte, so these are not Iceberg's buckets.
    #[test]
    fn placement_never_changes() {
        assert_eq!(route(Arc::new(Int32Array::from(vec![Some(1), Some(2), None, Some(3)])), 8), [2, 7, 0, 1]);
        assert_eq!(route(Arc::new(StringArray::from(vec![Some("a"), Some("b"), None])), 8), [1, 5, 0]);
        assert_ne!(route(Arc::new(StringArray::from(vec!["iceberg"])), MAX_BUCKETS), [bucket_of_hash(1210000089)]);
    }

    #[test]
    fn a_batch_for_one_bucket_is_passed_on_without_a_copy() {
        let batch = batch_of(Arc::new(Int64Array::from(vec![7; 5])));
        for sharding in [Sharding::Unsharded, bucket(1), bucket(16)] {
            let parts = Router::try_new(&sharding, &batch.schema()).unwrap().split(&batch).unwrap();
            assert_eq!(parts.len(), 1);
            assert!(Arc::ptr_eq(parts[0].1.column(0), batch.column(0)));
        }
    }

    #[test]
    fn a_batch_with_another_type_than_the_table_is_refused() {
        let table = batch_of(Arc::new(Int64Array::from(vec![1])));
        let router = Router::try_new(&bucket(4), &table.schema()).unwrap();
        let error = router.route(&batch_of(Arc::new(Int32Array::from(vec![1])))).unwrap_err();
        assert!(error.to_string().contains("`id` is Int32 but the table's is Int64"), "{error}");
        let error = router.route(&table.project(&[1]).unwrap()).unwrap_err();
        assert!(error.to_string().contains("`id` is missing"), "{error}");
    }

    #[test]
    fn what_validates_can_be_hashed_and_the_rest_is_refused() {
        for array in arrays(&[Some(1)]) {
            let batch = batch_of(array);
            bucket(2).validate(&batch.schema(), &[]).unwrap();
        }
        for data_type in [DataType::Utf8View, DataType::Binary, DataType::Date64, DataType::Decimal128(9, 2)] {
            let schema = Schema::new(vec![Field::new("id", data_type.clone(), true)]);
            let error = bucket(2).validate(&schema, &[]).unwrap_err();
            assert!(error.to_string().contains("cannot be hashed"), "{error}");
        }
        let schema = Schema::new(vec![
            Field::new("id", DataType::Timestamp(Second, None), false),
            Field::new("other", DataType::Utf8, false),
        ]);
        bucket(MAX_BUCKETS).validate(&schema, &["other".into(), "id".into()]).unwrap();
        for (sharding, key, reason) in [
            (bucket(0), vec![], "must be 1 to 1024"),
            (bucket(MAX_BUCKETS + 1), vec![], "must be 1 to 1024"),
            (Sharding::Bucket { column: "nosuch".into(), buckets: 2 }, vec![], "`nosuch` is not in"),
            (bucket(2), vec!["other".to_string()], "`id` is not part of the primary key (other)"),
        ] {
            let error = sharding.validate(&schema, &key).unwrap_err();
            assert!(matches!(&error, Error::InvalidOptions(_)));
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn text_and_sharding_convert_both_ways() {
        for (text, sharding) in [
            ("unsharded", Sharding::Unsharded),
            ("bucket(id,4)", bucket(4)),
            ("bucket(a,b (c),1024)", Sharding::Bucket { column: "a,b (c)".into(), buckets: 1024 }),
        ] {
            assert_eq!(text.parse::<Sharding>().unwrap(), sharding);
            assert_eq!(sharding.to_string(), text);
        }
        assert_eq!(" bucket( id , 4 ) ".parse::<Sharding>().unwrap(), bucket(4));
        for (text, reason) in [
            ("", "write `unsharded` or"),
            ("bucket", "write `unsharded` or"),
            ("bucket(id)", "names a column and a number"),
            ("bucket(,4)", "name is missing"),
            ("bucket(id,0)", "must be 1 to 1024, not `0`"),
            ("bucket(id,1025)", "must be 1 to 1024, not `1025`"),
            ("bucket(id,many)", "must be 1 to 1024, not `many`"),
        ] {
            let error = text.parse::<Sharding>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
