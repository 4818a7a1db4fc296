//! Proves a store's promises before it is trusted: some accept the conditional header and ignore it.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use object_store::{Error as StoreError, ObjectStoreExt};
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::store::Store;

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
/// [`Error::StoreUnfit`], naming the promise that was broken; [`Error::Store`] if the store does not answer.
pub async fn probe(store: &Store) -> Result<ProbeReport> {
    let folder = store.root().clone().join(format!("_fencepost_probe_{}", Uuid::new_v4().simple()));
    let result = checks(store, &folder).await;
    for object in store.list(&folder).await? {
        if let Err(error) = store.object_store().delete(&object.location).await {
            tracing::warn!(object = %object.location, %error, "a probe object could not be deleted");
        }
    }
    result
}

async fn checks(store: &Store, folder: &object_store::path::Path) -> Result<ProbeReport> {
    let unfit = |reason: String| Error::StoreUnfit { url: store.url().to_string(), reason };
    let mut times = Vec::with_capacity(ROUNDS);

    for round in 0..ROUNDS {
        let first = folder.clone().join(format!("single_{round}"));
        let started = Instant::now();
        // The name is fresh: "already exists" is a lost answer, or a 409 with nothing there, which is sent again.
        if !create(store, &first, Bytes::from(vec![1; 4096])).await? && store.get(&first).await?.is_none() {
            create(store, &first, Bytes::from(vec![1; 4096])).await?;
        }
        times.push(started.elapsed());
        if create(store, &first, Bytes::from_static(b"second")).await? {
            return Err(unfit("it replaced an object that a conditional PUT should have left alone".into()));
        }
        match store.get(&first).await? {
            Some(found) if found.len() == 4096 => {}
            Some(_) => return Err(unfit("it refused a conditional PUT and replaced the object all the same".into())),
            None => return Err(unfit("an object that was just written is not there".into())),
        }
    }

    for round in 0..ROUNDS {
        let path = folder.clone().join(format!("race_{round}"));
        let racers = (0..RACERS).map(|n| create(store, &path, Bytes::from(format!("racer {n}"))));
        let answers = join_all(racers).await.into_iter().collect::<Result<Vec<_>>>()?;
        let winners: Vec<usize> = answers.iter().enumerate().filter_map(|(n, won)| won.then_some(n)).collect();
        let found = store.get(&path).await?;
        match winners.as_slice() {
            [] if found.is_some() => {} // The winner's answer was lost; nothing was promised to anybody.
            [winner] if found.as_deref() == Some(format!("racer {winner}").as_bytes()) => {}
            [_] => return Err(unfit("the object of a race is not the winner's".into())),
            many => return Err(unfit(format!("{} of {RACERS} concurrent creates of one key succeeded", many.len()))),
        }
    }

    let listed = store.list(folder).await?.len();
    if listed != 2 * ROUNDS {
        return Err(unfit(format!("a LIST shows {listed} of {} objects that were just written", 2 * ROUNDS)));
    }
    times.sort_unstable();
    let put_p50 = times.get(times.len() / 2).copied().unwrap_or_default();
    let put_max = times.last().copied().unwrap_or_default();
    Ok(ProbeReport { rounds: ROUNDS, racers: RACERS, put_p50, put_max })
}

/// Whether a create succeeded; `false` if something was there.
async fn create(store: &Store, path: &object_store::path::Path, bytes: Bytes) -> Result<bool> {
    match store.create_once(path, bytes).await {
        Ok(()) => Ok(true),
        Err(StoreError::AlreadyExists { .. }) => Ok(false),
        Err(StoreError::NotImplemented { .. } | StoreError::NotSupported { .. }) => Err(Error::StoreUnfit {
            url: store.url().to_string(),
            reason: "it does not support conditional PUTs".into(),
        }),
        Err(e) => Err(Error::Store { operation: "PUT", object: path.to_string(), source: std::sync::Arc::new(e) }),
    }
}
