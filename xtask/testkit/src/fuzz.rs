//! Runs the bodies of fuzz targets where no fuzzer runs: over the seeds kept beside each target, those seeds
//! with some bytes changed, and arbitrary bytes. How many inputs there are does not depend on time, and which
//! depends on `MILLRACE_FUZZ_SEED` alone. Called by the `tests/fuzz.rs` of the crates that have fuzz targets.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Longest arbitrary input.
const LONGEST: usize = 200;

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of its file in `fuzz/fuzz_targets` and of its directory in `fuzz/seeds`.
    pub name: &'static str,
    /// How many inputs of each kind it is given.
    pub inputs: u32,
    /// What it does with an input.
    pub body: fn(&[u8]),
}

/// A target with as many inputs as take a moment.
pub const fn target(name: &'static str, body: fn(&[u8])) -> Target {
    Target {
        name,
        inputs: 256,
        body,
    }
}

/// Runs every target of the package at `package`.
///
/// # Panics
///
/// When a body does, with the smallest input found that makes it; when `targets` are not those in
/// `fuzz/fuzz_targets`; when one has no seed.
pub fn run(package: impl AsRef<Path>, targets: &[Target]) {
    let fuzz = package.as_ref().join("fuzz");
    let there: BTreeSet<String> = entries(&fuzz.join("fuzz_targets")).into_iter().collect();
    let named = |target: &Target| format!("{}.rs", target.name);
    assert_eq!(there, targets.iter().map(named).collect(), "fuzz targets");
    for target in targets {
        let directory = fuzz.join("seeds").join(target.name);
        let seeds = seeds(&directory);
        for (name, seed) in &seeds {
            eprintln!("{}: {name}", target.name);
            (target.body)(seed);
        }
        let seeds: Vec<_> = seeds.into_iter().map(|(_, seed)| seed).collect();
        eprintln!("{}: changed seeds", target.name);
        changed(&seeds, target);
        eprintln!("{}: arbitrary bytes", target.name);
        feed(&vec(any::<u8>(), 0..LONGEST), target);
    }
}

/// The inputs kept in a directory, by name.
///
/// # Panics
///
/// When there is none, or an empty one, of which nothing could be changed.
pub fn seeds(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| {
        let path = directory.join(&name);
        match fs::read(&path) {
            Ok(seed) if !seed.is_empty() => (name, seed),
            other => panic!("{}: {other:?}", path.display()),
        }
    };
    let seeds: Vec<_> = entries(directory).into_iter().map(read).collect();
    assert!(!seeds.is_empty(), "no seeds in {}", directory.display());
    seeds
}

/// Names in a directory, in order.
fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory);
    let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// One of the seeds each time, with up to five bytes changed and often cut off somewhere.
fn changed(seeds: &[Vec<u8>], target: &Target) {
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
    feed(&inputs, target);
}

fn feed(inputs: &impl Strategy<Value = Vec<u8>>, target: &Target) {
    let config = Config {
        cases: target.inputs,
        failure_persistence: None,
        ..Config::default()
    };
    let chosen = std::env::var("MILLRACE_FUZZ_SEED").ok();
    let number: u64 = chosen.and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let outcome = TestRunner::new_with_rng(config, rng).run(inputs, |data| {
        (target.body)(&data);
        Ok(())
    });
    assert!(outcome.is_ok(), "{}: {outcome:?}", target.name);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn seeds_come_changed_and_cut() {
        static CHANGED: AtomicU32 = AtomicU32::new(0);
        static CUT: AtomicU32 = AtomicU32::new(0);
        changed(
            &[b"a valid input".to_vec()],
            &target("t", |data| {
                CHANGED.fetch_add(u32::from(data != b"a valid input"), Ordering::Relaxed);
                CUT.fetch_add(u32::from(data.len() < 13), Ordering::Relaxed);
            }),
        );
        assert!(CHANGED.load(Ordering::Relaxed) > 0);
        assert!(CUT.load(Ordering::Relaxed) > 0);
    }

    #[test]
    #[should_panic(expected = "a zero")]
    fn what_a_body_cannot_bear_is_found() {
        feed(
            &vec(any::<u8>(), 0..LONGEST),
            &target("t", |data| assert!(!data.contains(&0), "a zero")),
        );
    }

    #[test]
    #[should_panic(expected = "fuzz targets")]
    fn a_target_that_nobody_runs_is_found() {
        let package = std::env::temp_dir().join(format!("millrace-fuzz-{}", std::process::id()));
        let targets = package.join("fuzz/fuzz_targets");
        fs::create_dir_all(&targets).unwrap();
        fs::write(targets.join("forgotten.rs"), "").unwrap();
        let result = std::panic::catch_unwind(|| run(&package, &[]));
        fs::remove_dir_all(&package).unwrap();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }
}
