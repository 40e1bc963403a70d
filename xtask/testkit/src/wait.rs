//! Waiting for a condition with a deadline instead of a fixed sleep.

use std::fmt::Display;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(5);

/// Calls `attempt` until it succeeds and returns its value; fails with the last error once
/// `deadline` has passed.
pub fn until<T, E: Display>(
    deadline: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                anyhow::bail!("still failing after {deadline:?}: {error}")
            }
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

/// Returns once `condition` holds.
///
/// # Panics
///
/// When it does not hold before `deadline`; `what` says what was waited for.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let held = until(deadline, || {
        if condition() {
            Ok(())
        } else {
            Err("it does not hold")
        }
    });
    assert!(held.is_ok(), "{what}: not so within {deadline:?}");
}
