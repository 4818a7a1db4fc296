//! The shards that a [`TableWriter`](super::TableWriter) has open, and the opening of more. It decides which shard a
//! value gets; what is written to it is the writer's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use fencepost_wal::{Error as WalError, Outcome, SeenManifest, ShardId};
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::RwLock;

use super::ShardWriter;
use crate::base::BaseTable;
use crate::config::WriterConfig;
use crate::error::{Error, Result};
use crate::read::SsTableCache;
use crate::sharding::ShardValue;
use crate::shards::{self, SHARDS_AT_ONCE, TableShard};

/// The open shards of a table, each the only one for its value.
#[derive(Debug)]
pub(crate) struct OpenShards {
    /// The version of the base table that shards are opened with.
    base: RwLock<BaseTable>,
    cache: Arc<SsTableCache>,
    config: WriterConfig,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Those that were there first in the order of their values, then in that of their opening.
    writers: Vec<Arc<ShardWriter>>,
    by_value: HashMap<ShardValue, usize>,
    /// Values whose shard somebody else took over while it was opened here. It is not opened again: two processes
    /// that do would fence each other for ever.
    fenced: HashMap<ShardValue, WalError>,
    /// The table's writer was aborted.
    aborted: bool,
}

impl OpenShards {
    /// Takes over every shard that was found, which are all that the table has, and makes those that it has from the start. `seen` may have manifests of
    /// some that were read a moment ago.
    pub(super) async fn open(
        base: BaseTable,
        cache: Arc<SsTableCache>,
        config: WriterConfig,
        found: Vec<TableShard>,
        seen: &HashMap<ShardId, SeenManifest>,
    ) -> Result<Self> {
        // Before anybody is fenced.
        config.validate()?;
        let found = shards::for_writing(&base, found)?;
        let shards = Self { base: RwLock::new(base), cache, config, state: RwLock::default() };
        shards.check_limit(found.len())?;
        let opened = stream::iter(found).map(|shard| {
            let (shards, seen) = (&shards, seen.get(&shard.id).cloned());
            async move { Ok::<_, Error>((shards.open_one(&shard, seen).await?, shard.value)) }
        });
        let opened: Vec<_> = opened.buffered(SHARDS_AT_ONCE).try_collect().await?;
        opened.into_iter().try_for_each(|(writer, value)| shards.insert(value, writer))?;
        Ok(shards)
    }

    /// Shards are opened with this version of the base table from now on.
    pub(super) fn open_at(&self, base: BaseTable) {
        *self.base.write() = base;
    }

    fn base(&self) -> BaseTable {
        self.base.read().clone()
    }

    /// `seen`: the shard's manifest, if it was read a moment ago.
    async fn open_one(&self, shard: &TableShard, seen: Option<SeenManifest>) -> Result<ShardWriter> {
        let base = self.base();
        let make = || shards::make(&base, shard.id, &shard.value);
        let open = |seen| {
            let place = base.shard(shard.id);
            ShardWriter::open_seen(base.clone(), Arc::clone(&self.cache), place, self.config.clone(), seen)
        };
        if !shard.made {
            make().await?;
            // The table may have been deleted since it was last looked at: a deletion finds the shard that was made before, and this finds a
            // deletion that did not.
            base.refreshed().await?;
        }
        match open(seen).await {
            // A folder is all that its creator came to make.
            Err(Error::Wal(WalError::ShardNotFound { .. })) if shard.made => {
                make().await?;
                base.refreshed().await?;
                open(None).await
            }
            opened => opened,
        }
    }

    /// Takes a writer in, unless the table's writer was aborted while it was opened: it is dropped then.
    fn insert(&self, value: ShardValue, writer: ShardWriter) -> Result<()> {
        let mut state = self.state.write();
        if state.aborted {
            return Err(aborted(writer.shard_id()));
        }
        let number = state.writers.len();
        state.writers.push(Arc::new(writer));
        state.by_value.insert(value, number);
        Ok(())
    }

    fn check_limit(&self, shards: usize) -> Result<()> {
        let limit = self.config.max_shards;
        match shards <= limit {
            true => Ok(()),
            false => Err(Error::TooLarge {
                what: "the number of shards of the table".into(),
                actual: shards,
                limit_name: "max_shards",
                limit,
            }),
        }
    }

    /// Opens no shard any more. Returns those that are open.
    pub(super) fn stop_opening(&self) -> Vec<Arc<ShardWriter>> {
        let mut state = self.state.write();
        state.aborted = true;
        state.writers.clone()
    }

    pub(super) fn all(&self) -> Vec<Arc<ShardWriter>> {
        self.state.read().writers.clone()
    }

    pub(super) fn ids(&self) -> BTreeSet<ShardId> {
        self.state.read().writers.iter().map(|writer| writer.shard_id()).collect()
    }

    /// The writer of a shard, if it is open here.
    pub(crate) fn with_id(&self, id: ShardId) -> Option<Arc<ShardWriter>> {
        self.state.read().writers.iter().find(|writer| writer.shard_id() == id).cloned()
    }

    pub(super) fn max(&self) -> usize {
        self.config.max_shards
    }

    /// The writer of a value's shard.
    pub(super) fn get(&self, value: &ShardValue) -> Option<Arc<ShardWriter>> {
        let state = self.state.read();
        state.writers.get(*state.by_value.get(value)?).cloned()
    }

    /// Opens the shards of these values that are not open. To be called by one task at a time.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond `max_shards`; [`Error::NotSupported`] for a table that was not adopted;
    /// [`Error::ShardNotOpened`].
    pub(super) async fn ensure(&self, values: impl Iterator<Item = &ShardValue>) -> Result<()> {
        let missing: Vec<&ShardValue> = values.filter(|value| self.get(value).is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let open = self.all();
        self.check_limit(open.len() + missing.len())?;
        // Whoever lost a shard was replaced: it does not go on with the values that nobody has written yet.
        let lost = open.iter().find_map(|shard| shard.fenced());
        let base = self.base();
        let shard = |value: &&ShardValue| {
            let id = base.derived_id(value)?;
            let state = self.state.read();
            if state.aborted {
                return Err(not_opened(id, value, aborted(id)));
            }
            match lost.as_ref().or(state.fenced.get(value)) {
                Some(error) => Err(not_opened(id, value, error.clone().into())),
                None => Ok(TableShard { id, value: (*value).clone(), made: false }),
            }
        };
        let missing = missing.iter().map(shard).collect::<Result<Vec<_>>>()?;
        let opened = stream::iter(missing).map(|shard| async move { (self.open_one(&shard, None).await, shard) });
        let mut opened = opened.buffered(SHARDS_AT_ONCE);
        let mut failed = None;
        while let Some((result, TableShard { id, value, .. })) = opened.next().await {
            match result.and_then(|writer| self.insert(value.clone(), writer)) {
                Ok(()) => {}
                Err(error) => {
                    if let Error::Wal(fenced @ WalError::Fenced { .. }) = &error {
                        self.state.write().fenced.insert(value.clone(), fenced.clone());
                    }
                    failed.get_or_insert(not_opened(id, &value, error));
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

fn aborted(shard: ShardId) -> Error {
    WalError::Aborted { shard, outcome: Outcome::NotWritten }.into()
}

fn not_opened(shard: ShardId, value: &ShardValue, error: Error) -> Error {
    Error::ShardNotOpened { shard, value: value.clone(), source: Box::new(error) }
}
