//! Words of a column, in memory: which rows have a word, how often, and how long their texts are. What BM25 makes of that
//! is the reader's business, which sees more than this MemTable.

use std::collections::HashMap;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use lance_index::scalar::inverted::tokenizer::document_tokenizer::LanceTokenizer;
use lance_tokenizer::TokenStream;

use crate::error::{Error, Result};
use crate::index::FullTextConfig;

/// Bytes that the map needs for a word besides its text and rows.
const ENTRY_BYTES: usize = 72;

/// The rows that have a word, in row order, and how often each has it.
#[derive(Debug, Default)]
pub(super) struct Postings {
    pub(super) rows: Vec<u32>,
    pub(super) counts: Vec<u32>,
}

/// An inverted index. A row without a text (null) is no document.
pub(super) struct Text {
    tokenizer: Box<dyn LanceTokenizer>,
    words: HashMap<Box<str>, Postings>,
    /// By row: how many words its text has, [`NO_TEXT`] for none at all.
    lengths: Vec<u32>,
    bytes: usize,
}

const NO_TEXT: u32 = u32::MAX;

impl Text {
    pub(super) fn new(config: &FullTextConfig) -> Result<Self> {
        Ok(Self { tokenizer: config.tokenizer()?, words: HashMap::new(), lengths: Vec::new(), bytes: 0 })
    }

    /// Adds the texts of the rows from `first_row` on.
    pub(super) fn add(&mut self, first_row: u32, column: &ArrayRef) {
        let mut counts: HashMap<String, u32> = HashMap::new();
        for (row, n) in (first_row..).zip(0..column.len()) {
            let Some(text) = text_at(column, n) else {
                self.lengths.push(NO_TEXT);
                continue;
            };
            let length = count_words(self.tokenizer.as_mut(), text, &mut counts);
            self.lengths.push(length);
            for (word, count) in counts.drain() {
                let postings = match self.words.get_mut(word.as_str()) {
                    Some(postings) => postings,
                    None => {
                        self.bytes += word.len() + ENTRY_BYTES;
                        self.words.entry(word.into_boxed_str()).or_default()
                    }
                };
                postings.rows.push(row);
                postings.counts.push(count);
                self.bytes += 2 * size_of::<u32>();
            }
        }
    }

    pub(super) fn postings(&self, word: &str) -> Option<&Postings> {
        self.words.get(word)
    }

    /// How many words the text of a row has; `None` if it has no text.
    pub(super) fn length(&self, row: u32) -> Option<u32> {
        self.lengths.get(row as usize).copied().filter(|length| *length != NO_TEXT)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes + self.lengths.capacity() * size_of::<u32>()
    }
}

/// The text of a row of a string column; `None` for null.
pub(crate) fn text_at(column: &ArrayRef, row: usize) -> Option<&str> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(column.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(column.as_string_view().value(row)),
        _ => None,
    }
}

/// How often each word is in a text; returns how many words it has.
pub(crate) fn count_words(tokenizer: &mut dyn LanceTokenizer, text: &str, counts: &mut HashMap<String, u32>) -> u32 {
    counts.clear();
    let mut length = 0;
    let mut words = tokenizer.token_stream_for_doc(text);
    while words.advance() {
        length += 1;
        match counts.get_mut(words.token().text.as_str()) {
            Some(count) => *count += 1,
            None => drop(counts.insert(words.token().text.clone(), 1)),
        }
    }
    length
}

/// The words of a query, each once, in order.
///
/// # Errors
/// [`Error::InvalidOptions`] for a query without any word.
pub(crate) fn query_words(tokenizer: &mut dyn LanceTokenizer, query: &str) -> Result<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    let mut tokens = tokenizer.token_stream_for_search(query);
    while tokens.advance() {
        let word = &tokens.token().text;
        if !words.contains(word) {
            words.push(word.clone());
        }
    }
    match words.is_empty() {
        true => Err(Error::InvalidOptions(format!(
            "the text query `{query}` has no word to look for: nothing is left without punctuation and stop words"
        ))),
        false => Ok(words),
    }
}
