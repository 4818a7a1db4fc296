//! The last look before a commit of the base table. Lance finds the conflicts of a commit by reading the versions
//! since the one that the change was computed on, and takes those that are gone for versions that never were: a
//! merger that slept until they were cleaned up would put its old deletion vectors over newer ones, and deleted rows
//! would come back.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use lance_index::mem_wal::MEM_WAL_INDEX_NAME;
use lance_io::object_store::ObjectStore;
use lance_table::format::{IndexMetadata, Manifest, Transaction, is_detached_version};
use lance_table::io::commit::{
    CommitError, CommitHandler, ConditionalPutCommitHandler, ManifestLocation, ManifestNamingScheme, ManifestWriter,
};
use lance_table::system_index::mem_wal::load_mem_wal_index_details;
use object_store::path::Path;
use parking_lot::Mutex;

/// Commits by create-if-absent, but only if Lance saw every version between the one that was read and the new one when it
/// looked for conflicts (its LIST passes through here), and they are still there. (A name that comes back because newer versions were cleaned up is no part
/// of the table's history: whoever opens the table opens the newest.)
///
/// It serves one commit at a time, through the dataset that was opened with it.
#[derive(Debug, Default)]
pub(super) struct Unbroken(Arc<Mutex<Commit>>);

/// The commit that is being made.
#[derive(Debug, Default, Clone)]
struct Commit {
    /// The version that the change was computed on.
    read_version: u64,
    /// The sharding spec that it was computed for. A shard of another layout is merged by other names.
    spec_id: u32,
    /// The newer versions that Lance has seen since.
    seen: BTreeSet<u64>,
}

impl Unbroken {
    /// What is committed next was computed on this version, for this sharding spec.
    pub(super) fn begin(&self, read_version: u64, spec_id: u32) {
        *self.0.lock() = Commit { read_version, spec_id, seen: BTreeSet::new() };
    }
}

#[async_trait]
impl CommitHandler for Unbroken {
    // Where LIST is not in order, Lance finds the newest version by a hint and by probing for the next ones up to a gap; a commit
    // that landed late has written that hint, too.
    async fn resolve_latest_location(
        &self,
        base_path: &Path,
        object_store: &ObjectStore,
    ) -> lance::Result<ManifestLocation> {
        if !object_store.list_is_lexically_ordered {
            let versions = self.list_manifest_locations(base_path, object_store, false);
            let versions: Vec<ManifestLocation> = versions.try_collect().await?;
            let attached = versions.into_iter().filter(|found| !is_detached_version(found.version));
            if let Some(newest) = attached.max_by_key(|found| found.version) {
                return Ok(newest);
            }
        }
        ConditionalPutCommitHandler.resolve_latest_location(base_path, object_store).await
    }

    fn list_manifest_locations_since<'a>(
        &self,
        base_path: &Path,
        object_store: &'a ObjectStore,
        since_version: u64,
    ) -> BoxStream<'a, lance::Result<ManifestLocation>> {
        let commit = Arc::clone(&self.0);
        let found = ConditionalPutCommitHandler.list_manifest_locations_since(base_path, object_store, since_version);
        let note = move |found: &ManifestLocation| {
            commit.lock().seen.insert(found.version);
        };
        found.inspect_ok(note).boxed()
    }

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
        let Commit { read_version, spec_id, seen } = self.0.lock().clone();
        let is_whole = |seen: &BTreeSet<u64>| {
            manifest.version > read_version
                && (read_version + 1..manifest.version).all(|version| seen.contains(&version))
        };
        let mut is_unbroken = is_whole(&seen);
        // If there are versions in between, they may have gone since Lance has seen them, and the new one with them.
        if is_unbroken && (manifest.version > read_version + 1 || !object_store.list_is_lexically_ordered) {
            let there = self.list_manifest_locations(base_path, object_store, false);
            let there: BTreeSet<u64> = there.map_ok(|found| found.version).try_collect().await?;
            let is_behind = there.iter().any(|version| *version >= manifest.version && !is_detached_version(*version));
            if is_behind {
                return Err(CommitError::CommitConflict);
            }
            is_unbroken = is_whole(&there);
        }
        if !is_unbroken {
            return Err(CommitError::OtherError(lance::Error::not_supported(format!(
                "versions between {} and {} of the base table were cleaned up while the commit was prepared, so what \
                 they changed cannot be told any more; it starts again from the newest version",
                read_version, manifest.version
            ))));
        }
        if indices.iter().flatten().any(|index| is_of_another_spec(index, spec_id)) {
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
