//! The keys that somebody looks for: each once, in every form in which sources are asked for them. It asks nobody.

use std::cmp::Ordering;
use std::collections::HashSet;

use arrow_array::{Array, RecordBatch, UInt64Array};
use arrow_schema::DataType;
use arrow_select::take::take_record_batch;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, ident, lit};

use super::predicate::Candidates;
use super::source::is_plain_column;
use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::key::{KeyEncoder, KeySet, Keys};
use crate::rows::RowFormat;
use crate::sstable::{BloomFilter, IndexKeys, Statistics, ends_of, has_statistics, key_hashes};

/// Keys that a source without an index is asked for by a filter. If there are more, all of its keys are read: that many
/// comparisons take longer.
const MAX_FILTER_KEYS: usize = 10_000;

/// The keys, numbered 0, 1, 2 … in the order in which they came first.
#[derive(Debug)]
pub(crate) struct WantedKeys {
    batch: RecordBatch,
    keys: Keys,
    numbers: KeySet,
    hashes: Vec<u64>,
    index_keys: IndexKeys,
    filter: Option<Expr>,
    ranges: Vec<Range>,
}

/// Between which values of a key column all keys are.
#[derive(Debug)]
struct Range {
    column: String,
    data_type: DataType,
    least: ScalarValue,
    greatest: ScalarValue,
}

impl WantedKeys {
    /// The keys that these candidates leave; `None` without a primary key, or if a key column is open or there are too
    /// many.
    pub(crate) fn of(candidates: &Candidates, format: &RowFormat) -> Result<Option<Self>> {
        let Some(encoder) = &format.keys else {
            return Ok(None);
        };
        match candidates.combinations(&format.primary_key) {
            Some(rows) => Self::of_keys(&rows, encoder, format).map(Some),
            None => Ok(None),
        }
    }

    /// The keys of a batch that has the key columns in the table's types.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] if a key column is missing or null.
    pub(super) fn of_keys(batch: &RecordBatch, encoder: &KeyEncoder, format: &RowFormat) -> Result<Self> {
        let (mut numbers, mut firsts) = (KeySet::new(), Vec::with_capacity(batch.num_rows()));
        for (row, key) in (0u64..).zip(encoder.encode(batch)?.iter()) {
            let next = numbers.len();
            if numbers.insert(key) == next {
                firsts.push(row);
            }
        }
        let batch = match firsts.len() == batch.num_rows() {
            true => batch.clone(),
            false => take_record_batch(batch, &UInt64Array::from(firsts)).map_err(Error::arrow("choosing keys"))?,
        };
        Ok(Self {
            keys: encoder.encode(&batch)?,
            hashes: key_hashes(&batch, &format.primary_key)?,
            index_keys: IndexKeys::of(&batch, &format.primary_key)?,
            filter: filter(&batch, format)?,
            ranges: ranges(&batch)?,
            numbers,
            batch,
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key columns, in the order of the numbers.
    pub(super) fn batch(&self) -> &RecordBatch {
        &self.batch
    }

    /// A key, encoded with the table's [`KeyEncoder`]; empty for a number that there is not.
    pub(super) fn key(&self, number: usize) -> &[u8] {
        self.keys.get(number)
    }

    /// The number of an encoded key, if it is wanted.
    pub(super) fn number_of(&self, key: &[u8]) -> Option<usize> {
        self.numbers.find(key)
    }

    /// Those of these keys that an SSTable with this filter may have.
    pub(super) fn possible(&self, numbers: &[usize], filter: &BloomFilter) -> Vec<usize> {
        let may_hold = |number: &&usize| self.hashes.get(**number).is_none_or(|hash| filter.may_hold(*hash));
        numbers.iter().filter(may_hold).copied().collect()
    }

    /// Whether an SSTable of these statistics may have any of the keys.
    pub(super) fn may_be_in(&self, statistics: &Statistics, base: &BaseTable) -> bool {
        let overlaps = |range: &Range| {
            let fields = &base.dataset().schema().fields;
            let id = fields.iter().find(|field| field.name == range.column).map(|field| field.id);
            let column = id.and_then(|id| statistics.column(id, &range.data_type));
            let Some((least, greatest)) = column.and_then(|column| column.ends) else {
                return true;
            };
            range.least.partial_cmp(&greatest) != Some(Ordering::Greater)
                && range.greatest.partial_cmp(&least) != Some(Ordering::Less)
        };
        self.ranges.iter().all(overlaps)
    }

    /// The keys as primary-key indexes know them.
    pub(super) fn index_keys(&self) -> &IndexKeys {
        &self.index_keys
    }

    /// A filter for sources that compare themselves. It lets rows with these keys through, and perhaps others; `None` if
    /// Lance cannot compare a column of the key as we do, or there are too many keys.
    pub(super) fn filter(&self) -> Option<&Expr> {
        self.filter.as_ref()
    }
}

/// For each key column whose statistics SSTables have.
fn ranges(batch: &RecordBatch) -> Result<Vec<Range>> {
    let mut ranges = Vec::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if has_statistics(field.data_type()) && !column.is_empty() {
            let (least, greatest) = ends_of(field.data_type(), std::slice::from_ref(column))?;
            ranges.push(Range { column: field.name().clone(), data_type: field.data_type().clone(), least, greatest });
        }
    }
    Ok(ranges)
}

/// For each key column that can be compared, the values that it has in these keys.
fn filter(batch: &RecordBatch, format: &RowFormat) -> Result<Option<Expr>> {
    if batch.num_rows() == 0 || batch.num_rows() > MAX_FILTER_KEYS {
        return Ok(None);
    }
    let mut filters = Vec::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if is_plain_column(field.name(), &format.user) {
            let values = (0..column.len()).map(|row| ScalarValue::try_from_array(column, row));
            let values: HashSet<ScalarValue> = values.collect::<Result<_, _>>()?;
            filters.push(ident(field.name()).in_list(values.into_iter().map(lit).collect(), false));
        }
    }
    Ok(filters.into_iter().reduce(Expr::and))
}
