//! Runs [`whole::handover`] under libFuzzer: `cargo xtask fuzz proxy_handover`.
#![no_main]

#[path = "../whole.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each target runs one of its bodies with peers of other tests; what they find is a panic"
)]
mod whole;

use whole::support;

libfuzzer_sys::fuzz_target!(|data: &[u8]| whole::handover(data));
