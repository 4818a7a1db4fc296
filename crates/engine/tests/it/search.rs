//! Search by vector, by text and by both: over base table, SSTables and MemTables, with indexes and without, the answer is
//! what a look at every live row gives.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type};
use arrow_array::{ArrayRef, FixedSizeListArray, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::prelude::SessionContext;
use fencepost::wal::gc::GcOptions;
use fencepost::{
    Error, FullTextConfig, HybridQuery, IndexConfig, MemTableConfig, MergeOptions, Metric, Outcome, Table,
    TableOptions, TableSnapshot, TableWriter, TextQuery, VectorConfig, VectorQuery, register_tables,
};
use proptest::prelude::*;

use crate::support::*;

const DIMENSIONS: usize = 4;
const WORDS: [&str; 7] = ["apple", "pear", "plum", "fig", "kiwi", "melon", "cherry"];

/// A row without its id.
#[derive(Debug, Clone, PartialEq)]
struct Document {
    n: Option<i64>,
    words: Option<Vec<usize>>,
    vector: Option<[f32; DIMENSIONS]>,
}

impl Document {
    fn text(&self) -> Option<String> {
        self.words.as_ref().map(|words| words.iter().map(|word| WORDS[*word]).collect::<Vec<_>>().join(" "))
    }
}

fn documents_schema() -> SchemaRef {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("n", DataType::Int64, true),
        Field::new("words", DataType::Utf8, true),
        Field::new("vector", DataType::FixedSizeList(item, DIMENSIONS as i32), true),
    ]))
}

fn batch(rows: &[(i64, Document)]) -> RecordBatch {
    let vectors = rows.iter().map(|(_, row)| row.vector.map(|vector| vector.map(Some)));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(id, _)| *id))),
        Arc::new(rows.iter().map(|(_, row)| row.n).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|(_, row)| row.text()).collect::<StringArray>()),
        Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(vectors, DIMENSIONS as i32)),
    ];
    RecordBatch::try_new(documents_schema(), columns).unwrap()
}

async fn create_documents(bucket: &Bucket, keyed: bool, sharding: &str) -> Table {
    let primary_key = if keyed { vec!["id".to_owned()] } else { vec![] };
    let options = TableOptions { primary_key, sharding: sharding.parse().unwrap() };
    Table::create(bucket.process().store, documents_schema(), options).await.unwrap()
}

fn all_indexes(metric: Metric) -> [IndexConfig; 3] {
    [
        IndexConfig::btree("n"),
        IndexConfig::full_text("words", FullTextConfig::default()),
        IndexConfig::vector("vector", VectorConfig::new(metric)),
    ]
}

/// The live rows, as many times as they are there.
type Rows = Vec<(i64, Document)>;

fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    match metric {
        Metric::L2 => a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum(),
        Metric::Cosine => 1.0 - dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()),
        Metric::Dot => 1.0 - dot(a, b),
        _ => unreachable!(),
    }
}

/// A filter and what it means.
fn filter(at_least: Option<i64>) -> (Option<Expr>, impl Fn(&Document) -> bool) {
    let expr = at_least.map(|at_least| col("n").gt_eq(lit(at_least)));
    (expr, move |row: &Document| at_least.is_none_or(|at_least| row.n.is_some_and(|n| n >= at_least)))
}

fn found(answer: &RecordBatch, score: &str) -> Vec<(i64, f32)> {
    let ids = answer.column_by_name("id").unwrap().as_primitive::<Int64Type>();
    let scores = answer.column_by_name(score).unwrap().as_primitive::<Float32Type>();
    ids.values().iter().copied().zip(scores.values().iter().copied()).collect()
}

