//! A store that accepts the conditional headers and ignores them.
//!
//! Some servers that speak S3 do exactly this: a create on an existing name answers success and overwrites. It owns that
//! one lie; a log must never trust such a store, and whatever checks a store before first use must refuse it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, RenameTargetMode, Result,
};

/// Wraps a store; every create and every compare-and-swap becomes a plain overwrite that succeeds.
#[derive(Debug, Clone)]
pub struct IgnoreConditionStore {
    inner: Arc<dyn ObjectStore>,
}

impl IgnoreConditionStore {
    /// A view of `inner` that ignores write conditions. Reads are passed on untouched.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner }
    }
}

impl fmt::Display for IgnoreConditionStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IgnoreConditionStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for IgnoreConditionStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        opts.mode = PutMode::Overwrite;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, mut options: CopyOptions) -> Result<()> {
        options.mode = CopyMode::Overwrite;
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, mut options: RenameOptions) -> Result<()> {
        options.target_mode = RenameTargetMode::Overwrite;
        self.inner.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn create_overwrites_and_says_ok() {
        let store = IgnoreConditionStore::new(Arc::new(InMemory::new()));
        let path = Path::from("k");
        for text in ["first", "second"] {
            store.put_opts(&path, text.into(), PutMode::Create.into()).await.unwrap();
        }
        let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(bytes, "second");
    }

    #[tokio::test]
    async fn copy_if_absent_overwrites_too() {
        let store = IgnoreConditionStore::new(Arc::new(InMemory::new()));
        let (from, to) = (Path::from("a"), Path::from("b"));
        store.put(&from, "a".into()).await.unwrap();
        store.put(&to, "b".into()).await.unwrap();
        store.copy_if_not_exists(&from, &to).await.unwrap();
        let bytes = store.get(&to).await.unwrap().bytes().await.unwrap();
        assert_eq!(bytes, "a");
    }
}
