//! `cargo xtask test`: every check and every test, weakest and fastest first.

mod demo;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::tally::Tally;
use crate::ui::{self, Reported, Step, green, red, seconds};
use crate::{build, dependencies, layout, lint, run, setup, workspace};

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Run only these stages.
    #[arg(value_parser = STAGES.map(|stage| stage.name))]
    stages: Vec<String>,
}

/// A part of the whole, named as on the command line.
struct Stage {
    name: &'static str,
    run: fn() -> anyhow::Result<Tally>,
}

const STAGES: [Stage; 13] = [
    Stage {
        name: "setup",
        run: || Ok(Tally::of(&setup::ensure_all())),
    },
    Stage {
        name: "fmt",
        run: || Ok(Tally::of(&lint::fmt())),
    },
    Stage {
        name: "layout",
        run: || Ok(Tally::of(&layout::run())),
    },
    // Before everything that compiles the agent, which embeds them.
    Stage {
        name: "kernel-programs",
        run: || Ok(Tally::of(&build::kernel_programs())),
    },
    Stage {
        name: "clippy",
        run: || Ok(clippy()),
    },
    Stage {
        name: "dependencies",
        run: || Ok(Tally::of(&dependencies::run())),
    },
    // What the end-to-end tests run is what the demo and the bench run.
    Stage {
        name: "binaries",
        run: || Ok(Tally::of(&build::release_or_given().map(drop))),
    },
    Stage {
        name: "tests",
        run: tests,
    },
    Stage {
        name: "doctests",
        run: doctests,
    },
    Stage {
        name: "goldens",
        run: || Ok(Tally::of(&goldens())),
    },
    Stage {
        name: "e2e",
        run: e2e,
    },
    Stage {
        name: "stress",
        run: || Ok(Tally::of(&stress())),
    },
    Stage {
        name: "demo",
        run: || Ok(Tally::of(&demo::run())),
    },
];

/// Set for tests that must not be skipped.
const REQUIRE_ALL: &str = "MILLRACE_REQUIRE_ALL";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut total = Tally::default();
    let mut lines = Vec::new();
    for stage in &STAGES {
        if !args.stages.is_empty() && !args.stages.iter().any(|name| name == stage.name) {
            continue;
        }
        let started = Instant::now();
        let tally = {
            let _step = Step::begin(stage.name);
            (stage.run)().unwrap_or_else(|error| {
                ui::say(format_args!("error: {error:#}"));
                Tally {
                    failed: 1,
                    ..Tally::default()
                }
            })
        };
        lines.push(line(stage.name, &tally, started.elapsed()));
        total.add(&tally);
    }
    ui::say("");
    for line in total
        .not_applicable
        .iter()
        .chain(&total.skipped)
        .chain(&lines)
    {
        ui::say(line);
    }
    if requires_all() {
        total.failed += total.skipped.len() as u64;
    }
    ui::result(format_args!(
        "{} passed, {} failed",
        total.passed, total.failed
    ));
    if total.failed > 0 {
        Err(Reported.into())
    } else {
        Ok(())
    }
}

fn line(name: &str, tally: &Tally, time: Duration) -> String {
    let verdict = if tally.failed == 0 {
        green("ok    ")
    } else {
        red("FAILED")
    };
    let skipped = match tally.skipped.len() {
        0 => String::new(),
        count => format!(", {count} skipped"),
    };
    format!(
        "{verdict} {name:<16} {:>5} passed, {} failed{skipped} ({})",
        tally.passed,
        tally.failed,
        seconds(time)
    )
}

/// Whether a test that is skipped fails.
pub(crate) fn requires_all() -> bool {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|set| set == value);
    is("CI", "true") || is(REQUIRE_ALL, "1")
}

