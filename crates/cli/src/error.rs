//! The command's one error: a sentence, what to do next, and the exit code. It owns the mapping from the engine's
//! errors to both; verbs only add which file or table they were busy with.

use std::fmt;
use std::io;
use std::process::ExitCode;

use datafusion::error::DataFusionError;
use fencepost_wal::Error as WalError;

/// Result of everything in this crate that can fail.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

/// The documented exit codes (`fencepost --help` prints the same table).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something failed that no other code stands for.
    Failure = 1,
    /// The command line is wrong; clap uses the same code.
    Usage = 2,
    /// The table, or the checkpoint, does not exist; or the table exists already.
    Table = 3,
    /// The rows do not fit the table, or a file cannot be read.
    Input = 4,
    /// Another writer owns the shard, or this one stopped itself.
    Fenced = 5,
    /// The store cannot be used, or breaks a promise that the log needs.
    Store = 6,
    /// Stopped by Ctrl-C.
    Interrupted = 130,
}

/// Why the command failed.
#[derive(Debug)]
pub(crate) struct CliError {
    exit: Option<Exit>,
    message: String,
    help: Option<String>,
}

impl CliError {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit: Some(exit), message: message.into(), help: None }
    }

    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Self::new(Exit::Failure, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::new(Exit::Input, message)
    }

    /// Whoever read our output went away. That is how `fencepost query ... | head` ends, not a failure.
    fn closed_pipe() -> Self {
        Self { exit: None, message: "the reader of the output went away".into(), help: None }
    }

    /// Sets what to do next.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Puts what was being done in front of the message.
    pub(crate) fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Adds a sentence to the message.
    pub(crate) fn note(mut self, note: impl fmt::Display) -> Self {
        self.message = format!("{}; {note}", self.message);
        self
    }

    /// A failed write to stdout.
    pub(crate) fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::closed_pipe()
        } else {
            Self::failure(format!("cannot write to stdout: {error}"))
        }
    }

    /// The code that the process ends with; none is success.
    #[cfg(test)]
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Prints the error to stderr, unless it is one that nobody needs to see, and says how the process ends.
    pub(crate) fn report(&self) -> ExitCode {
        use io::Write;
        let Some(exit) = self.exit else {
            return ExitCode::SUCCESS;
        };
        // A closed stderr must not turn into a panic; the exit code still tells.
        let mut stderr = io::stderr().lock();
        let _ = writeln!(stderr, "error: {}", self.message);
        if let Some(help) = &self.help {
            let _ = writeln!(stderr, "help: {help}");
        }
        ExitCode::from(exit as u8)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

impl From<WalError> for CliError {
    fn from(error: WalError) -> Self {
        let (exit, help) = judge_wal(&error);
        Self { exit: Some(exit), message: error.to_string(), help: help.map(str::to_string) }
    }
}

impl From<fencepost::Error> for CliError {
    fn from(error: fencepost::Error) -> Self {
        let (exit, help) = judge_engine(&error);
        Self { exit: Some(exit), message: error.to_string(), help: help.map(str::to_string) }
    }
}

impl From<DataFusionError> for CliError {
    fn from(error: DataFusionError) -> Self {
        // The provider's own errors travel through DataFusion as external ones; their code and help must survive.
        if let Some(judged) = judge_source(&error) {
            let (exit, help) = judged;
            return Self { exit: Some(exit), message: error.strip_backtrace(), help: help.map(str::to_string) };
        }
        let help = match error.find_root() {
            DataFusionError::SQL(..) => Some("check the SQL; the table is called `t`"),
            DataFusionError::SchemaError(..) | DataFusionError::Plan(_) => {
                Some("the table is called `t`; `describe t` as the query shows its columns")
            }
            _ => None,
        };
        Self {
            exit: Some(Exit::Failure),
            message: format!("query failed: {}", error.strip_backtrace()),
            help: help.map(str::to_string),
        }
    }
}

const STORE_HELP: &str = "check the URL, the credentials and the --storage-option values, then run the command again";

/// Whether the store is among the causes of an error; an object that is missing is not the store's fault.
fn is_store_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(e) = e.downcast_ref::<object_store::Error>() {
            return !matches!(e, object_store::Error::NotFound { .. });
        }
        cause = e.source();
    }
    false
}

