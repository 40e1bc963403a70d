//! `cargo xtask bench pods`: what a node with many idle pods costs, and how fast it enrols them.
//!
//! The pods are made first and then announced together, so that what is timed is the mesh's work alone. In the
//! end the agent is killed: the next one finds a full node.

#![expect(
    clippy::cast_precision_loss,
    reason = "counts and sizes are far below 2^52"
)]

use std::fmt::Write as _;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millrace_testkit::mesh::{DATAPLANE_MODE, Mesh, MeshNode, MeshPod, Role};
use millrace_testkit::{Cluster, Pod, PodOptions, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::memory::{self, Memory};
use super::setting::Setting;
use super::{Args, report};
use crate::ui::{self, Step};

/// What agent, broker and proxy may take together with [`GOAL_PODS`] idle pods.
const GOAL_BYTES: u64 = 100_000_000;
/// Percent of a core that they may take together with so many, once these have settled.
const GOAL_CPU: f64 = 3.0;
const GOAL_PODS: usize = 500;

/// How long a burst of pods may take to be enrolled.
const ENROL: Duration = Duration::from_mins(5);
/// How often the agent is asked meanwhile.
const ASK: Duration = Duration::from_millis(100);
/// Memory counts as settled when it moved less than this in [`STILL`] readings.
const SETTLED_BYTES: u64 = 256 * 1024;
const STILL: usize = 5;
const READING: Duration = Duration::from_secs(1);
const SETTLE: Duration = Duration::from_mins(1);
/// How long what follows an enrolment is watched; what is measured after it is the steady state.
const FIRST: Duration = Duration::from_mins(1);
/// How long a node without pods is watched.
const BARE: Duration = Duration::from_secs(10);

/// A node with a number of idle pods.
#[derive(Clone, Debug, Default)]
struct Stage {
    pods: usize,
    /// Pods announced together, and how long it took until all were captured.
    burst: usize,
    enrolment: Duration,
    /// CPU time of agent, broker and proxy meanwhile, with their tools.
    enrolment_cpu: Duration,
    /// How long a new agent took until it had taken over every pod, and its CPU time and the broker's.
    takeover: Option<(Duration, Duration)>,
    memory: Memory,
    /// Of agent, broker and proxy, in percent of a core: in the first minute, and in the steady state.
    first_cpu: [f64; 3],
    idle_cpu: [f64; 3],
    /// What the kernel holds for the mesh, without the pods' namespaces themselves.
    kernel_bytes: u64,
    maps: Value,
}

pub(super) fn run(cluster: &Cluster, setting: &Setting, args: &Args) -> anyhow::Result<()> {
    let mesh = Mesh::start_with(cluster, &setting.mesh_config())?;
    let node = mesh.node_with("node", &["--workers", &setting.workers.to_string()])?;
    let idle = Duration::from_secs(args.idle_seconds);
    let stages = measure(&node, &args.pods, idle)?;
    drop(node);
    args.write(
        &stages
            .iter()
            .map(|it| it.json(&stages[0]))
            .collect::<Vec<_>>(),
    )?;
    ui::result(report::machine()?);
    ui::result(setting);
    ui::result(table(&stages));
    Ok(())
}

fn measure(node: &MeshNode, counts: &[usize], idle: Duration) -> anyhow::Result<Vec<Stage>> {
    let mut counts = counts.to_vec();
    counts.sort_unstable();
    let mut pods: Vec<MeshPod> = Vec::new();
    let mut stages = vec![Stage::read(node, idle.min(BARE))?];
    for count in counts {
        let _step = Step::begin(format!("{count} pods"));
        let made = make(node, pods.len()..count)?;
        // Namespaces, links and processes are there without a mesh too.
        let before = memory::kernel_bytes()?;
        let (started, cpu) = (Instant::now(), total_cpu(node)?);
        let burst = made.len();
        for pod in made {
            pods.push(node.introduce(pod)?);
        }
        enrolled(node, count)?;
        let enrolment = started.elapsed();
        let enrolment_cpu = total_cpu(node)?.saturating_sub(cpu);
        let first_cpu = memory::idle_cpu(node, FIRST)?;
        let mut stage = Stage::read(node, idle)?;
        let grown = memory::kernel_bytes()?.saturating_sub(before);
        let earlier = stages.last().map_or(0, |stage| stage.kernel_bytes);
        stage = Stage {
            pods: count,
            burst,
            enrolment,
            enrolment_cpu,
            first_cpu,
            kernel_bytes: earlier + grown,
            ..stage
        };
        ui::say(format_args!("    {}", line(&stage, &stages[0])));
        stages.push(stage);
    }
    if let Some(last) = stages.last_mut() {
        last.takeover = Some(take_over(node, last.pods)?);
    }
    Ok(stages)
}

fn total_cpu(node: &MeshNode) -> anyhow::Result<Duration> {
    Ok(memory::cpu(node)?.iter().sum())
}

/// Kills the agent and waits until the next one captures every pod.
fn take_over(node: &MeshNode, count: usize) -> anyhow::Result<(Duration, Duration)> {
    let [_, broker, _] = memory::cpu(node)?;
    let killed = node.signal(Role::Agent, Signal::SIGKILL)?;
    let started = Instant::now();
    until(ENROL, || {
        let next = node.pid(Role::Agent).filter(|pid| *pid != killed);
        next.filter(|_| node.agent("/pods").is_ok())
            .context("no new agent serves")
    })?;
    enrolled(node, count)?;
    let [agent, broker_now, _] = memory::cpu(node)?;
    let cpu = agent + broker_now.saturating_sub(broker);
    Ok((started.elapsed(), cpu))
}

fn make(node: &MeshNode, numbers: Range<usize>) -> anyhow::Result<Vec<Pod>> {
    let (label, value) = DATAPLANE_MODE;
    numbers
        .map(|at| node.pod_with(PodOptions::named(&format!("idle-{at}")).label(label, value)))
        .collect()
}

/// Waits until the agent captures `count` pods.
fn enrolled(node: &MeshNode, count: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + ENROL;
    loop {
        let pods = node.agent("/pods")?.json()?;
        let pods = pods["pods"].as_array().or_else(|| pods.as_array());
        let captured = |pod: &&Value| pod["capture"] == "ebpf" && pod["healthy"] == true;
        let there = pods.map_or(0, |pods| pods.iter().filter(captured).count());
        if there == count {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{there} of {count} pods are captured:\n{}",
            node.log()
        );
        std::thread::sleep(ASK);
    }
}

/// Reads what the node holds once it does not change any more.
fn settled(node: &MeshNode) -> anyhow::Result<Memory> {
    let deadline = Instant::now() + SETTLE;
    let mut readings = Vec::new();
    loop {
        let memory = Memory::read(node)?;
        readings.push(memory.pss_bytes());
        let last = &readings[readings.len().saturating_sub(STILL)..];
        let moved = last
            .iter()
            .max()
            .zip(last.iter().min())
            .map_or(0, |(max, min)| max - min);
        if (last.len() == STILL && moved < SETTLED_BYTES) || Instant::now() >= deadline {
            return Ok(memory);
        }
        std::thread::sleep(READING);
    }
}

impl Stage {
    fn read(node: &MeshNode, idle: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            memory: settled(node)?,
            idle_cpu: memory::idle_cpu(node, idle)?,
            maps: node.agent("/status")?.json()?["maps"].take(),
            ..Self::default()
        })
    }

    fn per_second(&self) -> f64 {
        let seconds = self.enrolment.as_secs_f64();
        if seconds > 0.0 {
            self.burst as f64 / seconds
        } else {
            0.0
        }
    }

    fn cpu_per_pod(&self) -> Duration {
        self.enrolment_cpu / u32::try_from(self.burst.max(1)).unwrap_or(u32::MAX)
    }

    /// Bytes of the three processes that each pod added.
    fn per_pod(&self, bare: &Self) -> f64 {
        let added = self
            .memory
            .pss_bytes()
            .saturating_sub(bare.memory.pss_bytes());
        added as f64 / self.pods.max(1) as f64
    }

    fn json(&self, bare: &Self) -> Value {
        json!({
            "report": "pods",
            "pods": self.pods,
            "memory": self.memory.json(),
            "pss_bytes_per_pod": self.per_pod(bare).round(),
            "kernel_bytes_per_pod": (self.kernel_bytes as f64 / self.pods.max(1) as f64).round(),
            "first_minute_cpu_percent": by_process(self.first_cpu),
            "idle_cpu_percent": by_process(self.idle_cpu),
            "enrolled_together": self.burst,
            "enrolment_seconds": self.enrolment.as_secs_f64(),
            "enrolled_per_second": self.per_second(),
            "enrolment_cpu_ms_per_pod": self.cpu_per_pod().as_secs_f64() * 1e3,
            "takeover_seconds": self.takeover.map(|(took, _)| took.as_secs_f64()),
            "takeover_cpu_seconds": self.takeover.map(|(_, cpu)| cpu.as_secs_f64()),
            "maps": self.maps,
        })
    }
}

