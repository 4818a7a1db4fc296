//! What the rows of a table must be.

use std::collections::BTreeMap;

/// The acknowledged rows `(id, v)`.
#[derive(Debug, Clone)]
pub(crate) enum Model {
    Keyed(BTreeMap<i64, i64>),
    Keyless(Vec<(i64, i64)>),
}

impl Model {
    pub(crate) fn new(keyed: bool) -> Self {
        match keyed {
            true => Self::Keyed(BTreeMap::new()),
            false => Self::Keyless(Vec::new()),
        }
    }

    pub(crate) fn put(&mut self, pairs: &[(i64, i64)]) {
        match self {
            Self::Keyed(rows) => rows.extend(pairs.iter().copied()),
            Self::Keyless(rows) => rows.extend_from_slice(pairs),
        }
    }

    pub(crate) fn delete(&mut self, ids: &[i64]) {
        if let Self::Keyed(rows) = self {
            rows.retain(|id, _| !ids.contains(id));
        }
    }

    /// As the readers of both sides give them back.
    pub(crate) fn rows(&self) -> Vec<(i64, Option<i64>)> {
        let mut rows: Vec<_> = match self {
            Self::Keyed(rows) => rows.iter().map(|(id, v)| (*id, Some(*v))).collect(),
            Self::Keyless(rows) => rows.iter().map(|(id, v)| (*id, Some(*v))).collect(),
        };
        rows.sort_unstable();
        rows
    }
}
