//! The base table of a clone: a dataset that shares the files of another one's version, as Lance's shallow clone does, in one
//! commit. Lance's own call takes config and MemWAL index over as they are: the clone would have the table id of its source
//! for a moment, and with it the same shards.

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use fencepost_wal::{ShardId, Store};
use lance::dataset::transaction::{Operation, Transaction};
use lance_index::mem_wal::{CompactedSsTable, MEM_WAL_INDEX_NAME, MemWalIndexDetails, load_mem_wal_index_details};
use lance_table::feature_flags::{apply_feature_flags, ensure_can_write_manifest};
use lance_table::format::{BasePath, IndexMetadata, Manifest, pb};
use lance_table::io::commit::{
    CommitError, CommitHandler, ConditionalPutCommitHandler, ManifestNamingScheme, write_manifest_file_to_path,
};
use lance_table::io::manifest::read_manifest_indexes;
use lance_table::system_index::frag_reuse::FRAG_REUSE_INDEX_NAME;
use lance_table::system_index::mem_wal::new_mem_wal_index_meta;
use url::Url;
use uuid::Uuid;

use super::BaseTable;
use super::layout::RESHARDING_KEY;
use super::state::{CHECKPOINT_KEY, ORIGINS_KEY, STATE_KEY, TableState};
use super::table_id::TABLE_ID_KEY;
use super::wal_store::WAL_STORE_KEY;
use crate::error::{Error, Result};
use crate::lance_store::LanceStore;

/// What is new in a clone.
pub(crate) struct CloneOf<'a> {
    /// Its own table id.
    pub(crate) table_id: Uuid,
    /// The checkpoint that it is made of.
    pub(crate) checkpoint: Uuid,
    /// The names of its shards, by those of the source.
    pub(crate) shards: &'a BTreeMap<ShardId, ShardId>,
    /// Where its logs are to be.
    pub(crate) wal_store: Option<&'a Store>,
}

