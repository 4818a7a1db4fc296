//! What values the columns of an SSTable have: for each of some columns the number of nulls, the least and the greatest
//! value. They are made of the rows before they are written, tombstones included, and kept as text in the dataset's config.
//! Only of types whose values every reader orders alike: integers, decimals, dates and times, strings, binary; no floats.

mod check;

use std::collections::HashMap;
use std::fmt::Write;

use arrow_array::{Array, ArrayRef, RecordBatch, make_array};
use arrow_buffer::MutableBuffer;
use arrow_schema::{DataType, Schema};
use datafusion::common::ScalarValue;
use datafusion::functions_aggregate::min_max::{MaxAccumulator, MinAccumulator};
use datafusion::logical_expr::Accumulator;
use lance_core::datatypes::LANCE_FIELD_ID_KEY;

pub(crate) use self::check::StatisticsCheck;
use crate::error::Result;

/// The entry of the dataset's config.
pub(crate) const STATISTICS: &str = "fencepost.statistics";

/// The longest string whose value is kept, in bytes; of a column with a longer least or greatest value only the nulls are.
const MAX_VALUE_BYTES: usize = 64;

/// Columns of a wide table beyond this length of the text are left out, in bytes.
const MAX_TEXT_BYTES: usize = 16 << 10;

/// The statistics of an SSTable.
#[derive(Debug, PartialEq)]
pub(crate) struct Statistics {
    /// Rows, tombstones included.
    rows: u64,
    /// By field id.
    columns: HashMap<i32, ColumnText>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ColumnText {
    nulls: u64,
    /// `None`: not known.
    ends: Option<(Vec<u8>, Vec<u8>)>,
}

/// What is known of a column.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ColumnStatistics {
    pub(crate) rows: u64,
    pub(crate) nulls: u64,
    /// The least and the greatest value, if they are known.
    pub(crate) ends: Option<(ScalarValue, ScalarValue)>,
}

/// Whether the statistics of such a column can be used.
pub(crate) fn has_statistics(data_type: &DataType) -> bool {
    use DataType::{Binary, LargeBinary, LargeUtf8, Utf8};
    (data_type.is_primitive() && !data_type.is_floating())
        || matches!(data_type, Utf8 | LargeUtf8 | Binary | LargeBinary)
}

/// The config's text for these rows, whose columns have their field ids.
pub(super) fn text_of(schema: &Schema, batches: &[RecordBatch]) -> Result<String> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let mut text = rows.to_string();
    for (n, field) in schema.fields().iter().enumerate() {
        let id = field.metadata().get(LANCE_FIELD_ID_KEY).and_then(|id| id.parse::<i32>().ok());
        let Some(id) = id.filter(|_| has_statistics(field.data_type())) else {
            continue;
        };
        let before = text.len();
        let columns: Vec<ArrayRef> = batches.iter().filter_map(|batch| batch.columns().get(n).cloned()).collect();
        let nulls: usize = columns.iter().map(|column| column.null_count()).sum();
        let (least, greatest) = ends_of(field.data_type(), &columns)?;
        // Writing to a string does not fail.
        let _ = write!(text, ";{id},{nulls}");
        if let (Some(least), Some(greatest)) = (bytes_of(&least), bytes_of(&greatest)) {
            let _ = write!(text, ",{},{}", hex(&least), hex(&greatest));
        }
        if text.len() > MAX_TEXT_BYTES {
            text.truncate(before);
            break;
        }
    }
    Ok(text)
}

/// The least and the greatest value of the columns; nulls without any.
pub(crate) fn ends_of(data_type: &DataType, columns: &[ArrayRef]) -> Result<(ScalarValue, ScalarValue)> {
    let (mut least, mut greatest) = (MinAccumulator::try_new(data_type)?, MaxAccumulator::try_new(data_type)?);
    for column in columns {
        least.update_batch(std::slice::from_ref(column))?;
        greatest.update_batch(std::slice::from_ref(column))?;
    }
    Ok((least.evaluate()?, greatest.evaluate()?))
}

/// A value's bytes as Arrow has them in memory; `None` for null, or if there are too many.
fn bytes_of(value: &ScalarValue) -> Option<Vec<u8>> {
    if value.is_null() {
        return None;
    }
    let bytes = match value {
        ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) => text.as_ref()?.as_bytes().to_vec(),
        ScalarValue::Binary(bytes) | ScalarValue::LargeBinary(bytes) => bytes.clone()?,
        other => {
            let data = other.to_array().ok()?.to_data();
            let width = data.data_type().primitive_width()?;
            data.buffers().first()?.as_slice().get(data.offset() * width..(data.offset() + 1) * width)?.to_vec()
        }
    };
    (bytes.len() <= MAX_VALUE_BYTES).then_some(bytes)
}

fn value_of(bytes: &[u8], data_type: &DataType) -> Option<ScalarValue> {
    let text = || String::from_utf8(bytes.to_vec()).ok();
    Some(match data_type {
        DataType::Utf8 => ScalarValue::Utf8(Some(text()?)),
        DataType::LargeUtf8 => ScalarValue::LargeUtf8(Some(text()?)),
        DataType::Binary => ScalarValue::Binary(Some(bytes.to_vec())),
        DataType::LargeBinary => ScalarValue::LargeBinary(Some(bytes.to_vec())),
        other => {
            if other.primitive_width()? != bytes.len() {
                return None;
            }
            ScalarValue::try_from_array(&array_of(other, bytes)?, 0).ok()?
        }
    })
}

