//! Values of one type as values of another, without loss. It owns the rule of what counts as loss and finds the row
//! that breaks it; it knows neither files nor tables.
//!
//! The rule: a value must come back unchanged when it is cast back. Two exceptions: text is parsed, and a float may
//! be rounded to a narrower float (that is what floats do), but must not become infinite.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, UInt64Array};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_cast::{CastOptions, can_cast_types, cast_with_options};
use arrow_schema::{ArrowError, DataType, TimeUnit};
use arrow_select::take::take;

/// Longer values are cut in messages.
const SHOWN_CHARS: usize = 60;

const STRICT: CastOptions<'static> = CastOptions { safe: false, format_options: FormatOptions::new() };

/// The first value that does not fit.
#[derive(Debug)]
pub(crate) struct Misfit {
    /// Index into the array.
    pub(crate) row: usize,
    /// The value, as text.
    pub(crate) value: String,
}

/// Whether values of `from` can be looked at as values of `to` at all.
pub(crate) fn compatible(from: &DataType, to: &DataType) -> bool {
    if from == to || from.is_null() {
        return true;
    }
    if let DataType::Dictionary(_, value) = from {
        return compatible(value, to);
    }
    match (list_item(from), list_item(to)) {
        (Some(from), Some(to)) => return compatible(from, to),
        (None, None) => {}
        // Arrow would wrap a lone value into a list of one.
        _ => return false,
    }
    let number_as_time = |a: &DataType, b: &DataType| a.is_numeric() && b.is_temporal();
    if number_as_time(from, to) || number_as_time(to, from) {
        return false;
    }
    can_cast_types(from, to) || via_float32(from, to)
}

/// Casts every value or says which one does not fit. Nulls stay null.
pub(crate) fn cast_checked(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, Misfit> {
    let from = array.data_type();
    if from == to {
        return Ok(array.clone());
    }
    if let DataType::Dictionary(_, value) = from {
        let plain = strict(array, value).map_err(|_| misfit(array, 0))?;
        return cast_checked(&plain, to);
    }
    // A slice of a list array shares all values with the whole, and a cast would look at those of other rows too.
    let compact;
    let array = match list_item(from) {
        Some(_) => {
            compact = rows(array, 0..array.len()).map_err(|_| misfit(array, 0))?;
            &compact
        }
        None => array,
    };
    let out = match strict(array, to) {
        Ok(out) => out,
        Err(_) => {
            let row = (0..array.len()).find(|&row| cast_row(array, row, to).is_none());
            return Err(misfit(array, row.unwrap_or(0)));
        }
    };
    match first_loss(array, &out) {
        None => Ok(out),
        Some(row) => Err(misfit(array, row)),
    }
}

/// The type inside a list, of any kind of list.
fn list_item(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::List(f)
        | DataType::LargeList(f)
        | DataType::ListView(f)
        | DataType::LargeListView(f)
        | DataType::FixedSizeList(f, _) => Some(f.data_type()),
        _ => None,
    }
}

fn leaf(data_type: &DataType) -> &DataType {
    match list_item(data_type) {
        Some(item) => leaf(item),
        None => data_type,
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn via_float32(from: &DataType, to: &DataType) -> bool {
    is_text(from) && *to == DataType::Float16
}

/// Copies rows into an array of their own.
fn rows(array: &ArrayRef, range: Range<usize>) -> Result<ArrayRef, ArrowError> {
    take(array, &UInt64Array::from_iter_values(range.map(|row| row as u64)), None)
}

fn cast_row(array: &ArrayRef, row: usize, to: &DataType) -> Option<ArrayRef> {
    strict(&rows(array, row..row + 1).ok()?, to).ok()
}

fn strict(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if via_float32(array.data_type(), to) && !can_cast_types(array.data_type(), to) {
        let wide = cast_with_options(array, &DataType::Float32, &STRICT)?;
        return cast_with_options(&wide, to, &STRICT);
    }
    cast_with_options(array, to, &STRICT)
}

/// The first row whose value is not what it was.
fn first_loss(before: &ArrayRef, after: &ArrayRef) -> Option<usize> {
    let (from, to) = (leaf(before.data_type()), leaf(after.data_type()));
    if is_text(from) || is_text(to) || from.is_null() || from == to {
        // A list of the wrong length is an error of the cast itself.
        return None;
    }
    if from.is_floating() && to.is_floating() {
        if infinities(before) == infinities(after) {
            return None;
        }
        return (0..before.len()).find(|&row| infinities(&before.slice(row, 1)) != infinities(&after.slice(row, 1)));
    }
    if let (DataType::Timestamp(from_unit, _), DataType::Timestamp(to_unit, tz)) = (from, to) {
        if unit_digits(to_unit) >= unit_digits(from_unit) {
            return None;
        }
        // Compared within one time zone: going from local time to a zone and back is not the identity.
        let same_zone = DataType::Timestamp(*from_unit, tz.clone());
        if list_item(before.data_type()).is_none() {
            let before = strict(before, &same_zone).ok()?;
            return first_difference(&before, after);
        }
    }
    first_difference(before, after)
}

fn first_difference(before: &ArrayRef, after: &ArrayRef) -> Option<usize> {
    let Ok(back) = strict(after, before.data_type()) else {
        let row = (0..after.len()).find(|&row| cast_row(after, row, before.data_type()).is_none());
        return row.or(Some(0));
    };
    if back.as_ref() == before.as_ref() {
        return None;
    }
    (0..before.len()).find(|&row| back.slice(row, 1) != before.slice(row, 1))
}

fn unit_digits(unit: &TimeUnit) -> u8 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    }
}

