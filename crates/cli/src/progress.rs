//! A progress line on stderr, only where somebody looks at it: stderr is a terminal.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Counts what is done.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Counts acknowledged rows, nobody knows of how many.
    pub(crate) fn rows() -> Self {
        Self::start(None, "{spinner} {human_pos} rows durable, {per_sec} ({elapsed}) {msg}")
    }

    /// Counts merged SSTables; how many there are is set with the first [`at`](Self::at).
    pub(crate) fn sstables() -> Self {
        Self::start(Some(0), "{bar:30} {pos}/{len} SSTables merged ({elapsed}, {eta} to go) {msg}")
    }

    /// Counts objects that were `done` ("deleted", "read"); more are found while it goes on.
    pub(crate) fn objects(done: &str) -> Self {
        Self::start(
            Some(0),
            &format!("{{bar:30}} {{human_pos}}/{{human_len}} objects {done} ({{elapsed}}, {{eta}} to go) {{msg}}"),
        )
    }

    /// Counts races for one key; how many there are is set with the first [`at`](Self::at).
    pub(crate) fn races() -> Self {
        Self::start(Some(0), "{bar:30} {pos}/{len} races for one key ({elapsed}, {eta} to go)")
    }

    /// Counts timed PUTs.
    pub(crate) fn puts() -> Self {
        Self::start(None, "{spinner} {human_pos} PUTs timed ({elapsed})")
    }

    fn start(length: Option<u64>, template: &str) -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// Sets how much is done, of how much.
    pub(crate) fn at(&self, done: u64, of: u64) {
        self.0.set_length(of);
        self.0.set_position(done);
    }

    /// Sets how much is done, of nobody knows how much.
    pub(crate) fn to(&self, done: u64) {
        self.0.set_position(done);
    }

    /// Sets what is being read.
    pub(crate) fn source(&self, name: &str) {
        self.0.set_message(name.to_string());
    }

    /// Adds rows.
    pub(crate) fn add(&self, rows: u64) {
        self.0.inc(rows);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
