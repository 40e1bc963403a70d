//! `cargo xtask stress --programs`: real programs as the applications, with their own clients, while the
//! pods' acceleration is switched between `auto`, `off` and `on`. Every body is compared.

mod caller;
mod catalog;
mod drive;
mod files;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::{PodOptions, Process, until};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};

use self::catalog::{Place, Program, Target};
use self::drive::{Drive, Tally};
use self::files::File;
use crate::setup::Programs;
use crate::ui::{self, Step};

pub(super) use caller::{Args as AskArgs, run as ask};

const PORT: u16 = 8080;
/// Until a program answers; a Java compiler may have work before.
const START: Duration = Duration::from_mins(2);
/// Programs that are called at a time.
const AT_ONCE: usize = 4;
/// For how long a client calls.
const SECONDS: u64 = 5;
/// Settings, in their order; each holds for [`super::FLIP`].
const SETTINGS: [&str; 6] = ["auto", "auto", "off", "auto", "on", "auto"];
/// Records of the access log that are shown.
const FAILURES: usize = 20;
const ACCELERATION: &str = "millrace.io/acceleration";

/// Which programs there are to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Names; none is all.
    pub(super) names: &'a [String],
    /// Leave those out that cannot be got here.
    pub(super) if_reachable: bool,
}

/// What came of one program.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Found {
    program: &'static str,
    #[serde(flatten)]
    tally: Tally,
    /// Requests by client.
    clients: BTreeMap<&'static str, u64>,
    /// What the agent counts of the server's pod.
    server: Value,
    /// And of its clients'.
    client: Value,
}

impl Found {
    /// Nothing wrong, by its clients and by the kernel's counters.
    pub(super) fn ok(&self) -> bool {
        let clean = |pod: &Value| {
            pod["mixed"] == 0 && pod["stalled"] == 0 && pod["suspended"] == json!(false)
        };
        self.tally.ok() && self.tally.requests > 0 && clean(&self.server) && clean(&self.client)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tally, .. } = self;
        write!(
            f,
            "{:<10} {:>8} requests {:>12} bytes; promoted {} at the server {} at its clients, redirected {} + {} \
             messages; mismatches {} errors {} stalls {}",
            self.program,
            tally.requests,
            tally.bytes,
            self.server["promoted"],
            self.client["promoted"],
            self.server["redirected_messages"],
            self.client["redirected_messages"],
            tally.mismatches,
            tally.errors,
            tally.stalls,
        )?;
        for note in &tally.notes {
            write!(f, "\n    {note}")?;
        }
        Ok(())
    }
}

/// A program that serves, and the pod that its clients are started in.
struct Lane<'a> {
    program: Program,
    host: String,
    address: SocketAddr,
    dir: PathBuf,
    files: PathBuf,
    process: Process,
    server: Arc<MeshPod>,
    client: Arc<MeshPod>,
    node: &'a MeshNode,
    /// How often a client was started; the next one is chosen by it.
    turns: usize,
    tally: Tally,
    clients: BTreeMap<&'static str, u64>,
}

/// What the lanes have in common.
struct Setting<'a> {
    programs: Programs,
    mesh: &'a Mesh,
    node: &'a MeshNode,
    /// This very program, where pods may execute it.
    this: &'a Path,
    seed: u64,
    run: u32,
}

/// Calls programs for so long, each by each of its clients at least once.
///
/// # Errors
///
/// If a program that was asked for cannot be started, or none can.
pub(super) fn stress(
    mesh: &Mesh,
    this: &Path,
    wanted: &Wanted<'_>,
    (seed, minutes): (u64, f64),
) -> anyhow::Result<Vec<Found>> {
    let node = mesh.node("programs")?;
    let [a, b, c, d, ..] = (seed ^ seed >> 32).to_le_bytes();
    let setting = Setting {
        programs: Programs::open()?,
        mesh,
        node: &node,
        this,
        seed,
        run: u32::from_le_bytes([a, b, c, d]),
    };
    let lanes = {
        let _step = Step::begin("start programs");
        start_all(&setting, wanted)?
    };
    let _step = Step::begin("call programs");
    let lanes = call_all(&setting, lanes, minutes)?;
    let found = lanes.into_iter().map(Lane::found);
    let found = found.collect::<anyhow::Result<Vec<_>>>()?;
    if !found.iter().all(Found::ok) {
        tell_failures(&node.log());
    }
    Ok(found)
}