/// How many infinite values an array of floats, or of lists of floats, holds.
fn infinities(array: &ArrayRef) -> usize {
    match array.data_type() {
        DataType::Float16 => {
            array.as_primitive::<Float16Type>().iter().flatten().filter(|v| v.to_f32().is_infinite()).count()
        }
        DataType::Float32 => array.as_primitive::<Float32Type>().iter().flatten().filter(|v| v.is_infinite()).count(),
        DataType::Float64 => array.as_primitive::<Float64Type>().iter().flatten().filter(|v| v.is_infinite()).count(),
        DataType::List(_) => array.as_list::<i32>().iter().flatten().map(|v| infinities(&v)).sum(),
        DataType::LargeList(_) => array.as_list::<i64>().iter().flatten().map(|v| infinities(&v)).sum(),
        DataType::FixedSizeList(_, _) => array.as_fixed_size_list().iter().flatten().map(|v| infinities(&v)).sum(),
        _ => 0,
    }
}

fn misfit(array: &ArrayRef, row: usize) -> Misfit {
    let options = FormatOptions::new().with_display_error(true);
    let value = ArrayFormatter::try_new(array.as_ref(), &options)
        .map(|f| f.value(row).to_string())
        .unwrap_or_else(|_| "a value".to_string());
    let value = if is_text(array.data_type()) { format!("{value:?}") } else { value };
    Misfit { row, value: shorten(&value) }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow_array::types::Int64Type;
    use arrow_array::{
        Float64Array, Int32Array, Int64Array, ListArray, StringArray, TimestampMillisecondArray,
        TimestampNanosecondArray,
    };
    use arrow_schema::Field;

    use super::*;

    fn check(array: impl Array + 'static, to: DataType) -> Result<ArrayRef, Misfit> {
        let array: ArrayRef = Arc::new(array);
        assert!(compatible(array.data_type(), &to));
        cast_checked(&array, &to)
    }

    #[test]
    fn numbers_fit_or_are_named() {
        assert!(check(Int64Array::from(vec![Some(1), None, Some(-128)]), DataType::Int8).is_ok());
        let e = check(Int64Array::from(vec![1, 2, 300]), DataType::Int8).unwrap_err();
        assert_eq!((e.row, e.value.as_str()), (2, "300"));
        let e = check(Float64Array::from(vec![1.0, 1.5]), DataType::Int64).unwrap_err();
        assert_eq!((e.row, e.value.as_str()), (1, "1.5"));
        let e = check(Int64Array::from(vec![1, (1 << 53) + 1]), DataType::Float64).unwrap_err();
        assert_eq!(e.row, 1);
        assert!(check(Float64Array::from(vec![1.0, f64::NAN]), DataType::Int64).is_err());
    }

    #[test]
    fn floats_may_round_but_not_overflow() {
        assert!(check(Float64Array::from(vec![0.1, f64::INFINITY]), DataType::Float32).is_ok());
        let e = check(Float64Array::from(vec![0.1, 1e300]), DataType::Float32).unwrap_err();
        assert_eq!(e.row, 1);
    }

    #[test]
    fn text_is_parsed() {
        let e = check(StringArray::from(vec!["1", "x"]), DataType::Int64).unwrap_err();
        assert_eq!((e.row, e.value.as_str()), (1, "\"x\""));
        assert!(check(StringArray::from(vec!["1.5"]), DataType::Float16).is_ok());
        let us = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        assert!(check(StringArray::from(vec!["2013-01-01T10:00:00Z"]), us).is_ok());
        assert!(check(StringArray::from(vec!["2013-01-01"]), DataType::Date32).is_ok());
    }

    #[test]
    fn time_keeps_its_digits() {
        let ms = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        assert!(
            check(TimestampMillisecondArray::from(vec![1]), DataType::Timestamp(TimeUnit::Nanosecond, None)).is_ok()
        );
        assert!(check(TimestampNanosecondArray::from(vec![1_000_000]), ms.clone()).is_ok());
        let e = check(TimestampNanosecondArray::from(vec![1_000_000, 1]), ms).unwrap_err();
        assert_eq!(e.row, 1);
    }

    #[test]
    fn lists_must_have_the_length_of_the_column() {
        let item = Arc::new(Field::new("item", DataType::Int32, true));
        let good = ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), Some(2)])]);
        assert!(check(good, DataType::FixedSizeList(item.clone(), 2)).is_ok());
        let bad =
            ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), Some(2)]), Some(vec![Some(1)])]);
        let e = check(bad, DataType::FixedSizeList(item, 2)).unwrap_err();
        assert_eq!(e.row, 1);
    }

    #[test]
    fn a_slice_is_not_blamed_for_values_of_other_rows() {
        let lists = [Some(vec![Some(1)]), Some(vec![Some(300)]), Some(vec![Some(2)])];
        let whole = ListArray::from_iter_primitive::<Int64Type, _, _>(lists);
        let bytes = DataType::new_list(DataType::Int8, true);
        assert_eq!(check(whole.clone(), bytes.clone()).unwrap_err().row, 1);
        assert!(check(whole.slice(2, 1), bytes).is_ok());
    }

    #[test]
    fn numbers_are_no_times_and_values_no_lists() {
        let list = DataType::new_list(DataType::Int32, true);
        assert!(!compatible(&DataType::Int64, &DataType::Date32));
        assert!(!compatible(&DataType::Date32, &DataType::Int32));
        assert!(!compatible(&DataType::Int32, &list));
        assert!(!compatible(&list, &DataType::Int32));
        assert!(compatible(&DataType::Null, &list));
    }

    #[test]
    fn same_type_is_the_same_array() {
        let array: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        assert!(Arc::ptr_eq(&cast_checked(&array, &DataType::Int32).unwrap(), &array));
    }
}
