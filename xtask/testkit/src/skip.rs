//! Tests that cannot run say so, and never pass in silence.
//!
//! `SKIP: reason` is for what this machine lacks and another has; under `MILLRACE_REQUIRE_ALL=1`
//! it fails the test. `N/A: reason` is for what the running kernel itself proves impossible; the
//! key must be listed in `not_applicable.txt`. Both go to stderr past the test harness's capture,
//! where `cargo xtask test` collects them.

use std::io::Write as _;

/// The places that may print `N/A`, one `key: reason` per line.
pub const NOT_APPLICABLE: &str = include_str!("../not_applicable.txt");

/// What a test function returns when it is skipped.
pub trait Skipped {
    /// The value that ends the test without failing it.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl<E> Skipped for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Reports a skipped test.
///
/// # Panics
///
/// Under `MILLRACE_REQUIRE_ALL=1`.
#[track_caller]
pub fn skip<T: Skipped>(reason: &str) -> T {
    say(&format!("SKIP: {reason}"));
    let required = std::env::var_os("MILLRACE_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(
        !required,
        "skipped although MILLRACE_REQUIRE_ALL=1: {reason}"
    );
    T::skipped()
}

/// Reports a test that the kernel makes impossible; `seen` is what the kernel answered.
///
/// # Panics
///
/// When `key` is not listed in `not_applicable.txt`.
#[track_caller]
pub fn not_applicable<T: Skipped>(key: &str, seen: &str) -> T {
    let reason = listed(key);
    assert!(
        reason.is_some(),
        "`{key}` is not listed in xtask/testkit/not_applicable.txt"
    );
    say(&format!(
        "N/A: {key}: {} (seen: {seen})",
        reason.unwrap_or_default()
    ));
    T::skipped()
}

fn listed(key: &str) -> Option<&'static str> {
    NOT_APPLICABLE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, reason)| (name.trim() == key).then(|| reason.trim()))
}

/// Writes to the real stderr: `eprintln!` would be swallowed by the harness for a passing test.
fn say(line: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    // A closed stderr leaves nobody to tell.
    drop(writeln!(std::io::stderr().lock(), "{line} [{test}]"));
}

/// Whether this process may make namespaces, cgroups and eBPF programs.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether an executable of this name is on `PATH` (or in the sbin directories).
pub fn has_tool(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|dir| std::path::Path::new(dir).join(name).is_file())
}

/// Ends the calling test with `SKIP: reason` unless `$condition` holds.
///
/// `require!(root)` and `require!(tool "nft")` name the usual conditions; `require!(cluster)` asks
/// for all that a [`Cluster`](crate::Cluster) needs, `require!(apiserver)` for the servers of a
/// Kubernetes control plane.
#[macro_export]
macro_rules! require {
    (root) => {
        $crate::require!($crate::skip::is_root(), "needs root")
    };
    (tool $name:expr) => {
        $crate::require!(
            $crate::skip::has_tool($name),
            concat!("needs the program `", $name, "`; `cargo xtask setup` installs it")
        )
    };
    (cluster) => {
        $crate::require!(root);
        $crate::require!(tool "ip");
        $crate::require!($crate::cgroup2_mount().is_some(), "no cgroup2 is mounted");
    };
    (apiserver) => {
        $crate::require!(
            $crate::assets::find().is_some(),
            "no etcd and kube-apiserver: KUBEBUILDER_ASSETS names no directory that has them, and `cargo xtask setup` \
             has not built them"
        )
    };
    ($condition:expr, $reason:expr) => {
        if !$condition {
            return $crate::skip::skip($reason);
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_list_has_a_key_and_a_reason() {
        for line in NOT_APPLICABLE
            .lines()
            .filter(|l| !l.starts_with('#') && !l.is_empty())
        {
            let (key, reason) = line.split_once(':').expect("key: reason");
            assert!(
                !key.trim().is_empty() && !reason.trim().is_empty(),
                "{line}"
            );
        }
    }

    #[test]
    fn only_listed_places_are_known() {
        assert!(listed("no-such-place").is_none());
    }
}
