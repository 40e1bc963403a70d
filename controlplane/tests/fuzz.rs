//! The fuzz target's body on stable: arbitrary text, and valid objects with bytes changed.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use millrace_testkit::fuzz;
use proptest::prelude::*;

const OBJECTS: &str = "apiVersion: v1
kind: Service
metadata: {name: a, namespace: b}
spec: {selector: {app: a}, ports: [{port: 80, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a]
  http:
  - match: [{uri: {prefix: /x}}]
    route: [{destination: {host: a, subset: v1}, weight: 100}]
";

#[test]
fn the_seed_is_read() {
    bodies::documents(OBJECTS.as_bytes());
}

#[test]
fn changed_objects_are_survived() {
    fuzz::changed(&[OBJECTS.into()], bodies::documents);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Of the characters that mean something to YAML.
    #[test]
    fn arbitrary_text_is_survived(text in "[-a-z:{}\\[\\]&*!|>'\"#%\n ]{0,120}") {
        bodies::documents(text.as_bytes());
    }
}
