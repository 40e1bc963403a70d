//! The fuzz target's body on stable: arbitrary text, and valid objects with bytes changed.

#[path = "../fuzz/bodies.rs"]
mod bodies;

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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_survived(text in "[-a-z:{}\\[\\]&*!|>'\"#%\n ]{0,120}") {
        bodies::documents(text.as_bytes());
    }

    #[test]
    fn changed_objects_are_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1..128_u8), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut data = OBJECTS.as_bytes().to_vec();
        for (index, byte) in changes {
            let index = index.index(data.len());
            data[index] = byte;
        }
        if let Some(cut) = cut {
            data.truncate(cut.index(data.len()));
        }
        bodies::documents(&data);
    }
}
