//! Every rule of the protocol, as a switch that turns it off. A mutant has to fail by what it does: the invariants know
//! none of these.

macro_rules! mutants {
    ($($variant:ident, $name:literal, $config:literal, $rule:literal;)*) => {
        /// A rule that is turned off.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

            /// The configuration in which it is looked for.
            pub fn config(self) -> &'static str {
                match self { $(Self::$variant => $config,)* }
            }
        }
    };
}

mutants! {
    NoLineageCheck, "no-lineage-check", "claims", "A commit that was answered \"created\" is not checked (section 3, step 4)";
    PredecessorOnly, "predecessor-only", "forgotten", "The lineage check looks at the predecessor only (schedule 17)";
    CommitRerunOnItself, "commit-rerun", "collector", "A commit that landed, its answer lost, is derived again from itself (schedule 8)";
    TakenNameBelieved, "taken-name-believed", "collector", "Another's manifest at the next version is taken to have been there first, without a look at its lineage";
    RefusalWithoutLook, "refusal-without-look", "claims", "A writer that reads another claim believes it, without looking whether that manifest is the newest";
    CollectorLooksOnce, "collector-looks-once", "collector", "A collector does not look a second time at which manifest is the newest (schedule 28)";
    PruneInAnyOrder, "prune-in-any-order", "collector", "Manifests are pruned in any order";
    NoSentinel, "no-sentinel", "takeover", "A claimant puts no sentinel (schedule 1)";
    SentinelNotRead, "sentinel-not-read", "takeover", "\"Already exists\" about a sentinel is taken for a lost ack, without reading";
    SentinelBeforeLineageCheck, "sentinel-before-lineage-check", "claims", "The sentinel is sent before the claim's lineage is checked (schedule 27)";
    NoRecordStep, "no-record-step", "takeover", "A claimant appends without recording its takeover";
    RecordWithoutCheck, "record-without-check", "three", "The record is committed although another claim owns the shard (schedule 2)";
    OnlyOwnSentinelRecorded, "only-own-sentinel", "three", "A claimant records its own sentinel only (schedule 13)";
    OnlySentinelsRecorded, "only-sentinels", "three", "A claimant records sentinels only, no dead entries (schedule 14)";
    OnlyLastOfRangeRecorded, "only-last-of-range", "range", "Of several sentinels side by side, only the last is recorded";
    ZoneFromFirstSentinel, "zone-from-first", "range", "The serial zone is counted from the first of several sentinels";
    PassedDeadNotRecorded, "passed-dead-not-recorded", "follower", "Dead positions that a tenure passed over do not go into fences (schedule 41)";
    WindowByCount, "window-by-count", "window", "The window bounds how many PUTs are in flight, not how far they reach (schedule 15)";
    AcknowledgeOutOfOrder, "acknowledge-out-of-order", "takeover", "An entry is acknowledged when it has landed, whatever is missing before it";
    NoSerialZone, "no-serial-zone", "takeover", "Several PUTs are in flight right after a takeover";
    AdvanceWithoutReading, "advance-without-reading", "takeover", "\"Already exists\": the next position is taken, without reading (schedules 3 and 4)";
    ConflictIsFenced, "409-as-fenced", "takeover", "\"Already exists\" is taken for a successor's entry, without reading (schedules 3 and 4)";
    RetryWithOtherBytes, "retry-with-other-bytes", "takeover", "A retry carries rows that have gathered meanwhile";
    NoDeadEntryRule, "no-dead-entry-rule", "takeover", "Entries of an epoch lower than one before are replayed";
    FollowerBelievesOldManifest, "follower-believes-old-manifest", "follower", "A follower believes a position without live rows at once (schedule 24)";
    FollowerLooksOnce, "follower-looks-once", "suspended", "A follower does not look a second time at which manifest is the newest (schedule 45)";
    NoEpochCheckAtPublish, "no-epoch-check", "takeover", "A replaced writer may publish";
    OwnEpochAtPartialFlush, "own-epoch-at-partial-flush", "three", "A flush writes its own epoch as that at R (schedule 18)";
    ReplayAfterAheadOfLog, "r-ahead-of-log", "takeover", "R rises to a position whose entry is still in flight (schedule 11)";
    SstableAheadOfLog, "sstable-ahead-of-log", "takeover", "Rows are published while their entries are in flight (schedule 11)";
    TruncateByReplaced, "truncate-by-replaced", "wal-only", "A writer that was replaced may truncate (schedule 32)";
    NoFenceRetention, "no-fence-retention", "takeover", "Collection does not keep fences (schedule 1)";
    CloseUnrecorded, "close-unrecorded", "close", "A claimant closes cleanly before it has recorded its takeover";
    CleanCloseOfAny, "clean-close-of-any", "close", "A claimant takes the clean close of any tenure for that of the one before it";
    CloseMovesReplayAfter, "close-moves-r", "close", "A clean close moves R to the tail (schedule 22)";
    CloseWithPutsInFlight, "close-with-puts-in-flight", "close", "A clean close does not wait for what is in flight";
    AppendAfterClose, "append-after-close", "close", "A handle appends after its clean close";
    CloseWaivesZone, "close-waives-zone", "close-window", "After a clean close there is no serial zone";
    WipeDespiteFences, "wipe-despite-fences", "wipe", "A WAL store is wiped because of a clean close, although there are fences (schedule 29)";
    WipeWithoutClose, "wipe-without-close", "wipe", "A WAL store is wiped because nothing above R is left, without a clean close";
    StoreChangedWithLiveRows, "store-changed-with-live-rows", "stores", "The log moves although live rows above R are in the old store";
    StoreChangedWithoutSentinel, "store-changed-without-sentinel", "stores", "The log moves to another store without a sentinel in the old one (schedule 19)";
    CheckpointNotOfItsVersion, "checkpoint-not-of-its-version", "checkpoints", "A checkpoint is listed by a manifest that derives from a later one than it pins";
    PinnedEntriesCollected, "pinned-entries-collected", "checkpoints", "Entries that a checkpoint pins are collected";
    CheckpointObjectCollectedEarly, "checkpoint-object-early", "checkpoints", "An unlisted checkpoint object goes although it may still be listed";
    RefreshWithoutLook, "refresh-without-look", "lifetimes", "Refreshing lists a checkpoint again that has been taken off (schedule 26)";
    ExpiryWithoutLook, "expiry-without-look", "lifetimes", "Expiry takes off a checkpoint that was refreshed meanwhile (schedule 26)";
    ExpiryDeletesFirst, "expiry-deletes-first", "lifetimes", "An expired checkpoint's object is deleted before the commit that takes it off (schedule 26)";
}

impl Mutant {
    /// The mutant of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }
}
