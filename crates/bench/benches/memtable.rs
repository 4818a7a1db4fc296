//! Parts of a MemTable: the primary-key index and the list of batches.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fencepost::raw::{Batches, KeyIndex};
use fencepost_sim::Rng;

const ROWS: i64 = 100_000;
const BATCH: i64 = 1_000;

fn keys(ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
    RecordBatch::try_from_iter([("id", ids)]).unwrap()
}

fn batches() -> Vec<RecordBatch> {
    (0..ROWS / BATCH).map(|n| keys(n * BATCH..(n + 1) * BATCH)).collect()
}

fn key_index(c: &mut Criterion) {
    let batches = batches();
    let empty = || KeyIndex::try_new(&keys([]).schema(), &["id".to_owned()]).unwrap();
    let mut group = c.benchmark_group("key index");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("insert 100,000 keys", |b| {
        b.iter_batched(
            empty,
            |mut index| {
                batches.iter().for_each(|batch| index.insert(black_box(batch)).unwrap());
                index
            },
            BatchSize::LargeInput,
        );
    });
    let mut full = empty();
    batches.iter().for_each(|batch| full.insert(batch).unwrap());
    let mut dice = Rng::new(1);
    let wanted = keys((0..BATCH).map(|_| (dice.unit() * ROWS as f64) as i64));
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("find 1,000 of 100,000 keys", |b| b.iter(|| full.count(black_box(&wanted)).unwrap()));
    let one = keys([ROWS / 2]);
    group.throughput(Throughput::Elements(1));
    group.bench_function("find one key", |b| b.iter(|| full.count(black_box(&one)).unwrap()));
    group.finish();
}

fn batch_store(c: &mut Criterion) {
    let batches = batches();
    let mut group = c.benchmark_group("batch store");
    group.throughput(Throughput::Elements(batches.len() as u64));
    group.bench_function("push 100 batches", |b| {
        b.iter_batched(
            || (Batches::default(), batches.clone()),
            |(mut store, batches)| {
                batches.into_iter().for_each(|batch| store.push(batch));
                store
            },
            BatchSize::LargeInput,
        );
    });
    let mut full = Batches::default();
    batches.iter().for_each(|batch| full.push(batch.clone()));
    group.throughput(Throughput::Elements(1));
    group.bench_function("view, and the batch of a row", |b| b.iter(|| full.rows_around(black_box(54_321)).unwrap()));
    group.finish();
}

criterion_group!(benches, key_index, batch_store);
criterion_main!(benches);
