//! Columns of every type that a table stores, with random values: schemas and batches for tests that move rows through
//! log, MemTable, SSTable and base table and want them back unchanged.

use std::sync::Arc;

use arrow_array::types::*;
use arrow_array::*;
use arrow_buffer::{NullBuffer, OffsetBuffer, i256};
use arrow_schema::{DataType, Field, FieldRef, IntervalUnit, Schema, SchemaRef, TimeUnit};
use fencepost_sim::Rng;

/// The key of [`schema`]: `id`.
pub(crate) const ID: &str = "id";

/// Types that a table stores in columns outside of the key, with names for their columns.
pub(crate) fn stored() -> Vec<(String, DataType)> {
    use DataType::*;
    let mut types = vec![
        Null,
        Boolean,
        Int8,
        Int16,
        Int32,
        Int64,
        UInt8,
        UInt16,
        UInt32,
        UInt64,
        Float16,
        Float32,
        Float64,
        Decimal128(38, 5),
        Decimal128(3, -2),
        Decimal256(76, 10),
        Utf8,
        LargeUtf8,
        Utf8View,
        Binary,
        LargeBinary,
        BinaryView,
        FixedSizeBinary(7),
        Date32,
        Date64,
        Time32(TimeUnit::Second),
        Time32(TimeUnit::Millisecond),
        Time64(TimeUnit::Microsecond),
        Time64(TimeUnit::Nanosecond),
    ];
    for unit in [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond] {
        types.push(Duration(unit));
        types.extend([None, Some("Europe/Zurich"), Some("+05:30")].map(|zone| Timestamp(unit, zone.map(Into::into))));
    }
    for key in [Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64] {
        types.push(dictionary(key, Utf8));
    }
    types.extend([LargeUtf8, Binary, Int64, Float32, Boolean].map(|values| dictionary(Int16, values)));
    types.extend(
        [Boolean, Int8, Float32, Float64, UInt64, FixedSizeBinary(2)].map(|values| FixedSizeList(item(values), 3)),
    );
    types.extend([
        List(item(Int32)),
        List(item(Utf8)),
        LargeList(item(LargeBinary)),
        List(item(List(item(Boolean)))),
        LargeList(item(structure(vec![("x", Float64), ("y", List(item(Utf8)))]))),
        List(item(FixedSizeList(item(Float32), 2))),
        List(item(dictionary(Int8, Utf8))),
        structure(vec![("a", Int32), ("b", structure(vec![("c", Utf8), ("d", structure(vec![("e", Date32)]))]))]),
        structure(vec![("l", LargeList(item(Decimal128(9, 2)))), ("v", FixedSizeList(item(Float32), 4))]),
        structure(vec![("d", dictionary(UInt8, Utf8)), ("t", Timestamp(TimeUnit::Second, Some("UTC".into())))]),
        structure(vec![("n", Null), ("m", map(Int32, Utf8, false))]),
        map(Utf8, Int64, false),
        map(Int32, structure(vec![("a", List(item(Utf8)))]), false),
        List(item(map(Utf8, Float32, false))),
        // Views inside of others, which Lance stores without.
        structure(vec![("v", Utf8View), ("w", List(item(BinaryView)))]),
        map(Utf8, Utf8View, false),
        dictionary(Int8, Utf8View),
        // Not everything in a nullable column is nullable, and items may have other names.
        Struct(
            vec![
                Field::new("a", Int32, false),
                Field::new("b", List(Arc::new(Field::new("element", Utf8, false))), false),
                Field::new("c", FixedSizeList(Arc::new(Field::new("x", Float32, false)), 2), false),
            ]
            .into(),
        ),
    ]);
    types.into_iter().enumerate().map(|(n, data_type)| (format!("c{n}"), data_type)).collect()
}

/// Types that cannot be stored, and a word that the refusal has.
pub(crate) fn refused() -> Vec<(DataType, &'static str)> {
    use DataType::*;
    vec![
        (Interval(IntervalUnit::YearMonth), "Interval"),
        (Interval(IntervalUnit::DayTime), "Interval"),
        (Interval(IntervalUnit::MonthDayNano), "Interval"),
        (Decimal32(5, 2), "Decimal32"),
        (Decimal64(15, 2), "Decimal64"),
        (ListView(item(Int32)), "ListView"),
        (LargeListView(item(Int32)), "LargeListView"),
        (dictionary(Int8, Decimal128(5, 2)), "ictionary"),
        (dictionary(Int8, Timestamp(TimeUnit::Second, None)), "ictionary"),
        (dictionary(Int8, Null), "needs values"),
        (map(Utf8, Int64, true), "keys_sorted"),
        (
            RunEndEncoded(Arc::new(Field::new("run_ends", Int32, false)), Arc::new(Field::new("values", Utf8, true))),
            "RunEndEncoded",
        ),
        (structure(vec![("a", Interval(IntervalUnit::DayTime))]), "Interval"),
        (structure(vec![]), "at least one field"),
        (List(item(structure(vec![("a", structure(vec![]))]))), "`c.item.a`"),
        (structure(vec![("a", Int32), ("b", Int32), ("a", Utf8)]), "the name `a`"),
        (FixedSizeList(item(Utf8), 2), "fixed width"),
        (FixedSizeList(item(BinaryView), 2), "fixed width"),
        (FixedSizeList(item(FixedSizeList(item(LargeBinary), 2)), 2), "fixed width"),
        (FixedSizeList(item(dictionary(Int8, Utf8)), 2), "fixed width"),
        (FixedSizeList(item(structure(vec![("a", Int32)])), 2), "fixed width"),
        (map(Utf8, FixedSizeList(item(Utf8), 2), false), "fixed width"),
        (FixedSizeList(item(Null), 2), "fixed width"),
        (FixedSizeList(item(Int32), 0), "dimension"),
    ]
}

