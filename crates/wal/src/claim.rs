//! Taking a shard over: claim, replay, fence, record (protocol section 4). The only way to open it for writing.

mod fence;
mod relocate;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::join;

use crate::adopt::inherit;
use crate::entry::{WalEntry, WriterIdentity};
use crate::error::{Error, Outcome, Result};
use crate::ids::{Epoch, Generation, Position};
use crate::liveness::{EntryKind, Liveness, MAX_IN_FLIGHT};
use crate::log::Log;
use crate::manifest::{Extension, Fence, HeldManifest, ManifestStore, SeenManifest, ShardManifest, ShardStatus};
use crate::mutants::{Mutant, is_on};
use crate::names;
use crate::prefetch::Prefetch;
use crate::shard::Shard;
use crate::slot::read_entry;
use crate::tenure::Tenure;
use fence::{Stand, fence};
use relocate::{find_log, relocate};

/// Limits of opening a shard for writing.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Entries whose objects have up to this many bytes in all are kept in memory while the shard is claimed; the
    /// others are read a second time afterwards. Default 256 MiB.
    pub replay_budget_bytes: usize,
    /// GETs that run at once while the log is read; fewer while entries are so large that 128 MiB would be under way. Default 192.
    pub prefetch: usize,
    /// Fence sentinels that the first try puts side by side, 1 to 32. Default 1, which is enough unless the shard's
    /// present writer never pauses; each further try doubles them. More take such a writer over in fewer tries, and
    /// leave as many objects of under 1 KiB in the log.
    pub fence_width: usize,
    /// If the shard's WAL store is gone: go on without it, and give up the rows that were acknowledged and not flushed. The
    /// caller asserts that the writer which had the shard is dead: one that is only stalled could go on acknowledging
    /// rows in that store which nobody will ever read. Default off. Without it such a shard opens only if its last
    /// writer closed cleanly and left nothing that is needed.
    pub abandon_wal_store: bool,
}

impl OpenOptions {
    fn validate(&self) -> Result<()> {
        match self.fence_width == 0 || self.fence_width as u64 > MAX_IN_FLIGHT {
            true => {
                Err(Error::InvalidArgument(format!("fence_width is {}; use 1 to {MAX_IN_FLIGHT}", self.fence_width)))
            }
            false => Ok(()),
        }
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { replay_budget_bytes: 256 << 20, prefetch: 192, fence_width: 1, abandon_wal_store: false }
    }
}

/// A shard that was taken over, and what its log held.
#[derive(Debug)]
pub struct Opened {
    /// The right to write.
    pub tenure: Tenure,
    /// The live rows above R, to be read to the end before anything is published.
    pub replay: Replay,
}

/// Takes a shard over for writing.
///
/// If the handle has a WAL store ([`Shard::with_wal_store`]) in which the log is not yet, and nothing above R has rows, the log goes
/// on there: positions count on, and one more manifest records it.
///
/// This writes: a manifest that claims the next epoch, a fence sentinel in the log, and a manifest that records it.
/// A live writer of the shard is fenced by it; if it never pauses, several sentinels side by side may be needed. Nothing retries after [`Error::Fenced`]: two processes that both
/// reopen would fence each other for ever.
///
/// # Errors
/// [`Error::ShardNotFound`], [`Error::ShardClosed`], [`Error::CloneUnfinished`]; [`Error::Unadopted`] if another engine's manifests replaced all of
/// ours, [`Error::Stranded`] if an entry that it acknowledged could get lost; [`Error::Fenced`] if a newer claim was met;
/// [`Error::LogHole`] and [`Error::Corrupt`] if objects are missing or damaged; [`Error::Outrun`] if the present writer
/// never pauses and is too fast; [`Error::WalStoreMissing`] and [`Error::WalStoreMismatch`] if the log is in a WAL store that is not
/// to be found, before anybody is fenced; [`Error::WalStoreInUse`]; [`Error::InvalidArgument`] for an option out of its limits.
pub async fn open(shard: &Shard, options: &OpenOptions) -> Result<Opened> {
    open_seen(shard, options, None).await
}

