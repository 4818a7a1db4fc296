//! The protocol as a model for the `stateright` checker: every interleaving of a few processes over a store with all
//! its habits, within bounds. `docs/model.md` says what is modelled, what is left out, and what came of it.
//!
//! The rules are in `writer`, `change`, `commit`, `collect`, `follow` and `checkpoint`; what must hold is in `judge`, and
//! knows none of them. Each rule can be turned off ([`Mutant`]), and then the checker has to find a schedule that breaks
//! an invariant.

// Indexes come from enumerations over the same arrays; a panic here is a failed check, never a wrong one.
#![allow(clippy::indexing_slicing)]

mod action;
mod change;
mod check;
mod checkpoint;
mod collect;
mod commit;
mod config;
mod explore;
mod follow;
mod judge;
mod mutant;
mod reached;
mod state;
mod types;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub use action::{Action, Answer};
pub use check::{Report, Schedule, check};
pub use config::{Config, QUIET, Start};
pub use explore::{explore, tables};
pub use judge::Invariant;
pub use mutant::Mutant;
pub use reached::Fact;
pub use state::{Faults, State};

use state::{Append, Change, Commit, Committer, LatePut, Phase, Writer};
use types::{Entry, Manifest};

/// The first actor that commits without an epoch; actors below are writers.
const OTHERS: u8 = 3;
/// Who commits for checkpoints.
const KEEPER: u8 = 7;
/// The `commit_id` of the first manifest.
const FIRST_COMMIT: u8 = 63;

/// The protocol in a bounded world, perhaps with a rule turned off.
#[derive(Clone, Debug)]
pub struct LogModel {
    config: Config,
    mutant: Option<Mutant>,
    seen: Arc<AtomicU32>,
}

/// Takes lines that tell what happened. Exploring keeps none.
trait Notes {
    fn say(&mut self, line: impl FnOnce() -> String);
}

impl Notes for () {
    fn say(&mut self, _: impl FnOnce() -> String) {}
}

impl Notes for Vec<String> {
    fn say(&mut self, line: impl FnOnce() -> String) {
        self.push(line());
    }
}

/// One step under way.
struct Turn<'a, N> {
    model: &'a LogModel,
    s: &'a mut State,
    notes: &'a mut N,
}

impl LogModel {
    /// A world of `config`, in which `mutant` is turned off.
    pub fn new(config: Config, mutant: Option<Mutant>) -> Self {
        Self { config, mutant, seen: Arc::default() }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The model's arrays were too small: an exploration that was cut off here proves nothing.
    fn out_of_room(&self) {
        self.seen.fetch_or(check::OUT_OF_ROOM, Ordering::Relaxed);
    }

    fn first_state(&self) -> State {
        let first = Manifest { version: 1, commit: FIRST_COMMIT, ..Manifest::default() };
        let mut manifests = [Manifest::default(); types::VERSIONS];
        manifests[0] = first;
        let writer = |n: usize| Writer { flushes_left: self.config.flushes[n], ..Writer::default() };
        let other = |n: usize| Committer { commits_left: self.config.others[n], commit: Commit::default() };
        let mut s = State {
            wal: [[Entry::ABSENT; types::POSITIONS]; 2],
            manifests,
            late: Default::default(),
            late_manifest: Manifest::default(),
            pins: Default::default(),
            writers: [writer(0), writer(1), writer(2)],
            others: [other(0), other(1)],
            collector: state::Collector { runs_left: self.config.collector_runs, ..Default::default() },
            follower: Default::default(),
            keeper: Default::default(),
            faults: self.config.faults,
            acknowledged: Default::default(),
            recorded_epoch: 0,
            lineage: 1 << FIRST_COMMIT,
            hint: u8::from(self.config.steps),
            wiping: 0,
            clock: 0,
            broken: 0,
        };
        match self.config.start {
            Start::Empty => {}
            Start::Veteran => self.begin_with_veteran(&mut s),
            Start::Dead(rows) => self.begin_with_dead(&mut s, rows),
            Start::Zombie(rows) => {
                self.begin_with_dead(&mut s, rows);
                (s.manifests[0].epoch, s.manifests[0].writer) = (2, 1);
                (s.writers[1].phase, s.writers[1].epoch) = (Phase::Stopped, 2);
                s.late[0] = LatePut { entry: Entry::sentinel(2, 1), store: 0, position: 2 };
                s.late.sort_unstable();
            }
        }
        s
    }

    /// That writer is dead, with rows above R.
    fn begin_with_dead(&self, s: &mut State, rows: u8) {
        self.begin_with_veteran(s);
        for n in 0..rows {
            let position = 2 + n;
            s.put(0, position, Entry::new(1, 0, 1 << n));
            s.acknowledged.add(types::row_number(0, n));
            s.writers[0].appends[n as usize] =
                Append { progress: state::Progress::Acknowledged, position, ..Append::default() };
        }
        s.writers[0].phase = Phase::Stopped;
        s.writers[0].forget();
    }

    /// The first writer has been at work for long: what it wrote is flushed.
    fn begin_with_veteran(&self, s: &mut State) {
        let manifest = &mut s.manifests[0];
        (manifest.epoch, manifest.replay_after, manifest.replay_after_epoch) = (1, 1, 1);
        manifest.fences.add(1);
        s.wal[0][1] = Entry::sentinel(1, 0);
        s.recorded_epoch = 1;
        let veteran = &mut s.writers[0];
        (veteran.phase, veteran.epoch, veteran.top) = (Phase::Open, 1, 1);
        (veteran.sentinel, veteran.acknowledged, veteran.replay_after, veteran.next) = (1, 1, 1, 2);
        veteran.width = 1;
        if self.config.steps {
            veteran.commit.base = s.manifests[0];
        }
    }

    /// Takes a step. `None` if it is not possible after all, or would leave the model's room.
    fn step(&self, before: &State, action: Action, notes: &mut impl Notes) -> Option<State> {
        let mut s = before.clone();
        let mut turn = Turn { model: self, s: &mut s, notes };
        if !turn.take_step(action) {
            return None;
        }
        if self.config.steps {
            s.lineage |= 1 << s.newest().commit;
        }
        if s.broken == 0
            && let Some(invariant) = self.judge(before, &s, action)
        {
            s.broken = invariant as u8;
        }
        self.note_reached(&s);
        for writer in &mut s.writers {
            writer.forget();
        }
        Some(s)
    }
}

impl Writer {
    /// A stopped or closed writer's memory makes no difference any more, except for what is on its way.
    fn forget(&mut self) {
        if !matches!(self.phase, Phase::Stopped | Phase::Closed) {
            return;
        }
        let appends = self.appends;
        let on_its_way = |a: &Append| matches!(a.progress, state::Progress::Sent | state::Progress::MustGet);
        if self.phase == Phase::Stopped && !appends.iter().any(on_its_way) {
            *self = Self { phase: self.phase, epoch: self.epoch, appends, ..Self::default() };
        }
    }
}

impl<N: Notes> Turn<'_, N> {
    fn broke(&mut self, invariant: Invariant) {
        if self.s.broken == 0 {
            self.s.broken = invariant as u8;
        }
    }

