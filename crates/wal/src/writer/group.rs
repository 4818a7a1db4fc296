//! Making an entry of what is first in the queue. The rows are encoded in a task of their own, so that the writer's
//! task goes on taking answers; the entry's position is not part of its bytes and is given to it when it is sent.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::queue::{Columns, Queue};
use super::waiting::Item;
use crate::entry::{WriterIdentity, combine_small, encode_combined, stays_apart};
use crate::error::{Error, Result};

/// Items that were taken from the queue to leave as one entry, in the order of the queue.
#[derive(Debug)]
pub(super) struct Group {
    items: Vec<Item>,
    taken: Instant,
    encoding: Encoding,
}

#[derive(Debug)]
enum Encoding {
    Running(JoinHandle<Result<Encoded>>),
    Done(Result<Encoded>),
}

/// As many of a group's batches, from its beginning, as fit into an entry.
#[derive(Debug)]
struct Encoded {
    batches: usize,
    /// What was encoded: the rows of these batches, small ones put together.
    combined: Vec<RecordBatch>,
    bytes: Bytes,
}

/// A group that can be sent.
pub(super) struct Ready {
    pub(super) items: Vec<Item>,
    /// The rows of the items, as they are logged: small batches put together.
    pub(super) batches: Vec<RecordBatch>,
    pub(super) bytes: Bytes,
    /// When the items were taken from the queue.
    pub(super) taken: Instant,
}

impl Group {
    /// Takes the next group and starts to encode it. An entry has one schema: where the columns change, a group ends.
    pub(super) fn take(queue: &Queue) -> Self {
        let limit = queue.config.max_buffer_bytes;
        let mut items: Vec<Item> = Vec::new();
        let mut columns: Option<Arc<Columns>> = None;
        {
            let mut waiting = queue.waiting();
            // What the entry will have, as far as that is told before it is encoded.
            let mut taken = 0;
            while let Some(item) = waiting.first() {
                if let (Some(batch), Some(others)) = (&item.batch, &item.columns) {
                    let framing = &others.framing;
                    let is_apart = stays_apart(batch, framing.own_bytes(item.bytes));
                    let apart = if is_apart { framing.of_batch(limit) } else { 0 };
                    match &columns {
                        Some(these) if !Arc::ptr_eq(these, others) || taken + item.bytes + apart > limit => break,
                        Some(_) => taken += item.bytes + apart,
                        None => taken = framing.of_entry(limit) + item.bytes,
                    }
                    columns.get_or_insert_with(|| Arc::clone(others));
                }
                items.extend(waiting.take());
            }
        }
        let batches = batches_of(&items);
        let columns = columns.unwrap_or_else(|| queue.newest_columns());
        let (schema, writer) = (Arc::clone(&columns.schema), *queue.tenure.identity());
        let encoding = tokio::spawn(async move { encode(&schema, &batches, &writer, limit) });
        Self { items, taken: Instant::now(), encoding: Encoding::Running(encoding) }
    }

    /// Waits until the group is encoded. Dropping the future loses nothing.
    pub(super) async fn encoded(&mut self) {
        if let Encoding::Running(task) = &mut self.encoding {
            let ended = |e| Err(Error::InvalidArgument(format!("encoding an entry ended: {e}")));
            self.encoding = Encoding::Done(task.await.unwrap_or_else(ended));
        }
    }

    pub(super) fn is_encoded(&self) -> bool {
        matches!(self.encoding, Encoding::Done(_))
    }

    /// Whether all of an encoded group can be sent: [`ready`](Self::ready) returns nothing of it to the queue.
    pub(super) fn is_whole(&self) -> bool {
        let batches = self.items.iter().filter(|item| item.batch.is_some()).count();
        matches!(&self.encoding, Encoding::Done(Ok(encoded)) if encoded.batches == batches)
    }

    /// What is to be sent of an encoded group. What does not fit returns to the queue; after an error all of it.
    pub(super) fn ready(mut self, queue: &Queue) -> Result<Ready> {
        match self.encoding {
            Encoding::Done(Ok(Encoded { batches: keep, combined, bytes })) => {
                give_back(queue, &mut self.items, keep);
                Ok(Ready { batches: combined, items: self.items, bytes, taken: self.taken })
            }
            Encoding::Done(Err(error)) => {
                give_back(queue, &mut self.items, 0);
                Err(error)
            }
            Encoding::Running(_) => {
                give_back(queue, &mut self.items, 0);
                Err(Error::InvalidArgument("a group was sent before it was encoded".into()))
            }
        }
    }

