//! Routing: requests of one connection go where the rules say, rule changes reach the proxies at once,
//! and a rule that cannot be followed answers with the right flag.

use std::time::{Duration, Instant};

use anyhow::ensure;
use millrace_e2e::{Backend, Service};
use millrace_testkit::http::{Client, Request, Response};
use millrace_testkit::mesh::{Mesh, MeshNode, MeshPod};
use millrace_testkit::{Cluster, PodOptions, require, until};

const PORT: u16 = 9080;
const SOON: Duration = Duration::from_secs(10);

/// `reviews` in three versions on two nodes, and a client.
struct Reviews {
    client: MeshPod,
    service: Service,
    _backends: Vec<Backend>,
    nodes: Vec<MeshNode>,
    mesh: Mesh,
}

const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
";

impl Reviews {
    fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::new()?;
        let mesh = Mesh::start(&cluster)?;
        let nodes = vec![mesh.node("n1")?, mesh.node("n2")?];
        let service = Service::new("reviews", 1).port("http", PORT);
        service.apply(&mesh)?;
        let places = [("v1", 0), ("v2", 1), ("v3", 1)];
        let backends = places
            .iter()
            .map(|(version, node)| service.backend(&nodes[*node], version, "ebpf"));
        let backends = backends.collect::<anyhow::Result<Vec<_>>>()?;
        let client = nodes[0].pod(PodOptions::named("client"))?;
        Ok(Self {
            client,
            service,
            _backends: backends,
            nodes,
            mesh,
        })
    }

    fn rule(&self, yaml: &str) -> anyhow::Result<()> {
        self.mesh.pilot().apply("rule.yaml", yaml)
    }

    fn connect(&self) -> anyhow::Result<Client> {
        Client::connect(&self.client, self.service.at(PORT))
    }

    fn ask(&self, headers: &[(&str, &str)]) -> anyhow::Result<Response> {
        let mut request = Request::get("reviews:9080", "/reviews/0");
        for (name, value) in headers {
            request.headers.add(name, value);
        }
        self.connect()?.send(&request)
    }

    /// Waits until a request with these headers is answered by this pod.
    fn answered_by(&self, headers: &[(&str, &str)], server: &str) -> anyhow::Result<()> {
        until(SOON, || {
            let answer = self.ask(headers)?;
            let from = answer.headers.first("x-server").unwrap_or("-");
            ensure!(from == server, "{} from {from}", answer.status);
            Ok(())
        })
    }

    /// How many of 200 requests on one connection each version answered.
    fn split(&self) -> anyhow::Result<[usize; 3]> {
        let mut counts = [0; 3];
        let mut client = self.connect()?;
        for _ in 0..200 {
            let answer = client.send(&Request::get("reviews:9080", "/reviews/0"))?;
            let version = ["reviews-v1", "reviews-v2", "reviews-v3"]
                .iter()
                .position(|name| answer.headers.first("x-server") == Some(name));
            match version {
                Some(version) => counts[version] += 1,
                None => anyhow::bail!("{}: {}", answer.status, answer.text()),
            }
        }
        Ok(counts)
    }
}

fn route_rule(routes: &[(&str, u32)]) -> String {
    let routes = routes.iter().map(|(version, weight)| {
        format!("  - labels: {{version: {version}}}\n    weight: {weight}\n")
    });
    let routes = routes.collect::<Vec<_>>().concat();
    format!(
        "apiVersion: config.istio.io/v1alpha2\nkind: RouteRule\nmetadata: {{name: reviews, namespace: default}}\n\
         spec:\n  destination: {{name: reviews}}\n  precedence: 1\n  route:\n{routes}"
    )
}

#[test]
fn without_a_rule_every_version_answers() -> anyhow::Result<()> {
    require!(cluster);
    let reviews = Reviews::start()?;
    reviews.answered_by(&[], "reviews-v1")?;
    let counts = reviews.split()?;
    assert!(
        counts.iter().all(|count| (40..=95).contains(count)),
        "{counts:?}"
    );
    Ok(())
}

