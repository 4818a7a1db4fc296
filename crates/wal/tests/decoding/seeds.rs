//! The objects that the fuzzer begins with: the golden files, an entry of every kind of column, Lance's entries and
//! manifests.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, MapBuilder, StringBuilder, StringViewBuilder};
use arrow_array::types::{Int8Type, Int32Type};
use arrow_array::*;
use arrow_buffer::{NullBuffer, i256};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use fencepost_wal::{Epoch, Position, WalEntry, raw};
use prost::Message;
use uuid::Uuid;

use crate::checks::{CHECKPOINT, SHARD, VERSION};

type Seed = (&'static str, String, Vec<u8>);

/// Target, name and bytes.
pub(crate) fn all() -> Vec<Seed> {
    let golden = |name: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        std::fs::read(path).unwrap()
    };
    let mut seeds: Vec<Seed> = Vec::new();
    let mut add = |target, name: &str, bytes: Vec<u8>| seeds.push((target, name.to_owned(), bytes));
    for name in ["entry-memtable.arrow", "entry-wal-only.arrow", "sentinel.arrow"] {
        let bytes = golden(name);
        add("sealed_entry", name, bytes[..bytes.len() - 16].to_vec());
        add("entry", name, bytes);
    }
    for (name, column) in columns() {
        let batch = RecordBatch::try_from_iter_with_nullable([("c", column, true)]).unwrap();
        let ours = raw::encode_entry(&entry_of(&batch)).unwrap();
        add("sealed_entry", &format!("{name}.arrow"), ours[..ours.len() - 16].to_vec());
        add("entry", &format!("lance-{name}.arrow"), lance_entry(&batch));
    }
    add("entry", "lance-sentinel.arrow", lance_sentinel());
    add("manifest", "golden.binpb", golden("manifest.binpb"));
    add("manifest", "golden-no-checkpoints.binpb", golden("manifest-no-checkpoints.binpb"));
    add("checkpoint", "golden.binpb", golden("checkpoint.binpb"));
    for (name, manifest) in lance_manifests() {
        add("manifest", name, manifest.encode_to_vec());
    }
    seeds
}

/// Whether the bytes are such an object.
pub(crate) fn decodes(target: &str, bytes: &[u8]) -> bool {
    let entry = |bytes: Vec<u8>| raw::decode_entry("e", Position::new(3), &bytes.into()).is_ok();
    match target {
        "entry" => entry(bytes.to_vec()),
        "sealed_entry" => entry(crate::checks::sealed(bytes)),
        "checkpoint" => raw::decode_checkpoint("c", bytes, SHARD, CHECKPOINT).is_ok(),
        _ => raw::decode_manifest("m", bytes, SHARD, VERSION).is_ok(),
    }
}

fn entry_of(batch: &RecordBatch) -> WalEntry {
    let mut template = raw::decode_entry("e", Position::new(3), &lance_sentinel().into()).unwrap();
    template.is_sentinel = false;
    template.writer_epoch = Epoch::new(7);
    template.writer_id = Some(Uuid::from_u128(1));
    (template.schema, template.batches) = (batch.schema(), vec![batch.clone()]);
    template
}

