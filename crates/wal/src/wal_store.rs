//! WAL stores: a log outside its table (protocol section 10). A WAL store carries an identity object that the shard's
//! manifest records, so that an empty or wrong store is never taken for a log without entries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::path::Path;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::ids::{Position, ShardId};
use crate::log::Log;
use crate::manifest::ShardManifest;
use crate::shard::Shard;
use crate::store::Store;

/// The name of the identity object, at the root of a WAL store.
pub const IDENTITY_OBJECT: &str = "_fencepost_wal_store";
const FIRST_WORDS: &str = "fencepost-wal-store 1 ";
/// More than an identity object has.
const MOST_BYTES: usize = 128;

/// What a manifest records of a WAL store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalStoreRef {
    /// Its identity, random, made with the store.
    pub id: Uuid,
    /// Where it was when it was recorded. It may have moved since: the identity counts.
    pub url: String,
    /// The log's entries behind this position are in it; those up to here are where the log was before.
    pub after: Position,
    /// Fields that this code does not know.
    pub(crate) unknown: Vec<u8>,
}

/// The WAL stores that a handle of a shard knows.
#[derive(Debug, Default)]
pub(crate) struct WalStores {
    /// The one that the caller gave options for, and in which a writer wants the log.
    given: Option<Store>,
    /// Whether a log that is in another WAL store stays there.
    is_default: bool,
    /// Those whose identity was seen to be a recorded one.
    found: Mutex<HashMap<Uuid, Store>>,
}

impl WalStores {
    pub(crate) fn with(given: Store, is_default: bool) -> Arc<Self> {
        Arc::new(Self { given: Some(given), is_default, found: Mutex::default() })
    }

    pub(crate) fn given(&self) -> Option<&Store> {
        self.given.as_ref()
    }

    /// Whether a log that is where a manifest says is to stay there.
    pub(crate) fn stays(&self, manifest: &ShardManifest) -> bool {
        self.is_default && manifest.wal_store().is_some()
    }

    /// Where a manifest says that the log of its shard is. A store that the caller gave is used if it is the recorded
    /// one; otherwise the recorded URL is opened, with options from the environment.
    ///
    /// # Errors
    /// [`Error::WalStoreMissing`] and [`Error::WalStoreMismatch`] if there is no such store; [`Error::InvalidUrl`] if the
    /// recorded URL cannot be opened here.
    pub(crate) async fn log(&self, shard: &Shard, manifest: &ShardManifest) -> Result<Log> {
        let Some(recorded) = manifest.wal_store() else {
            return Ok(Log::own(shard));
        };
        let known = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&recorded.id).cloned();
        let store = match known {
            // Still there? If not, it may have moved.
            Some(store) if confirm(shard.id(), &store, recorded).await.is_ok() => store,
            _ => self.find(shard, recorded).await?,
        };
        Ok(Log::in_wal_store(shard, store, recorded.clone()))
    }

    async fn find(&self, shard: &Shard, recorded: &WalStoreRef) -> Result<Store> {
        let given = async || match &self.given {
            Some(given) if read_identity(given).await.is_ok_and(|id| id == Some(recorded.id)) => Some(given.clone()),
            _ => None,
        };
        // A default that somebody copied the store from would be an old state of it: what is recorded goes first.
        let first = if self.is_default { None } else { given().await };
        let store = match first {
            Some(given) => given,
            None => match at_recorded_url(shard, recorded).await {
                Ok(store) => store,
                Err(error) => given().await.ok_or(error)?,
            },
        };
        self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(recorded.id, store.clone());
        Ok(store)
    }
}

async fn at_recorded_url(shard: &Shard, recorded: &WalStoreRef) -> Result<Store> {
    let store = shard.store().sibling(&recorded.url)?;
    confirm(shard.id(), &store, recorded).await?;
    Ok(store)
}

/// Fails unless the store is the recorded one.
pub(crate) async fn confirm(shard: ShardId, store: &Store, recorded: &WalStoreRef) -> Result<()> {
    let (url, id) = (store.url().to_string(), recorded.id);
    match read_identity(store).await? {
        Some(found) if found == id => Ok(()),
        Some(found) => Err(Error::WalStoreMismatch { shard, recorded: recorded.url.clone(), id, url, found }),
        None => Err(Error::WalStoreMissing { shard, recorded: recorded.url.clone(), id, url }),
    }
}

fn identity_path(store: &Store) -> Path {
    store.root().clone().join(IDENTITY_OBJECT)
}

/// The identity of a store; `None` if it has none.
pub(crate) async fn read_identity(store: &Store) -> Result<Option<Uuid>> {
    let path = identity_path(store);
    match store.get(&path).await? {
        Some(bytes) => decode(&bytes).map(Some).map_err(|reason| Error::corrupt(path, reason)),
        None => Ok(None),
    }
}

/// The identity of a store, made if it has none yet.
///
/// # Errors
/// [`Error::Store`] if it cannot be written; [`Error::Corrupt`] if something else has its name.
pub(crate) async fn identify(store: &Store) -> Result<WalStoreRef> {
    let path = identity_path(store);
    let of = |id| WalStoreRef { id, url: store.url().to_string(), after: Position::ZERO, unknown: Vec::new() };
    if let Some(id) = read_identity(store).await? {
        store.settle(&path).await?;
        return Ok(of(id));
    }
    let id = store.surroundings().fresh_id();
    match store.create_own(&path, Bytes::from(encode(id))).await {
        Ok(()) => Ok(of(id)),
        // Somebody else was faster.
        Err(error) => match read_identity(store).await? {
            Some(id) => {
                store.settle(&path).await?;
                Ok(of(id))
            }
            None => Err(error),
        },
    }
}

fn encode(id: Uuid) -> String {
    format!("{FIRST_WORDS}{}\n", id.as_hyphenated())
}

fn decode(bytes: &[u8]) -> Result<Uuid, &'static str> {
    let text = (bytes.len() <= MOST_BYTES).then(|| std::str::from_utf8(bytes).ok()).flatten();
    let id = text.and_then(|text| text.strip_prefix(FIRST_WORDS)).ok_or("it is no identity of a WAL store")?;
    Uuid::try_parse(id.trim_end()).map_err(|_| "it does not hold an id")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_identity_is_a_line_of_text() {
        let id = Uuid::from_u128(7);
        assert_eq!(encode(id), "fencepost-wal-store 1 00000000-0000-0000-0000-000000000007\n");
        assert_eq!(decode(encode(id).as_bytes()), Ok(id));
        for other in ["", "fencepost-wal-store 2 x", "fencepost-wal-store 1 x", "\u{fe}"] {
            assert!(decode(other.as_bytes()).is_err(), "{other}");
        }
        assert!(decode(&[b' '; 1000]).is_err());
    }

    #[tokio::test]
    async fn a_store_has_one_identity() {
        let store = Store::open("memory://wal-store-identity/w", &HashMap::new()).unwrap();
        assert_eq!(read_identity(&store).await.unwrap(), None);
        let (first, second) = futures::join!(identify(&store), identify(&store));
        assert_eq!(first.unwrap(), second.unwrap());
        assert_eq!(read_identity(&store).await.unwrap(), Some(identify(&store).await.unwrap().id));
    }
}
