//! Full-text search: BM25 with the statistics of the whole snapshot.
//!
//! A text's score depends on how many texts there are, how long they are, and how many have a word. These numbers are of
//! the live rows of all sources, each once, so a row's score does not depend on where it lies: it is the score that one
//! index over the same rows would give. They are counted once per snapshot, by reading the column; then the words of a
//! query are looked up in the indexes that there are.
//!
//! The formula is that of Lucene and tantivy: k1 = 1.2, b = 0.75, without rounding of lengths.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{ArrayRef, Float32Array, RecordBatch, UInt32Array};
use arrow_schema::DataType;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use lance::Dataset;
use lance_core::ROW_ADDR;
use lance_index::scalar::FullTextSearchQuery;
use lance_index::scalar::inverted::query::{FtsQuery, MatchQuery, Operator};
use lance_index::scalar::inverted::tokenizer::document_tokenizer::LanceTokenizer;
use roaring::RoaringBitmap;
use tokio::sync::Mutex;

use super::top_k::{Best, TopK};
use super::{SOURCES_AT_ONCE, Search, TextQuery, index_on, no_column, numbered};
use crate::error::{Error, Result};
use crate::index::{FullTextConfig, IndexConfig, IndexKind};
use crate::memtable::{MemTableSnapshot, count_words, query_words, text_at};
use crate::read::Snapshot;
use crate::read::source::{Place, Source, Visibility};

/// The name of the score; higher is better.
pub(super) const SCORE: &str = "_score";

const K1: f32 = 1.2;
const B: f32 = 0.75;

/// Rows of a MemTable that are looked at together, best first.
const CHUNK_ROWS: usize = 1024;

/// What is known about the texts of a snapshot: for each column and settings. Shared by the handles of a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct TextStatistics {
    columns: Arc<Mutex<Vec<OfColumn>>>,
}

#[derive(Debug)]
struct OfColumn {
    column: String,
    config: FullTextConfig,
    known: Known,
}

/// Counts of live texts.
#[derive(Debug, Default, Clone)]
struct Known {
    /// How many there are, and how many words they have.
    totals: Option<(u64, u64)>,
    /// How many have a word.
    with_word: HashMap<String, u64>,
}

/// A query that fits its column.
struct Match<'a> {
    query: &'a TextQuery,
    config: FullTextConfig,
    tokenizer: Box<dyn LanceTokenizer>,
    /// Each word once, as tantivy has it.
    words: Vec<String>,
}

/// The best rows with all that the search has looked at, best first.
pub(super) async fn best(
    snapshot: &Arc<Snapshot>,
    query: &TextQuery,
    statistics: &TextStatistics,
) -> Result<(Search, RecordBatch)> {
    let matching = Match::new(snapshot, query).await?;
    let known = matching.statistics(snapshot, statistics).await?;
    let search =
        Search::new(snapshot, query.columns.as_deref(), query.filter.as_ref(), &[query.column.as_str()], SCORE)?;
    let best = matching.run(&search, &known).await?;
    Ok((search, best.into_rows()))
}

/// The best rows with the columns of the answer, best first.
pub(crate) async fn answer(
    snapshot: &Arc<Snapshot>,
    query: &TextQuery,
    statistics: &TextStatistics,
) -> Result<RecordBatch> {
    let (search, best) = best(snapshot, query, statistics).await?;
    search.answer(&best, SCORE)
}

