//! Changing what the MemWAL index says of a table, in a commit that nobody's merge and nobody's other change can come in
//! between: it has the record of merges, which must never go back (I5).

use std::sync::Arc;

use lance::dataset::CommitBuilder;
use lance::dataset::transaction::{Operation, Transaction};
use lance_index::mem_wal::{MEM_WAL_INDEX_NAME, MemWalIndexDetails};
use lance_table::io::manifest::read_manifest_indexes;
use lance_table::system_index::mem_wal::{load_mem_wal_index_details, new_mem_wal_index_meta};

use super::BaseTable;
use super::one_version::OnlyVersion;
use crate::error::{Error, Result};

impl BaseTable {
    /// Commits a change on top of exactly this version, and returns the latest one. Whether the change is in there is for
    /// the caller to see: its answer may have been lost, or somebody else has committed first. An error that says that
    /// nobody has is returned.
    pub(super) async fn change_details(
        &self,
        doing: &str,
        change: impl FnOnce(&mut MemWalIndexDetails),
    ) -> Result<Self> {
        let failed = || Error::lance(format!("{doing} {}", self.store.describe(None)));
        let own = self.store.object_store().await?;
        let (location, manifest) = (self.dataset.manifest_location(), self.dataset.manifest());
        let indexes = read_manifest_indexes(&own, location, manifest).await.map_err(failed())?;
        let Some(old) = indexes.into_iter().find(|index| index.name == MEM_WAL_INDEX_NAME) else {
            return Err(Error::Corrupt { url: self.store.describe(None), reason: "it has no MemWAL index".to_owned() });
        };
        let mut details = load_mem_wal_index_details(old.clone()).map_err(failed())?;
        change(&mut details);
        let version = self.version();
        let index = new_mem_wal_index_meta(version, details).map_err(failed())?;
        let operation = Operation::CreateIndex { new_indices: vec![index], removed_indices: vec![old] };
        let committed = CommitBuilder::new(Arc::new(self.dataset.clone()))
            .with_session(Arc::clone(self.store.session()))
            .with_commit_handler(Arc::new(OnlyVersion {
                version: version + 1,
                otherwise: |_| lance::Error::not_supported("the table has moved on".to_owned()),
            }))
            .execute(Transaction::new(version, operation, None))
            .await;
        let latest = self.refreshed().await?;
        match committed {
            Err(error) if latest.version() == version => Err(failed()(error)),
            _ => Ok(latest),
        }
    }
}
