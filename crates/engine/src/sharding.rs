//! Which shard a row belongs to. [`Sharding`] is the table's choice, [`ShardValue`] what one shard holds by it, and the
//! router applies it to batches. Which shards exist, and under which names, is `crate::shards`' and `crate::base`'s.

mod part;
mod router;
mod value;

use std::fmt;
use std::str::FromStr;

use arrow_schema::{DataType, Schema};

pub(crate) use self::part::PartOfRows;
pub(crate) use self::router::Router;
pub use self::value::ShardValue;
pub(crate) use self::value::{from_bytes, result_type, text, to_bytes, type_of_result};
use crate::error::{Error, Result};

/// The most buckets that a table may have: the limit of Lance's MemWAL.
pub(crate) const MAX_BUCKETS: u32 = 1024;

/// How a table's rows are spread over its shards. Written as `unsharded`, `bucket(column,buckets)` or
/// `identity(column)`.
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
    /// Each value of one column has a shard of its own, as the `identity` transform of Lance's MemWAL says; null is
    /// a value too. A shard is made when the first row with its value is written. Until then nobody owns it: a
    /// writer that was replaced, and has not noticed, may still make the shard of a value that its successor has not
    /// written yet.
    Identity {
        /// The column, of integers, strings (Utf8 or LargeUtf8) or Booleans. In a table with a primary key it is
        /// part of the key.
        column: String,
    },
    /// Whoever writes chooses the shard. Lance makes such tables when it is told no sharding; [`Table::create`] does
    /// not. They can be read, and written shard by shard with [`Table::shard_writer`].
    ///
    /// [`Table::create`]: crate::Table::create
    /// [`Table::shard_writer`]: crate::Table::shard_writer
    Manual,
}

impl Sharding {
    /// Checks that a table of this schema and primary key (empty: none) can be created with this sharding.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] that says what to change.
    pub fn validate(&self, schema: &Schema, primary_key: &[String]) -> Result<()> {
        let refuse = |reason: String| Err(Error::InvalidOptions(format!("sharding `{self}`: {reason}")));
        let column = match self {
            Self::Unsharded => return Ok(()),
            Self::Manual => {
                return refuse("rows need a rule for their shard; choose unsharded, bucket or identity".into());
            }
            Self::Bucket { buckets, .. } if !(1..=MAX_BUCKETS).contains(buckets) => {
                return refuse(format!("the number of buckets must be 1 to {MAX_BUCKETS}"));
            }
            Self::Bucket { column, .. } | Self::Identity { column } => column,
        };
        let Ok(field) = schema.field_with_name(column) else {
            return refuse(format!("column `{column}` is not in the table's schema"));
        };
        let data_type = field.data_type();
        match self {
            Self::Bucket { .. } if !is_hashable(data_type) => {
                return refuse(format!(
                    "column `{column}` is {data_type}, which cannot be hashed; choose a column of booleans, integers, \
                     floats, 32-bit dates, times, timestamps or strings (Utf8 or LargeUtf8)"
                ));
            }
            Self::Identity { .. } if result_type(data_type).is_none() => {
                return refuse(format!(
                    "column `{column}` is {data_type}, whose values cannot name shards; choose a column of integers, \
                     strings (Utf8 or LargeUtf8) or booleans"
                ));
            }
            _ => {}
        }
        if self.divides_key(primary_key) {
            return refuse(format!(
                "column `{column}` is not part of the primary key ({}), so versions of one row could land in \
                 different shards; shard by a key column",
                primary_key.join(", ")
            ));
        }
        Ok(())
    }

    /// The column that chooses the shard.
    pub(crate) fn column(&self) -> Option<&str> {
        match self {
            Self::Unsharded | Self::Manual => None,
            Self::Bucket { column, .. } | Self::Identity { column } => Some(column),
        }
    }

    /// Whether versions of one row could land in different shards: the sharding column is not part of the key.
    pub(crate) fn divides_key(&self, primary_key: &[String]) -> bool {
        !primary_key.is_empty() && self.column().is_some_and(|column| !primary_key.iter().any(|key| key == column))
    }

