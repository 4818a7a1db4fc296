//! Sends the rows of batches to shards. The hash is Lance's own, called and not copied, so that Lance and Fencepost
//! always agree on the place of a row.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, RecordBatch, UInt64Array};
use arrow_row::{RowConverter, SortField};
use arrow_schema::{DataType, Schema};
use arrow_select::take::take_record_batch;
use datafusion::scalar::ScalarValue;
use lance::dataset::mem_wal::evaluate_sharding_spec_with_embedded_columns;
use lance_index::mem_wal::{ShardingField, ShardingSpec};

use super::{ShardValue, Sharding};
use crate::error::{Error, Result};

/// Sends rows to shards by their values.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    by: Option<By>,
}

#[derive(Debug, Clone)]
struct By {
    column: String,
    data_type: DataType,
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    Bucket { buckets: u32, spec: ShardingSpec },
    Identity { converter: Arc<RowConverter> },
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
        let Some(column) = sharding.column() else {
            return Ok(Self { by: None });
        };
        let failed = || Error::arrow(format!("sharding `{sharding}`"));
        let data_type = schema.field_with_name(column).map_err(failed())?.data_type().clone();
        let rule = match sharding {
            Sharding::Bucket { buckets, .. } => Rule::Bucket { buckets: *buckets, spec: embedded_spec(*buckets) },
            _ => {
                let converter = RowConverter::new(vec![SortField::new(data_type.clone())]).map_err(failed())?;
                Rule::Identity { converter: Arc::new(converter) }
            }
        };
        Ok(Self { by: Some(By { column: column.to_owned(), data_type, rule }) })
    }

    /// The batch's rows by the shard that they belong to; only shards that get rows, buckets in their order, values in
    /// that of their first rows. Rows keep their order. If all go to one shard, the batch is passed on as it is.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] if the sharding column is missing or has another type than the table's, which would
    /// send the same value to another shard; [`Error::TooLarge`] if the batch has more values than `max_shards`.
    pub(crate) fn split(&self, batch: &RecordBatch, max_shards: usize) -> Result<Vec<(ShardValue, RecordBatch)>> {
        if batch.num_rows() == 0 {
            return Ok(vec![]);
        }
        let Some(by) = &self.by else {
            return Ok(vec![(ShardValue::All, batch.clone())]);
        };
        let mut groups = by.groups(batch, max_shards)?;
        if groups.len() == 1 {
            return Ok(groups.pop().map(|(value, _)| (value, batch.clone())).into_iter().collect());
        }
        let parts = groups.into_iter().map(|(value, rows)| {
            let part = take_record_batch(batch, &UInt64Array::from(rows))
                .map_err(Error::arrow(format!("taking the rows of {value}")))?;
            Ok((value, part))
        });
        parts.collect()
    }

    /// Checks that every row belongs to the shard of this value.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] that names a row which does not; otherwise as [`split`](Self::split).
    pub(crate) fn check(&self, batch: &RecordBatch, value: &ShardValue) -> Result<()> {
        if self.by.is_none() {
            return Ok(());
        }
        match self.groups(batch)?.into_iter().find(|(found, _)| found != value) {
            None => Ok(()),
            Some((found, rows)) => Err(Error::InvalidBatch(format!(
                "row {} (counted from 0) belongs to the shard of {found}, and this one is that of {value}; a \
                 `TableWriter` sends rows to their shards",
                rows.first().copied().unwrap_or_default()
            ))),
        }
    }

    /// The numbers of a batch's rows by the shard that they belong to.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`], as [`split`](Self::split).
    pub(crate) fn groups(&self, batch: &RecordBatch) -> Result<Vec<(ShardValue, Vec<u64>)>> {
        match &self.by {
            Some(by) => by.groups(batch, usize::MAX),
            None => Ok(vec![(ShardValue::All, (0..batch.num_rows() as u64).collect())]),
        }
    }

    /// The shards of these values of the sharding column.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] if they have another type than the column.
    pub(crate) fn values(&self, values: &ArrayRef) -> Result<HashSet<ShardValue>> {
        let Some(by) = &self.by else {
            return Ok(HashSet::from([ShardValue::All]));
        };
        by.check_type(values)?;
        match &by.rule {
            Rule::Bucket { buckets, spec } => {
                Ok(by.hash(values, *buckets, spec)?.into_iter().map(ShardValue::Bucket).collect())
            }
            Rule::Identity { .. } => {
                let value = |row| Ok(ShardValue::Identity(ScalarValue::try_from_array(values, row)?));
                (0..values.len()).map(value).collect()
            }
        }
    }
}

