//! Garbage collection (section 8) and pruning (section 3): what may go, and the collector that works from what it read.

use super::mutant::Mutant;
use super::state::{State, Step};
use super::types::{Entry, Manifest, POSITIONS, Position, Set};
use super::{LogModel, Notes, Turn};

impl LogModel {
    /// The positions of a store that may go as far as `manifest` says. The entry at R may go too: it stays for another
    /// engine's sake only.
    pub(super) fn collectable(&self, s: &State, manifest: &Manifest, store: u8) -> Set {
        let mut set = Set::default();
        for p in 1..=manifest.replay_after {
            let kept = manifest.fences.has(p) && !self.is(Mutant::NoFenceRetention);
            let pinned = (0..2).any(|id| {
                let pin = &s.pins[id as usize];
                manifest.checkpoints & (1 << id) != 0
                    && !self.is(Mutant::PinnedEntriesCollected)
                    && store == pin.store
                    && p > pin.replay_after
                    && p <= pin.tail
            });
            if !kept && !pinned && !s.at(store, p).is_absent() {
                set.add(p);
            }
        }
        set
    }

    /// Section 10: wiping is safe when nothing above R is left, the tenure closed cleanly, and there are no fences.
    pub(super) fn may_wipe(&self, s: &State) -> bool {
        let m = s.newest();
        let closed = m.epoch > 0 && m.closed_cleanly_epoch == m.epoch;
        let flushed = s.at(m.store, m.replay_after + 1).is_absent();
        let there = s.wal[m.store as usize].iter().any(|e| !e.is_absent());
        match () {
            () if self.is(Mutant::WipeDespiteFences) => there && closed && flushed,
            () if self.is(Mutant::WipeWithoutClose) => there && flushed && m.fences.is_empty(),
            () => there && closed && flushed && m.fences.is_empty(),
        }
    }
}

impl<N: Notes> Turn<'_, N> {
    pub(super) fn delete(&mut self, store: u8, position: Position, who: &str) {
        let found = self.s.at(store, position);
        self.notes.say(|| format!("{who} DELETE wal/{position} ({found:?})"));
        self.s.put(store, position, Entry::ABSENT);
    }

    pub(super) fn prune(&mut self, version: u8) {
        self.notes.say(|| format!("GC DELETE manifest/{version}"));
        self.s.delete_manifest(version);
        if self.s.hint == version {
            self.s.hint = 0;
        }
    }

    /// LIST, GET, and LIST again: only then is a collector sure.
    pub(super) fn collect(&mut self) {
        let newest = self.s.newest().version;
        let unsure = self.model.is(Mutant::CollectorLooksOnce);
        match self.s.collector.step {
            Step::List => {
                let version = self.s.collector.manifest.version;
                let found = self.s.manifest(version);
                self.notes.say(|| match found.version {
                    0 => format!("collector GET manifest/{version}: absent"),
                    _ => format!("collector GET manifest/{version}: {found:?}"),
                });
                let collector = &mut self.s.collector;
                collector.manifest = found;
                collector.step = match (found.version, unsure) {
                    (0, _) => Step::Idle,
                    (_, true) => Step::Put,
                    (_, false) => Step::Read(version),
                };
            }
            Step::Read(version) => {
                self.notes.say(|| format!("collector LIST manifest/: {newest} is the newest"));
                self.s.collector.step = if newest == version { Step::Put } else { Step::Idle };
            }
            _ => {
                self.notes.say(|| format!("collector LIST manifest/: {newest} is the newest"));
                let collector = &mut self.s.collector;
                collector.runs_left -= 1;
                collector.manifest = Manifest { version: newest, ..Manifest::default() };
                collector.step = Step::List;
            }
        }
        if self.s.collector.step == Step::Idle {
            self.s.collector.manifest = Manifest::default();
        }
    }

    /// The operator looks, and wipes later; nobody opens the shard meanwhile, but who has it open goes on.
    pub(super) fn wipe(&mut self) {
        let newest = *self.s.newest();
        if self.s.wiping == 0 {
            self.notes.say(|| format!("the operator finds that the WAL store may be wiped ({newest:?})"));
            self.s.wiping = newest.epoch;
            return;
        }
        self.notes.say(|| "the operator wipes the WAL store".to_owned());
        self.s.wiping = 0;
        self.s.wal[newest.store as usize] = [Entry::ABSENT; POSITIONS];
    }
}
