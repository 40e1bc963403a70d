//! `cargo xtask stress`: applications in pods exchange tagged bytes in every way that a program can,
//! over each mode of capture and acceleration, and every byte that is not where it belongs is counted.
//!
//! A run is drawn from its seed, which is printed. Each mode has a node of its own; all run at once.

mod bytes;
mod counts;
mod half;
mod kills;
mod lane;
mod memory;
pub(crate) mod peer;
mod plan;
mod programs;
mod tag;
mod web;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use millrace_testkit::mesh::Mesh;
use millrace_testkit::{Cluster, ClusterOptions};
use serde_json::{Value, json};

use crate::ui::{self, Reported, Step, green, red};
use crate::{build, interrupt, run, setup, workspace};

use counts::Counts;
use lane::{Lane, Setting};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For how long applications exchange bytes.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Write the report to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the same run again.
    #[arg(long)]
    seed: Option<u64>,
    /// Only these modes, as `ebpf:auto`.
    #[arg(long = "mode")]
    modes: Vec<String>,
    /// Client pods of each mode.
    #[arg(long, default_value_t = 3)]
    clients: usize,
    /// Connections of each client at a time.
    #[arg(long, default_value_t = 4)]
    threads: u32,
    /// Leave the readers out that never read.
    #[arg(long)]
    no_memory: bool,
    /// Kill no agent and no proxy.
    #[arg(long)]
    no_kills: bool,
    /// Call real programs instead, all or these of them, as `nginx,go`.
    #[arg(long, num_args = 0.., value_delimiter = ',')]
    programs: Option<Vec<String>>,
    /// Leave programs out that no registry gives here, and say so.
    #[arg(long, requires = "programs")]
    if_reachable: bool,
}

/// A way to capture and to accelerate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mode {
    capture: &'static str,
    acceleration: &'static str,
}

impl Mode {
    fn all() -> impl Iterator<Item = Self> {
        ["ebpf", "iptables"].into_iter().flat_map(|capture| {
            let modes = ["off", "auto", "on"];
            modes.map(|acceleration| Self {
                capture,
                acceleration,
            })
        })
    }

    fn name(self) -> String {
        format!("{}:{}", self.capture, self.acceleration)
    }

    /// splice(2) from an accelerated socket waits for TCP alone; who vouches for a program says that
    /// it does not splice.
    fn spares_splice(self) -> bool {
        self.capture == "ebpf" && self.acceleration == "on"
    }
}

/// How long a setting holds before it is changed.
const FLIP: Duration = Duration::from_millis(1500);
/// Clients report after this time at the latest.
const ROUND: Duration = Duration::from_secs(20);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the stress makes network namespaces and loads eBPF programs: run it as root"
    );
    interrupt::clean_up_on_signal()?;
    if std::env::var_os("MILLRACE_BIN_DIR").is_none() {
        setup::ensure_for_build()?;
    }
    let binaries = build::release_or_given()?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    ui::result(format_args!("seed {seed}"));

    let cluster = Cluster::with(ClusterOptions {
        binaries: Some(binaries),
        ..ClusterOptions::default()
    })?;
    let program = cluster.executable(&generator()?)?;
    if let Some(names) = &args.programs {
        let mesh = Mesh::start(&cluster)?;
        let wanted = programs::Wanted {
            names,
            if_reachable: args.if_reachable,
        };
        let found = programs::stress(&mesh, &program, &wanted, (seed, args.minutes))?;
        return finish_programs(args, seed, &found);
    }
    stress_modes(args, seed, &cluster, &program)
}

