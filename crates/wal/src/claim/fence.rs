//! Step 3 of a takeover (protocol section 4): the sentinel behind the last entry of the log, and several side by side
//! when a live predecessor was faster.

use futures::future::join_all;

use super::{Claim, Reading};
use crate::entry::{decode, encode_sentinel};
use crate::error::{Error, Outcome, Result};
use crate::ids::Position;
use crate::liveness::MAX_IN_FLIGHT;
use crate::mutants::{Mutant, is_on};
use crate::slot::{Placed, place};

/// How often a live predecessor may take every position that sentinels were meant for. From the sixth time on, 32
/// positions in a row.
const MAX_ROUNDS: usize = 32;

/// Where a tenure begins.
pub(super) struct Stand {
    /// The positions of our sentinels. Behind the first one older epochs are dead.
    pub(super) own: Vec<Position>,
    /// The last position that was resolved: everything up to it has landed, and the tenure's entries come after it.
    pub(super) last: Position,
    /// What the serial zone is counted from: `last`.
    pub(super) zone_from: Position,
}

impl Stand {
    fn behind(own: Vec<Position>, range_from: Position, next: Position) -> Self {
        let last = super::before(next);
        let zone_from = if is_on(Mutant::ZoneFromStartOfRange) { range_from } else { last };
        Self { own, last, zone_from }
    }
}

/// Puts sentinels from the first free position on until one of them stands; whatever landed there meanwhile is read.
///
/// One is enough for a predecessor that is dead or pauses. One that never pauses has its next PUTs under way whenever
/// we look, and a single sentinel behind them comes too late each time (schedule 35). So every round that was lost
/// doubles the number, and the last of the sentinels has the advantage of all the entries in front of it.
///
/// Why several are as safe as one:
///
/// * *Reach.* A round begins at the first position that we have not seen occupied and ends before the
///   [`MAX_IN_FLIGHT`]th behind it. That is a writer's own rule (the window of section 5), so it stays true that no
///   object is ever sent more than `MAX_IN_FLIGHT - 1` positions beyond a position in front of which everything has
///   landed. All that rests on it holds without a word about sentinels: the hole guard (it lists, then reads up to a
///   position that is absent later than the LIST: schedule 33), and the serial zone of whoever comes after us.
/// * *A claimant that dies half way* leaves sentinels with holes in front of them. Its predecessor may go on through
///   the holes, and acknowledge, up to the first of them; all of that stands in front of a higher epoch and is live. Behind
///   it, nothing of the predecessor's is acknowledged. A third claimant reads up to the first hole and puts its own
///   sentinel there; what it finds behind it, now or later, has a lower epoch and lies in its serial zone: dead,
///   passed over, and recorded as a fence by the tenure that passed over it. A sentinel has no rows, so none of them
///   looks like another engine's entry that was stranded (schedule 40).
/// * *Nothing is passed over unread.* A round ends when the store's answer is resolved for each position of it, so
///   when one of ours stands there is no hole up to the last one: that is what makes it the landed position that the
///   record names, and what is behind the first of ours is known to be dead and becomes a fence (schedule 14).
pub(super) async fn fence(claim: &Claim, reading: &mut Reading<'_>, width: u64) -> Result<Stand> {
    if is_on(Mutant::NoSentinel) {
        return Ok(Stand::behind(Vec::new(), reading.next, reading.next));
    }
    let log = &claim.log;
    let bytes = encode_sentinel(&claim.identity)?;
    let mut width = width;
    for _ in 0..MAX_ROUNDS {
        let first = reading.next;
        let positions: Vec<Position> = (0..width).map(|n| Position::new(first.get().saturating_add(n))).collect();
        let answers = join_all(positions.iter().map(|at| place(log, *at, &bytes))).await;
        let mut own = Vec::new();
        for (at, answer) in positions.into_iter().zip(answers) {
            let answer = if is_on(Mutant::SentinelNotRead) { answer.map(|_| Placed::Ours) } else { answer };
            match answer {
                Ok(Placed::Ours) => {
                    own.push(at);
                    reading.take(decode(log.entry_path(at).as_ref(), at, &bytes)?)?;
                }
                Ok(Placed::Other(entry)) => reading.take(*entry)?,
                Err(unplaced) => {
                    return Err(Error::Poisoned {
                        shard: reading.shard.id(),
                        reason: format!("the fence sentinel could not be written: {}", unplaced.reason),
                        outcome: Outcome::NotWritten,
                    });
                }
            }
        }
        if !own.is_empty() {
            return Ok(Stand::behind(own, first, reading.next));
        }
        reading.tries += 1;
        reading.read_on().await?;
        width = (2 * width).min(MAX_IN_FLIGHT);
    }
    Err(reading.outrun())
}
