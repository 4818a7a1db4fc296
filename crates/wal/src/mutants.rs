//! Rules of the protocol that can be turned off, one at a time, to see that the simulation notices. Without the
//! feature `mutants` there is nothing to turn off: [`is_on`] is a constant.

// Without the feature the variants are named and never made.
#![cfg_attr(not(feature = "mutants"), allow(dead_code, missing_docs, unreachable_pub))]

macro_rules! mutants {
    ($($variant:ident, $name:literal, $rule:literal;)*) => {
        /// A rule that is turned off.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant {
            $(#[doc = $rule] $variant,)*
        }

        impl Mutant {
            /// All of them, in the order of the protocol's sections.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the command line and in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it does instead of following the rule.
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => $rule,)* }
            }

            /// The mutant of a name.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
            }
        }
    };
}

mutants! {
    NoLineageCheck, "no-lineage-check", "A commit that was answered \"created\" is not checked (section 3, step 4)";
    PredecessorOnly, "predecessor-only", "The lineage check looks at the predecessor only (schedule 17)";
    CommitRerunOnItself, "commit-rerun", "A commit that landed, its answer lost, is derived again from itself (schedule 8)";
    TakenNameBelieved, "taken-name-believed", "Another's manifest at the next version is taken to have been there first, without a look at its lineage (schedule 42)";
    RefusalWithoutLook, "refusal-without-look", "A refusal is believed without a second look at which manifest is the newest (schedule 43)";
    CollectorLooksOnce, "collector-looks-once", "A collector does not look a second time at which manifest is the newest (schedule 28)";
    PruneInAnyOrder, "prune-in-any-order", "Manifests are pruned in any order";
    NoSentinel, "no-sentinel", "A claimant puts no sentinel (schedule 1)";
    DamageBelieved, "damage-believed", "What looks like damage to a claimant is reported without a look at who owns the shard by then (schedule 44)";
    SentinelNotRead, "sentinel-not-read", "What stands where a sentinel was meant to go is taken for our own";
    SentinelBeforeLineageCheck, "sentinel-before-lineage-check", "The sentinel is sent before the claim's lineage is checked (schedule 27)";
    NoRecordStep, "no-record-step", "A claimant appends without recording its takeover (schedule 2)";
    RecordWithoutCheck, "record-without-check", "The record is committed although another claim owns the shard (schedule 2)";
    OnlyOwnSentinelRecorded, "only-own-sentinel", "A claimant records its own sentinel only (schedule 13)";
    OnlySentinelsRecorded, "only-sentinels", "A claimant records sentinels only, no dead entries (schedule 14)";
    OnlyLastOfRangeRecorded, "only-last-of-range", "Of several sentinels side by side, only the last is recorded";
    ZoneFromStartOfRange, "zone-from-first", "The serial zone is counted from the first of several positions that sentinels were meant for";
    PassedDeadNotRecorded, "passed-dead-not-recorded", "Dead positions that a tenure passed over do not go into fences";
    WindowByCount, "window-by-count", "The window bounds how many PUTs are in flight, not how far they reach (schedule 15)";
    AcknowledgeOutOfOrder, "acknowledge-out-of-order", "An entry is acknowledged when it has landed, whatever is missing before it (schedule 5)";
    NoSerialZone, "no-serial-zone", "Several PUTs are in flight right after a takeover (schedule 6)";
    AdvanceWithoutReading, "advance-without-reading", "\"Already exists\": the next position is taken, without reading (schedules 3 and 4)";
    ConflictIsFenced, "409-as-fenced", "\"Already exists\" is taken for a successor's entry, without reading (schedules 3 and 4)";
    RetryWithOtherBytes, "retry-with-other-bytes", "A retry sends the rows encoded anew, in other bytes";
    NoDeadEntryRule, "no-dead-entry-rule", "Entries of an epoch lower than one before are replayed";
    FollowerBelievesOldManifest, "follower-believes-old-manifest", "A follower believes a position without live rows at once (schedule 24)";
    FollowerLooksOnce, "follower-looks-once", "A follower does not look a second time at which manifest is the newest (schedule 45)";
    NoEpochCheckAtPublish, "no-epoch-check", "A replaced writer may publish, truncate and close (schedule 32)";
    OwnEpochAtPartialFlush, "own-epoch-at-partial-flush", "A flush writes its own epoch as that at R (schedule 18)";
    ReplayAfterAheadOfLog, "r-ahead-of-log", "R may rise to a position whose entry is not acknowledged (schedule 11)";
    NoFenceRetention, "no-fence-retention", "Collection does not keep fences (schedule 1)";
    CloseMovesReplayAfter, "close-moves-r", "A clean close moves R to the tail (schedule 22)";
    CloseUnrecorded, "close-unrecorded", "A claimant whose sentinel fails closes cleanly, unrecorded";
    CleanCloseOfAny, "clean-close-of-any", "A claimant takes the clean close of any tenure for that of the one before it";
    CloseWithPutsInFlight, "close-with-puts-in-flight", "A clean close does not wait for what is in flight";
    AppendAfterClose, "append-after-close", "A handle appends after its clean close";
    CloseWaivesZone, "close-waives-zone", "After a clean close there is no serial zone";
    WipeDespiteFences, "wipe-despite-fences", "A WAL store may be wiped after a clean close, although there are fences (schedule 29)";
    WipeWithoutClose, "wipe-without-close", "A WAL store may be wiped when nothing above R is left, without a clean close";
    StoreChangedWithLiveRows, "store-changed-with-live-rows", "The log moves although live rows above R are in the old store";
    StoreChangedWithoutSentinel, "store-changed-without-sentinel", "The log moves to another store without a sentinel in the old one (schedule 19)";
    CheckpointNotOfItsVersion, "checkpoint-not-of-its-version", "A checkpoint is listed by a manifest that derives from a later one than it pins";
    PinnedEntriesCollected, "pinned-entries-collected", "Entries that a checkpoint pins are collected";
    CheckpointObjectEarly, "checkpoint-object-early", "An unlisted checkpoint object goes although it may still be listed";
    RefreshWithoutLook, "refresh-without-look", "Refreshing lists a checkpoint again that has been taken off (schedule 26)";
    ExpiryWithoutLook, "expiry-without-look", "Expiry takes off a checkpoint that was refreshed meanwhile (schedule 26)";
    ExpiryDeletesFirst, "expiry-deletes-first", "An expired checkpoint's object is deleted before the commit that takes it off (schedule 26)";
}