impl<'a> Match<'a> {
    async fn new(snapshot: &Arc<Snapshot>, query: &'a TextQuery) -> Result<Self> {
        let column = &query.column;
        let field = snapshot.format.user.field_with_name(column).map_err(|_| no_column(snapshot, column))?;
        if !matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8) {
            return Err(Error::InvalidOptions(format!(
                "column `{column}` is {}; a text search needs a column of strings",
                field.data_type()
            )));
        }
        if query.k == 0 {
            return Err(Error::InvalidOptions("a search for 0 rows finds nothing; ask for 1 or more".into()));
        }
        let config = match &query.config {
            Some(config) => config.clone(),
            None => config_of(snapshot.base.dataset(), column).await?.unwrap_or_default(),
        };
        let mut tokenizer = config.tokenizer()?;
        let words = query_words(tokenizer.as_mut(), &query.text)?;
        Ok(Self { query, config, tokenizer, words })
    }

    /// What the scores need to know, counted as far as nobody has before.
    async fn statistics(&self, snapshot: &Arc<Snapshot>, statistics: &TextStatistics) -> Result<Known> {
        let mut columns = statistics.columns.lock().await;
        let same = |of: &OfColumn| of.column == self.query.column && of.config == self.config;
        let of_column = match columns.iter().position(same) {
            Some(place) => place,
            None => {
                let (column, config) = (self.query.column.clone(), self.config.clone());
                columns.push(OfColumn { column, config, known: Known::default() });
                columns.len() - 1
            }
        };
        let Some(OfColumn { known, .. }) = columns.get_mut(of_column) else {
            return Ok(Known::default());
        };
        let missing: Vec<String> =
            self.words.iter().filter(|word| !known.with_word.contains_key(*word)).cloned().collect();
        if missing.is_empty() && known.totals.is_some() {
            return Ok(known.clone());
        }
        let count_all = known.totals.is_none();
        let search = Search::new(snapshot, Some(&[]), None, &[self.query.column.as_str()], SCORE)?;
        let counted = stream::iter(snapshot.sources()).map(|source| self.count(&search, source, &missing, count_all));
        let counted: Vec<Counts> = counted.buffered(SOURCES_AT_ONCE).try_collect().await?;
        if count_all {
            let texts = counted.iter().map(|counts| counts.texts).sum();
            let words = counted.iter().map(|counts| counts.words).sum();
            known.totals = Some((texts, words));
        }
        for (n, word) in missing.into_iter().enumerate() {
            let texts = counted.iter().filter_map(|counts| counts.with_word.get(n)).sum();
            known.with_word.insert(word, texts);
        }
        Ok(known.clone())
    }

    async fn count(&self, search: &Search, source: Source, words: &[String], all: bool) -> Result<Counts> {
        let visibility = search.visibility(&source).await?;
        let mut counts = Counts::new(words.len());
        if let Place::MemTable(memtable) = source.place()
            && let Some(found) = memtable.text(&self.query.column, &self.config, words)?
        {
            let visible = visible_rows(search, memtable, &visibility)?;
            let texts = visible.iter().filter_map(|row| found.lengths.get(row as usize).copied().flatten());
            for length in texts {
                counts.texts += 1;
                counts.words += u64::from(length);
            }
            for (count, rows) in counts.with_word.iter_mut().zip(&found.rows) {
                *count = rows.iter().filter(|(row, _)| visible.contains(*row)).count() as u64;
            }
            return Ok(counts);
        }
        let mut tokenizer = self.tokenizer.clone();
        let mut in_text = HashMap::new();
        let matching = (!all).then_some(Operator::Or);
        let mut batches = self.texts(search, &source, &visibility, matching).await?;
        while let Some(batch) = batches.try_next().await? {
            let Some(column) = batch.column_by_name(&self.query.column) else {
                continue;
            };
            for text in (0..batch.num_rows()).filter_map(|row| text_at(column, row)) {
                counts.texts += 1;
                counts.words += u64::from(count_words(tokenizer.as_mut(), text, &mut in_text));
                for (count, word) in counts.with_word.iter_mut().zip(words) {
                    *count += u64::from(in_text.contains_key(word));
                }
            }
        }
        Ok(counts)
    }

    async fn run(&self, search: &Search, known: &Known) -> Result<TopK> {
        let sources = (0..).zip(search.snapshot.sources());
        let found = stream::iter(sources).map(|(number, source)| self.in_source(search, number, source, known));
        let mut found = found.buffered(SOURCES_AT_ONCE);
        let mut best = self.empty(search);
        while let Some(of_source) = found.try_next().await? {
            best.merge(&of_source.into_rows())?;
        }
        Ok(best)
    }

    fn empty(&self, search: &Search) -> TopK {
        TopK::new(self.query.k, Best::Highest, search.request.schema(), SCORE)
    }

    async fn in_source(&self, search: &Search, number: u32, source: Source, known: &Known) -> Result<TopK> {
        let mut best = self.empty(search);
        if !search.may_match(&source).await? {
            return Ok(best);
        }
        let visibility = search.visibility(&source).await?;
        if let Place::MemTable(memtable) = source.place()
            && let Some(found) = memtable.text(&self.query.column, &self.config, &self.words)?
        {
            let mut of_row: HashMap<u32, Vec<u32>> = HashMap::new();
            for (n, rows) in found.rows.iter().enumerate() {
                for (row, count) in rows {
                    let counts = of_row.entry(*row).or_insert_with(|| vec![0; self.words.len()]);
                    counts.get_mut(n).into_iter().for_each(|of_word| *of_word = *count);
                }
            }
            let scored = of_row.into_iter().filter_map(|(row, counts)| {
                let length = found.lengths.get(row as usize).copied().flatten()?;
                Some((row, self.score(known, &counts, length)?))
            });
            let mut scored: Vec<(u32, f32)> = scored.collect();
            scored.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
            self.take_scored(search, number, memtable, &visibility, &scored, &mut best)?;
            return Ok(best);
        }
        let mut tokenizer = self.tokenizer.clone();
        let mut in_text = HashMap::new();
        let operator = match self.query.all_words {
            true => Operator::And,
            false => Operator::Or,
        };
        let mut batches = self.texts(search, &source, &visibility, Some(operator)).await?;
        while let Some(batch) = batches.try_next().await? {
            let Some(column) = batch.column_by_name(&self.query.column) else {
                continue;
            };
            let scores = (0..batch.num_rows()).map(|row| {
                let text = text_at(column, row)?;
                let length = count_words(tokenizer.as_mut(), text, &mut in_text);
                let counts: Vec<u32> =
                    self.words.iter().map(|word| in_text.get(word).copied().unwrap_or_default()).collect();
                self.score(known, &counts, length)
            });
            best.push(number, &batch, &scores.collect())?;
        }
        Ok(best)
    }

    /// Rows of a MemTable with their scores, best first, until there are enough.
    fn take_scored(
        &self,
        search: &Search,
        number: u32,
        memtable: &MemTableSnapshot,
        visibility: &Visibility,
        scored: &[(u32, f32)],
        best: &mut TopK,
    ) -> Result<()> {
        let columns = memtable.columns_named(visibility.columns());
        let by_row: HashMap<u64, f32> = scored.iter().map(|(row, score)| (u64::from(*row), *score)).collect();
        for chunk in scored.chunks(CHUNK_ROWS) {
            if best.len() >= self.query.k {
                break;
            }
            let rows: Vec<u32> = chunk.iter().map(|(row, _)| *row).collect();
            let rows = memtable.only_live(rows);
            let taken = numbered(&memtable.take_numbered(&rows, &columns)?, &UInt32Array::from(rows))?;
            let shown = search.shown(visibility, &taken)?;
            let scores: Float32Array = row_numbers(&shown).iter().map(|row| by_row.get(row).copied()).collect();
            best.push(number, &shown, &scores)?;
        }
        Ok(())
    }

    /// The rows of a source that a search wants; with `matching` those that do not match may be left out.
    async fn texts<'s>(
        &'s self,
        search: &'s Search,
        source: &Source,
        visibility: &'s Visibility,
        matching: Option<Operator>,
    ) -> Result<impl Stream<Item = Result<RecordBatch>> + Send + 's> {
        let rows = match (source.place(), search.dataset(source).await?) {
            (Place::MemTable(memtable), _) => {
                let live = memtable.live_from(0, &memtable.columns_named(visibility.columns()))?;
                stream::iter(live).map(|(batch, rows)| numbered(&batch, &rows)).boxed()
            }
            (_, Some(dataset)) => self.scan(search, source, &dataset, visibility, matching).await?,
            (_, None) => stream::empty().boxed(),
        };
        Ok(rows.and_then(move |batch| std::future::ready(search.shown(visibility, &batch))))
    }

    async fn scan(
        &self,
        search: &Search,
        source: &Source,
        dataset: &Dataset,
        visibility: &Visibility,
        matching: Option<Operator>,
    ) -> Result<stream::BoxStream<'static, Result<RecordBatch>>> {
        let place = dataset.uri().to_owned();
        let failed = {
            let place = place.clone();
            move || Error::lance(format!("searching texts of {place}"))
        };
        let Some(mut scanner) = search.scanner(source, dataset, visibility, &self.query.column)? else {
            return Ok(stream::empty().boxed());
        };
        let same = |index: &IndexConfig| matches!(&index.kind, IndexKind::FullText(config) if *config == self.config);
        if let Some(operator) = matching
            && index_on(dataset, &self.query.column, same).await?.is_some()
        {
            let words = MatchQuery::new(self.query.text.clone()).with_operator(operator);
            let words = words.with_column(Some(self.query.column.clone()));
            scanner.full_text_search(FullTextSearchQuery::new_query(FtsQuery::Match(words))).map_err(failed())?;
        }
        let rows = scanner.try_into_stream().await.map_err(failed())?;
        Ok(rows.map_err(move |e| failed()(e)).boxed())
    }

    /// A text's score, if it matches at all.
    fn score(&self, known: &Known, counts: &[u32], length: u32) -> Option<f32> {
        let matched = counts.iter().filter(|count| **count > 0).count();
        let enough = if self.query.all_words { self.words.len() } else { 1 };
        if matched < enough {
            return None;
        }
        let (texts, words) = known.totals.unwrap_or_default();
        let average = words as f32 / texts.max(1) as f32;
        let norm = K1 * (1.0 - B + B * length as f32 / average);
        let of_word = |(word, count): (&String, &u32)| {
            let with_word = known.with_word.get(word).copied().unwrap_or_default() as f32;
            let idf = (1.0 + (texts as f32 - with_word + 0.5) / (with_word + 0.5)).ln();
            let count = *count as f32;
            idf * (K1 + 1.0) * count / (count + norm)
        };
        Some(self.words.iter().zip(counts).map(of_word).sum())
    }
}

