//! The other side: what runs inside the emulated machine, as its first process and as the one that runs the tests.
//!
//! Reads the [`Plan`], mounts what a node has mounted, loads modules, asks the agent what the kernel can do, runs
//! each test in a process of its own with a time limit, and writes [`Event`]s to the second serial port.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;
use rustix::system::{RebootCommand, finit_module, reboot};

use super::event::{Event, Finished, Outcome, PLAN, PORT, Plan};

/// What the kernel is told to give its first process as argument, and that process the second.
pub(crate) const FIRST: &str = "vm-guest";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What of a failed test's output is told: the end, where the reason is.
const TOLD: usize = 6000;

/// All else lies in the archive's memory, where programs may be at any path.
const MOUNTS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run the plan; without it this is the machine's first process.
    #[arg(long)]
    work: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.work {
        return work();
    }
    if std::process::id() != 1 {
        bail!("this runs inside the machine that `cargo xtask vmtest` boots");
    }
    let error = match first() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // The kernel's console is all that is left; when this process ends, the kernel panics and the machine stops.
    eprintln!("vmtest: {error:#}");
    Err(error)
}

/// The first process: mounts, starts the work, reaps orphans until it has ended, switches the machine off.
fn first() -> anyhow::Result<Infallible> {
    for (kind, at) in MOUNTS {
        fs::create_dir_all(at).with_context(|| format!("making {at}"))?;
        let none: Option<&str> = None;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("mounting {kind} at {at}"))?;
    }
    let port = OpenOptions::new()
        .write(true)
        .open(PORT)
        .with_context(|| format!("opening {PORT}"))?;
    let worker = Command::new("/proc/self/exe")
        .args([FIRST, "--work"])
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/tmp")
        .env("TMPDIR", "/tmp")
        .stdin(Stdio::null())
        .stdout(port)
        .spawn()
        .context("starting the work")?;
    let worker = Pid::from_raw(i32::try_from(worker.id())?);
    loop {
        match wait().context("waiting for processes")? {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) if pid == worker => break,
            _ => {}
        }
    }
    nix::unistd::sync();
    // Whoever booted the machine has it end when it starts anew.
    reboot(RebootCommand::Restart).context("restarting the machine")?;
    bail!("the machine did not restart")
}

fn work() -> anyhow::Result<()> {
    let outcome = follow_plan();
    match &outcome {
        Ok(()) => tell(&Event::Done),
        Err(error) => tell(&Event::Trouble {
            text: format!("{error:#}"),
        }),
    }
}

fn follow_plan() -> anyhow::Result<()> {
    let plan = fs::read(PLAN).with_context(|| format!("reading {PLAN}"))?;
    let plan: Plan = serde_json::from_slice(&plan).with_context(|| format!("reading {PLAN}"))?;
    let troubles = plan
        .modules
        .iter()
        .filter_map(|module| Some(format!("{:#}", load(module).err()?)))
        .collect();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the release")?;
    let release = release.trim().to_owned();
    tell(&Event::Booted { release, troubles })?;
    // As on any machine; nothing else of this namespace is used.
    let ip = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    if !ip.context("running ip")?.success() {
        bail!("lo cannot be set up");
    }
    tell(&Event::Probed {
        report: probe(&plan.agent)?,
    })?;
    let tests = list(&plan)?;
    tell(&Event::Listed { tests: tests.len() })?;
    for (program, suite, test) in tests {
        let name = format!("{suite}::{test}");
        tell(&Event::Started { test: name.clone() })?;
        let started = Instant::now();
        let outcome = run_one(program, &test, plan.patience)?;
        tell(&Event::Finished(Finished {
            test: name,
            outcome,
            seconds: started.elapsed().as_secs_f64(),
        }))?;
    }
    Ok(())
}

fn load(module: &Path) -> anyhow::Result<()> {
    let file = File::open(module).with_context(|| format!("opening {}", module.display()))?;
    match finit_module(&file, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("loading {}", module.display())),
    }
}

