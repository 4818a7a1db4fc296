//! One state of the model: what the store holds, what every process believes, and what the outside world was told.

use super::types::{CommitId, Entry, LATE, Manifest, POSITIONS, Position, ROWS, Rows, Set, VERSIONS, WRITERS};

/// Everything. The store is the truth, the processes hold beliefs, and the last part is what only the checker sees.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The two WAL stores; positions are indexes.
    pub(super) wal: [[Entry; POSITIONS]; 2],
    /// Manifests that exist, by version. With commits in one step only the newest is kept, in the first place.
    pub(super) manifests: [Manifest; VERSIONS],
    /// PUTs of WAL objects that may land at any later time.
    pub(super) late: [LatePut; LATE],
    /// A PUT of a manifest that may land at any later time; version 0 is "none".
    pub(super) late_manifest: Manifest,
    pub(super) pins: [Pin; 2],

    pub(super) writers: [Writer; WRITERS],
    pub(super) others: [Committer; 2],
    pub(super) collector: Collector,
    pub(super) follower: Follower,
    pub(super) keeper: Keeper,

    /// What the store may still do wrong.
    pub(super) faults: Faults,
    /// Rows that the user was told are durable.
    pub(super) acknowledged: Set,
    /// The highest epoch whose takeover was recorded.
    pub(super) recorded_epoch: u8,
    /// The `commit_id`s of all manifests that were the newest at some time: the one lineage.
    pub(super) lineage: u64,
    /// The highest version whose commit was seen to be done: what the hint for readers says. 0 once it is pruned.
    pub(super) hint: u8,
    /// The epoch of the manifest that made an operator wipe the WAL store; 0 if nobody is about to.
    pub(super) wiping: u8,
    /// The time, as far as lifetimes of checkpoints are concerned.
    pub(super) clock: u8,
    /// The invariant that was broken on the way here; 0 is none.
    pub(super) broken: u8,
}

/// A WAL object on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LatePut {
    pub(super) entry: Entry,
    pub(super) store: u8,
    pub(super) position: Position,
}

/// How often each fault may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A PUT lands, its answer does not.
    pub lost_ack: u8,
    /// 409 with nothing landed.
    pub conflict: u8,
    /// A PUT that timed out lands at any later time.
    pub late: u8,
}

/// Where a writer is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    #[default]
    Unborn,
    Claiming,
    Reading,
    Fencing,
    Recording,
    Open,
    /// Fenced or poisoned. Requests that were on their way still are.
    Stopped,
    Closed,
}

/// A process that takes the shard over, appends and publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Writer {
    pub(super) phase: Phase,
    pub(super) epoch: u8,
    /// The claim derives from a manifest that the tenure before had closed.
    pub(super) after_clean_close: bool,
    /// The store that its claim found the log in, or that it moved it to.
    pub(super) store: u8,
    /// The first position that it has not read.
    pub(super) next: Position,
    /// The highest epoch read.
    pub(super) top: u8,
    /// R as it knows it.
    pub(super) replay_after: Position,
    /// How many sentinels it puts side by side, which of them it knows to be settled, and which it must GET.
    pub(super) width: u8,
    pub(super) settled: Set,
    pub(super) must_get: Set,
    /// Its last sentinel.
    pub(super) sentinel: Position,
    /// Live entries above R that it read or wrote, sentinels included.
    pub(super) log: [Entry; POSITIONS],
    /// Sentinels and dead entries that its next commit adds to `fences`.
    pub(super) fences: Set,
    /// Everything up to here is acknowledged.
    pub(super) acknowledged: Position,
    pub(super) appends: [Append; ROWS],
    pub(super) flushes_left: u8,
    pub(super) commit: Commit,
}

/// How far an append is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Progress {
    #[default]
    New,
    /// Sent, no certain answer.
    Sent,
    /// "Already exists": to be read.
    MustGet,
    Landed,
    Acknowledged,
}

/// One append of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Append {
    pub(super) progress: Progress,
    pub(super) position: Position,
    /// The rows of its entry, in the writer's own numbering; its own alone, unless a mutant gathers more.
    pub(super) rows: u8,
    /// Rows that were acknowledged when it was first sent.
    pub(super) after: Set,
}

/// What a commit changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Change {
    #[default]
    Nothing,
    Claim,
    Record,
    /// An SSTable that covers the log up to the position; in a WAL-only shard, truncation.
    Flush(Position),
    Close,
    /// The log goes on in this store.
    Move(u8),
    /// A commit of somebody without an epoch: checkpoint, merger, administration.
    Touch,
}