fn by_process([agent, broker, proxy]: [f64; 3]) -> Value {
    json!({ "agent": agent, "broker": broker, "proxy": proxy })
}

fn table(stages: &[Stage]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    writeln!(
        out,
        "{:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11} {:>11} {:>7} {:>10} {:>10} {:>13} {:>11} {:>20}",
        "pods",
        "agent MB",
        "broker MB",
        "proxy MB",
        "PSS MB",
        "RSS MB",
        "KB per pod",
        "kernel KB",
        "fds",
        "enrolled/s",
        "cpu ms/pod",
        "first min. %",
        "idle cpu %",
        "agent, broker, proxy"
    )
    .ok();
    for stage in stages {
        writeln!(out, "{}", line(stage, &stages[0])).ok();
    }
    if let Some((stage, (took, cpu))) = stages.last().and_then(|s| Some((s, s.takeover?))) {
        let (took, cpu, pods) = (took.as_secs_f64(), cpu.as_secs_f64(), stage.pods);
        writeln!(
            out,
            "a new agent has taken over {pods} pods after {took:.1} s, with {cpu:.2} s of CPU time (agent, broker, tools)"
        )
        .ok();
    }
    if let Some(stage) = stages.iter().find(|stage| stage.pods == GOAL_PODS) {
        let (bytes, cpu) = (stage.memory.pss_bytes(), stage.idle_cpu.iter().sum::<f64>());
        let word = |met| if met { "met    " } else { "NOT MET" };
        writeln!(
            out,
            "goals\n  {} {GOAL_PODS} idle pods: {:.1} MB (PSS) for agent, broker and proxy together (at most {:.0}); sum of RSS {:.1} MB\n  {} {GOAL_PODS} idle pods: {cpu:.1} % of a core for agent, broker and proxy together (at most {GOAL_CPU:.0})",
            word(bytes <= GOAL_BYTES),
            megabytes(bytes),
            megabytes(GOAL_BYTES),
            megabytes(stage.memory.rss_bytes()),
            word(cpu <= GOAL_CPU)
        )
        .ok();
    }
    out
}

