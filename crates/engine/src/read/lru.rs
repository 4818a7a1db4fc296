//! A bounded map that forgets what was not used for the longest time. Who holds an entry keeps it; the map only stops
//! knowing it.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// By how much of its limit a full map is cleared, so that not every insertion has to look for what is oldest.
const CLEARED: usize = 4;

/// Entries with a weight each, in the unit of the limit.
pub(super) struct Lru<K, V> {
    limit: usize,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    entries: HashMap<K, Entry<V>>,
    weight: usize,
    /// Counts uses.
    now: u64,
}

struct Entry<V> {
    value: Arc<V>,
    weight: usize,
    used: u64,
}

impl<K: Hash + Eq + Clone, V: Default> Lru<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::new(State { entries: HashMap::new(), weight: 0, now: 0 }) }
    }

    /// The entry of a key; an empty one of this weight if there is none.
    pub(super) fn entry(&self, key: &K, weight: usize) -> Arc<V> {
        let mut state = self.state.lock();
        state.now += 1;
        let now = state.now;
        if let Some(entry) = state.entries.get_mut(key) {
            entry.used = now;
            return Arc::clone(&entry.value);
        }
        let value = Arc::new(V::default());
        state.entries.insert(key.clone(), Entry { value: Arc::clone(&value), weight, used: now });
        state.weight += weight;
        state.trim(self.limit);
        value
    }

    /// An entry became heavier by this much. One that is not known any more counts for nothing.
    pub(super) fn add_weight(&self, key: &K, value: &Arc<V>, weight: usize) {
        let mut state = self.state.lock();
        if let Some(entry) = state.entries.get_mut(key).filter(|entry| Arc::ptr_eq(&entry.value, value)) {
            entry.weight += weight;
            state.weight += weight;
            state.trim(self.limit);
        }
    }

    /// Forgets the others.
    pub(super) fn retain(&self, keep: impl Fn(&K) -> bool) {
        let mut state = self.state.lock();
        state.entries.retain(|key, _| keep(key));
        state.weight = state.entries.values().map(|entry| entry.weight).sum();
    }

    #[cfg(test)]
    fn keys(&self) -> Vec<K> {
        self.state.lock().entries.keys().cloned().collect()
    }
}

impl<K: Hash + Eq + Clone, V> State<K, V> {
    fn trim(&mut self, limit: usize) {
        if self.weight <= limit {
            return;
        }
        let mut oldest: Vec<(u64, K)> = self.entries.iter().map(|(key, entry)| (entry.used, key.clone())).collect();
        oldest.sort_unstable_by_key(|(used, _)| *used);
        let goal = limit - limit / CLEARED;
        for (_, key) in oldest {
            if self.weight <= goal {
                break;
            }
            self.weight -= self.entries.remove(&key).map_or(0, |entry| entry.weight);
        }
    }
}

impl<K, V> fmt::Debug for Lru<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Lru")
            .field("entries", &state.entries.len())
            .field("weight", &state.weight)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(lru: &Lru<u32, u8>) -> Vec<u32> {
        let mut keys = lru.keys();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let lru = Lru::new(8);
        for key in 0..8 {
            lru.entry(&key, 1);
        }
        lru.entry(&0, 1);
        lru.entry(&8, 1);
        assert_eq!(sorted(&lru), [0, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn weight_that_comes_later_counts_and_a_forgotten_entry_does_not() {
        let lru = Lru::new(100);
        let heavy = lru.entry(&1, 1);
        lru.entry(&2, 1);
        lru.add_weight(&2, &lru.entry(&2, 1), 90);
        lru.add_weight(&1, &heavy, 200);
        assert_eq!(sorted(&lru), Vec::<u32>::new(), "neither fits beside what was used last");
        lru.add_weight(&1, &heavy, 200);
        lru.entry(&3, 1);
        assert_eq!(sorted(&lru), [3]);
        lru.retain(|key| *key != 3);
        assert_eq!(sorted(&lru), Vec::<u32>::new());
    }
}
