//! Rows, and the stand-in for an SSTable: an object that lists `POSITION ID`.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_schema::SchemaRef;
use fencepost_wal::{Replay, Result, Shard, SsTable};
use object_store::path::Path;

pub(crate) fn schema() -> SchemaRef {
    batch([]).schema()
}

pub(crate) fn batch(ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: ArrayRef = Arc::new(ids.into_iter().collect::<Int64Array>());
    RecordBatch::try_from_iter_with_nullable([("id", ids, false)]).unwrap()
}

/// Every row of a replay and its position, in order.
pub(crate) async fn rows_of(mut replay: Replay) -> Result<Vec<(u64, i64)>> {
    let mut rows = Vec::new();
    while let Some(entry) = replay.next().await? {
        for batch in &entry.batches {
            let ids = batch.column(0).as_primitive::<Int64Type>().values();
            rows.extend(ids.iter().map(|id| (entry.position.get(), *id)));
        }
    }
    Ok(rows)
}

pub(crate) fn sstable_path(shard: &Shard, sstable: &SsTable) -> Path {
    shard.root().clone().join(sstable.path.as_str()).join("rows")
}

pub(crate) fn to_text(rows: &[(u64, i64)]) -> String {
    rows.iter().map(|(position, id)| format!("{position} {id}\n")).collect()
}

pub(crate) fn from_text(text: &str) -> Vec<(u64, i64)> {
    let row = |line: &str| {
        let (position, id) = line.split_once(' ').unwrap();
        (position.parse().unwrap(), id.parse().unwrap())
    };
    text.lines().map(row).collect()
}
