//! What must hold of any bytes that stand where an entry or a manifest should: decoding them does not panic, takes no
//! more memory than a small multiple of their size, and what was decoded is the same after a rewrite.

use bytes::Bytes;
use fencepost_wal::{ManifestVersion, Position, ShardId, WalEntry, raw};
use uuid::Uuid;

use crate::allocated::peak_of;

/// The shard and the version that the corpus' manifests are of.
pub(crate) const SHARD: ShardId = ShardId::from_uuid(Uuid::from_u128(0xfeed));
pub(crate) const VERSION: ManifestVersion = ManifestVersion::new(9);

/// The checkpoint that the corpus' is.
pub(crate) const CHECKPOINT: Uuid = Uuid::from_u128(0xc4ec);

/// What decoding may take besides a multiple of the object: schema, error messages, tables of the readers.
const FIXED_BYTES: usize = 16 << 10;
/// Times the object's size, of an entry: most of it is what Arrow keeps per column.
const OF_ENTRY: usize = 16;
/// Of a manifest or a checkpoint, where a field of two bytes has a place in a growing list.
const OF_MANIFEST: usize = 96;

fn within_bounds<T>(what: &str, object_bytes: usize, factor: usize, call: impl FnOnce() -> T) -> T {
    let (answer, peak) = peak_of(call);
    let limit = FIXED_BYTES + factor * object_bytes;
    assert!(peak <= limit, "{what} of {object_bytes} bytes took {peak} bytes, at most {limit} are allowed");
    answer
}

fn same(a: &WalEntry, b: &WalEntry) -> bool {
    let head = |e: &WalEntry| (e.writer_epoch, e.is_sentinel, e.rows());
    let rows = |e: &WalEntry| e.batches.iter().filter(|batch| batch.num_rows() > 0).cloned().collect::<Vec<_>>();
    // A rewrite joins small batches; a sentinel's columns and empty batches go.
    let columns = match (rows(a).as_slice(), rows(b).as_slice()) {
        ([one], [other]) => one.columns() == other.columns(),
        _ => true,
    };
    head(a) == head(b) && (a.is_sentinel || (a.schema == b.schema && columns))
}

/// Any bytes as an entry.
pub(crate) fn entry(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let object = "wal/x.arrow";
    let peek = || raw::peek_entry(object, bytes.clone());
    let peeked = within_bounds("a look at the head of an entry", data.len(), OF_ENTRY, peek);
    let decode = || raw::decode_entry(object, Position::new(3), &bytes);
    let decoded = within_bounds("decoding an entry", data.len(), OF_ENTRY, decode);
    let Ok(entry) = decoded else { return };
    assert_eq!(peeked.unwrap_or_else(|e| panic!("decoded, but {e}")), Some(entry.is_sentinel));
    // Other engines' entries come back as ours, with a writer and a trailer.
    let again = raw::encode_entry(&entry).unwrap_or_else(|e| panic!("decoded, but not encoded: {e}"));
    let again = raw::decode_entry(object, Position::new(3), &again).unwrap_or_else(|e| panic!("rewritten: {e}"));
    assert!(same(&entry, &again), "{entry:?}\nbecame\n{again:?}");
}

/// Any bytes as the stream of an entry whose trailer is right.
pub(crate) fn sealed_entry(data: &[u8]) {
    entry(&sealed(data));
}

/// The bytes with a trailer that fits them (docs/format.md).
pub(crate) fn sealed(stream: &[u8]) -> Vec<u8> {
    let mut bytes = stream.to_vec();
    bytes.extend_from_slice(b"FPW1");
    bytes.extend_from_slice(&crc32c(stream).to_le_bytes());
    bytes.extend_from_slice(&(stream.len() as u64).to_le_bytes());
    bytes
}

/// Any bytes as a manifest.
pub(crate) fn manifest(data: &[u8]) {
    let object = "manifest/x.binpb";
    let decode = |bytes: &[u8]| raw::decode_manifest(object, bytes, SHARD, VERSION);
    let Ok(manifest) = within_bounds("decoding a manifest", data.len(), OF_MANIFEST, || decode(data)) else { return };
    let again = raw::encode_manifest(&manifest);
    let again = decode(&again).unwrap_or_else(|e| panic!("decoded, but not after a rewrite: {e}"));
    assert_eq!(manifest, again);
}

/// Any bytes as a checkpoint's object; once more behind a checksum that fits.
pub(crate) fn checkpoint(data: &[u8]) {
    decode_checkpoint(data);
    if let Some(rest) = data.get(CHECKSUM_BYTES..) {
        let mut fitting = vec![CHECKSUM_KEY];
        fitting.extend_from_slice(&crc32c(rest).to_le_bytes());
        fitting.extend_from_slice(rest);
        decode_checkpoint(&fitting);
    }
}

/// A checkpoint's object begins with its checksum: field 1, four bytes.
const CHECKSUM_KEY: u8 = 0x0d;
const CHECKSUM_BYTES: usize = 5;

fn decode_checkpoint(bytes: &[u8]) {
    let object = "checkpoints/x.binpb";
    let decode = |bytes: &[u8]| raw::decode_checkpoint(object, bytes, SHARD, CHECKPOINT);
    let Ok(checkpoint) = within_bounds("decoding a checkpoint", bytes.len(), OF_MANIFEST, || decode(bytes)) else {
        return;
    };
    let again = raw::encode_checkpoint(&checkpoint);
    let again = decode(&again).unwrap_or_else(|e| panic!("decoded, but not after a rewrite: {e}"));
    assert_eq!(checkpoint, again);
}

/// CRC-32C, bit by bit: a second implementation, to hold against the one that the decoder uses.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (0..8).fold(crc, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 });
    !bytes.iter().fold(!0u32, |crc, byte| step(crc ^ u32::from(*byte)))
}
