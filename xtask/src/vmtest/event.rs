//! What host and guest tell each other: the plan that lies in the guest's file system, and the events that come
//! back over its second serial port, one JSON object per line.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where the guest finds its plan.
pub(super) const PLAN: &str = "/vmtest/plan.json";
/// Where the guest's events go; the kernel's own messages go to the first port.
pub(super) const PORT: &str = "/dev/ttyS1";

/// What the guest is to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Plan {
    /// Kernel modules, each after those that it depends on.
    pub(super) modules: Vec<PathBuf>,
    /// The agent, to be asked what the kernel can do.
    pub(super) agent: PathBuf,
    /// The executables of tests, with their names.
    pub(super) suites: Vec<(String, PathBuf)>,
    /// Only tests whose name, `suite::test`, contains one of these; all if there are none.
    pub(super) filters: Vec<String>,
    /// No test whose name contains one of these.
    pub(super) skip: Vec<String>,
    /// How long one test may take.
    pub(super) patience: Duration,
}

/// What happened in the guest.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub(super) enum Event {
    /// It is up; modules that could not be loaded are named with the reason.
    Booted {
        release: String,
        troubles: Vec<String>,
    },
    /// What `millrace-agent probe` printed.
    Probed { report: Value },
    /// How many tests there are to run.
    Listed { tests: usize },
    /// A test begins.
    Started { test: String },
    /// A test has ended.
    Finished(Finished),
    /// The guest could not do what it was told.
    Trouble { text: String },
    /// All tests have been run.
    Done,
}

/// How one test ended.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Finished {
    /// `suite::test`.
    pub(super) test: String,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
    /// How long it took, as the guest's clock has it.
    pub(super) seconds: f64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub(super) enum Outcome {
    Passed,
    /// The kernel makes impossible what the test is about.
    NotApplicable {
        reason: String,
    },
    /// The machine lacks what the test needs.
    Skipped {
        reason: String,
    },
    /// The end of what it printed.
    Failed {
        output: String,
    },
    /// It was still running at the end of the guest's patience.
    TimedOut {
        output: String,
    },
}
