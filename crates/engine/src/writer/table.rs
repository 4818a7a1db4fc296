//! The writer of a whole table: routes rows to shards and writes them side by side.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::catalog::TableProvider;
use fencepost_wal::{Error as WalError, Generation, Outcome, SeenManifest, ShardId};
use futures::future::{join_all, maybe_done};
use parking_lot::RwLock;
use tokio::sync::{Mutex, MutexGuard};

use super::indexing::indexes_of;
use super::open_shards::OpenShards;
use super::{ShardWriter, WriterStats};
use crate::base::BaseTable;
use crate::checkpoint::{self, CheckpointOptions, Pinner, TableCheckpoint};
use crate::config::WriterConfig;
use crate::durability::Durability;
use crate::error::{Error, Result};
use crate::evolution;
use crate::memtable::IndexSet;
use crate::read::{MAX_ROUNDS, ShardView, Snapshot, SsTableCache, TableSnapshot, moved_on, read_shards};
use crate::reshard;
use crate::rows::RowFormat;
use crate::sharding::{Router, ShardValue, Sharding};
use crate::shards::{self, TableShard};
use crate::written::Written;

/// Writes to every shard of a table. All methods take `&self`: share it between tasks.
///
/// A call whose rows go to several shards is several appends: each shard acknowledges its own part, and a reader may
/// see one part before another. In a table that is sharded by the values of a column, the first row with a new value
/// makes its shard; until that is open, later calls wait behind it.
#[derive(Debug)]
pub struct TableWriter {
    cache: Arc<SsTableCache>,
    columns: RwLock<Arc<Columns>>,
    indexes: IndexSet,
    shards: OpenShards,
    /// I8: where calls wait in the order of their first polls while shards are opened; a tokio mutex lets them
    /// through in that order. `None` if all shards are open from the start.
    turnstile: Option<Mutex<()>>,
}

/// The columns that a writer takes, and the version of the base table that it knows them from.
#[derive(Debug)]
struct Columns {
    base: BaseTable,
    format: RowFormat,
    router: Router,
}

impl Columns {
    fn of(base: &BaseTable) -> Result<Arc<Self>> {
        let format = RowFormat::of(base)?;
        let router = Router::try_new(base.sharding(), &format.user)?;
        Ok(Arc::new(Self { base: base.clone(), format, router }))
    }
}

impl TableWriter {
    /// `found`: the shards of this base version; `seen` may have manifests of some that were read a moment ago.
    pub(crate) async fn open(
        base: BaseTable,
        cache: Arc<SsTableCache>,
        config: WriterConfig,
        found: Vec<TableShard>,
        seen: &HashMap<ShardId, SeenManifest>,
    ) -> Result<Self> {
        let grows = matches!(base.sharding(), Sharding::Identity { .. });
        let own = config.clone();
        // First: it knows best what to do with a table whose rows have no rule for their shard.
        let shards = OpenShards::open(base.clone(), Arc::clone(&cache), config, found, seen).await?;
        let (columns, indexes) = (Columns::of(&base)?, indexes_of(&base, &own).await?);
        Ok(Self { cache, columns: RwLock::new(columns), indexes, shards, turnstile: grows.then(Mutex::default) })
    }

    /// The columns that it takes now.
    fn columns(&self) -> Arc<Columns> {
        Arc::clone(&self.columns.read())
    }

