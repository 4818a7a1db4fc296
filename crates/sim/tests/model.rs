//! The protocol model in full: every configuration holds, every rule is needed, and `docs/model.md` says the truth.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use fencepost_sim::model::{Config, Invariant, Mutant, check, tables};

const PAGE: &str = include_str!("../../../docs/model.md");

/// Explores every configuration and looks for every mutant; fails if an invariant breaks, if something that should
/// happen never does, or if a mutant survives.
#[test]
fn the_protocol_holds_every_mutant_fails_and_the_page_says_so() {
    let (configs, mutants) = tables().unwrap();
    for table in [&configs, &mutants] {
        assert!(
            PAGE.contains(table.as_str()),
            "docs/model.md says otherwise; `cargo run -p fencepost-sim -- model --tables` prints\n{table}"
        );
    }
}

#[test]
fn a_schedule_reads_like_a_story() {
    let mutant = Mutant::named("no-fence-retention").unwrap();
    let report = check(Config::named(mutant.config()).unwrap(), Some(mutant), None);
    let schedule = report.counterexample.unwrap();
    assert_eq!(schedule.breaks, Invariant::I3);
    let text = schedule.to_string();
    assert!(PAGE.contains(&text), "docs/model.md shows another schedule than\n{text}");
    let (collected, sent) = (text.find("DELETE wal/2").unwrap(), text.find("W1 PUT wal/2").unwrap());
    assert!(collected < sent, "the stalled writer's PUT goes into the hole:\n{text}");
}

#[test]
fn two_runs_find_the_same() {
    let run = || {
        let report = check(Config::named("three").unwrap(), None, None);
        (report.states, report.unique, report.depth)
    };
    assert_eq!(run(), run());
}

#[test]
fn names_are_unique_and_lead_to_configurations() {
    let names: BTreeSet<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
    assert_eq!(names.len(), Mutant::ALL.len());
    for &mutant in Mutant::ALL {
        assert_eq!(Mutant::named(mutant.name()), Some(mutant));
        assert!(Config::named(mutant.config()).is_some(), "{}", mutant.name());
    }
    assert_eq!(Mutant::named("none"), None);
}

#[test]
fn a_limit_makes_a_run_incomplete() {
    let report = check(Config::named("takeover").unwrap(), None, NonZeroUsize::new(10_000));
    assert!(!report.complete && report.counterexample.is_none());
}
