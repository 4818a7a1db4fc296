//! Reads a shard's log without owning it: in order, prefetching, following. Writes nothing and fences nobody.

use std::time::Duration;

use crate::entry::WalEntry;
use crate::error::{Error, Result};
use crate::ids::Position;
use crate::liveness::{EntryKind, Liveness};
use crate::log::Log;
use crate::manifest::{ManifestStore, ShardManifest};
use crate::mutants::{Mutant, is_on};
use crate::prefetch::Prefetch;
use crate::shard::Shard;

/// How patiently [`WalTailer::follow`] polls for the next entry.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// First pause after the end of the log was met. Default 100 ms.
    pub min_poll: Duration,
    /// Longest pause; each fruitless poll doubles it. Default 2 s.
    pub max_poll: Duration,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self { min_poll: Duration::from_millis(100), max_poll: Duration::from_secs(2) }
    }
}

/// Most GETs that a tailer runs at once, fewer if entries are large; it starts with one and doubles while it finds entries.
const MAX_PREFETCH: usize = 192;

/// Whether a manifest may be one that came back while the machine was suspended, so that no clock told (section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Once,
    Twice,
}

/// Reads a shard's log in order, from R on.
#[derive(Debug)]
pub struct WalTailer {
    shard: Shard,
    manifests: ManifestStore,
    /// Where it starts, if the caller said so.
    from: Option<ShardManifest>,
    /// The newest manifest that it knows. As long as a LIST shows it as the newest it is not read again.
    read: Option<Read>,
    /// Most GETs that may run at once.
    most_gets: usize,
    state: Option<Started>,
}

#[derive(Debug)]
struct Read {
    manifest: ShardManifest,
    /// Whether a LIST after that showed it as the newest (protocol section 3).
    is_certain: bool,
}

#[derive(Debug)]
struct Started {
    log: Log,
    next: Position,
    /// The last position that was handed out and is not dead; R before the first.
    live_up_to: Position,
    liveness: Liveness,
    ahead: Prefetch,
    width: usize,
    /// Read, and not believed yet: a check that fails or is given up leaves it here.
    met: Option<WalEntry>,
}

impl WalTailer {
    /// A tailer of a shard. It starts behind the R of the manifest that it reads first.
    pub fn new(shard: Shard) -> Self {
        let manifests = ManifestStore::new(shard.clone());
        Self { shard, manifests, from: None, read: None, most_gets: MAX_PREFETCH, state: None }
    }

    /// A tailer that starts behind the R of a manifest that the caller has read.
    pub fn after(shard: Shard, manifest: &ShardManifest) -> Self {
        let mut tailer = Self::new(shard);
        tailer.restart_after(manifest);
        tailer
    }

    /// The position that is read next; `None` before the first read.
    pub fn next_position(&self) -> Option<Position> {
        let started = self.state.as_ref().map(|s| s.next);
        started.or_else(|| self.from.as_ref().map(|manifest| behind(manifest.replay_after)))
    }

    /// Starts again behind the R of the latest manifest. For a reader that answered [`Error::Behind`] by reading the
    /// SSTables.
    pub fn restart(&mut self) {
        self.state = None;
    }

    /// Starts again behind the R of a manifest that the caller has read.
    pub fn restart_after(&mut self, manifest: &ShardManifest) {
        self.state = None;
        self.from = Some(manifest.clone());
        if self.read.as_ref().is_none_or(|read| read.manifest.version < manifest.version) {
            self.read = Some(Read { manifest: manifest.clone(), is_certain: false });
        }
    }

    /// The last position that was returned or passed and that was not dead; R before the first.
    pub fn live_up_to(&self) -> Option<Position> {
        let started = self.state.as_ref().map(|s| s.live_up_to);
        started.or_else(|| self.from.as_ref().map(|manifest| manifest.replay_after))
    }

    /// Lets at most this many GETs of entries run at once, at least one: what is read ahead is held in memory. By default 192, and
    /// fewer for entries of more than 700 KB.
    pub fn limit_read_ahead(&mut self, entries: usize) {
        self.most_gets = entries.clamp(1, MAX_PREFETCH);
        if let Some(state) = &mut self.state {
            state.width = state.width.min(self.most_gets);
            state.ahead.narrow(self.most_gets);
        }
    }

    /// Gives up what was read ahead, for a caller that does not go on for now.
    pub fn forget_read_ahead(&mut self) {
        if let Some(state) = &mut self.state {
            let met = state.met.as_ref().map_or(0, |_| 1);
            state.width = 1;
            state.ahead = Prefetch::new(state.log.clone(), Position::new(state.next.get() + met), None, 1);
        }
    }