    /// The number of shards as Lance's MemWAL index counts them: 0 where rows decide it.
    pub(crate) fn shards(&self) -> u32 {
        match self {
            Self::Unsharded => 1,
            Self::Bucket { buckets, .. } => *buckets,
            Self::Identity { .. } | Self::Manual => 0,
        }
    }
}

impl fmt::Display for Sharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsharded => f.write_str("unsharded"),
            Self::Bucket { column, buckets } => write!(f, "bucket({column},{buckets})"),
            Self::Identity { column } => write!(f, "identity({column})"),
            Self::Manual => f.write_str("manual"),
        }
    }
}

impl FromStr for Sharding {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        match text {
            "unsharded" => return Ok(Self::Unsharded),
            "manual" => return Ok(Self::Manual),
            _ => {}
        }
        let refuse = |reason: &str| Err(Error::InvalidOptions(format!("sharding `{text}`: {reason}")));
        let arguments = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')').map(str::trim);
        if let Some(column) = arguments("identity") {
            return match column {
                "" => refuse("the column's name is missing, write for example `identity(region)`"),
                column => Ok(Self::Identity { column: column.into() }),
            };
        }
        let Some(arguments) = arguments("bucket") else {
            return refuse("write `unsharded`, `bucket(column,buckets)` such as `bucket(id,4)`, or `identity(column)`");
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use arrow_schema::{Field, TimeUnit};

    use super::*;

    fn bucket(buckets: u32) -> Sharding {
        Sharding::Bucket { column: "id".into(), buckets }
    }

    fn identity(column: &str) -> Sharding {
        Sharding::Identity { column: column.into() }
    }

    #[test]
    fn what_cannot_be_sharded_is_refused() {
        for data_type in [DataType::Utf8View, DataType::Binary, DataType::Date64, DataType::Decimal128(9, 2)] {
            let schema = Schema::new(vec![Field::new("id", data_type.clone(), true)]);
            let error = bucket(2).validate(&schema, &[]).unwrap_err();
            assert!(error.to_string().contains("cannot be hashed"), "{error}");
            let error = identity("id").validate(&schema, &[]).unwrap_err();
            assert!(error.to_string().contains("cannot name shards"), "{error}");
        }
        let schema = Schema::new(vec![
            Field::new("id", DataType::Timestamp(TimeUnit::Second, None), false),
            Field::new("other", DataType::Utf8, false),
        ]);
        bucket(MAX_BUCKETS).validate(&schema, &["other".into(), "id".into()]).unwrap();
        identity("other").validate(&schema, &["other".into(), "id".into()]).unwrap();
        identity("other").validate(&schema, &[]).unwrap();
        for (sharding, key, reason) in [
            (bucket(0), vec![], "must be 1 to 1024"),
            (bucket(MAX_BUCKETS + 1), vec![], "must be 1 to 1024"),
            (Sharding::Bucket { column: "nosuch".into(), buckets: 2 }, vec![], "`nosuch` is not in"),
            (identity("nosuch"), vec![], "`nosuch` is not in"),
            (identity("id"), vec![], "cannot name shards"),
            (bucket(2), vec!["other".to_string()], "`id` is not part of the primary key (other)"),
            (identity("other"), vec!["id".to_string()], "`other` is not part of the primary key (id)"),
            (Sharding::Manual, vec![], "rows need a rule"),
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
            ("manual", Sharding::Manual),
            ("bucket(id,4)", bucket(4)),
            ("bucket(a,b (c),1024)", Sharding::Bucket { column: "a,b (c)".into(), buckets: 1024 }),
            ("identity(region)", identity("region")),
            ("identity(a,b (c))", identity("a,b (c)")),
        ] {
            assert_eq!(text.parse::<Sharding>().unwrap(), sharding);
            assert_eq!(sharding.to_string(), text);
        }
        assert_eq!(" bucket( id , 4 ) ".parse::<Sharding>().unwrap(), bucket(4));
        assert_eq!(" identity( region ) ".parse::<Sharding>().unwrap(), identity("region"));
        for (text, reason) in [
            ("", "write `unsharded`"),
            ("bucket", "write `unsharded`"),
            ("identity", "write `unsharded`"),
            ("identity( )", "name is missing"),
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