    /// Returns all of it to the queue.
    pub(super) fn undo(mut self, queue: &Queue) {
        give_back(queue, &mut self.items, 0);
    }
}

/// The batches of items, with the bytes that tell whether each stays apart.
fn batches_of(items: &[Item]) -> Vec<(RecordBatch, usize)> {
    let own = |item: &Item| item.columns.as_ref().map_or(item.bytes, |columns| columns.framing.own_bytes(item.bytes));
    items.iter().filter_map(|item| Some((item.batch.clone()?, own(item)))).collect()
}

/// The limit is on what is sent, which may be more than what was counted: half of the batches are left out until it fits.
fn encode(
    schema: &SchemaRef,
    batches: &[(RecordBatch, usize)],
    writer: &WriterIdentity,
    limit: usize,
) -> Result<Encoded> {
    let mut batches = batches;
    loop {
        let combined = combine_small(schema, batches.iter().map(|(batch, bytes)| (batch, *bytes)));
        match encode_combined(schema, &combined, writer) {
            Ok(bytes) if bytes.len() <= limit => return Ok(Encoded { batches: batches.len(), combined, bytes }),
            Ok(_) | Err(Error::TooLarge { .. }) if batches.len() > 1 => {}
            // Each piece was measured when it was accepted, so that one alone always fits.
            Ok(_) => return Err(Error::InvalidArgument("a piece of an append fits into no entry".into())),
            Err(error) => return Err(error),
        }
        batches = batches.get(..batches.len() / 2).unwrap_or_default();
    }
}

