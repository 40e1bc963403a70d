//! A Rust toolchain that can build `core` for the kernel's instruction set.
//!
//! Ordinarily rustup's nightly with its `rust-src`. Where that cannot be had, Debian's own build of
//! rustc with its matching library sources does the same; a release compiler is let use the unstable
//! `-Z build-std` by `RUSTC_BOOTSTRAP`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::packages;
use super::{Mode, Outcome};
use crate::run;
use crate::ui;
use crate::workspace::find_program;

/// Debian's compiler, cargo and library sources: always of one version in one release.
const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Its clippy, which building does without.
const CLIPPY: &str = "rust-web-clippy";

/// The oldest release that compiles the kernel programs' dependencies.
const OLDEST: (u32, u32) = (1, 87);

/// A cargo and rustc for kernel programs.
#[derive(Clone, Debug)]
pub(crate) struct KernelToolchain {
    /// The cargo to run.
    pub(crate) cargo: PathBuf,
    /// The rustc that cargo is to run.
    pub(crate) rustc: PathBuf,
    /// Whether `RUSTC_BOOTSTRAP=1` is needed for unstable options.
    pub(crate) bootstrap: bool,
    /// The major version of the LLVM whose bitcode it writes.
    pub(crate) llvm: u32,
    description: String,
}

impl KernelToolchain {
    /// The clippy that belongs to the compiler, if it is there.
    pub(crate) fn clippy(&self) -> Option<PathBuf> {
        let driver = self.rustc.with_file_name("clippy-driver");
        driver.is_file().then_some(driver)
    }

    /// Whether it is rustup's.
    fn is_rustups(&self) -> bool {
        !self.bootstrap
    }
}

/// The first toolchain that is complete and whose bitcode a `bpf-linker` can read.
pub(crate) fn find() -> Option<KernelToolchain> {
    nightly().or_else(debian)
}

pub(super) fn provide(mode: Mode) -> anyhow::Result<Outcome> {
    let before = find();
    if let Some(found) = &before
        && (found.clippy().is_some() || mode == Mode::Check)
    {
        return Ok(Outcome::Found(found.description.clone()));
    }
    if mode == Mode::Check {
        return Ok(Outcome::Missing(
            "rustup's nightly with rust-src, or Debian's rustc-web, cargo-web and rust-web-src"
                .to_owned(),
        ));
    }
    let debian_has = |package| packages::has_apt() && packages::candidate(package).is_some();
    if before.is_none() {
        if debian_has(PACKAGES[0]) {
            packages::install(&PACKAGES)?;
        } else {
            install_nightly()?;
        }
    }
    let Some(found) = find() else {
        bail!("what was installed cannot build for the kernel");
    };
    if found.clippy().is_none() {
        if found.is_rustups() {
            let args = ["component", "add", "clippy", "--toolchain", "nightly"];
            run::check(run::foreign("rustup").args(args))
                .context("adding clippy to the nightly")?;
        } else if debian_has(CLIPPY) {
            packages::install(&[CLIPPY])?;
        } else {
            // Building goes without; linting says that it was skipped.
            return Ok(Outcome::Found(found.description));
        }
    }
    Ok(Outcome::Installed(found.description))
}

fn install_nightly() -> anyhow::Result<()> {
    if find_program("rustup").is_none() {
        bail!("neither rustup nor a distribution with rustc-web is here");
    }
    ui::say("installing rustup's nightly with rust-src");
    let args = [
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ];
    run::check(run::foreign("rustup").args(args)).context("installing rustup's nightly")
}

fn nightly() -> Option<KernelToolchain> {
    let rustup = find_program("rustup")?;
    let which = |tool: &str| -> Option<PathBuf> {
        let args = ["which", "--toolchain", "nightly", tool];
        Some(run::capture(run::foreign(&rustup).args(args)).ok()?.into())
    };
    let toolchain = examine(which("cargo")?, which("rustc")?, false)?;
    // Without a libLLVM at least as new no bpf-linker can be had here that reads its bitcode.
    super::linker::could_read(toolchain.llvm).then_some(toolchain)
}

fn debian() -> Option<KernelToolchain> {
    let (cargo, rustc) = (Path::new("/usr/bin/cargo"), Path::new("/usr/bin/rustc"));
    if !cargo.is_file() || !rustc.is_file() {
        return None;
    }
    examine(cargo.to_path_buf(), rustc.to_path_buf(), true)
}

/// The toolchain, if it is new enough and has the library sources.
fn examine(cargo: PathBuf, rustc: PathBuf, bootstrap: bool) -> Option<KernelToolchain> {
    let facts = run::capture(run::foreign(&rustc).arg("-vV")).ok()?;
    let fact = |name: &str| facts.lines().find_map(|line| line.strip_prefix(name));
    let release = fact("release: ")?;
    let llvm = fact("LLVM version: ")?.split('.').next()?.parse().ok()?;
    let mut parts = release.split('.').map(str::parse);
    let version: (u32, u32) = (parts.next()?.ok()?, parts.next()?.ok()?);
    let sysroot = run::capture(run::foreign(&rustc).args(["--print", "sysroot"])).ok()?;
    let sources = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    if version < OLDEST || !sources.is_dir() {
        return None;
    }
    let description = format!("rustc {release} with rust-src ({})", rustc.display());
    Some(KernelToolchain {
        cargo,
        rustc,
        bootstrap,
        llvm,
        description,
    })
}
