//! A tenure: the span in which one writer epoch owns a shard. It alone may append, publish SSTables, truncate and
//! close; every one of its commits is refused once another claim owns the shard.

use std::future::ready;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::checkpoint::{self, Checkpoint, CheckpointOptions};
use crate::delete::refuse_pinned;
use crate::entry::WriterIdentity;
use crate::error::{Error, Outcome, Result};
use crate::ids::{Epoch, Generation, Position};
use crate::liveness::{Liveness, MAX_IN_FLIGHT};
use crate::log::Log;
use crate::manifest::{Extension, Fence, HeldManifest, ManifestStore, ShardManifest, ShardStatus, SsTable};
use crate::mutants::{Mutant, is_on};
use crate::shard::Shard;

/// A recorded claim of a shard. Clones share one state: once one of them is poisoned, all are.
#[derive(Debug, Clone)]
pub struct Tenure {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    shard: Shard,
    log: Log,
    manifests: ManifestStore,
    identity: WriterIdentity,
    sentinel: Position,
    /// What the serial zone is counted from (section 5); a shard's first tenure has none.
    zone_from: Option<Position>,
    liveness: Liveness,
    state: Mutex<State>,
    /// Turns true when the tenure stops.
    stopped: watch::Sender<bool>,
    /// One commit of this tenure at a time: each derives from the one before.
    committing: tokio::sync::Mutex<HeldManifest>,
}

#[derive(Debug)]
struct State {
    acknowledged: Position,
    /// Dead entries that this tenure's own entries had to go around, in its serial zone.
    passed_over: Vec<Fence>,
    stopped: Option<Error>,
}

impl Tenure {
    pub(crate) fn recorded(
        shard: Shard,
        log: Log,
        identity: WriterIdentity,
        sentinel: Position,
        zone_from: Option<Position>,
        liveness: Liveness,
        record: HeldManifest,
    ) -> Self {
        let manifests = ManifestStore::new(shard.clone());
        let state = Mutex::new(State { acknowledged: sentinel, passed_over: Vec::new(), stopped: None });
        let committing = tokio::sync::Mutex::new(record);
        let stopped = watch::Sender::new(false);
        let shared =
            Shared { shard, log, manifests, identity, sentinel, zone_from, liveness, state, stopped, committing };
        Self { shared: Arc::new(shared) }
    }

    /// The shard.
    pub fn shard(&self) -> &Shard {
        &self.shared.shard
    }

    /// Where the log is for the whole of this tenure.
    pub fn log(&self) -> &Log {
        &self.shared.log
    }

    /// The epoch that the claim got.
    pub fn epoch(&self) -> Epoch {
        self.shared.identity.epoch
    }

    pub(crate) fn identity(&self) -> &WriterIdentity {
        &self.shared.identity
    }

    /// Where this tenure's fence ends: its sentinel, or the last position of the range that its sentinels were put
    /// to. Its entries come after it.
    pub fn sentinel(&self) -> Position {
        self.shared.sentinel
    }

    /// Whether a dead predecessor's stragglers may stand at this position, so that only one PUT runs at a time.
    pub(crate) fn in_serial_zone(&self, position: Position) -> bool {
        self.shared.zone_from.is_some_and(|from| position.get().saturating_sub(from.get()) <= MAX_IN_FLIGHT)
    }

    /// The highest position up to which everything of this tenure is acknowledged.
    pub fn acknowledged(&self) -> Position {
        self.state().acknowledged
    }

    pub(crate) fn acknowledge(&self, position: Position) {
        let mut state = self.state();
        state.acknowledged = state.acknowledged.max(position);
    }

    /// Notes that a dead entry stands where an entry of ours was meant to go. Its object must stay (schedule 41): a PUT
    /// of ours to that name may still be under way.
    pub(crate) fn pass_over(&self, dead: Fence) {
        if !is_on(Mutant::PassedDeadNotRecorded) {
            self.state().passed_over.push(dead);
        }
    }

    /// The newest manifest that this tenure has read or committed.
    pub async fn manifest(&self) -> ShardManifest {
        self.shared.committing.lock().await.manifest.clone()
    }

