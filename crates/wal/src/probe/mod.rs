//! Proves a store's promises before it is trusted: some accept the conditional header and ignore it. [`probe`] is the
//! quick look before first use; [`Survey`] looks long and measures.

mod scratch;
mod survey;

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::Instant;

use crate::error::Result;
use crate::store::Store;

use scratch::Scratch;
pub use survey::{Answers, PutFigures, Survey, SurveyOptions, SurveyReport, SurveyStep};

/// Rounds of concurrent creates.
const ROUNDS: usize = 8;
/// Creates of one key per round.
const RACERS: usize = 16;

/// What [`probe`] found.
#[derive(Debug, Clone)]
pub struct ProbeReport {
    /// Rounds of concurrent creates of one key that had exactly one winner: all of them.
    pub rounds: usize,
    /// Concurrent creates in a round.
    pub racers: usize,
    /// Median time of a single conditional PUT of 4 KiB.
    pub put_p50: Duration,
    /// The slowest of them.
    pub put_max: Duration,
}

/// Checks that creates are atomic and that an existing object is never replaced, with objects below the table's
/// path that are deleted again.
///
/// # Errors
/// [`Error::StoreUnfit`](crate::Error::StoreUnfit), naming the promise that was broken;
/// [`Error::Store`](crate::Error::Store) if the store does not answer.
pub async fn probe(store: &Store) -> Result<ProbeReport> {
    let scratch = Scratch::new(store);
    let result = checks(&scratch).await;
    if let Err(error) = scratch.remove().await {
        tracing::warn!(%error, "objects of the probe could not be deleted");
    }
    result
}

async fn checks(scratch: &Scratch) -> Result<ProbeReport> {
    let store = scratch.store();
    let mut times = Vec::with_capacity(ROUNDS);

    for _ in 0..ROUNDS {
        let first = scratch.fresh("single");
        let started = Instant::now();
        // The name is fresh: "already exists" is a lost answer, or a 409 with nothing there, which is sent again.
        if !create(scratch, &first, Bytes::from(vec![1; 4096])).await? && store.get(&first).await?.is_none() {
            create(scratch, &first, Bytes::from(vec![1; 4096])).await?;
        }
        times.push(started.elapsed());
        if create(scratch, &first, Bytes::from_static(b"second")).await? {
            return Err(scratch.unfit(REPLACED));
        }
        match store.get(&first).await? {
            Some(found) if found.len() == 4096 => {}
            Some(_) => return Err(scratch.unfit(REPLACED_ALL_THE_SAME)),
            None => return Err(scratch.unfit(NOT_THERE)),
        }
    }

    for _ in 0..ROUNDS {
        let path = scratch.fresh("race");
        let racers = (0..RACERS).map(|n| create(scratch, &path, Bytes::from(format!("racer {n}"))));
        let answers = join_all(racers).await.into_iter().collect::<Result<Vec<_>>>()?;
        let winners: Vec<usize> = answers.iter().enumerate().filter_map(|(n, won)| won.then_some(n)).collect();
        let found = store.get(&path).await?;
        match winners.as_slice() {
            [] if found.is_some() => {} // The winner's answer was lost; nothing was promised to anybody.
            [winner] if found.as_deref() == Some(format!("racer {winner}").as_bytes()) => {}
            [_] => return Err(scratch.unfit(NOT_THE_WINNERS)),
            many => return Err(scratch.unfit(winners_of_one_key(many.len(), RACERS))),
        }
    }

    let listed = store.list(scratch.root()).await?.len();
    if listed != 2 * ROUNDS {
        return Err(scratch.unfit(format!("a LIST shows {listed} of {} objects that were just written", 2 * ROUNDS)));
    }
    times.sort_unstable();
    let put_p50 = times.get(times.len() / 2).copied().unwrap_or_default();
    let put_max = times.last().copied().unwrap_or_default();
    Ok(ProbeReport { rounds: ROUNDS, racers: RACERS, put_p50, put_max })
}

const REPLACED: &str = "it replaced an object that a conditional PUT should have left alone";
const REPLACED_ALL_THE_SAME: &str = "it refused a conditional PUT and replaced the object all the same";
const NOT_THERE: &str = "an object that was just written is not there";
const NOT_THE_WINNERS: &str = "the object of a race is not the winner's";

fn winners_of_one_key(winners: usize, racers: usize) -> String {
    format!("{winners} of {racers} concurrent creates of one key succeeded")
}

/// Whether a create succeeded; `false` if something was there.
async fn create(scratch: &Scratch, path: &object_store::path::Path, bytes: Bytes) -> Result<bool> {
    Ok(scratch.create(path, bytes).await?.is_ok())
}