/// As [`open`], by a caller who has looked at the shard a moment ago. That spares the claim reading the newest manifest; if there is a
/// newer one by now, it is read all the same.
///
/// # Errors
/// As [`open`].
pub async fn open_seen(shard: &Shard, options: &OpenOptions, seen: Option<SeenManifest>) -> Result<Opened> {
    options.validate()?;
    let manifests = ManifestStore::new(shard.clone());
    let seen = seen.map(|SeenManifest(held)| held);
    let mut claim = claim(shard, &manifests, seen, options.abandon_wal_store).await?;
    let mut reading = Reading::new(shard, &claim, options);
    // Section 3, step 4: the claim's lineage is checked while the log is read, and before a sentinel is sent.
    let (proven, read) = join(prove(&manifests, &claim.held), reading.read_to_end()).await;
    proven?;
    let stand = match fence_behind(&manifests, &mut claim, &mut reading, options, read).await {
        Ok(stand) => stand,
        Err(error) => {
            if is_on(Mutant::CloseUnrecorded) {
                let _ = manifests.commit(None, |manifest| std::future::ready(claim.closed(shard, manifest))).await;
            }
            return Err(damage_or_fenced(&manifests, shard, &claim.identity, error).await);
        }
    };
    if is_on(Mutant::SentinelBeforeLineageCheck) {
        manifests.prove(&claim.held).await?;
    }
    let record = record(shard, &manifests, &claim, &stand, &reading).await?;
    let (record, log) = match relocate(shard, &manifests, &claim, stand.last, &reading, record).await {
        Ok(located) => located,
        Err(error) => return Err(damage_or_fenced(&manifests, shard, &claim.identity, error).await),
    };

    let replay_after = claim.held.manifest.replay_after;
    let kept = reading.kept;
    let dropped_from = reading.dropped_from;
    let replay = Replay {
        shard: shard.clone(),
        identity: claim.identity,
        rows_in_log: reading.rows_in_log,
        stamped_up_to: reading.stamped_up_to,
        kept,
        again: dropped_from.map(|from| {
            let liveness = Liveness::after(reading.liveness.highest_at_or_below(before(from)));
            let mut again = Prefetch::new(claim.log.clone(), from, None, options.prefetch);
            again.know(before(stand.last), Arc::clone(&reading.sizes));
            (again, liveness)
        }),
        current_generation: claim.held.manifest.current_generation,
        replay_after,
    };
    // I4: nobody whose epoch is lower than that of a shard's first claim has ever sent anything to its log.
    let is_first = claim.identity.epoch == Epoch::ZERO.next()?;
    let is_waived = is_first || (claim.after_clean_close && is_on(Mutant::CloseWaivesZone));
    let zone_from = Some(stand.zone_from).filter(|_| !is_waived);
    let tenure = Tenure::recorded(shard.clone(), log, claim.identity, stand.last, zone_from, reading.liveness, record);
    Ok(Opened { tenure, replay })
}

async fn prove(manifests: &ManifestStore, claimed: &HeldManifest) -> Result<()> {
    match is_on(Mutant::SentinelBeforeLineageCheck) {
        true => Ok(()),
        false => manifests.prove(claimed).await,
    }
}

/// Fences behind what was read, if that was whole.
async fn fence_behind(
    manifests: &ManifestStore,
    claim: &mut Claim,
    reading: &mut Reading<'_>,
    options: &OpenOptions,
    read: Result<()>,
) -> Result<Stand> {
    read?;
    if is_on(Mutant::StoreChangedWithoutSentinel) {
        let (last, held) = (before(reading.next), claim.held.clone());
        (claim.held, claim.log) = relocate(reading.shard, manifests, claim, last, reading, held).await?;
        reading.log = claim.log.clone();
    }
    fence(claim, reading, options.fence_width as u64).await
}

