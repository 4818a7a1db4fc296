//! A line for every measured request: when it began and how long it took, by which one sees what waits for what.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// Where lines go, and what time is counted from.
static LINES: OnceLock<(Mutex<File>, Instant)> = OnceLock::new();

/// From now on requests are traced to this file.
pub(crate) fn begin(file: &FilePath) -> std::io::Result<()> {
    let _ = LINES.set((Mutex::new(File::create(file)?), Instant::now()));
    Ok(())
}

/// The store with a trace, if there is to be one.
pub(crate) fn traced(inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
    match LINES.get() {
        Some(_) => Arc::new(TracedStore(inner)),
        None => inner,
    }
}

/// A request under way.
struct Line {
    class: &'static str,
    path: String,
    began: Instant,
}

impl Line {
    fn of(class: &'static str, path: impl fmt::Display) -> Self {
        Self { class, path: path.to_string(), began: Instant::now() }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some((file, start)) = LINES.get() {
            let millis = |time: std::time::Duration| time.as_secs_f64() * 1e3;
            let (at, took) = (millis(self.began - *start), millis(self.began.elapsed()));
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            // A trace that cannot be written is missed by whoever asked for it, and changes no figure.
            let _ = writeln!(file, "{at:12.1} ms  {took:8.1} ms  {:6}  {}", self.class, self.path);
        }
    }
}

#[derive(Debug)]
struct TracedStore(Arc<dyn ObjectStore>);

impl fmt::Display for TracedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TracedStore({})", self.0)
    }
}

fn prefix(prefix: Option<&Path>) -> String {
    prefix.map_or_else(String::new, ToString::to_string)
}

#[async_trait]
impl ObjectStore for TracedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let _line = Line::of("PUT", location);
        self.0.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let _line = Line::of("PUT", location);
        self.0.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let _line = Line::of(if options.head { "HEAD" } else { "GET" }, location);
        self.0.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let mut line = Some(Line::of("DELETE", ""));
        self.0.delete_stream(locations).inspect(move |_| drop(line.take())).boxed()
    }

    fn list(&self, at: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let mut line = Some(Line::of("LIST", prefix(at)));
        self.0.list(at).inspect(move |_| drop(line.take())).boxed()
    }

    fn list_with_offset(&self, at: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let mut line = Some(Line::of("LIST", prefix(at)));
        self.0.list_with_offset(at, offset).inspect(move |_| drop(line.take())).boxed()
    }

    async fn list_with_delimiter(&self, at: Option<&Path>) -> Result<ListResult> {
        let _line = Line::of("LIST", prefix(at));
        self.0.list_with_delimiter(at).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let _line = Line::of("PUT", to);
        self.0.copy_opts(from, to, options).await
    }
}
