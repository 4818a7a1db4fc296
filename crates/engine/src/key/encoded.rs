//! The keys of a batch, encoded.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Date64Type, Int8Type, Int16Type, Int32Type, Int64Type, Time32MillisecondType, Time32SecondType,
    Time64MicrosecondType, Time64NanosecondType, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, BinaryArray};
use arrow_row::Rows;
use arrow_schema::{DataType, TimeUnit};

/// One byte string for each row of a batch, in row order. Those of one [`KeyEncoder`](super::KeyEncoder) have one form.
#[derive(Debug)]
pub(crate) enum Keys {
    /// Of a single column of integers, dates or times: eight bytes each, so that the order of bytes is that of numbers.
    Numbers(Vec<[u8; 8]>),
    /// Of a single column of strings or bytes: themselves. It shares the column's buffers.
    Bytes(BinaryArray),
    /// Of any other columns.
    Rows(Rows),
}

impl Keys {
    /// The keys of a single column without nulls; `None` for a type that `arrow_row` has to encode.
    pub(super) fn of_column(column: &ArrayRef) -> Option<Self> {
        use DataType as D;
        let column = column.as_ref();
        Some(match column.data_type() {
            D::Int8 => signed::<Int8Type>(column),
            D::Int16 => signed::<Int16Type>(column),
            D::Int32 => signed::<Int32Type>(column),
            D::Int64 => signed::<Int64Type>(column),
            D::Date32 => signed::<Date32Type>(column),
            D::Date64 => signed::<Date64Type>(column),
            D::Time32(TimeUnit::Second) => signed::<Time32SecondType>(column),
            D::Time32(TimeUnit::Millisecond) => signed::<Time32MillisecondType>(column),
            D::Time64(TimeUnit::Microsecond) => signed::<Time64MicrosecondType>(column),
            D::Time64(TimeUnit::Nanosecond) => signed::<Time64NanosecondType>(column),
            D::Timestamp(TimeUnit::Second, _) => signed::<TimestampSecondType>(column),
            D::Timestamp(TimeUnit::Millisecond, _) => signed::<TimestampMillisecondType>(column),
            D::Timestamp(TimeUnit::Microsecond, _) => signed::<TimestampMicrosecondType>(column),
            D::Timestamp(TimeUnit::Nanosecond, _) => signed::<TimestampNanosecondType>(column),
            D::UInt8 => unsigned::<UInt8Type>(column),
            D::UInt16 => unsigned::<UInt16Type>(column),
            D::UInt32 => unsigned::<UInt32Type>(column),
            D::UInt64 => unsigned::<UInt64Type>(column),
            D::Utf8 => Self::Bytes(column.as_string::<i32>().clone().into()),
            D::Binary => Self::Bytes(column.as_binary::<i32>().clone()),
            _ => return None,
        })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Numbers(numbers) => numbers.len(),
            Self::Bytes(array) => array.len(),
            Self::Rows(rows) => rows.num_rows(),
        }
    }

    /// The key of a row; empty for a row that there is not.
    pub(crate) fn get(&self, row: usize) -> &[u8] {
        match self {
            Self::Numbers(numbers) => numbers.get(row).map_or(&[], |number| number.as_slice()),
            Self::Bytes(array) if row < array.len() => array.value(row),
            Self::Rows(rows) if row < rows.num_rows() => rows.row(row).data(),
            Self::Bytes(_) | Self::Rows(_) => &[],
        }
    }

    /// All of them, in row order.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|row| self.get(row))
    }
}

fn signed<T: ArrowPrimitiveType<Native: Into<i64>>>(column: &dyn Array) -> Keys {
    let key = |number: &T::Native| ((*number).into() ^ i64::MIN).to_be_bytes();
    Keys::Numbers(column.as_primitive::<T>().values().iter().map(key).collect())
}

fn unsigned<T: ArrowPrimitiveType<Native: Into<u64>>>(column: &dyn Array) -> Keys {
    let key = |number: &T::Native| (*number).into().to_be_bytes();
    Keys::Numbers(column.as_primitive::<T>().values().iter().map(key).collect())
}