/// What a claimant is told that met damage (schedule 44). Step 1 keeps older writers from moving R, not newer ones: if
/// another claim has replaced this one, what it misses may have been flushed and collected, and what stands there may be a
/// zombie's. Damage is believed only if the claim still counts in a manifest that was read later (section 3: a
/// certain one); nobody could have collected anything above this claim's R until then.
async fn damage_or_fenced(manifests: &ManifestStore, shard: &Shard, claim: &WriterIdentity, error: Error) -> Error {
    let is_damage = matches!(
        error,
        Error::LogHole { .. }
            | Error::Stranded { .. }
            | Error::Corrupt { .. }
            | Error::WalStoreMissing { .. }
            | Error::WalStoreMismatch { .. }
            | Error::WalStoreInUse { .. }
    );
    if !is_damage || is_on(Mutant::DamageBelieved) {
        return error;
    }
    match manifests.latest_certain().await {
        Ok(Some(latest)) if !latest.is_owned_by(claim) => Error::Fenced {
            shard: shard.id(),
            epoch: claim.epoch,
            by: latest.writer_epoch,
            outcome: Outcome::NotWritten,
        },
        Ok(_) => error,
        // Whether it is damage cannot be told.
        Err(unreadable) => unreadable,
    }
}

fn before(position: Position) -> Position {
    Position::new(position.get().saturating_sub(1))
}

/// A committed claim.
struct Claim {
    identity: WriterIdentity,
    held: HeldManifest,
    /// The tenure before this one closed cleanly, so that nobody of it is left to collide with our sentinel.
    after_clean_close: bool,
    /// Where the log is.
    log: Log,
}

impl Claim {
    /// What only the mutant `CloseUnrecorded` commits: that the tenure of this claim, which never began, ended cleanly.
    fn closed(&self, shard: &Shard, mut manifest: ShardManifest) -> Result<ShardManifest> {
        if !manifest.is_owned_by(&self.identity) {
            return Err(Error::Closed { shard: shard.id() });
        }
        manifest.extension.get_or_insert_with(Extension::default).closed_cleanly_epoch = self.identity.epoch;
        Ok(manifest)
    }
}

/// Step 1. From here on no older writer can move R, so nothing above R can be deleted behind our back; if the lineage
/// check, which the caller owes, says that it was committed at all.
async fn claim(shard: &Shard, manifests: &ManifestStore, seen: Option<HeldManifest>, abandon: bool) -> Result<Claim> {
    let writer_id = shard.store().surroundings().fresh_id();
    let found = Mutex::new((false, Log::own(shard)));
    let committed = manifests.commit_unproven(seen, |manifest| {
        let found = &found;
        async move {
            let mut next = inherit(shard, manifests, manifest).await?;
            refuse_closed(shard, &next)?;
            let log = find_log(shard, &mut next, abandon).await?;
            let log_url = log.store().url().to_string();
            let extension = next.extension.get_or_insert_with(Extension::default);
            let of_that_tenure = extension.closed_cleanly_epoch == next.writer_epoch || is_on(Mutant::CleanCloseOfAny);
            // Nobody has ever written to a shard that nobody has claimed. (Only where it matters: with a fence, a WAL store
            // could never be wiped.)
            let is_wanted_elsewhere = shard.given_wal_store().is_some() || extension.wal_store.is_some();
            let is_fresh = next.writer_epoch == Epoch::ZERO && is_wanted_elsewhere;
            let after_clean_close = is_fresh || (of_that_tenure && extension.closed_cleanly_epoch.get() > 0);
            *found.lock().unwrap_or_else(PoisonError::into_inner) = (after_clean_close, log);
            extension.writer_id = writer_id;
            if let Some(recorded) = &mut extension.wal_store {
                // It may have been found at another place.
                recorded.url = log_url;
            }
            next.writer_epoch = next.writer_epoch.next()?;
            Ok(next)
        }
    });
    let held = committed.await?;
    let identity = WriterIdentity { epoch: held.manifest.writer_epoch, writer_id };
    let (after_clean_close, log) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Claim { identity, held, after_clean_close, log })
}