/// The same scores in the same order, each of a row that has it. Which of several equal ones come last is open.
fn check(what: &str, found: &[(i64, f32)], mut expected: Vec<(i64, f32)>, k: usize, lowest_first: bool) {
    expected.sort_by(|(_, a), (_, b)| if lowest_first { a.total_cmp(b) } else { b.total_cmp(a) });
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * (1.0 + a.abs());
    assert_eq!(found.len(), expected.len().min(k), "{what}: {found:?}, not {expected:?}");
    for ((id, score), (_, should)) in found.iter().zip(&expected) {
        assert!(near(*score, *should), "{what}: {found:?}, not {expected:?}");
        assert!(expected.iter().any(|(other, of)| other == id && near(*of, *score)), "{what}: {id} has not {score}");
    }
    let mut ids: Vec<i64> = found.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    let mut allowed: Vec<i64> = expected.iter().map(|(id, _)| *id).collect();
    allowed.sort_unstable();
    for id in &ids {
        let of = |ids: &[i64]| ids.iter().filter(|other| *other == id).count();
        assert!(of(&ids) <= of(&allowed), "{what}: {id} is there twice");
    }
}

async fn check_vector(at: &TableSnapshot, rows: &Rows, metric: Metric, to: [f32; 4], k: usize, at_least: Option<i64>) {
    let (expr, keeps) = filter(at_least);
    let mut query = VectorQuery::new("vector", to.to_vec(), k).with_metric(metric);
    if let Some(expr) = expr {
        query = query.with_filter(expr);
    }
    let kept = rows.iter().filter(|(_, row)| keeps(row));
    let expected: Vec<(i64, f32)> =
        kept.filter_map(|(id, row)| Some((*id, distance(metric, &to, &row.vector?)))).collect();
    let answer = at.nearest(&query).await.unwrap();
    check(&format!("{query:?}"), &found(&answer, "_distance"), expected.clone(), k, true);
    let exact = at.nearest(&query.exactly()).await.unwrap();
    check("exactly", &found(&exact, "_distance"), expected, k, true);
}

fn bm25(rows: &Rows, query: &[usize]) -> Vec<(i64, Document, f32)> {
    let texts: Vec<(i64, &Document, &Vec<usize>)> =
        rows.iter().filter_map(|(id, row)| Some((*id, row, row.words.as_ref()?))).collect();
    let average = texts.iter().map(|(.., words)| words.len()).sum::<usize>() as f32 / texts.len().max(1) as f32;
    let scored = texts.iter().filter_map(|(id, row, words)| {
        let mut score = None;
        for word in query {
            let count = words.iter().filter(|other| *other == word).count() as f32;
            let with = texts.iter().filter(|(.., words)| words.contains(word)).count() as f32;
            let idf = (1.0 + (texts.len() as f32 - with + 0.5) / (with + 0.5)).ln();
            let norm = 1.2 * (0.25 + 0.75 * words.len() as f32 / average);
            if count > 0.0 {
                *score.get_or_insert(0.0) += idf * 2.2 * count / (count + norm);
            }
        }
        Some((*id, (*row).clone(), score?))
    });
    scored.collect()
}

async fn check_text(at: &TableSnapshot, rows: &Rows, words: &[usize], all: bool, k: usize, at_least: Option<i64>) {
    let (expr, keeps) = filter(at_least);
    let text = words.iter().map(|word| WORDS[*word]).collect::<Vec<_>>().join(" ");
    let mut query = TextQuery::new("words", text, k);
    if let Some(expr) = expr {
        query = query.with_filter(expr);
    }
    if all {
        query = query.with_all_words();
    }
    let has_all = |row: &Document| !all || words.iter().all(|word| row.words.as_ref().unwrap().contains(word));
    let scored = bm25(rows, words).into_iter().filter(|(_, row, _)| keeps(row) && has_all(row));
    let expected = scored.map(|(id, _, score)| (id, score)).collect();
    let answer = at.search_text(&query).await.unwrap();
    check(&format!("{query:?}"), &found(&answer, "_score"), expected, k, false);
}

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<(i64, Document)>),
    Delete(Vec<i64>),
    Flush,
    Merge,
    Reopen,
    Collect,
    Index,
    Nearest { metric: Metric, to: [f32; DIMENSIONS], k: usize, at_least: Option<i64> },
    Text { words: Vec<usize>, all: bool, k: usize, at_least: Option<i64> },
    Hold,
}

