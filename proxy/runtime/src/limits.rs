//! Resource limits that a process raises for itself at start.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard limit and returns it; processes that hold
/// sockets of many pods need it. A failure leaves the limit as it is.
pub fn raise_open_files() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    let now = if setrlimit(Resource::Nofile, limit).is_ok() {
        limit.maximum
    } else {
        before
    };
    now.unwrap_or(u64::MAX)
}

/// How many files this process may have open now.
pub fn open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    limit.current.unwrap_or(u64::MAX)
}
