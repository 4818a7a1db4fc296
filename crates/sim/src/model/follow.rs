//! A reader without a tenure (section 6): it returns rows in order, and looks at the newest manifest, after its GET,
//! before it believes a position that has no live rows.

use super::mutant::Mutant;
use super::types::POSITIONS;
use super::{Notes, Turn};

impl<N: Notes> Turn<'_, N> {
    /// Begins, or reads the next position.
    pub(super) fn follow(&mut self) -> bool {
        if !self.s.follower.started {
            self.start_following();
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

    /// After a position without live rows.
    pub(super) fn look(&mut self) {
        let newest = *self.s.newest();
        let follower = &self.s.follower;
        let passed = newest.replay_after >= follower.next || newest.store != follower.store;
        self.notes.say(|| format!("follower LIST, GET manifest/{}: R is {}", newest.version, newest.replay_after));
        match passed {
            true => self.start_following(),
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

    fn start_following(&mut self) {
        let newest = *self.s.newest();
        self.notes.say(|| format!("follower starts from manifest/{} ({newest:?})", newest.version));
        let follower = &mut self.s.follower;
        (follower.started, follower.doubts, follower.read) = (true, false, Default::default());
        follower.store = newest.store;
        (follower.next, follower.top) = (newest.replay_after + 1, newest.replay_after_epoch);
        // What it returned before is in the SSTables by now; it goes on behind that.
        follower.returned = newest.sstables;
    }
}