pub(crate) fn item(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("item", data_type, true))
}

pub(crate) fn structure(fields: Vec<(&str, DataType)>) -> DataType {
    DataType::Struct(fields.into_iter().map(|(name, data_type)| Field::new(name, data_type, true)).collect())
}

pub(crate) fn dictionary(key: DataType, values: DataType) -> DataType {
    DataType::Dictionary(Box::new(key), Box::new(values))
}

pub(crate) fn map(key: DataType, value: DataType, sorted: bool) -> DataType {
    let entries = vec![Field::new("key", key, false), Field::new("value", value, true)];
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries.into()), false)), sorted)
}

/// `id` (Int64, not null) and nullable columns of all [`stored`] types.
pub(crate) fn schema() -> SchemaRef {
    let id = Field::new(ID, DataType::Int64, false);
    let others = stored().into_iter().map(|(name, data_type)| Field::new(name, data_type, true));
    Arc::new(Schema::new(std::iter::once(id).chain(others).collect::<Vec<_>>()))
}

/// Rows of these ids with random values in the other columns, about a fifth of them null at every level.
pub(crate) fn batch(schema: &SchemaRef, ids: &[i64], rng: &mut Rng) -> RecordBatch {
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        ID => Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef,
        _ => array(field.data_type(), field.is_nullable(), ids.len(), rng),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

/// Random values of a type.
pub(crate) fn array(data_type: &DataType, nullable: bool, len: usize, rng: &mut Rng) -> ArrayRef {
    use DataType::*;
    let nulls = |rng: &mut Rng| nullable.then(|| NullBuffer::from_iter((0..len).map(|_| !rng.chance(0.2))));
    let lengths = |rng: &mut Rng| (0..len).map(|_| rng.below(4) as usize).collect::<Vec<_>>();
    macro_rules! primitive {
        ($type:ty, $value:expr) => {{
            let value: fn(&mut Rng) -> <$type as ArrowPrimitiveType>::Native = $value;
            let values = (0..len).map(|_| value(rng)).collect::<Vec<_>>();
            let array = PrimitiveArray::<$type>::new(values.into(), nulls(rng));
            Arc::new(array.with_data_type(data_type.clone())) as ArrayRef
        }};
    }
    match data_type {
        Null => Arc::new(NullArray::new(len)),
        Boolean => Arc::new(BooleanArray::new((0..len).map(|_| rng.chance(0.5)).collect(), nulls(rng))),
        Int8 => primitive!(Int8Type, |rng| rng.next_u64() as i8),
        Int16 => primitive!(Int16Type, |rng| rng.next_u64() as i16),
        Int32 => primitive!(Int32Type, |rng| rng.next_u64() as i32),
        Int64 => primitive!(Int64Type, |rng| rng.next_u64() as i64),
        UInt8 => primitive!(UInt8Type, |rng| rng.next_u64() as u8),
        UInt16 => primitive!(UInt16Type, |rng| rng.next_u64() as u16),
        UInt32 => primitive!(UInt32Type, |rng| rng.next_u64() as u32),
        UInt64 => primitive!(UInt64Type, |rng| rng.next_u64()),
        Float16 => {
            let halves = array(&Float32, nullable, len, rng);
            arrow_cast::cast(&halves, &Float16).unwrap()
        }
        Float32 => primitive!(Float32Type, |rng| [0.0, -0.0, f32::INFINITY, rng.unit() as f32][rng.below(4) as usize]),
        Float64 => primitive!(Float64Type, |rng| [0.0, -0.0, f64::MIN, rng.unit()][rng.below(4) as usize]),
        Decimal128(3, _) => primitive!(Decimal128Type, |rng| i128::from(rng.next_u64() as i8)),
        Decimal128(9, _) => primitive!(Decimal128Type, |rng| i128::from(rng.next_u64() as i16)),
        Decimal128(..) => primitive!(Decimal128Type, |rng| i128::from(rng.next_u64() as i64) << 50),
        Decimal256(..) => primitive!(Decimal256Type, |rng| {
            i256::from_i128(i128::from(rng.next_u64() as i64) << 60).wrapping_mul(i256::from_i128(1 << 100))
        }),
        Date32 => primitive!(Date32Type, |rng| rng.next_u64() as i32 % 100_000),
        Date64 => primitive!(Date64Type, |rng| (rng.next_u64() as i64 % 100_000) * 86_400_000),
        Time32(TimeUnit::Second) => primitive!(Time32SecondType, |rng| rng.below(86_400) as i32),
        Time32(_) => primitive!(Time32MillisecondType, |rng| rng.below(86_400_000) as i32),
        Time64(TimeUnit::Microsecond) => primitive!(Time64MicrosecondType, |rng| rng.below(86_400_000_000) as i64),
        Time64(_) => primitive!(Time64NanosecondType, |rng| rng.below(86_400_000_000_000) as i64),
        Timestamp(TimeUnit::Second, _) => primitive!(TimestampSecondType, |rng| rng.next_u64() as i32 as i64),
        Timestamp(TimeUnit::Millisecond, _) => primitive!(TimestampMillisecondType, |rng| rng.next_u64() as i32 as i64),
        Timestamp(TimeUnit::Microsecond, _) => primitive!(TimestampMicrosecondType, |rng| rng.next_u64() as i64 >> 12),
        Timestamp(TimeUnit::Nanosecond, _) => primitive!(TimestampNanosecondType, |rng| rng.next_u64() as i64),
        Duration(TimeUnit::Second) => primitive!(DurationSecondType, |rng| rng.next_u64() as i32 as i64),
        Duration(TimeUnit::Millisecond) => primitive!(DurationMillisecondType, |rng| rng.next_u64() as i32 as i64),
        Duration(TimeUnit::Microsecond) => primitive!(DurationMicrosecondType, |rng| rng.next_u64() as i64),
        Duration(TimeUnit::Nanosecond) => primitive!(DurationNanosecondType, |rng| rng.next_u64() as i64),
        Utf8 | LargeUtf8 | Utf8View => {
            let nulls = nulls(rng);
            let text = |n| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(n)).then(|| text(rng));
            let texts: StringArray = (0..len).map(text).collect();
            arrow_cast::cast(&texts, data_type).unwrap()
        }
        Binary | LargeBinary | BinaryView => {
            let nulls = nulls(rng);
            let bytes = |n| {
                let len = rng.below(40) as usize;
                nulls.as_ref().is_none_or(|nulls| nulls.is_valid(n)).then(|| rng.bytes(len))
            };
            let bytes: BinaryArray = (0..len).map(bytes).collect();
            arrow_cast::cast(&bytes, data_type).unwrap()
        }
        FixedSizeBinary(width) => {
            let bytes = rng.bytes(len * *width as usize);
            Arc::new(FixedSizeBinaryArray::new(*width, bytes.into(), nulls(rng)))
        }
        Dictionary(key, values) => {
            // Few different values, so that they repeat.
            let values = array(values, false, 5, rng);
            let key_of = |_| (!nullable || rng.chance(0.8)).then(|| rng.below(5) as i32);
            let keys: ArrayRef = Arc::new((0..len).map(key_of).collect::<Int32Array>());
            let keys = arrow_cast::cast(&keys, key).unwrap();
            let data = keys.to_data().into_builder().data_type(data_type.clone()).add_child_data(values.to_data());
            make_array(data.build().unwrap())
        }
        List(field) => {
            let offsets = OffsetBuffer::<i32>::from_lengths(lengths(rng));
            let values = array(field.data_type(), field.is_nullable(), offsets[len] as usize, rng);
            Arc::new(ListArray::new(Arc::clone(field), offsets, values, nulls(rng)))
        }
        LargeList(field) => {
            let offsets = OffsetBuffer::<i64>::from_lengths(lengths(rng));
            let values = array(field.data_type(), field.is_nullable(), offsets[len] as usize, rng);
            Arc::new(LargeListArray::new(Arc::clone(field), offsets, values, nulls(rng)))
        }
        FixedSizeList(field, width) => {
            let values = array(field.data_type(), field.is_nullable(), len * *width as usize, rng);
            Arc::new(FixedSizeListArray::new(Arc::clone(field), *width, values, nulls(rng)))
        }
        Struct(fields) if fields.is_empty() => Arc::new(StructArray::new_empty_fields(len, nulls(rng))),
        Struct(fields) => {
            let children = fields.iter().map(|field| array(field.data_type(), field.is_nullable(), len, rng));
            let children = children.collect();
            Arc::new(StructArray::new(fields.clone(), children, nulls(rng)))
        }
        Map(field, sorted) => {
            let offsets = OffsetBuffer::<i32>::from_lengths(lengths(rng));
            let entries = array(field.data_type(), false, offsets[len] as usize, rng);
            let entries = entries.as_any().downcast_ref::<StructArray>().unwrap().clone();
            Arc::new(MapArray::new(Arc::clone(field), offsets, entries, nulls(rng), *sorted))
        }
        other => panic!("no values of type {other} are known here"),
    }
}

fn text(rng: &mut Rng) -> String {
    let pieces = ["", "a", "ü", "\0", "'", "a text that is too long to be stored inline"];
    (0..rng.below(4)).map(|_| *rng.pick(&pieces).unwrap()).collect()
}
