//! What a run of the checker explores: how many of each actor, how much each may do, and which faults may happen.

use super::reached::Fact;
use super::state::Faults;
use super::types::WRITERS;

/// Where a world begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With an empty shard.
    Empty,
    /// With a writer that has been at work for long.
    Veteran,
    /// With that writer dead, and so many acknowledged rows of it above R.
    Dead(u8),
    /// As before, and the second writer dead as well: it had claimed, and the PUT of its sentinel, to where the first of those
    /// rows stands, is on its way.
    Zombie(u8),
}

/// A bounded world. See `docs/model.md` for what the bounds leave out.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name in reports.
    pub name: &'static str,
    /// What it is there to reach.
    pub about: &'static str,
    /// Where it begins.
    pub start: Start,
    /// How many rows the first, second … claimant appends; its length is the number of claimants.
    pub rows: &'static [u8],
    /// How many SSTables each publishes at most.
    pub flushes: [u8; WRITERS],
    /// `max_in_flight` and MAX_IN_FLIGHT in one.
    pub window: u8,
    /// Whether writers may close cleanly.
    pub closes: bool,
    /// The store in which each wants the log.
    pub stores: [u8; WRITERS],
    /// Whether an operator wipes the WAL store when that is allowed.
    pub wipes: bool,
    /// Sentinels side by side after a collision, at most.
    pub sentinels: u8,
    /// Whether WAL entries are collected.
    pub collects: bool,
    /// How often a collector that works from a manifest it read earlier runs.
    pub collector_runs: u8,
    /// Whether commits are made in the steps of section 3; otherwise in one.
    pub steps: bool,
    /// How many manifests pruning keeps.
    pub keep: u8,
    /// Commits of each of the actors without an epoch.
    pub others: [u8; 2],
    /// Whether replay reads one position per step instead of all at once.
    pub reads_singly: bool,
    /// Whether a reader follows the log.
    pub follows: bool,
    /// How many checkpoints are tried.
    pub checkpoints: u8,
    /// Whether checkpoints expire and are refreshed.
    pub lifetimes: bool,
    /// How often each fault may happen.
    pub faults: Faults,
    /// What has to happen on the way.
    pub reaches: &'static [Fact],
}

const NO_FAULTS: Faults = Faults { lost_ack: 0, conflict: 0, late: 0 };

/// Nothing happens here; the others differ from it by what they name.
pub const QUIET: Config = Config {
    name: "",
    about: "",
    start: Start::Veteran,
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
    lifetimes: false,
    faults: NO_FAULTS,
    reaches: &[],
};

