//! Bytes of a shard manifest: Lance's protobuf message `ShardManifest`, with our fields in one message at tag 1000.
//!
//! Fields of Lance's or of a later Fencepost that this code does not know survive a read and a rewrite. Our message
//! is written first and carries a checksum of everything after it, so that a manifest cut short anywhere is noticed.

mod shared;

use std::ops::Range;

use bytes::Buf;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, encode_key, encode_varint, skip_field};
use uuid::Uuid;

use super::{Extension, FORMAT_VERSION, Fence, ShardFieldEntry, ShardManifest, ShardStatus, SsTable};
use crate::checkpoint::{Checkpoint, TablePart};
use crate::error::{Error, Result};
use crate::ids::{Epoch, Generation, ManifestVersion, Position, ShardId};
use crate::wal_store::WalStoreRef;

const EXTENSION_TAG: u32 = 1000;

/// Lance's `ShardManifest` without nested messages that may carry unknown fields: those are kept as bytes.
#[derive(Clone, PartialEq, Message)]
struct ManifestMessage {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(uint64, tag = "2")]
    writer_epoch: u64,
    #[prost(uint64, tag = "3")]
    replay_after_wal_entry_position: u64,
    #[prost(uint64, tag = "4")]
    wal_entry_position_last_seen: u64,
    #[prost(uint64, tag = "6")]
    current_generation: u64,
    #[prost(bytes = "vec", repeated, tag = "8")]
    sstables: Vec<Vec<u8>>,
    #[prost(uint32, tag = "10")]
    shard_spec_id: u32,
    #[prost(message, optional, tag = "11")]
    shard_id: Option<UuidMessage>,
    #[prost(message, repeated, tag = "14")]
    shard_field_entries: Vec<FieldEntryMessage>,
    #[prost(int32, tag = "15")]
    status: i32,
    #[prost(bytes = "vec", optional, tag = "1000")]
    fencepost: Option<Vec<u8>>,
}
/// SSTables and sharding fields, which have at least a name of one letter: key and length, twice, and the letter.
const NAMED_TAGS: [u32; 2] = [8, 14];
const NAMED_BYTES: usize = 5;
const MANIFEST_TAGS: &[u32] = &[1, 2, 3, 4, 6, 8, 10, 11, 14, 15, EXTENSION_TAG];

#[derive(Clone, PartialEq, Message)]
struct UuidMessage {
    #[prost(bytes = "vec", tag = "1")]
    uuid: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct FieldEntryMessage {
    #[prost(string, tag = "1")]
    field_id: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct SsTableMessage {
    #[prost(uint64, tag = "1")]
    generation: u64,
    #[prost(string, tag = "2")]
    path: String,
    #[prost(uint64, optional, tag = "3")]
    in_memory_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    physical_rows: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    primary_key_bytes: Option<u64>,
}
const SSTABLE_TAGS: &[u32] = &[1, 2, 3, 4, 5];

#[derive(Clone, PartialEq, Message)]
struct ExtensionMessage {
    #[prost(uint32, tag = "1")]
    format_version: u32,
    #[prost(bytes = "vec", tag = "2")]
    writer_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    commit_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_commit_id: Vec<u8>,
    #[prost(uint64, tag = "5")]
    replay_after_epoch: u64,
    /// Position, epoch, position, epoch …
    #[prost(uint64, repeated, tag = "6")]
    fences: Vec<u64>,
    #[prost(uint64, tag = "7")]
    closed_cleanly_epoch: u64,
    #[prost(bytes = "vec", repeated, tag = "8")]
    checkpoints: Vec<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "9")]
    wal_store: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "10")]
    origin: Option<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "11")]
    sstable_bases: Vec<Vec<u8>>,
    #[prost(bool, tag = "13")]
    unadopted: bool,
    #[prost(bool, tag = "14")]
    deleted: bool,
    /// crc32c of everything in the object after this message.
    #[prost(fixed32, optional, tag = "15")]
    checksum: Option<u32>,
    #[prost(bytes = "vec", tag = "16")]
    table_id: Vec<u8>,
}
const EXTENSION_TAGS: &[u32] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16];

#[derive(Clone, PartialEq, Message)]
struct WalStoreMessage {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(string, tag = "2")]
    url: String,
    #[prost(uint64, tag = "3")]
    after: u64,
}
const WAL_STORE_TAGS: &[u32] = &[1, 2, 3];

