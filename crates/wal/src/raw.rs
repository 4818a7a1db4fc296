//! Bytes to objects and back, without a store: for fuzzing, and for tests that make damaged objects. Not a part of the
//! crate's interface: it changes with the formats.

use bytes::Bytes;
use uuid::Uuid;

use crate::checkpoint::{self, ShardCheckpoint};
use crate::entry::{self, WalEntry, WriterIdentity};
use crate::error::Result;
use crate::ids::{ManifestVersion, Position, ShardId};
use crate::manifest::{ShardManifest, codec};

/// Decodes a WAL entry, as every reader of the log does.
///
/// # Errors
/// [`Error::Corrupt`](crate::Error::Corrupt) that names `object`.
pub fn decode_entry(object: &str, position: Position, bytes: &Bytes) -> Result<WalEntry> {
    entry::decode(object, position, bytes)
}

/// What an entry says of itself in its first bytes, as `adopt` reads it; whether that is a sentinel.
///
/// # Errors
/// [`Error::Corrupt`](crate::Error::Corrupt) that names `object`.
pub fn peek_entry(object: &str, first: Bytes) -> Result<Option<bool>> {
    Ok(entry::EntryHead::peek(object, first)?.map(|head| head.is_sentinel))
}

/// Encodes what was decoded, as a writer of ours.
///
/// # Errors
/// [`Error::Arrow`](crate::Error::Arrow) if Arrow cannot.
pub fn encode_entry(entry: &WalEntry) -> Result<Bytes> {
    let writer = WriterIdentity { epoch: entry.writer_epoch, writer_id: entry.writer_id.unwrap_or_default() };
    match entry.is_sentinel {
        true => entry::encode_sentinel(&writer),
        false => entry::encode_rows(&entry.schema, &entry.batches, &writer),
    }
}

/// Decodes a manifest, as every reader of a shard does.
///
/// # Errors
/// [`Error::Corrupt`](crate::Error::Corrupt) that names `object`.
pub fn decode_manifest(object: &str, bytes: &[u8], shard: ShardId, version: ManifestVersion) -> Result<ShardManifest> {
    codec::decode(object, bytes, shard, version)
}

/// Decodes a checkpoint's object.
///
/// # Errors
/// [`Error::Corrupt`](crate::Error::Corrupt) that names `object`.
pub fn decode_checkpoint(object: &str, bytes: &[u8], shard: ShardId, id: Uuid) -> Result<ShardCheckpoint> {
    checkpoint::codec::decode(object, bytes, shard, id)
}

/// Encodes a checkpoint's object.
pub fn encode_checkpoint(checkpoint: &ShardCheckpoint) -> Vec<u8> {
    checkpoint::codec::encode(checkpoint)
}

/// Encodes a manifest, as a committer does.
pub fn encode_manifest(manifest: &ShardManifest) -> Vec<u8> {
    codec::encode(manifest)
}
