//! How many requests something costs, by class.
//!
//! It owns the counters and nothing else: requests pass through unchanged. One call counts as the one request it would
//! be on a remote store (a LIST as one, however many pages; a bulk delete as one DELETE per object; a coalesced
//! `get_ranges` as one GET per range that is fetched).

use std::fmt;
use std::ops::Sub;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

/// Requests of each class, sent so far or between two moments.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RequestCounts {
    /// PUTs of every mode, copies, renames, and the requests of a multipart upload.
    pub put: u64,
    /// GETs that ask for content.
    pub get: u64,
    /// HEADs.
    pub head: u64,
    /// LISTs, with or without a delimiter.
    pub list: u64,
    /// Objects whose deletion was asked for.
    pub delete: u64,
    /// Bytes sent in PUTs and in parts of uploads.
    pub bytes_put: u64,
    /// Bytes that answered GETs promised, whether or not the caller read them all.
    pub bytes_got: u64,
}

impl RequestCounts {
    /// All requests together.
    pub fn requests(&self) -> u64 {
        self.put + self.get + self.head + self.list + self.delete
    }
}

impl Sub for RequestCounts {
    type Output = Self;

    /// What was sent since the `earlier` snapshot of the same counter.
    fn sub(self, earlier: Self) -> Self {
        Self {
            put: self.put - earlier.put,
            get: self.get - earlier.get,
            head: self.head - earlier.head,
            list: self.list - earlier.list,
            delete: self.delete - earlier.delete,
            bytes_put: self.bytes_put - earlier.bytes_put,
            bytes_got: self.bytes_got - earlier.bytes_got,
        }
    }
}

/// A cheap shared handle on the counters of a [`CountingStore`].
#[derive(Debug, Default, Clone)]
pub struct Counts {
    cells: Arc<Cells>,
}

#[derive(Debug, Default)]
struct Cells {
    put: AtomicU64,
    get: AtomicU64,
    head: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    bytes_put: AtomicU64,
    bytes_got: AtomicU64,
}

impl Counts {
    /// The counters as they are now. Subtract an earlier snapshot to get the cost of what lies between.
    pub fn snapshot(&self) -> RequestCounts {
        let read = |cell: &AtomicU64| cell.load(Ordering::SeqCst);
        RequestCounts {
            put: read(&self.cells.put),
            get: read(&self.cells.get),
            head: read(&self.cells.head),
            list: read(&self.cells.list),
            delete: read(&self.cells.delete),
            bytes_put: read(&self.cells.bytes_put),
            bytes_got: read(&self.cells.bytes_got),
        }
    }
}

fn add(cell: &AtomicU64, n: u64) {
    cell.fetch_add(n, Ordering::SeqCst);
}

/// Counts the requests that pass through it.
#[derive(Debug, Clone)]
pub struct CountingStore {
    inner: Arc<dyn ObjectStore>,
    counts: Counts,
}

impl CountingStore {
    /// A view of `inner` with counters at zero.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self::counted_by(inner, Counts::default())
    }

    /// A view of `inner` with counters that other views share.
    pub fn counted_by(inner: Arc<dyn ObjectStore>, counts: Counts) -> Self {
        Self { inner, counts }
    }

    /// The shared counters.
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }
}

impl fmt::Display for CountingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CountingStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for CountingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        add(&self.counts.cells.put, 1);
        add(&self.counts.cells.bytes_put, payload.content_length() as u64);
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        add(&self.counts.cells.put, 1);
        let upload = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(CountingUpload { upload, counts: self.counts.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let cells = &self.counts.cells;
        add(if head { &cells.head } else { &cells.get }, 1);
        let result = self.inner.get_opts(location, options).await?;
        if !head {
            add(&cells.bytes_got, result.range.end - result.range.start);
        }
        Ok(result)
    }

    // `get_ranges` keeps its default, which sends each coalesced range through `get_opts` above: what a remote store does.

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let counts = self.counts.clone();
        let counted = locations.inspect(move |location| {
            if location.is_ok() {
                add(&counts.cells.delete, 1);
            }
        });
        self.inner.delete_stream(counted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        add(&self.counts.cells.list, 1);
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        add(&self.counts.cells.list, 1);
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        add(&self.counts.cells.list, 1);
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        add(&self.counts.cells.put, 1);
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        add(&self.counts.cells.put, 1);
        add(&self.counts.cells.delete, 1);
        self.inner.rename_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct CountingUpload {
    upload: Box<dyn MultipartUpload>,
    counts: Counts,
}

#[async_trait]
impl MultipartUpload for CountingUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        add(&self.counts.cells.put, 1);
        add(&self.counts.cells.bytes_put, data.content_length() as u64);
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        add(&self.counts.cells.put, 1);
        self.upload.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn every_class_is_counted_once() {
        let store = CountingStore::new(Arc::new(InMemory::new()));
        let counts = store.counts();
        let path = Path::from("a/b");
        store.put(&path, "hello".into()).await.unwrap();
        store.get(&path).await.unwrap();
        store.head(&path).await.unwrap();
        let _: Vec<_> = store.list(None).try_collect().await.unwrap();
        store.delete(&path).await.unwrap();
        let expected = RequestCounts { put: 1, get: 1, head: 1, list: 1, delete: 1, bytes_put: 5, bytes_got: 5 };
        assert_eq!(counts.snapshot(), expected);
        assert_eq!(expected.requests(), 5);
    }

    #[tokio::test]
    async fn a_difference_is_the_cost_of_what_lies_between() {
        let store = CountingStore::new(Arc::new(InMemory::new()));
        let path = Path::from("a");
        store.put(&path, "x".into()).await.unwrap();
        let before = store.counts().snapshot();
        store.get(&path).await.unwrap();
        let cost = store.counts().snapshot() - before;
        assert_eq!((cost.put, cost.get, cost.requests()), (0, 1, 1));
    }

    #[tokio::test]
    async fn failed_requests_count_too() {
        let store = CountingStore::new(Arc::new(InMemory::new()));
        assert!(store.get(&Path::from("absent")).await.is_err());
        assert_eq!(store.counts().snapshot().get, 1);
    }

    #[tokio::test]
    async fn a_multipart_upload_counts_its_requests_and_bytes() {
        let store = CountingStore::new(Arc::new(InMemory::new()));
        let mut upload = store.put_multipart(&Path::from("big")).await.unwrap();
        upload.put_part("12345".into()).await.unwrap();
        upload.put_part("678".into()).await.unwrap();
        upload.complete().await.unwrap();
        let counts = store.counts().snapshot();
        assert_eq!((counts.put, counts.bytes_put), (4, 8));
    }
}