    fn take_step(&mut self, action: Action) -> bool {
        match action {
            Action::Claim(w) => {
                self.writer_mut(w).phase = Phase::Claiming;
                return self.begin(w, Change::Claim, false);
            }
            Action::Read(w) => self.read(w),
            Action::PutSentinel(w, p, answer) => return self.put_sentinel(w, p, answer),
            Action::GetSentinel(w, p) => self.get_sentinel(w, p),
            Action::Record(w, held) => return !self.check_late(w) || self.begin(w, Change::Record, held),
            Action::Send(w, n, answer) => return self.send(w, n, answer),
            Action::Get(w, n) => self.get(w, n),
            Action::Flush(w, p, held) => return self.begin(w, Change::Flush(p), held),
            Action::Close(w) => return self.begin(w, Change::Close, true),
            Action::Move(w) => {
                let store = self.model.config.stores[w as usize];
                return self.begin(w, Change::Move(store), true);
            }
            Action::Touch(other, held) => return self.begin(OTHERS + other, Change::Touch, held),
            Action::Commit(actor, answer) => return self.advance(actor, answer),
            Action::Land(n) => {
                let put = self.s.late[n as usize];
                let free = self.s.at(put.store, put.position).is_absent();
                self.notes.say(|| {
                    let what = if free { "lands" } else { "arrives too late" };
                    format!("the late PUT wal/{} ({:?}) {what}", put.position, put.entry)
                });
                if free {
                    self.s.put(put.store, put.position, put.entry);
                }
                self.s.late[n as usize] = Default::default();
                self.s.late.sort_unstable();
            }
            Action::LandManifest => {
                let late = std::mem::take(&mut self.s.late_manifest);
                let free = self.s.manifest(late.version).version == 0;
                self.notes.say(|| {
                    let what = if free { "lands" } else { "arrives too late" };
                    format!("the late PUT manifest/{} ({late:?}) {what}", late.version)
                });
                if free && !self.s.create_manifest(late) {
                    self.model.out_of_room();
                    return false;
                }
            }
            Action::Delete(store, p) => self.delete(store, p, "GC"),
            Action::Prune(version) => self.prune(version),
            Action::Collect => self.collect(),
            Action::CollectOne(store, p) => self.delete(store, p, "collector"),
            Action::Wipe => self.wipe(),
            Action::Follow => return self.follow(),
            Action::Look => self.look(),
            Action::Pin(id) => self.pin(id),
            Action::List(id) => self.list(id),
            Action::Tick => self.tick(),
            Action::SeeAlive => self.s.keeper.refreshing = true,
            Action::Refresh => self.refresh(),
            Action::SeeExpired(id) => self.s.keeper.expiring.add(id),
            Action::Unlist(id) => self.unlist(id),
            Action::DeletePin(id) => self.delete_pin(id),
        }
        true
    }
}
