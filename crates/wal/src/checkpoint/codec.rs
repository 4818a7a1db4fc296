//! Bytes of a checkpoint object: a checksum of everything behind it, then one message that holds the pinned manifest
//! as an object of its own. It never changes once it was written.

use prost::Message;
use prost::encoding::{WireType, encode_key};
use uuid::Uuid;

use super::{ShardCheckpoint, TablePart};
use crate::error::{Error, Result};
use crate::ids::{ManifestVersion, Position, ShardId};
use crate::manifest::{FORMAT_VERSION, codec};

/// Largest object that is read, in bytes.
const MAX_BYTES: usize = 256 << 20;

const CHECKSUM_TAG: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct CheckpointObject {
    /// crc32c of everything in the object after this field. Written apart.
    #[prost(fixed32, optional, tag = "1")]
    checksum: Option<u32>,
    #[prost(uint32, tag = "2")]
    format_version: u32,
    #[prost(bytes = "vec", tag = "3")]
    id: Vec<u8>,
    #[prost(uint64, tag = "4")]
    derived_from: u64,
    #[prost(uint64, tag = "5")]
    version: u64,
    #[prost(bytes = "vec", tag = "6")]
    manifest: Vec<u8>,
    #[prost(uint64, tag = "7")]
    tail: u64,
    #[prost(string, optional, tag = "8")]
    name: Option<String>,
    #[prost(uint64, tag = "9")]
    created_at_ms: u64,
    #[prost(bool, tag = "10")]
    is_pin: bool,
    #[prost(bytes = "vec", tag = "11")]
    table_id: Vec<u8>,
    #[prost(uint32, tag = "12")]
    table_shards: u32,
    #[prost(uint64, tag = "13")]
    base_version: u64,
    #[prost(string, optional, tag = "14")]
    holder: Option<String>,
}
const TAGS: &[u32] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];

pub(crate) fn encode(checkpoint: &ShardCheckpoint) -> Vec<u8> {
    let message = CheckpointObject {
        checksum: None,
        format_version: FORMAT_VERSION,
        id: checkpoint.id.as_bytes().to_vec(),
        derived_from: checkpoint.derived_from.get(),
        version: checkpoint.manifest.version.get(),
        manifest: codec::encode(&checkpoint.manifest),
        tail: checkpoint.tail.get(),
        name: checkpoint.name.clone(),
        created_at_ms: checkpoint.created_at_ms,
        is_pin: checkpoint.is_pin,
        table_id: checkpoint.table.map_or_else(Vec::new, |table| table.id.as_bytes().to_vec()),
        table_shards: checkpoint.table.map_or(0, |table| table.shards),
        base_version: checkpoint.table.map_or(0, |table| table.base_version),
        holder: checkpoint.holder.clone(),
    };
    let mut rest = message.encode_to_vec();
    rest.extend_from_slice(&checkpoint.unknown);
    let mut bytes = Vec::with_capacity(rest.len() + 5);
    encode_key(CHECKSUM_TAG, WireType::ThirtyTwoBit, &mut bytes);
    bytes.extend_from_slice(&crc32c::crc32c(&rest).to_le_bytes());
    bytes.extend_from_slice(&rest);
    bytes
}

