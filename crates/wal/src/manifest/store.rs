//! The versions of a shard's manifest on storage: finding the latest, and committing the next (protocol section 3).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{Error as StoreError, ObjectStoreExt};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Extension, ShardManifest, ShardStatus, codec};
use crate::error::{Error, Result};
use crate::ids::ManifestVersion;
use crate::mutants::{Mutant, is_on};
use crate::names;
use crate::retry::is_transient;
use crate::shard::Shard;

/// A committer may start from a manifest that it read before, if it is younger than this. Speed only: an older one
/// may cost a healthy writer its handle in the lineage check.
const HELD_FOR: Duration = Duration::from_secs(3600);
/// A reader that took longer than this between the LIST and the answer asks again.
const SLOW_READ: Duration = Duration::from_secs(60);
/// How often a listed manifest may turn out to be gone before the reader gives up.
const MAX_LIST_ROUNDS: usize = 16;
/// Old manifests that are read at once.
const READS_AT_ONCE: usize = 16;
/// How many conflicts with other committers one commit survives.
const MAX_CONFLICTS: usize = 64;

/// A manifest and when it was read or committed.
#[derive(Debug, Clone)]
pub(crate) struct HeldManifest {
    pub(crate) manifest: ShardManifest,
    since: Instant,
}

impl HeldManifest {
    fn new(manifest: ShardManifest) -> Self {
        Self { manifest, since: Instant::now() }
    }

    /// One whose reading began then.
    pub(crate) fn read_since(manifest: ShardManifest, since: Instant) -> Self {
        Self { manifest, since }
    }
}

/// A shard's newest manifest as it was when it was read. Whoever is given it may spare itself reading it again.
#[derive(Debug, Clone)]
pub struct SeenManifest(pub(crate) HeldManifest);

impl SeenManifest {
    /// What was read.
    pub fn manifest(&self) -> &ShardManifest {
        &self.0.manifest
    }
}

/// Reads and commits the manifests of one shard. Holds no state: storage is the truth.
#[derive(Debug, Clone)]
pub struct ManifestStore {
    shard: Shard,
}

impl ManifestStore {
    /// The manifests of a shard.
    pub fn new(shard: Shard) -> Self {
        Self { shard }
    }

    /// Creates the shard: its first manifest, owned by nobody. A shard that exists already is left as it is. Says whether this call has
    /// created it.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer.
    pub async fn initialize(&self, first: ShardManifest) -> Result<bool> {
        // A name that was pruned must not come back.
        if self.newest_version().await?.is_some() {
            return Ok(false);
        }
        let mut first = first;
        first.extension.get_or_insert_with(Extension::default).commit_id = self.fresh_id();
        match self.create(&first).await? {
            Created::Ours => self.lineage_holds(&first).await.map(|()| true),
            Created::SomebodyElses(_) => Ok(false),
        }
    }

    /// The newest manifest; `None` if the shard does not exist.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it does not decode, [`Error::Store`] if the store does not answer.
    pub async fn latest(&self) -> Result<Option<ShardManifest>> {
        for _ in 0..MAX_LIST_ROUNDS {
            let asked = Instant::now();
            let Some(version) = self.newest_version().await? else {
                return Ok(None);
            };
            // Absent: pruned between the LIST and the GET, so there is a newer one.
            if let Some(manifest) = self.read(version).await?
                && self.elapsed(asked) < SLOW_READ
            {
                return Ok(Some(manifest));
            }
        }
        Err(Error::Contention { shard: self.shard.id(), attempts: MAX_LIST_ROUNDS })
    }

    /// [`latest`](Self::latest), to be handed on to [`open_seen`](crate::open_seen).
    ///
    /// # Errors
    /// As [`latest`](Self::latest).
    pub async fn see(&self) -> Result<Option<SeenManifest>> {
        let since = Instant::now();
        let found = self.latest().await?;
        Ok(found.map(|manifest| SeenManifest(HeldManifest { manifest, since })))
    }