#[derive(Clone, PartialEq, Message)]
struct CheckpointMessage {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
    #[prost(uint64, tag = "3")]
    created_at_ms: u64,
    #[prost(uint64, optional, tag = "4")]
    expires_at_ms: Option<u64>,
    #[prost(uint64, tag = "5")]
    replay_after: u64,
    #[prost(uint64, tag = "6")]
    tail: u64,
    #[prost(uint64, tag = "7")]
    version: u64,
    #[prost(bool, tag = "8")]
    is_pin: bool,
    /// Of the checkpoint of the table that it is a part of.
    #[prost(bytes = "vec", tag = "9")]
    table_id: Vec<u8>,
    #[prost(uint32, tag = "10")]
    table_shards: u32,
    #[prost(uint64, tag = "11")]
    base_version: u64,
    #[prost(string, optional, tag = "12")]
    holder: Option<String>,
}
const CHECKPOINT_TAGS: &[u32] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// The bytes of the hint file, which other readers start from.
pub(super) fn encode_hint(version: ManifestVersion) -> Vec<u8> {
    format!("{{\"version\":{version}}}").into_bytes()
}

/// The bytes of a manifest object.
pub(crate) fn encode(manifest: &ShardManifest) -> Vec<u8> {
    let message = ManifestMessage {
        version: manifest.version.get(),
        writer_epoch: manifest.writer_epoch.get(),
        replay_after_wal_entry_position: manifest.replay_after.get(),
        wal_entry_position_last_seen: manifest.last_seen.get(),
        current_generation: manifest.current_generation.get(),
        sstables: manifest.sstables.iter().map(encode_sstable).collect(),
        shard_spec_id: manifest.shard_spec_id,
        shard_id: Some(UuidMessage { uuid: manifest.shard_id.as_uuid().as_bytes().to_vec() }),
        shard_field_entries: manifest
            .shard_field_entries
            .iter()
            .map(|e| FieldEntryMessage { field_id: e.field_id.clone(), value: e.value.clone() })
            .collect(),
        status: match manifest.status {
            ShardStatus::Active => 0,
            ShardStatus::Sealed => 1,
        },
        fencepost: None,
    };
    let mut rest = message.encode_to_vec();
    rest.extend_from_slice(&manifest.unknown);
    let mut bytes = Vec::new();
    if let Some(extension) = &manifest.extension {
        let body = encode_extension(extension, &manifest.sstables, crc32c::crc32c(&rest));
        encode_key(EXTENSION_TAG, WireType::LengthDelimited, &mut bytes);
        encode_varint(body.len() as u64, &mut bytes);
        bytes.extend_from_slice(&body);
    }
    bytes.extend_from_slice(&rest);
    bytes
}

fn encode_sstable(sstable: &SsTable) -> Vec<u8> {
    let message = SsTableMessage {
        generation: sstable.generation.get(),
        path: sstable.path.clone(),
        in_memory_bytes: sstable.in_memory_bytes,
        physical_rows: sstable.physical_rows,
        primary_key_bytes: sstable.primary_key_bytes,
    };
    let mut bytes = message.encode_to_vec();
    bytes.extend_from_slice(&sstable.unknown);
    bytes
}

fn encode_extension(extension: &Extension, sstables: &[SsTable], checksum: u32) -> Vec<u8> {
    let message = ExtensionMessage {
        format_version: extension.format_version,
        writer_id: extension.writer_id.as_bytes().to_vec(),
        commit_id: extension.commit_id.as_bytes().to_vec(),
        parent_commit_id: extension.parent_commit_id.as_bytes().to_vec(),
        replay_after_epoch: extension.replay_after_epoch.get(),
        fences: extension.fences.iter().flat_map(|f| [f.position.get(), f.epoch.get()]).collect(),
        closed_cleanly_epoch: extension.closed_cleanly_epoch.get(),
        checkpoints: extension.checkpoints.iter().map(encode_checkpoint).collect(),
        wal_store: extension.wal_store.as_ref().map(encode_wal_store),
        origin: extension.origin.as_ref().map(shared::encode_origin),
        sstable_bases: shared::encode_bases(sstables),
        unadopted: extension.unadopted,
        deleted: extension.deleted,
        checksum: Some(checksum),
        table_id: extension.table_id.map_or_else(Vec::new, |id| id.as_bytes().to_vec()),
    };
    let mut bytes = message.encode_to_vec();
    bytes.extend_from_slice(&extension.unknown);
    bytes
}

fn encode_wal_store(wal_store: &WalStoreRef) -> Vec<u8> {
    let (id, url) = (wal_store.id.as_bytes().to_vec(), wal_store.url.clone());
    let message = WalStoreMessage { id, url, after: wal_store.after.get() };
    let mut bytes = message.encode_to_vec();
    bytes.extend_from_slice(&wal_store.unknown);
    bytes
}

