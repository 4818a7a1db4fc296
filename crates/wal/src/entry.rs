//! The bytes of one WAL entry: an Arrow IPC stream with the writer's identity in its schema metadata, then a
//! trailer that proves the object whole. Knows nothing of stores or of which entries are live.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow_schema::{FieldRef, Schema, SchemaRef};
use bytes::Bytes;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::ids::{Epoch, Generation, Position};
use crate::preflight;
use crate::writer::{bytes_in_memory, is_sent_as_slices};

/// Largest entry that is written or read, in bytes.
pub const MAX_ENTRY_BYTES: usize = 256 << 20;
/// Batches with fewer rows than this, and fewer bytes than that, are concatenated into one per entry. Larger ones would only be copied.
const CONCATENATE_BELOW_ROWS: usize = 1_000;
const CONCATENATE_BELOW_BYTES: usize = 32 << 10;
/// What Arrow adds to a batch, about: so that a buffer need not grow.
const FRAME_BYTES: usize = 1 << 10;
/// Views of a large buffer count as all of it, although little of it may be sent.
const MOST_RESERVED_BYTES: usize = 16 << 20;

const KEY_EPOCH: &str = "writer_epoch";
const KEY_SENTINEL: &str = "fence_sentinel";
const KEY_GENERATION: &str = "generation";
const KEY_WRITER_ID: &str = "fencepost.writer_id";
/// The last column of an entry of MemTable rows. In such an entry the writer's id is metadata of this field instead of
/// the schema: Lance's replay takes over batches whose fields are its MemTable's as they are, and then refuses metadata
/// that the MemTable's schema has not. Fields that differ, if only by this, it brings to its own schema first.
const TOMBSTONE_FIELD: &str = "_tombstone";
const RESERVED_KEYS: [&str; 4] = [KEY_EPOCH, KEY_SENTINEL, KEY_GENERATION, KEY_WRITER_ID];

const TRAILER_MAGIC: &[u8; 4] = b"FPW1";
/// Length of the trailer.
pub(crate) const TRAILER_BYTES: usize = 16;
const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// Who wrote an entry: one claim of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterIdentity {
    /// The epoch that the claim got.
    pub epoch: Epoch,
    /// Random per claim: tells two claimants of one epoch apart.
    pub writer_id: Uuid,
}

/// One decoded WAL entry.
#[derive(Debug, Clone)]
pub struct WalEntry {
    /// Its place in the log.
    pub position: Position,
    /// The epoch of its writer.
    pub writer_epoch: Epoch,
    /// The claim that wrote it; `None` in entries written by Lance.
    pub writer_id: Option<Uuid>,
    /// The MemTable generation that Lance stamps on its entries; `None` in ours.
    pub generation: Option<Generation>,
    /// Whether this is a fence sentinel, which carries no rows.
    pub is_sentinel: bool,
    /// The rows' schema, without the log's own metadata.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// Size of the object in bytes.
    pub object_bytes: usize,
}

impl WalEntry {
    /// Rows in the entry.
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    pub(crate) fn head(&self) -> EntryHead {
        EntryHead {
            writer_epoch: self.writer_epoch,
            writer_id: self.writer_id,
            generation: self.generation,
            is_sentinel: self.is_sentinel,
        }
    }

    pub(crate) fn is_by(&self, writer: &WriterIdentity) -> bool {
        self.writer_epoch == writer.epoch && self.writer_id == Some(writer.writer_id)
    }
}

/// Encodes the batches of one entry; small ones become one batch, because the entry is the unit of durability.
pub(crate) fn encode_rows(schema: &SchemaRef, batches: &[RecordBatch], writer: &WriterIdentity) -> Result<Bytes> {
    let is_exact = is_sent_as_slices(schema);
    let measured = batches.iter().map(|batch| match is_exact {
        true => (batch, bytes_in_memory(batch).unwrap_or_default()),
        false => (batch, 0),
    });
    encode_combined(schema, &combine_small(schema, measured), writer)
}

