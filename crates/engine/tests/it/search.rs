//! Search by vector, by text and by both: over base table, SSTables and MemTables, with indexes and without, the answer is
//! what a look at every live row gives.

pub(crate) mod documents;
mod model;
mod questions;
mod steps;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::SessionContext;
use fencepost::{
    Error, HybridQuery, IndexConfig, MemTableConfig, MergeOptions, Metric, Outcome, Table, TableOptions, TextQuery,
    VectorConfig, VectorQuery, register_tables,
};

use self::documents::*;
use crate::support::*;

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
            let answer = scored(&snapshot.search_hybrid(&query()).await.unwrap(), "_relevance_score");
            // 2 is second in both; 1 and 4 are first in one.
            let expected = [(2, 2.0 / 62.0), (1, 1.0 / 61.0), (4, 1.0 / 61.0)];
            assert_eq!(answer.len(), 3);
            for (one, (should, of)) in answer.iter().zip(expected) {
                assert!(one.id == should && (one.score - of).abs() < 1e-6, "{answer:?}");
            }
            let sharper = snapshot.search_hybrid(&query().with_rank_constant(0)).await.unwrap();
            assert_eq!(scored(&sharper, "_relevance_score").len(), 3);
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

/// Lance cannot train an index of vectors without one.
#[tokio::test]
async fn a_vector_index_waits_for_the_first_vector() {
    let optimize = MergeOptions { optimize_indexes: true, ..MergeOptions::default() };
    for early in [true, false] {
        let bucket = Bucket::new();
        let table = create_documents(&bucket, true, "unsharded").await;
        let writer = table.writer(config()).await.unwrap();
        let index = IndexConfig::vector("vector", VectorConfig::default());
        if early {
            table.create_index(&index).await.unwrap();
        }
        let mut rows: Rows = (0..4).map(|id| (id, Document { vector: None, ..at(&[0], 0.0) })).collect();
        writer.put(batch(&rows)).await.unwrap();
        writer.flush().await.unwrap();
        assert_eq!(table.merge(&optimize, |_| {}).await.unwrap().optimized, Vec::<String>::new());
        if !early {
            table.create_index(&index).await.unwrap();
        }
        assert_eq!(table.indexes().await.unwrap().len(), 1);
        let more: Rows = (4..8).map(|id| (id, at(&[0], id as f32))).collect();
        writer.put(batch(&more)).await.unwrap();
        rows.extend(more);
        for merged in [false, true] {
            if merged {
                writer.flush().await.unwrap();
                assert_eq!(table.merge(&optimize, |_| {}).await.unwrap().optimized, ["vector_idx"]);
            }
            let near = Near { metric: Metric::L2, to: [5.0, 0.0, 0.0, 1.0], k: 3, filter: None, exactly: false };
            check_near(&writer.snapshot().await.unwrap(), &rows, &near).await;
        }
    }
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
    for (k, filter) in [(5, None), (5, Some(Condition::AtLeast(590))), (700, None)] {
        for exactly in [false, true] {
            let near = Near { metric: Metric::L2, to: [0.0, 0.0, 0.0, 1.0], k, filter: filter.clone(), exactly };
            check_near(&snapshot, &rows, &near).await;
        }
    }
}