fn refuse_closed(shard: &Shard, manifest: &ShardManifest) -> Result<()> {
    if !manifest.is_initialized() {
        return Err(shard.unfinished());
    }
    match (manifest.is_deleted(), manifest.status) {
        (true, _) => Err(Error::ShardClosed { shard: shard.id(), state: "deleted" }),
        (_, ShardStatus::Sealed) => Err(Error::ShardClosed { shard: shard.id(), state: "sealed" }),
        (false, ShardStatus::Active) => Ok(()),
    }
}

/// Step 2: what was read of the log so far.
struct Reading<'a> {
    shard: &'a Shard,
    log: Log,
    identity: WriterIdentity,
    next: Position,
    prefetch: usize,
    /// The bytes of the entries that were listed, by position.
    sizes: Arc<BTreeMap<u64, u64>>,
    liveness: Liveness,
    kept: VecDeque<WalEntry>,
    kept_bytes: usize,
    budget: usize,
    /// The first entry that was not kept; all after it are read again.
    dropped_from: Option<Position>,
    /// Sentinels of others and dead entries above R.
    fences: Vec<Fence>,
    rows_in_log: u64,
    /// A position up to which everything had landed when the manifest was committed.
    last_seen: Position,
    current_generation: Generation,
    /// The last live entry that carries a generation.
    stamped_up_to: Option<Position>,
    /// Entries that were in the log when it was first listed, or that it may have gained since, to be read in all.
    may_read: u64,
    /// How often sentinels came too late.
    tries: usize,
}

/// What a log may gain while it is taken over, beyond as much as it held: a writer that adds more is not caught up with.
const MAX_GAINED: u64 = 16_384;

impl<'a> Reading<'a> {
    fn new(shard: &'a Shard, claim: &Claim, options: &OpenOptions) -> Self {
        let manifest = &claim.held.manifest;
        Self {
            shard,
            log: claim.log.clone(),
            identity: claim.identity,
            next: Position::new(manifest.replay_after.get().saturating_add(1)),
            prefetch: options.prefetch,
            sizes: Arc::default(),
            liveness: Liveness::after(manifest.replay_after_epoch()),
            kept: VecDeque::new(),
            kept_bytes: 0,
            budget: options.replay_budget_bytes,
            dropped_from: None,
            fences: Vec::new(),
            rows_in_log: 0,
            last_seen: manifest.landed_up_to(),
            current_generation: manifest.current_generation,
            stamped_up_to: None,
            may_read: MAX_GAINED,
            tries: 0,
        }
    }

    /// Reads up to the first absent position. A LIST says how far to prefetch, and what it shows far beyond the end cannot be
    /// a straggler, because everything before it had landed by then.
    ///
    /// The first position is read beside the LIST, and the one behind the last that it shows beside the others: where nothing is to be
    /// replayed, that is the look behind the end. I1: an absence counts as the end only behind everything that the LIST shows (or
    /// if it was seen later than that: schedule 33).
    async fn read_to_end(&mut self) -> Result<()> {
        let mut ahead = Prefetch::new(self.log.clone(), self.next, None, 1);
        ahead.begin()?;
        let listed = self.log.store().list(self.log.folder()).await?;
        let sizes =
            listed.iter().filter_map(|o| Some((names::parse(o.location.filename()?, names::ENTRY_SUFFIX)?, o.size)));
        let sizes: Arc<BTreeMap<u64, u64>> = Arc::new(sizes.collect());
        self.sizes = Arc::clone(&sizes);
        let highest = sizes.last_key_value().map_or(0, |(position, _)| *position);
        let last = Position::new(highest.saturating_add(1)).max(self.next);
        ahead.know(last, Arc::clone(&sizes));
        ahead.widen(self.prefetch.max(1));
        while let Some(entry) = ahead.next().await? {
            match entry.position.get() > highest {
                true => self.may_read = self.may_read.saturating_sub(1),
                false => self.may_read = self.may_read.saturating_add(1),
            }
            self.take(entry)?;
        }
        drop(ahead);
        // A live predecessor may have gone on since the LIST; or the absence was seen before it.
        if self.next.get() <= highest || self.next > last {
            // What was listed is to be read in all.
            self.may_read = self.may_read.saturating_add(sizes.range(self.next.get()..).count() as u64);
            self.read_on().await?;
        }
        // I1: an end that was found in a wiped store is none.
        self.log.confirm().await?;
        // I1: what a manifest says has landed is not taken for the end of the log either, however near.
        let certain = match highest > self.next.get().saturating_add(MAX_IN_FLIGHT) {
            true => self.last_seen.max(Position::new(highest)),
            false => self.last_seen,
        };
        if certain >= self.next {
            return Err(self.log.hole(self.next, certain));
        }
        for position in sizes.range(self.next.get()..).map(|(position, _)| Position::new(*position)) {
            if let Some(entry) = read_entry(&self.log, position).await? {
                self.refuse_stranded(&entry, "stands behind a missing one")?;
            }
        }
        Ok(())
    }

