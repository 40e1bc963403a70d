//! Programs of the system, from the distribution's packages.

use std::cmp::Reverse;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use super::{Mode, Outcome};
use crate::run;
use crate::ui;
use crate::workspace::find_program;

/// What is run, and the Debian package it is in.
const PROGRAMS: [(&str, &str); 11] = [
    ("bpftool", "bpftool"),
    ("cc", "build-essential"),
    ("curl", "curl"),
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
    provide_programs(&PROGRAMS, mode)
}

/// Finds programs, given with the packages they are in, or installs those.
pub(super) fn provide_programs(
    programs: &[(&str, &'static str)],
    mode: Mode,
) -> anyhow::Result<Outcome> {
    let missing = missing(programs);
    if missing.is_empty() {
        let names: Vec<&str> = programs.iter().map(|(program, _)| *program).collect();
        return Ok(Outcome::Found(names.join(", ")));
    }
    if mode == Mode::Check || !has_apt() {
        return Ok(Outcome::Missing(format!(
            "install the packages: {}",
            missing.join(" ")
        )));
    }
    install(&missing)?;
    let still = self::missing(programs);
    if still.is_empty() {
        Ok(Outcome::Installed(missing.join(", ")))
    } else {
        Ok(Outcome::Missing(format!(
            "apt-get did not provide: {}",
            still.join(" ")
        )))
    }
}

fn missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    programs
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
    update()?;
    run::check(
        apt()?
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages),
    )
    .with_context(|| format!("installing {wanted}"))
}

/// Fetches the lists of packages anew.
pub(super) fn update() -> anyhow::Result<()> {
    run::check(apt()?.args(["update", "-qq"])).context("updating the package lists")
}

/// Fetches a package's archive into `dir` without installing it.
pub(super) fn download(package: &str, dir: &Path) -> anyhow::Result<()> {
    // Asks for no privilege, and the archive shall be the caller's own.
    let fetch = || {
        run::check(
            run::foreign("apt-get")
                .current_dir(dir)
                // Another user's directory is closed to the one that root's downloads are made as.
                .args(["-o", "APT::Sandbox::User=root"])
                .args(["download", "-qq", package]),
        )
    };
    if fetch().is_err() {
        update()?;
        fetch().with_context(|| format!("downloading {package}"))?;
    }
    Ok(())
}

/// Packages that can be installed and whose names begin and end so, with their versions, newest first.
pub(super) fn newest_first(prefix: &str, suffix: &str) -> anyhow::Result<Vec<(String, String)>> {
    let names = run::capture(run::foreign("apt-cache").args(["pkgnames", prefix]))?;
    let mut found: Vec<(String, String)> = names
        .lines()
        .filter(|name| name.starts_with(prefix) && name.ends_with(suffix))
        .filter_map(|name| Some((name.to_owned(), candidate(name)?)))
        .collect();
    found.sort_by_key(|(name, _)| Reverse(numbers(name)));
    Ok(found)
}

/// The numbers in a name, by which releases of a kernel are ordered.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_number() {
        assert!(
            numbers("linux-image-6.1.0-56-cloud-amd64")
                > numbers("linux-image-6.1.0-9-cloud-amd64")
        );
        assert!(
            numbers("linux-image-6.12.100+deb12-amd64")
                > numbers("linux-image-6.12.57+deb13-amd64")
        );
    }
}
