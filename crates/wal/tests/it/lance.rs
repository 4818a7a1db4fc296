//! Lance as far as this crate can see it: entries without a trailer, manifests without our message. The published
//! crate itself is the other side of the engine's interop tests; here its steps can be taken one by one.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_ipc::writer::StreamWriter;
use arrow_schema::Schema;
use bytes::Bytes;
use prost::Message;

use crate::support::{Bucket, batch, schema};

/// Lance's `ShardManifest`. Like Lance's own reader it drops what it does not know.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LanceManifest {
    #[prost(uint64, tag = "1")]
    pub(crate) version: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) writer_epoch: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) replay_after: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) last_seen: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) current_generation: u64,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub(crate) sstables: Vec<Vec<u8>>,
    #[prost(uint32, tag = "10")]
    pub(crate) shard_spec_id: u32,
    #[prost(bytes = "vec", tag = "11")]
    pub(crate) shard_id: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "14")]
    pub(crate) shard_field_entries: Vec<Vec<u8>>,
    #[prost(int32, tag = "15")]
    pub(crate) status: i32,
}

/// Commits a version as `ShardManifestStore` does: what the change makes of the newest one.
pub(crate) async fn commit(bucket: &Bucket, change: impl FnOnce(&mut LanceManifest)) {
    let newest = bucket.manifest().await.version.get();
    let bytes = bucket.read(&bucket.manifest_path(newest)).await.unwrap();
    let mut manifest = LanceManifest::decode(bytes).unwrap();
    change(&mut manifest);
    manifest.version = newest + 1;
    bucket.write(&bucket.manifest_path(newest + 1), manifest.encode_to_vec().into()).await;
}

/// A Lance writer.
#[derive(Debug)]
pub(crate) struct Lance {
    bucket: Bucket,
    pub(crate) epoch: u64,
    generation: u64,
    next: u64,
}

impl Lance {
    /// Claims, puts a sentinel at the first free position behind `last_seen`, replays up to the first free one behind
    /// R, and publishes how far.
    pub(crate) async fn open(bucket: &Bucket) -> Self {
        commit(bucket, |m| m.writer_epoch += 1).await;
        let claimed = bucket.manifest().await;
        let epoch = claimed.writer_epoch.get();
        if epoch > 1 {
            let sentinel = first_free(bucket, claimed.last_seen.get()).await;
            bucket.write(&bucket.entry_path(sentinel), sentinel_of(epoch)).await;
        }
        let next = first_free(bucket, claimed.replay_after.get()).await;
        commit(bucket, |m| m.last_seen = m.last_seen.max(next - 1)).await;
        Self { bucket: bucket.clone(), epoch, generation: claimed.current_generation.get(), next }
    }

    pub(crate) async fn append(&mut self, ids: impl IntoIterator<Item = i64>) -> u64 {
        let position = first_free(&self.bucket, self.next - 1).await;
        let ids: Vec<i64> = ids.into_iter().collect();
        let entry = lance_entry(self.epoch, Some(self.generation), &ids);
        self.bucket.write(&self.bucket.entry_path(position), entry).await;
        self.next = position + 1;
        position
    }

    /// Publishes an SSTable of the rows up to `covers`.
    pub(crate) async fn flush(&mut self, covers: u64) {
        let epoch = self.epoch;
        commit(&self.bucket, |m| {
            assert_eq!(m.writer_epoch, epoch, "fenced");
            m.replay_after = covers;
            m.last_seen = m.last_seen.max(covers);
            m.current_generation += 1;
        })
        .await;
        self.generation += 1;
    }
}

async fn first_free(bucket: &Bucket, after: u64) -> u64 {
    let mut position = after + 1;
    while bucket.read(&bucket.entry_path(position)).await.is_some() {
        position += 1;
    }
    position
}

/// An entry as Lance writes it: no writer id, no trailer, in MemTable mode a generation.
pub(crate) fn lance_entry(epoch: u64, generation: Option<u64>, ids: &[i64]) -> Bytes {
    let mut metadata = HashMap::from([("writer_epoch".to_owned(), epoch.to_string())]);
    metadata.extend(generation.map(|g| ("generation".to_owned(), g.to_string())));
    let schema = Schema::new_with_metadata(schema().fields().clone(), metadata);
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    let rows = batch(ids.iter().copied()).with_schema(Arc::new(schema)).unwrap();
    writer.write(&rows).unwrap();
    writer.into_inner().unwrap().into()
}

/// Lance's fence sentinel.
pub(crate) fn sentinel_of(epoch: u64) -> Bytes {
    let metadata = [("writer_epoch", epoch.to_string()), ("fence_sentinel", "true".into())];
    let metadata = metadata.map(|(k, v)| (k.to_owned(), v)).into_iter().collect();
    let writer = StreamWriter::try_new(Vec::new(), &Schema::new_with_metadata(arrow_schema::Fields::empty(), metadata));
    writer.unwrap().into_inner().unwrap().into()
}
