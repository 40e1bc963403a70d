//! The articles' rules, one after the other: each is shown, applied, seen on the admin port, measured.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use millrace_testkit::mesh::Mesh;
use millrace_testkit::until;

use super::bookinfo::{Bookinfo, PORT, call, examples};
use super::narrate::Narrator;
use super::split::Split;
use crate::client::Called;

/// How long a rule may take to reach the proxies.
const REACH: Duration = Duration::from_secs(10);

/// The service whose rules change.
const REVIEWS: &str = "reviews.default.svc.cluster.local";

/// One rule, and what it leads to.
pub(super) struct Step {
    pub(super) title: &'static str,
    /// Files of the example, the rule itself last.
    files: &'static [&'static str],
    /// Which pods answer, with which share.
    shares: &'static [(&'static str, f64)],
    /// Versions that the route names, with their weights out of 100.
    versions: &'static [(&'static str, u32)],
    /// Whether reviews v1 has three replicas from here on.
    scale: bool,
}

pub(super) const STEPS: [Step; 5] = [
    Step {
        title: "Everything to reviews v1 (RouteRule)",
        files: &["rules/all-v1.yaml"],
        shares: &[("reviews-v1", 1.0)],
        versions: &[("v1", 100)],
        scale: false,
    },
    Step {
        title: "Half to v1, half to v3 (RouteRule)",
        files: &["rules/split-50-50.yaml"],
        shares: &[("reviews-v1", 0.5), ("reviews-v3", 0.5)],
        versions: &[("v1", 50), ("v3", 50)],
        scale: false,
    },
    Step {
        title: "A canary: 99 % to v1, 1 % to v3 (RouteRule)",
        files: &["rules/split-99-1.yaml"],
        shares: &[("reviews-v1", 0.99), ("reviews-v3", 0.01)],
        versions: &[("v1", 99), ("v3", 1)],
        scale: false,
    },
    Step {
        title: "Half and half again (VirtualService and DestinationRule)",
        files: &[
            "rules/destination-rules.yaml",
            "rules/virtual-service-50-50.yaml",
        ],
        shares: &[("reviews-v1", 0.5), ("reviews-v3", 0.5)],
        versions: &[("v1", 50), ("v3", 50)],
        scale: false,
    },
    Step {
        title: "Three replicas of v1, balanced by the proxy",
        files: &[
            "rules/destination-rules.yaml",
            "rules/virtual-service-v1.yaml",
        ],
        shares: &[
            ("reviews-v1", 1.0 / 3.0),
            ("reviews-v1-2", 1.0 / 3.0),
            ("reviews-v1-3", 1.0 / 3.0),
        ],
        versions: &[("v1", 100)],
        scale: true,
    },
];

impl Step {
    /// Which pods answer, with which share.
    pub(super) fn shares(&self) -> &'static [(&'static str, f64)] {
        self.shares
    }
}

pub(super) fn show(
    step: &Step,
    mesh: &Mesh,
    bookinfo: &mut Bookinfo,
    requests: u64,
    narrator: &Narrator,
) -> anyhow::Result<Split> {
    narrator.title(step.title);
    if step.scale {
        bookinfo.scale()?;
    }
    let started = Instant::now();
    apply(step, mesh, narrator)?;
    let page = admin_page(step, bookinfo)?;
    let reached = started.elapsed();
    narrator.quote("GET 127.0.0.1:15000/clusters on node-a, for reviews", &page);
    narrator.say(format_args!(
        "the rule reached both proxies in {reached:.0?}"
    ));
    let split = measure(step.title, step.shares, bookinfo, requests, narrator)?;
    bookinfo.ensure_running()?;
    Ok(split)
}

/// Puts the step's files in the place of the last step's.
fn apply(step: &Step, mesh: &Mesh, narrator: &Narrator) -> anyhow::Result<()> {
    let mut texts = Vec::new();
    for file in step.files {
        let path = examples().join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        texts.push(text);
    }
    let rule = texts.last().context("a step without a file")?;
    let without_comments: Vec<&str> = rule.lines().filter(|line| !line.starts_with('#')).collect();
    narrator.quote(
        step.files.last().unwrap_or(&""),
        &without_comments.join("\n"),
    );
    mesh.pilot()
        .apply("reviews-rule.yaml", &texts.join("\n---\n"))
}

/// Waits until every proxy routes as the step says and has its clusters' hosts, and returns what the
/// first one shows.
fn admin_page(step: &Step, bookinfo: &Bookinfo) -> anyhow::Result<String> {
    let mut pages = Vec::new();
    for node in &bookinfo.nodes {
        let page = until(REACH, || {
            routes_as(step, &node.admin("/routes")?.text())?;
            let page = node.admin("/clusters")?.text();
            let shown = reviews_lines(&page);
            hosts_as(step, bookinfo, &shown)?;
            anyhow::Ok(shown.join("\n"))
        });
        pages.push(page.with_context(|| format!("waiting for {}", node.name()))?);
    }
    pages.into_iter().next().context("no node")
}

