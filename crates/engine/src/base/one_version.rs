//! Committing one certain version of a dataset, and no other. Lance moves a commit on top of what others have committed in
//! the meantime, and takes "overwrite" on a dataset that has appeared for a request to overwrite it: a creator that lost a
//! race would wipe the winner's table.

use async_trait::async_trait;
use lance_io::object_store::ObjectStore as LanceObjectStore;
use lance_table::format::{IndexMetadata, Manifest, Transaction};
use lance_table::io::commit::{
    CommitError, CommitHandler, ConditionalPutCommitHandler, ManifestLocation, ManifestNamingScheme, ManifestWriter,
};
use object_store::path::Path;

/// Commits by create-if-absent, but this version only.
#[derive(Debug)]
pub(super) struct OnlyVersion {
    pub(super) version: u64,
    /// The answer to another one, which Lance takes for final; given the dataset's path.
    pub(super) otherwise: fn(&Path) -> lance::Error,
}

#[async_trait]
impl CommitHandler for OnlyVersion {
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
        object_store: &LanceObjectStore,
        manifest_writer: ManifestWriter,
        naming_scheme: ManifestNamingScheme,
        transaction: Option<Transaction>,
    ) -> Result<ManifestLocation, CommitError> {
        if manifest.version != self.version {
            return Err(CommitError::OtherError((self.otherwise)(base_path)));
        }
        ConditionalPutCommitHandler
            .commit(manifest, indices, base_path, object_store, manifest_writer, naming_scheme, transaction)
            .await
    }
}
