//! Rows with numbers, words and vectors, and what a search must find among them: by a look at every row.

use std::fmt;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type};
use arrow_array::{Array, ArrayRef, FixedSizeListArray, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::logical_expr::{Expr, col, lit};
use fencepost::{
    FullTextConfig, HybridQuery, IndexConfig, Metric, Table, TableOptions, TableSnapshot, TextQuery, VectorConfig,
    VectorQuery,
};

use crate::support::*;

pub(crate) const DIMENSIONS: usize = 4;
pub(crate) const WORDS: [&str; 7] = ["apple", "pear", "plum", "fig", "kiwi", "melon", "cherry"];

/// A row without its id.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    pub(crate) n: Option<i64>,
    pub(crate) words: Option<Vec<usize>>,
    pub(crate) vector: Option<[f32; DIMENSIONS]>,
}

impl Document {
    pub(crate) fn text(&self) -> Option<String> {
        self.words.as_deref().map(text_of)
    }
}

pub(crate) fn text_of(words: &[usize]) -> String {
    words.iter().map(|word| WORDS[*word]).collect::<Vec<_>>().join(" ")
}

/// The live rows, as many times as they are there.
pub(crate) type Rows = Vec<(i64, Document)>;

pub(crate) fn documents_schema() -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("n", DataType::Int64, true),
        Field::new("words", DataType::Utf8, true),
        Field::new("vector", DataType::FixedSizeList(item, DIMENSIONS as i32), true),
    ]))
}

pub(crate) fn batch(rows: &[(i64, Document)]) -> RecordBatch {
    let vectors = rows.iter().map(|(_, row)| row.vector.map(|vector| vector.map(Some)));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(id, _)| *id))),
        Arc::new(rows.iter().map(|(_, row)| row.n).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|(_, row)| row.text()).collect::<StringArray>()),
        Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(vectors, DIMENSIONS as i32)),
    ];
    RecordBatch::try_new(documents_schema(), columns).unwrap()
}

/// The rows of a batch with all columns of the table.
pub(crate) fn rows_of(batch: &RecordBatch) -> Rows {
    let column = |name: &str| batch.column_by_name(name).unwrap();
    let ids = column("id").as_primitive::<Int64Type>();
    let (ns, texts) = (column("n").as_primitive::<Int64Type>(), column("words").as_string::<i32>());
    let vectors = column("vector").as_fixed_size_list();
    let word = |word: &str| WORDS.iter().position(|known| *known == word).unwrap();
    let document = |row: usize| Document {
        n: ns.is_valid(row).then(|| ns.value(row)),
        words: texts.is_valid(row).then(|| texts.value(row).split(' ').map(word).collect()),
        vector: vectors.is_valid(row).then(|| {
            let vector = vectors.value(row);
            <[f32; DIMENSIONS]>::try_from(&vector.as_primitive::<Float32Type>().values()[..]).unwrap()
        }),
    };
    (0..batch.num_rows()).map(|row| (ids.value(row), document(row))).collect()
}

pub(crate) async fn create_documents(bucket: &Bucket, keyed: bool, sharding: &str) -> Table {
    let primary_key = if keyed { vec!["id".to_owned()] } else { vec![] };
    let options = TableOptions { primary_key, sharding: sharding.parse().unwrap() };
    Table::create(bucket.process().store, documents_schema(), options).await.unwrap()
}

pub(crate) fn all_indexes(metric: Metric) -> [IndexConfig; 3] {
    [
        IndexConfig::btree("n"),
        IndexConfig::full_text("words", FullTextConfig::default()),
        IndexConfig::vector("vector", VectorConfig::new(metric)),
    ]
}

/// Which rows a query wants.
#[derive(Debug, Clone)]
pub(crate) enum Condition {
    AtLeast(i64),
    Between(i64, i64),
    OneOf(Vec<i64>),
    NoNumber,
    Words(Vec<usize>),
    Ids(Vec<i64>),
    Either(Box<Condition>, Box<Condition>),
    Both(Box<Condition>, Box<Condition>),
}

