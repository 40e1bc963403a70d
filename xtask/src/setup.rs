//! `cargo xtask setup`: finds what building, testing and measuring need, installs what is missing,
//! and says what it did. Running it again changes nothing.

mod envoy;
mod grpc;
mod kernel;
mod kubernetes;
mod linker;
mod machine;
mod packages;
mod programs;
mod python;
mod rust;

use std::fmt;

use anyhow::bail;

use crate::ui::{self, bold, dim, green, red};

pub(crate) use envoy::find as find_envoy;
pub(crate) use grpc::find as find_grpc;
pub(crate) use kernel::{KernelToolchain, find as find_kernel_toolchain};
pub(crate) use kubernetes::find as find_kubernetes;
pub(crate) use linker::find as find_linker;
pub(crate) use machine::{KernelPackage, kernel_package};
pub(crate) use programs::Programs;

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Install nothing; fail if something is missing.
    #[arg(long)]
    check: bool,
}

/// What became of one thing that is needed.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It was there.
    Found(String),
    /// It was installed now.
    Installed(String),
    /// It is not there; the text says how to get it.
    Missing(String),
}

impl Outcome {
    fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found(what) => write!(f, "{} {}", green("found    "), dim(what)),
            Self::Installed(what) => write!(f, "{} {what}", bold("installed")),
            Self::Missing(how) => write!(f, "{} {how}", red("missing  ")),
        }
    }
}

/// Whether a step may change the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Check,
    Install,
}

/// One thing that is needed, and how to get it.
struct Item {
    name: &'static str,
    provide: fn(Mode) -> anyhow::Result<Outcome>,
}

/// In the order of installation: later ones use earlier ones.
const ITEMS: [Item; 7] = [
    Item {
        name: "system programs",
        provide: packages::provide,
    },
    Item {
        name: "rust components",
        provide: rust::provide,
    },
    Item {
        name: "rust for the kernel",
        provide: kernel::provide,
    },
    Item {
        name: "bpf-linker",
        provide: linker::provide,
    },
    Item {
        name: "stock Envoy",
        provide: envoy::provide,
    },
    Item {
        name: "gRPC's own client",
        provide: grpc::provide,
    },
    KUBERNETES,
];

/// What only a mesh on Kubernetes needs.
const KUBERNETES: Item = Item {
    name: "Kubernetes' servers",
    provide: kubernetes::provide,
};

/// What only booting other kernels needs.
const MACHINE: [Item; 1] = [Item {
    name: "emulated machine",
    provide: machine::provide,
}];

/// How many of the items, from the first, a build needs.
const FOR_BUILD: usize = 4;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mode = if args.check {
        Mode::Check
    } else {
        Mode::Install
    };
    provide(&ITEMS, mode, Report::All)
}

/// What a build needs; silent about what is there.
pub(crate) fn ensure_for_build() -> anyhow::Result<()> {
    provide(&ITEMS[..FOR_BUILD], Mode::Install, Report::Changes)
}

/// Everything; silent about what is there.
pub(crate) fn ensure_all() -> anyhow::Result<()> {
    provide(&ITEMS, Mode::Install, Report::Changes)
}

/// What booting other kernels needs, beside what a build does; silent about what is there.
pub(crate) fn ensure_for_machine() -> anyhow::Result<()> {
    ensure_for_build()?;
    provide(&MACHINE, Mode::Install, Report::Changes)
}

/// The servers of a Kubernetes control plane; silent about what is there.
pub(crate) fn ensure_for_kubernetes() -> anyhow::Result<()> {
    provide(&[KUBERNETES], Mode::Install, Report::Changes)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Report {
    All,
    Changes,
}

fn provide(items: &[Item], mode: Mode, report: Report) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for item in items {
        let outcome = match (item.provide)(mode) {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Missing(format!("{error:#}")),
        };
        if report == Report::All || !matches!(outcome, Outcome::Found(_)) {
            ui::say(format_args!("{:<20} {outcome}", item.name));
        }
        if outcome.is_missing() {
            missing.push(item.name);
        }
    }
    if !missing.is_empty() {
        let hint = if mode == Mode::Check {
            "; `cargo xtask setup` installs what it can"
        } else {
            ""
        };
        bail!("missing: {}{hint}", missing.join(", "));
    }
    Ok(())
}
