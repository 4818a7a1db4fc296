//! `s3s-fs` with the promises that S3 makes and it does not keep by itself.
//!
//! The published server looks whether an object exists and then writes it, with nothing in between that stops another
//! request from doing the same: 32 creates of one key have many winners. This wrapper owns the locks that make it one.
//! It also reads a body to its end before it takes a lock (a client that stops in the middle of an upload must hold up
//! nobody), finishes a write that it began although the client went away, and does not mistake folders for objects.

use std::collections::BTreeSet;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use s3s::dto::*;
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::S3Habits;

const STRIPES: usize = 64;
const FILE_NAME_LIMIT: usize = 255;

/// A file system behind locks. Clones share the locks.
#[derive(Debug, Clone)]
pub(super) struct LockedFileSystem {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    files: FileSystem,
    root: PathBuf,
    /// Shared by whatever touches single objects, exclusive for LIST: a listing of one moment. Taken before `stripes`.
    tree: RwLock<()>,
    /// One lock per class of keys: shared for reading an object, exclusive for changing it.
    stripes: Vec<RwLock<()>>,
    habits: S3Habits,
    /// PUTs that came with a condition.
    conditional: AtomicU64,
}

/// Holds the locks of one request; the order of the fields does not matter, they are only held.
type ReadLocks<'a> = (RwLockReadGuard<'a, ()>, RwLockReadGuard<'a, ()>);
type WriteLocks<'a> = (RwLockReadGuard<'a, ()>, Vec<RwLockWriteGuard<'a, ()>>);

impl LockedFileSystem {
    pub(super) fn open(root: &Path, habits: S3Habits) -> io::Result<Self> {
        let files = FileSystem::new(root)
            .map_err(|error| io::Error::other(format!("cannot serve {}: {error:?}", root.display())))?;
        let shared = Shared {
            files,
            root: root.to_owned(),
            tree: RwLock::new(()),
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
            habits,
            conditional: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Runs a write to its end even if the client goes away: an S3 request that arrived is carried out whole.
    async fn to_the_end<T, F>(&self, work: impl FnOnce(Arc<Shared>) -> F) -> S3Result<T>
    where
        T: Send + 'static,
        F: Future<Output = S3Result<T>> + Send + 'static,
    {
        let task = tokio::spawn(work(Arc::clone(&self.shared)));
        task.await.map_err(|error| s3_error!(error, InternalError, "the server stopped"))?
    }
}

impl Shared {
    fn stripe(&self, bucket: &str, key: &str) -> usize {
        let mut hasher = DefaultHasher::new();
        (bucket, key).hash(&mut hasher);
        (hasher.finish() % STRIPES as u64) as usize
    }

    fn lock_of(&self, stripe: usize) -> &RwLock<()> {
        #[expect(clippy::indexing_slicing, reason = "reduced modulo the number of stripes")]
        &self.stripes[stripe]
    }

    async fn reading(&self, bucket: &str, key: &str) -> ReadLocks<'_> {
        let tree = self.tree.read().await;
        let object = self.lock_of(self.stripe(bucket, key)).read().await;
        (tree, object)
    }

    async fn writing<'k>(&self, bucket: &str, keys: impl Iterator<Item = &'k str>) -> WriteLocks<'_> {
        // In ascending order, each once: two requests with many keys cannot wait for each other.
        let wanted: BTreeSet<usize> = keys.map(|key| self.stripe(bucket, key)).collect();
        let tree = self.tree.read().await;
        let mut objects = Vec::with_capacity(wanted.len());
        for stripe in wanted {
            objects.push(self.lock_of(stripe).write().await);
        }
        (tree, objects)
    }

    fn is_folder(&self, bucket: &str, key: &str) -> bool {
        let relative = Path::new(bucket).join(key);
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        plain && self.root.join(relative).is_dir()
    }

    /// Does to a PUT with a condition what other servers may do to it.
    fn apply_habits(&self, put: &mut PutObjectInput) -> S3Result<()> {
        if put.if_none_match.is_none() {
            return Ok(());
        }
        if self.habits.ignores_conditions {
            put.if_none_match = None;
        }
        let nth = self.conditional.fetch_add(1, Ordering::Relaxed) + 1;
        match self.habits.conflict_every {
            Some(every) if nth.is_multiple_of(every) => {
                Err(s3_error!(OperationAborted, "a conflicting PUT is under way"))
            }
            _ => Ok(()),
        }
    }

    /// The server would answer for the folder, S3 knows no folders.
    fn refuse_folder(&self, bucket: &str, key: &str) -> S3Result<()> {
        if self.is_folder(bucket, key) {
            return Err(s3_error!(NoSuchKey));
        }
        Ok(())
    }

    /// Refuses keys that files cannot stand for, with an error that says so.
    fn check_new_key(&self, bucket: &str, key: &str) -> S3Result<()> {
        // `s3s-fs` keeps `.bucket-{base64}.object-{base64}.internal.json` beside each object.
        let encoded = |text: &str| (text.len() * 4).div_ceil(3);
        let sidecar = ".bucket-.object-.internal.json".len() + encoded(bucket) + encoded(key);
        if sidecar > FILE_NAME_LIMIT {
            return Err(s3_error!(
                KeyTooLongError,
                "this test server cannot store the key {key} of {} bytes; use a shorter table path",
                key.len()
            ));
        }
        if !key.ends_with('/') && self.is_folder(bucket, key) {
            return Err(s3_error!(
                InvalidRequest,
                "this test server cannot store the key {key} because there are keys below {key}/"
            ));
        }
        Ok(())
    }
}

