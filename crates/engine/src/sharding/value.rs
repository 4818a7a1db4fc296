//! What one shard of a table holds, and the bytes and texts that stand for values of a sharding column on storage.

use std::cmp::Ordering;
use std::fmt;

use arrow_schema::DataType;
use datafusion::scalar::ScalarValue;

/// Which rows a shard holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ShardValue {
    /// Every row: the table is unsharded.
    All,
    /// The rows of one bucket, counted from 0.
    Bucket(u32),
    /// The rows with one value of the sharding column, null among the values.
    Identity(ScalarValue),
    /// Whatever its writers put there: the shard's manifest names no value. Lance leaves it to its callers which shard
    /// they write to.
    Unknown,
}

impl ShardValue {
    /// Buckets and values in their order, shards of unknown rows last.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let rank = |value: &Self| match value {
            Self::All => 0,
            Self::Bucket(_) => 1,
            Self::Identity(_) => 2,
            Self::Unknown => 3,
        };
        match (self, other) {
            (Self::Bucket(a), Self::Bucket(b)) => a.cmp(b),
            (Self::Identity(a), Self::Identity(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
            (a, b) => rank(a).cmp(&rank(b)),
        }
    }
}

impl fmt::Display for ShardValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all rows"),
            Self::Bucket(bucket) => write!(f, "bucket {bucket}"),
            Self::Identity(value) => match text(value) {
                Some(text) => write!(f, "value `{text}`"),
                None => f.write_str("value null"),
            },
            Self::Unknown => f.write_str("unknown rows"),
        }
    }
}

/// Lance's name for a type whose values can be shards; `None` for other types.
pub(crate) fn result_type(data_type: &DataType) -> Option<&'static str> {
    Some(match data_type {
        DataType::Int8 => "int8",
        DataType::Int16 => "int16",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::UInt8 => "uint8",
        DataType::UInt16 => "uint16",
        DataType::UInt32 => "uint32",
        DataType::UInt64 => "uint64",
        DataType::Utf8 => "utf8",
        DataType::LargeUtf8 => "large_utf8",
        DataType::Boolean => "boolean",
        _ => return None,
    })
}

/// The inverse of [`result_type`].
pub(crate) fn type_of_result(name: &str) -> Option<DataType> {
    use DataType::*;
    [Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64, Utf8, LargeUtf8, Boolean]
        .into_iter()
        .find(|data_type| result_type(data_type) == Some(name))
}

/// A value as shard manifests hold it: Arrow's little-endian bytes, a Boolean as one byte 0 or 1, a string as it is.
/// `None` for null, and for types that cannot be shards.
pub(crate) fn to_bytes(value: &ScalarValue) -> Option<Vec<u8>> {
    match value {
        ScalarValue::Int8(v) => v.map(|v| v.to_le_bytes().to_vec()),
        ScalarValue::Int16(v) => v.map(|v| v.to_le_bytes().to_vec()),
        ScalarValue::Int32(v) => v.map(|v| v.to_le_bytes().to_vec()),
        ScalarValue::Int64(v) => v.map(|v| v.to_le_bytes().to_vec()),
        ScalarValue::UInt8(v) => v.map(|v| v.to_le_bytes().to_vec()),
        ScalarValue::UInt16(v) => v.map(|v| v.to_le_bytes().to_vec()),
        ScalarValue::UInt32(v) => v.map(|v| v.to_le_bytes().to_vec()),
        ScalarValue::UInt64(v) => v.map(|v| v.to_le_bytes().to_vec()),
        ScalarValue::Boolean(v) => v.map(|v| vec![u8::from(v)]),
        ScalarValue::Utf8(v) | ScalarValue::LargeUtf8(v) => v.as_ref().map(|v| v.clone().into_bytes()),
        _ => None,
    }
}

/// The value that these bytes stand for; `None` if they are no value of the type.
pub(crate) fn from_bytes(data_type: &DataType, bytes: &[u8]) -> Option<ScalarValue> {
    let text = || std::str::from_utf8(bytes).ok().map(str::to_owned);
    Some(match data_type {
        DataType::Int8 => ScalarValue::from(i8::from_le_bytes(bytes.try_into().ok()?)),
        DataType::Int16 => ScalarValue::from(i16::from_le_bytes(bytes.try_into().ok()?)),
        DataType::Int32 => ScalarValue::from(i32::from_le_bytes(bytes.try_into().ok()?)),
        DataType::Int64 => ScalarValue::from(i64::from_le_bytes(bytes.try_into().ok()?)),
        DataType::UInt8 => ScalarValue::from(u8::from_le_bytes(bytes.try_into().ok()?)),
        DataType::UInt16 => ScalarValue::from(u16::from_le_bytes(bytes.try_into().ok()?)),
        DataType::UInt32 => ScalarValue::from(u32::from_le_bytes(bytes.try_into().ok()?)),
        DataType::UInt64 => ScalarValue::from(u64::from_le_bytes(bytes.try_into().ok()?)),
        DataType::Boolean => match bytes {
            [0] => ScalarValue::from(false),
            [1] => ScalarValue::from(true),
            _ => return None,
        },
        DataType::Utf8 => ScalarValue::Utf8(Some(text()?)),
        DataType::LargeUtf8 => ScalarValue::LargeUtf8(Some(text()?)),
        _ => return None,
    })
}

