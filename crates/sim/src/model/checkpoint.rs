//! Checkpoints (section 9): the object first, then the commit that derives from exactly the pinned version; refreshing,
//! expiry, and the collection of objects that nobody lists.

use super::commit::commit_id;
use super::mutant::Mutant;
use super::state::{Pin, State};
use super::types::{Manifest, Rows};
use super::{KEEPER, LogModel, Notes, Turn};

impl LogModel {
    pub(super) fn is_listed(&self, s: &State, id: u8) -> bool {
        s.newest().checkpoints & (1 << id) != 0
    }

    /// Whether the lifetime that the newest manifest states is over.
    pub(super) fn has_expired(&self, s: &State, id: u8) -> bool {
        s.clock >= deadline(s.newest(), id)
    }

    /// Whether the collector takes it for expired: its clock may be one tick ahead.
    pub(super) fn seems_expired(&self, s: &State, id: u8) -> bool {
        s.clock + 1 >= deadline(s.newest(), id)
    }

    /// An unlisted object may go once the one version that could list it exists and does not.
    pub(super) fn may_delete_pin(&self, s: &State, id: u8) -> bool {
        let early = self.is(Mutant::CheckpointObjectCollectedEarly);
        let settled = s.newest().version > s.pins[id as usize].version || early;
        let first = self.is(Mutant::ExpiryDeletesFirst) && s.keeper.expiring.has(id);
        (settled && !self.is_listed(s, id)) || first
    }

    /// The rows of a checkpoint as its reader finds them; `None` if an object is missing.
    pub(super) fn rows_of_pin(&self, s: &State, pin: &Pin) -> Option<Rows> {
        if !pin.exists {
            return None;
        }
        let mut rows = pin.sstables;
        let (more, end) = self.read_log(s, pin.store, pin.replay_after, pin.replay_after_epoch, pin.tail);
        more.iter().for_each(|row| rows.push(row));
        (end == pin.tail).then_some(rows)
    }
}

/// The time up to which a manifest promises to keep a checkpoint.
fn deadline(manifest: &Manifest, id: u8) -> u8 {
    2 + 2 * (manifest.refreshed >> id & 1)
}

impl<N: Notes> Turn<'_, N> {
    /// A commit of the keeper or of the collector, on the newest manifest. The steps of committing are looked at
    /// elsewhere; the ids need not differ from each other, for nothing is pruned here.
    fn commit_checkpoints(&mut self, change: impl FnOnce(&mut Manifest)) {
        let base = *self.s.newest();
        let mut next = Manifest { version: base.version + 1, parent: base.commit, ..base };
        change(&mut next);
        next.commit = commit_id(KEEPER, next.version & 7);
        self.s.manifests[0] = next;
    }

    /// Writes the object: the newest manifest, and the tail found by reading.
    pub(super) fn pin(&mut self, id: u8) {
        let m = *self.s.newest();
        let (_, tail) = self.model.read_log(self.s, m.store, m.replay_after, m.replay_after_epoch, u8::MAX);
        self.notes.say(|| format!("checkpoint {id}: PUT its object, pins manifest/{} ({m:?}), tail {tail}", m.version));
        self.s.keeper.made += 1;
        self.s.pins[id as usize] = Pin {
            exists: true,
            commit: m.commit,
            version: m.version,
            store: m.store,
            replay_after: m.replay_after,
            replay_after_epoch: m.replay_after_epoch,
            tail,
            sstables: m.sstables,
            must_have: self.s.acknowledged,
            ..Pin::default()
        };
    }

    pub(super) fn list(&mut self, id: u8) {
        let pin = self.s.pins[id as usize];
        let newest = *self.s.newest();
        let same = newest.version == pin.version && newest.commit == pin.commit;
        if !same && !self.model.is(Mutant::CheckpointNotOfItsVersion) {
            self.notes.say(|| format!("checkpoint {id}: manifest/{} is taken, the attempt is over", pin.version + 1));
            // A fresh attempt has a fresh id.
            self.s.pins[id as usize].version = 0;
            self.forget_if_gone(id);
            return;
        }
        self.commit_checkpoints(|m| m.checkpoints |= 1 << id);
        let moment = self.model.rows_of_pin(self.s, &pin).unwrap_or_default();
        let it = &mut self.s.pins[id as usize];
        (it.listed, it.moment, it.promised) = (true, moment, 2);
        self.notes.say(|| format!("checkpoint {id}: listed by manifest/{}", newest.version + 1));
    }

    pub(super) fn tick(&mut self) {
        self.s.clock += 1;
        self.notes.say(|| "time passes".to_owned());
    }

    pub(super) fn refresh(&mut self) {
        let alive = self.model.is_listed(self.s, 0) && !self.model.has_expired(self.s, 0);
        let keeper = &mut self.s.keeper;
        (keeper.refreshing, keeper.refreshed) = (false, true);
        if !alive && !self.model.is(Mutant::RefreshWithoutLook) {
            self.notes.say(|| "refreshing fails: checkpoint 0 is not alive any more".to_owned());
            return;
        }
        self.commit_checkpoints(|m| {
            m.checkpoints |= 1;
            m.refreshed |= 1;
        });
        self.s.pins[0].promised = 4;
        self.notes.say(|| "checkpoint 0 is refreshed".to_owned());
    }

    pub(super) fn unlist(&mut self, id: u8) {
        self.s.keeper.expiring = self.s.keeper.expiring.minus(super::types::Set::one(id));
        let blindly = self.model.is(Mutant::ExpiryWithoutLook);
        let may_go = self.model.is_listed(self.s, id) && self.model.seems_expired(self.s, id);
        if !(blindly || may_go) {
            self.notes.say(|| format!("collector leaves checkpoint {id}: it was refreshed"));
            return;
        }
        self.commit_checkpoints(|m| m.checkpoints &= !(1 << id));
        self.notes.say(|| format!("collector takes checkpoint {id} off the list"));
    }

    pub(super) fn delete_pin(&mut self, id: u8) {
        self.notes.say(|| format!("collector DELETE the object of checkpoint {id}"));
        self.s.pins[id as usize].exists = false;
        self.forget_if_gone(id);
    }

    /// Nobody reads the object of an attempt that is over.
    fn forget_if_gone(&mut self, id: u8) {
        let pin = &mut self.s.pins[id as usize];
        if !pin.exists && pin.version == 0 {
            *pin = Pin::default();
        }
    }
}
