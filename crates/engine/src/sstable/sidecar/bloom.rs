//! An SSTable's `bloom_filter.bin`: which keys it does not hold, without reading any of its rows. This module makes,
//! writes and loads it, and decides whether a filter found on storage can be believed.
//!
//! The bytes are Lance's: the blocks of a split block bloom filter, nothing else. So is the hash, the one that Lance's
//! readers probe with. Lance's own writer hashes a key column that is not Int32, Int64, Utf8 or Binary to a constant:
//! its filters deny keys that are there. And the hash is made with the standard library's default hasher, for some
//! types over a debug text, neither of which is promised to stay. So a filter of ours has a mark in the dataset's
//! config, with a checksum and a sample of the hash; what cannot be believed is not used.

use std::sync::{Arc, OnceLock};

use arrow_array::cast::AsArray;
use arrow_array::types::Date64Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Date64Array, Decimal128Array, Decimal256Array,
    DurationMicrosecondArray, FixedSizeBinaryArray, Int64Array, RecordBatch, StringArray, Time32SecondArray,
    Time64NanosecondArray, TimestampMicrosecondArray,
};
use arrow_buffer::i256;
use arrow_schema::{DataType, Schema};
use bytes::Bytes;
use fencepost_wal::Error as WalError;
use lance::dataset::mem_wal::scanner::exec::compute_pk_hash;
use lance_core::utils::bloomfilter::sbbf::Sbbf;
use object_store::ObjectStoreExt;

use super::super::Card;
use super::key_columns::plain_keys;
use crate::error::{Error, Result};
use crate::lance_store::LanceStore;

/// The object's name in the SSTable's folder.
pub(super) const FILE: &str = "bloom_filter.bin";

/// The entry of the dataset's config that marks a filter of ours; see [`mark`].
pub(crate) const MARK: &str = "fencepost.bloom";

/// Lance's sizing: for this many keys at least, and this share of false positives.
const MIN_KEYS: u64 = 8192;
const FALSE_POSITIVES: f64 = 0.000_57;

/// What a filter is made of; the object's length is a multiple of it.
const BLOCK_BYTES: usize = 32;

/// The keys that an SSTable may hold: "no" is certain, "yes" is not.
pub(crate) struct BloomFilter {
    filter: Sbbf,
}

impl BloomFilter {
    /// The filter of these rows, which have plain key columns and no others.
    pub(super) fn of_keys(batches: &[RecordBatch]) -> Result<Self> {
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let mut filter = Sbbf::with_ndv_fpp((rows as u64).max(MIN_KEYS), FALSE_POSITIVES)
            .map_err(|e| Error::NotSupported(format!("a bloom filter of {rows} keys cannot be made: {e}")))?;
        for batch in batches {
            hash_plain(batch)?.into_iter().for_each(|hash| filter.insert_hash(hash));
        }
        Ok(Self { filter })
    }

    /// The object's bytes.
    pub(super) fn to_bytes(&self) -> Bytes {
        self.filter.to_bytes().into()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(BLOCK_BYTES) {
            return Err(format!("{} bytes are no whole number of {BLOCK_BYTES}-byte blocks", bytes.len()));
        }
        Ok(Self { filter: Sbbf::new(bytes).map_err(|e| e.to_string())? })
    }

    /// Loads the filter of an SSTable by what its dataset says; `None` if there is none, or none that can be believed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a filter of ours is missing or not as it was written; errors of reading.
    pub(crate) async fn load(
        store: &LanceStore,
        rel_dir: &str,
        card: &Card,
        primary_key: &[String],
    ) -> Result<Option<Self>> {
        let mark = card.config(MARK);
        let believed = match mark {
            Some(mark) => Mark::parse(mark).is_some_and(|mark| this_hash().is_some_and(|sample| mark.sample == sample)),
            None => lance_hashes_every_column(card.schema(), primary_key),
        };
        if !believed {
            return Ok(None);
        }
        let rel_path = format!("{rel_dir}/{FILE}");
        let bytes = store.store().get(&store.path(Some(&rel_path))).await?;
        let Some(mark) = mark.and_then(Mark::parse) else {
            // Of Lance's, there may be none, and there is nothing to tell a damaged one by but its length.
            return Ok(bytes.and_then(|bytes| Self::from_bytes(&bytes).ok()));
        };
        let damaged = |reason: String| Error::Corrupt { url: store.describe(Some(&rel_path)), reason };
        let bytes = bytes.ok_or_else(|| {
            damaged("it is missing, although its SSTable was written with it; restore it from a copy".into())
        })?;
        let checksum = crc32c::crc32c(&bytes);
        if checksum != mark.checksum {
            let Mark { checksum: written, .. } = mark;
            return Err(damaged(format!(
                "its checksum is {checksum:08x} instead of {written:08x}; restore it from a copy"
            )));
        }
        Self::from_bytes(&bytes).map(Some).map_err(damaged)
    }