/// `cargo test` with what the tests look at in their environment.
fn cargo_test(args: &[&str]) -> anyhow::Result<Tally> {
    let mut cargo = run::cargo();
    cargo.args(["test", "--no-fail-fast"]).args(args);
    if std::env::var_os("MILLRACE_BIN_DIR").is_none() {
        cargo.env("MILLRACE_BIN_DIR", workspace::target_dir().join("release"));
    }
    if requires_all() {
        cargo.env(REQUIRE_ALL, "1");
    }
    if let Some(envoy) = setup::find_envoy() {
        cargo.env("MILLRACE_ENVOY", envoy);
    }
    if let Some(python) = setup::find_grpc() {
        cargo.env("MILLRACE_GRPC_PYTHON", python);
    }
    if let Some(servers) = setup::find_kubernetes() {
        cargo.env("KUBEBUILDER_ASSETS", servers);
    }
    Tally::run(&mut cargo)
}

/// The kernel programs are for another machine, the end-to-end tests and the fuzz targets have stages of
/// their own.
const ALL_BUT_E2E: [&str; 13] = [
    "--workspace",
    "--exclude",
    "millrace-ebpf",
    "--exclude",
    "millrace-e2e",
    "--exclude",
    "millrace-agent-fuzz",
    "--exclude",
    "millrace-proxy-fuzz",
    "--exclude",
    "millrace-controlplane-fuzz",
    "--exclude",
    "millrace-xds-fuzz",
];

fn clippy() -> Tally {
    let mut tally = Tally::of(&lint::clippy());
    let programs = lint::clippy_bpf();
    if matches!(programs, Ok(false)) {
        tally.skipped.push(lint::NO_CLIPPY_BPF.to_owned());
    } else {
        tally.add(&Tally::of(&programs.map(drop)));
    }
    tally
}

fn tests() -> anyhow::Result<Tally> {
    cargo_test(
        &[
            &ALL_BUT_E2E[..],
            &["--lib", "--bins", "--tests", "--examples"],
        ]
        .concat(),
    )
}

fn doctests() -> anyhow::Result<Tally> {
    cargo_test(&[&ALL_BUT_E2E[..], &["--doc"]].concat())
}

fn e2e() -> anyhow::Result<Tally> {
    // Every test runs a cluster of its own; more at a time than there are cores only wait.
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    cargo_test(&[
        "--package",
        "millrace-e2e",
        "--",
        "--test-threads",
        &threads.to_string(),
    ])
}

/// This program again, for another of its commands, with the binaries that the tests run.
fn this() -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    if std::env::var_os("MILLRACE_BIN_DIR").is_none() {
        command.env("MILLRACE_BIN_DIR", workspace::target_dir().join("release"));
    }
    Ok(command)
}

/// Real programs that the tests call, where the registries that have them are reachable.
const PROGRAMS: &str = "nginx,aiohttp,uvicorn";

/// Short runs of the stress, which judges itself and prints the seed that repeats it.
fn stress() -> anyhow::Result<()> {
    for arguments in [
        ["--minutes", "0.3", "--clients", "2", "--threads", "2"].as_slice(),
        &["--minutes", "0.3", "--if-reachable", "--programs", PROGRAMS],
    ] {
        run::check(this()?.arg("stress").args(arguments))?;
    }
    Ok(())
}

/// A golden that differs has failed its test; this finds the ones that nobody reviewed.
fn goldens() -> anyhow::Result<()> {
    let args = [
        "ls-files",
        "--others",
        "--",
        "*.snap.new",
        "*.golden.new",
        "*.pending-snap",
    ];
    let pending = run::capture(run::foreign("git").args(args)).unwrap_or_default();
    ensure!(
        pending.is_empty(),
        "goldens wait for review (`cargo xtask bless`):\n{pending}"
    );
    Ok(())
}

/// `cargo xtask bless`: runs the tests that have goldens, letting them rewrite those.
pub(crate) fn bless() -> anyhow::Result<()> {
    let mut cargo = run::cargo();
    cargo
        .arg("test")
        .args(ALL_BUT_E2E)
        .args(["--lib", "--bins", "--tests"]);
    cargo
        .env("INSTA_UPDATE", "always")
        .env("MILLRACE_BLESS", "1")
        .env_remove("CI");
    run::check(&mut cargo)?;
    let changed = run::capture(run::foreign("git").args([
        "status",
        "--short",
        "--",
        "*testdata*",
        "*.snap",
    ]))?;
    ui::result(if changed.is_empty() {
        "no golden changed".to_owned()
    } else {
        changed
    });
    Ok(())
}