fn document() -> impl Strategy<Value = Document> {
    let value = prop_oneof![Just(-1.0f32), Just(0.25), Just(0.5), Just(1.0), Just(3.0)];
    let vector = [value.clone(), value.clone(), value.clone(), value];
    let words = prop::collection::vec(0..WORDS.len(), 1..6);
    (prop::option::weighted(0.9, 0..10i64), prop::option::weighted(0.9, words), prop::option::weighted(0.9, vector))
        .prop_map(|(n, words, vector)| Document { n, words, vector })
}

fn steps(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let value = || prop_oneof![Just(-1.0f32), Just(0.5), Just(2.0)];
    let metric = prop_oneof![Just(Metric::L2), Just(Metric::Cosine), Just(Metric::Dot)];
    let to = [value(), value(), value(), value()];
    let nearest = (metric, to, 1..6usize, prop::option::of(0..10i64))
        .prop_map(|(metric, to, k, at_least)| Step::Nearest { metric, to, k, at_least });
    let text = (prop::sample::subsequence((0..WORDS.len()).collect::<Vec<_>>(), 1..4), any::<bool>(), 1..6usize)
        .prop_flat_map(|(words, all, k)| {
            prop::option::of(0..10i64).prop_map(move |at_least| Step::Text { words: words.clone(), all, k, at_least })
        });
    let step = prop_oneof![
        6 => prop::collection::vec((0..12i64, document()), 1..5).prop_map(Step::Put),
        2 => prop::collection::vec(0..12i64, 1..4).prop_map(Step::Delete),
        2 => Just(Step::Flush),
        1 => Just(Step::Merge),
        1 => Just(Step::Reopen),
        1 => Just(Step::Collect),
        1 => Just(Step::Index),
        5 => nearest,
        5 => text,
        1 => Just(Step::Hold),
    ];
    prop::collection::vec(step, length)
}

/// A table, what it should hold, and snapshots of it that should not change.
struct Run {
    bucket: Bucket,
    table: Table,
    writer: Option<TableWriter>,
    keyed: bool,
    rows: Rows,
    held: Vec<(TableSnapshot, Rows)>,
    indexed: bool,
}

impl Run {
    async fn new(keyed: bool, buckets: u32) -> Self {
        let bucket = Bucket::new();
        let sharding = if buckets == 1 { "unsharded".to_owned() } else { format!("bucket(id,{buckets})") };
        let table = create_documents(&bucket, keyed, &sharding).await;
        let writer = Some(table.writer(config()).await.unwrap());
        Self { bucket, table, writer, keyed, rows: vec![], held: vec![], indexed: false }
    }

    fn writer(&self) -> &TableWriter {
        self.writer.as_ref().unwrap()
    }

