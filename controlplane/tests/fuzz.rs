//! The fuzz target's body on stable, and text of the characters that mean something to YAML.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use millrace_testkit::fuzz;
use proptest::prelude::*;

#[test]
fn fuzz_targets_survive() {
    fuzz::run(
        env!("CARGO_MANIFEST_DIR"),
        &[fuzz::target("documents", bodies::documents)],
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_survived(text in "[-a-z:{}\\[\\]&*!|>'\"#%\n ]{0,120}") {
        bodies::documents(text.as_bytes());
    }
}
