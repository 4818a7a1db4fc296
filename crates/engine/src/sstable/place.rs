//! Where an SSTable is: in the folder of the shard that lists it, or, after a clone or a split, in another shard's, perhaps of
//! another table.

use fencepost_wal::{RowFilter, ShardId, SsTable};
use lance::Dataset;

use super::relative_dir;
use crate::error::Result;
use crate::lance_store::LanceStore;

/// An SSTable as a shard lists it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SsTablePlace {
    /// The shard that lists it.
    pub(crate) shard: ShardId,
    /// The URL of the table that it lies in, if it lies in another shard's folder.
    table: Option<String>,
    /// Its folder in that table.
    pub(crate) rel_dir: String,
    /// The rows of it that the shard has; `None`: all.
    pub(crate) filter: Option<RowFilter>,
}

impl SsTablePlace {
    pub(crate) fn of(shard: ShardId, sstable: &SsTable) -> Self {
        let base = sstable.base.as_ref();
        Self {
            shard,
            table: base.map(|base| base.place.url.clone()),
            rel_dir: relative_dir(base.map_or(shard, |base| base.place.shard_id), &sstable.path),
            filter: base.and_then(|base| base.filter),
        }
    }

    /// The store of the table that it lies in.
    ///
    /// # Errors
    /// [`InvalidUrl`](fencepost_wal::Error::InvalidUrl) if that cannot be opened here.
    pub(crate) fn store(&self, own: &LanceStore) -> Result<LanceStore> {
        match &self.table {
            Some(url) => own.of_table(url),
            None => Ok(own.clone()),
        }
    }

    /// Opens it.
    pub(crate) async fn open(&self, own: &LanceStore) -> Result<Dataset> {
        super::open(&self.store(own)?, &self.rel_dir).await
    }

    /// Where it is, for people.
    pub(crate) fn describe(&self, own: &LanceStore) -> String {
        match &self.table {
            Some(url) => format!("{}/{}", url.trim_end_matches('/'), self.rel_dir),
            None => own.describe(Some(&self.rel_dir)),
        }
    }
}
