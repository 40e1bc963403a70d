//! The pilot under measurement: a process of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// How long it may take to bind its addresses.
const START: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);

/// A running pilot; ended when dropped.
#[derive(Debug)]
pub(crate) struct Pilot {
    child: Child,
    pub(crate) xds: String,
}

/// What it has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// CPU time so far.
    pub(crate) cpu: Duration,
    /// Resident memory now, and the most that it ever was.
    pub(crate) rss: u64,
    pub(crate) peak: u64,
}

impl Pilot {
    /// Starts one over a directory of YAML; its log goes beside the directory.
    pub(crate) async fn start(
        binary: &Path,
        scratch: &Path,
        config: &Path,
    ) -> anyhow::Result<Self> {
        let addresses = scratch.join("addresses.json");
        let log = std::fs::File::create(scratch.join("pilot.log"))?;
        let mut command = Command::new(binary);
        command
            .args(["--registries", "file", "--xds-addr", "127.0.0.1:0"])
            .args(["--http-addr", "127.0.0.1:0", "--log", "warn"])
            .arg("--config-dir")
            .arg(config)
            .arg("--print-addrs-to")
            .arg(&addresses)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let mut pilot = Self {
            child,
            xds: String::new(),
        };
        let started = Instant::now();
        while !addresses.is_file() {
            ensure!(started.elapsed() < START, "pilot did not start");
            tokio::time::sleep(POLL).await;
        }
        let text = std::fs::read_to_string(&addresses)?;
        let found: Value = serde_json::from_str(&text)?;
        let xds = found["xds"].as_str().context("pilot says no xDS address")?;
        pilot.xds = format!("http://{xds}");
        Ok(pilot)
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let pid = self.child.id();
        let status =
            std::fs::read_to_string(format!("/proc/{pid}/status")).context("pilot is gone")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("pilot is gone")?;
        let (_, rest) = stat.rsplit_once(") ").context("/proc/<pid>/stat")?;
        let fields = rest.split(' ').skip(11).take(2);
        let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Usage {
            cpu: of_ticks(ticks),
            rss: kilobytes(&status, "VmRSS:"),
            peak: kilobytes(&status, "VmHWM:"),
        })
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn of_ticks(ticks: u64) -> Duration {
    // SAFETY: a query without arguments in memory.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let per_second = u64::try_from(per_second).unwrap_or(100).max(1);
    Duration::from_nanos(ticks * (1_000_000_000 / per_second))
}

fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    value.unwrap_or(0) * 1024
}
