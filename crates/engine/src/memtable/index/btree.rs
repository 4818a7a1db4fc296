//! Values of a column in order, in memory: which rows have one of these values, or one in a range.

use std::collections::BTreeMap;
use std::ops::Bound;

use arrow_array::{Array, ArrayRef};
use arrow_row::{RowConverter, SortField};
use arrow_schema::DataType;

use crate::error::{Error, Result};

/// Bytes that the map needs for an entry besides key and rows.
const ENTRY_BYTES: usize = 64;

/// The rows of each value. Values are encoded with `arrow_row`, whose bytes have the order of the values; nulls are left
/// out, since no comparison with a value is true of them.
pub(super) struct BTree {
    converter: RowConverter,
    rows: BTreeMap<Box<[u8]>, Vec<u32>>,
    bytes: usize,
}

impl BTree {
    pub(super) fn new(data_type: &DataType) -> Result<Self> {
        let converter = RowConverter::new(vec![SortField::new(data_type.clone())]);
        let converter = converter.map_err(Error::arrow("ordering the values of an index"))?;
        Ok(Self { converter, rows: BTreeMap::new(), bytes: 0 })
    }

    /// Adds the values of the rows from `first_row` on.
    pub(super) fn add(&mut self, first_row: u32, column: &ArrayRef) -> Result<()> {
        let values = self.encode(column)?;
        for (row, value) in (first_row..).zip(&values).filter(|(row, _)| column.is_valid((row - first_row) as usize)) {
            match self.rows.get_mut(value.data()) {
                Some(rows) => rows.push(row),
                None => {
                    self.bytes += value.data().len() + ENTRY_BYTES;
                    self.rows.insert(value.data().into(), vec![row]);
                }
            }
            self.bytes += size_of::<u32>();
        }
        Ok(())
    }

    /// The rows below `end` whose value is in one of the ranges, in row order, each once.
    pub(super) fn in_ranges(&self, ranges: &[ValueRange], end: u32) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for ValueRange { from, to } in ranges {
            let (from, to) = (self.encode_bound(from)?, self.encode_bound(to)?);
            if is_empty(&from, &to) {
                continue;
            }
            let bounds = (from.as_ref().map(AsRef::as_ref), to.as_ref().map(AsRef::as_ref));
            for rows in self.rows.range::<[u8], _>(bounds).map(|(_, rows)| rows) {
                found.extend(rows.iter().take_while(|row| **row < end));
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes
    }

    fn encode(&self, column: &ArrayRef) -> Result<arrow_row::Rows> {
        let failed = Error::arrow("ordering the values of an index");
        self.converter.convert_columns(&[ArrayRef::clone(column)]).map_err(failed)
    }

    fn encode_bound(&self, bound: &Bound<ArrayRef>) -> Result<Bound<Box<[u8]>>> {
        let encode = |value: &ArrayRef| -> Result<Box<[u8]>> {
            let rows = self.encode(value)?;
            Ok(rows.iter().next().map(|row| row.data().into()).unwrap_or_default())
        };
        Ok(match bound {
            Bound::Included(value) => Bound::Included(encode(value)?),
            Bound::Excluded(value) => Bound::Excluded(encode(value)?),
            Bound::Unbounded => Bound::Unbounded,
        })
    }
}

/// `BTreeMap::range` panics on a range that ends before it starts.
fn is_empty(from: &Bound<Box<[u8]>>, to: &Bound<Box<[u8]>>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from), Bound::Excluded(to))
        | (Bound::Excluded(from), Bound::Included(to))
        | (Bound::Excluded(from), Bound::Excluded(to)) => from >= to,
        _ => false,
    }
}

/// Values between two bounds, each an array of one value of the column's type that is not null.
#[derive(Debug, Clone)]
pub(crate) struct ValueRange {
    pub(crate) from: Bound<ArrayRef>,
    pub(crate) to: Bound<ArrayRef>,
}