fn encode_checkpoint(checkpoint: &Checkpoint) -> Vec<u8> {
    let message = CheckpointMessage {
        id: checkpoint.id.as_bytes().to_vec(),
        name: checkpoint.name.clone(),
        created_at_ms: checkpoint.created_at_ms,
        expires_at_ms: checkpoint.expires_at_ms,
        replay_after: checkpoint.replay_after.get(),
        tail: checkpoint.tail.get(),
        version: checkpoint.version.get(),
        is_pin: checkpoint.is_pin,
        table_id: checkpoint.table.map_or_else(Vec::new, |table| table.id.as_bytes().to_vec()),
        table_shards: checkpoint.table.map_or(0, |table| table.shards),
        base_version: checkpoint.table.map_or(0, |table| table.base_version),
        holder: checkpoint.holder.clone(),
    };
    let mut bytes = message.encode_to_vec();
    bytes.extend_from_slice(&checkpoint.unknown);
    bytes
}

/// Decodes the manifest object `object`, which must hold `version` of `shard`.
///
/// # Errors
/// [`Error::Corrupt`] if it does not, or was written by a newer Fencepost than this one understands.
pub(crate) fn decode(object: &str, bytes: &[u8], shard: ShardId, version: ManifestVersion) -> Result<ShardManifest> {
    let corrupt = |reason: String| Error::corrupt(object, reason);
    // A value of many fields may stand in two bytes; the values that count have names of their own and are longer.
    let fields = fields(bytes).map_err(corrupt)?;
    if fields.iter().any(|(tag, field)| NAMED_TAGS.contains(tag) && field.len() < NAMED_BYTES) {
        return Err(corrupt("it lists an SSTable or a sharding field without a name".into()));
    }
    drop(fields);
    let message = ManifestMessage::decode(bytes).map_err(|e| corrupt(e.to_string()))?;
    if message.version != version.get() {
        return Err(corrupt(format!("it says version {}, its name says {version}", message.version)));
    }
    let id = message.shard_id.as_ref().and_then(|id| Uuid::from_slice(&id.uuid).ok());
    if id != Some(*shard.as_uuid()) {
        return Err(corrupt("it is the manifest of another shard, or was cut short".into()));
    }
    let mut sstables: Vec<SsTable> =
        message.sstables.iter().map(|s| decode_sstable(s)).collect::<Result<_, _>>().map_err(corrupt)?;
    let nameless = |sstable: &SsTable| sstable.path.is_empty();
    if sstables.iter().any(nameless) || message.shard_field_entries.iter().any(|e| e.field_id.is_empty()) {
        return Err(corrupt("it lists an SSTable or a sharding field without a name".into()));
    }
    let extension = match &message.fencepost {
        Some(body) => {
            let (extension, checksum) = decode_extension(body, &mut sstables).map_err(corrupt)?;
            check_sum(bytes, checksum).map_err(corrupt)?;
            Some(extension)
        }
        None => None,
    };
    Ok(ShardManifest {
        version,
        shard_id: shard,
        shard_spec_id: message.shard_spec_id,
        shard_field_entries: message
            .shard_field_entries
            .into_iter()
            .map(|e| ShardFieldEntry { field_id: e.field_id, value: e.value })
            .collect(),
        // As Lance: a status that is not known counts as active.
        status: if message.status == 1 { ShardStatus::Sealed } else { ShardStatus::Active },
        writer_epoch: Epoch::new(message.writer_epoch),
        replay_after: Position::new(message.replay_after_wal_entry_position),
        last_seen: Position::new(message.wal_entry_position_last_seen),
        current_generation: Generation::new(message.current_generation),
        sstables,
        extension,
        unknown: unknown_fields(bytes, MANIFEST_TAGS).map_err(corrupt)?,
    })
}

fn decode_sstable(bytes: &[u8]) -> Result<SsTable, String> {
    let message = SsTableMessage::decode(bytes).map_err(|e| e.to_string())?;
    Ok(SsTable {
        generation: Generation::new(message.generation),
        path: message.path,
        in_memory_bytes: message.in_memory_bytes,
        physical_rows: message.physical_rows,
        primary_key_bytes: message.primary_key_bytes,
        base: None,
        unknown: unknown_fields(bytes, SSTABLE_TAGS)?,
    })
}

