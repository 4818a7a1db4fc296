//! What a seed makes of a run: the shape of the workload, the habits of the store, and where processes like to stall.
//!
//! Each run draws its own probabilities, most of them zero or high ("swarm testing"): deep schedules need a few rare
//! things often, which an even mixture of everything never gives.

use std::time::Duration;

use crate::rng::Rng;

/// What an SSTable is to the shard of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Rows go to SSTables, which raise R.
    MemTable,
    /// Only the user's truncations raise R.
    WalOnly,
}

/// What an adversary aims at, who knows what is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plot {
    /// Versions that were pruned come back while somebody reads or writes just there.
    ForgottenManifests,
    /// What a dead writer has on the wire lands in front of its successor's entries.
    Stragglers,
    /// An entry's PUT is held back until its position was collected, between takeovers that follow on clean closes.
    Closes,
    /// A commit of a checkpoint's keeper is held back until a collector has begun to act on the expiry.
    Lifetimes,
    /// A follower's machine is suspended between two requests, in front of a zombie's sentinel.
    Suspended,
    /// A writer goes on between the sentinels of its successor.
    Ranges,
    /// A writer stalls until a WAL store was wiped.
    Wipes,
}

/// Requests that stalls and deaths are drawn for apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    CreateEntry,
    CreateManifest,
    ListManifests,
    GetManifest,
    GetEntry,
    ListEntries,
    Delete,
    SsTable,
    Other,
}

pub(crate) const POINTS: usize = 9;

/// Probabilities of what happens to one request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) lost_ack: f64,
    pub(crate) lost_ack_as_exists: f64,
    pub(crate) conflict_409: f64,
    /// A timeout now; it lands later.
    pub(crate) late: f64,
    /// It lands and is answered, and a copy that the client library sent as well lands later.
    pub(crate) echo: f64,
    pub(crate) unavailable: f64,
    pub(crate) slow: f64,
    /// No answer for a long time; it lands then.
    pub(crate) hang: f64,
    /// Begins a time in which everything of the process is refused.
    pub(crate) throttle: f64,
    /// The process dies before or after the request.
    pub(crate) death: f64,
}

/// How long stalls and late landings take: weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    pub(crate) short: u64,
    pub(crate) minutes: u64,
    pub(crate) days: u64,
    /// Until others have claimed, published, collected or pruned.
    pub(crate) until_event: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Stalls {
    pub(crate) at_poll: f64,
    pub(crate) before: [f64; POINTS],
    pub(crate) after: [f64; POINTS],
}

/// Everything that a seed decides in advance.
#[derive(Debug, Clone)]
pub(crate) struct Habits {
    pub(crate) kind: Kind,
    pub(crate) plot: Option<Plot>,
    pub(crate) writers: u64,
    pub(crate) collectors: u64,
    pub(crate) followers: u64,
    /// Processes that make checkpoints.
    pub(crate) keepers: u64,
    /// What one of them does in a run.
    pub(crate) keeper_actions: u32,
    /// Of a collector to merge a generation into the base first.
    pub(crate) merge: f64,
    /// Sentinels that a claim begins with.
    pub(crate) fence_width: usize,
    /// Rounds of appends, flushes, … of all writers together.
    pub(crate) rounds: u64,
    pub(crate) faults: Faults,
    pub(crate) stalls: Stalls,
    pub(crate) lengths: Lengths,
    pub(crate) max_in_flight: usize,
    /// Milliseconds from the end of a process to the next in its place.
    pub(crate) restart: (u64, u64),
    /// Of a claim's manifest to be held back by the adversary.
    pub(crate) held_claims: f64,
    /// Of a pause between two rounds to last hours or days.
    pub(crate) long_pause: f64,
    /// Of an append after a close.
    pub(crate) late_append: f64,
    /// Of a writer with a queue to close as soon as it has taken over.
    pub(crate) brief: f64,
    /// Of a life to end after a round: closed, dropped.
    pub(crate) leave: f64,
    pub(crate) flush: f64,
    pub(crate) partial: f64,
    /// Milliseconds that a request takes at least and at most.
    pub(crate) latency: (u64, u64),
    pub(crate) min_age: Duration,
    /// Most appends of one round.
    pub(crate) burst: u64,
    /// Of a writer to want the log in a store of its own choice.
    pub(crate) moves: f64,
    /// Of a collector to find a WAL store that may be wiped, and to wipe it.
    pub(crate) wipes: f64,
    /// Of a writer to be the plain appender.
    pub(crate) plain: f64,
}

