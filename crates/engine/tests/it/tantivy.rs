//! Text search ranks as one tantivy index over the same live texts does, wherever these lie.

use std::process::Command;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use fencepost::{FullTextConfig, IndexConfig, MergeOptions, TextQuery};
use serde_json::{Value, json};

use crate::airports::airports;
use crate::support::*;

const QUERIES: [&str; 12] = [
    "international",
    "county regional",
    "san",
    "john f kennedy",
    "municipal airport of the county",
    "field",
    "air force base",
    "memorial memorial field",
    "new york",
    "lake",
    "st louis downtown",
    "heliport",
];

/// How many are compared: more than any query finds.
const K: usize = 2000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_rank_as_in_one_tantivy_index() {
    let Some(python) = std::env::var_os("FENCEPOST_PYTHON") else {
        eprintln!("not compared with tantivy: FENCEPOST_PYTHON names no interpreter (tools/python makes one)");
        return;
    };
    let names: Vec<String> = airports().await.into_iter().map(|airport| airport.name).collect();
    let bucket = Bucket::new();
    let table = keyed(&bucket, 2).await;
    table.create_index(&IndexConfig::full_text("s", FullTextConfig::default().keeping_stop_words())).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    let put = |ids: Vec<i64>, text: &dyn Fn(i64) -> String| {
        let texts: Vec<String> = ids.iter().map(|id| text(*id)).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(ids.clone())),
            Arc::new(Int64Array::from(ids)),
            Arc::new(StringArray::from(texts)),
        ];
        writer.put(RecordBatch::try_new(schema(), columns).unwrap())
    };
    let name = |id: i64| names[id as usize].clone();
    let count = names.len() as i64;
    // In the base table: half of the names, and old versions of some of the others.
    put((0..count / 2).collect(), &name).await.unwrap();
    put((count / 2..count * 3 / 4).collect(), &|id| format!("{} international field", name(id))).await.unwrap();
    writer.flush().await.unwrap();
    table.merge(&MergeOptions::default(), |_| {}).await.unwrap();
    // In SSTables: newer versions, again some that are old, and a deletion.
    put((count / 2..count * 2 / 3).collect(), &name).await.unwrap();
    put((0..40).collect(), &|id| format!("county {}", name(id))).await.unwrap();
    writer.flush().await.unwrap();
    writer.delete(keys(&(40..60).collect::<Vec<_>>())).await.unwrap();
    writer.flush().await.unwrap();
    // In MemTables: the rest.
    put((0..40).collect(), &name).await.unwrap();
    put((count * 2 / 3..count).collect(), &name).await.unwrap();

    let live: Vec<Value> = (0..count).filter(|id| !(40..60).contains(id)).map(|id| json!([id, name(id)])).collect();
    let folder = tempfile::tempdir().unwrap();
    let task = folder.path().join("task.json");
    std::fs::write(&task, json!({"texts": live, "queries": QUERIES, "k": K}).to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/tantivy_ranks.py");
    let ranked = Command::new(python).arg(script).arg(&task).output().unwrap();
    assert!(ranked.status.success(), "{}", String::from_utf8_lossy(&ranked.stderr));
    let ranked: Vec<Vec<(i64, f32)>> = serde_json::from_slice(&ranked.stdout).unwrap();

    for snapshot in [writer.snapshot().await.unwrap(), bucket.table().await.snapshot().await.unwrap()] {
        for (query, expected) in QUERIES.iter().zip(&ranked) {
            assert!(!expected.is_empty() && expected.len() < K, "{query}: {} texts", expected.len());
            let found = snapshot.search_text(&TextQuery::new("s", *query, K)).await.unwrap();
            let ids = found.column_by_name("id").unwrap().as_primitive::<Int64Type>().values();
            let scores = found.column_by_name("_score").unwrap().as_primitive::<Float32Type>().values();
            assert_eq!(ids.len(), expected.len(), "{query}");
            for ((id, score), (_, of_tantivy)) in ids.iter().zip(scores).zip(expected) {
                let near = |score: f32| (score - of_tantivy).abs() < 1e-4 * of_tantivy.abs();
                assert!(near(*score), "{query}: {id} has {score} where tantivy has {of_tantivy}");
                // Of equal scores, the order is open.
                assert!(expected.iter().any(|(other, score)| other == id && near(*score)), "{query}: {id}");
            }
        }
    }
    writer.close().await.unwrap();
}