fn array_of(data_type: &DataType, bytes: &[u8]) -> Option<ArrayRef> {
    let empty = arrow_array::new_null_array(data_type, 1).to_data();
    let buffer = MutableBuffer::from_iter(bytes.iter().copied()).into();
    let data = empty.into_builder().nulls(None).buffers(vec![buffer]).build().ok()?;
    Some(make_array(data))
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| (high << 4) | low).collect())
}

impl Statistics {
    /// The meaning of a [`text_of`]; `None` for what is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';');
        let rows = parts.next()?.parse().ok()?;
        let mut columns = HashMap::new();
        for part in parts {
            let mut parts = part.split(',');
            let (id, nulls) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let ends = match (parts.next(), parts.next()) {
                (Some(least), Some(greatest)) => Some((unhex(least)?, unhex(greatest)?)),
                _ => None,
            };
            if columns.insert(id, ColumnText { nulls, ends }).is_some() {
                return None;
            }
        }
        Some(Self { rows, columns })
    }

    /// The memory that they hold, in bytes, roughly.
    pub(super) fn bytes(&self) -> usize {
        let ends = |column: &ColumnText| column.ends.as_ref().map_or(0, |(a, b)| a.capacity() + b.capacity());
        self.columns.values().map(|column| size_of::<(i32, ColumnText)>() + 1 + ends(column)).sum()
    }

    /// What is known of the column with this field id and type; `None`: nothing.
    pub(crate) fn column(&self, id: i32, data_type: &DataType) -> Option<ColumnStatistics> {
        let column = self.columns.get(&id).filter(|_| has_statistics(data_type))?;
        let ends = match &column.ends {
            Some((least, greatest)) => Some((value_of(least, data_type)?, value_of(greatest, data_type)?)),
            None => None,
        };
        Some(ColumnStatistics { rows: self.rows, nulls: column.nulls, ends })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use arrow_array::*;
    use arrow_buffer::i256;

    use super::*;

    fn schema_of(batch: &RecordBatch) -> Schema {
        let fields = batch.schema_ref().fields().iter().zip(0..).map(|(field, id): (_, i32)| {
            let metadata = HashMap::from([(LANCE_FIELD_ID_KEY.to_owned(), id.to_string())]);
            field.as_ref().clone().with_metadata(metadata)
        });
        Schema::new(fields.collect::<Vec<_>>())
    }

    #[test]
    fn the_ends_of_every_type_come_back_from_the_text() {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int8Array::from(vec![Some(3), None, Some(-4)])),
            Arc::new(UInt64Array::from(vec![u64::MAX, 0, 7])),
            Arc::new(Int64Array::from(vec![i64::MIN, i64::MAX, 0])),
            Arc::new(StringArray::from(vec![Some(""), Some("b;,"), None])),
            Arc::new(LargeStringArray::from(vec!["ü", "a", "z"])),
            Arc::new(BinaryArray::from(vec![b"\xff".as_slice(), b"", b"a"])),
            Arc::new(Date32Array::from(vec![1, -1, 0])),
            Arc::new(Date64Array::from(vec![1, -1, 0])),
            Arc::new(Time64NanosecondArray::from(vec![1, 5, 0])),
            Arc::new(TimestampMicrosecondArray::from(vec![1, -5, 0]).with_timezone("Europe/Zurich")),
            Arc::new(DurationSecondArray::from(vec![1, -5, 0])),
            Arc::new(Decimal128Array::from(vec![1, -5, 0]).with_precision_and_scale(20, 3).unwrap()),
            Arc::new(Decimal256Array::from(vec![i256::MAX, i256::MIN, i256::ONE])),
            Arc::new(Int32Array::from(vec![None, None, None])),
        ];
        let named = columns.iter().enumerate().map(|(n, column)| (format!("c{n}"), Arc::clone(column), true));
        let batch = RecordBatch::try_from_iter_with_nullable(named).unwrap();
        let halves = [batch.slice(0, 1), batch.slice(1, 2)];
        let statistics = Statistics::parse(&text_of(&schema_of(&batch), &halves).unwrap()).unwrap();
        for (id, column) in (0..).zip(&columns) {
            let found = statistics.column(id, column.data_type()).unwrap();
            assert_eq!((found.rows, found.nulls), (3, column.null_count() as u64), "{}", column.data_type());
            let sorted = arrow_ord::sort::sort(column, None).unwrap();
            let values = sorted.slice(column.null_count(), 3 - column.null_count());
            let ends = (!values.is_empty()).then(|| {
                let at = |n| ScalarValue::try_from_array(&values, n).unwrap();
                (at(0), at(values.len() - 1))
            });
            assert_eq!(found.ends, ends, "{}", column.data_type());
        }
        assert_eq!(statistics.column(99, &DataType::Int8), None);
    }

    #[test]
    fn what_is_too_long_or_has_no_order_is_not_known() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("long", Arc::new(StringArray::from(vec!["x".repeat(65)]))),
            ("float", Arc::new(Float64Array::from(vec![0.0]))),
            ("flag", Arc::new(BooleanArray::from(vec![true]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let statistics =
            Statistics::parse(&text_of(&schema_of(&batch), std::slice::from_ref(&batch)).unwrap()).unwrap();
        let long = statistics.column(0, &DataType::Utf8).unwrap();
        assert_eq!((long.nulls, long.ends), (0, None));
        assert_eq!(statistics.column(1, &DataType::Float64), None);
        assert_eq!(statistics.column(2, &DataType::Boolean), None);
        for text in ["", "x", "3;1", "3;1,0,zz,00", "3;1,0,0,00", "3;1,0;1,0"] {
            assert_eq!(Statistics::parse(text), None, "{text}");
        }
    }
}
