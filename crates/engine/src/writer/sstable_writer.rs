//! The one step of a flush that is not the shard's: making files of a frozen MemTable's rows. A trait, so that a
//! simulation of everything around it can keep the rows in another form.

use std::sync::Arc;

use async_trait::async_trait;

use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::memtable::{IndexSet, MemTable};
use crate::sstable::{self, Indexed, SsTableMeta};

/// Writes the files of SSTables. It publishes nothing.
#[async_trait]
pub(super) trait SsTableWriter: Send + Sync {
    /// Writes what the MemTable has for a flush into a folder that no other attempt has used, or will use. When it
    /// returns, the files are as durable as the store makes them (I5).
    async fn write(&self, rel_dir: &str, memtable: &Arc<MemTable>) -> Result<SsTableMeta>;
}

/// Writes Lance datasets that go with a base table.
pub(super) struct LanceWriter {
    pub(super) base: BaseTable,
    pub(super) indexes: IndexSet,
}

#[async_trait]
impl SsTableWriter for LanceWriter {
    async fn write(&self, rel_dir: &str, memtable: &Arc<MemTable>) -> Result<SsTableMeta> {
        let generation = memtable.generation();
        let memtable = Arc::clone(memtable);
        let batches = tokio::task::spawn_blocking(move || memtable.for_flush())
            .await
            .map_err(|e| Error::NotSupported(format!("the task that prepared generation {generation} ended: {e}")))??;
        let base = &self.base;
        let indexed = Indexed::of(self.indexes.configs(), &batches);
        let meta = sstable::write(base.lance_store(), base.dataset(), rel_dir, batches, base.primary_key()).await?;
        match indexed.build(base.lance_store(), rel_dir).await {
            // A store that fails now may not fail the next attempt.
            Err(error) if error.is_of_store() => return Err(error),
            // No read relies on an index, and the rows have to leave the log. Lance's own readers find them when they are merged.
            Err(error) => tracing::warn!(sstable = rel_dir, %error, "an SSTable is published without its indexes"),
            Ok(()) => {}
        }
        Ok(meta)
    }
}
