//! A store that takes its time, by a distribution and a seed, on tokio's clock.
//!
//! It owns the pauses and nothing else. With paused time they cost nothing, and what a test measures is exact and the
//! same in every run. Half of each pause lies before the operation is carried out and half behind it, so that a
//! request can be overtaken on either way.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

use crate::lock;
use crate::rng::Rng;

/// How long requests take: points of the quantile function, straight lines between them, whole milliseconds.
#[derive(Debug, Clone)]
pub struct Latency(Vec<(f64, u64)>);

impl Latency {
    /// Every request takes the same time.
    pub fn constant(millis: u64) -> Self {
        Self(vec![(0.0, millis)])
    }

    /// Uniform between two limits, both included.
    pub fn uniform(millis: Range<u64>) -> Self {
        Self(vec![(0.0, millis.start), (1.0, millis.end)])
    }

    /// By quantiles, ascending: `[(0.0, 15), (0.5, 30), (0.99, 120), (1.0, 300)]`.
    pub fn quantiles(points: impl IntoIterator<Item = (f64, u64)>) -> Self {
        Self(points.into_iter().collect())
    }

    fn at(&self, quantile: f64) -> u64 {
        let mut below = (0.0, 0.0);
        for (n, (q, millis)) in self.0.iter().enumerate() {
            let point = (*q, *millis as f64);
            if *q >= quantile {
                let share = if n == 0 || point.0 <= below.0 { 1.0 } else { (quantile - below.0) / (point.0 - below.0) };
                return (below.1 + share * (point.1 - below.1)).round() as u64;
            }
            below = point;
        }
        below.1 as u64
    }
}

/// How long requests of each class take.
#[derive(Debug, Clone)]
pub struct Pace {
    /// PUTs of every mode, copies, renames, and each request of a multipart upload.
    pub put: Latency,
    /// GETs and HEADs.
    pub get: Latency,
    /// LISTs.
    pub list: Latency,
    /// DELETEs; of a bulk delete each object.
    pub delete: Latency,
    /// What one request transfers in a second, beside its latency. `None`: bytes take no time.
    pub bytes_per_second: Option<u64>,
}

impl Pace {
    /// All classes alike, whatever the bytes.
    pub fn every(latency: Latency) -> Self {
        let [put, get, list, delete] = std::array::from_fn(|_| latency.clone());
        Self { put, get, list, delete, bytes_per_second: None }
    }

    fn transfer(&self, bytes: u64) -> Duration {
        self.bytes_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64))
    }
}

/// A view of a store through which every request takes a while.
#[derive(Debug, Clone)]
pub struct LatencyStore {
    inner: Arc<dyn ObjectStore>,
    pace: Arc<Pace>,
    dice: Arc<Mutex<Rng>>,
}

impl LatencyStore {
    /// A view of `inner`; the n-th request through it takes as long as the seed says.
    pub fn new(inner: Arc<dyn ObjectStore>, latency: Latency, seed: u64) -> Self {
        Self::paced(inner, Pace::every(latency), seed)
    }

    /// As [`new`](Self::new), by class of request and size.
    pub fn paced(inner: Arc<dyn ObjectStore>, pace: Pace, seed: u64) -> Self {
        Self { inner, pace: Arc::new(pace), dice: Arc::new(Mutex::new(Rng::new(seed))) }
    }

    async fn slowly<T>(&self, latency: &Latency, bytes_sent: u64, request: impl Future<Output = T>) -> T {
        let millis = latency.at(lock(&self.dice).unit());
        tokio::time::sleep(Duration::from_millis(millis / 2) + self.pace.transfer(bytes_sent)).await;
        let answer = request.await;
        tokio::time::sleep(Duration::from_millis(millis - millis / 2)).await;
        answer
    }

    fn list_slowly(
        &self,
        list: impl FnOnce(&dyn ObjectStore) -> BoxStream<'static, Result<ObjectMeta>> + Send + 'static,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        stream::once(async move {
            let listed = async { list(&this.inner).try_collect().await };
            let found: Vec<ObjectMeta> = this.slowly(&this.pace.list, 0, listed).await?;
            Ok::<_, object_store::Error>(stream::iter(found.into_iter().map(Ok)))
        })
        .try_flatten()
        .boxed()
    }
}

