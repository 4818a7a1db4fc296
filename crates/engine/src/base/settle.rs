//! Making the base table durable on `file://` before anything that it took over is dropped (protocol section 7). What
//! Fencepost merges is fsynced as it is written; what another program merged may not be.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use fencepost_wal::MEM_WAL_FOLDER;

use super::BaseTable;
use crate::error::{Error, Result};

impl BaseTable {
    /// Fsyncs every file and folder of the base table, the shards' left out. Nothing to do on an object store.
    pub(crate) async fn settle(&self) -> Result<()> {
        let Some(root) = self.store.store().url().to_file_path().ok().filter(|root| root.is_dir()) else {
            return Ok(());
        };
        let fsynced = self.store.fsynced();
        if fsynced.load(Ordering::Relaxed) >= self.version() {
            return Ok(());
        }
        let synced = tokio::task::spawn_blocking(move || sync_below(&root, &|name| name != MEM_WAL_FOLDER)).await;
        let failed = |reason: String| {
            Error::NotSupported(format!(
                "the base table at {} cannot be fsynced ({reason}), so nothing that was merged into it is dropped",
                self.store.describe(None)
            ))
        };
        match synced {
            Ok(synced) => synced.map_err(|error| failed(error.to_string()))?,
            Err(error) => return Err(failed(error.to_string())),
        }
        fsynced.fetch_max(self.version(), Ordering::Relaxed);
        Ok(())
    }
}

fn sync_below(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(wanted) {
            continue;
        }
        let kind = entry.file_type()?;
        let synced = match (kind.is_dir(), kind.is_file()) {
            (true, _) => sync_below(&entry.path(), &|_| true),
            (_, true) => std::fs::File::open(entry.path()).and_then(|file| file.sync_all()),
            _ => Ok(()),
        };
        match synced {
            // Cleaned up meanwhile: no part of the newest version.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            synced => synced?,
        }
    }
    std::fs::File::open(folder)?.sync_all()
}
