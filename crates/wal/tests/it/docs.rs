//! Pages of docs/ that name tests: each of these exists, and none is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read_page(page: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(page)).unwrap_or_else(|e| panic!("docs/{page}: {e}"))
}

/// The source of a module of tests, where crates of this workspace keep them.
fn source(krate: &str, modules: &[&str]) -> Option<String> {
    let path = modules.join("/");
    let places = [
        format!("tests/it/{path}.rs"),
        format!("tests/{path}.rs"),
        format!("tests/{path}/main.rs"),
        format!("src/{path}.rs"),
        format!("src/{path}/mod.rs"),
    ];
    let folder = root().join("crates").join(krate);
    places.iter().find_map(|place| std::fs::read_to_string(folder.join(place)).ok())
}

/// The tests in a text, as `crate::module::function` in backticks. Each of them exists.
fn named_in(page: &str, text: &str) -> BTreeSet<String> {
    let code = text.split('`').skip(1).step_by(2);
    let mut named = BTreeSet::new();
    for name in code {
        let parts: Vec<&str> = name.split("::").collect();
        let [krate, modules @ .., test] = &parts[..] else { continue };
        if modules.is_empty() || !["wal", "engine", "sim", "cli"].contains(krate) {
            continue;
        }
        let is_there = source(krate, modules).is_some_and(|source| source.contains(&format!("fn {test}()")));
        assert!(is_there, "docs/{page} names {name}, which does not exist");
        named.insert(name.to_owned());
    }
    named
}

/// The tests that a page of docs/ names. Each of them exists.
pub(crate) fn named_tests(page: &str) -> BTreeSet<String> {
    named_in(page, &read_page(page))
}

/// The functions of a module of tests that the runner calls.
pub(crate) fn tests_of(krate: &str, modules: &[&str]) -> Vec<String> {
    let source = source(krate, modules).unwrap_or_else(|| panic!("{krate} has no {modules:?}"));
    let mut tests = Vec::new();
    let mut is_test = false;
    for line in source.lines() {
        let function = line.strip_prefix("async fn ").or(line.strip_prefix("fn "));
        if let Some((name, _)) = function.filter(|_| is_test).and_then(|rest| rest.split_once("()")) {
            tests.push(format!("{krate}::{}::{name}", modules.join("::")));
        }
        is_test = line.starts_with("#[tokio::test") || line.starts_with("#[test]");
    }
    tests
}

/// The schedule that a test plays, by its name.
fn schedule_of(test: &str) -> Option<u32> {
    let name = test.rsplit("::").next()?;
    let number = name.strip_prefix("schedule_").or(name.strip_prefix('s'))?;
    number.get(..2).filter(|_| number.get(2..3) == Some("_"))?.parse().ok()
}

/// The numbers of the schedules in the protocol's section 13.
fn schedules_of_the_protocol() -> Vec<u32> {
    let protocol = read_page("protocol.md");
    let (_, section) = protocol.split_once("\n## 13.").unwrap();
    let section = section.split("\n## ").next().unwrap();
    section.lines().filter_map(|line| line.split_once(". ")?.0.parse().ok()).collect()
}

#[test]
fn every_schedule_has_its_tests_in_the_page_of_schedules() {
    let page = read_page("schedules.md");
    let cells = |line: &str| line.split(" | ").map(str::to_owned).collect::<Vec<_>>();
    let rows: BTreeMap<u32, Vec<String>> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .map(cells)
        .filter_map(|row| Some((row.first()?.parse().ok()?, row)))
        .collect();
    let schedules = schedules_of_the_protocol();
    assert!(schedules.len() >= 41, "{schedules:?}");
    assert_eq!(rows.keys().copied().collect::<Vec<_>>(), schedules);

    let mut named = BTreeSet::new();
    for (schedule, row) in &rows {
        let tests = named_in("schedules.md", &row.join(" | "));
        assert!(!tests.is_empty(), "schedule {schedule} has no test");
        for test in &tests {
            assert!(schedule_of(test).is_none_or(|of| of == *schedule), "{test} is in the row of schedule {schedule}");
        }
        named.extend(tests);
    }
    let modules = [
        ("wal", vec!["schedules"]),
        ("wal", vec!["gc_schedules"]),
        ("wal", vec!["pipelining"]),
        ("wal", vec!["power_loss"]),
        ("wal", vec!["takeover"]),
        ("wal", vec!["adopt"]),
        ("wal", vec!["clones"]),
        ("engine", vec!["schedules"]),
        ("engine", vec!["checkpoints"]),
        ("engine", vec!["clones"]),
        ("engine", vec!["follower"]),
        ("engine", vec!["reshard"]),
        ("engine", vec!["merge"]),
        ("engine", vec!["interop", "schedules"]),
    ];
    for test in modules.iter().flat_map(|(krate, modules)| tests_of(krate, modules)) {
        let is_listed = schedule_of(&test).is_none() || named.contains(&test);
        assert!(is_listed, "docs/schedules.md does not name {test}");
    }
}
