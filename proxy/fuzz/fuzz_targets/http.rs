//! Runs [`whole::http`] under libFuzzer: `cargo xtask fuzz proxy_http`.
#![no_main]

#[path = "../whole.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each target runs one of its bodies with peers of other tests; what they find is a panic"
)]
mod whole;

use whole::support;

libfuzzer_sys::fuzz_target!(|data: &[u8]| whole::http(data));
