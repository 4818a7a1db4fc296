//! The disk forgets what POSIX lets it forget, and the store above it makes the calls of the real one.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path as FilePath;
use std::process::Command;

use futures::executor::block_on;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode};

use super::*;
use crate::Rng;

async fn text(disk: &PowerLossDisk, path: &str) -> Option<String> {
    disk.read(path).await.ok().map(|bytes| String::from_utf8(bytes).unwrap())
}

#[tokio::test]
async fn bytes_and_names_are_durable_by_an_fsync_each() {
    let disk = PowerLossDisk::new();
    for name in ["neither", "bytes", "both"] {
        disk.create_new(name).await.unwrap();
        disk.write(name, b"text").await.unwrap();
    }
    disk.sync_file("both").await.unwrap();
    assert_eq!(disk.restart(Survival::Synced).files_below("").await.unwrap(), []);

    let disk = PowerLossDisk::new();
    for name in ["name", "both"] {
        disk.create_new(name).await.unwrap();
        disk.write(name, b"text").await.unwrap();
    }
    disk.sync_file("both").await.unwrap();
    disk.sync_folder("").await.unwrap();
    disk.create_new("late").await.unwrap();
    disk.unlink("both").await.unwrap();
    let booted = disk.restart(Survival::Synced);
    assert_eq!(text(&booted, "name").await.as_deref(), Some(""));
    assert_eq!(text(&booted, "both").await.as_deref(), Some("text"), "the deletion was not synced either");
    assert_eq!(text(&booted, "late").await, None);
    let lucky = disk.restart(Survival::Everything);
    assert_eq!(text(&lucky, "name").await.as_deref(), Some("text"));
    assert_eq!(text(&lucky, "both").await, None);
}

#[tokio::test]
async fn a_synced_folder_is_gone_when_its_own_name_was_not_synced() {
    let disk_with_a = async |synced: bool| {
        let disk = PowerLossDisk::new();
        disk.create_folder("a").await.unwrap();
        disk.create_new("a/b").await.unwrap();
        disk.sync_file("a/b").await.unwrap();
        disk.sync_folder("a").await.unwrap();
        if synced {
            disk.sync_folder("").await.unwrap();
        }
        disk.restart(Survival::Synced).files_below("").await.unwrap()
    };
    assert_eq!(disk_with_a(false).await, []);
    assert_eq!(disk_with_a(true).await, [("a/b".to_owned(), 0)]);
}

#[tokio::test]
async fn what_survives_by_chance_is_a_prefix_or_zeros() {
    let disk = PowerLossDisk::new();
    disk.create_new("f").await.unwrap();
    disk.sync_folder("").await.unwrap();
    disk.write("f", b"0123456789").await.unwrap();
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let bytes = disk.restart(Survival::Random(Rng::new(seed))).read("f").await.unwrap();
        let kept = bytes.iter().take_while(|byte| **byte != 0).count();
        let (written, rest) = bytes.split_at(kept);
        assert!(b"0123456789".starts_with(written) && rest.iter().all(|byte| *byte == 0));
        lengths.insert((kept, bytes.len()));
    }
    assert!(lengths.len() > 15, "{lengths:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_returns_once_the_power_is_lost() {
    let disk = PowerLossDisk::new();
    disk.lose_power_at(1);
    disk.create_new("first").await.unwrap();
    let second = disk.create_new("second");
    tokio::select! {
        answer = second => panic!("{answer:?}"),
        () = disk.power_lost() => {}
    }
    tokio::select! {
        answer = disk.read("first") => panic!("{answer:?}"),
        () = tokio::time::sleep(std::time::Duration::from_secs(9)) => {}
    }
    assert_eq!(disk.calls(), [Call::CreateNew("first".into())]);
}

/// The writes whose calls are compared: into new folders and old ones, over something and not.
async fn writes(store: &dyn ObjectStore, root: &Path) {
    let object = |name: &str| root.parts().chain(Path::from(name).parts()).collect::<Path>();
    let create = async |name: &str| store.put_opts(&object(name), "text".into(), PutMode::Create.into()).await;
    create("a/b/one").await.unwrap();
    create("a/b/two").await.unwrap();
    assert!(matches!(create("a/b/two").await, Err(Error::AlreadyExists { .. })));
    for _ in 0..2 {
        store.put(&object("a/c/three"), "text".into()).await.unwrap();
    }
    store.delete(&object("a/b/two")).await.unwrap();
}

