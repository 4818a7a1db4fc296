//! Where writers of a table want the logs of its shards: in the WAL store that the caller gave, or in the one that the table
//! was created with, whose URL is in the dataset's config. Where a log *is* says the manifest of its shard.

use fencepost_wal::{Shard, Store};
use lance::Dataset;

use crate::error::Result;
use crate::lance_store::LanceStore;

/// The key of the dataset's config that holds the URL of the WAL store for new shards.
pub(super) const WAL_STORE_KEY: &str = "fencepost.wal_store";

#[derive(Debug, Clone)]
pub(super) struct WalStore {
    store: Store,
    /// Given by the caller: logs that are elsewhere move there.
    given: bool,
}

impl WalStore {
    /// The one that the caller gave, otherwise the one that the table was created with.
    ///
    /// # Errors
    /// [`InvalidUrl`](fencepost_wal::Error::InvalidUrl) if its URL cannot be opened here.
    pub(super) fn choose(store: &LanceStore, dataset: &Dataset, given: Option<Store>) -> Result<Option<Self>> {
        match (given, dataset.config().get(WAL_STORE_KEY)) {
            (Some(store), _) => Ok(Some(Self { store, given: true })),
            (None, Some(url)) => Ok(Some(Self { store: store.store().sibling(url)?, given: false })),
            (None, None) => Ok(None),
        }
    }

    pub(super) fn of(&self, shard: Shard) -> Shard {
        match self.given {
            true => shard.with_wal_store(self.store.clone()),
            false => shard.with_default_wal_store(self.store.clone()),
        }
    }
}
