//! What each fault does to the store and what it tells the caller.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutResult};

use super::*;

fn faulty() -> FaultStore {
    FaultStore::new(std::sync::Arc::new(InMemory::new()))
}

async fn create(faults: &FaultStore, path: &str, text: &'static str) -> Result<PutResult, Error> {
    faults.store().put_opts(&Path::from(path), text.into(), PutMode::Create.into()).await
}

/// What is really there, past all faults.
async fn stored(faults: &FaultStore, path: &str) -> Option<String> {
    let result = faults.inner().get(&Path::from(path)).await.ok()?;
    let bytes = result.bytes().await.unwrap();
    Some(String::from_utf8(bytes.to_vec()).unwrap())
}

async fn listed(faults: &FaultStore) -> Result<Vec<String>, Error> {
    use futures::TryStreamExt;
    let found: Vec<_> = faults.store().list(None).try_collect().await?;
    Ok(found.iter().map(|meta| meta.location.to_string()).collect())
}

fn exists(answer: &Result<PutResult, Error>) -> bool {
    matches!(answer, Err(Error::AlreadyExists { .. }))
}

#[tokio::test]
async fn without_faults_it_is_the_store_below() {
    let faults = faulty();
    create(&faults, "a/b", "1").await.unwrap();
    assert!(exists(&create(&faults, "a/b", "2").await));
    assert_eq!(listed(&faults).await.unwrap(), ["a/b"]);
    faults.store().delete(&Path::from("a/b")).await.unwrap();
    assert!(listed(&faults).await.unwrap().is_empty());
}

#[tokio::test]
async fn lost_ack_as_exists_lands_and_denies() {
    let faults = faulty();
    let rule = faults.on(Op::Create).then(Fault::LostAckAsExists);
    let answer = create(&faults, "k", "mine").await;
    assert!(exists(&answer) && is_injected(&answer.unwrap_err()));
    assert_eq!(stored(&faults, "k").await.unwrap(), "mine");
    assert_eq!(rule.fired(), 1);
}

#[tokio::test]
async fn lost_ack_lands_and_answers_an_error() {
    let faults = faulty();
    faults.on(Op::Create).then(Fault::LostAck);
    let answer = create(&faults, "k", "mine").await;
    assert!(matches!(answer, Err(Error::Generic { .. })));
    assert_eq!(stored(&faults, "k").await.unwrap(), "mine");
    // The caller's own retry then meets its own object.
    assert!(exists(&create(&faults, "k", "mine").await));
}

#[tokio::test]
async fn conflict_409_denies_and_nothing_lands() {
    let faults = faulty();
    faults.on(Op::Create).then(Fault::Conflict409);
    assert!(exists(&create(&faults, "k", "mine").await));
    assert_eq!(stored(&faults, "k").await, None);
    create(&faults, "k", "mine").await.unwrap();
}

#[tokio::test]
async fn fail_leaves_no_trace_on_any_operation() {
    let faults = faulty();
    create(&faults, "k", "1").await.unwrap();
    let store = faults.store();
    let path = Path::from("k");
    for op in [Op::Create, Op::Overwrite, Op::Get, Op::Head, Op::List, Op::Delete] {
        faults.on(op).then(Fault::Fail);
    }
    assert!(create(&faults, "other", "1").await.is_err());
    assert!(store.put(&path, "2".into()).await.is_err());
    assert!(store.get(&path).await.is_err());
    assert!(store.head(&path).await.is_err());
    assert!(listed(&faults).await.is_err());
    assert!(store.delete(&path).await.is_err());
    assert_eq!(listed(&faults).await.unwrap(), ["k"]);
    assert_eq!(stored(&faults, "k").await.unwrap(), "1");
}

#[tokio::test]
async fn late_landing_answers_now_and_lands_when_told() {
    let faults = faulty();
    faults.on(Op::Create).times(2).then(Fault::LateLanding);
    assert!(create(&faults, "free", "late").await.is_err());
    assert!(create(&faults, "taken", "late").await.is_err());
    assert_eq!(faults.late(), [Path::from("free"), Path::from("taken")]);
    assert_eq!(stored(&faults, "free").await, None);

    create(&faults, "taken", "newer").await.unwrap();
    let landed = faults.land_late().await;
    let outcomes: Vec<Outcome> = landed.iter().map(|put| put.outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok, Outcome::AlreadyExists]);
    assert_eq!(stored(&faults, "free").await.unwrap(), "late");
    assert_eq!(stored(&faults, "taken").await.unwrap(), "newer");
    assert!(faults.late().is_empty());
    let applied: Vec<bool> = faults.log().iter().map(|record| record.applied).collect();
    assert_eq!(applied, [true, false, true]);
}

