//! Memory and descriptors of a node's processes, from `/proc`, and what the kernel holds besides.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use millrace_testkit::mesh::{MeshNode, Role};
use serde_json::{Value, json};

use super::usage;

/// What one process has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    /// Resident memory with shared pages divided among those who share them.
    pub(super) pss_bytes: u64,
    /// Resident memory.
    pub(super) rss_bytes: u64,
    /// Resident memory that belongs to no file.
    pub(super) anonymous_bytes: u64,
    pub(super) descriptors: u64,
}

/// What agent, broker and proxy of a node have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) agent: Process,
    pub(super) broker: Process,
    pub(super) proxy: Process,
}

impl Process {
    pub(super) fn read(pid: u32) -> anyhow::Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .with_context(|| format!("the process {pid} is gone"))?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .with_context(|| format!("the process {pid} is gone"))?
            .count() as u64;
        Ok(Self {
            pss_bytes: field(&rollup, "Pss:"),
            rss_bytes: field(&rollup, "Rss:"),
            anonymous_bytes: field(&rollup, "Anonymous:"),
            descriptors,
        })
    }

    fn json(&self) -> Value {
        json!({
            "pss_bytes": self.pss_bytes,
            "rss_bytes": self.rss_bytes,
            "anonymous_bytes": self.anonymous_bytes,
            "descriptors": self.descriptors,
        })
    }
}

impl Memory {
    pub(super) fn read(node: &MeshNode) -> anyhow::Result<Self> {
        let of = |role: Role| {
            let pid = node.pid(role);
            Process::read(pid.with_context(|| format!("no {role:?} runs"))?)
        };
        Ok(Self {
            agent: of(Role::Agent)?,
            broker: of(Role::Broker)?,
            proxy: of(Role::Proxy)?,
        })
    }

    fn each(&self) -> [Process; 3] {
        [self.agent, self.broker, self.proxy]
    }

    pub(super) fn pss_bytes(&self) -> u64 {
        self.each().iter().map(|it| it.pss_bytes).sum()
    }

    pub(super) fn rss_bytes(&self) -> u64 {
        self.each().iter().map(|it| it.rss_bytes).sum()
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "pss_bytes": self.pss_bytes(),
            "rss_bytes": self.rss_bytes(),
            "agent": self.agent.json(),
            "broker": self.broker.json(),
            "proxy": self.proxy.json(),
        })
    }
}

/// CPU time of agent, broker and proxy, with that of the tools that they ran.
pub(super) fn cpu(node: &MeshNode) -> anyhow::Result<[Duration; 3]> {
    let of = |role: Role| {
        let pid = node
            .pid(role)
            .with_context(|| format!("no {role:?} runs"))?;
        usage::time_with_tools(pid)
    };
    Ok([of(Role::Agent)?, of(Role::Broker)?, of(Role::Proxy)?])
}

/// CPU time that agent, broker and proxy take while nothing is asked of them, in percent of a core.
pub(super) fn idle_cpu(node: &MeshNode, within: Duration) -> anyhow::Result<[f64; 3]> {
    let (before, started) = (cpu(node)?, Instant::now());
    std::thread::sleep(within);
    let (after, seconds) = (cpu(node)?, started.elapsed().as_secs_f64());
    Ok([0, 1, 2].map(|at| {
        let used = after[at].saturating_sub(before[at]);
        used.as_secs_f64() / seconds * 100.0
    }))
}

/// Memory of the kernel's own objects (sockets, namespaces, maps), of the whole machine.
pub(super) fn kernel_bytes() -> anyhow::Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let fields = ["Slab:", "Percpu:", "KernelStack:", "VmallocUsed:"];
    Ok(fields.iter().map(|name| field(&meminfo, name)).sum())
}

/// A line `Name:   123 kB`, in bytes.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_descriptors() {
        let before = Process::read(std::process::id()).unwrap();
        let ballast = vec![1_u8; 32 << 20];
        let after = Process::read(std::process::id()).unwrap();
        assert!(std::hint::black_box(&ballast)[1 << 20] == 1);
        assert!(
            after.pss_bytes > before.pss_bytes + (16 << 20),
            "{before:?} {after:?}"
        );
        assert!(
            after.rss_bytes >= after.pss_bytes && after.descriptors > 2,
            "{after:?}"
        );
        assert!(kernel_bytes().unwrap() > 0);
    }

    #[test]
    fn fields_are_kilobytes() {
        let text = "Rss:    12 kB\nPss:   3 kB\n";
        assert_eq!(
            (
                field(text, "Pss:"),
                field(text, "Rss:"),
                field(text, "Swap:")
            ),
            (3072, 12288, 0)
        );
    }
}
