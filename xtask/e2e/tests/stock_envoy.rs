//! Stock Envoys as the sidecars of Bookinfo, captured by `millrace-agent init` and served by our pilot: traffic is
//! split as the rules say, also when they change under load, and nothing that pilot serves is refused.
//!
//! Needs `MILLRACE_ENVOY`.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::http::{Client, Request};
use millrace_testkit::mesh::{Mesh, MeshPod, Sidecar};
use millrace_testkit::skip::skip;
use millrace_testkit::{Cluster, Node, PodOptions, Process, envoy, require, until};
use serde_json::{Value, json};

const PORT: u16 = 9080;
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
/// The user whose connections the rules leave alone.
const UID: u32 = 1337;
const SOON: Duration = Duration::from_secs(30);
const REQUESTS: u32 = 800;

/// The services' addresses in the sample: stock Envoy answers no DNS.
const fn at(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 90, number)), PORT)
}
const DETAILS: SocketAddr = at(1);
const RATINGS: SocketAddr = at(2);
const REVIEWS: SocketAddr = at(3);
const PRODUCTPAGE: SocketAddr = at(4);

fn example(name: &str) -> anyhow::Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples/bookinfo");
    let path = root.join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// A pod with its application and an Envoy, which go before it.
struct Member {
    _envoy: Process,
    _app: Option<Process>,
    pod: MeshPod,
}

impl Member {
    /// Sums a counter of Envoy's over all whose names match.
    fn counted(&self, filter: &str) -> anyhow::Result<u64> {
        let path = format!("/stats?format=json&filter={filter}");
        let page = self.pod.get(ADMIN, "admin", &path)?.json()?;
        let stats = page["stats"].as_array().context("no stats")?;
        Ok(stats.iter().filter_map(|stat| stat["value"].as_u64()).sum())
    }

    /// Whether Envoy's routes name this.
    fn routes_name(&self, text: &str) -> anyhow::Result<bool> {
        let path = "/config_dump?resource=dynamic_route_configs";
        let page = self.pod.get(ADMIN, "admin", path)?.json()?;
        Ok(page.to_string().contains(text))
    }
}

struct Bookinfo {
    mesh: Mesh,
    node: Node,
    envoy: PathBuf,
    program: PathBuf,
}

impl Bookinfo {
    fn new(envoy: &Path) -> anyhow::Result<Self> {
        // Envoy opens its log anew, and its user may not open what root gave it for an output.
        let mesh = Mesh::start_with(&Cluster::new()?, "accessLogFile: /dev/null\n")?;
        mesh.pilot()
            .apply("bookinfo.yaml", &example("bookinfo.yaml")?)?;
        Ok(Self {
            node: mesh.cluster().node("bare")?,
            envoy: mesh.cluster().executable(envoy)?,
            program: mesh.cluster().binary("millrace-bookinfo")?,
            mesh,
        })
    }

