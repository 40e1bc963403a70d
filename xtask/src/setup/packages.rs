//! Programs of the system, from the distribution's packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use super::{Mode, Outcome};
use crate::run;
use crate::ui;
use crate::workspace::find_program;

/// What is run, and the Debian package it is in.
const PROGRAMS: [(&str, &str); 10] = [
    ("bpftool", "bpftool"),
    ("cc", "build-essential"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("python3", "python3"),
    ("sysctl", "procps"),
    ("tcpdump", "tcpdump"),
    ("wrk", "wrk"),
];

pub(super) fn provide(mode: Mode) -> anyhow::Result<Outcome> {
    let missing = missing();
    if missing.is_empty() {
        let names = PROGRAMS.map(|(program, _)| program);
        return Ok(Outcome::Found(names.join(", ")));
    }
    if mode == Mode::Check || !has_apt() {
        return Ok(Outcome::Missing(format!(
            "install the packages: {}",
            missing.join(" ")
        )));
    }
    install(&missing)?;
    let still = self::missing();
    if still.is_empty() {
        Ok(Outcome::Installed(missing.join(", ")))
    } else {
        Ok(Outcome::Missing(format!(
            "apt-get did not provide: {}",
            still.join(" ")
        )))
    }
}

fn missing() -> Vec<&'static str> {
    PROGRAMS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect()
}

/// Whether packages can be installed here at all.
pub(super) fn has_apt() -> bool {
    find_program("apt-get").is_some()
}

/// Installs Debian packages, as root or through sudo where that asks nothing.
pub(super) fn install(packages: &[&str]) -> anyhow::Result<()> {
    let wanted = packages.join(" ");
    ui::say(format_args!("installing packages: {wanted}"));
    // Lists that were never fetched, or name versions that are gone, are the usual failure.
    run::check(apt()?.args(["update", "-qq"])).context("updating the package lists")?;
    run::check(
        apt()?
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages),
    )
    .with_context(|| format!("installing {wanted}"))
}

/// The versions of `package` that could be installed; empty when the distribution has none.
pub(super) fn candidate(package: &str) -> Option<String> {
    let shown = run::capture(run::foreign("apt-cache").args(["policy", package])).ok()?;
    let line = shown
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (line != "(none)").then(|| line.to_owned())
}

fn apt() -> anyhow::Result<Command> {
    let mut command = if nix::unistd::geteuid().is_root() {
        run::foreign("apt-get")
    } else if Path::new("/usr/bin/sudo").is_file() {
        let mut sudo = run::foreign("sudo");
        sudo.args([
            "--non-interactive",
            "--preserve-env=DEBIAN_FRONTEND",
            "apt-get",
        ]);
        sudo
    } else {
        bail!("installing packages needs root");
    };
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "Dpkg::Use-Pty=0"]);
    Ok(command)
}
