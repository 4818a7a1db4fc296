//! What can be found, as a table: the name of each kind, how bad it is, and what to do about it.

use std::fmt;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// As it should be, but worth knowing.
    Info,
    /// Nothing is lost, but somebody has to do something.
    Warning,
    /// An object is lost, damaged or where it must not be.
    Damage,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Damage => "damage",
        })
    }
}

/// One kind of finding. The constants of this module are those of a shard's log and manifests; whoever checks more
/// (SSTables, a base table) makes kinds of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FindingKind {
    /// Its name, which does not change: programs may match it.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What an operator does about it.
    pub what_to_do: &'static str,
}

impl FindingKind {
    /// A kind.
    pub const fn new(name: &'static str, severity: Severity, what_to_do: &'static str) -> Self {
        Self { name, severity, what_to_do }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// The object, by its path in the store; for something missing, where it should be.
    pub object: String,
    /// What is wrong with it.
    pub detail: String,
}

impl Finding {
    /// A finding.
    pub fn new(kind: FindingKind, object: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self { kind, object: object.to_string(), detail: detail.into() }
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        self.kind.severity
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}: {}", self.kind.severity, self.kind.name, self.object, self.detail)
    }
}

/// Makes constants of kinds, and `ALL` of them, from a table. For this workspace.
#[doc(hidden)]
#[macro_export]
macro_rules! finding_kinds {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $severity:ident, $what_to_do:literal;)*) => {
        $(
            $(#[$doc])*
            pub const $constant: $crate::FindingKind =
                $crate::FindingKind::new($name, $crate::Severity::$severity, $what_to_do);
        )*

        /// All kinds of this module.
        pub const ALL: &[$crate::FindingKind] = &[$($constant),*];
    };
}