fn decode_extension(bytes: &[u8], sstables: &mut [SsTable]) -> Result<(Extension, Option<u32>), String> {
    let message = ExtensionMessage::decode(bytes).map_err(|e| e.to_string())?;
    if message.format_version > FORMAT_VERSION {
        return Err(format!(
            "it has format version {}, this Fencepost understands up to {FORMAT_VERSION}: use a newer one",
            message.format_version
        ));
    }
    let id = |bytes: &[u8]| match bytes {
        [] => Ok(Uuid::nil()),
        bytes => Uuid::from_slice(bytes).map_err(|e| e.to_string()),
    };
    let (pairs, rest) = message.fences.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("its list of fences is cut short".into());
    }
    let checkpoints = message.checkpoints.iter().map(|c| decode_checkpoint(c)).collect::<Result<_, _>>()?;
    shared::decode_bases(&message.sstable_bases, sstables)?;
    let extension = Extension {
        format_version: message.format_version,
        writer_id: id(&message.writer_id)?,
        commit_id: id(&message.commit_id)?,
        parent_commit_id: id(&message.parent_commit_id)?,
        replay_after_epoch: Epoch::new(message.replay_after_epoch),
        fences: pairs.iter().map(|[p, e]| Fence { position: Position::new(*p), epoch: Epoch::new(*e) }).collect(),
        closed_cleanly_epoch: Epoch::new(message.closed_cleanly_epoch),
        checkpoints,
        wal_store: message.wal_store.as_deref().map(decode_wal_store).transpose()?,
        origin: message.origin.as_deref().map(shared::decode_origin).transpose()?,
        table_id: Some(id(&message.table_id)?).filter(|id| !id.is_nil()),
        unadopted: message.unadopted,
        deleted: message.deleted,
        unknown: unknown_fields(bytes, EXTENSION_TAGS)?,
    };
    Ok((extension, message.checksum))
}

fn decode_wal_store(bytes: &[u8]) -> Result<WalStoreRef, String> {
    let message = WalStoreMessage::decode(bytes).map_err(|e| e.to_string())?;
    let id = Uuid::from_slice(&message.id).map_err(|e| format!("the id of its WAL store: {e}"))?;
    Ok(WalStoreRef {
        id,
        url: message.url,
        after: Position::new(message.after),
        unknown: unknown_fields(bytes, WAL_STORE_TAGS)?,
    })
}

fn decode_checkpoint(bytes: &[u8]) -> Result<Checkpoint, String> {
    let message = CheckpointMessage::decode(bytes).map_err(|e| e.to_string())?;
    Ok(Checkpoint {
        id: Uuid::from_slice(&message.id).map_err(|e| format!("a checkpoint's id: {e}"))?,
        name: message.name,
        created_at_ms: message.created_at_ms,
        expires_at_ms: message.expires_at_ms,
        replay_after: Position::new(message.replay_after),
        tail: Position::new(message.tail),
        version: ManifestVersion::new(message.version),
        is_pin: message.is_pin,
        table: TablePart::decoded(&message.table_id, message.table_shards, message.base_version)?,
        holder: message.holder,
        unknown: unknown_fields(bytes, CHECKPOINT_TAGS)?,
    })
}

fn check_sum(bytes: &[u8], expected: Option<u32>) -> Result<(), String> {
    let fields = fields(bytes)?;
    let extension = fields.iter().find(|(tag, _)| *tag == EXTENSION_TAG);
    let covered = extension.and_then(|(_, field)| bytes.get(field.end..));
    match (covered.map(crc32c::crc32c), expected) {
        (Some(actual), Some(expected)) if actual == expected => Ok(()),
        (Some(actual), Some(expected)) => Err(format!("its checksum is {actual:08x}, it says {expected:08x}")),
        _ => Err("its checksum is missing".into()),
    }
}

/// The raw bytes of the fields that are not in `known`.
pub(crate) fn unknown_fields(bytes: &[u8], known: &[u32]) -> Result<Vec<u8>, String> {
    let fields = fields(bytes)?;
    let unknown = fields.into_iter().filter(|(tag, _)| !known.contains(tag));
    Ok(unknown.filter_map(|(_, field)| bytes.get(field)).flatten().copied().collect())
}

/// The tag and the extent, key included, of every field of a message.
pub(crate) fn fields(bytes: &[u8]) -> Result<Vec<(u32, Range<usize>)>, String> {
    let mut rest = bytes;
    let mut found = Vec::new();
    while rest.has_remaining() {
        let start = bytes.len() - rest.len();
        let (tag, wire_type) = decode_key(&mut rest).map_err(|e| e.to_string())?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).map_err(|e| e.to_string())?;
        found.push((tag, start..bytes.len() - rest.len()));
    }
    Ok(found)
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
