//! Goldens: the documents that a pod's Envoy of the seed era polls, by directory of YAML.
//!
//! `testdata/legacy/<case>/in.yaml` holds the objects, `mesh.yaml` the settings if there are any, and
//! `v1.golden.json` what the pod `productpage-v1` is answered, by path. Rewritten only when `MILLRACE_BLESS` is 1.

mod era;
mod renamed;
mod seeds;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::names::ServiceKey;
use super::{Client, Renderer, clusters, endpoints, listeners};
use crate::index::Index;
use crate::kube::{document, mesh_config};
use crate::model::mesh::MeshConfig;
use crate::model::problem::Severity;
use crate::snapshot::MeshSnapshot;

const NODE: &str = "sidecar~10.244.1.10~productpage-v1.default~default.svc.cluster.local";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/legacy")
}

fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(root()).unwrap();
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    cases
}

fn snapshot_of(case: &Path) -> MeshSnapshot {
    let mesh = match fs::read_to_string(case.join("mesh.yaml")) {
        Ok(text) => mesh_config::read("mesh.yaml", &text, "cluster.local")
            .0
            .unwrap(),
        Err(_) => MeshConfig::default(),
    };
    let mut index = Index::new(mesh);
    let text = fs::read_to_string(case.join("in.yaml")).unwrap();
    let contents = document::read("in.yaml", &text, "cluster.local");
    let problems = contents.problems.iter();
    let errors = problems.filter(|problem| problem.severity == Severity::Error);
    let errors: Vec<_> = errors.map(ToString::to_string).collect();
    assert_eq!(errors, Vec::<String>::new(), "{}", case.display());
    for sourced in contents.objects {
        index.apply(sourced.object);
    }
    index.snapshot()
}

fn value(document: &impl Serialize) -> Value {
    serde_json::to_value(document).unwrap()
}

/// Everything that a client asks for, one answer leading to the next question; and what is left out.
fn documents(snapshot: &MeshSnapshot, node: &str) -> BTreeMap<String, Value> {
    let client: Client = node.parse().unwrap();
    let mut all = BTreeMap::new();
    let (lds, mut left_out) = listeners::document(snapshot, &client);
    let (cds, more) = clusters::document(snapshot, &client);
    left_out.extend(more);
    let mut renderer = Renderer::new(snapshot, &client);
    for port in renderer.http_ports() {
        let routes = value(&renderer.routes(port));
        all.insert(format!("/v1/routes/{port}/<cluster>/<node>"), routes);
    }
    for key in cds
        .clusters
        .iter()
        .filter_map(|it| it.service_name.as_ref())
    {
        let hosts = endpoints::hosts(snapshot, &key.parse::<ServiceKey>().unwrap());
        all.insert(format!("/v1/registration/{key}"), value(&hosts));
    }
    all.insert("/v1/listeners/<cluster>/<node>".to_owned(), value(&lds));
    all.insert("/v1/clusters/<cluster>/<node>".to_owned(), value(&cds));
    left_out.sort();
    left_out.dedup();
    all.insert("left out".to_owned(), json!(left_out));
    all
}

fn compare(path: &Path, made: &Value, different: &mut Vec<PathBuf>) {
    let mut text = serde_json::to_string_pretty(made).unwrap();
    writeln!(text).unwrap();
    if std::env::var("MILLRACE_BLESS").is_ok_and(|value| value == "1") {
        fs::write(path, text).unwrap();
    } else if fs::read_to_string(path).unwrap_or_default() != text {
        different.push(path.to_owned());
    }
}

#[test]
fn goldens_are_what_is_made() {
    let mut different = Vec::new();
    for case in cases() {
        let made = documents(&snapshot_of(&case), NODE);
        let path = case.join("v1.golden.json");
        compare(&path, &value(&made), &mut different);
    }
    let bootstrap = super::bootstrap::render(&seeds::flags());
    compare(
        &root().join("bootstrap.golden.json"),
        &bootstrap,
        &mut different,
    );
    assert!(
        different.is_empty(),
        "not as made (MILLRACE_BLESS=1 rewrites): {different:#?}"
    );
}

#[test]
fn every_document_is_one_of_the_eras_schema() {
    for case in cases() {
        for (path, document) in documents(&snapshot_of(&case), NODE) {
            let shape = match path.split('/').nth(2) {
                Some("listeners") => &era::LISTENERS,
                Some("clusters") => &era::CLUSTERS,
                Some("routes") => &era::ROUTE_CONFIG,
                Some("registration") => &era::HOSTS,
                _ => continue,
            };
            let wrong = era::check(shape, &document);
            assert_eq!(wrong, Vec::<String>::new(), "{} {path}", case.display());
        }
    }
}

#[test]
fn every_cluster_that_is_named_is_there() {
    for case in cases() {
        let documents = documents(&snapshot_of(&case), NODE);
        let listed = documents["/v1/clusters/<cluster>/<node>"]["clusters"].clone();
        let names: Vec<&str> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        let mut referred = Vec::new();
        for (path, document) in &documents {
            if path.starts_with("/v1/routes") || path.starts_with("/v1/listeners") {
                clusters_in(document, &mut referred);
            }
        }
        assert!(!referred.is_empty());
        for name in referred {
            // The bootstrap's own.
            assert!(
                name == "rds" || names.contains(&name.as_str()),
                "{name} of {}",
                case.display()
            );
        }
    }
}

fn clusters_in(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), value) {
                    ("cluster", Value::String(name)) => found.push(name.clone()),
                    ("weighted_clusters", weighted) => {
                        let clusters = weighted["clusters"].as_array().unwrap();
                        let weights: u64 =
                            clusters.iter().map(|c| c["weight"].as_u64().unwrap()).sum();
                        assert_eq!(weights, 100, "{weighted}");
                        found.extend(
                            clusters
                                .iter()
                                .map(|c| c["name"].as_str().unwrap().to_owned()),
                        );
                    }
                    _ => clusters_in(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| clusters_in(item, found)),
        _ => {}
    }
}
