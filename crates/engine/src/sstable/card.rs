//! What an SSTable's dataset says about it, without opening the dataset. SSTables of ours are complete in version 1, whose
//! place is known: one GET. Of other engines' nobody knows that, so those are opened.

use std::collections::HashMap;

use arrow_schema::Schema;
use lance::Dataset;
use lance_table::format::pb::Manifest;
use lance_table::io::commit::ManifestNamingScheme;
use prost::Message;

use super::sidecar;
use super::statistics::{STATISTICS, Statistics};
use crate::error::Result;
use crate::lance_store::LanceStore;

/// The entries of the dataset's config that are ours begin with it.
const OURS: &str = "fencepost.";

/// The end of a manifest: the place of the message (8 bytes), two versions (2 bytes each), `LANC`.
const FOOTER_BYTES: usize = 16;
const MAGIC: &[u8] = b"LANC";

/// The config of an SSTable's dataset, and its schema.
#[derive(Debug)]
pub(crate) struct Card {
    config: HashMap<String, String>,
    statistics: Option<Statistics>,
    /// Empty for an SSTable of ours that was not opened.
    schema: Schema,
}

impl Card {
    /// What an opened dataset says.
    pub(crate) fn of(dataset: &Dataset) -> Self {
        Self::new(dataset.config().clone(), Schema::from(dataset.schema()))
    }

    /// Reads the card of an SSTable of ours; `None` if it is not one, or another attempt at a folder that is not whole.
    ///
    /// # Errors
    /// Errors of reading.
    pub(crate) async fn load(store: &LanceStore, rel_dir: &str) -> Result<Option<Self>> {
        let path = ManifestNamingScheme::V2.manifest_path(&store.path(Some(rel_dir)), 1);
        let Some(bytes) = store.store().get(&path).await? else {
            return Ok(None);
        };
        let Some(mut config) = parse(&bytes).map(|manifest| manifest.config) else {
            // Whoever opens it says what is wrong.
            return Ok(None);
        };
        config.retain(|key, _| key.starts_with(OURS));
        Ok((!config.is_empty()).then(|| Self::new(config, Schema::empty())))
    }

    fn new(mut config: HashMap<String, String>, schema: Schema) -> Self {
        let statistics = config.remove(STATISTICS).and_then(|text| Statistics::parse(&text));
        Self { config, statistics, schema }
    }

    /// An entry of the config.
    pub(crate) fn config(&self, key: &str) -> Option<&str> {
        self.config.get(key).map(String::as_str)
    }

    /// The statistics of its columns; `None` if nobody wrote any, or not in this form.
    pub(crate) fn statistics(&self) -> Option<&Statistics> {
        self.statistics.as_ref()
    }

    /// The columns; none for an SSTable of ours.
    pub(super) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Whether its sidecars are ours, so that each of its keys is in the index once, at the place of its row.
    pub(crate) fn has_our_sidecars(&self) -> bool {
        self.config.contains_key(sidecar::MARK)
    }

    /// The memory that it holds, in bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let config: usize = self.config.iter().map(|(key, value)| key.len() + value.len() + 64).sum();
        let statistics = self.statistics.as_ref().map_or(0, Statistics::bytes);
        size_of::<Self>() + config + statistics + self.schema.fields().len() * 256
    }
}

fn parse(bytes: &[u8]) -> Option<Manifest> {
    let body = bytes.strip_suffix(MAGIC)?;
    let end = bytes.len().checked_sub(FOOTER_BYTES)?;
    let place = body.get(end..end + size_of::<u64>())?;
    let place = usize::try_from(u64::from_le_bytes(place.try_into().ok()?)).ok()?;
    // Its length comes first, in four bytes.
    Manifest::decode(bytes.get(place.checked_add(size_of::<u32>())?..end)?).ok()
}
