//! What an SSTable has for its keys besides the rows: `_pk_index/`, where each key is, and `bloom_filter.bin`, which
//! keys there are not. Both are Lance's formats. This module makes them of an SSTable's rows and writes them; a table
//! without a primary key has none.

mod bloom;
mod check;
mod key_columns;
mod pk_index;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::future::try_join;

pub(crate) use self::bloom::{BloomFilter, key_hashes};
pub(crate) use self::check::{SidecarCheck, SidecarFault};
use self::key_columns::plain_keys;
use crate::error::{Error, Result};
use crate::key::KeyEncoder;
use crate::lance_store::LanceStore;

/// The sidecars of an SSTable, ready to be written; nothing without a primary key.
#[derive(Default)]
pub(super) struct Sidecars {
    index: Vec<RecordBatch>,
    bloom: Option<Bytes>,
}

impl Sidecars {
    /// Makes them of an SSTable's rows, off the caller's task: sorting and hashing many keys takes its time.
    pub(super) async fn of(schema: &SchemaRef, batches: &[RecordBatch], primary_key: &[String]) -> Result<Self> {
        if primary_key.is_empty() {
            return Ok(Self::default());
        }
        let encoder = KeyEncoder::try_new(schema, primary_key)?;
        let (batches, primary_key) = (batches.to_vec(), primary_key.to_vec());
        let made = tokio::task::spawn_blocking(move || {
            let encoded = batches.iter().map(|batch| encoder.encode(batch)).collect::<Result<Vec<_>>>()?;
            let keys = batches.iter().map(|batch| plain_keys(batch, &primary_key)).collect::<Result<Vec<_>>>()?;
            let bloom = BloomFilter::of_keys(&keys)?.to_bytes();
            Ok(Self { index: pk_index::pages(&keys, &encoded)?, bloom: Some(bloom) })
        });
        made.await.map_err(|e| Error::NotSupported(format!("the task that prepared an SSTable's keys ended: {e}")))?
    }

    /// What the dataset's config says of them.
    pub(super) fn config(&self) -> Result<HashMap<String, String>> {
        let mark = self.bloom.as_deref().map(bloom::mark).transpose()?;
        Ok(mark.into_iter().map(|mark| (bloom::MARK.to_owned(), mark)).collect())
    }

    pub(super) async fn write(self, store: &LanceStore, rel_dir: &str) -> Result<()> {
        let Some(bloom) = self.bloom else {
            return Ok(());
        };
        try_join(pk_index::write(store, rel_dir, self.index), bloom::write(store, rel_dir, bloom)).await.map(|_| ())
    }
}
