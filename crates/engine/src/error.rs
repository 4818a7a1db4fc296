//! The engine's errors, by what the caller can do about them.

use fencepost_wal::{Error as WalError, Generation, Outcome, Position, Shard};

use crate::sharding::{ShardValue, Sharding};

/// Result of an engine call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The variants group failures by what the caller can do; [`Error::outcome`] tells whether the
/// rows of a failed write are in the table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The log, its manifest or the store failed; see the inner error.
    #[error(transparent)]
    Wal(#[from] fencepost_wal::Error),

    /// Lance could not read or write the base table or an SSTable.
    #[error("{what}: {}", without_location(.source))]
    Lance {
        /// What was being done, and to which object.
        what: String,
        /// Lance's error.
        #[source]
        source: Box<lance::Error>,
    },

    /// DataFusion could not plan or run a query.
    #[error("query failed: {0}")]
    Query(#[from] datafusion::error::DataFusionError),

    /// Arrow refused an operation on a batch.
    #[error("{what}: {source}")]
    Arrow {
        /// What was being done.
        what: String,
        /// Arrow's error.
        #[source]
        source: arrow_schema::ArrowError,
    },

    /// There is no table at this URL.
    #[error("no Fencepost table at {url}: {reason}; create one with `Table::create` or `fencepost create`")]
    TableNotFound {
        /// Where a table was looked for.
        url: String,
        /// What was found instead.
        reason: String,
    },

    /// What is at this URL is no table yet, or none any more.
    #[error("the table at {url} cannot be opened: {reason}")]
    TableNotReady {
        /// The table.
        url: String,
        /// It is a clone that was not finished, or it was deleted; and what to do.
        reason: String,
    },

    /// There is a table at this URL already.
    #[error("a table exists already at {url}; open it, or choose another place")]
    TableExists {
        /// Where it is.
        url: String,
    },

    /// The table has no such checkpoint (any more).
    #[error("the table at {url} has no checkpoint {wanted}: {reason}; list them, or make a new one")]
    NoCheckpoint {
        /// The table.
        url: String,
        /// The id or name that was given.
        wanted: String,
        /// Is not listed, has expired …
        reason: String,
    },

    /// The options do not describe a table or a writer.
    #[error("invalid options: {0}")]
    InvalidOptions(String),

    /// A batch does not fit the table; nothing of it was written.
    #[error("the batch does not fit the table: {0}; nothing of it was written")]
    InvalidBatch(String),

    /// An append is larger than a limit; nothing of it was written.
    #[error("{what} is {actual} but the limit `{limit_name}` is {limit}; nothing of it was written")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size.
        actual: usize,
        /// The name of the limit.
        limit_name: &'static str,
        /// The limit.
        limit: usize,
    },

    /// A MemTable could not be written as an SSTable. Its rows are safe in the log, and the writer goes on trying.
    #[error("generation {generation} could not be flushed: {reason}; its rows are safe in the log")]
    FlushFailed {
        /// The generation.
        generation: Generation,
        /// The last failure.
        reason: String,
    },

    /// Columns of the table were changed in a way that rows which are not merged yet cannot follow, or a writer that is
    /// open. They can follow if nullable columns are added, and nothing else.
    #[error(
        "the columns of the table were changed, and what is not merged yet cannot follow ({place}): {reason}; undo that change,          flush and merge, and make it again"
    )]
    SchemaChanged {
        /// The table, or the SSTable or log entry that does not follow.
        place: String,
        /// What has changed.
        reason: String,
    },

    /// The call needs something that this writer or table does not have.
    #[error("{0}")]
    NotSupported(String),

    /// The rows of one call went to several shards, and not all of these acknowledged their part.
    #[error("{written} of {shards} shards acknowledged their rows of this call; shard {failed} did not: {source}")]
    PartlyWritten {
        /// Shards that acknowledged their part.
        written: usize,
        /// Shards that had a part.
        shards: usize,
        /// One of those that failed.
        failed: fencepost_wal::ShardId,
        /// Why it failed.
        #[source]
        source: Box<Error>,
    },

    /// The shard of a value that the table did not have yet could not be opened; nothing of the call was written.
    #[error("shard {shard}, for {value}, could not be opened: {source}; nothing of this call was written")]
    ShardNotOpened {
        /// The shard.
        shard: fencepost_wal::ShardId,
        /// What it is to hold.
        value: ShardValue,
        /// Why.
        #[source]
        source: Box<Error>,
    },

    /// The table has other shards now, or is about to: this writer came too late.
    #[error(
        "the table at {url} {} sharded `{sharding}`: {source}; open the table again{}",
        if *.is_done { "is now" } else { "is about to be" },
        if *.is_done { "" } else { " when that is done, or ask for it again if its process died (`fencepost split`, `join`, or `split --abort`)" }
    )]
    Resharded {
        /// The table.
        url: String,
        /// What it is sharded by, or will be.
        sharding: Sharding,
        /// Whether that is done.
        is_done: bool,
        /// What the writer met.
        #[source]
        source: Box<Error>,
    },

    /// A follower has not come to the rows that somebody waits for.
    #[error(
        "the follower of {url} has not seen position {position} of shard {shard} within {waited:?}: {}{why}; wait longer, \
         or see its state", stands(.reached)
    )]
    NotReached {
        /// The table.
        url: String,
        /// The shard.
        shard: fencepost_wal::ShardId,
        /// The position in its log that was waited for.
        position: Position,
        /// How far the follower has come; `None`: it knows no such shard.
        reached: Option<Position>,
        /// How long it was waited.
        waited: std::time::Duration,
        /// Why it came no further, if that is known.
        why: String,
    },

    /// A follower could not bring itself up to date. It has the state of before, and goes on asking.
    #[error("the follower of {url} could not be brought up to date: {source}")]
    NotRefreshed {
        /// The table.
        url: String,
        /// What failed.
        #[source]
        source: std::sync::Arc<Error>,
    },

    /// A follower's table is gone.
    #[error("the follower of {url} has ended: {source}")]
    FollowerEnded {
        /// The table.
        url: String,
        /// What it met.
        #[source]
        source: std::sync::Arc<Error>,
    },

    /// What is on storage contradicts itself.
    #[error("the table at {url} is damaged: {reason}")]
    Corrupt {
        /// The table or object.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Whether the rows of the failed call are in the table: not written, written, or unknown until reopened. For
    /// `flush` and `close` these are the rows that were accepted before. Calls that write nothing say "not written".
    pub fn outcome(&self) -> Outcome {
        match self {
            Error::Wal(e) => e.outcome(),
            Error::PartlyWritten { .. } => Outcome::Unknown,
            Error::Resharded { source, .. } => source.outcome(),
            Error::FlushFailed { .. } => Outcome::Written,
            _ => Outcome::NotWritten,
        }
    }

    /// The same failure as the answer to a call that waited for rows of earlier calls. That this call itself wrote
    /// nothing says nothing about those.
    pub(crate) fn about_earlier_rows(mut self) -> Self {
        if let Error::Wal(
            WalError::Fenced { outcome, .. } | WalError::Poisoned { outcome, .. } | WalError::Aborted { outcome, .. },
        ) = &mut self
            && *outcome == Outcome::NotWritten
        {
            *outcome = Outcome::Unknown;
        }
        self
    }

    /// The same failure as the answer to a call that waited for rows which are in the log.
    pub(crate) fn about_durable_rows(mut self) -> Self {
        if let Error::Wal(
            WalError::Fenced { outcome, .. } | WalError::Poisoned { outcome, .. } | WalError::Aborted { outcome, .. },
        ) = &mut self
        {
            *outcome = Outcome::Written;
        }
        self
    }

    /// The failure of reading rows back from the log: they do not fit the table that the entry belongs to.
    pub(crate) fn in_log_entry(self, shard: &Shard, position: Position) -> Self {
        let place = format!("{} (log entry {})", shard.store().url(), shard.entry_path(position));
        match self {
            Error::InvalidBatch(reason) => Error::Corrupt { url: place, reason },
            Error::SchemaChanged { reason, .. } => Error::SchemaChanged { place, reason },
            other => other,
        }
    }

    /// Whether the store failed, and not what was asked of it.
    pub(crate) fn is_of_store(&self) -> bool {
        match self {
            Error::Wal(WalError::Store { .. }) => true,
            Error::Lance { source, .. } => matches!(source.as_ref(), lance::Error::IO { .. }),
            _ => false,
        }
    }

    pub(crate) fn lance(what: impl Into<String>) -> impl FnOnce(lance::Error) -> Error {
        let what = what.into();
        move |source| Error::Lance { what, source: Box::new(source) }
    }

    pub(crate) fn arrow(what: impl Into<String>) -> impl FnOnce(arrow_schema::ArrowError) -> Error {
        let what = what.into();
        move |source| Error::Arrow { what, source }
    }
}

fn stands(reached: &Option<Position>) -> String {
    reached.map_or("it knows no such shard".to_owned(), |reached| format!("it is at {reached}"))
}

/// Lance ends its messages with the place in its own source, which says nothing to a user.
pub(crate) fn without_location(error: &lance::Error) -> String {
    let mut text = error.to_string();
    let is_place = |tail: &str| {
        let mut parts = tail.rsplitn(3, ':');
        let numbers = [parts.next(), parts.next()];
        let file = parts.next().is_some_and(|file| file.ends_with(".rs"));
        file && numbers.iter().flatten().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    if let Some((_, tail)) = text.rsplit_once(", ")
        && is_place(tail)
    {
        text.truncate(text.len() - tail.len() - 2);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_lance_ends_before_the_place_in_its_source() {
        let error = Error::lance("opening t")(lance::Error::invalid_input("no column `a, b`"));
        let text = error.to_string();
        assert!(text.starts_with("opening t: ") && text.ends_with("no column `a, b`"), "{text}");
    }
}
