//! A process that makes checkpoints, refreshes some, deletes some, and lets the others expire.

use std::sync::Arc;
use std::time::Duration;

use fencepost_wal::checkpoint::{self, Checkpoint, CheckpointOptions};
use fencepost_wal::{Error, Shard};
use tokio::time::Instant;

use super::habits::{Plot, spread};
use super::process::Process;
use super::world::Moment;
use super::writer::judge_error;

const HOUR_MS: u64 = 3_600_000;
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Keeps checkpoints until the run ends.
pub(crate) async fn keep(process: &Arc<Process>, shard: &Shard) {
    let world = &process.world;
    let mut made: Vec<Checkpoint> = Vec::new();
    let mut left = world.habits.keeper_actions;
    // What a checkpoint holds is not collected.
    let only_refreshes = world.habits.plot == Some(Plot::Suspended);
    while world.rounds_left() > 0 {
        if left == 0 {
            world.wait_for(&Moment { at: Instant::now() + FOR_EVER, event: None }).await;
            continue;
        }
        left -= 1;
        process.pause().await;
        let seen = world.changes();
        let lifetime = process.roll(|dice| match dice.chance(if only_refreshes { 1.0 } else { 0.2 }) {
            true => None,
            false => Some(Duration::from_millis(spread(dice, 100, 48 * HOUR_MS).as_millis() as u64)),
        });
        let which = process.roll(|dice| dice.below(made.len() as u64)) as usize;
        process.set_refreshes(false);
        let action = process.roll(|dice| dice.below(4));
        let action = if only_refreshes { 1 } else { action };
        let error = match (action, made.get(which).cloned()) {
            (0, Some(old)) => {
                world.state().oracle.deletion_asked(old.id);
                made.remove(which);
                checkpoint::delete(shard, old.id).await.err()
            }
            (1 | 2, Some(old)) => {
                process.set_refreshes(true);
                match checkpoint::refresh(shard, old.id, lifetime).await {
                    Ok(refreshed) => {
                        world.count("checkpoints refreshed");
                        let verdict = world.state().oracle.refreshed(&refreshed);
                        world.judge(&process.name, verdict);
                        None
                    }
                    Err(error) => Some(error),
                }
            }
            _ => {
                let promised = world.state().oracle.rows_to_pin();
                match checkpoint::create(shard, &CheckpointOptions { lifetime, ..Default::default() }).await {
                    Ok(new) => {
                        process.note(format_args!(
                            "made checkpoint {} of manifest {} up to {}",
                            new.id, new.version, new.tail
                        ));
                        let verdict = world.state().oracle.pinned_rows(&new, &promised);
                        world.judge(&process.name, verdict);
                        made.push(new);
                        None
                    }
                    Err(error) => Some(error),
                }
            }
        };
        match error {
            None | Some(Error::NoCheckpoint { .. }) => {}
            Some(error) => judge_error(process, &error),
        }
        world.wait_for_change(seen).await;
    }
}