impl Habits {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let swarm = Self::swarm(rng);
        match rng.below(20) {
            0..4 => swarm.forgotten_manifests(rng),
            4..9 => swarm.stragglers(rng),
            9..11 => swarm.closes(rng),
            11 => swarm.lifetimes(),
            17 => swarm.moving(rng),
            18 => swarm.suspended(rng),
            19 => swarm.ranges(),
            _ => swarm,
        }
    }

    fn swarm(rng: &mut Rng) -> Self {
        // Mostly a few faults, each of them often.
        let scale = *rng.pick(&[0.0, 0.3, 1.0, 1.0]).unwrap_or(&1.0);
        let mut fault = |most: f64| if rng.chance(0.45) { scale * most * rng.unit() } else { 0.0 };
        let faults = Faults {
            lost_ack: fault(0.2),
            lost_ack_as_exists: fault(0.2),
            conflict_409: fault(0.2),
            late: fault(0.25),
            echo: fault(0.25),
            unavailable: fault(0.15),
            slow: fault(0.1),
            hang: fault(0.04),
            throttle: fault(0.01),
            death: fault(0.03),
        };
        let mut stalls = Stalls { at_poll: 0.0, before: [0.0; POINTS], after: [0.0; POINTS] };
        if rng.chance(0.5) {
            stalls.at_poll = 0.01 * rng.unit();
        }
        let base = if rng.chance(0.5) { 0.01 * rng.unit() } else { 0.0 };
        for point in 0..POINTS {
            for side in [&mut stalls.before, &mut stalls.after] {
                let hot = rng.chance(0.12);
                if let Some(p) = side.get_mut(point) {
                    *p = if hot { 0.02 + 0.25 * rng.unit() } else { base };
                }
            }
        }
        let lengths =
            Lengths { short: rng.below(4), minutes: rng.below(3), days: rng.below(4), until_event: 1 + rng.below(6) };
        // Long bursts leave the serial zone, many short rounds meet more takeovers.
        let (rounds, burst) = *rng.pick(&[(60, 1), (40, 4), (25, 12), (12, 50)]).unwrap_or(&(40, 4));
        // In a crowd of stragglers: long tenures of a wide window, whose PUTs get lost and land under the next ones.
        let stragglers = rng.chance(0.25);
        let (rounds, burst) = if stragglers { (14, 60) } else { (rounds, burst) };
        let faults = match stragglers {
            true => Faults {
                late: 0.05 + 0.15 * rng.unit(),
                hang: 0.03 * rng.unit(),
                death: 0.012,
                throttle: 0.0,
                ..faults
            },
            false => faults,
        };
        let wide = [1, 2, 4, 32].split_at(if stragglers { 2 } else { 0 }).1;
        Self {
            kind: if rng.chance(0.75) { Kind::MemTable } else { Kind::WalOnly },
            plot: None,
            writers: 1 + rng.below(4),
            collectors: u64::from(rng.chance(0.85)) + u64::from(rng.chance(0.25)),
            followers: rng.below(3),
            keepers: u64::from(rng.chance(0.4)),
            keeper_actions: 20,
            merge: *rng.pick(&[0.0, 0.2, 0.8]).unwrap_or(&0.2),
            fence_width: *rng.pick(&[1, 1, 1, 2, 8]).unwrap_or(&1),
            rounds,
            faults,
            stalls,
            lengths,
            max_in_flight: *rng.pick(wide).unwrap_or(&4),
            restart: (1, 2000),
            brief: 0.02,
            late_append: 0.1,
            held_claims: 0.0,
            long_pause: *rng.pick(&[0.0, 0.02, 0.1, 0.25]).unwrap_or(&0.0),
            leave: if stragglers { 0.2 } else { *rng.pick(&[0.0, 0.05, 0.2, 0.5]).unwrap_or(&0.0) },
            flush: *rng.pick(&[0.1, 0.3, 0.7]).unwrap_or(&0.3),
            partial: *rng.pick(&[0.0, 0.3, 0.8]).unwrap_or(&0.3),
            latency: if stragglers { (40, 400) } else { (1, 60) },
            min_age: Duration::from_secs(*rng.pick(&[0, 0, 0, 3600]).unwrap_or(&0)),
            burst,
            moves: 0.0,
            wipes: 0.0,
            plain: if stragglers { 0.0 } else { *rng.pick(&[0.0, 0.2, 0.7]).unwrap_or(&0.2) },
        }
    }
}

/// A time between `least` and `most` milliseconds, each order of magnitude as likely as the next.
pub(crate) fn spread(rng: &mut Rng, least: u64, most: u64) -> Duration {
    let (least, most) = (least.max(1) as f64, most.max(1) as f64);
    let millis = least * (most / least).powf(rng.unit());
    Duration::from_millis(millis as u64)
}