/// [`encode_rows`] of batches that [`combine_small`] made.
pub(crate) fn encode_combined(schema: &SchemaRef, combined: &[RecordBatch], writer: &WriterIdentity) -> Result<Bytes> {
    let bytes = encode(&tagged(schema, writer, false), combined)?;
    if bytes.len() > MAX_ENTRY_BYTES {
        return Err(Error::TooLarge {
            what: "the WAL entry".into(),
            actual: bytes.len(),
            limit_name: "MAX_ENTRY_BYTES",
            limit: MAX_ENTRY_BYTES,
        });
    }
    // I1: what is acknowledged can be read again. A reader refuses what this refuses.
    let stream = bytes.get(..bytes.len().saturating_sub(TRAILER_BYTES)).unwrap_or_default();
    preflight::check(stream)
        .map_err(|reason| Error::InvalidArgument(format!("the rows cannot be logged: {reason}")))?;
    Ok(bytes)
}

/// Whether rows of a schema can be logged.
///
/// # Errors
/// [`Error::InvalidArgument`], naming the column that cannot.
pub(crate) fn check_schema(schema: &SchemaRef) -> Result<()> {
    let nobody = WriterIdentity { epoch: Epoch::ZERO, writer_id: Uuid::nil() };
    encode_rows(schema, &[], &nobody).map(|_| ())
}

/// Encodes a fence sentinel: no fields, no rows.
pub(crate) fn encode_sentinel(writer: &WriterIdentity) -> Result<Bytes> {
    encode(&tagged(&Arc::new(Schema::empty()), writer, true), &[])
}

fn tagged(schema: &Schema, writer: &WriterIdentity, sentinel: bool) -> Schema {
    let Schema { fields, mut metadata } = untagged(schema);
    metadata.insert(KEY_EPOCH.into(), writer.epoch.to_string());
    if sentinel {
        metadata.insert(KEY_SENTINEL.into(), "true".into());
    }
    let writer_id = (KEY_WRITER_ID.to_owned(), writer.writer_id.as_hyphenated().to_string());
    let mut fields: Vec<FieldRef> = fields.iter().cloned().collect();
    match fields.last_mut().filter(|field| field.name() == TOMBSTONE_FIELD) {
        Some(field) => Arc::make_mut(field).metadata_mut().extend([writer_id]),
        None => metadata.extend([writer_id]),
    }
    Schema::new_with_metadata(fields, metadata)
}

/// The schema without the log's own metadata.
fn untagged(schema: &Schema) -> Schema {
    let mut metadata = schema.metadata().clone();
    metadata.retain(|key, _| !RESERVED_KEYS.contains(&key.as_str()));
    let mut fields: Vec<FieldRef> = schema.fields().iter().cloned().collect();
    if let Some(field) = fields.last_mut().filter(|field| field.metadata().contains_key(KEY_WRITER_ID)) {
        Arc::make_mut(field).metadata_mut().remove(KEY_WRITER_ID);
    }
    Schema::new_with_metadata(fields, metadata)
}

/// Whether a batch, which takes so many bytes in memory that it does not share with others, is one of its own in an entry.
pub(crate) fn stays_apart(batch: &RecordBatch, bytes: usize) -> bool {
    batch.num_rows() >= CONCATENATE_BELOW_ROWS || bytes >= CONCATENATE_BELOW_BYTES
}

/// The batches of one entry: small ones that follow each other as one, as far as they can be, and none without rows. With each come
/// the bytes of [`stays_apart`].
pub(crate) fn combine_small<'b>(
    schema: &SchemaRef,
    batches: impl Iterator<Item = (&'b RecordBatch, usize)>,
) -> Vec<RecordBatch> {
    let mut combined = Vec::new();
    let mut small: Vec<&RecordBatch> = Vec::new();
    let flush = |small: &mut Vec<&RecordBatch>, combined: &mut Vec<RecordBatch>| {
        match small.as_slice() {
            [] => {}
            [one] => combined.push((*one).clone()),
            // What cannot become one batch (dictionaries with more values than there are keys) stays apart.
            many => match arrow_select::concat::concat_batches(schema, many.iter().copied()) {
                Ok(one) => combined.push(one),
                Err(_) => combined.extend(many.iter().map(|batch| (*batch).clone())),
            },
        }
        small.clear();
    };
    for (batch, bytes) in batches.filter(|(batch, _)| batch.num_rows() > 0) {
        if stays_apart(batch, bytes) {
            flush(&mut small, &mut combined);
            combined.push(batch.clone());
        } else {
            small.push(batch);
        }
    }
    flush(&mut small, &mut combined);
    combined
}