    /// Fails once the tenure was fenced, poisoned or closed.
    ///
    /// # Errors
    /// The error that stopped it, with the outcome "not written": what is asked now was not begun.
    pub fn check(&self) -> Result<()> {
        match &self.state().stopped {
            Some(error) => Err(error.with_outcome(Outcome::NotWritten)),
            None => Ok(()),
        }
    }

    /// Stops the tenure; the first reason stays.
    pub(crate) fn stop(&self, error: Error) {
        let mut state = self.state();
        if state.stopped.is_none() {
            match &error {
                Error::Closed { .. } => tracing::debug!(shard = %self.shared.shard.id(), "the writer closed"),
                Error::Aborted { .. } => tracing::debug!(shard = %self.shared.shard.id(), "the writer was aborted"),
                error => {
                    tracing::warn!(shard = %self.shared.shard.id(), epoch = %self.epoch(), %error, "the writer stopped");
                }
            }
            state.stopped = Some(error);
        }
        drop(state);
        self.shared.stopped.send_replace(true);
    }

    /// Reads the newest manifest and stops the tenure if another claim owns the shard. Appending and publishing need
    /// no such look; reading what other processes have made of the log does.
    ///
    /// # Errors
    /// [`Error::Fenced`]; errors of reading, which stop nothing.
    pub async fn confirm(&self) -> Result<()> {
        self.check()?;
        let latest = self.shared.manifests.latest_existing().await?;
        if latest.is_owned_by(self.identity()) {
            return Ok(());
        }
        // Schedule 43: a claim counts only in a manifest that is certain.
        let latest = self.shared.manifests.latest_certain().await?.unwrap_or(latest);
        if latest.is_owned_by(self.identity()) {
            return Ok(());
        }
        let fenced = self.fenced_by(latest.writer_epoch, Outcome::NotWritten);
        self.stop(fenced.clone());
        Err(fenced)
    }

