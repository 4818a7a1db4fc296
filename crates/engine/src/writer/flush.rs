//! From frozen MemTables to SSTables, in the background and in order (protocol section 7): write the files, then
//! publish them in one manifest. A failed attempt is repeated with a fresh folder until the tenure ends.

use std::sync::Arc;
use std::time::Duration;

use fencepost_wal::{Generation, Meter, SsTable, Tenure, WalWriter};
use tokio::sync::watch;

use super::levels::{Frozen, Levels};
#[cfg(test)]
use super::mutants::{self, Mutant};
use crate::config::MemTableConfig;
use crate::error::{Error, Result};
use crate::sstable::{self, SsTableMeta};

const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);

/// What the flusher has done so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// The last generation that was published by this writer.
    pub(crate) published: Generation,
    /// Failed attempts.
    pub(crate) failures: u64,
    /// The last failure.
    pub(crate) last_failure: Option<String>,
    /// The flusher ended.
    pub(crate) ended: bool,
}

/// Writes and publishes the frozen MemTables of one shard.
pub(super) struct Flusher {
    pub(crate) tenure: Tenure,
    pub(crate) levels: Arc<Levels>,
    pub(crate) config: MemTableConfig,
    pub(crate) progress: watch::Sender<Progress>,
    /// Of the attempts that succeeded.
    pub(crate) flushes: Meter,
}

impl Flusher {
    /// Runs until the tenure ends.
    pub(crate) async fn run(self: Arc<Self>, wal: Arc<WalWriter>) {
        let mut delay = self.config.flush_retry_delay;
        while self.tenure.check().is_ok() {
            if self.levels.oldest_frozen().is_none() {
                // Appends wait for memory that only a flush gives back.
                if wal.is_waiting_for_memory() && matches!(self.levels.freeze_active(), Ok(Some(_))) {
                    continue;
                }
                // The bell and the hunger keep a ring that nobody waited for: nothing is missed between look and wait.
                tokio::select! {
                    biased;
                    () = self.levels.bell.notified() => {}
                    () = wal.memory_wanted() => {}
                    () = self.tenure.stopped() => {}
                }
                continue;
            }
            match self.flush_oldest().await {
                Ok(()) => delay = self.config.flush_retry_delay,
                Err(error) => {
                    tracing::warn!(shard = %self.tenure.shard().id(), %error, "a flush failed");
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(delay) => {}
                        () = self.tenure.stopped() => {}
                    }
                    delay = delay.saturating_mul(2).min(MAX_RETRY_DELAY);
                }
            }
        }
        self.ended();
    }

    /// Flushes everything frozen, each with as many attempts as a caller of `flush` waits for.
    pub(crate) async fn flush_frozen(&self) -> Result<()> {
        let (mut attempt, mut delay) = (1, self.config.flush_retry_delay);
        while self.levels.oldest_frozen().is_some() {
            match self.flush_oldest().await {
                Ok(()) => (attempt, delay) = (1, self.config.flush_retry_delay),
                Err(error) if attempt >= self.config.flush_attempts || self.tenure.check().is_err() => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(shard = %self.tenure.shard().id(), %error, "a flush failed");
                    tokio::time::sleep(delay).await;
                    attempt += 1;
                    delay = delay.saturating_mul(2).min(MAX_RETRY_DELAY);
                }
            }
        }
        Ok(())
    }

    /// Writes and publishes the oldest frozen MemTable, if there is one.
    async fn flush_oldest(&self) -> Result<()> {
        let Some(frozen) = self.levels.oldest_frozen() else {
            return Ok(());
        };
        let started = tokio::time::Instant::now();
        let flushed = self.flush(&frozen).await;
        let memtable = frozen.memtable;
        if let Ok(SsTableMeta { physical_rows, in_memory_bytes, .. }) = &flushed {
            let size = |n: &u64| usize::try_from(*n).unwrap_or(usize::MAX);
            self.flushes.record(size(physical_rows), size(in_memory_bytes), started.elapsed());
        }
        #[cfg(test)]
        if flushed.is_err() && mutants::is_on(Mutant::ForgetsFailed) {
            let manifest = self.tenure.manifest().await;
            self.levels.published(memtable.generation(), manifest.sstables, manifest.replay_after);
        }
        self.progress.send_modify(|p| match &flushed {
            Ok(_) => p.published = memtable.generation(),
            Err(error) => {
                p.failures += 1;
                p.last_failure = Some(error.to_string());
            }
        });
        flushed.map(|_| ())
    }

    async fn flush(&self, frozen: &Frozen) -> Result<SsTableMeta> {
        let (memtable, covers) = (&frozen.memtable, frozen.covers);
        let generation = memtable.generation();
        let shard = self.tenure.shard();
        // The name is fresh at every attempt, so a half-written folder is never taken for an SSTable.
        let name = sstable::directory_name(shard.store().surroundings().fresh_id(), generation);
        #[cfg(test)]
        let covers = mutants::covers(covers, &self.tenure);
        #[cfg(test)]
        if mutants::is_on(Mutant::PublishesFirst) {
            self.tenure.publish(Some(SsTable::new(generation, name.clone())), covers).await?;
        }
        let meta = frozen.sstables.write(&sstable::relative_dir(shard.id(), &name), memtable).await?;
        let mut entry = SsTable::new(generation, name);
        entry.physical_rows = Some(meta.physical_rows);
        entry.in_memory_bytes = Some(meta.in_memory_bytes);
        entry.primary_key_bytes = meta.primary_key_bytes;
        #[cfg(test)]
        if mutants::is_on(Mutant::NewestFirst) {
            entry.generation = self.tenure.current_generation().await;
        }
        // I5: the files are durable, and every row up to `covers` is in this SSTable or an older one.
        let manifest = self.tenure.publish(Some(entry), covers).await?;
        self.levels.published(generation, manifest.sstables, manifest.replay_after);
        Ok(meta)
    }

    /// Says that nobody flushes any more, to those who wait for it.
    pub(crate) fn ended(&self) {
        self.progress.send_modify(|p| p.ended = true);
    }

    /// Waits until a generation is published.
    pub(crate) async fn wait_for(&self, generation: Generation) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let failures = progress.borrow().failures;
        let attempts = self.config.flush_attempts as u64;
        let done = progress
            .wait_for(|p| p.published >= generation || p.ended || p.failures >= failures + attempts)
            .await
            .map(|p| p.clone());
        match done {
            Ok(p) if p.published >= generation => Ok(()),
            Ok(p) => {
                self.tenure.check()?;
                Err(Error::FlushFailed { generation, reason: p.last_failure.unwrap_or_else(|| "it ended".into()) })
            }
            Err(_) => Err(self
                .tenure
                .check()
                .err()
                .map_or_else(|| Error::FlushFailed { generation, reason: "the flusher ended".into() }, Error::from)),
        }
    }
}
