//! The model from the command line, and the tables of `docs/model.md`.

use std::fmt::Write as _;

use super::check::{Report, check};
use super::config::Config;
use super::mutant::Mutant;

/// Explores every configuration, or looks for the schedule that breaks `mutant`, and prints what comes of it. With
/// `large`, the larger configurations, which take minutes and gigabytes.
///
/// # Errors
/// A sentence: no mutant has that name; an invariant is broken by the protocol itself; a mutant is not found.
pub fn explore(large: bool, mutant: Option<&str>) -> Result<(), String> {
    if let Some(name) = mutant {
        let mutant = Mutant::named(name).ok_or_else(|| {
            let names: Vec<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
            format!("there is no mutant {name:?}; there are {}", names.join(", "))
        })?;
        let report = check_mutant(mutant)?;
        println!("{}: {}", mutant.name(), mutant.about());
        let schedule = report.counterexample.ok_or_else(|| not_found(mutant, report.unique))?;
        println!("{schedule}");
        return Ok(());
    }
    for config in if large { Config::large() } else { Config::all() } {
        println!("{}: {}", config.name, config.about);
        let report = check(config, None, None);
        println!(
            "  {} different states of {} generated, depth {}, in {:.1} s",
            report.unique,
            report.states,
            report.depth,
            report.took.as_secs_f64()
        );
        holds(&report)?;
    }
    Ok(())
}

/// Whether a run without mutant saw everything, met what it should meet, and found nothing.
///
/// # Errors
/// What is wrong.
pub(super) fn holds(report: &Report) -> Result<(), String> {
    if let Some(schedule) = &report.counterexample {
        return Err(format!("{}: the protocol breaks an invariant:\n{schedule}", report.config));
    }
    if !report.missed.is_empty() {
        let missed: Vec<_> = report.missed.iter().map(|fact| fact.name()).collect();
        return Err(format!("{}: never happened: {}", report.config, missed.join("; ")));
    }
    match report.complete {
        true => Ok(()),
        false => Err(format!("{}: the model's bounds cut the exploration off", report.config)),
    }
}

/// Looks for a schedule that breaks a mutant, in the configuration that is made for it.
///
/// # Errors
/// There is no such configuration.
pub(super) fn check_mutant(mutant: Mutant) -> Result<Report, String> {
    let config = Config::named(mutant.config()).ok_or_else(|| {
        format!("{} names the configuration {:?}, which does not exist", mutant.name(), mutant.config())
    })?;
    Ok(check(config, Some(mutant), None))
}

/// A rule is superfluous, or the model too weak.
fn not_found(mutant: Mutant, states: usize) -> String {
    format!("{} breaks no invariant in any of {states} states", mutant.name())
}

/// The tables of configurations and of mutants as `docs/model.md` holds them, all of it computed now.
///
/// # Errors
/// As [`explore`].
pub fn tables() -> Result<(String, String), String> {
    let mut configs = String::from("| configuration | what happens | states generated | different states | depth |\n");
    configs.push_str("|---|---|---:|---:|---:|\n");
    for config in Config::all() {
        let about = config.about;
        let report = check(config, None, None);
        holds(&report)?;
        let Report { config, states, unique, depth, .. } = report;
        let _ = writeln!(configs, "| {config} | {about} | {states} | {unique} | {depth} |");
    }
    let mut mutants = String::from("| mutant | instead of the rule | configuration | breaks | steps |\n");
    mutants.push_str("|---|---|---|---|---:|\n");
    for &mutant in Mutant::ALL {
        let report = check_mutant(mutant)?;
        let schedule = report.counterexample.ok_or_else(|| not_found(mutant, report.unique))?;
        let (breaks, steps) = (schedule.breaks.name(), schedule.steps);
        let (name, about, config) = (mutant.name(), mutant.about(), mutant.config());
        let _ = writeln!(mutants, "| `{name}` | {about} | {config} | {breaks} | {steps} |");
    }
    Ok((configs, mutants))
}