    /// The table as the writer sees it, and as another process does.
    async fn views(&self) -> Vec<TableSnapshot> {
        vec![self.writer().snapshot().await.unwrap(), self.bucket.table().await.snapshot().await.unwrap()]
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Put(rows) => {
                self.writer().put(batch(&rows)).await.unwrap();
                for (id, row) in rows {
                    if self.keyed {
                        self.rows.retain(|(other, _)| *other != id);
                    }
                    self.rows.push((id, row));
                }
            }
            Step::Delete(ids) if self.keyed => {
                self.writer().delete(keys(&ids)).await.unwrap();
                self.rows.retain(|(id, _)| !ids.contains(id));
            }
            Step::Delete(_) => {}
            Step::Flush => self.writer().flush().await.unwrap(),
            Step::Merge => drop(self.table.merge(&MergeOptions::default(), |_| {}).await.unwrap()),
            Step::Reopen => {
                if let Some(writer) = self.writer.take() {
                    drop(writer);
                }
                self.writer = Some(self.table.writer(config()).await.unwrap());
            }
            // What held snapshots need stays, since they are younger than that.
            Step::Collect => drop(self.table.gc(&GcOptions::default(), |_| {}).await.unwrap()),
            Step::Index if !self.indexed => {
                self.indexed = true;
                for index in all_indexes(Metric::L2) {
                    self.table.create_index(&index).await.unwrap();
                }
            }
            Step::Index => {}
            Step::Nearest { metric, to, k, at_least } => {
                for view in self.views().await {
                    check_vector(&view, &self.rows, metric, to, k, at_least).await;
                }
                for (held, rows) in &self.held {
                    check_vector(held, rows, metric, to, k, at_least).await;
                }
            }
            Step::Text { words, all, k, at_least } => {
                for view in self.views().await {
                    check_text(&view, &self.rows, &words, all, k, at_least).await;
                }
                for (held, rows) in &self.held {
                    check_text(held, rows, &words, all, k, at_least).await;
                }
            }
            Step::Hold => {
                if self.held.len() < 2 {
                    self.held.push((self.writer().snapshot().await.unwrap(), self.rows.clone()));
                }
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn every_search_finds_what_a_look_at_every_row_finds(
        steps in steps(20..40), keyed in any::<bool>(), buckets in 1..3u32,
    ) {
        runtime().block_on(async {
            let mut run = Run::new(keyed, buckets).await;
            for step in steps {
                run.run(step).await;
            }
        });
    }
}

/// A document with a text and a vector whose first dimension is given.
fn at(words: &[usize], x: f32) -> Document {
    Document { n: Some(words.len() as i64), words: Some(words.to_vec()), vector: Some([x, 0.0, 0.0, 1.0]) }
}

#[tokio::test]
async fn hybrid_search_fuses_both_rankings() {
    for keyed in [true, false] {
        let bucket = Bucket::new();
        let table = create_documents(&bucket, keyed, "unsharded").await;
        let writer = table.writer(config()).await.unwrap();
        // Nearest to 0: 1, 2, 3, 4. Best for "apple": 4 (twice in two words), then 2.
        writer.put(batch(&[(1, at(&[1], 0.0)), (2, at(&[0, 1], 1.0))])).await.unwrap();
        writer.flush().await.unwrap();
        writer.put(batch(&[(3, at(&[2], 2.0)), (4, at(&[0, 0], 3.0))])).await.unwrap();
        let query = || {
            let vector = VectorQuery::new("vector", vec![0.0, 0.0, 0.0, 1.0], 3);
            HybridQuery::new(vector, TextQuery::new("words", "apple", 3), 3)
        };
        for snapshot in [writer.snapshot().await.unwrap(), bucket.table().await.snapshot().await.unwrap()] {
            let answer = found(&snapshot.search_hybrid(&query()).await.unwrap(), "_relevance_score");
            // 2 is second in both; 1 and 4 are first in one.
            let expected = [(2, 2.0 / 62.0), (1, 1.0 / 61.0), (4, 1.0 / 61.0)];
            assert_eq!(answer.len(), 3);
            for ((id, score), (should, of)) in answer.iter().zip(expected) {
                assert!(*id == should && (score - of).abs() < 1e-6, "{answer:?}");
            }
            let sharper = snapshot.search_hybrid(&query().with_rank_constant(0)).await.unwrap();
            assert_eq!(found(&sharper, "_relevance_score").len(), 3);
        }
    }
}

#[tokio::test]
async fn searches_are_tables_in_sql() {
    let bucket = Bucket::new();
    let table = create_documents(&bucket, true, "unsharded").await;
    let writer = table.writer(config()).await.unwrap();
    let rows: Rows = (0..20).map(|id| (id, at(&[0, (id % 6) as usize + 1], id as f32))).collect();
    writer.put(batch(&rows)).await.unwrap();
    let sql = SessionContext::new();
    register_tables(&sql, [("docs", writer.snapshot().await.unwrap())]).unwrap();
    let ids = async |query: &str| {
        let batches = sql.sql(query).await.unwrap().collect().await.unwrap();
        batches.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect::<Vec<i64>>()
    };
    let vector = "vector_search('docs', 'vector', '[0, 0, 0, 1]', 3, 'l2')";
    assert_eq!(ids(&format!("select id from {vector} order by _distance")).await, [0, 1, 2]);
    let filtered = "vector_search('docs', 'vector', '[0, 0, 0, 1]', 3, '', 'id >= 5')";
    assert_eq!(ids(&format!("select id from {filtered} order by _distance")).await, [5, 6, 7]);
    assert_eq!(ids(&format!("select id from {vector} where id >= 1 order by _distance")).await, [1, 2]);
    let text = "text_search('docs', 'words', 'pear', 10)";
    assert_eq!(ids(&format!("select id from {text} order by id")).await, [0, 6, 12, 18]);
    let hybrid = "hybrid_search('docs', 'vector', '[0, 0, 0, 1]', 'words', 'pear', 1)";
    assert_eq!(ids(&format!("select id from {hybrid}")).await, [0]);
    let joined = format!("select d.id from docs d join {text} f on d.id = f.id where d.n = 2 order by d.id");
    assert_eq!(ids(&joined).await, [0, 6, 12, 18]);
    for (wrong, why) in [
        ("vector_search('docs', 'vector', '[0, 0, 0, 1]')", "argument 4 (`k`) is missing"),
        ("vector_search('nosuch', 'vector', '[0]', 1)", "no table `nosuch`"),
        ("vector_search('docs', 'vector', 'x', 1)", "no list of numbers"),
        ("vector_search('docs', 'vector', '[0, 0, 0, 1]', 1, 'hamming')", "`hamming` is no metric"),
        ("text_search('docs', 'words', 'a', 1, '', 2)", "too many arguments"),
    ] {
        let error = sql.sql(&format!("select * from {wrong}")).await.unwrap_err().to_string();
        assert!(error.contains(why), "{wrong}: {error}");
    }
}

#[tokio::test]
async fn a_search_that_does_not_fit_the_table_says_why() {
    let bucket = Bucket::new();
    let table = create_documents(&bucket, true, "unsharded").await;
    let snapshot = table.snapshot().await.unwrap();
    let refused = |result: Result<RecordBatch, Error>, why: &str| {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    };
    let near = |column: &str, vector: Vec<f32>, k| VectorQuery::new(column, vector, k);
    refused(snapshot.nearest(&near("nosuch", vec![0.0; 4], 1)).await, "no column `nosuch`");
    refused(snapshot.nearest(&near("words", vec![0.0; 4], 1)).await, "fixed size list of f32 or f16");
    refused(snapshot.nearest(&near("vector", vec![0.0; 3], 1)).await, "3 dimensions and column `vector` has 4");
    refused(snapshot.nearest(&near("vector", vec![f32::NAN; 4], 1)).await, "not finite");
    refused(snapshot.nearest(&near("vector", vec![0.0; 4], 0)).await, "1 or more");
    refused(snapshot.search_text(&TextQuery::new("n", "a", 1)).await, "a column of strings");
    refused(snapshot.search_text(&TextQuery::new("words", "the of !", 1)).await, "no word to look for");
    refused(snapshot.nearest(&near("vector", vec![0.0; 4], 1).with_columns(["x"])).await, "no column `x`");
    let filter = col("nosuch").eq(lit(1));
    refused(snapshot.nearest(&near("vector", vec![0.0; 4], 1).with_filter(filter)).await, "nosuch");
    // Nothing is there, and that is no error.
    assert_eq!(snapshot.nearest(&near("vector", vec![0.0; 4], 1)).await.unwrap().num_rows(), 0);
    assert_eq!(snapshot.search_text(&TextQuery::new("words", "apple", 1)).await.unwrap().num_rows(), 0);
}

#[tokio::test]
async fn a_put_that_an_index_could_not_find_is_refused_before_it_is_logged() {
    let bucket = Bucket::new();
    let table = create_documents(&bucket, true, "unsharded").await;
    table.create_index(&IndexConfig::vector("vector", VectorConfig::new(Metric::Cosine))).await.unwrap();
    let process = bucket.process();
    let writer = process.table().await.writer(config()).await.unwrap();
    process.faults.clear_log();
    for (vector, why) in [([f32::NAN, 0.0, 0.0, 1.0], "not finite"), ([0.0; DIMENSIONS], "no direction")] {
        let bad = Document { vector: Some(vector), ..at(&[0], 0.0) };
        let error = writer.put(batch(&[(1, at(&[0], 1.0)), (2, bad)])).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotWritten);
        let text = error.to_string();
        assert!(text.contains(why) && text.contains("row 1") && text.contains("`vector_idx`"), "{text}");
    }
    assert_eq!(process.faults.log().len(), 0, "nothing was sent");
    assert_eq!(writer.shards()[0].memtable_stats().unwrap().rows, 0);
}

#[tokio::test]
async fn the_lance_indexes_of_an_sstable_have_the_names_of_the_tables() {
    use lance::index::DatasetIndexExt;
    let bucket = Bucket::new();
    let folder = tempfile::tempdir().unwrap();
    drop(bucket);
    let store = fencepost::Store::open(folder.path().to_str().unwrap(), &Default::default()).unwrap();
    let options = TableOptions { primary_key: vec!["id".to_owned()], ..TableOptions::default() };
    let table = Table::create(store, documents_schema(), options).await.unwrap();
    for index in all_indexes(Metric::L2) {
        table.create_index(&index).await.unwrap();
    }
    let names: Vec<String> = table.indexes().await.unwrap().into_iter().map(|index| index.name).collect();
    assert_eq!(names, ["n_idx", "vector_idx", "words_idx"]);
    let writer = table.writer(config()).await.unwrap();
    let rows: Rows = (0..50).map(|id| (id, at(&[0, (id % 6) as usize + 1], id as f32))).collect();
    writer.put(batch(&rows)).await.unwrap();
    writer.delete(keys(&[3])).await.unwrap();
    writer.close().await.unwrap();
    let shard = folder.path().join("_mem_wal").join(table.shard_ids().await.unwrap()[0].to_string());
    let sstable = std::fs::read_dir(&shard).unwrap().map(|entry| entry.unwrap().path());
    let sstable = sstable.into_iter().find(|path| path.to_string_lossy().contains("_gen_")).unwrap();
    // Plain Lance, which knows nothing of us.
    let dataset = lance::Dataset::open(sstable.to_str().unwrap()).await.unwrap();
    let mut found: Vec<String> = dataset.load_indices().await.unwrap().iter().map(|i| i.name.clone()).collect();
    found.sort();
    assert_eq!(found, names);
    let mut scanner = dataset.scan();
    let query = arrow_array::Float32Array::from(vec![7.0, 0.0, 0.0, 1.0]);
    scanner.nearest("vector", &query, 1).unwrap().fast_search();
    let nearest = scanner.try_into_batch().await.unwrap();
    assert_eq!(nearest.column_by_name("id").unwrap().as_primitive::<Int64Type>().values(), &[7]);
    // Merged, and dropped again.
    table.merge(&MergeOptions::default(), |_| {}).await.unwrap();
    let twice = table.create_index(&IndexConfig::btree("n")).await.unwrap_err();
    assert!(twice.to_string().contains("has an index `n_idx` already"), "{twice}");
    table.drop_index("n_idx").await.unwrap();
    assert_eq!(table.indexes().await.unwrap().len(), 2);
    let error = table.drop_index("n_idx").await.unwrap_err();
    assert!(error.to_string().contains("no index `n_idx`"), "{error}");
}

/// By the B-tree, of which each of these conditions leaves few rows, and by a look at every row.
#[tokio::test]
async fn a_b_tree_in_memory_finds_the_newest_rows_and_its_memory_is_counted() {
    let bucket = Bucket::new();
    let table = create_documents(&bucket, true, "unsharded").await;
    table.create_index(&IndexConfig::btree("n")).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    let row = |n: i64| Document { n: Some(n), words: None, vector: None };
    let rows: Rows = (0..200).map(|id| (id, row(id))).collect();
    writer.put(batch(&rows)).await.unwrap();
    let before = writer.snapshot().await.unwrap();
    // 5 and 7 have other values now, 6 is gone, and 150 has what 5 had.
    writer.put(batch(&[(5, row(1005)), (7, Document { n: None, ..row(0) }), (150, row(5))])).await.unwrap();
    writer.delete(keys(&[6])).await.unwrap();
    let after = writer.snapshot().await.unwrap();
    for (condition, then, now) in [
        ("n = 5", vec![5], vec![150]),
        ("n in (5, 6, 7, 5)", vec![5, 6, 7], vec![150]),
        ("n between 4 and 8", vec![4, 5, 6, 7, 8], vec![4, 8, 150]),
        ("n > 198", vec![199], vec![5, 199]),
        ("n >= 3 and n < 5 and id < 100", vec![3, 4], vec![3, 4]),
        ("n > 9 and n < 3", vec![], vec![]),
        ("150 <= n and n <= 151", vec![150, 151], vec![151]),
    ] {
        for (snapshot, expected) in [(&before, then), (&after, now)] {
            let found = sql(&snapshot.provider(), &format!("select id from t where {condition} order by id")).await;
            let found: Vec<i64> = found.iter().map(|row| row[0].parse().unwrap()).collect();
            assert_eq!(found, expected, "{condition}");
        }
    }
    let shard = &writer.shards()[0];
    shard.catch_up_indexes().await.unwrap();
    let bytes = shard.memtable_stats().unwrap().secondary_index_bytes;
    assert!(bytes.len() == 1 && bytes[0].0 == "n_idx" && bytes[0].1 > 203 * 8, "{bytes:?}");
}

/// Rows that a graph has, whose newest version it does not have, or that it leads to only by way of rows that do not count.
#[tokio::test]
async fn a_graph_in_memory_hides_nothing_and_shows_nothing_old() {
    let bucket = Bucket::new();
    let table = create_documents(&bucket, true, "unsharded").await;
    let mut config = config();
    let vector = VectorConfig { exact_rows: 0, ..VectorConfig::default() };
    let indexes = vec![IndexConfig::vector("vector", vector)];
    config.memtable = config.memtable.map(|memtable| MemTableConfig { indexes, ..memtable });
    let writer = table.writer(config).await.unwrap();
    let point = |n: i64, x: f32| Document { n: Some(n), words: None, vector: Some([x, 0.0, 0.0, 1.0]) };
    let mut rows: Rows = (0..600).map(|id| (id, point(id, id as f32))).collect();
    writer.put(batch(&rows)).await.unwrap();
    let shard = &writer.shards()[0];
    shard.catch_up_indexes().await.unwrap();
    let of_graph = shard.memtable_stats().unwrap().secondary_index_bytes[0].1;
    assert!(of_graph > 600 * 4 * 4, "there is a graph");
    // Far more than the rows: it counts against the limit of the memory that appends wait for.
    assert!(shard.stats().wal.unflushed_bytes as usize > of_graph);
    // 0 moves away, 1 is gone, 700 comes to where 0 was: none of that is in the graph, which takes 256 rows at a time.
    writer.put(batch(&[(0, point(0, 5000.0)), (700, point(700, 0.25))])).await.unwrap();
    writer.delete(keys(&[1])).await.unwrap();
    rows.retain(|(id, _)| *id > 1);
    rows.extend([(0, point(0, 5000.0)), (700, point(700, 0.25))]);
    let snapshot = writer.snapshot().await.unwrap();
    // Any row, the last of them only, and more of them than there are.
    for (k, at_least) in [(5, None), (5, Some(590)), (700, None)] {
        check_vector(&snapshot, &rows, Metric::L2, [0.0, 0.0, 0.0, 1.0], k, at_least).await;
    }
}
