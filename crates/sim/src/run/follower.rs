//! A process that reads the log without owning it: it must return exactly the live entries, in order, without gaps,
//! or say that it is behind.

use std::sync::Arc;

use fencepost_wal::{Error, Position, Shard, WalEntry, WalTailer};

use super::oracle::{Invariant, ids_of};
use super::process::Process;
use super::writer::judge_error;

/// Follows the log until the run ends.
pub(crate) async fn follow(process: &Arc<Process>, shard: &Shard) {
    let mut tailer = WalTailer::new(shard.clone());
    let mut last = None;
    // Up to before here, everything was returned or had no live rows.
    let mut reached = None;
    while process.world.rounds_left() > 0 {
        let seen = process.world.changes();
        let replay_after = process.world.state().oracle.replay_after();
        process.set_follows(tailer.next_position().map(Position::get));
        reached = reached.or(tailer.next_position().map(Position::get));
        match tailer.next().await {
            Ok(Some(entry)) => {
                check(process, last, reached, &entry);
                last = Some(entry.position.get());
                reached = last.map(|last| last + 1);
            }
            Ok(None) => {
                // A reader whose clock stood still may take an old end for the end, once more (section 3).
                let is_told = |at: &Position| at.get() <= replay_after && !process.sleeps_through_stalls;
                if let Some(at) = tailer.next_position().filter(is_told) {
                    let what = format!("a follower takes {at} for the end, and R was {replay_after} before it asked");
                    process.world.fail(&process.name, Invariant::I1, what);
                }
                process.pause().await;
                process.world.wait_for_change(seen).await;
            }
            Err(Error::Behind { position, replay_after, .. }) => {
                process.note(format_args!("is behind at {position}: R is {replay_after}"));
                process.world.count("followers that fell behind");
                tailer.restart();
                (last, reached) = (None, None);
            }
            Err(error) => {
                judge_error(process, &error);
                process.pause().await;
            }
        }
        if process.chance(0.1) {
            process.pause().await;
        }
    }
}

fn check(process: &Process, last: Option<u64>, reached: Option<u64>, entry: &WalEntry) {
    let position = entry.position.get();
    let found: Vec<u64> = entry.batches.iter().flat_map(ids_of).collect();
    process.note(format_args!("follows {found:?} at {position}"));
    let mut state = process.world.state();
    state.coverage.count("entries followed");
    let there = state.oracle.live_at(position).to_vec();
    // Everything in between had no live rows.
    let skipped = reached.unwrap_or(position)..position;
    let missed = skipped.into_iter().find(|at| !state.oracle.live_at(*at).is_empty());
    drop(state);
    if last.is_some_and(|last| last >= position) {
        process.world.fail(&process.name, Invariant::I2, format!("a follower got entry {position} again"));
    } else if found != there {
        let what = format!("a follower got {found:?} at {position}, where {there:?} stands");
        process.world.fail(&process.name, Invariant::I1, what);
    } else if let Some(missed) = missed {
        let what = format!("a follower went on to {position} and missed the rows at {missed}");
        process.world.fail(&process.name, Invariant::I1, what);
    }
}