/// A column of every layout, with nulls where it can have them.
fn columns() -> Vec<(&'static str, ArrayRef)> {
    let mut lists = ListBuilder::new(StringBuilder::new());
    lists.append_value([Some("a"), None]);
    lists.append_null();
    lists.append_value([Some("b")]);
    let mut maps = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    maps.keys().append_value("k");
    maps.values().append_value("v");
    maps.append(true).unwrap();
    maps.append(false).unwrap();
    maps.append(true).unwrap();
    let mut views = StringViewBuilder::new();
    views.append_value("short");
    views.append_null();
    views.append_value("longer than twelve bytes");
    let numbers = || Arc::new(Int32Array::from(vec![Some(1), None, Some(3)])) as ArrayRef;
    let fields = Fields::from(vec![Field::new("a", DataType::Int32, true), Field::new("b", DataType::Utf8, false)]);
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["x", "y", "z"]));
    let pairs = StructArray::new(fields, vec![numbers(), texts], Some(NullBuffer::from(vec![true, false, true])));
    let item = Arc::new(Field::new("item", DataType::Int32, true));
    let vectors = FixedSizeListArray::new(item, 1, numbers(), None);
    let runs = RunArray::<Int32Type>::try_new(&Int32Array::from(vec![2, 3]), &StringArray::from(vec!["r", "s"]));
    vec![
        ("ints", numbers()),
        ("flags", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("nulls", Arc::new(NullArray::new(3))),
        ("decimals", Arc::new(Decimal256Array::from(vec![i256::ONE, i256::MINUS_ONE]))),
        ("bytes", Arc::new(LargeBinaryArray::from(vec![b"a".as_slice(), b"", b"ccc"]))),
        ("fixed", Arc::new(FixedSizeBinaryArray::try_from_iter([[1u8, 2, 3], [4, 5, 6]].into_iter()).unwrap())),
        ("times", Arc::new(TimestampMicrosecondArray::from(vec![1, 2]).with_timezone("Europe/Zurich"))),
        ("dictionary", Arc::new([Some("a"), None, Some("b")].into_iter().collect::<DictionaryArray<Int8Type>>())),
        ("lists", Arc::new(lists.finish())),
        ("maps", Arc::new(maps.finish())),
        ("views", Arc::new(views.finish())),
        ("structs", Arc::new(pairs)),
        ("vectors", Arc::new(vectors)),
        ("runs", Arc::new(runs.unwrap())),
    ]
}

/// An entry as Lance writes it: no writer, no trailer, a generation.
fn lance_entry(batch: &RecordBatch) -> Vec<u8> {
    lance_stream(batch.schema().fields().clone(), &[("generation", "2")], Some(batch))
}

fn lance_sentinel() -> Vec<u8> {
    lance_stream(Fields::empty(), &[("fence_sentinel", "true")], None)
}

fn lance_stream(fields: Fields, more: &[(&str, &str)], batch: Option<&RecordBatch>) -> Vec<u8> {
    let metadata = [("writer_epoch", "7")].iter().chain(more).map(|(k, v)| (k.to_string(), v.to_string()));
    let schema: SchemaRef = Arc::new(Schema::new_with_metadata(fields, metadata.collect::<HashMap<_, _>>()));
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    if let Some(batch) = batch {
        writer.write(&batch.clone().with_schema(Arc::clone(&schema)).unwrap()).unwrap();
    }
    writer.into_inner().unwrap()
}

/// Lance's `ShardManifest`.
#[derive(Clone, PartialEq, Message)]
struct LanceManifest {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(uint64, tag = "2")]
    writer_epoch: u64,
    #[prost(uint64, tag = "3")]
    replay_after: u64,
    #[prost(uint64, tag = "4")]
    last_seen: u64,
    #[prost(uint64, tag = "6")]
    current_generation: u64,
    #[prost(message, repeated, tag = "8")]
    sstables: Vec<LanceSsTable>,
    #[prost(message, optional, tag = "11")]
    shard_id: Option<LanceUuid>,
}

#[derive(Clone, PartialEq, Message)]
struct LanceSsTable {
    #[prost(uint64, tag = "1")]
    generation: u64,
    #[prost(string, tag = "2")]
    path: String,
}

#[derive(Clone, PartialEq, Message)]
struct LanceUuid {
    #[prost(bytes = "vec", tag = "1")]
    uuid: Vec<u8>,
}

fn lance_manifests() -> Vec<(&'static str, LanceManifest)> {
    let uuid = SHARD.as_uuid().as_bytes().to_vec();
    let first = LanceManifest {
        version: VERSION.get(),
        current_generation: 1,
        shard_id: Some(LanceUuid { uuid }),
        ..LanceManifest::default()
    };
    let sstables = (1..=3).map(|g| LanceSsTable { generation: g, path: format!("0badcafe_gen_{g}") }).collect();
    let later = LanceManifest {
        writer_epoch: 4,
        replay_after: 300,
        last_seen: 400,
        current_generation: 4,
        sstables,
        ..first.clone()
    };
    vec![("lance-first.binpb", first), ("lance-later.binpb", later)]
}
