//! Every rule of the protocol that can be turned off in the real log: the simulation notices that it is off, within the
//! number of seeds that `docs/simulation.md` says.

#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, clippy::panic)]

use fencepost_sim::run::{Mutant, simulate, simulate_mutant};

const PAGE: &str = include_str!("../../../docs/simulation.md");

/// A row of the page's table: how many seeds it may take.
fn documented(mutant: Mutant) -> Option<u64> {
    let row = PAGE.lines().find(|line| line.starts_with(&format!("| `{}` |", mutant.name())))?;
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    cells.get(3)?.parse().ok()
}

#[test]
fn every_mutant_is_caught_within_its_number_of_seeds() {
    let mut escaped = Vec::new();
    for &mutant in Mutant::ALL {
        let Some(seeds) = documented(mutant) else {
            assert!(
                PAGE.contains(&format!("* `{}`: ", mutant.name())),
                "docs/simulation.md says nothing of {mutant:?}"
            );
            continue;
        };
        let caught = (0..seeds).map(|seed| simulate_mutant(seed, false, mutant)).find(|r| r.violation.is_some());
        match caught {
            // The run proves something about the rule only if it holds with the rule.
            Some(report) => assert_eq!(simulate(report.seed, false).violation, None, "seed {}", report.seed),
            None => escaped.push((mutant, seeds)),
        }
    }
    assert!(escaped.is_empty(), "not caught: {escaped:?}");
}
