//! The fuzz targets' checks (fuzz/, docs/fuzzing.md) on stable Rust: the whole corpus, and changes of it that do not
//! depend on chance. `FENCEPOST_WRITE_CORPUS=1` writes the corpus' seeds anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod allocated;
mod checks;
mod seeds;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use fencepost_sim::Rng;
use proptest::prelude::*;

type Check = fn(&[u8]);
const TARGETS: [(&str, Check); 4] = [
    ("entry", checks::entry),
    ("sealed_entry", checks::sealed_entry),
    ("manifest", checks::manifest),
    ("checkpoint", checks::checkpoint),
];

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap())
    };
    let mut found: Vec<_> = std::fs::read_dir(folder(target)).unwrap().map(read).collect();
    found.sort();
    assert!(!found.is_empty(), "the corpus of {target} is there");
    found
}

/// Runs the check, and on a failure says of which bytes.
fn run(target: &str, check: Check, name: &str, change: &str, bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(bytes))) {
        let kept = std::env::temp_dir().join(format!("fencepost-{target}-{name}"));
        let _ = std::fs::write(&kept, bytes);
        eprintln!("{target}: {name}, {change}; the bytes are in {}", kept.display());
        std::panic::resume_unwind(panic);
    }
}

/// Values that lengths, counts and offsets are tried with.
const EXTREMES: [u64; 8] = [0, 1, 0x7f, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// One change of these bytes, the same for the same number.
fn changed(bytes: &[u8], n: u64) -> (String, Vec<u8>) {
    let mut rng = Rng::new(n);
    let mut bytes = bytes.to_vec();
    if bytes.is_empty() {
        return ("nothing".into(), bytes);
    }
    let at = rng.below(bytes.len() as u64) as usize;
    match rng.below(6) {
        0 | 1 => {
            bytes[at] ^= 1 << rng.below(8);
            (format!("a bit of byte {at}"), bytes)
        }
        2 | 3 => {
            let width = *rng.pick(&[1, 2, 4, 8]).unwrap();
            let value = rng.pick(&EXTREMES).unwrap().to_le_bytes();
            let at = at / width * width;
            for (to, from) in bytes[at..].iter_mut().zip(&value[..width]) {
                *to = *from;
            }
            (format!("{width} bytes at {at}"), bytes)
        }
        4 => {
            bytes.truncate(at);
            (format!("cut at {at}"), bytes)
        }
        _ => {
            let from = rng.below(bytes.len() as u64) as usize;
            let part = bytes[from..(from + 16).min(bytes.len())].to_vec();
            bytes.splice(at..at, part);
            (format!("a part of {from} again at {at}"), bytes)
        }
    }
}

#[test]
fn the_corpus_holds() {
    for (target, check) in TARGETS {
        for (name, bytes) in corpus(target) {
            run(target, check, &name, "as it is", &bytes);
        }
    }
}

/// What the fuzzer begins with decodes: otherwise it would only ever see refusals.
#[test]
fn the_seeds_are_what_is_written_today_and_decode() {
    for (target, name, bytes) in seeds::all() {
        let path = folder(target).join(&name);
        if std::env::var_os("FENCEPOST_WRITE_CORPUS").is_some() {
            assert!(std::env::var_os("CI").is_none(), "the corpus is not written by CI");
            std::fs::create_dir_all(folder(target)).unwrap();
            std::fs::write(&path, &bytes).unwrap();
            continue;
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{}", path.display());
        assert!(seeds::decodes(target, &bytes), "{target}/{name}");
    }
}

#[test]
fn changes_of_the_corpus_hold() {
    const CHANGES: u64 = 400;
    for (target, check) in TARGETS {
        for (name, bytes) in corpus(target) {
            for n in 0..CHANGES {
                let (first, once) = changed(&bytes, n);
                run(target, check, &name, &first, &once);
                let (second, twice) = changed(&once, n + CHANGES);
                run(target, check, &name, &format!("{first} and {second}"), &twice);
            }
        }
    }
}

#[test]
fn every_bit_and_every_length_of_one_entry_of_each_kind_holds() {
    for (target, check) in TARGETS {
        for (_, name, bytes) in seeds::all().into_iter().filter(|seed| seed.0 == target && seed.2.len() < 1_500) {
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut flipped = bytes.clone();
                    flipped[at] ^= 1 << bit;
                    run(target, check, &name, &format!("bit {bit} of byte {at}"), &flipped);
                }
                run(target, check, &name, &format!("cut at {at}"), &bytes[..at]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_hold(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for (_, check) in TARGETS {
            check(&bytes);
        }
    }
}
