//! The last look before a commit of the base table. Lance finds the conflicts of a commit by reading the versions
//! since the one that the change was computed on, and takes those that are gone for versions that never were: a
//! merger that slept until they were cleaned up would put its old deletion vectors over newer ones, and deleted rows
//! would come back.

use async_trait::async_trait;
use futures::TryStreamExt;
use lance_index::mem_wal::MEM_WAL_INDEX_NAME;
use lance_io::object_store::ObjectStore;
use lance_table::format::{IndexMetadata, Manifest, Transaction};
use lance_table::io::commit::{
    CommitError, CommitHandler, ConditionalPutCommitHandler, ManifestLocation, ManifestNamingScheme, ManifestWriter,
};
use lance_table::system_index::mem_wal::load_mem_wal_index_details;
use object_store::path::Path;

/// Commits by create-if-absent, but only if every version between the one that was read and the new one is still
/// there. Then they were there, too, when Lance looked for conflicts. (A name that comes back because newer versions
/// were cleaned up is no part of the table's history: whoever opens the table opens the newest.)
#[derive(Debug)]
pub(super) struct Unbroken {
    /// The version that the change was computed on.
    pub(super) read_version: u64,
    /// The sharding spec that it was computed for. A shard of another layout is merged by other names.
    pub(super) spec_id: u32,
}

#[async_trait]
impl CommitHandler for Unbroken {
    // Both as the inner handler answers: a lost answer is resolved by reading the manifest back.
    fn is_version_not_found_definitive(&self) -> bool {
        true
    }

    fn propagate_commit_error_after_success(&self) -> bool {
        false
    }

    async fn commit(
        &self,
        manifest: &mut Manifest,
        indices: Option<Vec<IndexMetadata>>,
        base_path: &Path,
        object_store: &ObjectStore,
        manifest_writer: ManifestWriter,
        naming_scheme: ManifestNamingScheme,
        transaction: Option<Transaction>,
    ) -> Result<ManifestLocation, CommitError> {
        let newest_first = self.list_manifest_locations(base_path, object_store, true);
        let newer: Vec<ManifestLocation> = newest_first
            .try_take_while(|found| std::future::ready(Ok(found.version > self.read_version)))
            .try_collect()
            .await?;
        let seen = newer.iter().filter(|found| found.version < manifest.version).count() as u64;
        if Some(seen) != manifest.version.checked_sub(self.read_version).and_then(|newer| newer.checked_sub(1)) {
            return Err(CommitError::OtherError(lance::Error::not_supported(format!(
                "versions between {} and {} of the base table were cleaned up while the commit was prepared, so what \
                 they changed cannot be told any more; it starts again from the newest version",
                self.read_version, manifest.version
            ))));
        }
        if indices.iter().flatten().any(|index| is_of_another_spec(index, self.spec_id)) {
            return Err(CommitError::OtherError(lance::Error::not_supported(
                "the table was split or joined while the commit was prepared; it starts again from the newest version"
                    .to_string(),
            )));
        }
        ConditionalPutCommitHandler
            .commit(manifest, indices, base_path, object_store, manifest_writer, naming_scheme, transaction)
            .await
    }
}

/// Whether this is a MemWAL index with another sharding spec than the one expected; 0 is none.
fn is_of_another_spec(index: &IndexMetadata, expected: u32) -> bool {
    if index.name != MEM_WAL_INDEX_NAME {
        return false;
    }
    let details = load_mem_wal_index_details(index.clone());
    details.is_ok_and(|details| details.sharding_specs.first().map_or(0, |spec| spec.spec_id) != expected)
}