/// Decodes the object of checkpoint `id` of `shard`.
///
/// # Errors
/// [`Error::Corrupt`], naming `object`, if it is not that, or was written by a newer Fencepost.
pub(crate) fn decode(object: &str, bytes: &[u8], shard: ShardId, id: Uuid) -> Result<ShardCheckpoint> {
    let corrupt = |reason: String| Error::corrupt(object, reason);
    if bytes.len() > MAX_BYTES {
        return Err(corrupt(format!("it has {} bytes, a checkpoint has at most {MAX_BYTES}", bytes.len())));
    }
    let fields = codec::fields(bytes).map_err(corrupt)?;
    let covered = fields.first().filter(|(tag, _)| *tag == CHECKSUM_TAG).and_then(|(_, at)| bytes.get(at.end..));
    let message = CheckpointObject::decode(bytes).map_err(|e| corrupt(e.to_string()))?;
    match (covered.map(crc32c::crc32c), message.checksum) {
        (Some(actual), Some(expected)) if actual == expected => {}
        (Some(actual), Some(expected)) => {
            return Err(corrupt(format!("its checksum is {actual:08x}, it says {expected:08x}")));
        }
        _ => return Err(corrupt("its checksum is missing".into())),
    }
    if message.format_version > FORMAT_VERSION {
        return Err(corrupt(format!(
            "it has format version {}, this Fencepost understands up to {FORMAT_VERSION}: use a newer one",
            message.format_version
        )));
    }
    if Uuid::from_slice(&message.id).ok() != Some(id) {
        return Err(corrupt("it is another checkpoint than its name says".into()));
    }
    let version = ManifestVersion::new(message.version);
    Ok(ShardCheckpoint {
        id,
        derived_from: ManifestVersion::new(message.derived_from),
        manifest: codec::decode(object, &message.manifest, shard, version)?,
        tail: Position::new(message.tail),
        name: message.name,
        created_at_ms: message.created_at_ms,
        is_pin: message.is_pin,
        table: TablePart::decoded(&message.table_id, message.table_shards, message.base_version).map_err(corrupt)?,
        holder: message.holder,
        unknown: codec::unknown_fields(bytes, TAGS).map_err(corrupt)?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use proptest::prelude::*;

    use super::*;
    use crate::ids::Epoch;
    use crate::manifest::{Fence, ShardManifest};

    const SHARD: ShardId = ShardId::from_uuid(Uuid::from_u128(0xfeed));
    const ID: Uuid = Uuid::from_u128(0xc4ec);

    fn sample() -> ShardCheckpoint {
        let mut manifest = ShardManifest::first(SHARD, 0, vec![]);
        manifest.version = ManifestVersion::new(9);
        manifest.replay_after = Position::new(4);
        let extension = manifest.extension.as_mut().unwrap();
        extension.add_fences([Fence { position: Position::new(5), epoch: Epoch::new(2) }]);
        ShardCheckpoint {
            id: ID,
            derived_from: ManifestVersion::new(9),
            manifest,
            tail: Position::new(7),
            name: Some("nightly".into()),
            created_at_ms: 1_700_000_000_000,
            is_pin: false,
            table: None,
            holder: None,
            unknown: vec![],
        }
    }

    fn decoded(bytes: &[u8]) -> Result<ShardCheckpoint> {
        decode("checkpoints/x.binpb", bytes, SHARD, ID)
    }

    #[test]
    fn golden_checkpoint() {
        let mut checkpoint = sample();
        checkpoint.unknown = vec![0xb2, 0x06, 0x02, b'h', b'i']; // tag 102, two bytes
        let committed = crate::golden::committed("checkpoint.binpb", &encode(&checkpoint));
        assert_eq!(decoded(&committed).unwrap(), checkpoint);
    }

    #[test]
    fn a_checkpoint_under_the_wrong_name_or_of_another_shard_is_refused() {
        let bytes = encode(&sample());
        assert_eq!(decoded(&bytes).unwrap(), sample());
        let error = decode("c", &bytes, SHARD, Uuid::from_u128(1)).unwrap_err();
        assert!(error.to_string().contains("another checkpoint"), "{error}");
        assert!(decode("c", &bytes, ShardId::new_random(), ID).is_err());
    }

    proptest! {
        #[test]
        fn a_truncated_or_flipped_checkpoint_is_refused(at in 0usize..10_000, bit in 0u8..8) {
            let bytes = encode(&sample());
            prop_assert!(decoded(&bytes[..at % bytes.len()]).is_err());
            let mut flipped = bytes.clone();
            flipped[at % bytes.len()] ^= 1 << bit;
            let error = decoded(&flipped).unwrap_err();
            prop_assert!(error.to_string().contains("checkpoints/x.binpb is damaged"), "{error}");
        }

        #[test]
        fn garbage_does_not_panic(bytes: Vec<u8>) {
            prop_assert!(decoded(&bytes).is_err());
        }
    }
}