#[tokio::test]
async fn late_landings_can_be_chosen_and_dropped() {
    let faults = faulty();
    faults.on(Op::Create).always().then(Fault::LateLanding);
    for path in ["1", "2", "3"] {
        assert!(create(&faults, path, "late").await.is_err());
    }
    faults.land_late_where(|path| path == "2").await;
    faults.drop_late();
    assert!(faults.land_late().await.is_empty());
    assert_eq!(listed(&faults).await.unwrap(), ["2"]);
}

#[tokio::test]
async fn in_flight_lands_though_its_sender_died() {
    let faults = faulty();
    faults.on(Op::Create).times(2).then(Fault::InFlight);
    let sender = |path: &'static str| {
        let faults = faults.clone();
        tokio::spawn(async move { create(&faults, path, "late").await })
    };
    let (dies, waits) = (sender("dies"), sender("waits"));
    while faults.late().len() < 2 {
        tokio::task::yield_now().await;
    }
    dies.abort();
    assert!(dies.await.unwrap_err().is_cancelled());
    assert_eq!(stored(&faults, "dies").await, None);

    faults.land_late().await;
    assert_eq!(stored(&faults, "dies").await.unwrap(), "late");
    waits.await.unwrap().unwrap();
}

#[tokio::test]
async fn swallow_claims_what_did_not_happen() {
    let faults = faulty();
    faults.on(Op::Create).then(Fault::Swallow);
    create(&faults, "k", "1").await.unwrap();
    assert_eq!(stored(&faults, "k").await, None);

    create(&faults, "k", "1").await.unwrap();
    faults.on(Op::Delete).then(Fault::Swallow);
    faults.on(Op::Get).then(Fault::Swallow);
    faults.on(Op::List).then(Fault::Swallow);
    faults.store().delete(&Path::from("k")).await.unwrap();
    let answer = faults.store().get(&Path::from("k")).await;
    assert!(matches!(answer, Err(Error::NotFound { .. })));
    assert!(listed(&faults).await.unwrap().is_empty());
    assert_eq!(stored(&faults, "k").await.unwrap(), "1");
}

#[tokio::test]
async fn torn_keeps_the_first_bytes() {
    let faults = faulty();
    faults.on(Op::Create).then(Fault::Torn(3));
    create(&faults, "k", "whole").await.unwrap();
    assert_eq!(stored(&faults, "k").await.unwrap(), "who");
}

#[tokio::test(start_paused = true)]
async fn delay_takes_the_time_it_says() {
    let faults = faulty();
    let pause = Duration::from_secs(5);
    faults.on(Op::Create).then(Fault::Delay(pause));
    let before = tokio::time::Instant::now();
    create(&faults, "k", "1").await.unwrap();
    assert!(before.elapsed() >= pause);
}

#[tokio::test]
async fn a_stall_holds_the_request_before_it_is_sent() {
    let faults = faulty();
    let gate = faults.on(Op::Create).path_ends_with("k").stall();
    let task = tokio::spawn({
        let faults = faults.clone();
        async move { create(&faults, "k", "slow").await }
    });
    gate.reached().await;
    assert_eq!(stored(&faults, "k").await, None);
    create(&faults, "k", "quick").await.unwrap();
    gate.release();
    assert!(exists(&task.await.unwrap()));
    assert_eq!(stored(&faults, "k").await.unwrap(), "quick");
}

#[tokio::test]
async fn a_stalled_request_of_a_dead_task_is_never_sent() {
    let faults = faulty();
    let gate = faults.on(Op::Create).stall();
    let task = tokio::spawn({
        let faults = faults.clone();
        async move { create(&faults, "k", "slow").await }
    });
    gate.reached().await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    gate.release();
    assert_eq!(stored(&faults, "k").await, None);
    let outcomes: Vec<Outcome> = faults.log().iter().map(|r| r.outcome).collect();
    assert_eq!(outcomes, [Outcome::Pending]);
}

#[tokio::test]
async fn a_stall_after_holds_the_answer_of_that_moment() {
    let faults = faulty();
    create(&faults, "old", "1").await.unwrap();
    let gate = faults.on(Op::List).stall_after();
    let task = tokio::spawn({
        let faults = faults.clone();
        async move { listed(&faults).await }
    });
    gate.reached().await;
    create(&faults, "new", "1").await.unwrap();
    gate.release();
    assert_eq!(task.await.unwrap().unwrap(), ["old"]);
    assert_eq!(listed(&faults).await.unwrap(), ["new", "old"]);
}

