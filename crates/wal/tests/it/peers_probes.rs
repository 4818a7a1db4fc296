//! The faults that were injected into Lance MemWAL and SlateDB, injected here: one test per probe of docs/faults.md.
//!
//! A *lost ack* lands and is answered "already exists", a *conflict* is answered the same and nothing lands. No second
//! writer is alive in any of them, so nobody may be fenced and no row may be missing or doubled.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use fencepost_sim::{Fault, Op, Rule};
use fencepost_wal::{Generation, Position, SsTable, WalAppender, WalConfig, WalWriter};
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

use crate::docs::{named_tests, tests_of};
use crate::support::{Bucket, Process, append, batch, bucket, memory_store, replayed};

const FAULTS: [Fault; 2] = [Fault::LostAckAsExists, Fault::Conflict409];

/// The writers that the log has.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Appender,
    Writer { max_in_flight: usize },
}

const KINDS: [Kind; 3] = [Kind::Appender, Kind::Writer { max_in_flight: 1 }, Kind::Writer { max_in_flight: 4 }];

enum Handle {
    Appender(WalAppender),
    Writer(WalWriter),
}

impl Handle {
    /// Takes the shard over; also what its log held.
    async fn open(process: &Process, kind: Kind) -> (Self, Vec<i64>) {
        let (appender, replay) = process.open().await.unwrap();
        let held = replayed(replay).await;
        match kind {
            Kind::Appender => (Handle::Appender(appender), held),
            Kind::Writer { max_in_flight } => {
                let config = WalConfig { max_in_flight, ..WalConfig::default() };
                let tenure = appender.tenure().clone();
                let schema = crate::support::schema();
                (Handle::Writer(WalWriter::start(tenure, schema, config, fencepost_wal::WalOnly).unwrap()), held)
            }
        }
    }

    async fn append(&mut self, id: i64) -> Position {
        match self {
            Handle::Appender(appender) => append(appender, [id]).await.unwrap(),
            Handle::Writer(writer) => writer.append(batch([id])).await.unwrap(),
        }
    }

    fn tenure(&self) -> &fencepost_wal::Tenure {
        match self {
            Handle::Appender(appender) => appender.tenure(),
            Handle::Writer(writer) => writer.tenure(),
        }
    }
}

/// Appends `ids` with a fault on the `nth` of them; the positions that were acknowledged.
async fn append_through(process: &Process, handle: &mut Handle, fault: Fault, nth: u64, ids: &[i64]) -> Vec<u64> {
    let rule = process.faults.on(Op::Create).path_contains("/wal/").nth(nth).then(fault);
    let mut positions = Vec::new();
    for id in ids {
        positions.push(handle.append(*id).await.get());
    }
    assert_eq!(rule.fired(), 1, "the fault was not met");
    positions
}

/// What the next writers find, each of them opened after the last.
async fn replays(bucket: &Bucket, opens: usize) -> Vec<Vec<i64>> {
    let mut found = Vec::new();
    for _ in 0..opens {
        found.push(replayed(bucket.process().open().await.unwrap().1).await);
    }
    found
}

fn ids(range: std::ops::RangeInclusive<i64>) -> Vec<i64> {
    range.collect()
}

/// Probe 2: Lance acknowledged positions 1, 3, 4, 5 and its log held row 1 twice.
#[tokio::test(start_paused = true)]
async fn p2_a_lost_ack_of_an_entry_doubles_no_row() {
    for kind in KINDS {
        let bucket = bucket().await;
        let process = bucket.process();
        let (mut handle, _) = Handle::open(&process, kind).await;
        let positions = append_through(&process, &mut handle, Fault::LostAckAsExists, 2, &ids(0..=3)).await;
        assert_eq!(positions, [2, 3, 4, 5], "{kind:?}");
        assert_eq!(bucket.rows().await, [0, 1, 2, 3], "{kind:?}");
        drop(handle);
        assert_eq!(replays(&bucket, 2).await, [ids(0..=3), ids(0..=3)], "{kind:?}");
    }
}

/// Probe 2c: Lance's claim was refused, "another writer claimed epoch 2"; there was none.
#[tokio::test(start_paused = true)]
async fn p2c_a_lost_ack_of_the_claim_opens_all_the_same() {
    for fault in FAULTS {
        let bucket = bucket().await;
        let mut first = bucket.process().appender().await;
        append(&mut first, [1]).await.unwrap();
        drop(first);
        let process = bucket.process();
        let rule = process.faults.on(Op::Create).path_contains("/manifest/").then(fault);
        let (mut appender, replay) = process.open().await.unwrap();
        assert_eq!((rule.fired(), appender.epoch().get()), (1, 2), "{fault:?}");
        assert_eq!(replayed(replay).await, [1]);
        append(&mut appender, [2]).await.unwrap();
        drop(appender);
        assert_eq!(replays(&bucket, 1).await, [[1, 2]]);
    }
}

