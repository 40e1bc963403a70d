//! What is said of whole configurations: the classic mistakes, and where they stand.

use super::*;

fn said(files: &[(&str, &str)]) -> Vec<String> {
    said_over(Analysis::new(MeshConfig::default()), files)
}

fn said_over(mut analysis: Analysis, files: &[(&str, &str)]) -> Vec<String> {
    for (name, text) in files {
        analysis.read(name, text);
    }
    let problems = analysis.problems();
    let shown = problems.iter().map(|problem| {
        let (severity, reason) = (problem.severity.as_str(), problem.reason.as_str());
        format!("{severity} {reason} {problem}")
    });
    shown.collect()
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  clusterIP: 10.96.0.7
  selector: {app: reviews}
  ports: [{port: 9080, name: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v1}
spec:
  selector: {matchLabels: {app: reviews, version: v1}}
  template:
    metadata: {labels: {app: reviews, version: v1}}
    spec: {containers: [{name: reviews, image: reviews}]}
";

const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 50}
    - {destination: {host: reviews, subset: v2}, weight: 40}
  - route: [{destination: {host: ratings}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v3, labels: {version: v3}}]
";

#[test]
fn the_classic_mistakes_are_told_with_their_place() {
    let unnamed = SERVICE.replace("name: http", "name: web");
    assert_eq!(
        said(&[("service.yaml", &unnamed), ("rules.yaml", RULES)]),
        [
            "warning unknown_reference rules.yaml:11: VirtualService default/reviews: spec.http[0].route[1].destination.subset: no DestinationRule gives reviews.default.svc.cluster.local a subset \"v2\": requests get 503 (NC)",
            "warning unknown_reference rules.yaml:12: VirtualService default/reviews: spec.http[1].route[0].destination.host: no service ratings.default.svc.cluster.local is known: requests get 503 (NC)",
            "warning unknown_reference rules.yaml:19: DestinationRule default/reviews: spec.subsets[1].labels: no pod of reviews.default.svc.cluster.local has the labels of subset \"v3\": requests get 503 (UH)",
            "warning unreachable rules.yaml:12: VirtualService default/reviews: spec.http[1]: nothing gets here: route 0 before it takes all of it",
            "warning unclear rules.yaml:9: VirtualService default/reviews: spec.http[0].route: the weights add up to 90, not to 100: each is a part of 90",
            "info unclear service.yaml:8: Service default/reviews: spec.ports: port 9080: its name \"web\" begins with no protocol, so each connection's first bytes decide; name it like http-web, or set appProtocol",
        ]
    );
}

#[test]
fn what_is_good_is_not_talked_about() {
    let good = RULES
        .replace("weight: 40", "weight: 50")
        .replace("subset: v2", "subset: v1")
        .replace(", {name: v3, labels: {version: v3}}", "")
        .replace("prefix: /", "prefix: /api")
        .replace("host: ratings", "host: reviews");
    assert_eq!(
        said(&[("service.yaml", SERVICE), ("rules.yaml", &good)]),
        Vec::<String>::new()
    );
}

#[test]
fn refusals_name_object_field_and_line_in_every_file() {
    let broken = RULES.replace("prefix: /}", "prefix: 5}");
    let twice =
        "kind: Service\napiVersion: v1\nmetadata: {name: reviews}\nspec: {clusterIP: None}\n";
    let found = said(&[
        ("a.yaml", SERVICE),
        ("b.yaml", &broken),
        ("c.yaml", "a: [\n"),
        ("d.yaml", twice),
    ]);
    let errors: Vec<_> = found
        .iter()
        .filter(|line| line.starts_with("error"))
        .collect();
    assert!(
        errors[0].starts_with("error unreadable c.yaml:"),
        "{errors:#?}"
    );
    assert!(
        errors[1].starts_with("error invalid b.yaml:8: VirtualService default/reviews: spec.http[0].match[0].uri.prefix: "),
        "{errors:#?}"
    );
    let twice = found.iter().find(|line| line.contains("conflict"));
    assert_eq!(
        twice.map(String::as_str),
        Some("warning conflict d.yaml: Service default/reviews: is in a.yaml too, which counts")
    );
}

#[test]
fn ports_and_sidecars_that_lead_nowhere_are_told() {
    let two = SERVICE.replace(
        "[{port: 9080, name: http}]",
        "[{port: 9080, name: http}, {port: 81, name: tcp}]",
    );
    let rules = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec: {hosts: [front.example.com], http: [{route: [{destination: {host: reviews}}]}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: alone}
spec: {workloadSelector: {labels: {app: nobody}}}
";
    assert_eq!(
        said(&[("a.yaml", &two), ("b.yaml", rules)]),
        [
            "warning unknown_reference b.yaml:10: Sidecar default/alone: spec.workloadSelector: no pod of default has these labels",
            "warning unclear b.yaml:5: VirtualService default/front: spec.http[0].route[0].destination.port: reviews.default.svc.cluster.local has 2 ports, and none is named: the one that the client asked for is meant",
        ]
    );
}

#[test]
fn files_hold_instead_of_what_a_registry_has() {
    let mut analysis = Analysis::new(MeshConfig::default());
    let contents = document::read(
        "cluster",
        &(SERVICE.to_owned() + "---" + RULES),
        "cluster.local",
    );
    let objects = contents.objects.into_iter();
    let applied = objects.map(|sourced| Sourced {
        origin: None,
        ..sourced
    });
    analysis.take(RegistryEvent::Changed {
        applied: applied.collect(),
        deleted: Vec::new(),
    });
    assert_eq!(analysis.problems().len(), 3, "subset, host and labels");
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v2, labels: {version: v1}}]}
";
    assert_eq!(
        said_over(analysis, &[("rule.yaml", rule)]),
        [
            "warning unknown_reference VirtualService default/reviews: spec.http[0].route[0].destination.subset: no DestinationRule gives reviews.default.svc.cluster.local a subset \"v1\": requests get 503 (NC)",
            "warning unknown_reference VirtualService default/reviews: spec.http[1].route[0].destination.host: no service ratings.default.svc.cluster.local is known: requests get 503 (NC)",
        ]
    );
}

