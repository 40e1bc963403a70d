//! Inputs for the bodies of fuzz targets where no fuzzer runs: arbitrary bytes, and valid input with some
//! bytes changed. Called by the `tests/fuzz.rs` of the crates that have fuzz targets.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop};
use proptest::test_runner::{Config, TestRunner};

/// Longest arbitrary input.
const LONGEST: usize = 200;

/// Gives `body` arbitrary bytes.
///
/// # Panics
///
/// When `body` does, with the shortest input found that makes it.
pub fn arbitrary(body: impl Fn(&[u8])) {
    run(&vec(any::<u8>(), 0..LONGEST), body);
}

/// Gives `body` one of `seeds` each time, with up to five bytes changed and often cut off somewhere.
///
/// # Panics
///
/// When `body` does, with the smallest change found that makes it.
pub fn changed(seeds: &[Vec<u8>], body: impl Fn(&[u8])) {
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
    let cut = prop::option::of(any::<prop::sample::Index>());
    let seeds = prop::sample::select(seeds.to_vec());
    let inputs = (seeds, changes, cut).prop_map(|(mut data, changes, cut)| {
        for (index, byte) in changes {
            let index = index.index(data.len());
            data[index] = byte;
        }
        if let Some(cut) = cut {
            data.truncate(cut.index(data.len()));
        }
        data
    });
    run(&inputs, body);
}

fn run(inputs: &impl Strategy<Value = Vec<u8>>, body: impl Fn(&[u8])) {
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(inputs, |data| {
        body(&data);
        Ok(())
    });
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn seeds_come_changed_and_cut() {
        let (changed_some, cut_some) = (Cell::new(false), Cell::new(false));
        changed(&[b"a valid input".to_vec()], |data| {
            changed_some.set(changed_some.get() || data != b"a valid input");
            cut_some.set(cut_some.get() || data.len() < 13);
        });
        assert!(changed_some.get() && cut_some.get());
    }

    #[test]
    #[should_panic(expected = "a zero")]
    fn what_a_body_cannot_bear_is_found() {
        arbitrary(|data| assert!(!data.contains(&0), "a zero"));
    }
}
