//! What is fuzzed of the agent: descriptions of pods, as files and as its API takes them. The same body runs
//! on stable (`tests/fuzz.rs`) and under libfuzzer (`fuzz_targets`).

use millrace_agent::pods::describe;

/// A file of pods: each is read whole or named as wrong.
pub(crate) fn pods(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match describe::pods(text) {
        Ok(pods) => pods
            .iter()
            .for_each(|pod| assert_eq!(pod.validate(), Ok(()))),
        Err(malformed) => assert!(!malformed.reason.is_empty()),
    }
}
