//! What can be found besides the log: SSTables, the base table's record of them, and the shards of a table.

fencepost_wal::finding_kinds! {
    /// A listed SSTable does not open, or its rows cannot be read.
    SSTABLE_DAMAGED = "sstable-damaged", Damage,
        "restore the object from a copy or the bucket's versioning; queries that need its rows fail until then";
    /// An SSTable has another number of rows than its shard's manifest says.
    SSTABLE_ROWS_WRONG = "sstable-rows-wrong", Damage,
        "the folder was written to or replaced after it was published; restore it";
    /// An SSTable lacks the columns that readers need: the key's, and the one that marks deletions.
    SSTABLE_COLUMNS_WRONG = "sstable-columns-wrong", Damage,
        "the folder was replaced, or is another table's; restore it";
    /// The statistics of an SSTable's columns say other than its rows.
    SSTABLE_STATISTICS_WRONG = "sstable-statistics-wrong", Damage,
        "restore the folder's `_versions`; queries leave out rows that they should find until then, or until the SSTable is merged";
    /// The key index of an SSTable is missing, unreadable, or does not agree with the rows.
    KEY_INDEX_DAMAGED = "key-index-damaged", Damage,
        "restore the folder `_pk_index`; Fencepost reads without it, but Lance's readers take replaced rows for current ones";
    /// The bloom filter of an SSTable is missing, unreadable, or denies keys that are there.
    BLOOM_FILTER_DAMAGED = "bloom-filter-damaged", Damage,
        "restore the object; lookups by key fail or miss rows until then, or until the SSTable is merged";
    /// A generation that the base table has not merged is not among the shard's SSTables.
    GENERATION_MISSING = "generation-missing", Damage,
        "restore the shard's manifest; until then merges and reads refuse the shard";
    /// The base table has merged from a shard that is gone, or that is older than what was merged.
    SHARD_LOST = "shard-lost", Damage,
        "restore the shard's folder as it was last; until then readers, writers and mergers refuse it";
    /// A file of the base table is missing or its metadata is damaged.
    BASE_DAMAGED = "base-damaged", Damage,
        "restore the object; older versions of the base table may still be read with Lance";
    /// A shard of which nothing says which rows it holds.
    SHARD_UNKNOWN = "shard-unknown", Warning,
        "a writer of the whole table refuses; write with `Table::shard_writer`, or find out who made the shard";
    /// A shard shares SSTables with another one, and has no pin there.
    PIN_MISSING = "pin-missing", Damage,
        "garbage collection of the other table may delete what is shared; stop it, and merge this table";
    /// A clone shares files with a version of another table, and has no tag there.
    CLONE_TAG_MISSING = "clone-tag-missing", Damage,
        "Lance's cleanup of the other table may delete what is shared; tag that version again, or copy the clone";
    /// A shard that a deletion of the table has marked, which was refused or died.
    SHARD_DELETED = "shard-deleted", Damage,
        "run `fencepost delete` again; if it is refused, what refuses it is named, and the table is as it was";
    /// Two shards that may hold the same rows.
    SHARDS_OVERLAP = "shards-overlap", Warning,
        "the newest version of a row is defined within one shard only; write with `Table::shard_writer`";
    /// A shard that the table has from the start does not exist.
    SHARD_NOT_MADE = "shard-not-made", Warning,
        "run `fencepost create` again with the same options, or open the table for writing; if the shard ever had rows, restore it first";
}