/// Every mode at once, on a node of its own.
fn stress_modes(args: &Args, seed: u64, cluster: &Cluster, program: &Path) -> anyhow::Result<()> {
    let modes = chosen(&args.modes)?;
    let mesh = Mesh::start_with(cluster, "accessLogFile: \"\"\n")?;
    let setting = Setting {
        mesh: &mesh,
        program,
        seed,
        clients: args.clients,
        threads: args.threads,
    };
    let lanes = {
        let _step = Step::begin("set up");
        let lanes = (1..).zip(modes).map(|(number, mode)| {
            Lane::start(&setting, mode, number)
                .with_context(|| format!("setting up {}", mode.name()))
        });
        lanes.collect::<anyhow::Result<Vec<_>>>()?
    };
    let mut sums = exchange(&setting, &lanes, args.minutes)?;
    let memory = if args.no_memory {
        Vec::new()
    } else {
        let _step = Step::begin("readers that never read");
        memory::check_all(&setting, &lanes)?
    };
    for (lane, sum) in lanes.iter().zip(&mut sums) {
        sum.add(&lane.served()?);
    }
    // A killed proxy takes its counters with it.
    let accelerated = lanes.iter().map(Lane::accelerated);
    let accelerated = accelerated.collect::<anyhow::Result<Vec<_>>>()?;
    let kills = if args.no_kills {
        Vec::new()
    } else {
        let _step = Step::begin("agents and proxies that are killed");
        kills::check_all(&setting, &lanes, seed)?
    };
    let modes = Modes {
        lanes: &lanes,
        sums: &sums,
        accelerated: &accelerated,
    };
    finish(args, seed, &modes, &memory, &kills)
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<Mode>> {
    for name in names {
        let known = Mode::all().any(|mode| mode.name() == *name);
        let all: Vec<_> = Mode::all().map(Mode::name).collect();
        ensure!(known, "no mode {name}; there are {}", all.join(", "));
    }
    let wanted = |mode: &Mode| names.is_empty() || names.contains(&mode.name());
    Ok(Mode::all().filter(wanted).collect())
}

/// The applications: this very program, optimised if it can be.
fn generator() -> anyhow::Result<PathBuf> {
    if std::env::var_os("MILLRACE_BIN_DIR").is_some() {
        return std::env::current_exe().context("finding this program");
    }
    run::check(run::cargo().args(["build", "--release", "--package", "millrace-xtask"]))?;
    Ok(workspace::target_dir().join("release/millrace-xtask"))
}

/// Lets all clients make connections until the time is over; sums by lane.
fn exchange(setting: &Setting<'_>, lanes: &[Lane], minutes: f64) -> anyhow::Result<Vec<Counts>> {
    let mut sums = vec![Counts::default(); lanes.len()];
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut rng = fastrand::Rng::with_seed(setting.seed);
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        let _step = Step::begin(format!("round {round}"));
        let seconds = (end - Instant::now()).min(ROUND).as_secs_f64();
        let started = lanes
            .iter()
            .map(|lane| lane.call(setting, rng.u64(..), seconds))
            .collect::<anyhow::Result<Vec<_>>>()?;
        flip(lanes, seconds)?;
        for ((children, sum), lane) in started.into_iter().zip(&mut sums).zip(lanes) {
            for child in children {
                let counts: Counts = lane::report(child)
                    .with_context(|| format!("{}:\n{}", lane.mode.name(), lane.log()))?;
                for note in &counts.notes {
                    ui::say(format_args!("    {}: {note}", lane.mode.name()));
                }
                sum.add(&counts);
            }
            ui::say(format_args!("    {}", line(lane.mode, sum)));
        }
    }
    Ok(sums)
}

/// Switches acceleration off and on again while the clients are at it, for about so long: connections
/// return to TCP in the middle of whatever they do, and new ones are promoted.
fn flip(lanes: &[Lane], seconds: f64) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut off = false;
    while Instant::now() + FLIP < end {
        std::thread::sleep(FLIP);
        off = !off;
        for lane in lanes.iter().filter(|lane| lane.is_accelerated()) {
            lane.accelerate(if off { "off" } else { lane.mode.acceleration })?;
        }
    }
    if off {
        let accelerated = lanes.iter().filter(|lane| lane.is_accelerated());
        for lane in accelerated {
            lane.accelerate(lane.mode.acceleration)?;
        }
    }
    Ok(())
}

