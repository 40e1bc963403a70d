//! Real programs for the stress, in the cache and nowhere else: Debian's packages unpacked but not installed,
//! a Python environment, what Go compiles. A program that is on the machine is used as it is.

use std::env::consts::ARCH;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::packages;
use crate::run;
use crate::ui;
use crate::workspace::{cache_dir, find_program};

const PYTHON: [&str; 5] = [
    "aiohttp==3.14.5",
    "gunicorn==27.0.1",
    "redis==8.1.0",
    "requests==2.34.2",
    "uvicorn==0.54.0",
];

/// Where real programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// The place in the cache; nothing is fetched yet.
    ///
    /// # Errors
    ///
    /// If the directory cannot be made.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let dir = cache_dir()?.join("programs");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// A program of these Debian packages: the machine's own, else unpacked.
    ///
    /// # Errors
    ///
    /// If it is on neither the machine nor in the package sources.
    pub(crate) fn debian(&self, program: &str, packages: &[&str]) -> anyhow::Result<Command> {
        if let Some(path) = find_program(program) {
            return Ok(Command::new(path));
        }
        let root = self.unpacked(packages)?;
        let places = ["usr/sbin", "usr/bin"].map(|dir| root.join(dir).join(program));
        let found = places.into_iter().find(|path| path.is_file());
        let found = found.with_context(|| format!("{} has no {program}", packages.join(", ")))?;
        let mut command = Command::new(found);
        let libraries = root.join("usr/lib").join(format!("{ARCH}-linux-gnu"));
        command.env("LD_LIBRARY_PATH", libraries);
        Ok(command)
    }

    /// The directory where these packages are unpacked.
    ///
    /// # Errors
    ///
    /// If a package cannot be fetched.
    pub(crate) fn unpacked(&self, packages: &[&str]) -> anyhow::Result<PathBuf> {
        let root = self.dir.join("debian");
        for package in packages {
            let mark = root.join(format!("{package}.unpacked"));
            if !mark.is_file() {
                unpack(package, &root).with_context(|| format!("fetching {package}"))?;
                fs::write(&mark, "").with_context(|| format!("writing {}", mark.display()))?;
            }
        }
        Ok(root)
    }

    /// A program of the Python environment.
    ///
    /// # Errors
    ///
    /// If the environment cannot be made.
    pub(crate) fn python(&self, program: &str) -> anyhow::Result<Command> {
        let environment = self.dir.join("python");
        let mark = environment.join("requirements");
        let wanted = PYTHON.join("\n");
        if fs::read_to_string(&mark).ok().as_deref() != Some(wanted.as_str()) {
            ui::say(format_args!("installing {} from PyPI", PYTHON.join(", ")));
            let mut make = run::foreign("python3");
            run::capture(make.args(["-m", "venv", "--clear"]).arg(&environment))
                .context("making a Python environment")?;
            let pip = environment.join("bin/pip");
            run::check(run::foreign(&pip).args(["install", "--quiet"]).args(PYTHON))
                .context("installing Python packages")?;
            fs::write(&mark, wanted).with_context(|| format!("writing {}", mark.display()))?;
        }
        Ok(Command::new(environment.join("bin").join(program)))
    }

    /// What Go makes of a program of one file.
    ///
    /// # Errors
    ///
    /// If there is no Go, or it is too old.
    pub(crate) fn go(&self, name: &str, source: &str) -> anyhow::Result<Command> {
        let go = find_program("go").context("there is no Go on this machine")?;
        let (binary, file) = (self.dir.join(name), self.dir.join(format!("{name}.go")));
        if !binary.is_file() || fs::read_to_string(&file).ok().as_deref() != Some(source) {
            fs::write(&file, source).with_context(|| format!("writing {}", file.display()))?;
            fs::remove_file(&binary).ok();
            let mut build = run::foreign(go);
            build.env("GO111MODULE", "on").env("GOFLAGS", "");
            build.env("CGO_ENABLED", "0");
            run::capture(build.arg("build").arg("-o").arg(&binary).arg(&file))
                .with_context(|| format!("compiling {name}"))?;
        }
        Ok(Command::new(binary))
    }

    /// Java with these packages' libraries.
    ///
    /// # Errors
    ///
    /// If there is no Java, or a package cannot be fetched.
    pub(crate) fn java(&self, packages: &[&str], jars: &[&str]) -> anyhow::Result<Command> {
        let java = find_program("java").context("there is no Java on this machine")?;
        ensure!(find_program("javac").is_some(), "this Java has no compiler");
        let root = self.unpacked(packages)?;
        let mut path = OsString::new();
        for jar in jars {
            let jar = root.join("usr/share/java").join(jar);
            ensure!(jar.is_file(), "no {}", jar.display());
            path.push(jar);
            path.push(":");
        }
        let mut command = Command::new(java);
        command.arg("-cp").arg(path);
        Ok(command)
    }

    /// A program that the machine has or not.
    ///
    /// # Errors
    ///
    /// If it has not.
    pub(crate) fn present(program: &str) -> anyhow::Result<Command> {
        let path = find_program(program)
            .with_context(|| format!("there is no {program} on this machine"))?;
        Ok(Command::new(path))
    }
}

fn unpack(package: &str, root: &Path) -> anyhow::Result<()> {
    if !packages::has_apt() {
        bail!("Debian's packages come through apt-get, which is not here");
    }
    ui::say(format_args!("downloading {package}"));
    let fetched = root.join(format!("{package}.fetched"));
    fs::remove_dir_all(&fetched).ok();
    fs::create_dir_all(&fetched).with_context(|| format!("making {}", fetched.display()))?;
    packages::download(package, &fetched)?;
    let archive = fs::read_dir(&fetched)
        .with_context(|| format!("reading {}", fetched.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get brought no file")?;
    run::check(run::foreign("dpkg-deb").arg("-x").arg(&archive).arg(root)).context("unpacking")?;
    fs::remove_dir_all(&fetched).with_context(|| format!("removing {}", fetched.display()))
}
