//! Runs [`whole::handover`] under libFuzzer: `cargo xtask fuzz proxy_handover`.
#![no_main]

#[path = "../../tests/http/smuggling/reading.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "what it finds is a panic")]
mod reading;
#[path = "../../tests/http/support.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "peers of other tests, too; what they find is a panic"
)]
mod support;
#[path = "../../tests/http/smuggling/upstream.rs"]
mod upstream;
#[path = "../whole.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each target runs one of them, and what it finds is a panic"
)]
mod whole;

libfuzzer_sys::fuzz_target!(|data: &[u8]| whole::handover(data));
