//! Runs the built command and looks at the result.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// How one run ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// It succeeded; what it printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// It succeeded and printed JSON.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// It failed with this code, an error and nothing like a panic; what it said.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(self.stderr.contains("error: "), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self.stderr
    }
}

/// The command, ready to run.
pub(crate) fn command<I>(args: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new(env!("CARGO_BIN_EXE_fencepost"));
    command.args(args).stdin(Stdio::null()).env_remove("FENCEPOST_LOG");
    command
}

/// Runs the command.
pub(crate) fn fencepost<I>(args: I) -> Run
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    finished(command(args).output().unwrap())
}

/// Runs the command with text on stdin.
pub(crate) fn with_stdin<I>(args: I, input: &[u8]) -> Run
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut child = command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that refuses its input closes the pipe early.
    let _ = stdin.write_all(input);
    drop(stdin);
    finished(child.wait_with_output().unwrap())
}

fn finished(output: std::process::Output) -> Run {
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A folder for a table `t` and for files.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// The table's path.
    pub(crate) fn table(&self) -> String {
        self.path("t").display().to_string()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file; its path.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Creates the table.
    #[track_caller]
    pub(crate) fn create(&self, columns: &str, key: &str) {
        let table = self.table();
        let mut args = vec!["create", &table, "--columns", columns];
        if !key.is_empty() {
            args.extend(["--primary-key", key]);
        }
        fencepost(args).ok();
    }

    /// The rows of a query.
    #[track_caller]
    pub(crate) fn query(&self, sql: &str) -> Value {
        query(&self.table(), sql)
    }

    /// Every object of the table with its bytes: what "changes nothing" is measured by.
    pub(crate) fn objects(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        collect(&self.path("t"), &mut found);
        found.sort();
        found
    }
}

/// The rows of a query.
#[track_caller]
pub(crate) fn query(table: &str, sql: &str) -> Value {
    fencepost(["query", table, sql, "--output", "json"]).json()
}

fn collect(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
}