impl BaseTable {
    /// Creates the clone's dataset, which is not ready yet. It shares the files of this version.
    ///
    /// # Errors
    /// [`Error::TableExists`] if there is a dataset; [`Error::NotSupported`] for a dataset that cannot be shared.
    pub(crate) async fn create_clone(&self, target: &LanceStore, clone: &CloneOf<'_>) -> Result<()> {
        let place = self.store.describe(None);
        let failed = || Error::lance(format!("cloning {place} to {}", target.describe(None)));
        let source = self.dataset.manifest();
        ensure_can_write_manifest(source).map_err(failed())?;
        let own = self.store.object_store().await?;
        let location = self.dataset.manifest_location();
        let mut indexes = read_manifest_indexes(&own, location, source).await.map_err(failed())?;
        self.refuse_unshareable(source, &indexes)?;

        let base_id = BasePath::unused_id(source.base_paths.keys().copied()).map_err(failed())?;
        let url = url_for_lance(self.store.store().url());
        let mut manifest = source.shallow_clone(None, url.clone(), base_id, None, String::new());
        manifest.version = 1;
        manifest.transaction_file = None;
        manifest.config = self.config_of_clone(clone);
        for index in &mut indexes {
            index.base_id.get_or_insert(base_id);
            index.dataset_version = 1;
            if index.name == MEM_WAL_INDEX_NAME {
                let details = load_mem_wal_index_details(index.clone()).map_err(failed())?;
                *index = new_mem_wal_index_meta(1, self.renamed(details, clone.shards)?).map_err(failed())?;
            }
        }
        manifest.update_max_field_id();
        apply_feature_flags(&mut manifest, false, false).map_err(failed())?;
        manifest.update_max_fragment_id();
        manifest.set_timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos());
        let operation = Operation::Clone {
            is_shallow: true,
            ref_name: None,
            ref_version: self.version(),
            ref_path: url,
            branch_name: None,
        };
        let transaction =
            pb::Transaction::try_from(&Transaction::new(self.version(), operation, None)).map_err(failed())?;
        let store = target.object_store().await?;
        let committed = ConditionalPutCommitHandler
            .commit(
                &mut manifest,
                Some(indexes),
                &target.path(None),
                &store,
                write_manifest_file_to_path,
                ManifestNamingScheme::V2,
                Some(transaction.into()),
            )
            .await;
        match committed {
            // Whose it is tells the table id.
            Ok(_) | Err(CommitError::CommitConflict) => Ok(()),
            Err(error) => Err(failed()(error.into())),
        }
    }

    fn refuse_unshareable(&self, manifest: &Manifest, indexes: &[IndexMetadata]) -> Result<()> {
        let refuse = |what: &str, then: &str| {
            let place = self.store.describe(None);
            Err(Error::NotSupported(format!(
                "the base table at {place} has {what}, which a clone cannot share; {then}"
            )))
        };
        if manifest.uses_stable_row_ids() {
            return refuse("stable row ids", "copy the table instead");
        }
        if manifest.fragments.iter().any(|fragment| !fragment.overlays.is_empty()) {
            return refuse("data overlays", "compact it first, and make a new checkpoint");
        }
        if indexes.iter().any(|index| index.name == FRAG_REUSE_INDEX_NAME) {
            return refuse("a fragment reuse index", "optimize its indexes first, and make a new checkpoint");
        }
        Ok(())
    }

    fn config_of_clone(&self, clone: &CloneOf<'_>) -> HashMap<String, String> {
        let mut config = self.dataset.config().clone();
        // Section 10: no WAL store is inherited.
        config.remove(WAL_STORE_KEY);
        config.remove(RESHARDING_KEY);
        config.extend(clone.wal_store.map(|store| (WAL_STORE_KEY.to_owned(), store.url().to_string())));
        let origins: Vec<String> =
            std::iter::once(self.store.store().url().to_string()).chain(self.origins()).collect();
        config.extend([
            (TABLE_ID_KEY.to_owned(), clone.table_id.as_hyphenated().to_string()),
            (CHECKPOINT_KEY.to_owned(), clone.checkpoint.as_hyphenated().to_string()),
            (ORIGINS_KEY.to_owned(), origins.join(" ")),
            (STATE_KEY.to_owned(), TableState::Cloning.as_str().to_owned()),
        ]);
        config
    }

    /// What the MemWAL index says of merges, by the names of the clone's shards: step 2 of section 10, so that nothing that the
    /// base has is merged or read a second time.
    fn renamed(&self, details: MemWalIndexDetails, shards: &BTreeMap<ShardId, ShardId>) -> Result<MemWalIndexDetails> {
        let renamed = |merged: &CompactedSsTable| {
            let shard = ShardId::from_uuid(merged.shard_id);
            let to = shards.get(&shard).ok_or_else(|| Error::Corrupt {
                url: self.store.describe(None),
                reason: format!("it has merged from shard {shard}, which the checkpoint does not have"),
            })?;
            Ok(CompactedSsTable::new(*to.as_uuid(), merged.generation))
        };
        let all = |merged: &[CompactedSsTable]| merged.iter().map(renamed).collect::<Result<Vec<_>>>();
        let mut index_catchup = details.index_catchup;
        for progress in &mut index_catchup {
            progress.caught_up_generations = all(&progress.caught_up_generations)?;
        }
        let compacted_sstables = all(&details.compacted_sstables)?;
        Ok(MemWalIndexDetails { compacted_sstables, index_catchup, inline_snapshots: None, ..details })
    }
}

/// A table's URL with the schemes that Lance knows.
fn url_for_lance(url: &Url) -> String {
    let url = url.as_str();
    let named = [("s3a://", "s3://"), ("azure://", "az://")];
    let other = named.iter().find_map(|(ours, its)| Some(format!("{its}{}", url.strip_prefix(ours)?)));
    other.unwrap_or_else(|| url.to_owned())
}