    /// The memory that it holds, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.filter.size_bytes()
    }

    /// Whether this key, given by its hash, may be in the SSTable.
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        self.filter.check_hash(hash)
    }

    /// Whether any of these keys, given by their [`key_hashes`], may be in the SSTable.
    pub(crate) fn may_hold_any(&self, hashes: &[u64]) -> bool {
        hashes.iter().any(|hash| self.filter.check_hash(*hash))
    }
}

impl std::fmt::Debug for BloomFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BloomFilter").field("bytes", &self.filter.size_bytes()).finish()
    }
}

/// Writes the object. Its folder is fresh at every attempt, so there is nothing that it could replace.
pub(super) async fn write(store: &LanceStore, rel_dir: &str, bytes: Bytes) -> Result<()> {
    let path = store.path(Some(&format!("{rel_dir}/{FILE}")));
    let written = store.store().object_store().put(&path, bytes.into()).await;
    let failed = |e| WalError::Store { operation: "PUT", object: path.to_string(), source: Arc::new(e) };
    Ok(written.map(|_| ()).map_err(failed)?)
}

/// The mark of a filter: the object's crc32c in 8 hexadecimal digits, a dash, and a sample of the hash in 16.
pub(super) fn mark(bytes: &[u8]) -> Result<String> {
    Ok(format!("{:08x}-{:016x}", crc32c::crc32c(bytes), sample_hash()?))
}

/// The parts of a [`mark`].
struct Mark {
    checksum: u32,
    sample: u64,
}

impl Mark {
    /// `None` for what is not a mark as this version writes it.
    fn parse(text: &str) -> Option<Self> {
        let (checksum, sample) = text.split_once('-').filter(|(a, b)| a.len() == 8 && b.len() == 16)?;
        Some(Self { checksum: u32::from_str_radix(checksum, 16).ok()?, sample: u64::from_str_radix(sample, 16).ok()? })
    }
}

/// The hash of each row's key.
///
/// # Errors
/// [`Error::InvalidBatch`] if a key column is missing.
pub(crate) fn key_hashes(batch: &RecordBatch, primary_key: &[String]) -> Result<Vec<u64>> {
    hash_plain(&plain_keys(batch, primary_key)?)
}

fn hash_plain(keys: &RecordBatch) -> Result<Vec<u64>> {
    let columns: Vec<usize> = (0..keys.num_columns()).collect();
    let hashable = keys.columns().iter().map(hashable).collect();
    let keys = RecordBatch::try_new(keys.schema(), hashable).map_err(Error::arrow("hashing primary keys"))?;
    Ok((0..keys.num_rows()).map(|row| compute_pk_hash(&keys, &columns, row)).collect())
}

/// The least Date64 becomes the next one, because Lance's hash panics at it.
fn hashable(column: &ArrayRef) -> ArrayRef {
    match column.as_primitive_opt::<Date64Type>() {
        Some(dates) => Arc::new(dates.unary::<_, Date64Type>(|ms| ms.max(-i64::MAX))),
        None => Arc::clone(column),
    }
}

/// Whether the filters that Lance writes tell the truth for such a key.
fn lance_hashes_every_column(schema: &Schema, primary_key: &[String]) -> bool {
    primary_key.iter().all(|name| {
        schema.field_with_name(name).is_ok_and(|field| {
            matches!(field.data_type(), DataType::Int32 | DataType::Int64 | DataType::Utf8 | DataType::Binary)
        })
    })
}

/// The [`sample_hash`] of this program.
fn this_hash() -> Option<u64> {
    static SAMPLE: OnceLock<Option<u64>> = OnceLock::new();
    *SAMPLE.get_or_init(|| sample_hash().ok())
}

/// The hash of one key with a column of every kind. While it stays the same, so do the hashes of all keys: another
/// compiler or another version of DataFusion may change it, and then older filters are of no use.
fn sample_hash() -> Result<u64> {
    let fixed = FixedSizeBinaryArray::try_from_iter([[0u8, 1, 2]].into_iter()).map_err(Error::arrow("a sample key"))?;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![7])),
        Arc::new(BooleanArray::from(vec![true])),
        Arc::new(StringArray::from(vec!["key"])),
        Arc::new(BinaryArray::from(vec![b"key".as_slice()])),
        Arc::new(fixed),
        Arc::new(Date32Array::from(vec![19_000])),
        Arc::new(Date64Array::from(vec![1_700_000_000_000])),
        Arc::new(Time32SecondArray::from(vec![3_600])),
        Arc::new(Time64NanosecondArray::from(vec![3_600])),
        Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("+02:00")),
        Arc::new(DurationMicrosecondArray::from(vec![1])),
        Arc::new(Decimal128Array::from(vec![-150])),
        Arc::new(Decimal256Array::from(vec![i256::from_i128(-150)])),
    ];
    let columns = columns.into_iter().zip('a'..).map(|(column, name)| (name.to_string(), column));
    let sample = RecordBatch::try_from_iter(columns).map_err(Error::arrow("a sample key"))?;
    let indices: Vec<usize> = (0..sample.num_columns()).collect();
    Ok(compute_pk_hash(&sample, &indices, 0))
}