/// Probe 2d, and SlateDB's fence object at open: after a conflict every later open of SlateDB failed.
#[tokio::test(start_paused = true)]
async fn p2d_a_lost_ack_or_a_conflict_of_the_fence_opens_and_goes_on_opening() {
    for fault in FAULTS {
        let bucket = bucket().await;
        let mut first = bucket.process().appender().await;
        for id in 0..=3 {
            append(&mut first, [id]).await.unwrap();
        }
        drop(first);
        let process = bucket.process();
        let rule = process.faults.on(Op::Create).path_contains("/wal/").then(fault);
        let (mut appender, replay) = process.open().await.unwrap();
        assert_eq!(rule.fired(), 1);
        assert_eq!(replayed(replay).await, ids(0..=3), "{fault:?}");
        append(&mut appender, [4]).await.unwrap();
        drop(appender);
        assert_eq!(replays(&bucket, 5).await, vec![ids(0..=4); 5], "{fault:?}");
    }
}

/// Probe 4: ten of Lance's puts said "ok" and seven of their rows were never seen again. Of SlateDB: the data.
#[tokio::test(start_paused = true)]
async fn p4_a_conflict_of_an_entry_loses_nothing_behind_it() {
    for kind in KINDS {
        let bucket = bucket().await;
        let process = bucket.process();
        let (mut handle, _) = Handle::open(&process, kind).await;
        let positions = append_through(&process, &mut handle, Fault::Conflict409, 4, &ids(0..=9)).await;
        assert_eq!(positions, (2..=11).collect::<Vec<u64>>(), "{kind:?}: a position was passed over");
        assert_eq!(bucket.rows().await, ids(0..=9), "{kind:?}");
        drop(handle);
        assert_eq!(replays(&bucket, 2).await, [ids(0..=9), ids(0..=9)], "{kind:?}");
    }
}

/// Probe 4, SlateDB's availability: it took a conflict for a newer writer, and every later put failed.
#[tokio::test(start_paused = true)]
async fn p4_a_conflict_of_an_entry_fences_nobody() {
    for kind in KINDS {
        let bucket = bucket().await;
        let process = bucket.process();
        let (mut handle, _) = Handle::open(&process, kind).await;
        let rule = process.faults.on(Op::Create).path_contains("/wal/").nth(2).times(3).then(Fault::Conflict409);
        for id in 0..=9 {
            handle.append(id).await;
            handle.tenure().check().unwrap();
        }
        assert_eq!(rule.fired(), 3);
        handle.tenure().confirm().await.unwrap();
    }
}

/// Probe 4b: after Lance's next flush the loss of probe 4 was permanent.
#[tokio::test(start_paused = true)]
async fn p4b_a_flush_after_a_conflict_passes_over_no_entry() {
    for kind in KINDS {
        let bucket = bucket().await;
        let process = bucket.process();
        let (mut handle, _) = Handle::open(&process, kind).await;
        append_through(&process, &mut handle, Fault::Conflict409, 4, &ids(0..=9)).await;
        drop(handle);
        let (mut handle, replay) = Handle::open(&bucket.process(), kind).await;
        let mut flushed = replay;
        for id in 10..=12 {
            handle.append(id).await;
            flushed.push(id);
        }
        let tenure = handle.tenure();
        let sstable = SsTable::new(Generation::new(1), "stand-in_gen_1".into());
        let manifest = tenure.publish(Some(sstable), tenure.acknowledged()).await.unwrap();
        // Everything that R covers was in the writer's hands, and nothing else is left in the log.
        assert_eq!(flushed, ids(0..=12), "{kind:?}");
        assert_eq!(manifest.replay_after, tenure.acknowledged());
        drop(handle);
        assert_eq!(replays(&bucket, 1).await, [Vec::<i64>::new()], "{kind:?}");
    }
}