#[cfg(feature = "mutants")]
mod switched {
    use std::cell::Cell;
    use std::collections::HashMap;
    use std::sync::Arc;

    use arrow_schema::Schema;
    use bytes::Bytes;
    use uuid::Uuid;

    use super::Mutant;
    use crate::entry::{WalEntry, WriterIdentity, decode, encode_rows};
    use crate::ids::{Epoch, Position};
    use crate::slot::Placed;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Turns a rule off in this thread, and every other one on again.
    pub fn set(mutant: Option<Mutant>) {
        ON.set(mutant);
    }

    pub(crate) fn is_on(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }

    /// What "already exists" is taken for by a mutant that does not read.
    pub(crate) fn instead_of_reading(position: Position) -> Option<Placed> {
        let writer_epoch = match ON.get() {
            Some(Mutant::AdvanceWithoutReading) => Epoch::ZERO,
            Some(Mutant::ConflictIsFenced) => Epoch::new(u64::MAX),
            _ => return None,
        };
        Some(Placed::Other(Box::new(WalEntry {
            position,
            writer_epoch,
            writer_id: Some(Uuid::nil()),
            generation: None,
            is_sentinel: true,
            schema: Arc::new(Schema::empty()),
            batches: Vec::new(),
            object_bytes: 0,
        })))
    }

    /// What an attempt sends: a mutant encodes the rows anew.
    pub(crate) fn bytes_to_send(bytes: &Bytes, position: Position, attempt: usize) -> Bytes {
        let again = || {
            let entry = decode("", position, bytes).ok().filter(|entry| !entry.is_sentinel)?;
            let metadata = HashMap::from([("attempt".to_owned(), attempt.to_string())]);
            let schema = Arc::new(Schema::new_with_metadata(entry.schema.fields().clone(), metadata));
            let writer = WriterIdentity { epoch: entry.writer_epoch, writer_id: entry.writer_id? };
            encode_rows(&schema, &entry.batches, &writer).ok()
        };
        match is_on(Mutant::RetryWithOtherBytes) && attempt > 0 {
            true => again().unwrap_or_else(|| bytes.clone()),
            false => bytes.clone(),
        }
    }
}

#[cfg(not(feature = "mutants"))]
mod switched {
    use bytes::Bytes;

    use super::Mutant;
    use crate::ids::Position;
    use crate::slot::Placed;

    pub(crate) const fn is_on(_: Mutant) -> bool {
        false
    }

    pub(crate) const fn instead_of_reading(_: Position) -> Option<Placed> {
        None
    }

    pub(crate) fn bytes_to_send(bytes: &Bytes, _: Position, _: usize) -> Bytes {
        bytes.clone()
    }
}

#[cfg(feature = "mutants")]
pub use switched::set;
pub(crate) use switched::{bytes_to_send, instead_of_reading, is_on};