    /// The newest manifest, or an error if the shard does not exist.
    ///
    /// # Errors
    /// As [`latest`](Self::latest), and [`Error::ShardNotFound`].
    pub async fn latest_existing(&self) -> Result<ShardManifest> {
        self.latest().await?.ok_or_else(|| self.not_found())
    }

    pub(crate) fn not_found(&self) -> Error {
        Error::ShardNotFound { shard: self.shard.id(), url: self.shard.store().url().to_string() }
    }

    /// The newest manifest, still shown as the newest by a LIST that began after it was read; `None` if the shard does
    /// not exist. For actors that are no tenure and act on what a manifest lists (merging, collecting): between a LIST
    /// and a GET that stalled, the version may have been pruned and its name have come back with other content
    /// (protocol section 3, schedule 28). On `file://` it is durable too: its committer may not have come to its fsync yet,
    /// and what is deleted because of it does not come back with the manifest of before.
    ///
    /// # Errors
    /// As [`latest`](Self::latest); [`Error::Contention`] if every look finds a newer one.
    pub async fn latest_certain(&self) -> Result<Option<ShardManifest>> {
        let found = match is_on(Mutant::CollectorLooksOnce) {
            true => self.latest().await?,
            false => self.latest_seen_twice().await?,
        };
        if let Some(manifest) = &found {
            // I7: a power loss must not take back what others act on.
            self.shard.store().settle(&self.shard.manifest_path(manifest.version)).await?;
        }
        Ok(found)
    }

    /// [`latest_certain`](Self::latest_certain) for those who only read: not made durable.
    pub(crate) async fn latest_seen_twice(&self) -> Result<Option<ShardManifest>> {
        for _ in 0..MAX_LIST_ROUNDS {
            let Some(manifest) = self.latest().await? else {
                return Ok(None);
            };
            if self.newest_version().await? == Some(manifest.version) {
                return Ok(Some(manifest));
            }
        }
        Err(Error::Contention { shard: self.shard.id(), attempts: MAX_LIST_ROUNDS })
    }

    /// The newest manifest, for a reader that has read `held` before: no GET if that is still the newest. Which makes it
    /// certain, as [`latest_certain`](Self::latest_certain) says it: a LIST after its GET shows it as the newest. The flag
    /// says whether it is that.
    pub(crate) async fn latest_since(&self, held: Option<&ShardManifest>) -> Result<Option<(ShardManifest, bool)>> {
        match held {
            Some(held) if self.newest_version().await? == Some(held.version) => Ok(Some((held.clone(), true))),
            _ => Ok(self.latest().await?.map(|found| (found, false))),
        }
    }

    /// [`latest_since`](Self::latest_since), and certain also if `held` is not the newest any more.
    pub(crate) async fn certain_since(&self, held: Option<&ShardManifest>) -> Result<Option<ShardManifest>> {
        match held {
            Some(held) if self.newest_version().await? == Some(held.version) => Ok(Some(held.clone())),
            _ => self.latest_seen_twice().await,
        }
    }

    /// The manifest of one version; `None` if there is none (any more).
    ///
    /// # Errors
    /// As [`latest`](Self::latest).
    pub async fn read(&self, version: ManifestVersion) -> Result<Option<ShardManifest>> {
        let path = self.shard.manifest_path(version);
        let Some(bytes) = self.shard.store().get(&path).await? else {
            return Ok(None);
        };
        codec::decode(path.as_ref(), &bytes, self.shard.id(), version).map(Some)
    }