    /// A pod with an application of the sample, or with none.
    fn member(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Member> {
        let (app, version) = name.rsplit_once('-').unwrap_or((name, ""));
        let options = PodOptions::named(name)
            .label("app", app)
            .label("version", version)
            .service_account(&format!("bookinfo-{app}"))
            .port("http", PORT);
        let (pod, app) = self.mesh.pod(&self.node, options, |pod| {
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
        let bootstrap = self
            .mesh
            .cluster()
            .id()
            .state_dir()
            .join(format!("{name}.json"));
        fs::write(&bootstrap, self.bootstrap(&pod)?.to_string()).context("writing a bootstrap")?;
        let mut command = Command::new(&self.envoy);
        command
            .args(["--disable-hot-restart", "--log-level", "warning"])
            .args(["--concurrency", "1", "-c"])
            .arg(&bootstrap);
        let mut envoy = pod.launch("envoy", command)?.uid(UID).spawn()?;
        until(SOON, || {
            envoy.ensure_running()?;
            let ready = pod.get(ADMIN, "admin", "/ready")?;
            ensure!(ready.status == 200, "{}", ready.text());
            Ok(())
        })
        .with_context(|| format!("waiting for the Envoy of {name}"))?;
        Ok(Member {
            _envoy: envoy,
            _app: app,
            pod,
        })
    }

    fn bootstrap(&self, pod: &MeshPod) -> anyhow::Result<Value> {
        let pilot = self.mesh.pilot().xds_url();
        let pilot: SocketAddr = pilot.trim_start_matches("http://").parse()?;
        let id = format!(
            "sidecar~{}~{}.default~default.svc.cluster.local",
            pod.ip(),
            pod.name()
        );
        let mut bootstrap = envoy::bootstrap(&id, "DELTA_GRPC", pilot);
        bootstrap["admin"] = json!({ "address": {
            "socket_address": { "address": ADMIN.ip(), "port_value": ADMIN.port() },
        } });
        Ok(bootstrap)
    }

    fn rule(&self, files: &[&str]) -> anyhow::Result<()> {
        let texts: Vec<String> = files
            .iter()
            .map(|file| example(file))
            .collect::<Result<_, _>>()?;
        self.mesh.pilot().apply("rule.yaml", &texts.join("\n---\n"))
    }
}

/// Which pods of reviews answer, each how often. Every request succeeds.
fn split(client: &MeshPod, requests: u32) -> anyhow::Result<BTreeMap<String, u32>> {
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

#[test]
fn bookinfo_runs_behind_stock_envoys() -> anyhow::Result<()> {
    require!(cluster);
    let Some(envoy) = std::env::var_os("MILLRACE_ENVOY") else {
        return skip("MILLRACE_ENVOY is unset");
    };
    let bookinfo = Bookinfo::new(Path::new(&envoy))?;
    let url = |at: SocketAddr| format!("http://{at}");
    let (details, ratings, reviews) = (url(DETAILS), url(RATINGS), url(REVIEWS));
    let of_version = |name: &str, version: &str| {
        let arguments = ["reviews", "--version", version, "--ratings", &ratings];
        bookinfo.member(name, &arguments)
    };
    let page = [
        "productpage",
        "--details",
        &details,
        "--reviews",
        &reviews,
        "--ratings",
        &ratings,
    ];
    let members = [
        bookinfo.member("details-v1", &["details"])?,
        bookinfo.member("ratings-v1", &["ratings"])?,
        of_version("reviews-v1", "v1")?,
        of_version("reviews-v2", "v2")?,
        of_version("reviews-v3", "v3")?,
        bookinfo.member("productpage-v1", &page)?,
        bookinfo.member("client", &[])?,
    ];
    let [.., product, client] = &members;

    let all = until(SOON, || split(&client.pod, 30))?;
    ensure!(all.len() == 3, "without a rule: {all:?}");
    let subset =
        |version: &str| format!("outbound|{PORT}|{version}|reviews.default.svc.cluster.local");
    let rules: [&[&str]; 2] = [
        &["rules/split-50-50.yaml"],
        &[
            "rules/destination-rules.yaml",
            "rules/virtual-service-50-50.yaml",
        ],
    ];
    for files in rules {
        bookinfo.rule(&["rules/all-v1.yaml"])?;
        until(SOON, || {
            let there =
                product.routes_name(&subset("v1"))? && !product.routes_name(&subset("v3"))?;
            ensure!(there, "the rule has not arrived");
            Ok(())
        })?;
        let counts = split(&client.pod, 50)?;
        ensure!(
            counts == [("reviews-v1".to_owned(), 50)].into(),
            "{counts:?}"
        );
        bookinfo.rule(files)?;
        until(SOON, || {
            // Every request while it changes must succeed too.
            let counts = split(&client.pod, 5)?;
            let there = product.routes_name(&subset("v3"))?;
            ensure!(there, "the rule has not arrived: {counts:?}");
            Ok(())
        })?;
        let counts = split(&client.pod, REQUESTS)?;
        ensure!(is_halved(&counts), "{files:?}: {counts:?}");
    }

    for member in &members {
        let name = member.pod.name();
        ensure!(
            member.counted("update_rejected")? == 0,
            "{name} refused something"
        );
        ensure!(
            member.counted("update_success")? > 0,
            "{name} was told nothing"
        );
    }
    // Both sides saw the calls: they were captured, and went through the route of the service.
    let asked = product.counted("cluster.outbound.*reviews.*upstream_rq_200")?;
    ensure!(asked > 0, "productpage's Envoy saw no call to reviews");
    let came = product.counted("cluster.inbound.*upstream_rq_200")?;
    ensure!(came > 0, "productpage's Envoy saw no call to productpage");
    Ok(())
}
