#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::HashMap;

use arrow_array::{ArrayRef, Int64Array, StringArray};
use arrow_schema::{DataType, Field};
use proptest::prelude::*;

use super::*;

fn writer() -> WriterIdentity {
    WriterIdentity { epoch: Epoch::new(7), writer_id: Uuid::from_u128(42) }
}

fn batch(ids: &[i64]) -> RecordBatch {
    let names: StringArray = ids.iter().map(|i| (i % 3 != 0).then(|| format!("name {i}"))).collect();
    RecordBatch::try_from_iter_with_nullable(vec![
        ("id", Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef, false),
        ("name", Arc::new(names) as ArrayRef, true),
    ])
    .unwrap()
}

fn decoded(bytes: &Bytes) -> Result<WalEntry> {
    decode("wal/x.arrow", Position::new(1), bytes)
}

#[test]
fn rows_come_back_with_their_writer() {
    let rows = batch(&[1, 2, 3]);
    let entry = decoded(&encode_rows(&rows.schema(), std::slice::from_ref(&rows), &writer()).unwrap()).unwrap();
    assert!(entry.is_by(&writer()));
    assert!(!entry.is_sentinel);
    assert_eq!(entry.batches, vec![rows]);
    assert_eq!(entry.generation, None);
}

#[test]
fn a_sentinel_has_no_fields_and_no_rows() {
    let entry = decoded(&encode_sentinel(&writer()).unwrap()).unwrap();
    assert!(entry.is_sentinel && entry.is_by(&writer()));
    assert_eq!((entry.rows(), entry.schema.fields().len()), (0, 0));
}

#[test]
fn small_batches_become_one_and_large_ones_stay() {
    let large = batch(&(0..1_000).collect::<Vec<_>>());
    let all = [batch(&[1]), batch(&[2]), large.clone(), batch(&[3]), batch(&[4])];
    let entry = decoded(&encode_rows(&large.schema(), &all, &writer()).unwrap()).unwrap();
    assert_eq!(entry.batches, vec![batch(&[1, 2]), large, batch(&[3, 4])]);
}

#[test]
fn batches_of_few_large_rows_stay() {
    let text = |size: usize| {
        let column: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(size); 2]));
        RecordBatch::try_from_iter([("text", column)]).unwrap()
    };
    let (small, large) = (text(10), text(20_000));
    let all = [small.clone(), small.clone(), large.clone(), large.clone(), small.clone()];
    let entry = decoded(&encode_rows(&large.schema(), &all, &writer()).unwrap()).unwrap();
    assert_eq!(entry.batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [4, 2, 2, 2]);
    assert_eq!(entry.batches.get(1..), Some(&[large.clone(), large, small][..]));
}

#[test]
fn reserved_metadata_of_the_caller_is_replaced_and_other_metadata_kept() {
    let metadata = [("writer_epoch", "99"), ("fence_sentinel", "true"), ("generation", "3"), ("owner", "ann")];
    let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let fields = vec![Field::new("id", DataType::Int64, false)];
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(vec![1]))]).unwrap();
    let entry = decoded(&encode_rows(&schema, &[rows], &writer()).unwrap()).unwrap();
    assert_eq!(entry.writer_epoch, Epoch::new(7));
    assert!(!entry.is_sentinel && entry.generation.is_none());
    assert_eq!(entry.schema.metadata().len(), 1);
    assert_eq!(entry.schema.metadata()["owner"], "ann");
}

/// Lance removes its own metadata from an entry and no other, and its MemTable takes batches of exactly its schema.
#[test]
fn an_entry_of_memtable_rows_has_no_schema_metadata_but_lances_and_fields_that_differ_from_the_memtables() {
    let flags: ArrayRef = Arc::new(arrow_array::BooleanArray::from(vec![false, true]));
    let rows = RecordBatch::try_from_iter_with_nullable(vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef, false),
        (TOMBSTONE_FIELD, flags, false),
    ])
    .unwrap();
    let bytes = encode_rows(&rows.schema(), std::slice::from_ref(&rows), &writer()).unwrap();
    let stream = arrow_ipc::reader::StreamReader::try_new(bytes.as_ref(), None).unwrap();
    assert_eq!(stream.schema().metadata().keys().collect::<Vec<_>>(), [KEY_EPOCH]);
    assert_ne!(stream.schema().fields(), rows.schema().fields());
    let entry = decoded(&bytes).unwrap();
    assert!(entry.is_by(&writer()));
    assert_eq!((entry.schema, entry.batches), (rows.schema(), vec![rows]));
    assert!(decoded(&bytes.slice(..bytes.len() - TRAILER_BYTES)).unwrap_err().to_string().contains("trailer"));
}

#[test]
fn an_entry_without_a_trailer_is_accepted_only_if_it_claims_no_fencepost_writer() {
    let mut metadata = HashMap::from([(KEY_EPOCH.to_string(), "3".to_string())]);
    let stream = |metadata: &HashMap<String, String>| {
        let whole = encode(&Schema::empty().with_metadata(metadata.clone()), &[]).unwrap();
        whole.slice(..whole.len() - TRAILER_BYTES)
    };
    let lance = decoded(&stream(&metadata)).unwrap();
    assert_eq!((lance.writer_epoch, lance.writer_id), (Epoch::new(3), None));
    metadata.insert(KEY_WRITER_ID.into(), Uuid::nil().to_string());
    assert!(decoded(&stream(&metadata)).unwrap_err().to_string().contains("trailer is missing"));
}

proptest! {
    #[test]
    fn every_truncation_and_every_flipped_byte_is_noticed(cut in 0usize..10_000, flip in 0usize..10_000, bit in 0u8..8) {
        let rows = batch(&(0..50).collect::<Vec<_>>());
        let whole = encode_rows(&rows.schema(), &[rows], &writer()).unwrap();
        let cut_short = decoded(&whole.slice(..cut % whole.len()));
        prop_assert!(matches!(cut_short, Err(Error::Corrupt { .. })), "cut short");
        let mut damaged = whole.to_vec();
        damaged[flip % whole.len()] ^= 1 << bit;
        prop_assert!(matches!(decoded(&damaged.into()), Err(Error::Corrupt { .. })), "flipped");
    }

    #[test]
    fn garbage_is_an_error_that_names_the_object(bytes: Vec<u8>) {
        let error = decoded(&bytes.into()).unwrap_err();
        prop_assert!(error.to_string().contains("wal/x.arrow is damaged"), "{error}");
    }
}
