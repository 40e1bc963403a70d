//! The sample with stock Envoys, whichever way they stand beside it: who calls whom, what is asked, what must come back.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::http::{Client, Request};
use millrace_testkit::mesh::{Mesh, MeshPod, Sidecar};
use millrace_testkit::{Cluster, Host, Node, Pod, PodOptions, Process, envoy, until};
use serde_json::{Value, json};

const PORT: u16 = 9080;
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
/// The user whose connections the rules leave alone.
pub(crate) const UID: u32 = 1337;
pub(crate) const SOON: Duration = Duration::from_secs(30);
const REQUESTS: u32 = 800;

/// The services' addresses in the sample: stock Envoy answers no DNS.
const fn at(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 90, number)), PORT)
}
const DETAILS: SocketAddr = at(1);
const RATINGS: SocketAddr = at(2);
const REVIEWS: SocketAddr = at(3);
const PRODUCTPAGE: SocketAddr = at(4);

/// The pods, and what runs in them; a client that runs nothing comes last.
pub(crate) fn pods() -> Vec<(&'static str, Vec<String>)> {
    let url = |at: SocketAddr| format!("http://{at}");
    let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let reviews = |version: &str| -> Vec<String> {
        text(&["reviews", "--version", version, "--ratings", &url(RATINGS)])
    };
    let page = [
        "productpage",
        "--details",
        &url(DETAILS),
        "--reviews",
        &url(REVIEWS),
        "--ratings",
        &url(RATINGS),
    ];
    vec![
        ("details-v1", text(&["details"])),
        ("ratings-v1", text(&["ratings"])),
        ("reviews-v1", reviews("v1")),
        ("reviews-v2", reviews("v2")),
        ("reviews-v3", reviews("v3")),
        ("productpage-v1", text(&page)),
        ("client", Vec::new()),
    ]
}

fn example(name: &str) -> anyhow::Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples/bookinfo");
    let path = root.join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// A running Envoy, which is asked on its host's loopback.
pub(crate) struct Envoy(Process);

impl Envoy {
    /// Waits until it serves something.
    pub(crate) fn ready(mut process: Process, host: &Host) -> anyhow::Result<Self> {
        until(SOON, || {
            process.ensure_running()?;
            let ready = host.get(ADMIN, "admin", "/ready")?;
            ensure!(ready.status == 200, "{}", ready.text());
            Ok(())
        })
        .context("waiting for an Envoy")?;
        Ok(Self(process))
    }

    /// What it printed.
    pub(crate) fn log(&self) -> String {
        self.0.log()
    }
}

/// Sums a counter of an Envoy's over all whose names match.
pub(crate) fn counted(host: &Host, filter: &str) -> anyhow::Result<u64> {
    let path = format!("/stats?format=json&filter={filter}");
    let page = host.get(ADMIN, "admin", &path)?.json()?;
    let stats = page["stats"].as_array().context("no stats")?;
    Ok(stats.iter().filter_map(|stat| stat["value"].as_u64()).sum())
}

/// What an Envoy says of a kind of its configuration.
pub(crate) fn dumped(host: &Host, resource: &str) -> anyhow::Result<String> {
    let path = format!("/config_dump?resource={resource}");
    Ok(host.get(ADMIN, "admin", &path)?.json()?.to_string())
}

/// Pilot, a bare place for pods, and the programs.
pub(crate) struct Bookinfo {
    pub(crate) mesh: Mesh,
    envoy: PathBuf,
    program: PathBuf,
}

impl Bookinfo {
    pub(crate) fn new(envoy: &Path) -> anyhow::Result<Self> {
        // Envoy opens its log anew, and its user may not open what root gave it for an output.
        let mesh = Mesh::start_with(&Cluster::new()?, "accessLogFile: /dev/null\n")?;
        mesh.pilot()
            .apply("bookinfo.yaml", &example("bookinfo.yaml")?)?;
        Ok(Self {
            envoy: mesh.cluster().executable(envoy)?,
            program: mesh.cluster().binary("millrace-bookinfo")?,
            mesh,
        })
    }

    /// A captured pod with an application of the sample, or with none. `prepare` is called before pilot knows of it.
    pub(crate) fn pod(
        &self,
        node: &Node,
        name: &str,
        arguments: &[String],
        prepare: impl FnOnce(&Pod) -> anyhow::Result<()>,
    ) -> anyhow::Result<(MeshPod, Option<Process>)> {
        let (app, version) = name.rsplit_once('-').unwrap_or((name, ""));
        let options = PodOptions::named(name)
            .label("app", app)
            .label("version", version)
            .service_account(&format!("bookinfo-{app}"))
            .port("http", PORT);
        let (pod, app) = self.mesh.pod(node, options, |pod| {
            prepare(pod)?;
            if arguments.is_empty() {
                return Ok(None);
            }
            let mut command = Command::new(&self.program);
            command.args(arguments);
            let app = pod.launch("app", command)?.uid(1000).spawn()?;
            until(SOON, || pod.connect(pod.at(PORT))).context("waiting for the application")?;
            Ok(Some(app))
        })?;
        Sidecar::capture(&self.mesh, &pod, &[])?;
        Ok((pod, app))
    }