finding_kinds! {
    /// An object in `wal/`, `manifest/` or `checkpoints/` whose name neither engine writes.
    FOREIGN_OBJECT = "foreign-object", Damage,
        "no engine reads it; find out which program writes into this folder, then move the object away";
    /// Something in the shard's folder that this version does not know.
    UNKNOWN_OBJECT = "unknown-object", Warning,
        "no engine of this version reads it; if no newer one wrote it, move it away";
    /// A manifest that does not decode, or is another version's or shard's.
    MANIFEST_DAMAGED = "manifest-damaged", Damage,
        "restore the object from a copy or the bucket's versioning; if it is the newest manifest, nothing opens until then";
    /// A version is missing from the run that ends with the newest one, or there is none at all.
    MANIFEST_MISSING = "manifest-missing", Damage,
        "restore the object; only a prefix of the versions is ever pruned";
    /// A manifest does not derive from the one before it.
    LINEAGE_BROKEN = "lineage-broken", Damage,
        "two histories of the shard were mixed, as by a copy put back over a live one; stop all writers and restore manifest/ and wal/ of one moment";
    /// A number that only rises went down from one version to the next.
    MANIFEST_WENT_BACK = "manifest-went-back", Damage,
        "an old manifest was put back as a new one; stop all writers and restore manifest/ of one moment";
    /// A manifest contradicts itself.
    MANIFEST_INCONSISTENT = "manifest-inconsistent", Damage,
        "no writer commits such a manifest; stop all writers, restore the version from a copy, and report it";
    /// The list of SSTables is not in order, names something twice, or reaches the current generation.
    SSTABLES_INCONSISTENT = "sstables-inconsistent", Damage,
        "no writer commits such a list; stop all writers, restore the version from a copy, and report it";
    /// An older manifest that does not belong to the history: a stalled committer made it in a place that was pruned.
    FORGOTTEN_MANIFEST = "forgotten-manifest", Info,
        "nothing: its writer was refused, and pruning removes it";
    /// Another engine wrote to the shard.
    UNADOPTED = "unadopted", Warning,
        "run `fencepost adopt`; until then the shard is not garbage-collected";
    /// The hint for other readers names no version that is there.
    HINT_WRONG = "hint-wrong", Info,
        "nothing: the next commit writes it anew";
    /// An entry is torn, fails its checksum or does not decode.
    ENTRY_DAMAGED = "entry-damaged", Damage,
        "restore the object from a copy or the bucket's versioning; above R the shard opens again only then";
    /// An entry above R is missing although it had landed.
    LOG_HOLE = "log-hole", Damage,
        "restore the object: acknowledged rows were in it or behind it; do not open the shard with Lance, which would take the hole for the end";
    /// The entry at R is missing, from which other readers start.
    REPLAY_POINT_MISSING = "replay-point-missing", Damage,
        "its rows are in SSTables, so Fencepost goes on; restore the object before Lance opens the shard";
    /// An entry of an epoch that nobody has claimed.
    EPOCH_UNCLAIMED = "epoch-unclaimed", Damage,
        "a claim precedes every entry, so manifests were lost or the entry is another shard's; restore manifest/, then open the shard again";
    /// Two writers wrote with one epoch.
    EPOCH_SHARED = "epoch-shared", Damage,
        "two histories of the shard were mixed; stop all writers, keep a copy of the folder, and find out which writer's rows were promised";
    /// `replay_after_epoch` does not fit the entries.
    REPLAY_EPOCH_WRONG = "replay-epoch-wrong", Damage,
        "replay would leave out acknowledged rows or bring back others; stop all writers, restore the newest manifest, and report it";
    /// A fence that the manifest lists is not there.
    FENCE_MISSING = "fence-missing", Damage,
        "restore the object; until then make sure that no stalled process of an older writer is left, which could acknowledge rows that nobody sees";
    /// Another entry stands where the manifest lists a fence.
    FENCE_REPLACED = "fence-replaced", Damage,
        "restore the object; until then make sure that no stalled process of an older writer is left";
    /// Rows of another engine behind a hole, or behind a writer that replaced it: they may have been acknowledged.
    STRANDED = "stranded", Damage,
        "open the shard with Lance and flush there, then open it again with Fencepost";
    /// Live rows whose columns do not fit what the log is for.
    ENTRY_MISFIT = "entry-misfit", Damage,
        "the entry belongs to another table, or the table's columns were changed while it was in the log; bring back the columns, flush, and change them again";
    /// Live entries have different columns.
    COLUMNS_CHANGE = "columns-change", Warning,
        "consumers of this log have to expect both";
    /// An entry within reach behind the end of the log.
    BEYOND_THE_END = "beyond-the-end", Info,
        "nothing: it is in flight, or was never acknowledged; the next entries or the next open decide";
    /// An entry of a fenced writer. Its rows do not count.
    DEAD_ENTRY = "dead-entry", Info,
        "nothing: it was never acknowledged";
    /// A sentinel above R that is not among the fences.
    UNLISTED_SENTINEL = "unlisted-sentinel", Info,
        "nothing: its claimant came after a clean close, or died before it recorded its claim; the next claim lists it";
    /// A folder of an SSTable that the manifest names.
    SSTABLE_MISSING = "sstable-missing", Damage,
        "restore the folder: its rows are nowhere else unless the base table has merged them";
    /// A folder of an SSTable that the manifest does not name.
    UNLISTED_SSTABLE = "unlisted-sstable", Info,
        "nothing: a flush is under way or died, or it waits for garbage collection";
    /// A checkpoint that the manifest lists has no object.
    CHECKPOINT_MISSING = "checkpoint-missing", Damage,
        "restore the object; until then the shard is not garbage-collected. If nobody needs the checkpoint, delete it";
    /// A checkpoint's object does not decode, or says other than the manifest.
    CHECKPOINT_DAMAGED = "checkpoint-damaged", Damage,
        "restore the object; until then the shard is not garbage-collected. If nobody needs the checkpoint, delete it";
    /// An entry that a checkpoint holds is missing.
    CHECKPOINT_HOLE = "checkpoint-hole", Damage,
        "restore the object; the shard itself goes on without it, but the checkpoint's rows are not complete";
    /// A checkpoint's object that the manifest does not list.
    UNLISTED_CHECKPOINT = "unlisted-checkpoint", Info,
        "nothing: it is being made, was deleted, or its maker died; garbage collection removes it";
    /// A file that a process left half-written.
    HALF_MADE_FILE = "half-made-file", Info,
        "nothing: no reader sees it, and garbage collection removes it once its place is settled";
    /// Something that looked like damage and changed while it was looked at.
    IN_DOUBT = "in-doubt", Warning,
        "the shard changed too fast to tell; verify it again";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_has_a_name_of_its_own_and_says_what_to_do() {
        let names: BTreeSet<_> = ALL.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.iter().all(|kind| !kind.what_to_do.is_empty()));
    }
}
