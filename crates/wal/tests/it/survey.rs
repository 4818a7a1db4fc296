//! The long look at a store: what it says of an honest one, what it refuses, and that it leaves nothing behind.

use std::collections::HashMap;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use fencepost_sim::{Fault, FaultStore, IgnoreConditionStore, Op, S3Habits, S3Server};
use fencepost_wal::{Error, Store, Survey, SurveyOptions, SurveyReport, SurveyStep};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::support::memory_store;

/// Enough to see every kind of step, in little time.
fn short() -> SurveyOptions {
    SurveyOptions { rounds: 60, racers: 32, object_bytes: 100, measure_for: Duration::from_millis(300) }
}

/// Surveys and cleans up; nothing may be left.
async fn survey(store: &Store, options: SurveyOptions) -> Result<SurveyReport, Error> {
    let survey = Survey::new(store, options).unwrap();
    let report = survey.run(|_| {}).await;
    survey.clean_up().await.unwrap();
    let left: Vec<_> = store.object_store().list(Some(store.root())).try_collect().await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    report
}

async fn unfit(inner: Arc<dyn ObjectStore>, options: SurveyOptions) -> String {
    let error = survey(&memory_store(inner), options).await.unwrap_err();
    assert!(matches!(error, Error::StoreUnfit { .. }), "{error}");
    error.to_string()
}

#[tokio::test]
async fn an_honest_store_is_fit_and_every_answer_is_counted() {
    let server_folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(server_folder.path()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let not_yet = folder.path().join("not").join("yet");
    let stores = [
        (false, memory_store(Arc::new(InMemory::new()))),
        (false, Store::open(not_yet.to_str().unwrap(), &HashMap::new()).unwrap()),
        (true, Store::open(&server.url("t"), &server.storage_options()).unwrap()),
    ];
    for (has_statuses, store) in stores {
        let report = survey(&store, short()).await.unwrap();
        assert_eq!((report.rounds, report.racers), (60, 32));
        // Of 32 racers 31 lose, and so does the late one.
        let (refused, without) = (report.answers.status_412, report.answers.exists);
        assert_eq!(if has_statuses { (refused, without) } else { (without, refused) }, (60 * 32, 0), "{report:?}");
        assert_eq!((report.answers.status_409, report.answers.lost), (0, 0));
        assert_eq!(report.puts.len(), 4);
        let timed: usize = report.puts.iter().filter(|puts| puts.conditional).map(|puts| puts.puts).sum();
        assert_eq!(report.answers.created, 60 + 16 + timed, "winners, the warm-up, and what was timed");
        for puts in &report.puts {
            assert!(puts.puts > 0 && puts.p50 <= puts.p99 && puts.per_second > 0.0, "{puts:?}");
        }
        assert!(report.cost_of_condition(1).is_some() && report.cost_of_condition(16).is_some());
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "folders that were not there before: {left:?}");
}

#[tokio::test]
async fn folders_that_were_there_before_stay() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("t");
    std::fs::create_dir_all(table.join("empty")).unwrap();
    let store = Store::open(table.to_str().unwrap(), &HashMap::new()).unwrap();
    survey(&store, SurveyOptions { rounds: 1, ..short() }).await.unwrap();
    fencepost_wal::probe(&store).await.unwrap();
    let names = |at: &FilePath| -> Vec<_> { std::fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect() };
    assert_eq!(names(&table), ["empty"]);
}

#[tokio::test]
async fn a_survey_that_is_given_up_is_cleaned_up_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("t");
    let store = Store::open(table.to_str().unwrap(), &HashMap::new()).unwrap();
    let survey = Survey::new(&store, short()).unwrap();
    let (enough, mut told) = tokio::sync::watch::channel(false);
    // Between two races no create is under way that could land behind the clean-up's back.
    tokio::select! {
        biased;
        _ = told.wait_for(|enough| *enough) => {}
        report = survey.run(|step| { let _ = enough.send(step == SurveyStep::Races(5, 60)); }) => panic!("{report:?}"),
    }
    assert!(table.exists());
    survey.clean_up().await.unwrap();
    assert!(!table.exists());
}

#[tokio::test]
async fn a_server_that_ignores_conditions_is_refused() {
    let said = unfit(Arc::new(IgnoreConditionStore::new(Arc::new(InMemory::new()))), short()).await;
    assert!(said.contains("32 of 32 concurrent creates of one key succeeded"), "{said}");

    let server_folder = tempfile::tempdir().unwrap();
    let habits = S3Habits { ignores_conditions: true, ..S3Habits::default() };
    let server = S3Server::start_with(server_folder.path(), habits).unwrap();
    let store = Store::open(&server.url("t"), &server.storage_options()).unwrap();
    let error = survey(&store, short()).await.unwrap_err();
    assert!(matches!(error, Error::StoreUnfit { .. }), "{error}");
    assert!(error.to_string().contains("32 of 32"), "{error}");
}

/// 409 is an answer that S3 may give. It is counted, tells nothing, and makes nobody unfit.
#[tokio::test]
async fn a_server_that_answers_409_is_fit_and_its_conflicts_are_counted() {
    for every in [1, 2, 7] {
        let server_folder = tempfile::tempdir().unwrap();
        let habits = S3Habits { conflict_every: Some(every), ..S3Habits::default() };
        let server = S3Server::start_with(server_folder.path(), habits).unwrap();
        let store = Store::open(&server.url("t"), &server.storage_options()).unwrap();
        let report = survey(&store, SurveyOptions { rounds: 10, racers: 4, ..short() }).await;
        match (every, report) {
            (1, Err(error)) => assert!(error.to_string().contains("creates of a free key"), "{error}"),
            (_, report) => {
                let answers = report.unwrap().answers;
                assert!(every > 1 && answers.status_409 > 0 && answers.lost == 0, "{answers:?}");
                assert!(answers.status_412 + answers.status_409 >= 40, "{answers:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_broken_promise_is_named() {
    let two = || SurveyOptions { rounds: 2, racers: 2, ..short() };
    let honest = || FaultStore::new(Arc::new(InMemory::new()));
    let replacing = || FaultStore::new(Arc::new(IgnoreConditionStore::new(Arc::new(InMemory::new()))));

    let faults = honest();
    faults.on(Op::List).then(Fault::Swallow);
    assert!(unfit(faults.store(), two()).await.contains("a LIST shows 0 of 1 objects"));

    let faults = honest();
    faults.on(Op::Get).nth(2).then(Fault::Swallow);
    assert!(unfit(faults.store(), two()).await.contains("just written is not there"));

    // The loser is told that it lost, and its object is there.
    let faults = replacing();
    faults.on(Op::Create).nth(2).then(Fault::LostAckAsExists);
    assert!(unfit(faults.store(), two()).await.contains("not the winner's"));

    // So is the late one.
    let faults = replacing();
    faults.on(Op::Create).nth(2).then(Fault::Conflict409);
    faults.on(Op::Create).nth(3).then(Fault::LostAckAsExists);
    assert!(unfit(faults.store(), two()).await.contains("replaced the object all the same"));
}

#[tokio::test]
async fn options_out_of_their_limits_are_refused() {
    let store = memory_store(Arc::new(InMemory::new()));
    for options in [
        SurveyOptions { rounds: 0, ..short() },
        SurveyOptions { racers: 1, ..short() },
        SurveyOptions { object_bytes: 0, ..short() },
        SurveyOptions { measure_for: Duration::ZERO, ..short() },
    ] {
        let error = Survey::new(&store, options).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    }
}
