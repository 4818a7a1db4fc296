//! A set of encoded keys.

use std::fmt;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// The hasher of keys. It only spreads them: equality is always decided on whole keys.
pub(crate) type KeyHasher = foldhash::fast::RandomState;

/// A set of encoded keys, exact: found by a 64-bit hash, decided on the whole key. Keys are numbered 0, 1, 2 … as
/// they come; they cannot be removed.
pub(crate) struct KeySet<S = KeyHasher> {
    known: Known,
    hasher: S,
}

/// Keys and their numbers.
enum Known {
    /// As long as all have eight bytes: they are in the table themselves, and comparing them reads nothing else.
    Numbers(HashTable<(u64, usize)>),
    Any {
        /// All keys, one after the other.
        bytes: Vec<u8>,
        /// Where the key of each number ends in `bytes`.
        ends: Vec<usize>,
        /// Key numbers by the hash of their key, which is kept so that growing reads no key again.
        table: HashTable<(u64, usize)>,
    },
}

impl KeySet {
    /// An empty set.
    pub(crate) fn new() -> Self {
        Self::with_hasher(KeyHasher::default())
    }
}

impl Default for KeySet {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: BuildHasher> KeySet<S> {
    /// An empty set with this hasher. Any hasher gives right answers, a bad one gives slow ones.
    pub(crate) fn with_hasher(hasher: S) -> Self {
        Self { known: Known::Numbers(HashTable::new()), hasher }
    }

    /// The number of the key, which is [`len`](Self::len) before the call if it is new.
    pub(crate) fn insert(&mut self, key: &[u8]) -> usize {
        let Self { known, hasher } = self;
        if let Known::Numbers(table) = known {
            match number_of(key) {
                Some(key) => {
                    let number = table.len();
                    let hash = |key: u64| hasher.hash_one(key);
                    return match table.entry(hash(key), |(other, _)| *other == key, |(other, _)| hash(*other)) {
                        Entry::Occupied(found) => found.get().1,
                        Entry::Vacant(place) => place.insert((key, number)).get().1,
                    };
                }
                None => *known = any(table, hasher),
            }
        }
        let Known::Any { bytes, ends, table } = known else {
            return self.len();
        };
        let hash = hasher.hash_one(key);
        let is_same = |&(other, number): &(u64, usize)| other == hash && key_at(bytes, ends, number) == Some(key);
        match table.entry(hash, is_same, |&(hash, _)| hash) {
            Entry::Occupied(found) => found.get().1,
            Entry::Vacant(place) => {
                let number = ends.len();
                place.insert((hash, number));
                bytes.extend_from_slice(key);
                ends.push(bytes.len());
                number
            }
        }
    }

    /// The number of the key, if it is in the set.
    pub(crate) fn find(&self, key: &[u8]) -> Option<usize> {
        let found = match &self.known {
            Known::Numbers(table) => {
                let key = number_of(key)?;
                table.find(self.hasher.hash_one(key), |(other, _)| *other == key)
            }
            Known::Any { bytes, ends, table } => {
                let hash = self.hasher.hash_one(key);
                table.find(hash, |&(other, number)| other == hash && key_at(bytes, ends, number) == Some(key))
            }
        };
        found.map(|(_, number)| *number)
    }

    /// How many different keys the set holds.
    pub(crate) fn len(&self) -> usize {
        match &self.known {
            Known::Numbers(table) => table.len(),
            Known::Any { ends, .. } => ends.len(),
        }
    }

    /// The memory that the set holds, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        match &self.known {
            Known::Numbers(table) => table.allocation_size(),
            Known::Any { bytes, ends, table } => {
                bytes.capacity() + ends.capacity() * size_of::<usize>() + table.allocation_size()
            }
        }
    }
}

/// Eight bytes as a number.
fn number_of(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_ne_bytes)
}

/// The same keys under the same numbers, for a set that gets a key of another length.
fn any<S: BuildHasher>(numbers: &HashTable<(u64, usize)>, hasher: &S) -> Known {
    let mut keys: Vec<(usize, u64)> = numbers.iter().map(|(key, number)| (*number, *key)).collect();
    keys.sort_unstable();
    let bytes: Vec<u8> = keys.iter().flat_map(|(_, key)| key.to_ne_bytes()).collect();
    let ends = (1..=keys.len()).map(|n| n * size_of::<u64>()).collect();
    let mut table = HashTable::with_capacity(keys.len());
    for (number, key) in keys {
        let hash = hasher.hash_one(key.to_ne_bytes().as_slice());
        table.insert_unique(hash, (hash, number), |&(hash, _)| hash);
    }
    Known::Any { bytes, ends, table }
}

fn key_at<'a>(bytes: &'a [u8], ends: &[usize], number: usize) -> Option<&'a [u8]> {
    let start = match number.checked_sub(1) {
        Some(previous) => *ends.get(previous)?,
        None => 0,
    };
    bytes.get(start..*ends.get(number)?)
}

impl<S> fmt::Debug for KeySet<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = match &self.known {
            Known::Numbers(table) => table.len(),
            Known::Any { ends, .. } => ends.len(),
        };
        f.debug_struct("KeySet").field("keys", &keys).finish_non_exhaustive()
    }
}
