//! A progress line on stderr, only where somebody looks at it: stderr is a terminal.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Counts acknowledged rows.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Starts at zero.
    pub(crate) fn rows() -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {human_pos} rows durable, {per_sec} ({elapsed}) {msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
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