    /// The newest version older than `manifest` that carries our fields. Another engine's rewrite drops them.
    pub(crate) async fn last_with_extension(&self, manifest: &ShardManifest) -> Result<Option<ShardManifest>> {
        let mut versions = self.versions().await?;
        versions.retain(|v| *v < manifest.version);
        versions.sort_unstable();
        let older = stream::iter(versions.into_iter().rev()).map(|version| self.read(version)).buffered(READS_AT_ONCE);
        let mut older = std::pin::pin!(older);
        while let Some(found) = older.try_next().await? {
            // Absent: pruned since the LIST.
            if let Some(manifest) = found.filter(|m| m.extension.is_some()) {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    async fn versions(&self) -> Result<Vec<ManifestVersion>> {
        let listed = self.shard.store().list(&self.shard.manifest_folder()).await?;
        let numbers = listed.iter().filter_map(|o| names::parse(o.location.filename()?, names::MANIFEST_SUFFIX));
        Ok(numbers.map(ManifestVersion::new).collect())
    }

    async fn newest_version(&self) -> Result<Option<ManifestVersion>> {
        Ok(self.versions().await?.into_iter().max())
    }

    /// Commits the manifest that `change` derives from the latest one (or from `held`, if that is still the latest).
    ///
    /// `change` is run anew on every newer manifest that somebody else commits in between, and never on top of its
    /// own result. An error of `change` refuses the commit and is returned; nothing was committed then.
    ///
    /// # Errors
    /// [`Error::CommitUnknown`] if the manifest may or may not be part of the shard's history.
    pub(crate) async fn commit<C, F>(&self, held: Option<HeldManifest>, change: C) -> Result<HeldManifest>
    where
        C: FnMut(ShardManifest) -> F,
        F: Future<Output = Result<ShardManifest>>,
    {
        let committed = self.commit_unproven(held, change).await?;
        self.prove(&committed).await?;
        Ok(committed)
    }

    /// [`commit`](Self::commit) without the lineage check. Until [`prove`](Self::prove) has passed, the caller may read and
    /// nothing else (protocol section 3, step 4).
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub(crate) async fn commit_unproven<C, F>(&self, held: Option<HeldManifest>, mut change: C) -> Result<HeldManifest>
    where
        C: FnMut(ShardManifest) -> F,
        F: Future<Output = Result<ShardManifest>>,
    {
        let mut held = held.filter(|h| self.elapsed(h.since) < HELD_FOR).map(|h| h.manifest);
        for _ in 0..MAX_CONFLICTS {
            let (parent, is_latest) = match held.take() {
                Some(parent) => (parent, false),
                None => (self.latest_existing().await?, true),
            };
            let latest = parent.version;
            let parent_commit_id = parent.commit_id().unwrap_or_default();
            let version = latest.next()?;
            let mut next = match change(parent).await {
                Ok(next) => next,
                // Schedule 43: what refuses may be a forgotten name that came back between the LIST and the GET.
                Err(error) if is_latest && self.is_still_newest(latest).await? => return Err(error),
                // The manifest that was held may not be the latest any more, which alone can refuse.
                Err(_) => continue,
            };
            next.version = version;
            let extension = next.extension.get_or_insert_with(Extension::default);
            extension.parent_commit_id = parent_commit_id;
            extension.commit_id = self.fresh_id();
            match self.create(&next).await? {
                Created::Ours => return Ok(HeldManifest::new(next)),
                Created::SomebodyElses(found) => self.was_there_first(&found).await?,
            }
        }
        Err(Error::Contention { shard: self.shard.id(), attempts: MAX_CONFLICTS })
    }

    /// The lineage check of what [`commit_unproven`](Self::commit_unproven) has committed. I6: its success proves only that the
    /// name was free; it may be one that was pruned.
    ///
    /// # Errors
    /// [`Error::CommitUnknown`].
    pub(crate) async fn prove(&self, committed: &HeldManifest) -> Result<()> {
        self.lineage_holds(&committed.manifest).await?;
        // Nobody looks for what is deleted, and a hint could come after all else is gone.
        if !committed.manifest.is_deleted() {
            self.leave_hint(committed.manifest.version);
        }
        Ok(())
    }

    /// Lets a sealed shard take writers again, on top of exactly this version: the caller has found out after reading it that nobody relies on
    /// the seal, and whoever comes to rely on it commits first.
    ///
    /// # Errors
    /// [`Error::ShardClosed`] if it is being deleted; [`Error::Contention`] if another version is the latest; errors of committing.
    pub async fn unseal(&self, version: ManifestVersion) -> Result<()> {
        let committed = self.commit(None, |mut next| {
            let changed = match (next.is_deleted(), next.version == version) {
                (true, _) => Err(Error::ShardClosed { shard: self.shard.id(), state: "deleted" }),
                (_, false) => Err(Error::Contention { shard: self.shard.id(), attempts: 1 }),
                (false, true) => {
                    next.status = ShardStatus::Active;
                    Ok(next)
                }
            };
            std::future::ready(changed)
        });
        committed.await.map(|_| ())
    }

    async fn is_still_newest(&self, version: ManifestVersion) -> Result<bool> {
        Ok(is_on(Mutant::RefusalWithoutLook) || self.newest_version().await? == Some(version))
    }

    /// Schedule 42: somebody else's manifest where ours should go was there first only if it is the newest or an
    /// ancestor of the newest. Otherwise ours may have landed, been built upon and been pruned, before a forgotten
    /// name came back in its place; to make the change again would be to make it twice.
    async fn was_there_first(&self, found: &ShardManifest) -> Result<()> {
        match is_on(Mutant::TakenNameBelieved) {
            true => Ok(()),
            false => match self.lineage(found).await? {
                // Another engine names no parents.
                Lineage::Holds | Lineage::Foreign => Ok(()),
                Lineage::Broken(_) => {
                    let reason = "somebody else's manifest is there, and newer ones do not lead back to it";
                    Err(self.unknown(found.version, reason))
                }
            },
        }
    }

    /// Creates one version, resolving what "already exists" means by reading it.
    async fn create(&self, manifest: &ShardManifest) -> Result<Created> {
        let store = self.shard.store();
        let path = self.shard.manifest_path(manifest.version);
        let bytes = Bytes::from(codec::encode(manifest));
        let mut attempts = store.retry().start();
        let mut may_have_landed = false;
        loop {
            let error = match store.create_once(&path, bytes.clone()).await {
                Ok(()) => return Ok(Created::Ours),
                Err(StoreError::AlreadyExists { source, path: at }) => {
                    match self.read(manifest.version).await {
                        // I2: our own commit, whose answer was lost.
                        Ok(Some(found))
                            if found.commit_id() == manifest.commit_id() && !is_on(Mutant::CommitRerunOnItself) =>
                        {
                            let settled = store.settle(&path).await;
                            return settled.map(|()| Created::Ours).map_err(|e| self.unknown(manifest.version, e));
                        }
                        Ok(Some(found)) => return Ok(Created::SomebodyElses(Box::new(found))),
                        // A 409: nothing is there. What conflicted may be our own request, sent twice by the client
                        // library, which lands later.
                        Ok(None) => {
                            may_have_landed = true;
                            StoreError::AlreadyExists { source, path: at }
                        }
                        Err(error) => return Err(self.unknown(manifest.version, error)),
                    }
                }
                Err(error) if is_transient(&error) => {
                    may_have_landed = true;
                    error
                }
                Err(error) if may_have_landed => return Err(self.unknown(manifest.version, error)),
                // I2: the client library may have sent it before, and be refused at its second attempt only.
                Err(error) => match self.read(manifest.version).await {
                    Ok(Some(found)) if found.commit_id() == manifest.commit_id() => {
                        let settled = store.settle(&path).await;
                        return settled.map(|()| Created::Ours).map_err(|e| self.unknown(manifest.version, e));
                    }
                    _ => return Err(put_failed(&path, error)),
                },
            };
            if !attempts.again().await {
                return Err(match may_have_landed {
                    true => self.unknown(manifest.version, error),
                    false => put_failed(&path, error),
                });
            }
        }
    }

    /// The lineage check: `ours` must be the newest manifest, or an ancestor of the newest. Otherwise we stalled
    /// while others went on and old versions were pruned, and our version is a forgotten name that came back, or it
    /// was built upon long ago. It is neither deleted nor tried again: the outcome is unknown.
    pub(crate) async fn lineage_holds(&self, ours: &ShardManifest) -> Result<()> {
        let unknown = |reason: &str| self.unknown(ours.version, reason);
        if is_on(Mutant::NoLineageCheck) {
            return Ok(());
        }
        if is_on(Mutant::PredecessorOnly) {
            let before = self.read(ManifestVersion::new(ours.version.get().saturating_sub(1))).await;
            let before = before.map_err(|e| self.unknown(ours.version, e))?;
            let parent = ours.extension.as_ref().map(|x| x.parent_commit_id);
            let stands = ours.version.get() == 1 || before.is_some_and(|m| m.commit_id() == parent);
            return if stands { Ok(()) } else { Err(unknown("its predecessor is gone")) };
        }
        match self.lineage(ours).await? {
            Lineage::Holds => Ok(()),
            Lineage::Foreign => Err(unknown("a newer version of another engine does not name what it derives from")),
            Lineage::Broken(reason) => Err(unknown(reason)),
        }
    }

    /// Follows the parents of the newest manifest down to `of`.
    async fn lineage(&self, of: &ShardManifest) -> Result<Lineage> {
        let newest = self.newest_version().await.map_err(|e| self.unknown(of.version, e))?;
        let Some(newest) = newest else {
            return Ok(Lineage::Broken("the manifests vanished after it was written"));
        };
        if newest < of.version {
            return Ok(Lineage::Broken("it vanished after it was written"));
        }
        let mut expected: Option<Uuid> = None;
        for version in (of.version.get() + 1..=newest.get()).rev().map(ManifestVersion::new) {
            let Some(above) = self.read(version).await.map_err(|e| self.unknown(of.version, e))? else {
                return Ok(Lineage::Broken("newer versions exist that do not lead back to it"));
            };
            match above.extension {
                None => return Ok(Lineage::Foreign),
                Some(x) if expected.is_some_and(|id| id != x.commit_id) => {
                    return Ok(Lineage::Broken("newer versions exist that do not lead back to it"));
                }
                Some(x) => expected = Some(x.parent_commit_id),
            }
        }
        match expected {
            // What another engine wrote has no id, and its heir names none.
            Some(id) if id != of.commit_id().unwrap_or_default() => {
                Ok(Lineage::Broken("newer versions exist that do not lead back to it"))
            }
            _ => Ok(Lineage::Holds),
        }
    }

    /// Writes the hint file for other readers, beside the caller's way; a lost one costs them a few requests.
    fn leave_hint(&self, version: ManifestVersion) {
        let store = Arc::clone(self.shard.store().object_store());
        let path = self.shard.hint_path();
        tokio::spawn(async move {
            if let Err(error) = store.put(&path, codec::encode_hint(version).into()).await {
                tracing::debug!(%path, %error, "the version hint was not written");
            }
        });
    }

    fn fresh_id(&self) -> Uuid {
        self.shard.store().surroundings().fresh_id()
    }

    fn elapsed(&self, since: Instant) -> Duration {
        self.shard.store().surroundings().elapsed(since)
    }

    fn unknown(&self, version: ManifestVersion, reason: impl ToString) -> Error {
        Error::CommitUnknown { shard: self.shard.id(), version, reason: reason.to_string() }
    }
}

enum Created {
    Ours,
    SomebodyElses(Box<ShardManifest>),
}

/// How a manifest stands to the newest one.
enum Lineage {
    /// It is the newest, or an ancestor of it.
    Holds,
    /// A newer one was written by another engine, which names no parent.
    Foreign,
    /// It is neither; why.
    Broken(&'static str),
}

fn put_failed(path: &object_store::path::Path, error: StoreError) -> Error {
    Error::Store { operation: "PUT", object: path.to_string(), source: Arc::new(error) }
}
