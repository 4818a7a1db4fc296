//! One error enum, by what the caller can do, and the three answers to "is my append in the log?".

use std::fmt;
use std::sync::Arc;

use arrow_schema::Schema;
use uuid::Uuid;

use crate::ids::{Epoch, ManifestVersion, Position, ShardId};

/// Result of a call into the log.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is true of the rows of a failed append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// They are not in the log and never will be: append them again through a healthy writer.
    NotWritten,
    /// They are durable.
    Written,
    /// They may or may not be in the log: open the shard again and look.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::NotWritten => "not written",
            Outcome::Written => "written",
            Outcome::Unknown => "unknown until the shard is opened again",
        })
    }
}

/// What went wrong in the log. Cheap to clone: one failure may answer many appends.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL or an option of it cannot be used.
    #[error("cannot use the store URL {url}: {reason}")]
    InvalidUrl {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The store failed to answer, also after retries.
    #[error("{operation} {object} failed: {source}")]
    Store {
        /// GET, LIST, PUT …
        operation: &'static str,
        /// The object or prefix.
        object: String,
        /// The store's own error.
        #[source]
        source: Arc<object_store::Error>,
    },

    /// The store does not keep the promises that the log is built on.
    #[error(
        "the store {url} cannot hold a log: {reason}; use a store that honours conditional PUTs (If-None-Match: *)"
    )]
    StoreUnfit {
        /// The store.
        url: String,
        /// Which promise it broke.
        reason: String,
    },

    /// Another writer owns the shard now. Nothing reopens by itself: two processes that do would fence each other
    /// for ever.
    #[error(
        "fenced: shard {shard} belongs to writer epoch {by}, this writer has epoch {epoch}; the append is {outcome}; \
         open the shard again only if this process is meant to own it"
    )]
    Fenced {
        /// The shard.
        shard: ShardId,
        /// The epoch of the writer that was fenced.
        epoch: Epoch,
        /// The epoch of its successor.
        by: Epoch,
        /// What is true of the append that this answers.
        outcome: Outcome,
    },

    /// The writer met a state that it cannot answer for and stopped. The only way on is to open the shard again.
    #[error("the writer of shard {shard} stopped: {reason}; the append is {outcome}; open the shard again")]
    Poisoned {
        /// The shard.
        shard: ShardId,
        /// What it met.
        reason: String,
        /// What is true of the append that this answers.
        outcome: Outcome,
    },

    /// The writer was told to stop at once ([`WalWriter::abort`](crate::WalWriter::abort)).
    #[error("the writer of shard {shard} was aborted; the append is {outcome}; open the shard again")]
    Aborted {
        /// The shard.
        shard: ShardId,
        /// What is true of the append that this answers.
        outcome: Outcome,
    },

    /// The writer's admission controller refused the append; nothing of it was written.
    #[error(
        "shard {shard}: the append of {rows} rows ({bytes} bytes) was not admitted: {reason}; nothing of it was written"
    )]
    NotAdmitted {
        /// The shard.
        shard: ShardId,
        /// Rows of the append.
        rows: usize,
        /// Their bytes in memory, estimated.
        bytes: usize,
        /// The controller's reason.
        reason: String,
    },

    /// The writer was closed.
    #[error("the writer of shard {shard} is closed; open the shard again")]
    Closed {
        /// The shard.
        shard: ShardId,
    },

    /// An object is damaged: it was torn, truncated or overwritten from outside.
    #[error("{object} is damaged: {reason}; restore it from a copy, nothing was skipped")]
    Corrupt {
        /// The object.
        object: String,
        /// What is wrong with it.
        reason: String,
    },

    /// Entries exist behind an absent one: objects of the log were lost or deleted from outside.
    #[error(
        "shard {shard}: WAL entry {position} is missing but entry {beyond} exists; objects were deleted from outside, \
         restore {object}"
    )]
    LogHole {
        /// The shard.
        shard: ShardId,
        /// The first missing position.
        position: Position,
        /// The highest position found.
        beyond: Position,
        /// The name of the missing object.
        object: String,
    },

    /// The log was truncated or flushed past the position that a reader wanted.
    #[error(
        "shard {shard}: the log now starts after position {replay_after}, position {position} is gone; read the SSTables first"
    )]
    Behind {
        /// The shard.
        shard: ShardId,
        /// The position that the reader was at.
        position: Position,
        /// The position that the SSTables (or the consumer) cover.
        replay_after: Position,
    },

    /// There is no shard of that name.
    #[error("shard {shard} does not exist at {url}; create it first")]
    ShardNotFound {
        /// The shard.
        shard: ShardId,
        /// Where it was looked for.
        url: String,
    },

    /// The shard takes no more writers.
    #[error("shard {shard} is {state}: it takes no writer")]
    ShardClosed {
        /// The shard.
        shard: ShardId,
        /// Sealed, deleted …
        state: &'static str,
    },

    /// The shard is a clone whose making stopped half way.
    #[error("shard {shard} at {url} is a clone that was not finished; run the same clone again, or delete it")]
    CloneUnfinished {
        /// The shard.
        shard: ShardId,
        /// Its table.
        url: String,
    },

    /// Another engine wrote an entry where nothing that counts can stand.
    #[error(
        "shard {shard}: WAL entry {position}, which another engine wrote, {reason}; its rows may have been acknowledged: \
         open the shard with that engine, let it flush, and try again"
    )]
    Stranded {
        /// The shard.
        shard: ShardId,
        /// The entry.
        position: Position,
        /// Where it stands.
        reason: &'static str,
    },

    /// Another engine wrote to the shard in between, so what Fencepost knows of it may not be all.
    #[error("shard {shard} is not adopted: {reason}; run `fencepost adopt` on its table")]
    Unadopted {
        /// The shard.
        shard: ShardId,
        /// What is not known.
        reason: &'static str,
    },

    /// The shard has no such checkpoint (any more).
    #[error("shard {shard}: checkpoint {id} {state}; make a new one")]
    NoCheckpoint {
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        id: Uuid,
        /// Is not listed, has expired …
        state: &'static str,
    },

    /// An entry that a checkpoint holds is gone.
    #[error(
        "shard {shard}: checkpoint {id} needs WAL entry {position}, and {reason}; restore the store of the log, or use a checkpoint \
         of scope `all`, which needs no log"
    )]
    CheckpointLost {
        /// The shard.
        shard: ShardId,
        /// The checkpoint.
        id: Uuid,
        /// The first position that is missing.
        position: Position,
        /// Where it was looked for.
        reason: String,
    },

    /// The shard cannot be deleted: a checkpoint or a clone needs it.
    #[error("shard {shard} cannot be deleted: {by}")]
    Pinned {
        /// The shard.
        shard: ShardId,
        /// What needs it, and what to do.
        by: String,
    },

    /// The shard's log is in a WAL store that has no identity: the wrong one, or one that was wiped.
    #[error(
        "shard {shard}: its log is in the WAL store {recorded} (identity {id}), and {url} holds no WAL store; give the right \
         one with `--wal-store`, mount or restore it; if it is gone for good, `--abandon-wal-store` opens the shard without the \
         rows that were not flushed, and asserts that its writer is dead"
    )]
    WalStoreMissing {
        /// The shard.
        shard: ShardId,
        /// The URL that the manifest records.
        recorded: String,
        /// The identity that it records.
        id: Uuid,
        /// Where it was looked for.
        url: String,
    },

    /// The shard's log is in another WAL store than the one found.
    #[error(
        "shard {shard}: its log is in the WAL store {recorded} (identity {id}), and {url} is another one (identity {found}); give \
         the right one with `--wal-store`; if it is gone for good, `--abandon-wal-store` opens the shard without the rows that \
         were not flushed, and asserts that its writer is dead"
    )]
    WalStoreMismatch {
        /// The shard.
        shard: ShardId,
        /// The URL that the manifest records.
        recorded: String,
        /// The identity that it records.
        id: Uuid,
        /// Where it was looked for.
        url: String,
        /// The identity found there.
        found: Uuid,
    },

    /// The log cannot go on in a WAL store, because entries of the shard stand there where its next ones would.
    #[error(
        "shard {shard}: its log cannot go on in {url}: {object} stands behind position {position}, where the log is now; use an \
         empty store, or delete the shard's folder there if it is not this shard's"
    )]
    WalStoreInUse {
        /// The shard.
        shard: ShardId,
        /// The store.
        url: String,
        /// Where the log is.
        position: Position,
        /// The entry in the way.
        object: String,
    },

    /// A manifest commit may or may not have become part of the shard's history.
    #[error(
        "shard {shard}: whether manifest version {version} was committed is unknown: {reason}; open the shard again"
    )]
    CommitUnknown {
        /// The shard.
        shard: ShardId,
        /// The version.
        version: ManifestVersion,
        /// Why it is unknown.
        reason: String,
    },

    /// Others committed manifests faster than this commit could be derived anew.
    #[error("shard {shard}: gave up a manifest commit after {attempts} conflicts with other committers; try again")]
    Contention {
        /// The shard.
        shard: ShardId,
        /// How often it was tried.
        attempts: usize,
    },

    /// The shard's present writer appends faster than a fence can be placed behind its last entry.
    #[error(
        "shard {shard}: its present writer goes on faster than a fence can be put behind its last entry (tried {attempts} \
         times); stop that writer, or open the shard again when it pauses (its next flush stops it)"
    )]
    Outrun {
        /// The shard.
        shard: ShardId,
        /// How often it was tried.
        attempts: usize,
    },

    /// The call does not fit the state of the writer or shard.
    #[error("{0}")]
    InvalidArgument(String),

    /// An append is larger than a limit; nothing of it was written.
    #[error("{what} has {actual} bytes but the limit `{limit_name}` is {limit}; nothing of it was written")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size in bytes.
        actual: usize,
        /// The name of the limit.
        limit_name: &'static str,
        /// The limit in bytes.
        limit: usize,
    },

    /// A counter reached its end.
    #[error("the {what} reached its highest value")]
    Overflow {
        /// Which counter.
        what: &'static str,
    },

    /// Arrow could not encode or combine batches.
    #[error("{what}: {source}")]
    Arrow {
        /// What was being done.
        what: String,
        /// Arrow's error.
        #[source]
        source: Arc<arrow_schema::ArrowError>,
    },
}

