//! Where the rows of a call are in the logs: what a reader in another process brings, to see them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use fencepost_wal::{Position, ShardId};

use crate::error::{Error, Result};

/// For each shard that a call wrote to, the position of the last log entry that holds one of its rows. A reader that has
/// reached these positions sees the rows. Empty for a call without rows, and for one that did not wait until its rows
/// were durable. It travels to other processes as text, `shard:position` with commas in between.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    positions: BTreeMap<ShardId, Position>,
}

impl Written {
    pub(crate) fn in_shard(shard: ShardId, position: Position) -> Self {
        Self { positions: BTreeMap::from([(shard, position)]) }
    }

    /// The positions, by shard.
    pub fn positions(&self) -> impl ExactSizeIterator<Item = (ShardId, Position)> {
        self.positions.iter().map(|(shard, position)| (*shard, *position))
    }

    /// Also the rows of another call: of each shard the higher position.
    pub fn and(mut self, other: Written) -> Self {
        for (shard, position) in other.positions {
            let reached = self.positions.entry(shard).or_insert(position);
            *reached = position.max(*reached);
        }
        self
    }
}

impl FromIterator<(ShardId, Position)> for Written {
    fn from_iter<T: IntoIterator<Item = (ShardId, Position)>>(positions: T) -> Self {
        positions.into_iter().map(|(shard, position)| Self::in_shard(shard, position)).fold(Self::default(), Self::and)
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (shard, position)) in self.positions().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{shard}:{position}")?;
        }
        Ok(())
    }
}

impl FromStr for Written {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let place = |text: &str| {
            let (shard, position) = text.trim().rsplit_once(':')?;
            Some((shard.parse().ok()?, Position::new(position.parse().ok()?)))
        };
        let one = |text| {
            place(text).ok_or_else(|| {
                Error::InvalidOptions(format!("`{text}` is no place in a log; write SHARD:POSITION, as `put` says it"))
            })
        };
        text.split(',').filter(|part| !part.trim().is_empty()).map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_travels_as_text() {
        let (a, b) = (ShardId::new_random(), ShardId::new_random());
        let written: Written =
            [(a, Position::new(7)), (b, Position::new(1)), (a, Position::new(5))].into_iter().collect();
        assert_eq!(written.positions().count(), 2);
        assert_eq!(written.to_string().parse::<Written>().unwrap(), written);
        assert_eq!(format!(" {a}:7 , {b}:1").parse::<Written>().unwrap(), written);
        assert_eq!("".parse::<Written>().unwrap(), Written::default());
        for bad in ["7", "x:7", &format!("{a}:"), &format!("{a}:-1"), &format!("{a}:1;{b}:1")] {
            let error = bad.parse::<Written>().unwrap_err();
            assert!(error.to_string().contains("SHARD:POSITION"), "{error}");
        }
    }
}
