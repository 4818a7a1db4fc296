//! The numbers that name things in a shard, as types of their own, so that a position is never taken for an epoch.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::error::{Error, Result};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Zero: before the first.
            pub const ZERO: Self = Self(0);

            /// Wraps a number.
            pub const fn new(n: u64) -> Self {
                Self(n)
            }

            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The number after this one.
            ///
            /// # Errors
            /// [`Error::Overflow`] after 2^64 - 1.
            pub fn next(self) -> Result<Self> {
                self.0.checked_add(1).map(Self).ok_or(Error::Overflow { what: $what })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// The place of an entry in a shard's log: 1, 2, 3 … Zero stands for "before the first".
    Position,
    "WAL position"
);
number!(
    /// Counts the writers that a shard has had. The writer with the highest one owns the shard.
    Epoch,
    "writer epoch"
);
number!(
    /// The version of a shard manifest: 1, 2, 3 …
    ManifestVersion,
    "manifest version"
);
number!(
    /// Counts the SSTables of a shard: 1, 2, 3 …
    Generation,
    "generation"
);

/// Names a shard. On storage: the hyphenated form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(Uuid);

impl ShardId {
    /// A fresh random id.
    pub fn new_random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Wraps a UUID.
    pub const fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// The UUID.
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for ShardId {
    type Err = uuid::Error;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(s).map(Self)
    }
}