impl Error {
    /// What is true of the append that this error answers. Errors of calls that append nothing say "not written".
    pub fn outcome(&self) -> Outcome {
        match self {
            Error::Fenced { outcome, .. } | Error::Poisoned { outcome, .. } | Error::Aborted { outcome, .. } => {
                *outcome
            }
            Error::CommitUnknown { .. } => Outcome::Unknown,
            _ => Outcome::NotWritten,
        }
    }

    /// The same failure as the answer to an append whose outcome is another.
    pub(crate) fn with_outcome(&self, outcome: Outcome) -> Error {
        let mut error = self.clone();
        if let Error::Fenced { outcome: o, .. }
        | Error::Poisoned { outcome: o, .. }
        | Error::Aborted { outcome: o, .. } = &mut error
        {
            *o = outcome;
        }
        error
    }

    pub(crate) fn other_columns(shard: ShardId, given: &Schema, expected: &Schema) -> Error {
        let columns = |schema: &Schema| {
            let column = |f: &arrow_schema::FieldRef| {
                format!("{}: {}{}", f.name(), f.data_type(), if f.is_nullable() { "?" } else { "" })
            };
            schema.fields().iter().map(column).collect::<Vec<_>>().join(", ")
        };
        Error::InvalidArgument(format!(
            "the batch has the columns ({}), the log of shard {shard} has ({})",
            columns(given),
            columns(expected)
        ))
    }

    pub(crate) fn arrow(what: impl Into<String>) -> impl FnOnce(arrow_schema::ArrowError) -> Error {
        let what = what.into();
        move |source| Error::Arrow { what, source: Arc::new(source) }
    }

    pub(crate) fn corrupt(object: impl fmt::Display, reason: impl fmt::Display) -> Error {
        Error::Corrupt { object: object.to_string(), reason: reason.to_string() }
    }
}