impl Config {
    /// Those that the tests explore in full.
    pub fn all() -> Vec<Self> {
        use Fact::*;
        vec![
            Self {
                name: "takeover",
                about: "One takeover of a writer with two PUTs in flight; every fault once",
                rows: &[3, 2],
                flushes: [2, 1, 0],
                collects: true,
                faults: Faults { lost_ack: 1, conflict: 1, late: 1 },
                reaches: &[EveryWriterAcknowledged, EntryCollected, DeadEntry, DeadPassed, Conflict, LostAck, Late],
                ..QUIET
            },
            Self {
                name: "window",
                about: "More PUTs than the window holds, and a takeover",
                rows: &[5, 4],
                faults: Faults { lost_ack: 1, conflict: 0, late: 1 },
                reaches: &[EveryWriterAcknowledged, DeadEntry, DeadPassed, LostAck],
                ..QUIET
            },
            Self {
                name: "three",
                about: "Two takeovers, each of which may stall anywhere or die",
                rows: &[2, 1, 1],
                flushes: [1, 1, 1],
                collects: true,
                faults: Faults { lost_ack: 1, conflict: 0, late: 1 },
                reaches: &[EveryWriterAcknowledged, EntryCollected, FenceKept, DeadEntry, DeadPassed, PartialFlush],
                ..QUIET
            },
            Self {
                name: "range",
                about: "After a collision, three sentinels side by side, against a writer that never pauses",
                rows: &[5, 2],
                flushes: [0, 1, 0],
                collects: true,
                sentinels: 3,
                reaches: &[EntryCollected, DeadEntry, DeadPassed, SeveralSentinels],
                ..QUIET
            },
            Self {
                name: "range-three",
                about: "After a collision, two sentinels side by side; two takeovers",
                rows: &[3, 1, 0],
                flushes: [0, 1, 1],
                collects: true,
                sentinels: 2,
                reaches: &[EntryCollected, FenceKept, DeadEntry, SeveralSentinels],
                ..QUIET
            },
            Self {
                name: "first",
                about: "An empty shard: the first claim, positions read one by one, late sentinels",
                start: Start::Empty,
                rows: &[2, 1, 1],
                flushes: [1, 1, 1],
                collects: true,
                reads_singly: true,
                faults: Faults { lost_ack: 1, conflict: 0, late: 1 },
                reaches: &[EveryWriterAcknowledged, EntryCollected, Late],
                ..QUIET
            },
            Self {
                name: "wal-only",
                about: "A shard without SSTables, whose user truncates",
                rows: &[2, 2],
                flushes: [2, 2, 0],
                collects: true,
                faults: Faults { lost_ack: 1, conflict: 1, late: 1 },
                reaches: &[EveryWriterAcknowledged, EntryCollected, LostAck, Late],
                ..QUIET
            },
            Self {
                name: "follower",
                about: "A reader without a tenure, while entries are collected before it",
                rows: &[2, 2],
                flushes: [1, 1, 0],
                collects: true,
                follows: true,
                faults: Faults { lost_ack: 1, conflict: 0, late: 1 },
                reaches: &[EveryWriterAcknowledged, EntryCollected, FollowerRestarted, FollowerDoubts],
                ..QUIET
            },
            Self {
                name: "close",
                about: "Clean closes, after which a claimant need not keep its sentinel",
                rows: &[2, 1, 1],
                flushes: [0, 1, 1],
                closes: true,
                collects: true,
                faults: Faults { lost_ack: 0, conflict: 0, late: 1 },
                reaches: &[EveryWriterAcknowledged, EntryCollected, Closed],
                ..QUIET
            },
            Self {
                name: "close-window",
                about: "Three PUTs in flight; the successor closes at once; stragglers reach the one after it",
                rows: &[3, 0, 2],
                window: 3,
                closes: true,
                reaches: &[DeadEntry, DeadPassed, Closed, LaterRow],
                ..QUIET
            },
            Self {
                name: "wipe",
                about: "From an empty shard: clean closes, after which the operator may wipe the WAL store",
                start: Start::Empty,
                rows: &[1, 1, 1],
                flushes: [1, 1, 0],
                closes: true,
                wipes: true,
                faults: Faults { lost_ack: 1, conflict: 0, late: 1 },
                reaches: &[EveryWriterAcknowledged, Wiped],
                ..QUIET
            },
            Self {
                name: "stores",
                about: "The log moves to another store and back",
                rows: &[2, 1, 1],
                flushes: [1, 1, 1],
                stores: [0, 1, 0],
                collects: true,
                faults: Faults { lost_ack: 1, conflict: 0, late: 1 },
                reaches: &[EveryWriterAcknowledged, EntryCollected, Moved, MovedBack],
                ..QUIET
            },
            Self {
                name: "checkpoints",
                about: "Two attempts at a checkpoint, against a flushing writer and a takeover",
                rows: &[2, 1],
                flushes: [1, 1, 0],
                collects: true,
                checkpoints: 2,
                reaches: &[EntryCollected, PinnedBelowR, Orphan],
                ..QUIET
            },
            Self {
                name: "lifetimes",
                about: "A checkpoint is refreshed while it expires; the collector's clock is one tick ahead",
                rows: &[2],
                flushes: [1, 0, 0],
                collects: true,
                checkpoints: 1,
                lifetimes: true,
                reaches: &[EntryCollected, PinnedBelowR, Refreshed, Expired],
                ..QUIET
            },
            Self {
                name: "collector",
                about: "Commits in steps, pruning, and a collector that works from a manifest that it read earlier",
                rows: &[1, 1],
                flushes: [1, 0, 0],
                collector_runs: 1,
                steps: true,
                keep: 1,
                others: [1, 0],
                faults: Faults { lost_ack: 1, conflict: 0, late: 0 },
                reaches: &[Pruned, CameBack, LostAck],
                ..QUIET
            },
            Self {
                name: "claims",
                about: "Commits in steps and pruning: two claims and a commit of somebody else race",
                start: Start::Dead(1),
                rows: &[1, 1, 1],
                collects: true,
                steps: true,
                keep: 1,
                others: [1, 0],
                reaches: &[LaterRow, Pruned, CameBack],
                ..QUIET
            },
            Self {
                name: "forgotten",
                about: "Commits in steps and pruning: names that come back two versions deep (schedule 17)",
                start: Start::Dead(2),
                rows: &[2, 0, 0],
                steps: true,
                keep: 1,
                others: [1, 0],
                faults: Faults { lost_ack: 1, conflict: 0, late: 0 },
                reaches: &[Pruned, CameBack],
                ..QUIET
            },
            Self {
                name: "suspended",
                about: "Commits in steps and pruning, before a follower that lists, stalls and reads (schedule 45)",
                start: Start::Zombie(1),
                rows: &[1, 0, 1],
                flushes: [0, 0, 1],
                collects: true,
                follows: true,
                steps: true,
                keep: 1,
                closes: true,
                others: [1, 0],
                reaches: &[LaterRow, EntryCollected, Pruned, CameBack, FollowerDoubts, FollowerDeceived],
                ..QUIET
            },
        ]
    }

    /// Larger ones, for a machine with memory and time.
    pub fn large() -> Vec<Self> {
        let faults = Faults { late: 1, ..NO_FAULTS };
        let larger = |config: Self| match config.name {
            "close" => Some(Self { flushes: [1, 1, 1], faults: Faults { lost_ack: 1, ..faults }, ..config }),
            "checkpoints" => Some(Self { faults, ..config }),
            _ => None,
        };
        Self::all().into_iter().filter_map(larger).collect()
    }

    /// The one of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|config| config.name == name)
    }
}