    /// The columns that puts have; see [`refresh_schema`](Self::refresh_schema).
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.columns().format.user)
    }

    /// Looks whether nullable columns were added to the table, and goes on with them in every shard; see
    /// [`ShardWriter::refresh_schema`]. Returns the names of those that are new to this writer.
    ///
    /// # Errors
    /// As [`ShardWriter::refresh_schema`]; if this comes after some shards have gone on already, they take calls with the
    /// columns of before as well, and it may be called again.
    pub async fn refresh_schema(&self) -> Result<Vec<String>> {
        // Behind the calls that open shards: none is opened with the columns of before.
        let _turn = self.turn().await;
        let columns = self.columns();
        let base = columns.base.refreshed().await?;
        if let Some(first) = self.shards.all().first() {
            reshard::check_layout(&columns.base, &base, first.shard_id()).await?;
        }
        let added = evolution::added_columns(&columns.base, &base)?;
        if added.is_empty() {
            return Ok(added);
        }
        let next = Columns::of(&base)?;
        self.shards.open_at(base.clone());
        // The shards first: what this writer lets through they know.
        for shard in self.shards.all() {
            shard.evolve_to(&base)?;
        }
        let mut columns = self.columns.write();
        if columns.base.version() < base.version() {
            *columns = next;
        }
        Ok(added)
    }

    /// The writers of the shards that are open now, in the order of their buckets or values; those that were made
    /// since the table was opened come last.
    pub fn shards(&self) -> Vec<Arc<ShardWriter>> {
        self.shards.all()
    }

    /// Inserts rows, or replaces the rows of the same keys; see [`ShardWriter::put`].
    ///
    /// # Errors
    /// As [`ShardWriter::put`]; [`Error::PartlyWritten`] if some shards acknowledged their part and others failed. If
    /// new values need shards, [`Error::TooLarge`] beyond [`max_shards`](WriterConfig::max_shards) and
    /// [`Error::ShardNotOpened`] change nothing.
    pub async fn put(&self, batch: RecordBatch) -> Result<Written> {
        // Checked as a whole first, so that a bad row in one part does not leave the others written.
        let columns = self.columns();
        let checked = columns.format.check_put(&batch)?;
        self.indexes.check_rows(&checked)?;
        let parts = columns.router.split(&checked, self.shards.max())?;
        let answers = self.on_each(parts, |shard, part| async move { shard.put_checked(part).await }).await?;
        judged(&columns.base, answers).await.map(all_written)
    }

    /// As [`put`](Self::put), but returns when the rows are queued in memory in every shard (at once, if there is room);
    /// see [`ShardWriter::put_no_wait`]. What it returns resolves when all of them are durable.
    ///
    /// # Errors
    /// As [`put`](Self::put). [`Error::PartlyWritten`] if some shards have queued their part, which goes on, and others
    /// could not; the future gives the same error if some shards acknowledge their part and others fail.
    pub async fn put_no_wait(&self, batch: RecordBatch) -> Result<Durability> {
        let columns = self.columns();
        let checked = columns.format.check_put(&batch)?;
        self.indexes.check_rows(&checked)?;
        let parts = columns.router.split(&checked, self.shards.max())?;
        let queued = self.on_each(parts, |shard, part| async move { shard.put_checked_no_wait(part).await }).await?;
        self.when_durable(queued).await
    }

    /// Deletes the rows of these keys, given as a batch of the primary-key columns; see [`ShardWriter::delete`].
    ///
    /// # Errors
    /// As [`put`](Self::put) and [`ShardWriter::delete`].
    pub async fn delete(&self, keys: RecordBatch) -> Result<Written> {
        let columns = self.columns();
        let keys = columns.format.check_keys(&keys)?;
        let parts = columns.router.split(&keys, self.shards.max())?;
        let answers = self.on_each(parts, |shard, keys| async move { shard.delete_checked(keys).await }).await?;
        judged(&columns.base, answers).await.map(all_written)
    }

    /// As [`delete`](Self::delete), but returns when the deletions are queued in memory; see
    /// [`put_no_wait`](Self::put_no_wait).
    ///
    /// # Errors
    /// As [`put_no_wait`](Self::put_no_wait) and [`ShardWriter::delete`].
    pub async fn delete_no_wait(&self, keys: RecordBatch) -> Result<Durability> {
        let columns = self.columns();
        let keys = columns.format.check_keys(&keys)?;
        let parts = columns.router.split(&keys, self.shards.max())?;
        let queued = self.on_each(parts, |shard, keys| async move { shard.delete_checked_no_wait(keys).await }).await?;
        self.when_durable(queued).await
    }

    /// One future of those of the shards.
    async fn when_durable(&self, queued: Answers<Durability>) -> Result<Durability> {
        let base = self.columns().base.clone();
        let queued = judged(&base, queued).await?;
        Ok(Durability::new(async move {
            let answers = queued.into_iter().map(|(shard, landing)| async move { (shard, landing.await) });
            judged(&base, join_all(answers).await).await.map(all_written)
        }))
    }

    async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        match &self.turnstile {
            Some(turnstile) => Some(turnstile.lock().await),
            None => None,
        }
    }

    /// The turn of a call, with its shards open.
    async fn turn_with_shards(&self, parts: &[(ShardValue, RecordBatch)]) -> Result<Option<MutexGuard<'_, ()>>> {
        let turn = self.turn().await;
        self.shards.ensure(parts.iter().map(|(value, _)| value)).await?;
        Ok(turn)
    }

    /// Calls every shard with its part, and waits for all answers.
    async fn on_each<T, F>(
        &self,
        parts: Vec<(ShardValue, RecordBatch)>,
        call: impl Fn(Arc<ShardWriter>, RecordBatch) -> F,
    ) -> Result<Answers<T>>
    where
        F: Future<Output = Result<T>>,
    {
        let turn = match &self.turnstile {
            // Every writer that waits for its rows holds such a future in memory: what is rare is kept out of it.
            Some(_) => Box::pin(self.turn_with_shards(&parts)).await?,
            None => None,
        };
        let mut calls = Vec::with_capacity(parts.len());
        for (value, part) in parts {
            let shard = self.shards.get(&value).ok_or_else(|| {
                Error::NotSupported(format!("this writer has no shard for {value}; open it on the whole table"))
            })?;
            calls.push((shard.shard_id(), call(shard, part)));
        }
        // I8: nothing comes between this and the first poll.
        if turn.is_none()
            && calls.len() == 1
            && let Some((id, call)) = calls.pop()
        {
            return Ok(vec![(id, call.await)]);
        }
        let calls = calls.into_iter().map(|(id, call)| Box::pin(maybe_done(async move { (id, call.await) })));
        let mut calls: Vec<_> = calls.collect();
        // I8: a first poll gives rows their place in a shard's log. All of them together, so that two calls have the
        // same order in every shard that they share; `join_all` alone starts many futures bit by bit.
        poll_fn(|cx| {
            for call in &mut calls {
                let _ = call.as_mut().poll(cx);
            }
            Poll::Ready(())
        })
        .await;
        drop(turn);
        join_all(calls.iter_mut()).await;
        Ok(calls.iter_mut().filter_map(|call| call.as_mut().take_output()).collect())
    }

    /// Waits until every row accepted so far is durable and in an SSTable.
    ///
    /// # Errors
    /// The first shard's error, as [`ShardWriter::flush`]. The others are flushed all the same.
    pub async fn flush(&self) -> Result<()> {
        // Behind the calls that wait for their shards.
        let shards = {
            let _turn = self.turn().await;
            self.shards.all()
        };
        join_all(shards.iter().map(|shard| shard.flush())).await.into_iter().collect()
    }

    /// Freezes the active MemTable of every shard that has rows in it, and returns the generations; see
    /// [`ShardWriter::force_freeze`].
    ///
    /// # Errors
    /// The first shard's error. The others are frozen all the same.
    pub fn force_freeze(&self) -> Result<BTreeMap<ShardId, Generation>> {
        let frozen: Vec<_> = self.shards.all().iter().map(|shard| (shard.shard_id(), shard.force_freeze())).collect();
        let frozen = frozen.into_iter().filter_map(|(shard, frozen)| Some((shard, frozen.transpose()?)));
        frozen.map(|(shard, frozen)| Ok((shard, frozen?))).collect()
    }

    /// Waits until every MemTable that is frozen by now is published; see [`ShardWriter::wait_for_flush_drain`].
    ///
    /// # Errors
    /// The first shard's error. The others are waited for all the same.
    pub async fn wait_for_flush_drain(&self) -> Result<()> {
        let shards = self.shards.all();
        join_all(shards.iter().map(|shard| shard.wait_for_flush_drain())).await.into_iter().collect()
    }

    /// Stops every shard's writer at once, as if the process had died; see [`ShardWriter::abort`]. No shard is opened
    /// any more.
    pub async fn abort(&self) {
        let shards = self.shards.stop_opening();
        join_all(shards.iter().map(|shard| shard.abort())).await;
    }

    /// The counters of each shard's writer.
    pub fn stats(&self) -> BTreeMap<ShardId, WriterStats> {
        self.shards.all().iter().map(|shard| (shard.shard_id(), shard.stats())).collect()
    }

    /// Pins the table as this writer knows it, while it goes on writing: see [`Table::checkpoint`](crate::Table::checkpoint). Every row that
    /// was accepted before the call is in. With scope [`All`](crate::CheckpointScope::All) these are flushed first, and the checkpoint needs no log.
    /// Shards that other writers made are pinned with their log.
    ///
    /// # Errors
    /// As [`Table::checkpoint`](crate::Table::checkpoint); [`Error::NotSupported`] for scope `All` in WAL-only mode.
    pub async fn checkpoint(&self, options: &CheckpointOptions) -> Result<TableCheckpoint> {
        // Behind the calls that wait for their shards.
        drop(self.turn().await);
        let base = self.columns().base.refreshed().await?;
        let made = checkpoint::make(&base, options, &Pinner::Writers(&self.shards)).await?;
        Ok(made.checkpoint)
    }

    /// Flushes and closes every shard cleanly.
    ///
    /// # Errors
    /// The first shard's error, as [`ShardWriter::close`]. The others are closed all the same.
    pub async fn close(self) -> Result<()> {
        join_all(self.shards.all().iter().map(|shard| shard.end())).await.into_iter().collect()
    }

    /// The table as this writer knows it at this moment, its MemTables included, for SQL. Shards for new values that
    /// another writer made are read from storage. Shards that Lance adds to an unsharded or bucket table after this writer
    /// was opened are not looked for; [`Table::provider`](crate::Table::provider) sees them.
    ///
    /// # Errors
    /// [`Error::NotSupported`] in WAL-only mode; the error that stopped a shard's writer, if one did.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>> {
        Ok(self.snapshot().await?.provider())
    }

    /// The table as this writer knows it at this moment, to be asked more than once; see [`provider`](Self::provider).
    ///
    /// # Errors
    /// As [`provider`](Self::provider).
    pub async fn snapshot(&self) -> Result<TableSnapshot> {
        let columns = self.columns();
        for _ in 0..MAX_ROUNDS {
            // Section 9: the base first, then the shards.
            let base = columns.base.refreshed().await?;
            evolution::added_columns(&columns.base, &base)?;
            let Some(others) = self.shards_of_others(&base).await? else {
                continue;
            };
            let own = self.shards.all();
            if let Some(first) = own.first() {
                reshard::check_layout(&columns.base, &base, first.shard_id()).await?;
            }
            let mut views = own.iter().map(|shard| shard.view()).collect::<Result<Vec<_>>>()?;
            for shard in &own {
                shard.confirm_on(&base).await?;
            }
            // One that was opened here meanwhile is read here.
            let others = others.into_iter().filter(|view| own.iter().all(|shard| shard.shard_id() != view.shard));
            views.extend(others);
            let snapshot = Snapshot::of_table(base, columns.format.clone(), &self.cache, views);
            return Ok(TableSnapshot::new(snapshot));
        }
        Err(moved_on(&columns.base).await)
    }

    /// What shards hold that this writer has not opened. `None`: they do not fit the base version.
    async fn shards_of_others(&self, base: &BaseTable) -> Result<Option<Vec<ShardView>>> {
        if self.turnstile.is_none() {
            return Ok(Some(vec![]));
        }
        let listed = shards::list(base).await?;
        let others: BTreeSet<_> = listed.difference(&self.shards.ids()).copied().collect();
        // With the columns of the table, of which others may have learned before this writer.
        read_shards(base, &RowFormat::of(base)?, &listed, &others).await
    }
}