impl Condition {
    pub(crate) fn keeps(&self, id: i64, row: &Document) -> bool {
        match self {
            Self::AtLeast(least) => row.n.is_some_and(|n| n >= *least),
            Self::Between(least, greatest) => row.n.is_some_and(|n| (*least..=*greatest).contains(&n)),
            Self::OneOf(numbers) => row.n.is_some_and(|n| numbers.contains(&n)),
            Self::NoNumber => row.n.is_none(),
            Self::Words(words) => row.words.as_ref() == Some(words),
            Self::Ids(ids) => ids.contains(&id),
            Self::Either(a, b) => a.keeps(id, row) || b.keeps(id, row),
            Self::Both(a, b) => a.keeps(id, row) && b.keeps(id, row),
        }
    }

    pub(crate) fn expr(&self) -> Expr {
        let list = |numbers: &[i64]| numbers.iter().map(|n| lit(*n)).collect();
        match self {
            Self::AtLeast(least) => col("n").gt_eq(lit(*least)),
            Self::Between(least, greatest) => col("n").between(lit(*least), lit(*greatest)),
            Self::OneOf(numbers) => col("n").in_list(list(numbers), false),
            Self::NoNumber => col("n").is_null(),
            Self::Words(words) => col("words").eq(lit(text_of(words))),
            Self::Ids(ids) => col("id").in_list(list(ids), false),
            Self::Either(a, b) => a.expr().or(b.expr()),
            Self::Both(a, b) => a.expr().and(b.expr()),
        }
    }
}

/// The condition in SQL.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |numbers: &[i64]| numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::AtLeast(least) => write!(f, "n >= {least}"),
            Self::Between(least, greatest) => write!(f, "n between {least} and {greatest}"),
            Self::OneOf(numbers) => write!(f, "n in ({})", list(numbers)),
            Self::NoNumber => write!(f, "n is null"),
            Self::Words(words) => write!(f, "words = '{}'", text_of(words)),
            Self::Ids(ids) => write!(f, "id in ({})", list(ids)),
            Self::Either(a, b) => write!(f, "({a} or {b})"),
            Self::Both(a, b) => write!(f, "({a} and {b})"),
        }
    }
}

fn kept<'r>(rows: &'r Rows, filter: Option<&Condition>) -> impl Iterator<Item = &'r (i64, Document)> {
    rows.iter().filter(move |(id, row)| filter.is_none_or(|filter| filter.keeps(*id, row)))
}

/// A row and what a search says of it.
#[derive(Debug, Clone)]
pub(crate) struct Scored {
    pub(crate) id: i64,
    row: Document,
    pub(crate) score: f32,
}

impl Scored {
    fn is_of(&self, (id, row): &(i64, Document)) -> bool {
        self.id == *id && self.row == *row
    }
}

/// The rows of an answer with all columns of the table, and their scores.
pub(crate) fn scored(answer: &RecordBatch, score: &str) -> Vec<Scored> {
    let scores = answer.column_by_name(score).unwrap().as_primitive::<Float32Type>();
    let rows = rows_of(answer).into_iter().zip(scores.values());
    rows.map(|((id, row), score)| Scored { id, row, score: *score }).collect()
}

fn is_near(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-4 * (1.0 + a.abs())
}

/// Best first.
fn sort(rows: &mut [Scored], best: Best) {
    rows.sort_by(|a, b| match best {
        Best::Lowest => a.score.total_cmp(&b.score),
        Best::Highest => b.score.total_cmp(&a.score),
    });
}

#[derive(Clone, Copy)]
pub(crate) enum Best {
    Lowest,
    Highest,
}

/// The same scores in the same order, each of a row that has it. Which of several equal ones come last is open.
pub(crate) fn check_best(what: &str, found: &[Scored], mut expected: Vec<Scored>, k: usize, best: Best) {
    sort(&mut expected, best);
    assert_eq!(found.len(), expected.len().min(k), "{what}: {found:?}, not {expected:?}");
    for (row, should) in found.iter().zip(&expected) {
        assert!(is_near(row.score, should.score), "{what}: {found:?}, not {expected:?}");
    }
    let mut left = expected.clone();
    for row in found {
        let same = |other: &Scored| other.id == row.id && other.row == row.row && is_near(other.score, row.score);
        let place = left.iter().position(same);
        let place =
            place.unwrap_or_else(|| panic!("{what}: {row:?} in {found:?}, which is once more than in {expected:?}"));
        left.swap_remove(place);
    }
}

fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    match metric {
        Metric::L2 => a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum(),
        Metric::Cosine => 1.0 - dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()),
        Metric::Dot => 1.0 - dot(a, b),
        _ => unreachable!(),
    }
}

/// What is near to a vector.
#[derive(Debug, Clone)]
pub(crate) struct Near {
    pub(crate) metric: Metric,
    pub(crate) to: [f32; DIMENSIONS],
    pub(crate) k: usize,
    pub(crate) filter: Option<Condition>,
    /// By a look at every vector, whatever indexes there are.
    pub(crate) exactly: bool,
}

impl Near {
    pub(crate) fn query(&self) -> VectorQuery {
        let mut query = VectorQuery::new("vector", self.to.to_vec(), self.k).with_metric(self.metric);
        if let Some(filter) = &self.filter {
            query = query.with_filter(filter.expr());
        }
        if self.exactly { query.exactly() } else { query }
    }

    /// Every row with a vector that the filter lets through.
    pub(crate) fn all(&self, rows: &Rows) -> Vec<Scored> {
        let with_vector = kept(rows, self.filter.as_ref());
        let scored = |(id, row): &(i64, Document)| {
            Some(Scored { id: *id, row: row.clone(), score: distance(self.metric, &self.to, &row.vector?) })
        };
        with_vector.filter_map(scored).collect()
    }
}

pub(crate) async fn check_near(at: &TableSnapshot, rows: &Rows, near: &Near) {
    let answer = at.nearest(&near.query()).await.unwrap();
    check_best(&format!("{near:?}"), &scored(&answer, "_distance"), near.all(rows), near.k, Best::Lowest);
}

/// What matches words.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    pub(crate) words: Vec<usize>,
    pub(crate) all: bool,
    pub(crate) k: usize,
    pub(crate) filter: Option<Condition>,
}

impl Match {
    pub(crate) fn query(&self) -> TextQuery {
        let mut query = TextQuery::new("words", text_of(&self.words), self.k);
        if let Some(filter) = &self.filter {
            query = query.with_filter(filter.expr());
        }
        if self.all { query.with_all_words() } else { query }
    }

    /// Every row that matches and that the filter lets through, by BM25 over all rows.
    pub(crate) fn all(&self, rows: &Rows) -> Vec<Scored> {
        let lengths: Vec<usize> = rows.iter().filter_map(|(_, row)| Some(row.words.as_ref()?.len())).collect();
        let texts = lengths.len() as f32;
        let average = lengths.iter().sum::<usize>() as f32 / texts.max(1.0);
        let has = |row: &Document, word: &usize| row.words.as_ref().is_some_and(|words| words.contains(word));
        let idf = |word: &usize| {
            let with = rows.iter().filter(|(_, row)| has(row, word)).count() as f32;
            (1.0 + (texts - with + 0.5) / (with + 0.5)).ln()
        };
        let idfs: Vec<f32> = self.words.iter().map(idf).collect();
        let score = |words: &[usize]| -> f32 {
            let norm = 1.2 * (0.25 + 0.75 * words.len() as f32 / average);
            let of_word = |(word, idf): (&usize, &f32)| {
                let count = words.iter().filter(|other| *other == word).count() as f32;
                idf * 2.2 * count / (count + norm)
            };
            self.words.iter().zip(&idfs).map(of_word).sum()
        };
        let enough = if self.all { self.words.len() } else { 1 };
        let matching = kept(rows, self.filter.as_ref());
        let matching = matching.filter(|(_, row)| self.words.iter().filter(|word| has(row, word)).count() >= enough);
        let scored =
            |(id, row): &(i64, Document)| Some(Scored { id: *id, row: row.clone(), score: score(row.words.as_ref()?) });
        matching.filter_map(scored).collect()
    }
}

