//! Bringing the secondary indexes of a writer's MemTables up to date, beside the PUTs of later rows. Reads do not depend on
//! it: what an index lacks they index, or search, themselves.

use std::sync::Arc;

use fencepost_wal::{Tenure, WalWriter};

use super::levels::Levels;
use crate::base::BaseTable;
use crate::config::WriterConfig;
use crate::error::{Error, Result};
use crate::memtable::IndexSet;
use crate::rows::RowFormat;

/// The indexes that a writer's MemTables and SSTables are to have.
///
/// # Errors
/// [`Error::InvalidOptions`] if one cannot be on its column; Lance's.
pub(super) async fn indexes_of(base: &BaseTable, config: &WriterConfig) -> Result<IndexSet> {
    let maintains = config.memtable.as_ref().is_none_or(|memtable| memtable.maintain_indexes);
    let mut indexes = match maintains {
        true => base.maintained_indexes().await?,
        false => vec![],
    };
    let own = config.memtable.iter().flat_map(|memtable| &memtable.indexes);
    indexes.extend(own.cloned());
    IndexSet::try_new(indexes, &RowFormat::of(base)?.user)
}

/// Runs until the tenure ends.
pub(super) async fn run(levels: Arc<Levels>, tenure: Tenure, wal: Arc<WalWriter>) {
    if levels.indexes().configs().is_empty() {
        return;
    }
    while tenure.check().is_ok() {
        tokio::select! {
            biased;
            () = tenure.stopped() => break,
            () = levels.to_index.notified() => {}
        }
        if let Err(error) = catch_up(&levels, &wal).await {
            // Rows are found without it, only slower; a read that needs it says what is wrong.
            tracing::warn!(shard = %tenure.shard().id(), %error, "rows could not be indexed");
        }
    }
}

/// Indexes the rows that are there now.
pub(super) async fn catch_up(levels: &Levels, wal: &WalWriter) -> Result<()> {
    for memtable in levels.memtables() {
        let indexed = Arc::clone(&memtable);
        let done = tokio::task::spawn_blocking(move || indexed.catch_up_indexes()).await;
        levels.count_indexes(&memtable, |bytes| wal.hold(bytes));
        done.unwrap_or_else(|e| Err(Error::NotSupported(format!("the task that indexes rows ended: {e}"))))?;
    }
    Ok(())
}