#[tokio::test]
async fn one_gate_holds_as_many_as_the_rule_says() {
    let faults = faulty();
    let gate = faults.on(Op::Create).times(2).stall();
    let tasks: Vec<_> = ["1", "2"]
        .into_iter()
        .map(|path| {
            let faults = faults.clone();
            tokio::spawn(async move { create(&faults, path, "x").await })
        })
        .collect();
    gate.reached_times(2).await;
    create(&faults, "3", "x").await.unwrap();
    assert_eq!(gate.arrivals(), 2);
    gate.release();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn nth_and_times_choose_the_operations() {
    let faults = faulty();
    let rule = faults.on(Op::Create).path_contains("wal/").nth(2).times(2).then(Fault::Fail);
    let mut failed = Vec::new();
    for path in ["wal/1", "manifest/1", "wal/2", "wal/3", "wal/4"] {
        if create(&faults, path, "x").await.is_err() {
            failed.push(path);
        }
    }
    assert_eq!(failed, ["wal/2", "wal/3"]);
    assert_eq!(rule.fired(), 2);
}

#[tokio::test]
async fn rules_take_turns_in_the_order_they_were_written() {
    let faults = faulty();
    faults.on(Op::Create).times(2).then(Fault::Conflict409);
    faults.on(Op::Create).then(Fault::LostAck);
    assert!(exists(&create(&faults, "k", "x").await));
    assert!(exists(&create(&faults, "k", "x").await));
    assert!(matches!(create(&faults, "k", "x").await, Err(Error::Generic { .. })));
    assert_eq!(stored(&faults, "k").await.unwrap(), "x");
}

#[tokio::test]
async fn a_cancelled_rule_and_cleared_rules_do_nothing() {
    let faults = faulty();
    let rule = faults.on(Op::Create).always().then(Fault::Fail);
    assert!(create(&faults, "1", "x").await.is_err());
    rule.cancel();
    create(&faults, "1", "x").await.unwrap();
    faults.on(Op::Create).always().then(Fault::Fail);
    faults.clear_rules();
    create(&faults, "2", "x").await.unwrap();
    assert_eq!(rule.fired(), 1);
}

#[test]
#[should_panic(expected = "has no meaning for Get")]
fn a_fault_that_makes_no_sense_is_refused() {
    faulty().on(Op::Get).then(Fault::LateLanding);
}

#[tokio::test]
async fn the_completion_of_an_upload_can_lose_its_answer() {
    let faults = faulty();
    faults.on(Op::CompleteMultipart).then(Fault::LostAck);
    let path = Path::from("big");
    let mut upload = faults.store().put_multipart(&path).await.unwrap();
    upload.put_part("content".into()).await.unwrap();
    assert!(upload.complete().await.is_err());
    assert_eq!(stored(&faults, "big").await.unwrap(), "content");
}

#[tokio::test]
async fn the_log_tells_what_was_asked_and_what_was_said() {
    let faults = faulty();
    faults.on(Op::Create).nth(2).then(Fault::LostAckAsExists);
    let store = faults.store();
    create(&faults, "1", "x").await.unwrap();
    create(&faults, "2", "x").await.unwrap_err();
    store.get(&Path::from("3")).await.unwrap_err();
    let told: Vec<_> = faults.log().into_iter().map(|r| (r.seq, r.op, r.path, r.outcome, r.applied)).collect();
    let expected = [
        (0, Op::Create, "1", Outcome::Ok, true),
        (1, Op::Create, "2", Outcome::AlreadyExists, true),
        (2, Op::Get, "3", Outcome::NotFound, false),
    ];
    assert_eq!(told, expected.map(|(seq, op, path, outcome, applied)| (seq, op, path.to_owned(), outcome, applied)));
    faults.clear_log();
    store.head(&Path::from("1")).await.unwrap();
    assert_eq!(faults.log().first().unwrap().seq, 3);
    assert_eq!((faults.count(Op::Head), faults.count(Op::Create)), (1, 0));
}

/// Appends names until each has been answered once without an injected error; returns what was told.
async fn storm(seed: u64, folder: &str) -> Vec<(Op, Outcome, Option<String>)> {
    let faults = faulty();
    faults.random(RandomFaults::stormy(seed));
    for name in 0..50 {
        let path = format!("{folder}/{name}");
        while create(&faults, &path, "x").await.is_err_and(|error| is_injected(&error)) {}
        while faults.store().get(&Path::from(path.as_str())).await.is_err() {}
    }
    let log = faults.log();
    log.into_iter().map(|record| (record.op, record.outcome, record.fault)).collect()
}

#[tokio::test]
async fn one_seed_is_one_storm() {
    let first = storm(7, "a").await;
    assert_eq!(first, storm(7, "another folder").await);
    assert_ne!(first, storm(8, "a").await);
    for fault in ["LostAckAsExists", "LostAck", "Conflict409", "LateLanding", "Fail"] {
        assert!(first.iter().any(|(_, _, f)| f.as_deref() == Some(fault)), "{fault} never happened");
    }
}

#[tokio::test]
async fn random_faults_end_after_a_burst() {
    let faults = faulty();
    faults.random(RandomFaults { fail_get: 1.0, burst: 3, ..RandomFaults::quiet(1) });
    create(&faults, "k", "x").await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..8 {
        answers.push(faults.store().get(&Path::from("k")).await.is_ok());
    }
    assert_eq!(answers, [false, false, false, true, false, false, false, true]);
    faults.random_off();
    faults.store().get(&Path::from("k")).await.unwrap();
}
