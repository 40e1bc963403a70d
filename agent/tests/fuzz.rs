//! The fuzz target's body on stable.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use millrace_testkit::fuzz;

#[test]
fn fuzz_targets_survive() {
    fuzz::run(
        env!("CARGO_MANIFEST_DIR"),
        &[fuzz::target("pods", bodies::pods)],
    );
}
