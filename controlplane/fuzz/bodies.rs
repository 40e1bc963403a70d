//! What is fuzzed of pilot: the text of its files. The same body runs as a property test on
//! stable (`tests/fuzz.rs`) and under libfuzzer (`fuzz_targets`).

use millrace_controlplane::kube::document;

/// A file of objects: whatever it holds is read or named as a problem.
pub(crate) fn documents(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        drop(document::read("f.yaml", text, "cluster.local"));
    }
}
