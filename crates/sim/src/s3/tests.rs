//! The server through the real client: one winner per create, and everything else a log needs.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use futures::TryStreamExt;
use futures::future::join_all;
use object_store::path::Path as Key;
use object_store::signer::Signer;
use object_store::{Error, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig, UpdateVersion};

use super::*;

fn start() -> (tempfile::TempDir, S3Server) {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(dir.path()).unwrap();
    (dir, server)
}

/// A client without hidden retries, whose answers are the server's own.
fn plain(server: &S3Server) -> Arc<dyn ObjectStore> {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    Arc::new(server.client_builder().with_retry(retry).build().unwrap())
}

fn create() -> PutOptions {
    PutMode::Create.into()
}

async fn read(store: &dyn ObjectStore, key: &str) -> Vec<u8> {
    let result = store.get(&Key::from(key)).await.unwrap();
    result.bytes().await.unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_32_concurrent_creates_exactly_one_wins() {
    let (_dir, server) = start();
    let store = plain(&server);
    for round in 0..50 {
        let key = Key::from(format!("race/{round}"));
        let creates = (0..32u8).map(|writer| {
            let (store, key) = (Arc::clone(&store), key.clone());
            tokio::spawn(async move {
                let payload = PutPayload::from(vec![writer; 4096]);
                store.put_opts(&key, payload, create()).await
            })
        });
        let answers: Vec<_> = join_all(creates).await.into_iter().map(|a| a.unwrap()).collect();
        let winners: Vec<usize> = (0..32).filter(|i| answers.get(*i).unwrap().is_ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}");
        for answer in answers.into_iter().filter_map(Result::err) {
            assert!(matches!(answer, Error::AlreadyExists { .. }), "{answer}");
        }
        let expected = vec![u8::try_from(*winners.first().unwrap()).unwrap(); 4096];
        assert_eq!(read(&*store, key.as_ref()).await, expected);
    }
}

#[tokio::test]
async fn of_concurrent_compare_and_swaps_exactly_one_wins() {
    let (_dir, server) = start();
    let store = plain(&server);
    let key = Key::from("cas");
    let first = store.put(&key, "0".into()).await.unwrap();
    let swaps = (0..16u8).map(|writer| {
        let version = UpdateVersion::from(first.clone());
        let mode = PutMode::Update(version);
        let payload = PutPayload::from(vec![writer; 10]);
        store.put_opts(&key, payload, mode.into())
    });
    let winners = join_all(swaps).await.into_iter().filter(Result::is_ok);
    assert_eq!(winners.count(), 1);
}

#[tokio::test]
async fn put_get_head_list_delete_work_through_the_client() {
    let (_dir, server) = start();
    let store = server.client().unwrap();
    for key in ["t/wal/b", "t/wal/a", "t/manifest/1"] {
        store.put_opts(&Key::from(key), key.into(), create()).await.unwrap();
    }
    assert_eq!(read(&*store, "t/wal/a").await, b"t/wal/a");
    let range = store.get_range(&Key::from("t/wal/a"), 2..5).await.unwrap();
    assert_eq!(range, "wal");
    assert_eq!(store.head(&Key::from("t/wal/a")).await.unwrap().size, 7);

    let names = |found: Vec<object_store::ObjectMeta>| -> Vec<String> {
        found.into_iter().map(|meta| meta.location.to_string()).collect()
    };
    let below = Key::from("t/wal");
    let all = store.list(Some(&below)).try_collect().await.unwrap();
    assert_eq!(names(all), ["t/wal/a", "t/wal/b"]);
    let offset = Key::from("t/wal/a");
    let after = store.list_with_offset(Some(&below), &offset);
    assert_eq!(names(after.try_collect().await.unwrap()), ["t/wal/b"]);
    let top = store.list_with_delimiter(Some(&Key::from("t"))).await.unwrap();
    assert_eq!(top.common_prefixes, [Key::from("t/manifest"), Key::from("t/wal")]);

    let doomed = ["t/wal/a", "t/wal/b", "t/never/there"].map(|key| Ok(Key::from(key)));
    let doomed = futures::StreamExt::boxed(futures::stream::iter(doomed));
    let _: Vec<Key> = store.delete_stream(doomed).try_collect().await.unwrap();
    store.delete(&Key::from("t/manifest/1")).await.unwrap();
    let left: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert!(left.is_empty());
    let gone = store.get(&Key::from("t/wal/a")).await;
    assert!(matches!(gone, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_name_that_was_deleted_can_be_created_again() {
    let (_dir, server) = start();
    let store = plain(&server);
    let key = Key::from("k");
    store.put_opts(&key, "1".into(), create()).await.unwrap();
    store.delete(&key).await.unwrap();
    store.put_opts(&key, "2".into(), create()).await.unwrap();
    assert_eq!(read(&*store, "k").await, b"2");
}

#[tokio::test]
async fn a_list_longer_than_a_page_is_whole() {
    let (_dir, server) = start();
    let store = server.client().unwrap();
    let put = |n: u32| {
        let store = Arc::clone(&store);
        async move { store.put(&Key::from(format!("many/{n:04}")), "x".into()).await }
    };
    for chunk in (0..1205).collect::<Vec<_>>().chunks(64) {
        for answer in join_all(chunk.iter().map(|n| put(*n))).await {
            answer.unwrap();
        }
    }
    let found: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert_eq!(found.len(), 1205);
}

#[tokio::test]
async fn a_multipart_upload_appears_whole() {
    let (_dir, server) = start();
    let store = server.client().unwrap();
    let key = Key::from("big");
    let mut upload = store.put_multipart(&key).await.unwrap();
    upload.put_part(vec![1u8; 5 << 20].into()).await.unwrap();
    upload.put_part(vec![2u8; 10].into()).await.unwrap();
    assert!(store.head(&key).await.is_err());
    upload.complete().await.unwrap();
    assert_eq!(store.head(&key).await.unwrap().size, (5 << 20) + 10);
}

#[tokio::test]
async fn a_folder_is_not_an_object() {
    let (_dir, server) = start();
    let store = plain(&server);
    store.put(&Key::from("table/data/1"), "x".into()).await.unwrap();
    let folder = Key::from("table/data");
    assert!(matches!(store.head(&folder).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.get(&folder).await, Err(Error::NotFound { .. })));
    store.delete(&folder).await.unwrap();
    assert_eq!(read(&*store, "table/data/1").await, b"x");
}

#[tokio::test]
async fn the_longest_names_of_a_shard_fit_and_longer_ones_are_refused() {
    let (_dir, server) = start();
    let store = plain(&server);
    let table = "a-table-of-thirty-characters-x";
    let version = "0".repeat(64);
    let shard = "00000000-0000-0000-0000-000000000000";
    let key = format!("{table}/_mem_wal/{shard}/manifest/{version}.binpb");
    store.put_opts(&Key::from(key.as_str()), "x".into(), create()).await.unwrap();
    let error = store.put(&Key::from("x".repeat(200)), "x".into()).await.unwrap_err();
    assert!(error.to_string().contains("shorter table path"), "{error}");
}

#[tokio::test]
async fn a_wrong_key_is_refused() {
    let (_dir, server) = start();
    let wrong = server.client_builder().with_secret_access_key("wrong").build().unwrap();
    assert!(wrong.put(&Key::from("k"), "x".into()).await.is_err());
}

#[tokio::test]
async fn the_storage_options_are_those_of_the_client_library() {
    let (_dir, server) = start();
    let mut builder = AmazonS3Builder::new().with_bucket_name(server.bucket());
    for (name, value) in server.storage_options() {
        builder = builder.with_config(name.parse().unwrap(), value);
    }
    let store = builder.build().unwrap();
    store.put_opts(&Key::from("k"), "x".into(), create()).await.unwrap();
    assert_eq!(server.url("t"), "s3://fence/t");
}

#[tokio::test]
async fn a_restart_keeps_objects_and_address() {
    let (_dir, mut server) = start();
    let (store, endpoint) = (plain(&server), server.endpoint());
    let key = Key::from("k");
    store.put_opts(&key, "1".into(), create()).await.unwrap();
    server.stop();
    assert!(store.get(&key).await.is_err());
    server.restart().unwrap();
    assert_eq!(server.endpoint(), endpoint);
    assert_eq!(read(&*store, "k").await, b"1");
    let again = store.put_opts(&key, "2".into(), create()).await;
    assert!(matches!(again, Err(Error::AlreadyExists { .. })));
}

#[tokio::test]
async fn another_server_on_the_folder_finds_the_objects() {
    let (dir, server) = start();
    let key = Key::from("k");
    plain(&server).put(&key, "1".into()).await.unwrap();
    drop(server);
    let server = S3Server::start(dir.path()).unwrap();
    assert_eq!(read(&*plain(&server), "k").await, b"1");
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_an_upload_blocks_nobody() {
    let (_dir, server) = start();
    let key = Key::from("k");
    let signer = server.client_builder().build().unwrap();
    let hour = Duration::from_secs(3600);
    let url = signer.signed_url(hyper::Method::PUT, &key, hour).await.unwrap();

    let mut slow = TcpStream::connect(server.address).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(
        slow,
        "PUT {}?{} HTTP/1.1\r\nHost: {}\r\nIf-None-Match: *\r\nContent-Length: 6\r\n\r\nslo",
        url.path(),
        url.query().unwrap(),
        server.address
    )
    .unwrap();

    let store = plain(&server);
    store.put_opts(&key, "quick".into(), create()).await.unwrap();
    write!(slow, "wly").unwrap();
    let mut status = String::new();
    BufReader::new(slow).read_line(&mut status).unwrap();
    assert!(status.contains("412"), "{status}");
    assert_eq!(read(&*store, "k").await, b"quick");
}