/// What the access log has of requests that were not answered as they should be.
fn tell_failures(log: &str) {
    let records = log.lines().filter_map(|line| {
        let record: Value = serde_json::from_str(line).ok()?;
        let code = record["response_code"].as_u64()?;
        let fine = (code == 200 || code == 0) && record["response_flags"] == "-";
        (!fine).then_some(line)
    });
    for line in records.take(FAILURES) {
        ui::say(format_args!("    {line}"));
    }
}

fn chosen(wanted: &[String]) -> anyhow::Result<Vec<Program>> {
    for name in wanted {
        let known = Program::ALL.iter().any(|program| program.name() == name);
        let all = Program::ALL.map(Program::name).join(", ");
        ensure!(known, "no program {name}; there are {all}");
    }
    let is_wanted =
        |program: &Program| wanted.is_empty() || wanted.iter().any(|name| program.name() == name);
    Ok(Program::ALL.into_iter().filter(is_wanted).collect())
}

fn start_all<'a>(setting: &Setting<'a>, wanted: &Wanted<'_>) -> anyhow::Result<Vec<Lane<'a>>> {
    let mut lanes: Vec<Lane<'a>> = Vec::new();
    for (number, program) in (1..).zip(chosen(wanted.names)?) {
        let provided = program.provide(&setting.programs);
        if let (Err(error), true) = (&provided, wanted.if_reachable) {
            ui::result(format_args!("SKIP: {}: {error:#}", program.name()));
            continue;
        }
        provided.with_context(|| format!("getting {}", program.name()))?;
        let echo = lanes.iter().find(|lane| lane.program.echoes());
        let echo = echo.map(|lane| (lane.address, lane.host.clone()));
        let lane = Lane::start(setting, program, number, echo);
        lanes.push(lane.with_context(|| format!("starting {}", program.name()))?);
    }
    ensure!(!lanes.is_empty(), "no program can be got here");
    Ok(lanes)
}

impl<'a> Lane<'a> {
    fn start(
        setting: &Setting<'a>,
        program: Program,
        number: u8,
        echo: Option<(SocketAddr, String)>,
    ) -> anyhow::Result<Self> {
        let name = program.name();
        let service = format!("program-{name}");
        let host = format!("{service}.default.svc.cluster.local");
        let address = IpAddr::from(Ipv4Addr::new(10, 96, 60, number));
        let options = |pod: String| {
            PodOptions::named(&pod)
                .annotation("millrace.io/capture", "ebpf")
                .annotation(ACCELERATION, "auto")
        };
        let at_server = options(format!("server-{name}"));
        let at_server = at_server
            .label("app", &service)
            .port(program.protocol(), PORT);
        let server = setting.node.pod(at_server)?;
        let dir = server.log_dir().join("work");
        let files = dir.join("files");
        File::write_all(&files, setting.run)?;
        ensure!(
            echo.is_some() || !program.passes_on(),
            "it passes bodies on to another program, and there is none"
        );
        let (echo, echo_host) = echo.unwrap_or(((address, PORT).into(), String::new()));
        let mut command = program.serve(&Place {
            programs: &setting.programs,
            dir: &dir,
            files: &files,
            port: PORT,
            echo,
            echo_host: &echo_host,
        })?;
        command.current_dir(&dir);
        let manifest = manifest(&service, address, program.protocol());
        let pilot = setting.mesh.pilot();
        pilot.apply(&format!("{service}.yaml"), &manifest)?;
        let mut launch = server.launch("program", command)?;
        if let Some(uid) = program.uid() {
            launch = launch.uid(uid);
        }
        let process = launch.spawn()?;
        let client = setting.node.pod(options(format!("client-{name}")))?;
        let mut lane = Self {
            program,
            host,
            address: SocketAddr::new(address, PORT),
            dir,
            files,
            process,
            server: Arc::new(server),
            client: Arc::new(client),
            node: setting.node,
            turns: 0,
            tally: Tally::default(),
            clients: BTreeMap::new(),
        };
        lane.await_service()?;
        Ok(lane)
    }