fn encode(schema: &Schema, batches: &[RecordBatch]) -> Result<Bytes> {
    let failed = || Error::arrow("cannot encode a WAL entry");
    let options = IpcWriteOptions::try_new(8, false, arrow_ipc::MetadataVersion::V5).map_err(failed())?;
    let expected = batches.iter().map(|batch| FRAME_BYTES + bytes_in_memory(batch).unwrap_or_default());
    let buffer = Vec::with_capacity((FRAME_BYTES + expected.sum::<usize>()).min(MOST_RESERVED_BYTES));
    let mut writer = StreamWriter::try_new_with_options(buffer, schema, options).map_err(failed())?;
    for batch in batches {
        writer.write(batch).map_err(failed())?;
    }
    let mut bytes = writer.into_inner().map_err(failed())?;
    let length = bytes.len() as u64;
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(TRAILER_MAGIC);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    Ok(bytes.into())
}

/// Decodes the object found at `position`. The rows share the object's memory; nothing is allocated by a length
/// that the object merely claims.
///
/// # Errors
/// [`Error::Corrupt`], naming `object`, for anything that is not a whole entry.
pub(crate) fn decode(object: &str, position: Position, bytes: &Bytes) -> Result<WalEntry> {
    let corrupt = |reason: String| Error::corrupt(object, reason);
    if bytes.len() > MAX_ENTRY_BYTES + TRAILER_BYTES {
        return Err(corrupt(format!("it has {} bytes, an entry has at most {MAX_ENTRY_BYTES}", bytes.len())));
    }
    let (stream, sealed) = check_whole(bytes).map_err(corrupt)?;
    preflight::check(&stream).map_err(corrupt)?;
    // Arrow's reader is not made for what may be anything. The check in front leaves it nothing to panic at that is
    // known; a reader of the log shall not die of what is not.
    let decoded = std::panic::catch_unwind(|| decode_stream(stream));
    let (schema, batches) = decoded.unwrap_or_else(|_| Err("Arrow cannot read it".into())).map_err(corrupt)?;

    let EntryHead { writer_epoch, writer_id, generation, is_sentinel } = EntryHead::of(&schema).map_err(corrupt)?;
    if writer_id.is_some() && !sealed {
        return Err(corrupt("its trailer is missing: it was truncated".into()));
    }
    if is_sentinel && batches.iter().any(|b| b.num_rows() > 0) {
        return Err(corrupt("it is a fence sentinel with rows".into()));
    }
    let schema: SchemaRef = Arc::new(untagged(&schema));
    let batches = batches
        .into_iter()
        .map(|batch| {
            let (_, columns, rows) = batch.into_parts();
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)
        })
        .collect::<Result<_, _>>()
        .map_err(|e| corrupt(e.to_string()))?;
    Ok(WalEntry {
        position,
        writer_epoch,
        writer_id,
        generation,
        is_sentinel,
        schema,
        batches,
        object_bytes: bytes.len(),
    })
}

/// What an entry says of itself in front of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryHead {
    pub(crate) writer_epoch: Epoch,
    writer_id: Option<Uuid>,
    generation: Option<Generation>,
    pub(crate) is_sentinel: bool,
}

