//! The MemTable's primary-key index: which rows hold a key, and which of them is the newest, now or at any earlier
//! number of rows. It compares whole keys, and it never forgets a row.

use std::fmt;
use std::hash::BuildHasher;
use std::ops::Range;

use arrow_buffer::BooleanBuffer;

use crate::key::{KeyHasher, KeySet};

/// "There is no newer row": later than any row number.
const NONE: usize = usize::MAX;

/// Rows are numbered 0, 1, 2 … in the order of [`push`](Self::push). A *watermark* is a number of rows: the questions
/// below are answered as if only the rows below it were there. That is exact although the index goes on growing,
/// since what a row is told about newer rows is one number: the next row with its key. It is at or above the
/// watermark, or it is not there yet, exactly if the row was the newest at the watermark.
pub(crate) struct PkIndex<S = KeyHasher> {
    keys: KeySet<S>,
    /// By key number.
    spans: Vec<Span>,
    /// By row: the next newer row with the same key, or [`NONE`].
    next_of: Vec<usize>,
}

/// The first and the newest row of a key.
struct Span {
    first: usize,
    newest: usize,
}

impl PkIndex {
    /// An empty index.
    pub(crate) fn new() -> Self {
        Self::with_hasher(KeyHasher::default())
    }
}

impl<S: BuildHasher> PkIndex<S> {
    /// An empty index with this hasher; see [`KeySet::with_hasher`].
    pub(crate) fn with_hasher(hasher: S) -> Self {
        Self { keys: KeySet::with_hasher(hasher), spans: Vec::new(), next_of: Vec::new() }
    }

    /// Adds the next row.
    pub(crate) fn push(&mut self, key: &[u8]) {
        let row = self.next_of.len();
        match self.spans.get_mut(self.keys.insert(key)) {
            Some(span) => {
                if let Some(next) = self.next_of.get_mut(span.newest) {
                    *next = row;
                }
                span.newest = row;
            }
            None => self.spans.push(Span { first: row, newest: row }),
        }
        self.next_of.push(NONE);
    }

    /// Whether the key had a row at the watermark.
    pub(crate) fn contains(&self, key: &[u8], watermark: usize) -> bool {
        self.span(key).is_some_and(|span| span.first < watermark)
    }

    /// The newest row of the key at the watermark. It takes as many steps as the key has rows, if it got one since.
    pub(crate) fn newest_of(&self, key: &[u8], watermark: usize) -> Option<usize> {
        let span = self.span(key).filter(|span| span.first < watermark)?;
        if span.newest < watermark {
            return Some(span.newest);
        }
        let mut row = span.first;
        while let Some(next) = self.next_of.get(row).copied().filter(|next| *next < watermark) {
            row = next;
        }
        Some(row)
    }

    /// For each of these rows, all below the watermark, whether it was the newest of its key at the watermark.
    pub(crate) fn newest(&self, rows: Range<usize>, watermark: usize) -> BooleanBuffer {
        self.next_of.get(rows).unwrap_or_default().iter().map(|next| *next >= watermark).collect()
    }

    /// The memory that the index holds, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.keys.memory_bytes()
            + self.spans.capacity() * size_of::<Span>()
            + self.next_of.capacity() * size_of::<usize>()
    }

    fn span(&self, key: &[u8]) -> Option<&Span> {
        self.spans.get(self.keys.find(key)?)
    }
}

impl<S> fmt::Debug for PkIndex<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PkIndex")
            .field("rows", &self.next_of.len())
            .field("keys", &self.spans.len())
            .finish_non_exhaustive()
    }
}
