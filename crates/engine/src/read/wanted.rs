//! The keys that a query asks for, if its filters name few of them. A source that holds none of these has nothing to
//! say: none of its rows is in the answer, and it hides none that is.

use arrow_buffer::BooleanBuffer;
use arrow_row::Rows;

use super::predicate::Candidates;
use crate::error::Result;
use crate::key::KeySet;
use crate::memtable::MemTableSnapshot;
use crate::rows::RowFormat;
use crate::sstable::{BloomFilter, key_hashes};

/// Every key that a row of the answer can have.
#[derive(Debug)]
pub(crate) struct WantedKeys {
    keys: Rows,
    set: KeySet,
    hashes: Vec<u64>,
}

impl WantedKeys {
    /// The keys among these candidates; `None` without a primary key, or if a key column is open or there are too many.
    pub(crate) fn of(candidates: &Candidates, format: &RowFormat) -> Result<Option<Self>> {
        let Some(encoder) = &format.keys else {
            return Ok(None);
        };
        let Some(rows) = candidates.combinations(&format.primary_key) else {
            return Ok(None);
        };
        let keys = encoder.encode(&rows)?;
        let mut set = KeySet::new();
        set.insert_rows(&keys);
        Ok(Some(Self { keys, set, hashes: key_hashes(&rows, &format.primary_key)? }))
    }

    /// Whether a MemTable has a row, or a tombstone, of any of the keys.
    pub(crate) fn any_in_memtable(&self, memtable: &MemTableSnapshot) -> bool {
        memtable.contains_keys(&self.keys).count_set_bits() > 0
    }

    /// Whether an SSTable may have a row, or a tombstone, of any of the keys.
    pub(crate) fn any_in_sstable(&self, filter: &BloomFilter) -> bool {
        filter.may_hold_any(&self.hashes)
    }

    /// Which of these keys, encoded with the table's [`KeyEncoder`](crate::key::KeyEncoder), are wanted.
    pub(crate) fn among(&self, keys: &Rows) -> BooleanBuffer {
        keys.iter().map(|key| self.set.contains(key.data())).collect()
    }
}