/// Reads a body to its end.
async fn received(body: Option<StreamingBlob>) -> S3Result<Option<StreamingBlob>> {
    let Some(mut body) = body else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| s3_error!(IncompleteBody, "{error}"))?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(StreamingBlob::from(Body::from(bytes))))
}

type Answer<T> = S3Result<S3Response<T>>;

#[async_trait]
impl S3 for LockedFileSystem {
    async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        req.input.body = received(req.input.body.take()).await?;
        self.to_the_end(|shared| async move {
            let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
            let _locks = shared.writing(&bucket, [key.as_str()].into_iter()).await;
            shared.check_new_key(&bucket, &key)?;
            shared.apply_habits(&mut req.input)?;
            shared.files.put_object(req).await
        })
        .await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        self.to_the_end(|shared| async move {
            let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
            let _locks = shared.writing(&bucket, [key.as_str()].into_iter()).await;
            shared.check_new_key(&bucket, &key)?;
            shared.files.complete_multipart_upload(req).await
        })
        .await
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        self.to_the_end(|shared| async move {
            let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
            let source = match &req.input.copy_source {
                CopySource::Bucket { key, .. } => key.to_string(),
                _ => return Err(s3_error!(NotImplemented)),
            };
            let keys = [key.as_str(), source.as_str()];
            let _locks = shared.writing(&bucket, keys.into_iter()).await;
            shared.check_new_key(&bucket, &key)?;
            shared.files.copy_object(req).await
        })
        .await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        self.to_the_end(|shared| async move {
            let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
            let _locks = shared.writing(&bucket, [key.as_str()].into_iter()).await;
            if shared.is_folder(&bucket, &key) {
                // Deleting what does not exist succeeds on S3.
                return Ok(S3Response::new(DeleteObjectOutput::default()));
            }
            shared.files.delete_object(req).await
        })
        .await
    }

    async fn delete_objects(&self, mut req: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        self.to_the_end(|shared| async move {
            let bucket = req.input.bucket.clone();
            let objects = std::mem::take(&mut req.input.delete.objects);
            let keys = objects.iter().map(|object| object.key.as_str());
            let _locks = shared.writing(&bucket, keys).await;
            let (folders, files): (Vec<_>, Vec<_>) =
                objects.into_iter().partition(|object| shared.is_folder(&bucket, &object.key));
            req.input.delete.objects = files;
            let mut answer = shared.files.delete_objects(req).await?;
            // Deleting what does not exist succeeds on S3.
            let absent =
                folders.into_iter().map(|object| DeletedObject { key: Some(object.key), ..DeletedObject::default() });
            answer.output.deleted.get_or_insert_default().extend(absent);
            Ok(answer)
        })
        .await
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let _locks = self.shared.reading(&bucket, &key).await;
        self.shared.refuse_folder(&bucket, &key)?;
        // The open file outlives the lock: a later write puts a new file in its place and leaves this one whole.
        self.shared.files.get_object(req).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        let (bucket, key) = (req.input.bucket.clone(), req.input.key.clone());
        let _locks = self.shared.reading(&bucket, &key).await;
        self.shared.refuse_folder(&bucket, &key)?;
        self.shared.files.head_object(req).await
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> Answer<ListObjectsOutput> {
        let _alone = self.shared.tree.write().await;
        self.shared.files.list_objects(req).await
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        let _alone = self.shared.tree.write().await;
        self.shared.files.list_objects_v2(req).await
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        self.shared.check_new_key(&req.input.bucket, &req.input.key)?;
        self.shared.files.create_multipart_upload(req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        self.shared.files.upload_part(req).await
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
        self.shared.files.list_parts(req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        self.shared.files.abort_multipart_upload(req).await
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> Answer<CreateBucketOutput> {
        self.shared.files.create_bucket(req).await
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
        self.shared.files.head_bucket(req).await
    }

    async fn list_buckets(&self, req: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        self.shared.files.list_buckets(req).await
    }

    async fn get_bucket_location(&self, req: S3Request<GetBucketLocationInput>) -> Answer<GetBucketLocationOutput> {
        self.shared.files.get_bucket_location(req).await
    }
}
