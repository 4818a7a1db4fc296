//! What runs have met: a set of seeds in which nothing was ever fenced, collected or late proves nothing.

use std::collections::BTreeMap;
use std::fmt;

/// Counts of things that happened, by name, of one run or of many added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    pub(crate) fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    pub(crate) fn add(&mut self, what: &'static str, n: u64) {
        *self.0.entry(what).or_default() += n;
    }

    /// How often something happened; 0 for what never did.
    pub fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// Adds another run's counts to these.
    pub fn merge(&mut self, other: &Coverage) {
        for (what, n) in &other.0 {
            self.add(what, *n);
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.keys().map(|what| what.len()).max().unwrap_or_default();
        for (what, n) in &self.0 {
            writeln!(f, "  {what:<width$} {n:>9}")?;
        }
        Ok(())
    }
}
