//! Runs [`bodies::pods`] under libFuzzer: `cargo xtask fuzz agent_pods`.
#![no_main]

#[path = "../bodies.rs"]
#[allow(
    dead_code,
    clippy::expect_used,
    reason = "each target runs one of them, and what it finds is a panic"
)]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::pods(data));
