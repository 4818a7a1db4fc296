//! A reader without a tenure (section 6): it returns rows in order, and looks at the newest manifest, after its GET,
//! before it believes a position that has no live rows.

use super::mutant::Mutant;
use super::state::Step;
use super::types::{Manifest, POSITIONS};
use super::{Notes, Turn};

impl<N: Notes> Turn<'_, N> {
    /// Begins, or reads the next position.
    pub(super) fn follow(&mut self) -> bool {
        if !self.s.follower.started {
            self.look();
            return true;
        }
        let follower = &self.s.follower;
        let (p, top) = (follower.next, follower.top);
        if p as usize >= POSITIONS {
            self.model.out_of_room();
            return false;
        }
        let entry = self.s.at(follower.store, p);
        self.notes.say(|| format!("follower GET wal/{p}: {entry:?}"));
        let dead = entry.epoch() < top && !self.model.is(Mutant::NoDeadEntryRule);
        let follower = &mut self.s.follower;
        if entry.is_absent() || entry.is_sentinel() || dead {
            (follower.doubts, follower.read) = (true, entry);
            if self.model.is(Mutant::FollowerBelievesOldManifest) {
                self.believe();
            }
            return true;
        }
        follower.top = top.max(entry.epoch());
        follower.next += 1;
        entry.rows().for_each(|row| follower.returned.push(row));
        true
    }

    /// Before it starts, and after a position without live rows. In the steps that the store sees where manifests are
    /// pruned: then what it reads may not be what it listed.
    pub(super) fn look(&mut self) {
        let newest = *self.s.newest();
        if !self.model.config.steps {
            self.notes.say(|| format!("follower LIST, GET manifest/{}: R is {}", newest.version, newest.replay_after));
            return self.has_read(&newest);
        }
        match self.s.follower.step {
            Step::Read(version) => {
                let found = self.s.manifest(version);
                self.s.follower.step = Step::Idle;
                match found.version {
                    0 => self.notes.say(|| format!("follower GET manifest/{version}: absent; lists again")),
                    _ => {
                        self.notes.say(|| format!("follower GET manifest/{version}: {found:?}"));
                        self.has_read(&found);
                    }
                }
            }
            Step::LookAgain(version) => {
                self.notes.say(|| format!("follower LIST manifest/: {} is the newest", newest.version));
                self.s.follower.step = Step::Idle;
                if newest.version == version {
                    self.conclude();
                }
            }
            _ => {
                self.notes.say(|| format!("follower LIST manifest/: {} is the newest", newest.version));
                self.s.follower.step = Step::Read(newest.version);
            }
        }
    }

    fn has_read(&mut self, manifest: &Manifest) {
        if !self.s.follower.started {
            return self.start_following(manifest);
        }
        let follower = &mut self.s.follower;
        follower.passed = manifest.replay_after >= follower.next || manifest.store != follower.store;
        // An end that is none is looked at again anyway.
        let is_sure = !self.model.config.steps || follower.read.is_absent() || self.model.is(Mutant::FollowerLooksOnce);
        match is_sure {
            true => self.conclude(),
            false => self.s.follower.step = Step::LookAgain(manifest.version),
        }
    }

    fn conclude(&mut self) {
        match std::mem::take(&mut self.s.follower.passed) {
            true => {
                let follower = &mut self.s.follower;
                (follower.started, follower.doubts, follower.read) = (false, false, Default::default());
                if !self.model.config.steps {
                    let newest = *self.s.newest();
                    self.start_following(&newest);
                }
            }
            false => self.believe(),
        }
    }

    fn believe(&mut self) {
        let follower = &mut self.s.follower;
        if !follower.read.is_absent() {
            follower.top = follower.top.max(follower.read.epoch());
            follower.next += 1;
        }
        (follower.doubts, follower.read) = (false, Default::default());
    }

    fn start_following(&mut self, manifest: &Manifest) {
        self.notes.say(|| format!("follower starts from manifest/{} ({manifest:?})", manifest.version));
        let follower = &mut self.s.follower;
        (follower.started, follower.doubts, follower.read) = (true, false, Default::default());
        follower.store = manifest.store;
        (follower.next, follower.top) = (manifest.replay_after + 1, manifest.replay_after_epoch);
        // What it returned before is in the SSTables by now; it goes on behind that.
        follower.returned = manifest.sstables;
    }
}