/// Fails unless every pod of the step's versions is shown as a host of its version's cluster.
fn hosts_as(step: &Step, bookinfo: &Bookinfo, shown: &[String]) -> anyhow::Result<()> {
    for (version, _) in step.versions {
        let hosts = bookinfo.apps.iter().filter(|app| {
            let label = |key: &str| app.pod.options().labels.get(key).map(String::as_str);
            label("app") == Some("reviews") && label("version") == Some(version)
        });
        for app in hosts {
            let address = app.pod.at(PORT).to_string();
            let listed = shown
                .iter()
                .any(|line| line.contains(&format!("|{version}|")) && line.contains(&address));
            if !listed {
                bail!(
                    "{} is not shown as a host of reviews {version}",
                    app.pod.name()
                );
            }
        }
    }
    Ok(())
}

/// Fails unless the route of reviews names the step's versions with their weights, and no other.
fn routes_as(step: &Step, page: &str) -> anyhow::Result<()> {
    let cluster = |version: &str| format!("outbound|{PORT}|{version}|{REVIEWS}");
    let expected = match step.versions {
        [(version, _)] => cluster(version),
        several => {
            let parts: Vec<String> = several
                .iter()
                .map(|(version, weight)| format!("{} {weight}/100", cluster(version)))
                .collect();
            parts.join(", ")
        }
    };
    let mut routes = page
        .lines()
        .filter(|line| line.contains(&format!("::{REVIEWS}:{PORT} (")));
    let suffix = format!("::{expected}");
    match routes.next() {
        Some(route) if route.ends_with(&suffix) => Ok(()),
        Some(route) => bail!("the route is still {route}"),
        None => bail!("no route of {REVIEWS} is shown"),
    }
}

/// The lines of interest: each host of each reviews cluster with how often it was asked.
fn reviews_lines(page: &str) -> Vec<String> {
    page.lines()
        .filter(|line| line.contains(REVIEWS))
        .filter(|line| line.contains("::rq_total::") || line.contains("::health_flags::"))
        .map(str::to_owned)
        .collect()
}

/// Calls reviews through the product page from a plain client on each node.
pub(super) fn measure(
    name: &str,
    shares: &[(&str, f64)],
    bookinfo: &Bookinfo,
    requests: u64,
    narrator: &Narrator,
) -> anyhow::Result<Split> {
    let (mut counts, mut errors) = (BTreeMap::new(), BTreeMap::new());
    for called in call_from_all(bookinfo, requests, narrator)? {
        for (to, from) in [(&mut counts, called.counts), (&mut errors, called.errors)] {
            for (key, count) in from {
                *to.entry(key).or_insert(0) += count;
            }
        }
    }
    let expected: Vec<_> = shares
        .iter()
        .map(|(who, share)| ((*who).to_owned(), *share))
        .collect();
    let split = Split::judge(name, &expected, &counts, errors);
    for share in &split.shares {
        narrator.check(
            share.ok,
            format_args!(
                "{:<13} {:>6} of {} = {:>6.2} %, expected {:>6.2} % ({:.1} standard deviations off)",
                share.who,
                share.measured,
                split.requests,
                percent(share.measured, split.requests),
                share.expected * 100.0,
                share.sigmas
            ),
        );
    }
    for (error, count) in &split.errors {
        narrator.check(false, format_args!("{count} requests failed: {error}"));
    }
    Ok(split)
}

/// Makes the requests, with one client on each node at the same time.
fn call_from_all(
    bookinfo: &Bookinfo,
    requests: u64,
    narrator: &Narrator,
) -> anyhow::Result<Vec<Called>> {
    let url = format!("http://productpage:{PORT}/api/v1/products/0/reviews");
    narrator.say(format_args!(
        "{requests} requests to {url} from plain clients on both nodes"
    ));
    let each = requests.div_ceil(bookinfo.clients.len() as u64).to_string();
    let arguments = [
        "--requests",
        &each,
        "--connections",
        "8",
        "--count-by",
        "/podname",
    ];
    thread::scope(|scope| {
        let running: Vec<_> = bookinfo
            .clients
            .iter()
            .map(|client| scope.spawn(|| call(client, &url, &arguments)))
            .collect();
        running
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| bail!("a client's thread panicked"))
            })
            .collect()
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn percent(count: u64, total: u64) -> f64 {
    count as f64 / total.max(1) as f64 * 100.0
}
