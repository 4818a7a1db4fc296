//! Log entries: encoding and decoding, beside the bare Arrow IPC stream of the same rows.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fencepost_wal::raw::{decode_entry, encode_entry};
use fencepost_wal::{Epoch, Position, WalEntry};
use uuid::Uuid;

fn batch(rows: i64) -> RecordBatch {
    let columns: [(&str, ArrayRef); 2] = [
        ("id", Arc::new(Int64Array::from_iter_values(0..rows))),
        ("text", Arc::new(StringArray::from_iter_values((0..rows).map(|id| format!("{id:0>100}"))))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// An entry of so many batches of so many rows.
fn entry(batches: usize, rows: i64) -> WalEntry {
    let batch = batch(rows);
    WalEntry {
        position: Position::new(1),
        writer_epoch: Epoch::new(1),
        writer_id: Some(Uuid::nil()),
        generation: None,
        is_sentinel: false,
        schema: batch.schema(),
        batches: vec![batch; batches],
        object_bytes: 0,
    }
}

fn entries(c: &mut Criterion) {
    for (batches, rows) in [(1, 1), (256, 1), (1, 1000), (90, 1000)] {
        let entry = entry(batches, rows);
        let bytes = encode_entry(&entry).unwrap();
        let name = format!("{batches} x {rows} rows");
        let mut group = c.benchmark_group("entry");
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_with_input(BenchmarkId::new("encode", &name), &entry, |b, entry| {
            b.iter(|| encode_entry(black_box(entry)).unwrap());
        });
        group.bench_with_input(BenchmarkId::new("decode", &name), &bytes, |b, bytes| {
            b.iter(|| decode_entry("entry", Position::new(1), black_box(bytes)).unwrap());
        });
        group.bench_with_input(BenchmarkId::new("bare IPC encode", &name), &entry, |b, entry| {
            b.iter(|| {
                let mut writer = StreamWriter::try_new(Vec::with_capacity(bytes.len()), &entry.schema).unwrap();
                entry.batches.iter().for_each(|batch| writer.write(black_box(batch)).unwrap());
                writer.into_inner().unwrap()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, entries);
criterion_main!(benches);
