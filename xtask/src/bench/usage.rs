//! What processes and the machine used: CPU time and memory, from `/proc`.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// A reading of the counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// CPU time of the given processes.
    pub(super) processes: Duration,
    /// CPU time of everything below the given cgroup.
    pub(super) cgroup: Duration,
    /// CPU time of the whole machine that was not idle.
    pub(super) machine: Duration,
    /// Resident memory of the given processes.
    pub(super) rss_bytes: u64,
}

impl Usage {
    pub(super) fn read(pids: &[u32], cgroup: &Path) -> anyhow::Result<Self> {
        let mut usage = Self {
            cgroup: cgroup_time(cgroup)?,
            machine: machine()?,
            ..Self::default()
        };
        for pid in pids {
            usage.processes += process_time(*pid)?;
            usage.rss_bytes += resident(*pid)?;
        }
        Ok(usage)
    }
}

fn ticks(count: u64) -> Duration {
    // SAFETY: a query without arguments in memory.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let per_second = u64::try_from(per_second).unwrap_or(100);
    Duration::from_nanos(count * (1_000_000_000 / per_second.max(1)))
}

fn machine() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    // user, nice, system, [idle, iowait,] irq, softirq; steal and guest time are not this machine's work.
    let busy = [0, 1, 2, 5, 6]
        .iter()
        .filter_map(|at| fields.get(*at))
        .sum();
    Ok(ticks(busy))
}

fn cgroup_time(cgroup: &Path) -> anyhow::Result<Duration> {
    let file = cgroup.join("cpu.stat");
    let stat = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let used = stat
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    let used = used.and_then(|used| used.parse().ok());
    Ok(Duration::from_micros(
        used.context("a cgroup without CPU time")?,
    ))
}

pub(super) fn process_time(pid: u32) -> anyhow::Result<Duration> {
    times(pid, 11..13)
}

/// CPU time of a process and of the programs that it ran and that have ended.
pub(super) fn time_with_tools(pid: u32) -> anyhow::Result<Duration> {
    times(pid, 11..15)
}

/// The sum of fields of `/proc/<pid>/stat`, counted from the process's state.
fn times(pid: u32, fields: Range<usize>) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("the process {pid} is gone"))?;
    let (_, rest) = stat.rsplit_once(") ").context("/proc/<pid>/stat")?;
    let values = rest.split(' ').skip(fields.start).take(fields.len());
    let values: Vec<u64> = values.filter_map(|value| value.parse().ok()).collect();
    anyhow::ensure!(values.len() == fields.len(), "/proc/{pid}/stat: {stat}");
    Ok(ticks(values.iter().sum()))
}

fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("the process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.unwrap_or(0) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_uses_time_and_memory() {
        let me = [std::process::id()];
        let cgroup = std::env::temp_dir().join(format!("millrace-usage-{}", std::process::id()));
        fs::create_dir_all(&cgroup).unwrap();
        let read = |used: u64| {
            fs::write(
                cgroup.join("cpu.stat"),
                format!("usage_usec {used}\nuser_usec 1\n"),
            )
            .unwrap();
            Usage::read(&me, &cgroup).unwrap()
        };
        let before = read(1);
        let enough = before.processes + Duration::from_millis(50);
        let mut after = before;
        while after.processes < enough {
            after = read(3);
        }
        fs::remove_dir_all(&cgroup).unwrap();
        assert_eq!(after.cgroup.as_micros() - before.cgroup.as_micros(), 2);
        assert!(after.machine > before.machine, "{after:?}");
        assert!(after.rss_bytes > 100_000, "{after:?}");
    }
}