/// What each shard said to its part of a call.
type Answers<T> = Vec<(ShardId, Result<T>)>;

/// All parts, if all shards took theirs; otherwise the error of the call.
async fn judged<T>(base: &BaseTable, answers: Answers<T>) -> Result<Vec<(ShardId, T)>> {
    let shards = answers.len();
    let (mut done, mut failures) = (Vec::with_capacity(shards), Vec::new());
    for (shard, answer) in answers {
        match answer {
            Ok(part) => done.push((shard, part)),
            Err(error) => failures.push((shard, Box::pin(explained(base, error)).await)),
        }
    }
    let nothing = done.is_empty() && failures.iter().all(|(_, error)| error.outcome() == Outcome::NotWritten);
    match failures.into_iter().next() {
        None => Ok(done),
        Some((_, error)) if nothing || shards == 1 => Err(error),
        Some((failed, error)) => {
            Err(Error::PartlyWritten { written: done.len(), shards, failed, source: Box::new(error) })
        }
    }
}

/// A writer that lost a shard may have lost it to a split or a join.
async fn explained(base: &BaseTable, error: Error) -> Error {
    match error {
        Error::Wal(WalError::Fenced { .. } | WalError::Closed { .. } | WalError::ShardClosed { .. }) => {
            reshard::too_late(base, error).await
        }
        other => other,
    }
}

fn all_written(parts: Vec<(ShardId, Written)>) -> Written {
    parts.into_iter().map(|(_, part)| part).reduce(Written::and).unwrap_or_default()
}