#[test]
#[ignore = "a measurement: prints what it costs to judge one object, and all of them, in meshes of growing size"]
fn the_cost_of_judging_one_object_among_many() {
    for size in [1_000, 10_000] {
        let mut index = Index::new(MeshConfig::default());
        let mut apply = |yaml: &str| {
            for sourced in document::read("a.yaml", yaml, "cluster.local").objects {
                index.apply(sourced.object);
            }
        };
        for at in 0..size {
            apply(&format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s-{at}}}\nspec: {{clusterIP: 10.{}.{}.{}, \
                 ports: [{{name: http, port: 80}}]}}\n---\n\
                 apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r-{at}}}\nspec: {{hosts: [s-{at}], \
                 http: [{{route: [{{destination: {{host: s-{at}}}}}]}}]}}\n---\n\
                 apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: h-{at}}}\nspec: {{parentRefs: \
                 [{{group: '', kind: Service, name: s-{at}}}], rules: [{{backendRefs: [{{name: s-{at}, port: 80}}]}}]}}\n",
                at / 65536,
                at / 256 % 256,
                at % 256
            ));
        }
        let mesh = index.snapshot();
        let rule = |kind: &str, spec: serde_json::Value| {
            let group = if kind == "HTTPRoute" {
                "gateway.networking.k8s.io/v1"
            } else {
                "networking.istio.io/v1"
            };
            serde_json::json!({"apiVersion": group, "kind": kind, "metadata": {"name": "new"}, "spec": spec})
        };
        let to = serde_json::json!({"destination": {"host": "s-7"}});
        let parent = serde_json::json!({"group": "", "kind": "Service", "name": "s-7"});
        let objects = [
            rule(
                "VirtualService",
                serde_json::json!({"hosts": ["new"], "http": [{"route": [to]}]}),
            ),
            rule("DestinationRule", serde_json::json!({"host": "s-7"})),
            rule(
                "HTTPRoute",
                serde_json::json!({"parentRefs": [parent], "rules": [{}]}),
            ),
        ];
        for object in objects {
            let start = tokio::time::Instant::now();
            for _ in 0..20 {
                judge(object.clone(), Some(&mesh), "cluster.local");
            }
            let each = start.elapsed() / 20;
            println!("{size} services: one {} in {each:?}", object["kind"]);
        }
        let start = tokio::time::Instant::now();
        let found = analyze(&mesh).len();
        println!(
            "{size} services: all in {:?}, {found} findings",
            start.elapsed()
        );
    }
}
