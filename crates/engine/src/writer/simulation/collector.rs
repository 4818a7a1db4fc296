//! A process that collects garbage, with the log's own collector.

use std::sync::Arc;

use fencepost_wal::gc::{BaseProgress, GcOptions, collect};

use super::world::{Process, spread};
use super::writer::judge_error;

pub(super) async fn collect_until_the_end(process: &Arc<Process>, longest_pause_millis: u64) {
    let shard = process.shard();
    let min_age = process.roll(|dice| if dice.chance(0.7) { 0 } else { 3600 });
    let options = GcOptions { min_age: std::time::Duration::from_secs(min_age), ..GcOptions::default() };
    while process.world.rounds_left() > 0 {
        tokio::time::sleep(process.roll(|dice| spread(dice, 100, longest_pause_millis))).await;
        match collect(&shard, &BaseProgress::default(), &options, |_| {}).await {
            Ok(_) => process.world.count("collections"),
            Err(error) => judge_error(process, &error.into()),
        }
    }
}
