//! What an exploration has to reach. A run that finds nothing says something only if the interesting things happened.

use std::sync::atomic::Ordering;

use super::LogModel;
use super::state::{Phase, Progress, State, Step};
use super::types::{Entry, POSITIONS, ROWS};

macro_rules! facts {
    ($($variant:ident, $name:literal, $seen:expr;)*) => {
        /// Something that happens on the way.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fact {
            $(#[doc = $name] $variant,)*
        }

        impl Fact {
            /// As reports name it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            fn is_seen(self, model: &LogModel, s: &State) -> bool {
                // Function pointers, so that each reads like a line of a table.
                let seen: fn(&LogModel, &State) -> bool = match self { $(Self::$variant => $seen,)* };
                seen(model, s)
            }
        }
    };
}

facts! {
    LaterRow, "a row of the last claimant is acknowledged", |model, s| {
        let last = model.config.rows.len() - 1;
        (0..ROWS).any(|n| s.acknowledged.has((last * ROWS + n) as u8))
    };
    EveryWriterAcknowledged, "every claimant has acknowledged a row", |model, s| {
        (0..model.config.rows.len()).all(|w| (0..ROWS).any(|n| s.acknowledged.has((w * ROWS + n) as u8)))
    };
    EntryCollected, "an entry is collected", |_, s| {
        let newest = s.newest();
        (1..=newest.replay_after).any(|p| s.at(newest.store, p).is_absent())
    };
    FenceKept, "a fence is kept where all around it is collected", |_, s| {
        let newest = s.newest();
        newest.fences.iter().any(|p| p > 1 && p < newest.replay_after && s.at(newest.store, p - 1).is_absent())
    };
    DeadEntry, "a dead entry stands in the log", |_, s| {
        let log = s.wal[s.newest().store as usize];
        log.windows(2).any(|two| !two[1].is_absent() && two[1].epoch() < two[0].epoch())
    };
    DeadPassed, "a tenure passed over a dead position", |_, s| {
        s.writers.iter().any(|w| {
            w.phase == Phase::Open
                && w.appends[0].progress == Progress::Acknowledged
                && w.appends[0].position > w.sentinel + 1
        })
    };
    PartialFlush, "a replay was partly flushed", |_, s| {
        s.writers.iter().any(|w| {
            w.phase == Phase::Open && w.replay_after + 1 < w.sentinel && w.log[w.sentinel as usize] != Entry::ABSENT
                && s.newest().replay_after == w.replay_after && w.replay_after > 0 && w.flushes_left == 0
        })
    };
    SeveralSentinels, "sentinels stand side by side", |_, s| {
        s.writers.iter().any(|w| w.width > 1 && w.phase == Phase::Open)
    };
    Pruned, "a manifest is pruned", |_, s| s.manifest(1).version == 0;
    CameBack, "a manifest came back", |_, s| {
        s.manifests.iter().any(|m| m.version > 0 && s.lineage & (1 << m.commit) == 0)
    };
    UnknownCommit, "a writer lost its lineage", |_, s| {
        s.writers.iter().any(|w| w.phase == Phase::Stopped && w.epoch == 0)
    };
    PinnedBelowR, "a checkpoint keeps entries below R", |model, s| {
        let newest = s.newest();
        (0..2).any(|id| {
            let pin = &s.pins[id as usize];
            model.is_listed(s, id) && newest.replay_after > pin.replay_after && pin.tail > pin.replay_after
        })
    };
    Refreshed, "a checkpoint was refreshed and outlived its first lifetime", |model, s| {
        model.is_listed(s, 0) && s.clock >= 2 && s.pins[0].promised == 4
    };
    Expired, "an expired checkpoint is gone", |_, s| s.pins[0].listed && !s.pins[0].exists;
    Orphan, "the object of a failed attempt is gone", |_, s| s.keeper.made == 2 && s.pins[0] == Default::default();
    Moved, "a row is acknowledged in the other store", |_, s| {
        s.wal[1].iter().any(|e| e.rows().any(|row| s.acknowledged.has(row)))
    };
    MovedBack, "the log moved there and back", |_, s| s.newest().store == 0 && !s.at(1, POSITIONS as u8 - 1).is_absent()
        || s.newest().store == 0 && s.wal[1].iter().any(|e| !e.is_absent());
    Closed, "a tenure closed cleanly and the next did not keep its sentinel", |_, s| {
        s.writers.iter().any(|w| {
            w.phase == Phase::Open && w.epoch > 1 && w.after_clean_close && !s.newest().fences.has(w.sentinel)
        })
    };
    Wiped, "a store was wiped and written to again", |_, s| {
        let newest = s.newest();
        newest.epoch > 1 && newest.fences.is_empty() && s.acknowledged.has(ROWS as u8)
            && (1..3).all(|p| s.at(0, p).is_absent())
    };
    FollowerRestarted, "a follower found R ahead of it and started again", |_, s| {
        s.follower.started && s.follower.returned.len() > 1 && s.follower.returned == s.newest().sstables
    };
    FollowerDoubts, "a follower met bytes in a hole", |_, s| {
        s.follower.doubts && !s.follower.read.is_absent() && s.newest().replay_after >= s.follower.next
            && !s.newest().fences.has(s.follower.next)
    };
    FollowerDeceived, "a follower read a manifest that came back", |_, s| match s.follower.step {
        Step::LookAgain(version) => s.lineage & (1 << s.manifest(version).commit) == 0,
        _ => false,
    };
    Conflict, "a 409 came with nothing landed", |model, s| s.faults.conflict < model.config.faults.conflict;
    LostAck, "an answer was lost", |model, s| s.faults.lost_ack < model.config.faults.lost_ack;
    Late, "a PUT is still on its way", |model, s| {
        s.faults.late < model.config.faults.late
            && (s.late.iter().any(|l| !l.entry.is_absent()) || s.late_manifest.version > 0)
    };
}

impl LogModel {
    /// Notes which of the facts that are still to be seen `s` shows.
    pub(super) fn note_reached(&self, s: &State) {
        let seen = self.seen.load(Ordering::Relaxed);
        for (n, fact) in self.config.reaches.iter().enumerate() {
            if seen & (1 << n) == 0 && fact.is_seen(self, s) {
                self.seen.fetch_or(1 << n, Ordering::Relaxed);
            }
        }
    }
}