#[test]
fn a_route_rule_splits_requests_of_one_connection() -> anyhow::Result<()> {
    require!(cluster);
    let reviews = Reviews::start()?;
    reviews.rule(&route_rule(&[("v1", 50), ("v3", 50)]))?;
    reviews.answered_by(&[], "reviews-v3")?;
    let [v1, v2, v3] = until(SOON, || {
        let counts = reviews.split()?;
        ensure!(counts[1] == 0, "the rule has not arrived: {counts:?}");
        Ok(counts)
    })?;
    // Four standard deviations of 200 fair coins are 28.
    assert!(
        (72..=128).contains(&v1) && v2 == 0 && v1 + v3 == 200,
        "{v1} {v2} {v3}"
    );
    Ok(())
}

#[test]
fn a_virtual_service_matches_headers_and_falls_through() -> anyhow::Result<()> {
    require!(cluster);
    let reviews = Reviews::start()?;
    reviews.rule(&format!(
        "{SUBSETS}---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: default}}
spec:
  hosts: [reviews]
  http:
  - match: [{{headers: {{end-user: {{exact: jason}}}}}}]
    route: [{{destination: {{host: reviews, subset: v2}}}}]
  - route: [{{destination: {{host: reviews, subset: v1}}}}]
"
    ))?;
    // Without the rule every version answers, so one answer of the right one proves nothing.
    until(SOON, || {
        let counts = reviews.split()?;
        ensure!(
            counts == [200, 0, 0],
            "the rule has not arrived: {counts:?}"
        );
        Ok(())
    })?;
    reviews.answered_by(&[("end-user", "jason")], "reviews-v2")
}

#[test]
fn a_changed_rule_arrives_and_the_time_it_took_is_shown() -> anyhow::Result<()> {
    require!(cluster);
    let reviews = Reviews::start()?;
    reviews.rule(&route_rule(&[("v1", 100)]))?;
    reviews.answered_by(&[], "reviews-v1")?;
    // The clusters of every version are warm, so that only the route has to travel.
    reviews.rule(&route_rule(&[("v3", 100)]))?;
    reviews.answered_by(&[], "reviews-v3")?;
    let changed = Instant::now();
    reviews.rule(&route_rule(&[("v1", 100)]))?;
    reviews.answered_by(&[], "reviews-v1")?;
    println!("the change took {:?}", changed.elapsed());
    Ok(())
}

#[test]
fn a_route_to_nowhere_is_a_503_and_a_broken_file_changes_nothing() -> anyhow::Result<()> {
    require!(cluster);
    let reviews = Reviews::start()?;
    reviews.rule(&route_rule(&[("v1", 100)]))?;
    reviews.answered_by(&[], "reviews-v1")?;

    reviews.rule("apiVersion: config.istio.io/v1alpha2\nkind: RouteRule\nspec: [not, a, rule")?;
    let errors = until(SOON, || {
        let errors = reviews.mesh.pilot().debug("/debug/config_errors")?.text();
        ensure!(errors.contains("rule.yaml"), "{errors}");
        Ok(errors)
    })?;
    assert!(
        errors.contains("line"),
        "the file's line is named: {errors}"
    );
    assert_eq!(reviews.ask(&[])?.status, 200);

    reviews.rule(&route_rule(&[("v9", 100)]))?;
    let answer = until(SOON, || {
        let answer = reviews.ask(&[])?;
        ensure!(answer.status != 200, "the rule has not arrived");
        Ok(answer)
    })?;
    assert_eq!(answer.status, 503, "{}", answer.text());
    until(SOON, || {
        let log = reviews.nodes[0].log();
        ensure!(
            log.lines()
                .any(|line| line.contains("\"UH\"") || line.contains("\"NC\"")),
            "no flag is logged"
        );
        Ok(())
    })
}