/// A value as text: a number in decimal, `true` or `false`, a string as it is. `None` for null. Different values of
/// one type have different texts. Shard ids derive from it, so it must never change.
pub(crate) fn text(value: &ScalarValue) -> Option<String> {
    match value {
        ScalarValue::Int8(v) => v.map(|v| v.to_string()),
        ScalarValue::Int16(v) => v.map(|v| v.to_string()),
        ScalarValue::Int32(v) => v.map(|v| v.to_string()),
        ScalarValue::Int64(v) => v.map(|v| v.to_string()),
        ScalarValue::UInt8(v) => v.map(|v| v.to_string()),
        ScalarValue::UInt16(v) => v.map(|v| v.to_string()),
        ScalarValue::UInt32(v) => v.map(|v| v.to_string()),
        ScalarValue::UInt64(v) => v.map(|v| v.to_string()),
        ScalarValue::Boolean(v) => v.map(|v| v.to_string()),
        ScalarValue::Utf8(v) | ScalarValue::LargeUtf8(v) => v.clone(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use super::*;

    fn values() -> Vec<ScalarValue> {
        let texts = ["", "a", "null", "true", "1", "ü"];
        let mut values: Vec<ScalarValue> = texts.iter().map(|t| ScalarValue::Utf8(Some((*t).into()))).collect();
        values.extend(texts.iter().map(|t| ScalarValue::LargeUtf8(Some((*t).into()))));
        values.extend([true, false].map(ScalarValue::from));
        values.extend([i8::MIN, -1, 0, i8::MAX].map(ScalarValue::from));
        values.extend([i16::MIN, 258].map(ScalarValue::from));
        values.extend([i32::MIN, 258].map(ScalarValue::from));
        values.extend([i64::MIN, 258].map(ScalarValue::from));
        values.extend([u8::MAX, 0].map(ScalarValue::from));
        values.extend([u16::MAX, 258].map(ScalarValue::from));
        values.extend([u32::MAX, 258].map(ScalarValue::from));
        values.extend([u64::MAX, 258].map(ScalarValue::from));
        values
    }

    #[test]
    fn every_value_comes_back_from_its_bytes_and_has_a_text_of_its_own() {
        let mut seen = HashSet::new();
        for value in values() {
            let data_type = value.data_type();
            assert_eq!(from_bytes(&data_type, &to_bytes(&value).unwrap()).unwrap(), value);
            assert_eq!(type_of_result(result_type(&data_type).unwrap()).unwrap(), data_type);
            assert!(seen.insert((data_type.clone(), text(&value).unwrap())), "{value:?}");
            let null = ScalarValue::try_new_null(&data_type).unwrap();
            assert_eq!((to_bytes(&null), text(&null)), (None, None));
        }
    }

    /// Written down: manifests on storage hold them.
    #[test]
    fn bytes_are_little_endian_and_strings_as_they_are() {
        assert_eq!(to_bytes(&ScalarValue::from(258_i32)).unwrap(), [2, 1, 0, 0]);
        assert_eq!(to_bytes(&ScalarValue::from(-2_i64)).unwrap(), (-2_i64).to_le_bytes());
        assert_eq!(to_bytes(&ScalarValue::from(true)).unwrap(), [1]);
        assert_eq!(to_bytes(&ScalarValue::from("eu")).unwrap(), *b"eu");
    }

    #[test]
    fn bytes_that_are_no_value_are_none() {
        for (data_type, bytes) in [
            (DataType::Int32, &[1, 2, 3][..]),
            (DataType::Int32, &[]),
            (DataType::Boolean, &[2]),
            (DataType::Boolean, &[]),
            (DataType::Utf8, &[0xff]),
            (DataType::Float32, &[0; 4]),
        ] {
            assert_eq!(from_bytes(&data_type, bytes), None, "{data_type} {bytes:?}");
        }
    }

    #[test]
    fn shards_stand_in_the_order_of_their_values() {
        let identity = |n: Option<i32>| ShardValue::Identity(ScalarValue::from(n));
        let expected = vec![
            ShardValue::All,
            ShardValue::Bucket(2),
            ShardValue::Bucket(10),
            identity(None),
            identity(Some(-1)),
            identity(Some(7)),
            ShardValue::Unknown,
        ];
        let mut sorted: Vec<_> = expected.iter().rev().cloned().collect();
        sorted.sort_by(ShardValue::order);
        assert_eq!(sorted, expected);
    }
}