    /// Schedule 40. Lance has one PUT in flight, so its entries never come to stand behind a hole or a sentinel, except
    /// that it takes a 409 with nothing landed for a position that is taken, and goes on behind it. What stands there was
    /// acknowledged then, and replayed by Lance; to us it would be a straggler.
    fn refuse_stranded(&self, entry: &WalEntry, reason: &'static str) -> Result<()> {
        match entry.writer_id.is_none() && entry.rows() > 0 {
            true => Err(Error::Stranded { shard: self.shard.id(), position: entry.position, reason }),
            false => Ok(()),
        }
    }

    /// Reads what has landed meanwhile, faster than a live predecessor writes it.
    async fn read_on(&mut self) -> Result<()> {
        // After a try that came too late, there is something to read, and time is short.
        let mut width = if self.tries == 0 { 1 } else { self.prefetch.max(1) };
        let mut ahead = Prefetch::new(self.log.clone(), self.next, None, width);
        while let Some(entry) = ahead.next().await? {
            self.take(entry)?;
            self.may_read = self.may_read.checked_sub(1).ok_or(self.outrun())?;
            width = (2 * width).min(self.prefetch.max(1));
            ahead.widen(width);
        }
        Ok(())
    }

    fn outrun(&self) -> Error {
        Error::Outrun { shard: self.shard.id(), attempts: self.tries }
    }

    fn take(&mut self, entry: WalEntry) -> Result<()> {
        // I3: a newer claim has written already.
        if entry.writer_epoch > self.identity.epoch
            || (entry.writer_epoch == self.identity.epoch && !entry.is_by(&self.identity))
        {
            return Err(Error::Fenced {
                shard: self.shard.id(),
                epoch: self.identity.epoch,
                by: entry.writer_epoch,
                outcome: Outcome::NotWritten,
            });
        }
        let kind = self.liveness.meet(&entry);
        if kind == EntryKind::Dead {
            self.refuse_stranded(&entry, "stands behind a writer that replaced its own")?;
        }
        self.next = entry.position.next()?;
        match kind {
            // Lance stamps its entries: those of a generation that was published are in an SSTable already.
            EntryKind::Rows if is_published(&entry, self.current_generation) => {}
            EntryKind::Rows => {
                self.rows_in_log += entry.rows() as u64;
                if entry.generation.is_some() {
                    self.stamped_up_to = Some(entry.position);
                }
                self.keep(entry);
            }
            EntryKind::Sentinel if entry.is_by(&self.identity) => {}
            EntryKind::Dead if is_on(Mutant::OnlySentinelsRecorded) => {}
            EntryKind::Sentinel | EntryKind::Dead => {
                self.fences.push(Fence { position: entry.position, epoch: entry.writer_epoch });
            }
        }
        Ok(())
    }

    fn keep(&mut self, entry: WalEntry) {
        if self.dropped_from.is_some() {
            return;
        }
        self.kept_bytes = self.kept_bytes.saturating_add(entry.object_bytes);
        match self.kept_bytes <= self.budget {
            true => self.kept.push_back(entry),
            false => self.dropped_from = Some(entry.position),
        }
    }
}

fn is_published(entry: &WalEntry, current_generation: Generation) -> bool {
    entry.generation.is_some_and(|generation| generation < current_generation)
}

