//! A writer process of ours: started, watched by the lines it prints, signalled, and waited for.

use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::signal::{self, Signal};
use super::writer::Said;
use crate::error::{CliError, Result};

/// Longest error output that is kept, in bytes.
const MAX_STDERR_BYTES: u64 = 64 << 10;

/// Which rows a writer is to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriterSpec {
    pub(crate) first: u64,
    pub(crate) rows: u64,
}

/// How far a writer says it is. Both are ends: row numbers below them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    issued: u64,
    acknowledged: u64,
}

impl Progress {
    /// The end of the rows that were given to the table.
    pub(crate) fn issued(&self) -> u64 {
        self.issued
    }

    /// The end of the rows that the table said are durable.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Put { end } => self.issued = self.issued.max(end),
            Said::Ack { end } => self.acknowledged = self.acknowledged.max(end),
        }
    }
}

/// How a writer ended.
#[derive(Debug)]
pub(crate) struct End {
    /// Its exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Everything it said, also in its last moment.
    pub(crate) progress: Progress,
    /// What it wrote to stderr.
    pub(crate) stderr: String,
}

/// A running writer. Killed when dropped.
pub(crate) struct Child {
    process: Mutex<tokio::process::Child>,
    progress: watch::Receiver<Progress>,
    listener: JoinHandle<()>,
    errors: JoinHandle<String>,
}

impl Child {
    /// Starts `fencepost __writer`.
    pub(crate) async fn start(url: &str, seed: u64, memtable_rows: usize, spec: WriterSpec) -> Result<Child> {
        let failed = |e: std::io::Error| CliError::failure(format!("cannot start a writer process: {e}"));
        let mut process = Command::new(std::env::current_exe().map_err(failed)?)
            .args(["__writer", url])
            .args(["--first", &spec.first.to_string(), "--rows", &spec.rows.to_string()])
            .args(["--seed", &seed.to_string(), "--memtable-rows", &memtable_rows.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (Some(stdout), Some(stderr)) = (process.stdout.take(), process.stderr.take()) else {
            return Err(CliError::failure("the writer process has no pipes"));
        };
        let start = Progress { issued: spec.first, acknowledged: spec.first };
        let (sender, progress) = watch::channel(start);
        let listener = tokio::spawn(listen(stdout, sender));
        let errors = tokio::spawn(async move {
            let mut text = Vec::new();
            // Not being able to read it only makes a message shorter.
            let _ = stderr.take(MAX_STDERR_BYTES).read_to_end(&mut text).await;
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok(Child { process: Mutex::new(process), progress, listener, errors })
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Waits until it is far enough.
    pub(crate) async fn wait_for(
        &self,
        what: &str,
        patience: Duration,
        enough: impl Fn(&Progress) -> bool,
    ) -> Result<()> {
        let mut progress = self.progress.clone();
        let waiting = progress.wait_for(enough);
        match tokio::time::timeout(patience, waiting).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(CliError::failure(format!("the writer process ended while the demo waited for {what}"))
                .help("FENCEPOST_LOG=debug shows what it did")),
            Err(_) => Err(CliError::failure(format!("the writer process gave no {what} in {} s", patience.as_secs()))),
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&self) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        process.start_kill().map_err(|e| CliError::failure(format!("cannot kill the writer process: {e}")))
    }

    /// SIGSTOP.
    pub(crate) fn stop(&self) -> Result<()> {
        self.signal(Signal::Stop)
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) -> Result<()> {
        self.signal(Signal::Continue)
    }

    /// Waits for its end.
    pub(crate) async fn end(self, patience: Duration) -> Result<End> {
        let Child { process, progress, listener, errors } = self;
        let mut process = process.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let waiting = async {
            let status = process.wait().await;
            // What it said last is still in the pipe; the listener ends when that is read.
            let _ = listener.await;
            let stderr = errors.await.unwrap_or_default();
            status.map(|status| End { code: status.code(), progress: *progress.borrow(), stderr })
        };
        match tokio::time::timeout(patience, waiting).await {
            Ok(Ok(end)) => Ok(end),
            Ok(Err(e)) => Err(CliError::failure(format!("cannot wait for the writer process: {e}"))),
            Err(_) => Err(CliError::failure(format!("the writer process did not end in {} s", patience.as_secs()))),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // No id: it was waited for, and the number may be somebody else's by now.
        let Some(pid) = process.id() else {
            return Err(CliError::failure("the writer process has ended already"));
        };
        signal::send(pid, signal).map_err(|e| CliError::failure(format!("cannot send {signal:?} to the writer: {e}")))
    }
}

async fn listen(stdout: ChildStdout, progress: watch::Sender<Progress>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // A line that was cut off by SIGKILL is not one: nobody was told.
        if let Some(said) = Said::parse(&line) {
            progress.send_modify(|p| p.hear(said));
        }
    }
}
