//! What happened in a run, line by line: a running hash always, the lines themselves when somebody will read them.

use std::fmt::{self, Write};
use std::time::Duration;

/// A run's history. Two runs with equal hashes did the same things at the same virtual times.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    keep: bool,
    lines: Vec<String>,
    count: u64,
    hash: u64,
    scratch: String,
}

impl Trace {
    pub(crate) fn new(keep: bool) -> Self {
        Self { keep, hash: 0xCBF2_9CE4_8422_2325, ..Self::default() }
    }

    /// Whether somebody will read the lines.
    pub(crate) fn is_kept(&self) -> bool {
        self.keep
    }

    /// More about the last line, which is not part of the hash.
    pub(crate) fn detail(&mut self, detail: &str) {
        if let Some(line) = self.lines.last_mut() {
            line.push_str(detail);
        }
    }

    pub(crate) fn line(&mut self, at: Duration, who: &str, what: fmt::Arguments<'_>) {
        self.scratch.clear();
        // Writing to a string does not fail.
        let _ = write!(self.scratch, "{:>14.3}s {who:<4} {what}", at.as_secs_f64());
        self.count += 1;
        self.hash = fnv(self.hash, self.scratch.as_bytes());
        if self.keep {
            self.lines.push(self.scratch.clone());
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}

/// FNV-1a, whose meaning does not change with the compiler.
pub(crate) fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3))
}