impl fmt::Display for LatencyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LatencyStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for LatencyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let bytes = payload.content_length() as u64;
        self.slowly(&self.pace.put, bytes, self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.slowly(&self.pace.put, 0, self.inner.put_multipart_opts(location, opts)).await?;
        Ok(Box::new(SlowUpload { upload, store: self.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let answer = self.slowly(&self.pace.get, 0, self.inner.get_opts(location, options)).await?;
        tokio::time::sleep(self.pace.transfer(answer.range.end - answer.range.start)).await;
        Ok(answer)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        this.inner
            .delete_stream(locations)
            .then(move |deleted| {
                let this = this.clone();
                async move { this.slowly(&this.pace.delete, 0, async { deleted }).await }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned();
        self.list_slowly(move |inner| inner.list(prefix.as_ref()))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (prefix, offset) = (prefix.cloned(), offset.clone());
        self.list_slowly(move |inner| inner.list_with_offset(prefix.as_ref(), &offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.slowly(&self.pace.list, 0, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.slowly(&self.pace.put, 0, self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.slowly(&self.pace.put, 0, self.inner.rename_opts(from, to, options)).await
    }
}

/// An upload of which every request takes a while.
#[derive(Debug)]
struct SlowUpload {
    upload: Box<dyn MultipartUpload>,
    store: LatencyStore,
}

#[async_trait]
impl MultipartUpload for SlowUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (store, bytes) = (self.store.clone(), data.content_length() as u64);
        let part = self.upload.put_part(data);
        Box::pin(async move { store.slowly(&store.pace.put, bytes, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.store.slowly(&self.store.pace.put, 0, self.upload.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.store.slowly(&self.store.pace.delete, 0, self.upload.abort()).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn quantiles_are_joined_by_straight_lines() {
        let latency = Latency::quantiles([(0.0, 10), (0.5, 20), (0.9, 100), (1.0, 300)]);
        let at = [0.0, 0.25, 0.5, 0.7, 0.9, 0.95, 1.0].map(|q| latency.at(q));
        assert_eq!(at, [10, 15, 20, 60, 100, 200, 300]);
        assert_eq!([0.0, 0.4, 1.0].map(|q| Latency::constant(30).at(q)), [30; 3]);
        assert_eq!([0.0, 0.5, 1.0].map(|q| Latency::uniform(10..20).at(q)), [10, 15, 20]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_carried_out_in_the_middle_of_its_time() {
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = LatencyStore::new(Arc::clone(&inner), Latency::constant(30), 0);
        let path = Path::from("a");
        let started = Instant::now();
        let put = tokio::spawn({
            let path = path.clone();
            async move { store.put(&path, "x".into()).await.map(|_| ()) }
        });
        tokio::time::sleep(Duration::from_millis(14)).await;
        assert!(inner.head(&path).await.is_err());
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(inner.head(&path).await.is_ok());
        put.await.unwrap().unwrap();
        assert_eq!(started.elapsed().as_millis(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn classes_and_bytes_take_their_own_time() {
        let pace =
            Pace { get: Latency::constant(15), bytes_per_second: Some(1000), ..Pace::every(Latency::constant(30)) };
        let store = LatencyStore::paced(Arc::new(InMemory::new()), pace, 0);
        let path = Path::from("a");
        let mut started = Instant::now();
        let mut took = || {
            let millis = started.elapsed().as_millis();
            started = Instant::now();
            millis
        };
        store.put(&path, vec![0; 500].into()).await.unwrap();
        assert_eq!(took(), 530);
        store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(took(), 515);
        store.get_range(&path, 0..100).await.unwrap();
        assert_eq!(took(), 115);
        store.list_with_delimiter(None).await.unwrap();
        assert_eq!(took(), 30);
        let mut upload = store.put_multipart(&path).await.unwrap();
        upload.put_part(vec![0; 200].into()).await.unwrap();
        upload.complete().await.unwrap();
        assert_eq!(took(), 30 + 230 + 30);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_takes_the_same_time() {
        let mut took = Vec::new();
        for seed in [1, 1, 2] {
            let store = LatencyStore::new(Arc::new(InMemory::new()), Latency::uniform(1..1000), seed);
            let started = Instant::now();
            for _ in 0..10 {
                let _ = store.head(&Path::from("a")).await;
            }
            took.push(started.elapsed());
        }
        assert_eq!(took[0], took[1]);
        assert_ne!(took[0], took[2]);
    }
}
