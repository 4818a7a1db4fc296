//! Another process under test: its acknowledgements, and its death at a moment that the test chooses.
//!
//! It owns the process (nothing it started survives it) and the lines that the process printed. A line counts as said
//! once the process wrote it, also if it was killed before the test read it. Everything here blocks the calling thread.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::lock;

const POLL_INTERVAL: Duration = Duration::from_millis(5);
const SIGNAL_DEADLINE: Duration = Duration::from_secs(10);

/// A child process with its standard streams in our hands. Killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

/// Why a child did not do what the test waited for.
#[derive(Debug)]
pub enum ChildError {
    /// The operating system refused.
    Io(io::Error),
    /// It did not happen in time.
    Deadline {
        /// What the test waited for.
        waiting_for: String,
        /// What the process has printed to its standard error.
        stderr: String,
    },
    /// The process ended first.
    Ended {
        /// What the test waited for.
        waiting_for: String,
        /// How the process ended, if that is known already.
        status: Option<ExitStatus>,
        /// What the process has printed to its standard error.
        stderr: String,
    },
}

impl fmt::Display for ChildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the child process cannot be controlled: {error}"),
            Self::Deadline { waiting_for, stderr } => {
                write!(f, "the child process did not get to {waiting_for} in time; its standard error: {stderr}")
            }
            Self::Ended { waiting_for, status, stderr } => {
                write!(f, "the child process ended before {waiting_for} (")?;
                match status {
                    Some(status) => write!(f, "{status}")?,
                    None => write!(f, "status unknown")?,
                }
                write!(f, "); its standard error: {stderr}")
            }
        }
    }
}

impl std::error::Error for ChildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Deadline { .. } | Self::Ended { .. } => None,
        }
    }
}