fn judge_wal(error: &WalError) -> (Exit, Option<&'static str>) {
    match error {
        WalError::InvalidUrl { .. } => {
            (Exit::Store, Some("use a path or a URL of the form file://, memory://, s3://, gs:// or az://"))
        }
        WalError::Store { .. } => (Exit::Store, Some(STORE_HELP)),
        WalError::StoreUnfit { .. } => (Exit::Store, Some("`fencepost probe URL` shows what a store honours")),
        WalError::WalStoreMissing { .. } | WalError::WalStoreMismatch { .. } | WalError::WalStoreInUse { .. } => {
            (Exit::Store, Some("`fencepost inspect` shows where the log of each shard is"))
        }
        WalError::Fenced { .. } => (
            Exit::Fenced,
            Some("another writer owns the table now; run the command again only if this one is meant to own it"),
        ),
        WalError::Poisoned { .. }
        | WalError::Aborted { .. }
        | WalError::Closed { .. }
        | WalError::CommitUnknown { .. } => {
            (Exit::Fenced, Some("run the command again: opening the table finds out what was written"))
        }
        WalError::ShardNotFound { .. } => (Exit::Table, None),
        WalError::CheckpointLost { .. } => (
            Exit::Store,
            Some("give the store that has the log (`clone`: --parent-wal-store), or use a checkpoint of scope `all`"),
        ),
        WalError::Pinned { .. } => (Exit::Failure, Some("`fencepost checkpoint list T` shows the checkpoints")),
        WalError::TooLarge { .. } => (Exit::Input, Some("ingest with a smaller --batch-rows")),
        WalError::Contention { .. } => (Exit::Failure, Some("run the command again")),
        _ => (Exit::Failure, None),
    }
}

fn judge_engine(error: &fencepost::Error) -> (Exit, Option<&'static str>) {
    use fencepost::Error as E;
    match error {
        E::Wal(e) => judge_wal(e),
        E::TableNotFound { .. } => {
            (Exit::Table, Some("create it with `fencepost create T --columns ...`, or ingest with `--like FILE`"))
        }
        E::TableNotReady { .. } | E::SchemaChanged { .. } => (Exit::Table, None),
        E::NoCheckpoint { .. } => (Exit::Table, Some("`fencepost checkpoint list T` shows those that are there")),
        E::TableExists { .. } => (Exit::Table, Some("ingest into it, or create the new table in another place")),
        E::InvalidOptions(_) => (Exit::Usage, None),
        E::InvalidBatch(_) => (Exit::Input, None),
        E::TooLarge { limit_name: "max_shards", .. } => {
            (Exit::Input, Some("a column with so many values is for bucket(COLUMN,N), not for identity(COLUMN)"))
        }
        E::TooLarge { .. } => (Exit::Input, Some("ingest with a smaller --batch-rows")),
        E::ShardNotOpened { source, .. } => judge_engine(source),
        E::Resharded { .. } => (Exit::Fenced, Some("run the command again: it opens the table with its new shards")),
        E::PartlyWritten { source, .. } => match judge_engine(source) {
            fenced @ (Exit::Fenced, _) => fenced,
            (exit, _) => (
                exit,
                Some("run the command again: on a table with a primary key the rows that were written are not doubled"),
            ),
        },
        E::FollowerEnded { source, .. } | E::NotRefreshed { source, .. } => judge_engine(source),
        E::Lance { source, .. } if is_store_error(source.as_ref()) => (Exit::Store, Some(STORE_HELP)),
        _ => (Exit::Failure, None),
    }
}

/// Looks for an engine or log error among the causes of another.
fn judge_source(error: &DataFusionError) -> Option<(Exit, Option<&'static str>)> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(e) = e.downcast_ref::<fencepost::Error>() {
            return Some(judge_engine(e));
        }
        if let Some(e) = e.downcast_ref::<WalError>() {
            return Some(judge_wal(e));
        }
        cause = e.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_pipe_is_success() {
        let error = CliError::stdout(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(error.exit().is_none());
    }

    #[test]
    fn engine_errors_keep_their_code_through_datafusion() {
        let inner = fencepost::Error::TableNotFound { url: "file:///x".into(), reason: "nothing there".into() };
        let error = CliError::from(DataFusionError::External(Box::new(inner)));
        assert_eq!(error.exit(), Some(Exit::Table));
        assert!(error.help.is_some());
    }

    #[test]
    fn context_and_note_surround_the_message() {
        let error = CliError::failure("b").context("a").note("c");
        assert_eq!(error.to_string(), "a: b; c");
    }
}
