//! The writer of a whole table: routes rows to shards and writes them side by side.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use arrow_array::RecordBatch;
use datafusion::catalog::TableProvider;
use fencepost_wal::Outcome;
use futures::future::{join_all, maybe_done};

use super::ShardWriter;
use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::read::{LsmTable, Snapshot, SsTableCache};
use crate::rows::RowFormat;
use crate::sharding::Router;

/// Writes to every shard of a table. All methods take `&self`: share it between tasks.
///
/// A call whose rows go to several shards is several appends: each shard acknowledges its own part, and a reader may
/// see one part before another.
#[derive(Debug)]
pub struct TableWriter {
    base: BaseTable,
    cache: Arc<SsTableCache>,
    format: RowFormat,
    router: Router,
    /// In bucket order.
    shards: Vec<ShardWriter>,
}

impl TableWriter {
    pub(crate) fn new(base: BaseTable, cache: Arc<SsTableCache>, shards: Vec<ShardWriter>) -> Result<Self> {
        let format = RowFormat::of(&base)?;
        let router = Router::try_new(base.sharding(), &format.user)?;
        Ok(Self { base, cache, format, router, shards })
    }

    /// The writers of the shards, in bucket order.
    pub fn shards(&self) -> &[ShardWriter] {
        &self.shards
    }

    /// Inserts rows, or replaces the rows of the same keys; see [`ShardWriter::put`].
    ///
    /// # Errors
    /// As [`ShardWriter::put`]; [`Error::PartlyWritten`] if some shards acknowledged their part and others failed.
    pub async fn put(&self, batch: RecordBatch) -> Result<()> {
        // Checked as a whole first, so that a bad row in one part does not leave the others written.
        let checked = self.format.check_put(&batch)?;
        let parts = self.router.split(&checked)?;
        self.on_each(parts, |shard, part| shard.put(part)).await
    }

    /// Deletes the rows of these keys, given as a batch of the primary-key columns; see [`ShardWriter::delete`].
    ///
    /// # Errors
    /// As [`put`](Self::put) and [`ShardWriter::delete`].
    pub async fn delete(&self, keys: RecordBatch) -> Result<()> {
        let keys = self.format.check_keys(&keys)?;
        let parts = self.router.split(&keys)?;
        self.on_each(parts, |shard, part| shard.delete(part)).await
    }

    async fn on_each<'a, F>(
        &'a self,
        parts: Vec<(u32, RecordBatch)>,
        call: impl Fn(&'a ShardWriter, RecordBatch) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let mut calls = Vec::with_capacity(parts.len());
        for (bucket, part) in parts {
            let shard = self.shards.get(bucket as usize).ok_or_else(|| {
                Error::NotSupported(format!("this writer has no shard for bucket {bucket}; open it on the whole table"))
            })?;
            let answer = call(shard, part);
            calls.push(Box::pin(maybe_done(async move { (shard.shard_id(), answer.await) })));
        }
        // I8: a first poll gives rows their place in a shard's log. All of them together, so that two calls have the
        // same order in every shard that they share; `join_all` alone starts many futures bit by bit.
        poll_fn(|cx| {
            for call in &mut calls {
                let _ = call.as_mut().poll(cx);
            }
            Poll::Ready(())
        })
        .await;
        join_all(calls.iter_mut()).await;
        let answers: Vec<_> = calls.iter_mut().filter_map(|call| call.as_mut().take_output()).collect();
        let shards = answers.len();
        let written = answers.iter().filter(|(_, answer)| answer.is_ok()).count();
        let nothing = answers
            .iter()
            .all(|(_, answer)| answer.as_ref().is_err_and(|error| error.outcome() == Outcome::NotWritten));
        match answers.into_iter().find_map(|(id, answer)| answer.err().map(|e| (id, e))) {
            None => Ok(()),
            Some((_, error)) if nothing || shards == 1 => Err(error),
            Some((failed, error)) => Err(Error::PartlyWritten { written, shards, failed, source: Box::new(error) }),
        }
    }

    /// Waits until every row accepted so far is durable and in an SSTable.
    ///
    /// # Errors
    /// The first shard's error, as [`ShardWriter::flush`]. The others are flushed all the same.
    pub async fn flush(&self) -> Result<()> {
        join_all(self.shards.iter().map(ShardWriter::flush)).await.into_iter().collect()
    }

    /// Flushes and closes every shard cleanly.
    ///
    /// # Errors
    /// The first shard's error, as [`ShardWriter::close`]. The others are closed all the same.
    pub async fn close(self) -> Result<()> {
        join_all(self.shards.into_iter().map(ShardWriter::close)).await.into_iter().collect()
    }

    /// The table as this writer knows it at this moment, its MemTables included, for SQL.
    ///
    /// # Errors
    /// [`Error::NotSupported`] in WAL-only mode; the error that stopped a shard's writer, if one did.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>> {
        let views = || self.shards.iter().map(ShardWriter::view).collect::<Result<Vec<_>>>();
        // Section 9: the base first, then the shards.
        let base = self.base.refreshed().await?;
        let snapshot = Snapshot::of_table(base, self.format.clone(), &self.cache, views()?);
        Ok(Arc::new(LsmTable::new(snapshot)))
    }
}
