//! What the commits of writers say (sections 4, 5, 7 and 10), and what a writer makes of one that is certain.

use super::mutant::Mutant;
use super::state::{Change, Phase, State};
use super::types::{Manifest, Set};
use super::{LogModel, Notes, OTHERS, Turn};

impl LogModel {
    /// The manifest that a change makes of `base`; `None` if it does not apply. Never looks at anything but `base` and
    /// what the actor knows.
    pub(super) fn derive(&self, s: &State, actor: u8, change: Change, base: &Manifest) -> Option<Manifest> {
        let mut next = *base;
        if actor < OTHERS {
            let me = &s.writers[actor as usize];
            let unchecked = match change {
                Change::Record => self.is(Mutant::RecordWithoutCheck),
                Change::Flush(_) => self.is(Mutant::NoEpochCheckAtPublish) || self.is(Mutant::TruncateByReplaced),
                _ => false,
            };
            if Self::change_is_owned(change) && !base.is_owned_by(me.epoch, actor) && !unchecked {
                return None;
            }
            match change {
                Change::Claim => (next.epoch, next.writer) = (base.epoch + 1, actor),
                Change::Record => {
                    next.fences = next.fences.union(me.fences);
                }
                Change::Flush(p) => {
                    let (rows, epoch) = self.live_up_to(me, actor, p);
                    rows.into_iter().for_each(|row| next.sstables.push(row));
                    next.replay_after = p;
                    next.replay_after_epoch = match self.is(Mutant::OwnEpochAtPartialFlush) {
                        true => me.epoch,
                        false => next.replay_after_epoch.max(epoch),
                    };
                    next.fences = next.fences.union(me.fences);
                }
                Change::Close => {
                    next.closed_cleanly_epoch = me.epoch;
                    next.fences = next.fences.union(me.fences);
                    if self.is(Mutant::CloseMovesReplayAfter) {
                        (next.replay_after, next.replay_after_epoch) = (me.acknowledged, me.epoch);
                    }
                }
                Change::Move(store) => {
                    next.store = store;
                    let h = if me.phase == Phase::Fencing { me.next - 1 } else { me.sentinel };
                    next.replay_after = next.replay_after.max(h);
                    next.replay_after_epoch = next.replay_after_epoch.max(me.top);
                }
                Change::Touch | Change::Nothing => {}
            }
        }
        next.version = base.version + 1;
        next.parent = base.commit;
        Some(next)
    }
}

impl<N: Notes> Turn<'_, N> {
    /// What a writer makes of a commit that is certain.
    pub(super) fn committed(&mut self, w: u8, change: Change, base: &Manifest, next: &Manifest) {
        let any_clean = self.model.is(Mutant::CleanCloseOfAny);
        let fresh_is_closed = self.model.config.wipes;
        let sentinels_first = self.model.is(Mutant::StoreChangedWithoutSentinel);
        let me = self.writer_mut(w);
        match change {
            Change::Claim => {
                me.phase = Phase::Reading;
                me.epoch = next.epoch;
                me.after_clean_close = any_clean && base.closed_cleanly_epoch > 0
                    || base.closed_cleanly_epoch == base.epoch && (base.epoch > 0 || fresh_is_closed);
                (me.store, me.next, me.top) = (next.store, next.replay_after + 1, next.replay_after_epoch);
                me.replay_after = next.replay_after;
            }
            Change::Record => self.recorded(w),
            Change::Flush(p) => {
                (me.replay_after, me.flushes_left, me.fences) = (p, me.flushes_left.saturating_sub(1), Set::default());
                me.log[..=p as usize].fill(Default::default());
            }
            Change::Close => {
                me.fences = Set::default();
                if !self.model.is(Mutant::AppendAfterClose) {
                    self.writer_mut(w).phase = Phase::Closed;
                }
            }
            Change::Move(store) => {
                me.store = store;
                if me.phase == Phase::Fencing && sentinels_first {
                    (me.settled, me.must_get) = (Set::default(), Set::default());
                }
                me.replay_after = me.replay_after.max(next.replay_after);
                me.log[..=next.replay_after as usize].fill(Default::default());
            }
            Change::Touch | Change::Nothing => {}
        }
    }
}
