//! Golden files: one object of every kind that this crate writes, as committed in `tests/golden/`. Each is decoded to
//! known values, and written again with the same ids must have the same bytes, so no change of bytes goes unnoticed.
//!
//! A wanted change: `FENCEPOST_WRITE_GOLDEN=1 cargo test -p fencepost-wal golden` writes the files anew and fails, so
//! that it is never a green run; look at the difference, and keep the old files as fixtures if objects like them may
//! be on somebody's storage.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use uuid::Uuid;

use crate::entry::{WalEntry, WriterIdentity, decode, encode_rows, encode_sentinel};
use crate::ids::{Epoch, Position};

/// The committed bytes of a file, which must be these.
pub(crate) fn committed(name: &str, written_now: &[u8]) -> Bytes {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("FENCEPOST_WRITE_GOLDEN").is_some() {
        assert!(std::env::var_os("CI").is_none(), "golden files are not written by CI");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, written_now).unwrap();
        panic!("{} was written; look at the difference and run again without FENCEPOST_WRITE_GOLDEN", path.display());
    }
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let same = bytes.iter().zip(written_now).take_while(|(a, b)| a == b).count();
    assert!(bytes == written_now, "{name}: the bytes written now differ from byte {same} on (see src/golden.rs)");
    bytes.into()
}

fn writer() -> WriterIdentity {
    WriterIdentity { epoch: Epoch::new(7), writer_id: Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10) }
}

fn decoded(bytes: &Bytes) -> WalEntry {
    decode("golden", Position::new(3), bytes).unwrap()
}

fn metadata(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// The columns `id`, `v`, `s` as a table has them.
fn columns() -> (SchemaRef, Vec<ArrayRef>) {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("v", DataType::Int64, true),
        Field::new("s", DataType::Utf8, false),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2, 3])),
        Arc::new(Int64Array::from(vec![Some(10), None, Some(30)])),
        Arc::new(StringArray::from(vec!["one", "", "three"])),
    ];
    (Arc::new(schema), columns)
}

/// The same as a MemTable's rows: field ids, the key marked, everything else nullable, a tombstone for key 3.
fn memtable_rows() -> RecordBatch {
    let (schema, mut columns) = columns();
    let key = [("lance-schema:unenforced-primary-key", "true"), ("lance-schema:unenforced-primary-key:position", "1")];
    let fields = schema.fields().iter().zip(["0", "1", "2"]).map(|(field, id)| {
        let is_key = field.name() == "id";
        let mut of_field = metadata(&[("lance:field_id", id)]);
        of_field.extend(metadata(if is_key { &key } else { &[] }));
        field.as_ref().clone().with_nullable(!is_key).with_metadata(of_field)
    });
    let tombstone = Field::new("_tombstone", DataType::Boolean, false);
    let schema =
        Schema::new_with_metadata(fields.chain([tombstone]).collect::<Vec<_>>(), metadata(&[("owner", "ann")]));
    columns.push(Arc::new(BooleanArray::from(vec![false, false, true])));
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

#[test]
fn golden_entry_of_memtable_rows() {
    let rows = memtable_rows();
    // As two appends: they become one batch.
    let now = encode_rows(&rows.schema(), &[rows.slice(0, 1), rows.slice(1, 2)], &writer()).unwrap();
    let entry = decoded(&committed("entry-memtable.arrow", &now));
    assert!(entry.is_by(&writer()));
    assert_eq!((entry.is_sentinel, entry.generation, entry.rows()), (false, None, 3));
    assert_eq!(entry.batches, [rows]);
}

#[test]
fn golden_entry_of_a_wal_only_log() {
    let (schema, columns) = columns();
    let rows = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    let now = encode_rows(&schema, std::slice::from_ref(&rows), &writer()).unwrap();
    let entry = decoded(&committed("entry-wal-only.arrow", &now));
    assert!(entry.is_by(&writer()));
    assert_eq!((entry.is_sentinel, entry.generation, entry.batches), (false, None, vec![rows]));
}

#[test]
fn golden_sentinel() {
    let entry = decoded(&committed("sentinel.arrow", &encode_sentinel(&writer()).unwrap()));
    assert!(entry.is_by(&writer()) && entry.is_sentinel);
    assert_eq!((entry.rows(), entry.batches.len(), entry.schema.fields().len()), (0, 0, 0));
}
