//! What a run of the checker explores: how many of each actor, how much each may do, and which faults may happen.

use super::state::Faults;
use super::types::WRITERS;

/// A bounded world. See `docs/model.md` for what the bounds leave out.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name in reports.
    pub name: &'static str,
    /// What it is there to reach.
    pub about: &'static str,
    /// How many rows the first, second … claimant appends; its length is the number of claimants.
    pub(super) rows: &'static [u8],
    /// How many SSTables each publishes at most.
    pub(super) flushes: [u8; WRITERS],
    /// `max_in_flight` and MAX_IN_FLIGHT in one.
    pub(super) window: u8,
    /// Whether writers may close cleanly.
    pub(super) closes: bool,
    /// The store in which each wants the log.
    pub(super) stores: [u8; WRITERS],
    /// Whether an operator wipes the WAL store when that is allowed.
    pub(super) wipes: bool,
    /// Sentinels side by side after a collision, at most.
    pub(super) sentinels: u8,
    /// Whether WAL entries are collected.
    pub(super) collects: bool,
    /// How often a collector that works from a manifest it read earlier runs.
    pub(super) collector_runs: u8,
    /// Whether commits are made in the steps of section 3; otherwise in one.
    pub(super) steps: bool,
    /// How many manifests pruning keeps.
    pub(super) keep: u8,
    /// Commits of each of the actors without an epoch.
    pub(super) others: [u8; 2],
    /// Whether replay reads one position per step instead of all at once.
    pub(super) reads_singly: bool,
    /// Whether a reader follows the log.
    pub(super) follows: bool,
    /// How many checkpoints are tried.
    pub(super) checkpoints: u8,
    /// The faults of the WAL's PUTs.
    pub(super) faults: Faults,
    /// The faults of the manifests' PUTs.
    pub(super) wal_only: bool,
}

const NO_FAULTS: Faults = Faults { lost_ack: 0, conflict: 0, late: 0 };

/// Nothing happens here; the others differ from it by what they name.
const QUIET: Config = Config {
    name: "",
    about: "",
    rows: &[],
    flushes: [0; WRITERS],
    window: 2,
    closes: false,
    stores: [0; WRITERS],
    wipes: false,
    sentinels: 1,
    collects: false,
    collector_runs: 0,
    steps: false,
    keep: 0,
    others: [0; 2],
    reads_singly: false,
    follows: false,
    checkpoints: 0,
    faults: NO_FAULTS,
    wal_only: false,
};

impl Config {
    /// Those that are explored in full by the tests.
    pub fn all() -> Vec<Self> {
        vec![
            Self {
                name: "takeover",
                about: "one takeover of a writer with a window",
                rows: &[3, 3],
                flushes: [1, 1, 0],
                collects: true,
                faults: Faults { lost_ack: 1, conflict: 1, late: 1 },
                ..QUIET
            },
            Self {
                name: "three",
                about: "two takeovers",
                rows: &[2, 1, 1],
                flushes: [0, 1, 1],
                collects: true,
                faults: Faults { lost_ack: 1, conflict: 0, late: 1 },
                ..QUIET
            },
        ]
    }
}
