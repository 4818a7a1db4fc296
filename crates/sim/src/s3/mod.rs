//! A real S3 server on loopback, so that the real S3 client is what tests run.
//!
//! It owns the socket, the keys and the thread that serves; what it serves is the folder it was given, through
//! [`locked`], which makes conditional writes atomic. It is not durable against power loss, and it answers 409 only
//! where [`S3Habits`] say so.

mod locked;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::sync::oneshot;

use locked::LockedFileSystem;

const ACCESS_KEY: &str = "fencepost";
const SECRET_KEY: &str = "fencepost-secret";
const REGION: &str = "us-east-1";

/// A server with one bucket, until it is dropped.
///
/// The objects are files in the folder: stop the server, start another on the same folder, and everything is there.
/// Never run two on one folder at once, their conditional writes would not see each other.
///
/// Keys of up to 160 bytes fit (the server keeps a file beside each object whose name encodes the whole key), so a
/// table's path should stay below about 30 bytes; a longer key is refused with `KeyTooLongError`.
#[derive(Debug)]
pub struct S3Server {
    dir: PathBuf,
    habits: S3Habits,
    address: SocketAddr,
    running: Option<Running>,
}

/// What a server does that S3 itself does rarely, or not at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct S3Habits {
    /// Takes a PUT with `If-None-Match: *` for a plain one.
    pub ignores_conditions: bool,
    /// Answers every so-manieth PUT with a condition 409, and does nothing else with it.
    pub conflict_every: Option<u64>,
}

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl S3Server {
    /// The name of the bucket, which exists from the start.
    pub const BUCKET: &'static str = "fence";

    /// Serves `dir` (made if absent) on a free port of 127.0.0.1, from a thread and runtime of its own. Requests are
    /// answered from the moment this returns.
    ///
    /// # Errors
    ///
    /// If the folder cannot be made or the socket cannot be opened.
    pub fn start(dir: impl AsRef<Path>) -> io::Result<Self> {
        Self::start_with(dir, S3Habits::default())
    }

    /// As [`start`](Self::start), a server with habits.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with(dir: impl AsRef<Path>, habits: S3Habits) -> io::Result<Self> {
        let dir = dir.as_ref().to_owned();
        std::fs::create_dir_all(dir.join(Self::BUCKET))?;
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (address, running) = serve(&dir, anywhere, habits)?;
        Ok(Self { dir, habits, address, running: Some(running) })
    }

    /// Stops at once, like a killed server: connections break, requests that are half done are not answered. Does
    /// nothing if it has stopped already.
    pub fn stop(&mut self) {
        if let Some(Running { stop, thread }) = self.running.take() {
            // Either the thread hears this or it has ended by itself; both are what we want.
            let _ = stop.send(());
            let _ = thread.join();
        }
    }

    /// Stops if need be, then serves the same folder on the same port: for clients, an outage.
    ///
    /// # Errors
    ///
    /// If somebody else has taken the port meanwhile.
    pub fn restart(&mut self) -> io::Result<()> {
        self.stop();
        let (_, running) = serve(&self.dir, self.address, self.habits)?;
        self.running = Some(running);
        Ok(())
    }

    /// `http://127.0.0.1:{port}`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The name of the bucket.
    pub fn bucket(&self) -> &str {
        Self::BUCKET
    }

    /// The access key id that requests must be signed with.
    pub fn access_key(&self) -> &str {
        ACCESS_KEY
    }

    /// The secret that belongs to the access key.
    pub fn secret_key(&self) -> &str {
        SECRET_KEY
    }

    /// The URL of something in the bucket: `s3://{bucket}/{path}`.
    pub fn url(&self, path: &str) -> String {
        format!("s3://{}/{path}", self.bucket())
    }

    /// What a client needs to know, under the names of `object_store` (which are also Lance's).
    pub fn storage_options(&self) -> HashMap<String, String> {
        let options = [
            ("aws_access_key_id", ACCESS_KEY),
            ("aws_secret_access_key", SECRET_KEY),
            ("aws_endpoint", &self.endpoint()),
            ("aws_region", REGION),
            ("aws_virtual_hosted_style_request", "false"),
            ("allow_http", "true"),
        ];
        options.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    /// A client for the bucket with the library's defaults, its hidden retries included.
    ///
    /// # Errors
    ///
    /// If the client cannot be built.
    pub fn client(&self) -> object_store::Result<Arc<dyn ObjectStore>> {
        Ok(Arc::new(self.client_builder().build()?))
    }

    /// The same client before it is built, to change its retries or timeouts.
    pub fn client_builder(&self) -> AmazonS3Builder {
        AmazonS3Builder::new()
            .with_endpoint(self.endpoint())
            .with_bucket_name(self.bucket())
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .with_region(REGION)
            .with_allow_http(true)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Opens the socket here, so that errors are the caller's and no request can come too early, and serves it elsewhere.
fn serve(dir: &Path, address: SocketAddr, habits: S3Habits) -> io::Result<(SocketAddr, Running)> {
    let files = LockedFileSystem::open(dir, habits)?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = builder.build();

    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    // Two workers: enough for requests to race each other, which is what the tests are about.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name("s3-server".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = accept(listener, service) => {}
                _ = stopped => {}
            }
        });
        // Drops every connection; file operations that are under way get a moment to end.
        runtime.shutdown_timeout(Duration::from_secs(5));
    })?;
    Ok((address, Running { stop, thread }))
}

async fn accept(listener: TcpListener, service: S3Service) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of file handles, or a client that left at once: neither is a reason to stop serving.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Without it small answers wait for the client's delayed acknowledgement.
        let _ = socket.set_nodelay(true);
        let service = service.clone();
        tokio::spawn(async move {
            // A connection that breaks is the client's to notice.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
    }
}
