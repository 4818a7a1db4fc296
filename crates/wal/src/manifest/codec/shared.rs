//! Bytes of what a manifest says about other shards: its origin, and where SSTables are that it shares.

use prost::Message;
use uuid::Uuid;

use super::unknown_fields;
use crate::ids::{Generation, Position, ShardId};
use crate::manifest::{Origin, RowFilter, ShardPlace, SsTable, SsTableBase};

#[derive(Clone, PartialEq, Message)]
struct PlaceMessage {
    #[prost(string, tag = "1")]
    url: String,
    #[prost(bytes = "vec", tag = "2")]
    shard_id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct OriginMessage {
    #[prost(string, tag = "1")]
    url: String,
    #[prost(bytes = "vec", tag = "2")]
    shard_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    checkpoint_id: Vec<u8>,
    #[prost(bool, tag = "4")]
    initialized: bool,
    #[prost(message, repeated, tag = "5")]
    pins: Vec<PlaceMessage>,
    #[prost(uint64, tag = "6")]
    after: u64,
}
const ORIGIN_TAGS: &[u32] = &[1, 2, 3, 4, 5, 6];

#[derive(Clone, PartialEq, Message)]
struct BaseMessage {
    #[prost(uint64, tag = "1")]
    generation: u64,
    #[prost(string, tag = "2")]
    url: String,
    #[prost(bytes = "vec", tag = "3")]
    shard_id: Vec<u8>,
    /// 0: all rows belong to the shard.
    #[prost(uint32, tag = "4")]
    buckets: u32,
    #[prost(uint32, tag = "5")]
    bucket: u32,
}
const BASE_TAGS: &[u32] = &[1, 2, 3, 4, 5];

pub(super) fn encode_origin(origin: &Origin) -> Vec<u8> {
    let message = OriginMessage {
        url: origin.place.url.clone(),
        shard_id: bytes_of(origin.place.shard_id),
        checkpoint_id: origin.checkpoint.as_bytes().to_vec(),
        initialized: origin.initialized,
        after: origin.after.get(),
        pins: origin
            .pins
            .iter()
            .map(|place| PlaceMessage { url: place.url.clone(), shard_id: bytes_of(place.shard_id) })
            .collect(),
    };
    let mut bytes = message.encode_to_vec();
    bytes.extend_from_slice(&origin.unknown);
    bytes
}

pub(super) fn decode_origin(bytes: &[u8]) -> Result<Origin, String> {
    let message = OriginMessage::decode(bytes).map_err(|e| e.to_string())?;
    let pins = message.pins.into_iter().map(|pin| place(pin.url, &pin.shard_id)).collect::<Result<_, _>>()?;
    Ok(Origin {
        place: place(message.url, &message.shard_id)?,
        checkpoint: id(&message.checkpoint_id)?,
        after: Position::new(message.after),
        initialized: message.initialized,
        pins,
        unknown: unknown_fields(bytes, ORIGIN_TAGS)?,
    })
}

/// One message for each SSTable that is elsewhere.
pub(super) fn encode_bases(sstables: &[SsTable]) -> Vec<Vec<u8>> {
    let elsewhere = sstables.iter().filter_map(|sstable| Some((sstable.generation, sstable.base.as_ref()?)));
    elsewhere.map(|(generation, base)| encode_base(generation, base)).collect()
}

fn encode_base(generation: Generation, base: &SsTableBase) -> Vec<u8> {
    let message = BaseMessage {
        generation: generation.get(),
        url: base.place.url.clone(),
        shard_id: bytes_of(base.place.shard_id),
        buckets: base.filter.map_or(0, |filter| filter.buckets),
        bucket: base.filter.map_or(0, |filter| filter.bucket),
    };
    let mut bytes = message.encode_to_vec();
    bytes.extend_from_slice(&base.unknown);
    bytes
}

/// Says of each SSTable where it is.
pub(super) fn decode_bases(messages: &[Vec<u8>], sstables: &mut [SsTable]) -> Result<(), String> {
    for bytes in messages {
        let message = BaseMessage::decode(bytes.as_slice()).map_err(|e| e.to_string())?;
        let listed = sstables.iter_mut().find(|sstable| sstable.generation.get() == message.generation);
        let Some(sstable) = listed else {
            return Err(format!("it says where generation {} is, and lists none", message.generation));
        };
        sstable.base = Some(SsTableBase {
            place: place(message.url, &message.shard_id)?,
            filter: match (message.buckets, message.bucket) {
                (0, _) => None,
                (buckets, bucket) if bucket < buckets => Some(RowFilter { buckets, bucket }),
                (buckets, bucket) => return Err(format!("bucket {bucket} of {buckets} is no filter")),
            },
            unknown: unknown_fields(bytes, BASE_TAGS)?,
        });
    }
    Ok(())
}

fn bytes_of(shard: ShardId) -> Vec<u8> {
    shard.as_uuid().as_bytes().to_vec()
}

fn place(url: String, shard_id: &[u8]) -> Result<ShardPlace, String> {
    match url.is_empty() {
        true => Err("a shard that it refers to has no URL".into()),
        false => Ok(ShardPlace { url, shard_id: ShardId::from_uuid(id(shard_id)?) }),
    }
}

fn id(bytes: &[u8]) -> Result<Uuid, String> {
    Uuid::from_slice(bytes).map_err(|e| format!("an id that it refers to: {e}"))
}
