//! The workload that each plot needs to be met at all.

use std::time::Duration;

use super::super::habits::{Faults, Habits, Kind, POINTS, Plot, Stalls};
use crate::rng::Rng;

const NO_STALLS: Stalls = Stalls { at_poll: 0.0, before: [0.0; POINTS], after: [0.0; POINTS] };

impl Habits {
    /// Few writers, so that a tenure lasts while others commit many versions, and days go by.
    pub(crate) fn forgotten_manifests(self, rng: &mut Rng) -> Self {
        Self {
            plot: Some(Plot::ForgottenManifests),
            kind: Kind::MemTable,
            writers: *rng.pick(&[1, 2, 2, 2, 3]).unwrap_or(&2),
            collectors: 2,
            keepers: 2 + rng.below(2),
            keeper_actions: 150,
            followers: 0,
            rounds: 40,
            burst: 1 + rng.below(3),
            faults: Faults::default(),
            stalls: NO_STALLS,
            held_claims: *rng.pick(&[0.1, 0.9]).unwrap_or(&0.1),
            // Held manifests are too old then to be derived from.
            long_pause: *rng.pick(&[0.2, 0.7]).unwrap_or(&0.2),
            leave: 0.05,
            flush: *rng.pick(&[0.1, 0.7, 0.7]).unwrap_or(&0.7),
            min_age: Duration::ZERO,
            ..self
        }
    }

    /// Long tenures of a wide window, which end with much on the wire.
    pub(crate) fn stragglers(self, rng: &mut Rng) -> Self {
        let (max_in_flight, brief) = *rng.pick(&[(4, 0.1), (8, 0.5), (32, 0.1)]).unwrap_or(&(4, 0.1));
        Self {
            plot: Some(Plot::Stragglers),
            writers: 2,
            collectors: 1 + rng.below(2),
            keepers: 0,
            followers: 1 + rng.below(2),
            rounds: 40,
            burst: 40,
            restart: (10_000, 2_000_000),
            faults: Faults::default(),
            stalls: NO_STALLS,
            max_in_flight,
            long_pause: 0.005,
            brief,
            leave: 0.02,
            flush: 0.7,
            latency: (40, 400),
            min_age: Duration::ZERO,
            plain: 0.0,
            fence_width: 1,
            ..self
        }
    }

    /// Short tenures, most of which end cleanly, and claims that fail half way.
    pub(crate) fn closes(self, rng: &mut Rng) -> Self {
        Self {
            plot: Some(Plot::Closes),
            writers: 3,
            collectors: 1,
            keepers: 0,
            rounds: 60,
            burst: 1 + rng.below(6),
            faults: Faults { unavailable: *rng.pick(&[0.0, 0.02, 0.2]).unwrap_or(&0.0), ..Faults::default() },
            stalls: NO_STALLS,
            restart: (1, 100_000),
            long_pause: 0.02,
            brief: 0.2,
            late_append: 0.6,
            leave: 0.3,
            flush: 0.7,
            partial: 0.0,
            min_age: Duration::ZERO,
            plain: 0.0,
            fence_width: 1,
            ..self
        }
    }

    /// Little happens but checkpoints, so that an expiry is often the next commit.
    pub(crate) fn lifetimes(self) -> Self {
        Self {
            plot: Some(Plot::Lifetimes),
            writers: 1,
            collectors: 1,
            keepers: 1,
            keeper_actions: 100,
            followers: 0,
            rounds: 40,
            burst: 2,
            faults: Faults::default(),
            stalls: NO_STALLS,
            long_pause: 0.5,
            merge: 0.0,
            min_age: Duration::ZERO,
            ..self
        }
    }

    /// Takeovers of a writer with more than one PUT in flight, followers, and flushes up to just behind where a zombie may come.
    pub(crate) fn suspended(self, rng: &mut Rng) -> Self {
        Self {
            plot: Some(Plot::Suspended),
            kind: Kind::MemTable,
            writers: 2,
            collectors: 1,
            followers: 2,
            keepers: 3,
            keeper_actions: 150,
            rounds: 200,
            burst: 8 + rng.below(8),
            faults: Faults::default(),
            stalls: NO_STALLS,
            restart: (3_000, 60_000),
            long_pause: *rng.pick(&[0.02, 0.1]).unwrap_or(&0.1),
            brief: 0.0,
            leave: 0.02,
            merge: 0.0,
            // No third entry that lands behind the two.
            max_in_flight: 2,
            flush: 0.3,
            partial: 0.9,
            latency: (1, 60),
            min_age: Duration::ZERO,
            plain: 0.0,
            fence_width: 1,
            ..self
        }
    }

    /// The log moves between stores, and stores that are not needed any more are wiped.
    pub(crate) fn moving(self, rng: &mut Rng) -> Self {
        let moved = Self {
            moves: 0.7,
            followers: 1,
            keepers: 0,
            rounds: 40,
            burst: 1 + rng.below(4),
            restart: (1, 20_000),
            leave: *rng.pick(&[0.1, 0.4]).unwrap_or(&0.4),
            flush: 0.7,
            partial: 0.0,
            merge: 0.0,
            min_age: Duration::ZERO,
            fence_width: 1,
            ..self
        };
        match rng.chance(0.5) {
            // Nothing of those who are gone may arrive at a store that is wiped: only who is there is excluded.
            true => Self {
                wipes: 0.9,
                // A first sentinel in the table's own store would be a fence for ever.
                moves: 1.0,
                collectors: 1,
                writers: 2,
                restart: (500, 60_000),
                leave: 0.5,
                flush: 0.9,
                brief: 0.1,
                plain: 0.0,
                long_pause: 0.0,
                late_append: 0.0,
                faults: Faults::default(),
                stalls: NO_STALLS,
                plot: Some(Plot::Wipes),
                ..moved
            },
            false => moved,
        }
    }

    /// Takeovers of a writer with a full window, by one that sends one entry after another.
    pub(crate) fn ranges(self) -> Self {
        Self {
            plot: Some(Plot::Ranges),
            writers: 2,
            collectors: 0,
            followers: 0,
            keepers: 0,
            rounds: 40,
            burst: 400,
            faults: Faults::default(),
            stalls: NO_STALLS,
            max_in_flight: 32,
            restart: (10_000, 60_000),
            long_pause: 0.0,
            leave: 0.02,
            flush: 0.01,
            latency: (100, 1_000),
            min_age: Duration::ZERO,
            plain: 0.5,
            fence_width: 8,
            ..self
        }
    }
}