/// What a source has.
struct Counts {
    texts: u64,
    words: u64,
    with_word: Vec<u64>,
}

impl Counts {
    fn new(words: usize) -> Self {
        Self { texts: 0, words: 0, with_word: vec![0; words] }
    }
}

/// The numbers of a MemTable's rows that the search sees.
fn visible_rows(search: &Search, memtable: &MemTableSnapshot, visibility: &Visibility) -> Result<RoaringBitmap> {
    let mut visible = RoaringBitmap::new();
    for (batch, rows) in memtable.live_from(0, &memtable.columns_named(visibility.columns()))? {
        let shown = search.shown(visibility, &numbered(&batch, &rows)?)?;
        visible.extend(row_numbers(&shown).into_iter().filter_map(|row| u32::try_from(row).ok()));
    }
    Ok(visible)
}

fn row_numbers(rows: &RecordBatch) -> Vec<u64> {
    let numbers: Option<&ArrayRef> = rows.column_by_name(ROW_ADDR);
    let numbers = numbers.and_then(|numbers| numbers.as_primitive_opt::<UInt64Type>());
    numbers.map(|numbers| numbers.values().to_vec()).unwrap_or_default()
}

/// The settings of a dataset's full-text index on a column.
async fn config_of(dataset: &Dataset, column: &str) -> Result<Option<FullTextConfig>> {
    let index = index_on(dataset, column, |index| matches!(index.kind, IndexKind::FullText(_))).await?;
    Ok(index.and_then(|index| match index.kind {
        IndexKind::FullText(config) => Some(config),
        _ => None,
    }))
}