/// Where a commit in steps is (section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Step {
    #[default]
    Idle,
    List,
    Read(u8),
    Put,
    Get,
    CheckLineage,
    /// Somebody else's manifest stands where ours was to go; is it of the lineage?
    CheckTaken,
    /// The manifest of this version refuses the change; is it the newest?
    LookAgain(u8),
}

/// A manifest commit under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Commit {
    pub(super) step: Step,
    pub(super) change: Change,
    /// What `next` derives from; between commits, the manifest that is held.
    pub(super) base: Manifest,
    pub(super) next: Manifest,
    /// How many manifests this actor derived.
    pub(super) derived: u8,
    /// A claim whose lineage check is still to come (mutant only).
    pub(super) unchecked: bool,
}

/// A committer without an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Committer {
    pub(super) commits_left: u8,
    pub(super) commit: Commit,
}

/// A collector that works from a manifest that it has read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Collector {
    pub(super) step: Step,
    pub(super) manifest: Manifest,
    pub(super) runs_left: u8,
}

/// A reader without a tenure that follows the log (section 6).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Follower {
    pub(super) started: bool,
    pub(super) store: u8,
    pub(super) next: Position,
    pub(super) top: u8,
    /// It read this at `next`, which has no live rows, and must look at the manifest before it believes it.
    pub(super) doubts: bool,
    pub(super) read: Entry,
    /// Where its look at the manifest is, if that takes steps.
    pub(super) step: Step,
    /// R of the manifest that it read has passed its position.
    pub(super) passed: bool,
    pub(super) returned: Rows,
}

/// A checkpoint's object: a manifest pinned, and a tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Pin {
    pub(super) exists: bool,
    pub(super) commit: CommitId,
    pub(super) version: u8,
    pub(super) store: u8,
    pub(super) replay_after: Position,
    pub(super) replay_after_epoch: u8,
    pub(super) tail: Position,
    pub(super) sstables: Rows,
    /// Acknowledged before it was made: must be in it.
    pub(super) must_have: Set,
    /// Whether its creator was told that it is there, and with which rows.
    pub(super) listed: bool,
    pub(super) moment: Rows,
    /// The user was promised that it lives up to this time.
    pub(super) promised: u8,
}

/// Who makes, refreshes and expires checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Keeper {
    pub(super) made: u8,
    /// Saw checkpoint 0 listed and alive, and is about to refresh it.
    pub(super) refreshing: bool,
    pub(super) refreshed: bool,
    /// Saw a checkpoint expired, and is about to take it off the list.
    pub(super) expiring: Set,
}

impl State {
    /// The newest manifest.
    pub(super) fn newest(&self) -> &Manifest {
        // There is always one: the latest is never deleted, and the first exists from the start.
        self.manifests.iter().max_by_key(|m| m.version).unwrap_or(&self.manifests[0])
    }

    /// The manifest of a version; absent has version 0.
    pub(super) fn manifest(&self, version: u8) -> Manifest {
        self.manifests.iter().find(|m| m.version == version && version > 0).copied().unwrap_or_default()
    }

    /// Creates a manifest whose name is free. False if the model has no room for it.
    pub(super) fn create_manifest(&mut self, manifest: Manifest) -> bool {
        let Some(place) = self.manifests.iter().position(|m| m.version == 0) else {
            return false;
        };
        self.manifests[place] = manifest;
        // In order of versions, so that equal stores are equal states.
        self.manifests.sort_by_key(|m| if m.version == 0 { u8::MAX } else { m.version });
        true
    }

    pub(super) fn delete_manifest(&mut self, version: u8) {
        for manifest in &mut self.manifests {
            if manifest.version == version {
                *manifest = Manifest::default();
            }
        }
        self.manifests.sort_by_key(|m| if m.version == 0 { u8::MAX } else { m.version });
    }

    pub(super) fn at(&self, store: u8, position: Position) -> Entry {
        self.wal[store as usize][position as usize]
    }

    pub(super) fn put(&mut self, store: u8, position: Position, entry: Entry) {
        self.wal[store as usize][position as usize] = entry;
    }

    /// Leaves a PUT on its way. False if the model has no room for it.
    pub(super) fn send_late(&mut self, put: LatePut) -> bool {
        if self.late.contains(&put) {
            return true;
        }
        let Some(place) = self.late.iter_mut().find(|p| p.entry.is_absent()) else {
            return false;
        };
        *place = put;
        self.late.sort_unstable();
        true
    }
}
