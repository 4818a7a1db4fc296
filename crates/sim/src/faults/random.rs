//! Faults by dice, repeatable from a seed.
//!
//! What happens to an operation depends on the seed, its kind, the last part of its path and how often that name was
//! asked for before, and on nothing else. So the same faults meet the same objects however tasks interleave, and also
//! when the folders above them carry fresh random ids.

use std::collections::HashMap;
use std::time::Duration;

use super::{Fault, Op};
use crate::rng::{Rng, mix};

/// The dice: a seed and the probability of each fault. Start from [`quiet`](Self::quiet) or
/// [`stormy`](Self::stormy) and change what you like.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomFaults {
    /// Decides everything.
    pub seed: u64,
    /// Creates that land and answer "already exists" ([`Fault::LostAckAsExists`]).
    pub lost_ack_as_exists: f64,
    /// Creates that land and answer with a timeout ([`Fault::LostAck`]).
    pub lost_ack: f64,
    /// Creates that do not land and answer "already exists" ([`Fault::Conflict409`]).
    pub conflict_409: f64,
    /// Creates that answer with a timeout and land later ([`Fault::LateLanding`]).
    pub late_landing: f64,
    /// Creates that do not land and answer with an error ([`Fault::Fail`]).
    pub fail_create: f64,
    /// Creates that are sent after a pause of up to [`pause`](Self::pause), and then go well.
    pub slow_create: f64,
    /// The longest pause of a slow create.
    pub pause: Duration,
    /// GETs and HEADs that fail once.
    pub fail_get: f64,
    /// LISTs that fail once.
    pub fail_list: f64,
    /// Deletes that fail once.
    pub fail_delete: f64,
    /// The chance that a late PUT lands, drawn for each waiting one before every operation. 0: only
    /// [`FaultStore::land_late`](super::FaultStore::land_late) lands them. These draws follow the order of operations.
    pub land: f64,
    /// After so many faults in a row on one name and kind of operation, the next one is left alone: keep it below the
    /// retry budget of the code under test and that code must always succeed in the end.
    pub burst: u32,
}

impl RandomFaults {
    /// No faults at all.
    pub fn quiet(seed: u64) -> Self {
        Self {
            seed,
            lost_ack_as_exists: 0.0,
            lost_ack: 0.0,
            conflict_409: 0.0,
            late_landing: 0.0,
            fail_create: 0.0,
            slow_create: 0.0,
            pause: Duration::from_millis(200),
            fail_get: 0.0,
            fail_list: 0.0,
            fail_delete: 0.0,
            land: 0.0,
            burst: 3,
        }
    }

    /// A bad day: four creates in ten go wrong in one of the five ways, one read in ten fails, and late PUTs land
    /// between later operations.
    pub fn stormy(seed: u64) -> Self {
        Self {
            lost_ack_as_exists: 0.1,
            lost_ack: 0.1,
            conflict_409: 0.1,
            late_landing: 0.05,
            fail_create: 0.05,
            fail_get: 0.1,
            fail_list: 0.1,
            fail_delete: 0.1,
            land: 0.2,
            ..Self::quiet(seed)
        }
    }
}

/// Random faults together with what they must remember.
#[derive(Debug)]
pub(super) struct Dice {
    faults: RandomFaults,
    history: HashMap<(Op, String), History>,
    landing: Rng,
}

#[derive(Debug, Default)]
struct History {
    asked: u64,
    streak: u32,
}

impl Dice {
    pub(super) fn new(faults: RandomFaults) -> Self {
        let landing = Rng::new(mix(faults.seed ^ 0x1A7E));
        Self { faults, history: HashMap::new(), landing }
    }

    /// What happens to this operation.
    pub(super) fn roll(&mut self, op: Op, path: &str) -> Option<Fault> {
        let f = &self.faults;
        let table: &[(Fault, f64)] = match op {
            Op::Create => &[
                (Fault::LostAckAsExists, f.lost_ack_as_exists),
                (Fault::LostAck, f.lost_ack),
                (Fault::Conflict409, f.conflict_409),
                (Fault::LateLanding, f.late_landing),
                (Fault::Fail, f.fail_create),
                (Fault::Delay(f.pause), f.slow_create),
            ],
            Op::Get | Op::Head => &[(Fault::Fail, f.fail_get)],
            Op::List => &[(Fault::Fail, f.fail_list)],
            Op::Delete => &[(Fault::Fail, f.fail_delete)],
            _ => return None,
        };
        let name = path.rsplit('/').next().unwrap_or(path);
        let history = self.history.entry((op, name.to_owned())).or_default();
        let key = format!("{op:?} {name} {}", history.asked);
        history.asked += 1;
        let mut draw = Rng::new(mix(f.seed) ^ hash(&key)).unit();
        if history.streak >= f.burst {
            history.streak = 0;
            return None;
        }
        for (fault, probability) in table {
            if draw < *probability {
                if let Fault::Delay(longest) = fault {
                    // No failure, so it does not count as one of a burst.
                    return Some(Fault::Delay(longest.mul_f64(draw / probability)));
                }
                history.streak += 1;
                return Some(*fault);
            }
            draw -= probability;
        }
        history.streak = 0;
        None
    }

    /// Whether one waiting PUT lands now.
    pub(super) fn lands(&mut self) -> bool {
        self.landing.chance(self.faults.land)
    }
}

/// FNV-1a: the standard library's hasher may change between versions, and with it the meaning of a seed.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3))
}