#[tokio::test]
async fn the_store_is_a_store() {
    let store = PowerLossStore::new(PowerLossDisk::new(), Syncs::ALL);
    writes(&store, &Path::from("r")).await;
    let listed = store.list_with_delimiter(Some(&Path::from("r/a"))).await.unwrap();
    assert_eq!(listed.common_prefixes, [Path::from("r/a/b"), Path::from("r/a/c")]);
    let found: Vec<_> = futures::TryStreamExt::try_collect::<Vec<_>>(store.list(None)).await.unwrap();
    let names: Vec<&str> = found.iter().map(|object| object.location.as_ref()).collect();
    assert_eq!(names, ["r/a/b/one", "r/a/c/three"]);
    assert_eq!(store.get_range(&Path::from("r/a/b/one"), 1..3).await.unwrap(), "ex");
    assert!(matches!(store.head(&Path::from("r/a/b/two")).await, Err(Error::NotFound { .. })));
}

const FOLDER_OF_CHILD: &str = "FENCEPOST_SIM_TRACED";

/// The process that `strace` looks at.
#[test]
#[ignore = "started by `the_calls_are_those_of_the_real_file_system`, in a process of its own"]
fn traced() {
    let folder = std::env::var(FOLDER_OF_CHILD).unwrap();
    // Without a runtime the calls are made here, in order.
    block_on(writes(&LocalFileSystem::new().with_fsync(true), &Path::from_absolute_path(folder).unwrap()));
}

/// The simulated calls are those that `LocalFileSystem` really makes. Says so and passes where there is no `strace`
/// that may trace: the order was then compared elsewhere.
#[test]
fn the_calls_are_those_of_the_real_file_system() {
    let strace = |args: &[&str]| {
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-y",
            "-e",
            "trace=openat,mkdir,mkdirat,write,fsync,fdatasync,link,linkat,rename,renameat,renameat2,unlink,unlinkat",
        ]);
        command.args(args);
        command
    };
    if !strace(&["true"]).output().is_ok_and(|run| run.status.success()) {
        println!("SKIPPED: strace cannot be run here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let trace = folder.with_extension("strace");
    let me = std::env::current_exe().unwrap();
    let test = "power_loss::tests::traced";
    let run = strace(&["-o", trace.to_str().unwrap(), me.to_str().unwrap(), test, "--exact", "--ignored"])
        .env(FOLDER_OF_CHILD, &folder)
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    let real = std::fs::read_to_string(&trace).unwrap();
    std::fs::remove_file(&trace).unwrap();
    let real: Vec<Call> = real.lines().filter_map(|line| call_of(line, &folder)).collect();

    let disk = PowerLossDisk::new();
    let store = PowerLossStore::new(disk.clone(), Syncs::ALL);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(writes(&store, &Path::default()));
    let show = |calls: &[Call]| calls.iter().map(|call| format!("{call}\n")).collect::<String>();
    assert_eq!(show(&disk.calls()), show(&real));
}

/// A line of `strace` as a call, if it succeeded and changed something below `folder`.
fn call_of(line: &str, folder: &FilePath) -> Option<Call> {
    let (_pid, line) = line.split_once(char::is_whitespace)?;
    let (name, rest) = line.trim_start().split_once('(')?;
    let (arguments, answer) = rest.rsplit_once(" = ")?;
    if answer.starts_with('-') {
        return None;
    }
    let below = |path: &str| {
        let path = FilePath::new(path).strip_prefix(folder).ok()?;
        Some(path.to_str()?.to_owned())
    };
    let quoted: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
    // `-y` shows the file behind a descriptor: fsync(3</path>).
    let descriptor = || below(arguments.split_once('<')?.1.split_once('>')?.0);
    let path = |n: usize| below(quoted.get(n)?);
    match name {
        "openat" if arguments.contains("O_EXCL") => Some(Call::CreateNew(path(0)?)),
        "mkdir" | "mkdirat" => Some(Call::CreateFolder(path(0)?)),
        "write" => Some(Call::Write(descriptor()?)),
        "fsync" => {
            let path = descriptor()?;
            let is_folder = folder.join(&path).is_dir();
            Some(if is_folder { Call::SyncFolder(path) } else { Call::SyncFile(path) })
        }
        "link" | "linkat" => Some(Call::Link(path(0)?, path(1)?)),
        "rename" | "renameat" | "renameat2" => Some(Call::Rename(path(0)?, path(1)?)),
        "unlink" | "unlinkat" => Some(Call::Unlink(path(0)?)),
        _ => None,
    }
}
