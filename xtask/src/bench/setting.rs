//! What is the same in every row; printed with the results, because ratios mean nothing without it.

use std::fmt;

/// How all proxies are run.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// Worker threads of each proxy.
    pub(super) workers: usize,
    /// Where access logs go: written in full, kept nowhere.
    pub(super) access_log: &'static str,
}

impl Setting {
    pub(super) fn new() -> Self {
        let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            workers: workers.min(2),
            access_log: "/dev/null",
        }
    }

    /// The same for pilot, as a file of `MeshConfig`.
    pub(super) fn mesh_config(&self) -> String {
        format!("accessLogFile: {}\n", self.access_log)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "every proxy: {} workers, access log to {}, metrics on, one route table, upstream \
             keep-alive on, no TLS",
            self.workers, self.access_log
        )
    }
}