    /// Resolves when the tenure has been fenced, poisoned or closed.
    pub async fn stopped(&self) {
        let mut stopped = self.shared.stopped.subscribe();
        // The sender lives as long as `self`.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    /// Stops the tenure because it met a state that it cannot answer for, and returns the error to answer with.
    pub fn poison(&self, reason: impl Into<String>, outcome: Outcome) -> Error {
        let error = Error::Poisoned { shard: self.shared.shard.id(), reason: reason.into(), outcome };
        self.stop(error.clone());
        error
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes an SSTable that holds every live row at or below `covers`: one manifest lists it, raises R to
    /// `covers` and the generation by one. With `None`, only raises R: valid when no live row lies between R and
    /// `covers` (sentinels, dead entries).
    ///
    /// # Errors
    /// [`Error::Fenced`] if another claim owns the shard; [`Error::InvalidArgument`] if `covers` was not acknowledged
    /// or the generation is not the current one. If the outcome of the commit is unknown, the tenure is poisoned.
    pub async fn publish(&self, sstable: Option<SsTable>, covers: Position) -> Result<ShardManifest> {
        self.check()?;
        // I5, schedule 11: R never runs ahead of the log.
        if covers > self.acknowledged() && !is_on(Mutant::ReplayAfterAheadOfLog) {
            return Err(Error::InvalidArgument(format!(
                "an SSTable cannot cover position {covers}: only {} is acknowledged",
                self.acknowledged()
            )));
        }
        self.commit("publish an SSTable", |manifest| {
            // I8: an SSTable that lists newer rows than this one would hide them.
            if let Some(sstable) = &sstable
                && sstable.generation != manifest.current_generation
            {
                return Err(Error::InvalidArgument(format!(
                    "generation {} cannot be published: the shard expects generation {}",
                    sstable.generation, manifest.current_generation
                )));
            }
            manifest.sstables.extend(sstable.clone());
            if sstable.is_some() {
                manifest.current_generation = manifest.current_generation.next()?;
            }
            self.raise_replay_after(manifest, covers);
            Ok(())
        })
        .await
    }

    /// Declares the rows at or below `position` consumed: replay starts after it. For WAL-only shards.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `position` is above the last acknowledged one, or below R; [`Error::Fenced`] if
    /// another claim owns the shard.
    pub async fn truncate(&self, position: Position) -> Result<ShardManifest> {
        self.check()?;
        let acknowledged = self.acknowledged();
        if position > acknowledged {
            return Err(Error::InvalidArgument(format!(
                "cannot truncate at {position}: the last acknowledged position is {acknowledged}"
            )));
        }
        self.commit("truncate the log", |manifest| {
            if position < manifest.replay_after {
                return Err(Error::InvalidArgument(format!(
                    "cannot truncate at {position}: the log starts after {} already",
                    manifest.replay_after
                )));
            }
            self.raise_replay_after(manifest, position);
            Ok(())
        })
        .await
    }

    /// Ends the tenure cleanly and seals the shard, which takes no writer from then on: R rises to `covers`, as by
    /// [`publish`](Self::publish) without an SSTable. Whatever the commit answers, the handle never appends again. A shard is sealed by
    /// its owner, whose claim has fenced the writer before (schedule 23).
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub async fn seal(&self, covers: Option<Position>) -> Result<ShardManifest> {
        self.check()?;
        // I5, schedule 11.
        if let Some(covers) = covers.filter(|covers| *covers > self.acknowledged()) {
            return Err(Error::InvalidArgument(format!(
                "a seal cannot cover position {covers}: only {} is acknowledged",
                self.acknowledged()
            )));
        }
        let epoch = self.epoch();
        let sealed = self
            .commit("seal", |manifest| {
                if let Some(covers) = covers {
                    self.raise_replay_after(manifest, covers);
                }
                manifest.status = ShardStatus::Sealed;
                extension(manifest).closed_cleanly_epoch = epoch;
                Ok(())
            })
            .await;
        self.stop(Error::Closed { shard: self.shared.shard.id() });
        sealed
    }

    /// Marks the shard as deleted, unless somebody needs a moment of it. The handle never appends again, and nobody else opens the shard.
    pub(crate) async fn mark_deleted(&self) -> Result<ShardManifest> {
        let marked = self
            .commit_derived("mark the shard as deleted", |mut next| {
                let changed = refuse_pinned(self.shard(), &next).map(|()| {
                    extension(&mut next).deleted = true;
                    next
                });
                ready(changed)
            })
            .await;
        self.stop(Error::Closed { shard: self.shared.shard.id() });
        marked
    }

    /// Ends the tenure cleanly: nothing is in flight, everything accepted is acknowledged. Whatever the commit
    /// answers, the handle never appends again.
    ///
    /// # Errors
    /// The error that stopped the tenure before; [`Error::Fenced`]; [`Error::CommitUnknown`].
    pub(crate) async fn close(&self) -> Result<()> {
        self.check()?;
        let closed = self.commit_close().await;
        self.stop(Error::Closed { shard: self.shared.shard.id() });
        closed
    }

    /// Records that the tenure ended cleanly.
    pub(crate) async fn commit_close(&self) -> Result<()> {
        let epoch = self.epoch();
        let closed = self
            .commit("close", |manifest| {
                extension(manifest).closed_cleanly_epoch = epoch;
                if is_on(Mutant::CloseMovesReplayAfter) {
                    self.raise_replay_after(manifest, self.acknowledged());
                }
                manifest.last_seen = manifest.last_seen.max(self.acknowledged());
                Ok(())
            })
            .await;
        closed.map(|_| ())
    }

    fn raise_replay_after(&self, manifest: &mut ShardManifest, covers: Position) {
        // I5: R never decreases. Schedule 18: the epoch is that of the rows covered, not simply ours.
        if covers > manifest.replay_after {
            manifest.replay_after = covers;
            let epoch = match is_on(Mutant::OwnEpochAtPartialFlush) {
                false => self.shared.liveness.highest_at_or_below(covers),
                true => self.epoch(),
            };
            let extension = extension(manifest);
            extension.replay_after_epoch = extension.replay_after_epoch.max(epoch);
        }
        // All of it landed: the next claim knows that it must find every position up to there.
        manifest.last_seen = manifest.last_seen.max(covers).max(self.acknowledged());
    }

    /// Publishes nothing new and pins what there is: one manifest lists the checkpoint, and raises R to `covers`, as
    /// [`publish`](Self::publish) without an SSTable does. The checkpoint ends at the R of that manifest, so that it needs no
    /// entry of the log (scope `All` of protocol section 9).
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub async fn checkpoint(&self, covers: Option<Position>, options: &CheckpointOptions) -> Result<Checkpoint> {
        self.check()?;
        // I5, schedule 11.
        if let Some(covers) = covers.filter(|covers| *covers > self.acknowledged()) {
            return Err(Error::InvalidArgument(format!(
                "a checkpoint cannot cover position {covers}: only {} is acknowledged",
                self.acknowledged()
            )));
        }
        let made = Mutex::new(None);
        self.commit_derived("make a checkpoint", |mut next: ShardManifest| {
            let made = &made;
            async move {
                let shard = self.shard();
                checkpoint::refuse_unusable(shard, &next)?;
                let derived_from = next.version;
                if let Some(covers) = covers {
                    self.raise_replay_after(&mut next, covers);
                }
                // I9: it is the version that is committed that is pinned, and a fresh object for every attempt.
                let mut pinned = next.clone();
                pinned.version = derived_from.next()?;
                let object = checkpoint::object_of(shard, pinned, derived_from, next.replay_after, options);
                checkpoint::write(shard, &object).await?;
                let listed = checkpoint::listed_as(&object, checkpoint::expiry(shard, options.lifetime));
                *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(listed.clone());
                Ok(checkpoint::with_checkpoint(next, listed))
            }
        })
        .await?;
        let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
        made.ok_or_else(|| self.poison("a checkpoint was committed that was not made", Outcome::Unknown))
    }

    /// Commits a change as the owner.
    async fn commit(
        &self,
        what: &str,
        mut change: impl FnMut(&mut ShardManifest) -> Result<()>,
    ) -> Result<ShardManifest> {
        self.commit_derived(what, |mut next| ready(change(&mut next).map(|()| next))).await
    }

    /// Commits what is derived from the latest manifest, as the owner.
    async fn commit_derived<F>(&self, what: &str, mut derive: impl FnMut(ShardManifest) -> F) -> Result<ShardManifest>
    where
        F: Future<Output = Result<ShardManifest>>,
    {
        let mut held = self.shared.committing.lock().await;
        self.check()?;
        let committed = self.shared.manifests.commit(Some(held.clone()), |manifest| {
            // I3: a tenure that was replaced changes nothing any more.
            let is_owned = manifest.is_owned_by(self.identity()) || is_on(Mutant::NoEpochCheckAtPublish);
            let derived = match is_owned {
                true => {
                    let mut next = manifest;
                    // Before R can cover them: what is acknowledged comes after what was passed over.
                    let passed_over = self.state().passed_over.clone();
                    extension(&mut next).add_fences(passed_over);
                    Ok(derive(next))
                }
                false => Err(self.fenced_by(manifest.writer_epoch, Outcome::NotWritten)),
            };
            async { derived?.await }
        });
        match committed.await {
            Ok(committed) => {
                *held = committed;
                Ok(held.manifest.clone())
            }
            Err(error) => {
                match &error {
                    Error::Fenced { .. } => self.stop(error.clone()),
                    Error::CommitUnknown { .. } => {
                        self.poison(format!("cannot {what}: {error}"), Outcome::Unknown);
                    }
                    _ => {}
                }
                Err(error)
            }
        }
    }

    pub(crate) fn fenced_by(&self, by: Epoch, outcome: Outcome) -> Error {
        Error::Fenced { shard: self.shared.shard.id(), epoch: self.epoch(), by, outcome }
    }

    /// The generation that the next SSTable gets.
    pub async fn current_generation(&self) -> Generation {
        self.shared.committing.lock().await.manifest.current_generation
    }
}

fn extension(manifest: &mut ShardManifest) -> &mut Extension {
    manifest.extension.get_or_insert_with(Extension::default)
}