/// Step 4: only after this commit is the tenure valid. It is refused if another claim owns the shard by now, which
/// is what a claimant that stalled between its claim and its sentinel must find out (schedule 2).
async fn record(
    shard: &Shard,
    manifests: &ManifestStore,
    claim: &Claim,
    stand: &Stand,
    reading: &Reading<'_>,
) -> Result<HeldManifest> {
    // Schedules 13 and 14: not only our own sentinels. One that a dead claimant left, or a dead entry, may be the
    // only thing that stands on a stalled writer's next position.
    let mut fences = reading.fences.clone();
    if is_on(Mutant::NoRecordStep) {
        return Ok(claim.held.clone());
    }
    if is_on(Mutant::OnlyOwnSentinelRecorded) {
        fences.clear();
    }
    // After a clean close nobody's next position is where ours stand. There may be several: what was in their way then
    // was a straggler of a writer before, whose own next position is at the sentinel of the tenure that closed.
    if !claim.after_clean_close {
        let not_recorded = if is_on(Mutant::OnlyLastOfRangeRecorded) { stand.own.len().saturating_sub(1) } else { 0 };
        let own = stand.own.iter().skip(not_recorded);
        fences.extend(own.map(|position| Fence { position: *position, epoch: claim.identity.epoch }));
    }
    let recorded = manifests.commit(Some(claim.held.clone()), |mut next| {
        let owned = next.is_owned_by(&claim.identity) || is_on(Mutant::RecordWithoutCheck);
        let by = next.writer_epoch;
        next.last_seen = next.last_seen.max(stand.last);
        next.extension.get_or_insert_with(Extension::default).add_fences(fences.iter().copied());
        std::future::ready(match owned {
            true => Ok(next),
            false => {
                Err(Error::Fenced { shard: shard.id(), epoch: claim.identity.epoch, by, outcome: Outcome::NotWritten })
            }
        })
    });
    recorded.await
}

/// The live entries above R, in order, as a claim found them.
#[derive(Debug)]
pub struct Replay {
    shard: Shard,
    identity: WriterIdentity,
    rows_in_log: u64,
    kept: VecDeque<WalEntry>,
    again: Option<(Prefetch, Liveness)>,
    current_generation: Generation,
    replay_after: Position,
    stamped_up_to: Option<Position>,
}

impl Replay {
    /// Rows that the replay will return.
    pub fn rows(&self) -> u64 {
        self.rows_in_log
    }

    /// The last entry that Lance stamped with a generation, if there is one. The first SSTable of a tenure must cover
    /// all of them, because publishing it makes their stamps look published (schedule 31).
    pub fn stamped_up_to(&self) -> Option<Position> {
        self.stamped_up_to
    }

    /// R when the shard was claimed: the rows up to here are in SSTables.
    pub fn replay_after(&self) -> Position {
        self.replay_after
    }

    /// The next live entry with rows; `None` at the end. What did not fit into the memory budget is read again.
    ///
    /// # Errors
    /// [`Error::LogHole`] if an entry vanished since it was first read; [`Error::Fenced`] if that is because another claim
    /// owns the shard by now.
    pub async fn next(&mut self) -> Result<Option<WalEntry>> {
        match self.next_live().await {
            Err(error) => {
                let manifests = ManifestStore::new(self.shard.clone());
                Err(damage_or_fenced(&manifests, &self.shard, &self.identity, error).await)
            }
            entry => entry,
        }
    }

    async fn next_live(&mut self) -> Result<Option<WalEntry>> {
        loop {
            let entry = match self.kept.pop_front() {
                Some(entry) => entry,
                None => {
                    let Some((ahead, liveness)) = &mut self.again else {
                        return Ok(None);
                    };
                    let Some(entry) = ahead.next().await? else {
                        return ahead.expect_end().map(|()| None);
                    };
                    if liveness.meet(&entry) != EntryKind::Rows {
                        continue;
                    }
                    entry
                }
            };
            if !is_published(&entry, self.current_generation) {
                return Ok(Some(entry));
            }
        }
    }
}