fn probe(agent: &Path) -> anyhow::Result<serde_json::Value> {
    let output = Command::new(agent)
        .arg("probe")
        .output()
        .context("running the agent")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("millrace-agent probe: {}: {}", output.status, said.trim());
    }
    serde_json::from_slice(&output.stdout).context("what millrace-agent probe printed")
}

/// The tests to run: program, suite, name.
fn list(plan: &Plan) -> anyhow::Result<Vec<(&Path, &str, String)>> {
    let mut tests = Vec::new();
    for (suite, program) in &plan.suites {
        let output = Command::new(program)
            .args(["--list", "--format", "terse"])
            .output()
            .with_context(|| format!("running {suite}"))?;
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in listed.lines() {
            let Some(test) = line.strip_suffix(": test") else {
                continue;
            };
            let name = format!("{suite}::{test}");
            let named = |words: &[String]| words.iter().any(|word| name.contains(word));
            if (plan.filters.is_empty() || named(&plan.filters)) && !named(&plan.skip) {
                tests.push((program.as_path(), suite.as_str(), test.to_owned()));
            }
        }
    }
    Ok(tests)
}

fn run_one(program: &Path, test: &str, patience: Duration) -> anyhow::Result<Outcome> {
    let path = Path::new("/run/output");
    let output = File::create(path).context("making a file for the output")?;
    let mut child = Command::new(program)
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("the output's descriptor")?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let status = wait_for(&mut child, patience)?;
    let output = fs::read(path).context("reading the output")?;
    Ok(judge(status, &String::from_utf8_lossy(&output)))
}

/// Waits until the child ends; ends it, and what it started in its process group, when time is up.
fn wait_for(child: &mut Child, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().context("waiting for a test")? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let group = Pid::from_raw(i32::try_from(child.id())?);
    killpg(group, Signal::SIGKILL).context("ending a test")?;
    child.wait().context("waiting for a test")?;
    Ok(None)
}

fn judge(status: Option<ExitStatus>, output: &str) -> Outcome {
    let end = |output: &str| {
        let from = output.len().saturating_sub(TOLD);
        let from = (from..=output.len()).find(|at| output.is_char_boundary(*at));
        output[from.unwrap_or_default()..].trim().to_owned()
    };
    let Some(status) = status else {
        return Outcome::TimedOut {
            output: end(output),
        };
    };
    if !status.success() {
        return Outcome::Failed {
            output: format!("{}\n({status})", end(output)),
        };
    }
    let said = |what: &str| {
        let line = output.lines().find_map(|line| line.split_once(what))?.1;
        // The harness's line ends with the test's name.
        let reason = line.rsplit_once(" [").map_or(line, |(reason, _)| reason);
        Some(reason.to_owned())
    };
    if let Some(reason) = said("SKIP: ") {
        Outcome::Skipped { reason }
    } else if let Some(reason) = said("N/A: ") {
        Outcome::NotApplicable { reason }
    } else {
        Outcome::Passed
    }
}

fn tell(event: &Event) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(event).context("an event as JSON")?;
    line.push(b'\n');
    let mut port = std::io::stdout().lock();
    port.write_all(&line).context("telling the host")?;
    port.flush().context("telling the host")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_test_that_skips_has_not_passed() {
        let judge = |code: i32, text| judge(Some(ExitStatus::from_raw(code << 8)), text);
        assert_eq!(judge(0, "test a ... ok"), Outcome::Passed);
        let reason = "no tool".to_owned();
        let skipped = judge(0, "running 1 test\ntest a ... SKIP: no tool [a]\nok");
        assert_eq!(skipped, Outcome::Skipped { reason });
        let reason = "ktls: none (seen: x)".to_owned();
        let impossible = judge(0, "test a ... N/A: ktls: none (seen: x) [a]\nok");
        assert_eq!(impossible, Outcome::NotApplicable { reason });
        assert!(matches!(judge(101, "SKIP: x"), Outcome::Failed { .. }));
        assert!(matches!(super::judge(None, ""), Outcome::TimedOut { .. }));
    }
}
