//! A store that knows of how many SSTables requests are on the wire at once. Every read of an SSTable lets all other tasks
//! go on first, as far as they come, so that whatever may be asked for at the same time is.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// Turns that a request gives to the other tasks.
const TURNS: usize = 64;

#[derive(Debug, Default)]
struct Folders {
    /// Requests by folder.
    on_the_wire: HashMap<String, usize>,
    most: usize,
}

/// A view of a store; clones count together.
#[derive(Debug, Clone)]
pub(crate) struct AtOnce {
    inner: Arc<dyn ObjectStore>,
    folders: Arc<Mutex<Folders>>,
}

/// A request on the wire.
struct Asked {
    folders: Arc<Mutex<Folders>>,
    folder: String,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut folders = self.folders.lock().unwrap();
        let left = folders.on_the_wire.get_mut(&self.folder).unwrap();
        *left -= 1;
        if *left == 0 {
            folders.on_the_wire.remove(&self.folder);
        }
    }
}

impl AtOnce {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, folders: Arc::default() }
    }

    /// The most SSTables that were asked at the same time since the last call.
    pub(crate) fn most(&self) -> usize {
        std::mem::take(&mut self.folders.lock().unwrap().most)
    }

    async fn ask(&self, path: &Path) -> Option<Asked> {
        let folder = path.parts().find(|part| part.as_ref().contains("_gen_"))?.as_ref().to_owned();
        {
            let mut folders = self.folders.lock().unwrap();
            *folders.on_the_wire.entry(folder.clone()).or_default() += 1;
            folders.most = folders.most.max(folders.on_the_wire.len());
        }
        let asked = Asked { folders: Arc::clone(&self.folders), folder };
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        Some(asked)
    }
}

impl fmt::Display for AtOnce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtOnce")
    }
}

#[async_trait]
impl ObjectStore for AtOnce {
    async fn put_opts(&self, path: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(path, payload, opts).await
    }
    async fn put_multipart_opts(&self, path: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, opts).await
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let _asked = self.ask(path).await;
        self.inner.get_opts(path, options).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        let listed = async move {
            let _asked = this.ask(&prefix).await;
            this.inner.list(Some(&prefix)).collect::<Vec<_>>().await
        };
        stream::once(listed).flat_map(stream::iter).boxed()
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let _asked = self.ask(&prefix.cloned().unwrap_or_default()).await;
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
