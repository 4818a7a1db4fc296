//! Reading the log as a fresh reader would, from the bytes on the store alone: an implementation of its own, so that
//! it does not share the mistakes of the one under test.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_ipc::reader::StreamReader;
use bytes::Bytes;
use uuid::Uuid;

/// What an entry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) epoch: u64,
    pub(crate) writer: Option<Uuid>,
    pub(crate) is_sentinel: bool,
    /// Ids of its rows, in order.
    pub(crate) rows: Vec<u64>,
}

impl LogEntry {
    /// Decodes an entry of the workload's schema.
    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, String> {
        let reader = StreamReader::try_new(std::io::Cursor::new(bytes), None).map_err(|e| e.to_string())?;
        let schema = reader.schema();
        let text = |key: &str| schema.metadata().get(key);
        let epoch = text("writer_epoch").ok_or("no epoch")?.parse().map_err(|_| "its epoch is no number")?;
        let writer = text("fencepost.writer_id").and_then(|id| Uuid::parse_str(id).ok());
        let is_sentinel = text("fence_sentinel").is_some_and(|v| v == "true");
        let mut rows = Vec::new();
        for batch in reader {
            let batch = batch.map_err(|e| e.to_string())?;
            rows.extend(ids_of(&batch));
        }
        Ok(Self { epoch, writer, is_sentinel, rows })
    }
}

pub(crate) fn ids_of(batch: &arrow_array::RecordBatch) -> Vec<u64> {
    let ids = batch.column_by_name("id").and_then(|column| column.as_primitive_opt::<Int64Type>());
    ids.map(|ids| ids.values().iter().map(|id| *id as u64).collect()).unwrap_or_default()
}

/// What stands at one position, to a fresh reader.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Met<'a> {
    pub(crate) position: u64,
    pub(crate) entry: &'a LogEntry,
    /// A lower epoch than one before it: it does not count.
    pub(crate) is_dead: bool,
}

/// Reads from behind `after` to the first absent position.
pub(crate) fn replay(entries: &BTreeMap<u64, LogEntry>, after: u64, epoch: u64) -> impl Iterator<Item = Met<'_>> {
    let mut top = epoch;
    let present = entries.range(after + 1..).zip(after + 1..).take_while(|((at, _), expected)| *at == expected);
    present.map(move |((position, entry), _)| {
        let is_dead = entry.epoch < top;
        top = top.max(entry.epoch);
        Met { position: *position, entry, is_dead }
    })
}