impl By {
    fn groups(&self, batch: &RecordBatch, max_shards: usize) -> Result<Vec<(ShardValue, Vec<u64>)>> {
        let Some(values) = batch.column_by_name(&self.column) else {
            return Err(Error::InvalidBatch(format!("the sharding column `{}` is missing", self.column)));
        };
        self.check_type(values)?;
        match &self.rule {
            Rule::Bucket { buckets, spec } => {
                let mut rows_of: Vec<Vec<u64>> = vec![vec![]; *buckets as usize];
                for (row, bucket) in (0u64..).zip(self.hash(values, *buckets, spec)?) {
                    if let Some(rows) = rows_of.get_mut(bucket as usize) {
                        rows.push(row);
                    }
                }
                let buckets = (0u32..).zip(rows_of).filter(|(_, rows)| !rows.is_empty());
                Ok(buckets.map(|(bucket, rows)| (ShardValue::Bucket(bucket), rows)).collect())
            }
            Rule::Identity { converter } => self.by_value(values, converter, max_shards),
        }
    }

    fn check_type(&self, values: &ArrayRef) -> Result<()> {
        match values.data_type() == &self.data_type {
            true => Ok(()),
            false => Err(Error::InvalidBatch(format!(
                "the sharding column `{}` is {} but the table's is {}",
                self.column,
                values.data_type(),
                self.data_type
            ))),
        }
    }

    /// The bucket of each value.
    fn hash(&self, values: &ArrayRef, buckets: u32, spec: &ShardingSpec) -> Result<Vec<u32>> {
        let hashed = RecordBatch::try_from_iter_with_nullable([(HASHED, Arc::clone(values), true)])
            .map_err(Error::arrow("preparing the sharding column"))?;
        let evaluated = evaluate_sharding_spec_with_embedded_columns(&hashed, spec)
            .map_err(Error::lance(format!("hashing the sharding column `{}`", self.column)))?;
        let routed = evaluated.columns().first().and_then(|c| c.as_primitive_opt::<Int32Type>());
        // Pair check: a bucket out of range would lose the row.
        let in_range = |bucket: &i32| u32::try_from(*bucket).ok().filter(|b| *b < buckets);
        routed
            .filter(|r| r.null_count() == 0 && r.len() == values.len())
            .and_then(|r| r.values().iter().map(in_range).collect::<Option<Vec<u32>>>())
            .ok_or_else(|| {
                Error::NotSupported(format!("this Lance does not give bucket numbers for `{}`", self.column))
            })
    }

    fn by_value(
        &self,
        values: &ArrayRef,
        converter: &RowConverter,
        max_shards: usize,
    ) -> Result<Vec<(ShardValue, Vec<u64>)>> {
        let failed = || Error::arrow(format!("comparing the sharding column `{}`", self.column));
        let encoded = converter.convert_columns(&[Arc::clone(values)]).map_err(failed())?;
        let mut numbers: HashMap<&[u8], usize> = HashMap::new();
        let mut rows_of: Vec<Vec<u64>> = vec![];
        for (row, value) in (0u64..).zip(encoded.iter()) {
            let number = *numbers.entry(value.data()).or_insert(rows_of.len());
            match rows_of.get_mut(number) {
                Some(rows) => rows.push(row),
                None => rows_of.push(vec![row]),
            }
        }
        if rows_of.len() > max_shards {
            return Err(Error::TooLarge {
                what: format!("the number of values of `{}` in one batch, each a shard,", self.column),
                actual: rows_of.len(),
                limit_name: "max_shards",
                limit: max_shards,
            });
        }
        let values = rows_of.into_iter().map(|rows| {
            let first = rows.first().and_then(|row| usize::try_from(*row).ok()).unwrap_or_default();
            Ok((ShardValue::Identity(ScalarValue::try_from_array(values, first)?), rows))
        });
        values.collect()
    }
}

/// The bucket transform of a column called [`HASHED`].
fn embedded_spec(buckets: u32) -> ShardingSpec {
    let field = ShardingField {
        field_id: "bucket".into(),
        source_ids: vec![],
        transform: Some("bucket".into()),
        expression: None,
        result_type: "int32".into(),
        parameters: HashMap::from([("num_buckets".into(), buckets.to_string()), ("column".into(), HASHED.into())]),
    };
    ShardingSpec { spec_id: 1, fields: vec![field] }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