fn line(mode: Mode, sum: &Counts) -> String {
    let connections: u64 = sum.connections.values().sum();
    let faults = &sum.faults;
    format!(
        "{:<14} {:>9} messages {:>12} bytes {:>8} requests {:>7} connections; reordered {} lost {} \
         duplicated {} leaked {} corrupt {}, unexpected ends {}",
        mode.name(),
        sum.messages,
        sum.bytes,
        sum.requests,
        connections,
        faults.reordered,
        faults.lost,
        faults.duplicated,
        faults.leaked,
        faults.corrupt,
        sum.unexpected
    )
}

/// What came of the modes, in their order.
struct Modes<'a> {
    lanes: &'a [Lane],
    sums: &'a [Counts],
    /// The proxy's counters.
    accelerated: &'a [serde_json::Map<String, Value>],
}

fn finish(
    args: &Args,
    seed: u64,
    all: &Modes<'_>,
    memory: &[memory::Found],
    kills: &[kills::Found],
) -> anyhow::Result<()> {
    let mut ok = true;
    let mut modes = Vec::new();
    let lanes = all.lanes.iter().zip(all.sums).zip(all.accelerated);
    for ((lane, sum), accelerated) in lanes {
        ui::result(line(lane.mode, sum));
        let counted = accelerated
            .iter()
            .filter(|(_, value)| value.as_f64() != Some(0.0));
        for (name, value) in counted {
            ui::say(format_args!("    {name} {value}"));
        }
        for (outcome, count) in &sum.connections {
            ui::say(format_args!("    {outcome}: {count}"));
        }
        for note in &sum.notes {
            ui::result(format_args!("    {note}"));
        }
        ok &= sum.ok();
        modes.push(object(lane.mode, sum, accelerated.clone())?);
    }
    for found in memory {
        ui::result(found);
        ok &= found.ok();
    }
    for found in kills {
        ui::result(found);
        ok &= found.ok();
    }
    let report = json!({
        "seed": seed,
        "minutes": args.minutes,
        "ok": ok,
        "modes": modes,
        "memory": memory,
        "kills": kills,
    });
    conclude(args, seed, ok, &report)
}

fn finish_programs(args: &Args, seed: u64, found: &[programs::Found]) -> anyhow::Result<()> {
    for one in found {
        ui::result(one);
    }
    let ok = found.iter().all(programs::Found::ok);
    let report = json!({
        "seed": seed,
        "minutes": args.minutes,
        "ok": ok,
        "programs": found,
    });
    conclude(args, seed, ok, &report)
}

fn conclude(args: &Args, seed: u64, ok: bool, report: &Value) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(report)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let verdict = if ok {
        green("every byte was where it belongs")
    } else {
        red("not everything was as it should be")
    };
    ui::result(format_args!("{verdict} (seed {seed})"));
    if ok { Ok(()) } else { Err(Reported.into()) }
}

fn object(
    mode: Mode,
    sum: &Counts,
    accelerated: serde_json::Map<String, Value>,
) -> anyhow::Result<Value> {
    let mut object = serde_json::to_value(sum).context("encoding the report")?;
    let Value::Object(fields) = &mut object else {
        bail!("the report is no object");
    };
    fields.insert("capture".to_owned(), json!(mode.capture));
    fields.insert("acceleration".to_owned(), json!(mode.acceleration));
    fields.insert("accelerated".to_owned(), Value::Object(accelerated));
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_chosen_by_its_name() {
        assert_eq!(chosen(&[]).unwrap().len(), 6);
        let one = chosen(&["iptables:off".to_owned()]).unwrap();
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].name(), "iptables:off");
        assert!(chosen(&["ebpf".to_owned()]).is_err());
    }
}