fn line(stage: &Stage, bare: &Stage) -> String {
    let Memory {
        agent,
        broker,
        proxy,
    } = stage.memory;
    format!(
        "{:>5} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>11.1} {:>11.1} {:>7} {:>10.1} {:>10.1} {:>13.1} {:>11.1} {:>20}",
        stage.pods,
        megabytes(agent.pss_bytes),
        megabytes(broker.pss_bytes),
        megabytes(proxy.pss_bytes),
        megabytes(stage.memory.pss_bytes()),
        megabytes(stage.memory.rss_bytes()),
        stage.per_pod(bare) / 1e3,
        stage.kernel_bytes as f64 / stage.pods.max(1) as f64 / 1e3,
        agent.descriptors + broker.descriptors + proxy.descriptors,
        stage.per_second(),
        stage.cpu_per_pod().as_secs_f64() * 1e3,
        stage.first_cpu.iter().sum::<f64>(),
        stage.idle_cpu.iter().sum::<f64>(),
        stage.idle_cpu.map(|each| format!("{each:.1}")).join(", ")
    )
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::memory::Process;

    fn stage(pods: usize, bytes: u64) -> Stage {
        let process = Process {
            pss_bytes: bytes,
            ..Process::default()
        };
        Stage {
            pods,
            burst: pods,
            enrolment: Duration::from_secs(2),
            memory: Memory {
                agent: process,
                broker: process,
                proxy: process,
            },
            ..Stage::default()
        }
    }

    #[test]
    fn a_pod_costs_what_it_added() {
        let (bare, full) = (stage(0, 10_000_000), stage(100, 11_000_000));
        assert!((full.per_pod(&bare) - 30_000.0).abs() < 0.1);
        assert!((full.per_second() - 50.0).abs() < 0.1);
        assert_eq!(full.json(&bare)["pss_bytes_per_pod"], 30_000.0);
    }

    #[test]
    fn the_goals_are_about_all_three_processes() {
        let met = |stage: Stage| {
            let table = table(&[self::stage(0, 0), stage]);
            let goal = |word| table.matches(&format!("{word} 500")).count();
            (goal("met    "), goal("NOT MET"))
        };
        assert_eq!(met(stage(500, 33_000_000)), (2, 0));
        assert_eq!(met(stage(500, 34_000_000)), (1, 1));
        let busy = Stage {
            idle_cpu: [1.0, 1.5, 1.0],
            ..stage(500, 34_000_000)
        };
        assert_eq!(met(busy), (0, 2));
        assert_eq!(met(stage(100, 34_000_000)), (0, 0));
    }
}