    /// Waits until the program answers by way of the proxy.
    fn await_service(&mut self) -> anyhow::Result<()> {
        let at_home = (Ipv4Addr::LOCALHOST, PORT).into();
        until(START, || {
            self.process.ensure_running()?;
            self.server.connect(at_home).map(drop)
        })?;
        if self.program.protocol() != "http" {
            return until(START, || self.client.connect(self.address).map(drop));
        }
        let file = File::list(&self.files)?.pop().context("no file")?;
        until(START, || {
            let path = format!("/f/{}", file.name());
            let answer = self.client.get(self.address, &self.host, &path)?;
            ensure!(
                answer.status == 200 && answer.body.len() == file.length,
                "status {}, {} bytes",
                answer.status,
                answer.body.len()
            );
            Ok(())
        })
    }

    fn drives(&self, setting: &Setting<'_>) -> anyhow::Result<Vec<Drive>> {
        self.program.drives(&Target {
            programs: &setting.programs,
            this: setting.this,
            dir: &self.dir,
            files: &self.files,
            at: self.address,
            host: &self.host,
            seconds: SECONDS,
            seed: setting.seed.wrapping_add(self.turns as u64),
            run: setting.run,
        })
    }

    /// Runs the client whose turn it is; whether each has had one.
    fn call(&mut self, setting: &Setting<'_>) -> anyhow::Result<bool> {
        let mut drives = self.drives(setting)?;
        let count = drives.len();
        let drive = drives.swap_remove(self.turns % count);
        self.turns += 1;
        let name = drive.name;
        let output = self.client.output(clone(&drive.command))?;
        let tally = drive.judge(&output).unwrap_or_else(|error| Tally {
            errors: 1,
            notes: vec![format!("{error:#}")],
            ..Tally::default()
        });
        if !tally.ok() {
            ui::say(format_args!(
                "    {} by {name}: {:?}",
                self.program.name(),
                tally.notes
            ));
        }
        *self.clients.entry(name).or_default() += tally.requests;
        self.tally.add(&tally);
        Ok(self.turns >= count)
    }

    fn found(self) -> anyhow::Result<Found> {
        let counted = |pod: &MeshPod| {
            Ok::<_, anyhow::Error>(self.node.pod_status(pod)?["accelerated"].clone())
        };
        Ok(Found {
            program: self.program.name(),
            server: counted(&self.server)?,
            client: counted(&self.client)?,
            tally: self.tally,
            clients: self.clients,
        })
    }
}

/// A command that can be started once more.
fn clone(command: &Command) -> Command {
    let mut other = Command::new(command.get_program());
    other.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    other
}

/// A few lanes at a time, each in its turn, until the time is over and every client was there.
fn call_all<'a>(
    setting: &Setting<'_>,
    lanes: Vec<Lane<'a>>,
    minutes: f64,
) -> anyhow::Result<Vec<Lane<'a>>> {
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let pods: Vec<_> = lanes
        .iter()
        .flat_map(|lane| [lane.server.clone(), lane.client.clone()])
        .collect();
    let lanes: Vec<Mutex<Lane<'a>>> = lanes.into_iter().map(Mutex::new).collect();
    let next = Mutex::new((0..lanes.len()).collect::<VecDeque<_>>());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..AT_ONCE.min(lanes.len()))
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    loop {
                        let Some(index) = next.lock().pop_front() else {
                            return Ok(());
                        };
                        let all = lanes[index].lock().call(setting)?;
                        if !all || Instant::now() < end {
                            next.lock().push_back(index);
                        }
                    }
                })
            })
            .collect();
        let flips = scope.spawn(|| flip(&pods, &over));
        let results: Vec<_> = callers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        over.store(true, Ordering::Relaxed);
        let flipped = flips.join();
        for result in results.into_iter().chain([flipped]) {
            result.map_err(|_| anyhow::anyhow!("a caller panicked"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(lanes.into_iter().map(Mutex::into_inner).collect())
}

/// Switches the setting of all pods until the callers are done.
fn flip(pods: &[Arc<MeshPod>], over: &AtomicBool) -> anyhow::Result<()> {
    for setting in SETTINGS.into_iter().cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        for pod in pods {
            pod.annotate(ACCELERATION, setting)?;
        }
        thread::sleep(super::FLIP);
    }
    Ok(())
}

/// The service, as a Kubernetes object.
fn manifest(name: &str, address: IpAddr, protocol: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "clusterIP": address,
            "selector": { "app": name },
            "ports": [{ "name": protocol, "port": PORT, "targetPort": PORT }],
        },
    })
    .to_string()
}