impl EntryHead {
    fn of(schema: &Schema) -> Result<Self, String> {
        let metadata = schema.metadata();
        let of_last_field = || schema.fields().last()?.metadata().get(KEY_WRITER_ID);
        let number = |key: &str| {
            let parse = |v: &String| v.parse().map_err(|_| format!("its `{key}` is {v:?}, not a number"));
            metadata.get(key).map(parse).transpose()
        };
        let writer_epoch = number(KEY_EPOCH)?.ok_or_else(|| format!("it has no `{KEY_EPOCH}`"))?;
        let parse_id = |id: &String| Uuid::parse_str(id).map_err(|e| format!("its `{KEY_WRITER_ID}` is {id:?}: {e}"));
        Ok(Self {
            writer_epoch: Epoch::new(writer_epoch),
            writer_id: metadata.get(KEY_WRITER_ID).or_else(of_last_field).map(parse_id).transpose()?,
            generation: number(KEY_GENERATION)?.map(Generation::new),
            is_sentinel: metadata.get(KEY_SENTINEL).is_some_and(|v| v == "true"),
        })
    }

    /// Reads it from the first bytes of an entry, unproved by any checksum; `None` if these do not reach to the end
    /// of the schema.
    ///
    /// # Errors
    /// [`Error::Corrupt`], naming `object`, if this is no entry.
    pub(crate) fn peek(object: &str, first: Bytes) -> Result<Option<Self>> {
        let schema = preflight::peek_schema(&first).map_err(|reason| Error::corrupt(object, reason))?;
        schema.map(|schema| Self::of(&schema)).transpose().map_err(|reason| Error::corrupt(object, reason))
    }
}

/// Whether an object of this size that ends with these bytes was written by Fencepost, as far as its trailer says.
pub(crate) fn ends_with_trailer(object_bytes: u64, last: &[u8; TRAILER_BYTES]) -> bool {
    let length = last.last_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    last.starts_with(TRAILER_MAGIC) && length == object_bytes.checked_sub(TRAILER_BYTES as u64)
}

fn decode_stream(stream: Bytes) -> Result<(SchemaRef, Vec<RecordBatch>), String> {
    let mut decoder = StreamDecoder::new();
    let mut buffer = Buffer::from(stream);
    let mut batches = Vec::new();
    while !buffer.is_empty() {
        batches.extend(decoder.decode(&mut buffer).map_err(|e| e.to_string())?);
    }
    decoder.finish().map_err(|e| e.to_string())?;
    let schema = decoder.schema().ok_or("it holds no Arrow schema")?;
    Ok((schema, batches))
}

/// The Arrow stream of an object, and whether a trailer proves it whole. A stream without one (Lance writes none)
/// must end with the end-of-stream marker.
fn check_whole(bytes: &Bytes) -> Result<(Bytes, bool), String> {
    if bytes.ends_with(&END_OF_STREAM) {
        return Ok((bytes.clone(), false));
    }
    let Some(split) = bytes.len().checked_sub(TRAILER_BYTES) else {
        return Err(format!("it has only {} bytes", bytes.len()));
    };
    let trailer = bytes.slice(split..);
    let stream = bytes.slice(..split);
    let Some((magic, rest)) = trailer.split_first_chunk::<4>() else {
        return Err("its trailer is cut short".into());
    };
    let (Some((checksum, _)), Some((_, length))) = (rest.split_first_chunk::<4>(), rest.split_last_chunk::<8>()) else {
        return Err("its trailer is cut short".into());
    };
    if magic != TRAILER_MAGIC {
        return Err(
            "it ends neither with a trailer nor with an end-of-stream marker: it was truncated or is no WAL entry"
                .into(),
        );
    }
    let length = u64::from_le_bytes(*length);
    if length != split as u64 {
        return Err(format!("its trailer says {length} bytes, but it has {split}"));
    }
    let (expected, actual) = (u32::from_le_bytes(*checksum), crc32c::crc32c(&stream));
    if expected != actual {
        return Err(format!("its checksum is {actual:08x}, its trailer says {expected:08x}"));
    }
    if !stream.ends_with(&END_OF_STREAM) {
        return Err("its stream has no end-of-stream marker".into());
    }
    Ok((stream, true))
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