/// Probe 4c: a new row of Lance's filled the hole, and the rows behind it came back in another order.
#[tokio::test(start_paused = true)]
async fn p4c_rows_put_after_a_conflict_come_behind_those_before() {
    for kind in KINDS {
        let bucket = bucket().await;
        let process = bucket.process();
        let (mut handle, _) = Handle::open(&process, kind).await;
        append_through(&process, &mut handle, Fault::Conflict409, 4, &ids(0..=9)).await;
        drop(handle);
        let (mut handle, _) = Handle::open(&bucket.process(), kind).await;
        for id in 10..=12 {
            handle.append(id).await;
        }
        drop(handle);
        assert_eq!(replays(&bucket, 1).await, [ids(0..=12)], "{kind:?}");
    }
}

/// Probe 4e: the conflict meets the commit of an SSTable, which is listed once.
#[tokio::test(start_paused = true)]
async fn p4e_a_conflict_or_a_lost_ack_of_a_commit_lists_an_sstable_once() {
    for fault in FAULTS {
        let bucket = bucket().await;
        let process = bucket.process();
        let mut appender = process.appender().await;
        let covers = append(&mut appender, [1]).await.unwrap();
        let rule: Rule = process.faults.on(Op::Create).path_contains("/manifest/").then(fault);
        let sstable = SsTable::new(Generation::new(1), "stand-in_gen_1".into());
        let manifest = appender.tenure().publish(Some(sstable), covers).await.unwrap();
        assert_eq!(rule.fired(), 1);
        assert_eq!(manifest.sstables.len(), 1, "{fault:?}");
        let stored = bucket.manifest().await;
        assert_eq!((stored.sstables.len(), stored.current_generation.get()), (1, 2), "{fault:?}");
        assert_eq!(stored.replay_after, covers);
        append(&mut appender, [2]).await.unwrap();
        drop(appender);
        assert_eq!(replays(&bucket, 1).await, [[2]]);
    }
}

/// Probe 2 on a store that forgets user metadata: SlateDB knows its own object by metadata alone, and was fenced by it.
#[tokio::test(start_paused = true)]
async fn p2_a_lost_ack_on_a_store_that_forgets_metadata_fences_nobody() {
    for kind in KINDS {
        let forgetful = Arc::new(Forgetful { inner: InMemory::new(), asked_to_keep: AtomicUsize::new(0) });
        let store: Arc<dyn ObjectStore> = forgetful.clone();
        let bucket = Bucket::on(memory_store(store)).await;
        let process = bucket.process();
        let (mut handle, _) = Handle::open(&process, kind).await;
        append_through(&process, &mut handle, Fault::LostAckAsExists, 3, &ids(0..=3)).await;
        drop(handle);
        let claim = process.faults.on(Op::Create).path_contains("/manifest/").then(Fault::LostAckAsExists);
        let fence = process.faults.on(Op::Create).path_contains("/wal/").then(Fault::LostAckAsExists);
        assert_eq!(Handle::open(&process, kind).await.1, ids(0..=3), "{kind:?}");
        assert_eq!((claim.fired(), fence.fired()), (1, 1));
        assert_eq!(forgetful.asked_to_keep.load(Ordering::SeqCst), 0, "something is kept in metadata");
    }
}

/// Keeps bytes under names and nothing else: no metadata, no ETag, no version.
#[derive(Debug)]
struct Forgetful {
    inner: InMemory,
    /// PUTs that came with something to keep.
    asked_to_keep: AtomicUsize,
}

impl fmt::Display for Forgetful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Forgetful")
    }
}

#[async_trait]
impl ObjectStore for Forgetful {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        let kept = usize::from(!opts.attributes.is_empty());
        self.asked_to_keep.fetch_add(kept, Ordering::SeqCst);
        opts.attributes = Default::default();
        self.inner.put_opts(location, payload, opts).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut found = self.inner.get_opts(location, options).await?;
        found.attributes = Default::default();
        (found.meta.e_tag, found.meta.version) = (None, None);
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// docs/faults.md names a test for each probe. Each of them exists, and no probe is left out of the page.
#[test]
fn every_test_that_the_page_of_faults_names_exists() {
    let named = named_tests("faults.md");
    assert!(named.len() >= 20, "only {} tests are named", named.len());
    for krate in ["wal", "engine"] {
        let is_probe =
            |test: &&String| test.rsplit("::p").next().is_some_and(|name| name.starts_with(char::is_numeric));
        let probes: Vec<_> = tests_of(krate, &["peers_probes"]);
        let probes: Vec<_> = probes.iter().filter(is_probe).collect();
        assert!(!probes.is_empty());
        for probe in probes {
            assert!(named.contains(probe), "docs/faults.md does not name {probe}");
        }
    }
}
