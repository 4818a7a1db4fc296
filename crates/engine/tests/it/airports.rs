//! Real texts with real embeddings: the names of 1,458 airports (`tools/embed_airports.py` made the file), and how many of the
//! nearest ones a search finds.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float16Type;
use arrow_array::{Array, RecordBatch};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use fencepost::{
    IndexConfig, MemTableConfig, MergeOptions, Metric, Table, TableOptions, TableSnapshot, VectorConfig, VectorQuery,
    WriterConfig,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::support::*;

const DIMENSIONS: i32 = 384;
const K: usize = 10;

pub(crate) struct Airport {
    pub(crate) name: String,
    vector: Vec<f32>,
}

fn file() -> Vec<RecordBatch> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/airports.parquet");
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap();
    reader.with_batch_size(100).build().unwrap().map(|batch| batch.unwrap()).collect()
}

pub(crate) async fn airports() -> Vec<Airport> {
    let mut airports = Vec::new();
    for batch in file() {
        let names = batch.column_by_name("name").unwrap().as_string::<i32>();
        let vectors = batch.column_by_name("vector").unwrap().as_fixed_size_list();
        for row in 0..batch.num_rows() {
            let vector = vectors.value(row);
            let vector = vector.as_primitive::<Float16Type>().values().iter().map(|value| value.to_f32());
            airports.push(Airport { name: names.value(row).to_owned(), vector: vector.collect() });
        }
    }
    airports
}

fn airports_schema(item: DataType) -> SchemaRef {
    let item = Arc::new(Field::new("item", item, true));
    Arc::new(Schema::new(vec![
        Field::new("faa", DataType::Utf8, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("vector", DataType::FixedSizeList(item, DIMENSIONS), true),
    ]))
}

async fn table_of(bucket: &Bucket, schema: &SchemaRef) -> Table {
    let options = TableOptions { primary_key: vec!["faa".to_owned()], ..TableOptions::default() };
    Table::create(bucket.process().store, Arc::clone(schema), options).await.unwrap()
}

/// The share of the 10 nearest that are found, over every `step`th airport as the query.
async fn recall(snapshot: &TableSnapshot, airports: &[Airport], step: usize) -> f64 {
    let (mut found, mut wanted) = (0, 0);
    for airport in airports.iter().step_by(step) {
        let query = VectorQuery::new("vector", airport.vector.clone(), K).with_metric(Metric::Cosine);
        let query = query.with_columns(["faa"]);
        let ids = |batch: RecordBatch| {
            let ids = batch.column_by_name("faa").unwrap().as_string::<i32>().clone();
            (0..ids.len()).map(|row| ids.value(row).to_owned()).collect::<HashSet<_>>()
        };
        let near = ids(snapshot.nearest(&query).await.unwrap());
        let exact = ids(snapshot.nearest(&query.exactly()).await.unwrap());
        assert_eq!((near.len(), exact.len()), (K, K));
        found += near.intersection(&exact).count();
        wanted += K;
    }
    found as f64 / wanted as f64
}

async fn check_recall(exact_rows: usize, item: DataType, step: usize) {
    let airports = airports().await;
    let bucket = Bucket::new();
    let schema = airports_schema(item);
    let table = table_of(&bucket, &schema).await;
    let vector = VectorConfig { exact_rows, ..VectorConfig::new(Metric::Cosine) };
    let memtable = MemTableConfig {
        maintain_indexes: false,
        indexes: vec![IndexConfig::vector("vector", vector)],
        ..MemTableConfig::default()
    };
    let config = WriterConfig { memtable: Some(memtable), ..config() };
    let shard = table.shard_ids().await.unwrap()[0];
    let writer = table.shard_writer(shard, config).await.unwrap();
    for batch in file() {
        let columns = batch.columns().iter().zip(schema.fields());
        let columns = columns.map(|(column, field)| cast(column, field.data_type()).unwrap()).collect();
        writer.put(RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).await.unwrap();
    }
    writer.catch_up_indexes().await.unwrap();
    let mut reached = vec![];
    let in_memory = writer.snapshot().await.unwrap();
    reached.push(("MemTable", recall(&in_memory, &airports, step).await));
    writer.flush().await.unwrap();
    reached.push(("SSTable", recall(&table.snapshot().await.unwrap(), &airports, step).await));
    table.merge(&MergeOptions::default(), |_| {}).await.unwrap();
    let vector = VectorConfig { exact_rows, ..VectorConfig::new(Metric::Cosine) };
    table.create_index(&IndexConfig::vector("vector", vector)).await.unwrap();
    reached.push(("base table", recall(&table.snapshot().await.unwrap(), &airports, step).await));
    eprintln!("recall at {K} of 1,458 airports, exact up to {exact_rows} rows: {reached:?}");
    for (place, recall) in reached {
        assert!(recall >= 0.99, "{place}: {recall}");
    }
    writer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nearest_airports_are_found_with_default_settings() {
    check_recall(VectorConfig::default().exact_rows, DataType::Float16, 97).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nearest_airports_are_found_by_graphs() {
    check_recall(0, DataType::Float32, 24).await;
}