    /// An Envoy that takes everything from pilot in this variant, as a command line.
    pub(crate) fn envoy(
        &self,
        name: &str,
        (id, metadata): (&str, Value),
        api_type: &str,
    ) -> anyhow::Result<Vec<String>> {
        let pilot = self.mesh.pilot().xds_url();
        let pilot: SocketAddr = pilot.trim_start_matches("http://").parse()?;
        let mut bootstrap = envoy::bootstrap(id, api_type, pilot);
        bootstrap["node"]["metadata"] = metadata;
        bootstrap["admin"] = json!({ "address": {
            "socket_address": { "address": ADMIN.ip(), "port_value": ADMIN.port() },
        } });
        let directory = self.mesh.cluster().id().state_dir();
        let file = directory.join(format!("{name}.json"));
        fs::write(&file, bootstrap.to_string()).context("writing a bootstrap")?;
        let fixed = ["--disable-hot-restart", "--log-level", "warning"];
        let mut line = vec![self.envoy.display().to_string()];
        line.extend(fixed.map(str::to_owned));
        line.extend(["--concurrency", "1", "-c"].map(str::to_owned));
        line.push(file.display().to_string());
        Ok(line)
    }

    fn rule(&self, files: &[&str]) -> anyhow::Result<()> {
        let texts: Vec<String> = files
            .iter()
            .map(|file| example(file))
            .collect::<Result<_, _>>()?;
        self.mesh.pilot().apply("rule.yaml", &texts.join("\n---\n"))
    }

    /// Calls as the rules change under load: every request succeeds and goes where they say. `asked` is where the
    /// Envoy of productpage is asked.
    pub(crate) fn judge(&self, client: &Host, asked: &Host) -> anyhow::Result<()> {
        let all = until(SOON, || split(client, 30))?;
        ensure!(all.len() == 3, "without a rule: {all:?}");
        let subset =
            |version: &str| format!("outbound|{PORT}|{version}|reviews.default.svc.cluster.local");
        let knows = |version: &str| {
            let routes = dumped(asked, "dynamic_route_configs")?;
            anyhow::Ok(routes.contains(&subset(version)))
        };
        let rules: [&[&str]; 2] = [
            &["rules/split-50-50.yaml"],
            &[
                "rules/destination-rules.yaml",
                "rules/virtual-service-50-50.yaml",
            ],
        ];
        for files in rules {
            self.rule(&["rules/all-v1.yaml"])?;
            until(SOON, || {
                let there = knows("v1")? && !knows("v3")?;
                ensure!(there, "the rule has not arrived");
                Ok(())
            })?;
            let counts = split(client, 50)?;
            ensure!(
                counts == [("reviews-v1".to_owned(), 50)].into(),
                "{counts:?}"
            );
            self.rule(files)?;
            until(SOON, || {
                // Every request while it changes must succeed too.
                let counts = split(client, 5)?;
                ensure!(knows("v3")?, "the rule has not arrived: {counts:?}");
                Ok(())
            })?;
            let counts = split(client, REQUESTS)?;
            ensure!(is_halved(&counts), "{files:?}: {counts:?}");
        }
        // Both sides saw the calls: they were captured, and went through the route of the service.
        let called = counted(asked, "cluster.outbound.*reviews.*upstream_rq_200")?;
        ensure!(called > 0, "productpage's Envoy saw no call to reviews");
        let came = counted(asked, "cluster.inbound.*upstream_rq_200")?;
        ensure!(came > 0, "productpage's Envoy saw no call to productpage");
        Ok(())
    }
}

/// An Envoy has taken all that it was told.
pub(crate) fn nothing_was_refused(name: &str, host: &Host) -> anyhow::Result<()> {
    let refused = counted(host, "update_rejected")?;
    ensure!(refused == 0, "{name} refused something");
    let told = counted(host, "update_success")?;
    ensure!(told > 0, "{name} was told nothing");
    Ok(())
}

/// Which pods of reviews answer, each how often. Every request succeeds.
fn split(client: &Host, requests: u32) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut counts = BTreeMap::new();
    let mut connection = Client::connect(client, PRODUCTPAGE)?;
    let request = Request::get("productpage:9080", "/api/v1/products/0/reviews");
    for _ in 0..requests {
        let response = connection.send(&request)?;
        ensure!(
            response.status == 200,
            "{}: {}",
            response.status,
            response.text()
        );
        let answer = response.json()?;
        let pod = answer["podname"].as_str().context("no podname")?;
        *counts.entry(pod.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

/// Half of the requests each, within four standard deviations.
fn is_halved(counts: &BTreeMap<String, u32>) -> bool {
    let names: Vec<&str> = counts.keys().map(String::as_str).collect();
    let half = f64::from(REQUESTS) / 2.0;
    let limit = 4.0 * (half / 2.0).sqrt();
    names == ["reviews-v1", "reviews-v3"]
        && counts
            .values()
            .all(|count| (f64::from(*count) - half).abs() <= limit)
}