impl From<io::Error> for ChildError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Process {
    /// Starts `program` with `args`.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self, ChildError> {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn_command(command)
    }

    /// Starts `command`, with its standard streams replaced by pipes to us.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn spawn_command(mut command: Command) -> Result<Self, ChildError> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (sender, lines) = channel();
        let stderr = Arc::new(Mutex::new(String::new()));
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(thread::spawn(move || {
                // A last line without its end was cut by the death of the process: it was not said.
                let mut reader = BufReader::new(stdout);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
                    let said = line.trim_end_matches(['\r', '\n']).to_owned();
                    line.clear();
                    if sender.send(said).is_err() {
                        break;
                    }
                }
            }));
        }
        if let Some(mut pipe) = child.stderr.take() {
            let stderr = Arc::clone(&stderr);
            readers.push(thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                    let text = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default());
                    lock(&stderr).push_str(&text);
                }
            }));
        }
        Ok(Self { stdin: child.stdin.take(), child, lines, stderr, readers, status: None })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its standard output.
    ///
    /// # Errors
    ///
    /// If no line comes within `deadline`, or none can come any more.
    pub fn next_line(&mut self, deadline: Duration) -> Result<String, ChildError> {
        self.next_line_for("its next line", deadline)
    }

    /// Reads lines up to and with the first one that satisfies `is_it`, and returns them all.
    ///
    /// # Errors
    ///
    /// If it does not come within `deadline`, or cannot come any more. Lines read so far are gone then.
    pub fn lines_until(
        &mut self,
        waiting_for: &str,
        deadline: Duration,
        is_it: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, ChildError> {
        let end = Instant::now() + deadline;
        let mut read = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.next_line_for(waiting_for, left)?;
            let found = is_it(&line);
            read.push(line);
            if found {
                return Ok(read);
            }
        }
    }

    /// The first `n` lines that come: `n` acknowledgements.
    ///
    /// # Errors
    ///
    /// Like [`lines_until`](Self::lines_until).
    pub fn take_lines(&mut self, n: usize, deadline: Duration) -> Result<Vec<String>, ChildError> {
        let end = Instant::now() + deadline;
        (0..n)
            .map(|_| {
                let left = end.saturating_duration_since(Instant::now());
                self.next_line_for(&format!("{n} lines"), left)
            })
            .collect()
    }

    /// Every line that the process has said and nobody has read, once it has ended. Call it after
    /// [`kill`](Self::kill) or when the process ends by itself: a line in the pipe is an acknowledgement too.
    ///
    /// # Errors
    ///
    /// If its output is still open after `deadline` (a grandchild may hold it).
    pub fn rest_of_lines(&mut self, deadline: Duration) -> Result<Vec<String>, ChildError> {
        let end = Instant::now() + deadline;
        let mut read = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => read.push(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(read),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.deadline("the end of its output"));
                }
            }
        }
    }

    /// What it has printed to its standard error so far.
    pub fn stderr(&self) -> String {
        lock(&self.stderr).clone()
    }

    /// Writes one line to its standard input.
    ///
    /// # Errors
    ///
    /// If its input is closed.
    pub fn say(&mut self, line: &str) -> Result<(), ChildError> {
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "its input is closed");
        let stdin = self.stdin.as_mut().ok_or_else(closed)?;
        writeln!(stdin, "{line}")?;
        Ok(stdin.flush()?)
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// SIGSTOP, and waits until every thread of it has stopped: between two instructions, for as long as the test likes.
    ///
    /// # Errors
    ///
    /// If it has ended, or does not stop.
    pub fn suspend(&mut self) -> Result<(), ChildError> {
        self.signal("STOP")?;
        // Where the state cannot be read the signal has been sent, and that must do.
        self.poll("its suspension", SIGNAL_DEADLINE, |process| Ok(process.is_suspended().unwrap_or(true).then_some(())))
    }

    /// SIGCONT: it goes on, believing what it believed.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub fn resume(&mut self) -> Result<(), ChildError> {
        self.signal("CONT")
    }

    /// SIGKILL, also to a suspended process, and waits for its end.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn kill(&mut self) -> Result<ExitStatus, ChildError> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        self.child.kill()?;
        let status = self.child.wait()?;
        self.status = Some(status);
        Ok(status)
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// If it has not ended within `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus, ChildError> {
        self.poll("its end", deadline, Self::ended)
    }

    fn next_line_for(&mut self, what: &str, deadline: Duration) -> Result<String, ChildError> {
        match self.lines.recv_timeout(deadline) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => Err(self.deadline(what)),
            Err(RecvTimeoutError::Disconnected) => {
                // Its output is closed, its end is near; the error is better with the status in it.
                let status = self.wait(Duration::from_secs(1)).ok();
                Err(ChildError::Ended { waiting_for: what.to_owned(), status, stderr: self.stderr() })
            }
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, ChildError> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    fn poll<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut probe: impl FnMut(&mut Self) -> Result<Option<T>, ChildError>,
    ) -> Result<T, ChildError> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(found) = probe(self)? {
                return Ok(found);
            }
            if Instant::now() >= end {
                return Err(self.deadline(what));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends a signal by the shell's own `kill`, which every Unix has: no unsafe code and no further dependency.
    fn signal(&mut self, name: &str) -> Result<(), ChildError> {
        // Until it is reaped, which only we do, its id cannot belong to anybody else.
        if let Some(status) = self.ended()? {
            return Err(ChildError::Ended {
                waiting_for: format!("the signal {name}"),
                status: Some(status),
                stderr: self.stderr(),
            });
        }
        let sent =
            Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", name]).arg(self.id().to_string()).status()?;
        if !sent.success() {
            let message = format!("the signal {name} could not be sent to process {}", self.id());
            return Err(io::Error::other(message).into());
        }
        Ok(())
    }

    /// Whether it is suspended, all its threads; `None` where that cannot be seen (no `/proc`).
    fn is_suspended(&self) -> Option<bool> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id())).ok()?;
        let mut all = true;
        for task in tasks {
            let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            // The state follows the name, which stands in parentheses and may contain anything.
            let state = stat.rsplit(')').next()?.trim_start().chars().next()?;
            all &= state == 'T';
        }
        Some(all)
    }

    fn deadline(&self, what: &str) -> ChildError {
        ChildError::Deadline { waiting_for: what.to_owned(), stderr: self.stderr() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.kill().is_err() {
            return;
        }
        // A grandchild may hold the pipes open for longer; its reader then ends with the test program.
        for reader in self.readers.drain(..).filter(JoinHandle::is_finished) {
            let _ = reader.join();
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const COUNTING: &str = "i=0; while :; do i=$((i+1)); echo $i; done";

    fn sh(script: &str) -> Process {
        Process::spawn("sh", ["-c", script]).unwrap()
    }

    #[test]
    fn lines_come_in_order_with_a_deadline() {
        let mut child = sh("echo one; echo two; read go; echo three; echo cut-off >&2; exit 3");
        assert_eq!(child.take_lines(2, SOON).unwrap(), ["one", "two"]);
        let silence = child.next_line(Duration::from_millis(20)).unwrap_err();
        assert!(matches!(silence, ChildError::Deadline { .. }));
        child.say("go").unwrap();
        let read = child.lines_until("three", SOON, |line| line == "three");
        assert_eq!(read.unwrap(), ["three"]);
        let end = child.next_line(SOON).unwrap_err();
        assert!(matches!(end, ChildError::Ended { .. }), "{end}");
        assert_eq!(child.wait(SOON).unwrap().code(), Some(3));
    }

    #[test]
    fn what_was_said_before_the_kill_is_not_lost() {
        let mut child = sh("echo one; echo two; printf cut; echo ready >&2; read forever");
        while !child.stderr().contains("ready") {
            thread::sleep(POLL_INTERVAL);
        }
        let status = child.kill().unwrap();
        assert_eq!(status.signal(), Some(9));
        // `cut` was never a whole line.
        assert_eq!(child.rest_of_lines(SOON).unwrap(), ["one", "two"]);
    }

    #[test]
    fn a_killed_process_leaves_whole_lines_only() {
        let mut child = sh(COUNTING);
        let mut said = child.take_lines(100, SOON).unwrap();
        child.kill().unwrap();
        said.extend(child.rest_of_lines(SOON).unwrap());
        let expected: Vec<String> = (1..=said.len()).map(|i| i.to_string()).collect();
        assert_eq!(said, expected);
    }

    #[test]
    fn a_suspended_process_says_nothing_until_it_is_resumed() {
        let mut child = sh("while read line; do echo \"$line\"; done");
        child.say("a").unwrap();
        assert_eq!(child.next_line(SOON).unwrap(), "a");
        child.suspend().unwrap();
        child.say("b").unwrap();
        assert!(child.next_line(Duration::from_millis(50)).is_err());
        child.resume().unwrap();
        assert_eq!(child.next_line(SOON).unwrap(), "b");
        child.close_stdin();
        assert!(child.wait(SOON).unwrap().success());
        assert!(matches!(child.suspend(), Err(ChildError::Ended { .. })));
    }

    #[test]
    fn a_suspended_process_can_be_killed() {
        let mut child = sh(COUNTING);
        child.next_line(SOON).unwrap();
        child.suspend().unwrap();
        assert_eq!(child.kill().unwrap().signal(), Some(9));
    }

    #[test]
    fn dropping_it_reaps_it() {
        let child = sh(COUNTING);
        let id = child.id();
        drop(child);
        let alive = Command::new("sh").args(["-c", &format!("kill -0 {id} 2>/dev/null")]).status().unwrap();
        assert!(!alive.success());
    }
}