pub(crate) async fn check_match(at: &TableSnapshot, rows: &Rows, words: &Match) {
    let answer = at.search_text(&words.query()).await.unwrap();
    check_best(&format!("{words:?}"), &scored(&answer, "_score"), words.all(rows), words.k, Best::Highest);
}

/// The ranks that a row may have among the best `k`, from the best to the worst: equal rows may come in any order.
/// No worst one: it may be left out.
type Ranks = (usize, Option<usize>);

/// The ranks of rows in a search; `None` for those that are not among its best in any order.
fn ranks(rows: &Rows, mut found: Vec<Scored>, k: usize, best: Best) -> Vec<Option<Ranks>> {
    sort(&mut found, best);
    let mut ranks: Vec<Option<Ranks>> = vec![None; rows.len()];
    let mut first = 0;
    while first < found.len().min(k) {
        let equal = found[first..].windows(2).take_while(|two| is_near(two[0].score, two[1].score)).count() + 1;
        let (from, to) = (first + 1, first + equal);
        for one in &found[first..first + equal] {
            // Rows that are the same in everything have the same ranks.
            let same = rows.iter().enumerate().filter(|(_, row)| one.is_of(row));
            same.for_each(|(place, _)| ranks[place] = Some((from, (to <= k).then_some(to))));
        }
        first += equal;
    }
    ranks
}

/// Reciprocal rank fusion, as far as ties of the two rankings leave it determined: every row has a score that it may have,
/// scores fall, and no row that must be there is missing.
pub(crate) async fn check_hybrid(at: &TableSnapshot, rows: &Rows, near: &Near, words: &Match, k: usize) {
    let what = format!("the best {k} of {near:?} and {words:?}");
    let answer = at.search_hybrid(&HybridQuery::new(near.query(), words.query(), k)).await.unwrap();
    let found = scored(&answer, "_relevance_score");
    let nearest = ranks(rows, near.all(rows), near.k, Best::Lowest);
    let matching = ranks(rows, words.all(rows), words.k, Best::Highest);
    let fused: Vec<(f32, f32)> = nearest.iter().zip(&matching).map(|(a, b)| bounds(*a, *b)).collect();
    let near_enough = 1e-6;

    let certain = nearest.iter().zip(&matching).filter(|(a, b)| is_certain(**a) || is_certain(**b)).count();
    let possible = nearest.iter().zip(&matching).filter(|(a, b)| a.is_some() || b.is_some()).count();
    assert!(
        found.len() >= certain.min(k) && found.len() <= possible.min(k),
        "{what}: {found:?}, not {certain}..={possible}"
    );
    assert!(found.is_sorted_by(|a, b| a.score >= b.score), "{what}: {found:?}");

    // The rows that were not found yet.
    let mut left: Vec<usize> = (0..rows.len()).collect();
    for one in &found {
        let is_it = |place: &usize| {
            let (least, greatest) = fused[*place];
            let may_have = one.score >= least - near_enough && one.score <= greatest + near_enough;
            one.is_of(&rows[*place]) && greatest > 0.0 && may_have
        };
        let place = left.iter().position(is_it).unwrap_or_else(|| panic!("{what}: {one:?} in {found:?}; {fused:?}"));
        left.swap_remove(place);
    }
    let last = found.last().map_or(0.0, |last| last.score);
    for place in left {
        let (least, _) = fused[place];
        let must_be_there = if found.len() < k { least > 0.0 } else { least > last + near_enough };
        assert!(!must_be_there, "{what}: {:?} is missing in {found:?}", rows[place]);
    }
}

fn is_certain(ranks: Option<Ranks>) -> bool {
    matches!(ranks, Some((_, Some(_))))
}

/// The least and the greatest score of a row with these ranks.
fn bounds(nearest: Option<Ranks>, matching: Option<Ranks>) -> (f32, f32) {
    let part = |rank: usize| 1.0 / (60.0 + rank as f32);
    let greatest = [nearest, matching].into_iter().flatten().map(|(best, _)| part(best)).sum();
    let least = [nearest, matching].into_iter().flatten().filter_map(|(_, worst)| worst).map(part).sum();
    (least, greatest)
}