    /// The shard's newest manifest, certain (protocol section 3): a LIST that began after it was read showed it as the
    /// newest. One LIST if it is the one that was read before. `None`: there is no shard.
    ///
    /// # Errors
    /// [`Error::Contention`] if every look finds a newer one; errors of reading.
    pub async fn look(&mut self) -> Result<Option<ShardManifest>> {
        let found = self.manifests.certain_since(self.read.as_ref().map(|read| &read.manifest)).await?;
        self.read = found.clone().map(|manifest| Read { manifest, is_certain: true });
        Ok(found)
    }

    /// The manifest by which the last end of the log was believed, if it is certain: then [`look`](Self::look) would say
    /// the same and ask the store.
    pub fn seen(&self) -> Option<&ShardManifest> {
        self.read.as_ref().filter(|read| read.is_certain).map(|read| &read.manifest)
    }

    /// The last position of the log, found without reading the entries: for a reader that knows everything up to `known` to
    /// have landed, and cannot take more for now. One GET of a byte if that is the last one, else some for each doubling of the
    /// distance. Nothing is promised of it; an entry in between may have been lost.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn find_end(&self, known: Position) -> Result<Position> {
        let Some(state) = &self.state else {
            return Ok(known);
        };
        let landed = self.read.as_ref().map_or(Position::ZERO, |read| read.manifest.landed_up_to());
        let mut there = known.max(landed).get();
        let is_there = |position: u64| {
            let (log, path) = (&state.log, state.log.entry_path(Position::new(position)));
            async move { Ok::<_, Error>(log.store().get_range(&path, 0..1).await?.is_some()) }
        };
        let mut step = 1;
        while is_there(there.saturating_add(step)).await? {
            there = there.saturating_add(step);
            step = step.saturating_mul(2);
        }
        // What is beyond by `step` is absent.
        while step > 1 {
            step /= 2;
            if is_there(there.saturating_add(step)).await? {
                there = there.saturating_add(step);
            }
        }
        Ok(Position::new(there))
    }

    /// The next live entry with rows; `None` at the end of the log, for now.
    ///
    /// # Errors
    /// [`Error::Behind`] if R passed the position meanwhile: what stood there is in the SSTables, and what stands
    /// there now may be a zombie's. [`Error::LogHole`] if an entry is missing that a manifest says had landed.
    pub async fn next(&mut self) -> Result<Option<WalEntry>> {
        while let Some((kind, entry)) = self.next_any().await? {
            if kind == EntryKind::Rows {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The next entry of any kind, sentinels and dead ones included.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn next_any(&mut self) -> Result<Option<(EntryKind, WalEntry)>> {
        if self.state.is_none() {
            let manifest = match &self.from {
                Some(manifest) => manifest.clone(),
                None => self.read_manifest(Look::Once).await?,
            };
            self.start(&manifest).await?;
            self.from = None;
        }
        let Some(state) = &mut self.state else {
            return Ok(None);
        };
        if state.met.is_none() {
            state.met = state.ahead.next().await?;
        }
        if state.met.is_none() {
            // The end, or the end of one window of the read-ahead.
            let next = state.next;
            state.width = 1;
            state.ahead = Prefetch::new(state.log.clone(), next, None, 1);
            // I1: an end that was found in a wiped store is none, unless the log is known to be empty.
            match state.log.confirm().await {
                Err(Error::WalStoreMissing { .. } | Error::WalStoreMismatch { .. }) => self.find_log_anew().await?,
                confirmed => confirmed?,
            }
            // An old manifest makes this an end for one more look.
            let Some(last_seen) = self.check_not_behind(next, Look::Once).await? else {
                return Box::pin(self.next_any()).await;
            };
            if last_seen < next {
                return Ok(None);
            }
            // I1: by then it had landed. It came between the read and the manifest, or it was lost.
            let Some(state) = &mut self.state else {
                return Ok(None);
            };
            state.met = state.ahead.next().await?;
            if state.met.is_none() {
                // Still above R, so nobody may have deleted it.
                return match self.check_not_behind(next, Look::Twice).await? {
                    Some(_) => Err(self.hole(next, last_seen)),
                    None => Box::pin(self.next_any()).await,
                };
            }
        }
        let Some(Started { met: Some(entry), liveness, .. }) = &self.state else {
            return Ok(None);
        };
        let mut liveness = liveness.clone();
        let kind = liveness.meet(entry);
        if kind != EntryKind::Rows {
            let position = entry.position;
            // What is passed over because of an old manifest would never be returned (schedule 45).
            if self.check_not_behind(position, Look::Twice).await?.is_none() {
                return Box::pin(self.next_any()).await;
            }
        }
        let Some(state) = &mut self.state else {
            return Ok(None);
        };
        let Some(entry) = state.met.take() else {
            return Ok(None);
        };
        state.liveness = liveness;
        state.next = entry.position.next()?;
        if kind != EntryKind::Dead {
            state.live_up_to = entry.position;
        }
        if state.width < self.most_gets {
            state.width = (state.width * 2).min(self.most_gets);
            state.ahead.widen(state.width);
        }
        Ok(Some((kind, entry)))
    }

    /// The next live entry with rows, waiting for it as long as it takes.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn follow(&mut self, options: &FollowOptions) -> Result<WalEntry> {
        let mut pause = options.min_poll;
        loop {
            if let Some(entry) = self.next().await? {
                return Ok(entry);
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(options.max_poll);
        }
    }

    async fn start(&mut self, manifest: &ShardManifest) -> Result<()> {
        if !manifest.is_initialized() {
            return Err(self.shard.unfinished());
        }
        let log = self.shard.log(manifest).await?;
        let next = behind(manifest.replay_after);
        self.state = Some(Started {
            next,
            live_up_to: manifest.replay_after,
            liveness: Liveness::after(manifest.replay_after_epoch()),
            ahead: Prefetch::new(log.clone(), next, None, 1),
            log,
            width: 1,
            met: None,
        });
        Ok(())
    }

    /// The newest manifest. One that is kept is not read again, and is certain if it is still the newest.
    async fn read_manifest(&mut self, look: Look) -> Result<ShardManifest> {
        let held = self.read.as_ref().map(|read| &read.manifest);
        let found = match look {
            Look::Twice if !is_on(Mutant::FollowerLooksOnce) => {
                self.manifests.certain_since(held).await?.map(|found| (found, true))
            }
            _ => self.manifests.latest_since(held).await?,
        };
        let (manifest, is_certain) = found.ok_or_else(|| self.manifests.not_found())?;
        self.read = Some(Read { manifest: manifest.clone(), is_certain });
        Ok(manifest)
    }

    async fn find_log_anew(&mut self) -> Result<()> {
        let manifest = self.read_manifest(Look::Once).await?;
        let log = self.shard.log(&manifest).await?;
        if let Some(state) = self.state.as_mut().filter(|state| state.log.is_of(&manifest)) {
            state.ahead = Prefetch::new(log.clone(), state.next, None, 1);
            state.log = log;
        }
        Ok(())
    }

    fn hole(&self, position: Position, beyond: Position) -> Error {
        match &self.state {
            Some(state) => state.log.hole(position, beyond),
            None => self.manifests.not_found(),
        }
    }

    /// Protocol section 6: a position without live rows is believed only after a manifest, read later than the
    /// position, still has R below it (schedule 24).
    /// Returns a position up to which everything had landed by then; `None` if the log has moved to another store, where it
    /// is read from R on now.
    async fn check_not_behind(&mut self, position: Position, look: Look) -> Result<Option<Position>> {
        if is_on(Mutant::FollowerBelievesOldManifest) {
            return Ok(Some(Position::ZERO));
        }
        let manifest = self.read_manifest(look).await?;
        if manifest.replay_after >= position {
            return Err(Error::Behind { shard: self.shard.id(), position, replay_after: manifest.replay_after });
        }
        // I1, section 10: a log moves when nothing above R has rows. As long as R is where it was then, and all up to there was
        // read where the log was, what is behind R in the new store is next. Positions of stragglers behind that do not count:
        // others stand at them in the new store, and may be flushed by now.
        let has_moved = self.state.as_ref().is_some_and(|state| !state.log.is_of(&manifest));
        match (has_moved, look) {
            (false, _) => Ok(Some(manifest.landed_up_to())),
            // I2, as schedule 45: by a manifest that came back, it would go back to where the log was once.
            (true, Look::Once) => Box::pin(self.check_not_behind(position, Look::Twice)).await,
            (true, Look::Twice) => {
                let replay_after = manifest.replay_after;
                let read = self.state.as_ref().is_some_and(|state| replay_after <= state.live_up_to);
                let moved_at = manifest.wal_store().map_or(Position::ZERO, |recorded| recorded.after);
                if !read || replay_after > moved_at {
                    return Err(Error::Behind { shard: self.shard.id(), position, replay_after });
                }
                self.start(&manifest).await?;
                Ok(None)
            }
        }
    }
}

fn behind(position: Position) -> Position {
    Position::new(position.get().saturating_add(1))
}
