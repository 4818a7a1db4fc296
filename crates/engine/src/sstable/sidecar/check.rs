//! Whether an SSTable's sidecars say what its rows say: the index has every key at its row's place and nothing else,
//! the filter denies no key.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use lance::Dataset;
use lance::dataset::mem_wal::util::pk_index_path;
use lance_core::cache::LanceCache;
use lance_index::scalar::IndexStore;
use lance_index::scalar::btree::BTREE_LOOKUP_NAME;
use lance_index::scalar::lance_format::LanceIndexStore;

use super::super::Card;
use super::key_columns::plain_keys;
use super::{BloomFilter, bloom, key_hashes, pk_index};
use crate::error::{Error, Result, without_location};
use crate::key::{KeyEncoder, Keys};
use crate::lance_store::LanceStore;

/// The file of the index that holds the keys.
pub(super) const PAGES_NAME: &str = "page_data.lance";
const INDEX_FOLDER: &str = "_pk_index";

/// What is wrong with one of the sidecars.
#[derive(Debug)]
pub(crate) struct SidecarFault {
    /// Whether it is the bloom filter, or the index.
    pub(crate) is_bloom: bool,
    /// The object, relative to the table.
    pub(crate) rel_path: String,
    pub(crate) reason: String,
}

/// The keys of an SSTable, gathered from its rows in their order. All of them are held in memory.
pub(crate) struct SidecarCheck {
    encoder: KeyEncoder,
    primary_key: Vec<String>,
    keys: Vec<RecordBatch>,
    encoded: Vec<Keys>,
}

impl SidecarCheck {
    /// For a table with this primary key; `None` without one, and then there are no sidecars.
    pub(crate) fn of(schema: &SchemaRef, primary_key: &[String]) -> Result<Option<Self>> {
        if primary_key.is_empty() {
            return Ok(None);
        }
        let encoder = KeyEncoder::try_new(schema, primary_key)?;
        Ok(Some(Self { encoder, primary_key: primary_key.to_vec(), keys: Vec::new(), encoded: Vec::new() }))
    }

    /// Takes the next rows.
    pub(crate) fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        self.encoded.push(self.encoder.encode(rows)?);
        self.keys.push(plain_keys(rows, &self.primary_key)?);
        Ok(())
    }

    /// Compares.
    pub(crate) async fn faults(self, store: &LanceStore, rel_dir: &str, dataset: &Dataset) -> Vec<SidecarFault> {
        let bloom = self.bloom_fault(store, rel_dir, dataset).await;
        let index = self.index_fault(store, rel_dir, dataset).await;
        let fault = |is_bloom: bool, name: &str, reason: String| {
            let rel_path = format!("{rel_dir}/{name}");
            SidecarFault { is_bloom, rel_path, reason }
        };
        let bloom = bloom.map(|reason| fault(true, bloom::FILE, reason));
        let index = index.map(|(file, reason)| fault(false, &format!("{INDEX_FOLDER}/{file}"), reason));
        bloom.into_iter().chain(index).collect()
    }

    async fn bloom_fault(&self, store: &LanceStore, rel_dir: &str, dataset: &Dataset) -> Option<String> {
        let filter = match BloomFilter::load(store, rel_dir, &Card::of(dataset), &self.primary_key).await {
            Ok(filter) => filter?,
            Err(Error::Corrupt { reason, .. }) => return Some(reason),
            Err(error) => return Some(error.to_string()),
        };
        for keys in &self.keys {
            let hashes = match key_hashes(keys, &self.primary_key) {
                Ok(hashes) => hashes,
                Err(error) => return Some(error.to_string()),
            };
            if let Some(row) = hashes.iter().position(|hash| !filter.may_hold_any(&[*hash])) {
                return Some(format!("it denies a key that is there, in row {row} of a batch"));
            }
        }
        None
    }

    /// The file of the index that is wrong, and why.
    async fn index_fault(&self, store: &LanceStore, rel_dir: &str, dataset: &Dataset) -> Option<(String, String)> {
        let pages = match pk_index::pages(&self.keys, &self.encoded) {
            Ok(pages) => pages,
            Err(error) => return Some((PAGES_NAME.into(), error.to_string())),
        };
        let failed = |name: &str, reason: String| Some((name.to_owned(), reason));
        let read = async |name: &str| {
            let folder = pk_index_path(&store.path(Some(rel_dir)));
            let lance = store.object_store().await.map_err(|e| e.to_string())?;
            let index = LanceIndexStore::new(lance, folder, Arc::new(LanceCache::no_cache()));
            let file = index.open_index_file(name).await.map_err(|e| without_location(&e))?;
            file.read_range(0..file.num_rows(), None).await.map_err(|e| without_location(&e))
        };
        let found = match read(PAGES_NAME).await {
            Ok(found) => found,
            // Of another engine's SSTable there may be none.
            Err(_) if !dataset.config().contains_key(bloom::MARK) && !exists(store, rel_dir).await => return None,
            Err(reason) => return failed(PAGES_NAME, reason),
        };
        if let Err(reason) = same_pages(&pages, &found) {
            return failed(PAGES_NAME, reason);
        }
        let lookup = match read(BTREE_LOOKUP_NAME).await {
            Ok(lookup) => lookup,
            Err(reason) => return failed(BTREE_LOOKUP_NAME, reason),
        };
        same_lookup(&pages, &lookup).err().and_then(|reason| failed(BTREE_LOOKUP_NAME, reason))
    }
}

async fn exists(store: &LanceStore, rel_dir: &str) -> bool {
    let folder = pk_index_path(&store.path(Some(rel_dir)));
    let listed = store.store().object_store().list_with_delimiter(Some(&folder)).await;
    listed.map_or(true, |listed| !listed.objects.is_empty())
}

/// Keys and positions, in the order of the keys.
fn same_pages(pages: &[RecordBatch], found: &RecordBatch) -> Result<(), String> {
    let expected: usize = pages.iter().map(RecordBatch::num_rows).sum();
    if found.num_rows() != expected || found.num_columns() != 2 {
        return Err(format!("it has {} keys, the SSTable has {expected} rows", found.num_rows()));
    }
    let mut at = 0;
    for page in pages {
        let same = found.slice(at, page.num_rows());
        if same.columns() != page.columns() {
            return Err(format!("its keys {at} to {} are not those of the rows", at + page.num_rows()));
        }
        at += page.num_rows();
    }
    Ok(())
}

/// The first and the last key of each page.
fn same_lookup(pages: &[RecordBatch], lookup: &RecordBatch) -> Result<(), String> {
    let [least, greatest, ..] = lookup.columns() else {
        return Err(format!("it has {} columns", lookup.num_columns()));
    };
    if lookup.num_rows() != pages.len() {
        return Err(format!("it knows {} pages, there are {}", lookup.num_rows(), pages.len()));
    }
    for (n, page) in pages.iter().enumerate() {
        let [keys, ..] = page.columns() else { continue };
        let ends = [keys.slice(0, 1), keys.slice(page.num_rows().saturating_sub(1), 1)];
        if ends != [least.slice(n, 1), greatest.slice(n, 1)] {
            return Err(format!("it does not know the first and the last key of page {n}"));
        }
    }
    Ok(())
}
