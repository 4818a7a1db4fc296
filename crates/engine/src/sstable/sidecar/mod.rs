//! What an SSTable has for its keys besides the rows: `_pk_index/`, where each key is, and `bloom_filter.bin`, which
//! keys there are not. Both are Lance's formats. This module makes them of an SSTable's rows and writes them; a table
//! without a primary key has none.

mod bloom;
mod check;
mod key_columns;
mod key_index;
mod pk_index;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::future::try_join;

pub(crate) use self::bloom::{BloomFilter, MARK, key_hashes};
pub(crate) use self::check::{SidecarCheck, SidecarFault};
use self::key_columns::plain_keys;
pub(crate) use self::key_index::{IndexKeys, KeyIndexFiles, KeyPage, PageRanges};
use super::statistics::{self, STATISTICS};
use crate::error::{Error, Result};
use crate::key::KeyEncoder;
use crate::lance_store::LanceStore;

/// The sidecars of an SSTable, ready to be written; nothing without a primary key. With them goes what else is found out
/// from the rows before they are written: their statistics.
pub(super) struct Sidecars {
    statistics: String,
    index: Vec<RecordBatch>,
    bloom: Option<Bytes>,
}

impl Sidecars {
    /// Makes them of an SSTable's rows, off the caller's task: sorting and hashing many keys takes its time.
    pub(super) async fn of(schema: &SchemaRef, batches: &[RecordBatch], primary_key: &[String]) -> Result<Self> {
        let encoder = match primary_key.is_empty() {
            true => None,
            false => Some(KeyEncoder::try_new(schema, primary_key)?),
        };
        let (schema, batches, primary_key) = (Arc::clone(schema), batches.to_vec(), primary_key.to_vec());
        let made = tokio::task::spawn_blocking(move || {
            let statistics = statistics::text_of(&schema, &batches)?;
            let Some(encoder) = encoder else {
                return Ok(Self { statistics, index: Vec::new(), bloom: None });
            };
            let encoded = batches.iter().map(|batch| encoder.encode(batch)).collect::<Result<Vec<_>>>()?;
            let keys = batches.iter().map(|batch| plain_keys(batch, &primary_key)).collect::<Result<Vec<_>>>()?;
            let bloom = BloomFilter::of_keys(&keys)?.to_bytes();
            Ok(Self { statistics, index: pk_index::pages(&keys, &encoded)?, bloom: Some(bloom) })
        });
        made.await.map_err(|e| Error::NotSupported(format!("the task that prepared an SSTable's keys ended: {e}")))?
    }

    /// What the dataset's config says of them, and the statistics.
    pub(super) fn config(&self) -> Result<HashMap<String, String>> {
        let mut config = HashMap::from([(STATISTICS.to_owned(), self.statistics.clone())]);
        if let Some(bloom) = self.bloom.as_deref() {
            config.insert(bloom::MARK.to_owned(), bloom::mark(bloom)?);
        }
        Ok(config)
    }

    pub(super) async fn write(self, store: &LanceStore, rel_dir: &str) -> Result<()> {
        let Some(bloom) = self.bloom else {
            return Ok(());
        };
        try_join(pk_index::write(store, rel_dir, self.index), bloom::write(store, rel_dir, bloom)).await.map(|_| ())
    }
}