/// Returns the last items of a group to the queue, until at most `keep` batches are left.
fn give_back(queue: &Queue, items: &mut Vec<Item>, keep: usize) {
    let mut waiting = queue.waiting();
    let mut batches = items.iter().filter(|item| item.batch.is_some()).count();
    while batches > keep
        && let Some(item) = items.pop()
    {
        batches -= usize::from(item.batch.is_some());
        waiting.give_back(item);
    }
    // Flushes in front of the first batch do not leave without it.
    while keep == 0
        && let Some(item) = items.pop()
    {
        waiting.give_back(item);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashMap;

    use arrow_array::{ArrayRef, DictionaryArray, Int32Array, Int64Array, StringArray, StringViewArray};

    use super::*;
    use crate::{ManifestStore, OpenOptions, Shard, ShardId, ShardManifest, Store, WalConfig};

    fn rows(text: &str) -> RecordBatch {
        let column: ArrayRef = Arc::new(StringViewArray::from_iter_values([text]));
        RecordBatch::try_from_iter_with_nullable([("text", column, true)]).unwrap()
    }

    /// A queue of four batches of 1,000 bytes, with a flush between the second and the third.
    async fn queue() -> Queue {
        let queue = empty_queue(rows("").schema(), 4096).await;
        for n in 0..4 {
            if n == 2 {
                drop(queue.push_barrier().unwrap());
            }
            drop(queue.push(rows(&n.to_string().repeat(1000)), true).await.unwrap());
        }
        queue
    }

    async fn empty_queue(schema: SchemaRef, max_buffer_bytes: usize) -> Queue {
        let store = Store::open(&format!("memory://group-{}", ShardId::new_random()), &HashMap::new()).unwrap();
        let shard = Shard::new(store, ShardId::new_random());
        ManifestStore::new(shard.clone()).initialize(ShardManifest::first(shard.id(), 0, vec![])).await.unwrap();
        let tenure = crate::open(&shard, &OpenOptions::default()).await.unwrap().tenure;
        Queue::new(tenure, schema, WalConfig { max_buffer_bytes, ..WalConfig::default() }).unwrap()
    }

    /// The first character of every row: what a batch was made of, whether or not it was put together with others.
    fn firsts(batches: &[RecordBatch]) -> Vec<char> {
        let texts = batches.iter().map(|batch| batch.column(0).as_any().downcast_ref::<StringViewArray>().unwrap());
        texts.flat_map(|texts| texts.iter().map(|text| text.unwrap().chars().next().unwrap())).collect()
    }

    #[tokio::test]
    async fn rows_are_encoded_by_another_task() {
        let queue = queue().await;
        let mut group = Group::take(&queue);
        assert!(!group.is_encoded(), "taking it encodes nothing");
        group.encoded().await;
        assert!(group.is_encoded());
    }

    #[tokio::test]
    async fn what_does_not_fit_returns_to_the_queue_in_its_order() {
        let queue = queue().await;
        let mut taken = Vec::new();
        while !queue.waiting().is_empty() {
            let mut group = Group::take(&queue);
            group.encoded().await;
            let ready = group.ready(&queue).unwrap();
            assert!(ready.bytes.len() <= 4096);
            assert!(!ready.batches.is_empty());
            taken.push(firsts(&ready.batches));
        }
        assert!(taken.len() > 1, "{taken:?}");
        assert_eq!(taken.concat(), ['0', '1', '2', '3']);
    }

    /// What does not fit is encoded twice, and so is what was encoded ahead.
    #[tokio::test]
    async fn a_full_group_of_batches_that_stay_apart_fits_at_once() {
        const LIMIT: usize = 256 << 10;
        for rows in [300, 1_500, 10_000] {
            let batch = || {
                let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
                let texts: ArrayRef =
                    Arc::new(StringArray::from_iter_values((0..rows).map(|n| "x".repeat(n as usize % 250))));
                RecordBatch::try_from_iter([("id", ids), ("text", texts)]).unwrap()
            };
            let queue = empty_queue(batch().schema(), LIMIT).await;
            for _ in 0..20 {
                drop(queue.push(batch(), true).await.unwrap());
            }
            let (mut sizes, mut seen) = (Vec::new(), 0);
            while !queue.waiting().is_empty() {
                let mut group = Group::take(&queue);
                group.encoded().await;
                assert!(group.is_whole(), "{rows} rows: {sizes:?}");
                let ready = group.ready(&queue).unwrap();
                seen += ready.batches.iter().map(RecordBatch::num_rows).sum::<usize>();
                sizes.push(ready.bytes.len());
            }
            assert_eq!(seen as i64, 20 * rows);
            // And is full: an append of more than an entry is cut in halves of one, about.
            let (_, full) = sizes.split_last().unwrap();
            assert!(full.iter().all(|bytes| *bytes > LIMIT * 2 / 5), "{rows} rows: {sizes:?}");
            assert!(sizes.iter().all(|bytes| *bytes <= LIMIT));
        }
    }

    /// What surrounds rows is estimated from above: it must not leave them no room.
    #[tokio::test]
    async fn rows_of_many_columns_share_small_entries() {
        let batch = |rows: i64| {
            let column = |n| (format!("c{n}"), Arc::new(Int64Array::from_iter_values(0..rows)) as ArrayRef);
            RecordBatch::try_from_iter((0..12).map(column)).unwrap()
        };
        for (appends, rows, most) in [(100, 1, 12), (1, 1_000, 120)] {
            let queue = empty_queue(batch(1).schema(), 4096).await;
            for _ in 0..appends {
                drop(queue.push(batch(rows), true).await.unwrap());
            }
            let mut entries = 0;
            while !queue.waiting().is_empty() {
                let mut group = Group::take(&queue);
                group.encoded().await;
                assert!(group.ready(&queue).unwrap().bytes.len() <= 4096);
                entries += 1;
            }
            assert!(entries <= most, "{appends} appends of {rows} rows: {entries} entries");
        }
    }

    /// Each of them counts as all of what they share; put together they hold it once.
    #[tokio::test]
    async fn rows_that_share_a_large_dictionary_are_put_together() {
        let values = StringArray::from_iter_values((0..100).map(|n| format!("{n:0>1000}")));
        let keys = Int32Array::from_iter_values(0..100);
        let column: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::new(values)));
        let all = RecordBatch::try_from_iter([("text", column)]).unwrap();
        let queue = empty_queue(all.schema(), 10 << 20).await;
        for row in 0..20 {
            drop(queue.push(all.slice(row, 1), true).await.unwrap());
        }
        let mut group = Group::take(&queue);
        group.encoded().await;
        let ready = group.ready(&queue).unwrap();
        assert_eq!(ready.batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [20]);
    }

    #[tokio::test]
    async fn a_group_that_is_undone_was_never_taken() {
        let queue = queue().await;
        let before = format!("{:?}", queue.waiting());
        let mut group = Group::take(&queue);
        assert_ne!(format!("{:?}", queue.waiting()), before);
        group.encoded().await;
        group.undo(&queue);
        assert_eq!(format!("{:?}", queue.waiting()), before);
        // Also before its encoding is done.
        Group::take(&queue).undo(&queue);
        assert_eq!(format!("{:?}", queue.waiting()), before);
    }
}
