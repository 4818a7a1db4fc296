//! An object in `manifest/`: any bytes. The seeds that Lance wrote have no checksum.
#![no_main]

#[path = "../../crates/wal/tests/decoding/allocated.rs"]
mod allocated;
#[path = "../../crates/wal/tests/decoding/checks.rs"]
#[allow(dead_code, reason = "each target runs one check")]
mod checks;

// libfuzzer-sys makes every panic fatal, also one that is caught.
libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::manifest(data));
