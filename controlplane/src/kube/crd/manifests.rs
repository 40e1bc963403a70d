//! `deploy/crds`: manifests of the kinds that pilot reads, made from the types that read them.
//!
//! A test compares; `MILLRACE_BLESS=1` rewrites. [`trace`] asks a type what it reads, so a manifest cannot
//! say anything else than the code.

mod trace;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super as crd;

const ISTIO: &str = "networking.istio.io";
const SEEDS: &str = "config.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// One kind: group, versions with the stored one first, kind, plural, schema of `spec`.
struct Manifest {
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
    spec: Value,
}

fn manifests() -> Vec<Manifest> {
    let mut all = seeds();
    all.extend(istio());
    all.extend(gateway_api());
    all
}

fn of<S: for<'de> serde::Deserialize<'de>>(
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
) -> Manifest {
    Manifest {
        group,
        versions,
        kind,
        plural,
        spec: trace::schema::<S>(),
    }
}

fn seeds() -> Vec<Manifest> {
    const VERSIONS: &[&str] = &["v1alpha2"];
    vec![
        of::<crd::RouteRuleSpec>(SEEDS, VERSIONS, "RouteRule", "routerules"),
        of::<crd::EgressRuleSpec>(SEEDS, VERSIONS, "EgressRule", "egressrules"),
    ]
}

fn istio() -> Vec<Manifest> {
    const ALL: &[&str] = &["v1", "v1beta1", "v1alpha3"];
    vec![
        of::<crd::VirtualServiceSpec>(ISTIO, ALL, "VirtualService", "virtualservices"),
        of::<crd::DestinationRuleSpec>(ISTIO, ALL, "DestinationRule", "destinationrules"),
        of::<crd::ServiceEntrySpec>(ISTIO, ALL, "ServiceEntry", "serviceentries"),
        of::<crd::WorkloadEntrySpec>(ISTIO, ALL, "WorkloadEntry", "workloadentries"),
        of::<crd::SidecarSpec>(ISTIO, ALL, "Sidecar", "sidecars"),
        of::<crd::IstioGatewaySpec>(ISTIO, ALL, "Gateway", "gateways"),
    ]
}

fn gateway_api() -> Vec<Manifest> {
    const API: &str = GATEWAY_API;
    const BETA: &[&str] = &["v1", "v1beta1"];
    const ALPHA: &[&str] = &["v1", "v1alpha2"];
    const TLS: &[&str] = &["v1", "v1alpha3", "v1alpha2"];
    const GRANT: &[&str] = &["v1", "v1beta1", "v1alpha2"];
    vec![
        of::<crd::HttpRouteSpec>(API, BETA, "HTTPRoute", "httproutes"),
        of::<crd::GrpcRouteSpec>(API, ALPHA, "GRPCRoute", "grpcroutes"),
        of::<crd::ConnectionRouteSpec>(API, ALPHA, "TCPRoute", "tcproutes"),
        of::<crd::ConnectionRouteSpec>(API, TLS, "TLSRoute", "tlsroutes"),
        of::<crd::ReferenceGrantSpec>(API, GRANT, "ReferenceGrant", "referencegrants"),
        of::<crd::GatewaySpec>(API, BETA, "Gateway", "gateways"),
        of::<crd::GatewayClassSpec>(API, BETA, "GatewayClass", "gatewayclasses"),
    ]
}

impl Manifest {
    fn file(&self) -> String {
        format!("{}_{}.yaml", self.group, self.plural)
    }

    fn render(&self) -> String {
        let mut spec = self.spec.clone();
        // What a later version of the kind says must survive in the API server.
        spec["x-kubernetes-preserve-unknown-fields"] = true.into();
        let versions: Vec<Value> = self
            .versions
            .iter()
            .enumerate()
            .map(|(index, version)| {
                json!({
                    "name": version,
                    "served": true,
                    "storage": index == 0,
                    "subresources": { "status": {} },
                    "schema": { "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "apiVersion": { "type": "string" },
                            "kind": { "type": "string" },
                            "metadata": { "type": "object" },
                            "spec": spec,
                            "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                        },
                    } },
                })
            })
            .collect();
        let scope = if self.kind == "GatewayClass" {
            "Cluster"
        } else {
            "Namespaced"
        };
        let mut metadata = json!({ "name": format!("{}.{}", self.plural, self.group) });
        if self.group == GATEWAY_API {
            // The API server wants to know that somebody answers for a group under k8s.io.
            let reason = "unapproved, what Millrace reads of the kind; install the project's own";
            metadata["annotations"] = json!({ "api-approved.kubernetes.io": reason });
        }
        let manifest = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": metadata,
            "spec": {
                "group": self.group,
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.kind.to_ascii_lowercase(),
                },
                "scope": scope,
                "versions": versions,
            },
        });
        serde_saphyr::to_string(&manifest).unwrap()
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds")
}

#[test]
fn manifests_are_what_the_types_read() {
    let bless = std::env::var("MILLRACE_BLESS").is_ok_and(|value| value == "1");
    let mut different = Vec::new();
    let mut expected = vec!["README.md".to_owned()];
    for manifest in manifests() {
        let path = directory().join(manifest.file());
        let made = manifest.render();
        if bless {
            fs::create_dir_all(directory()).unwrap();
            fs::write(&path, made).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != made {
            different.push(path);
        }
        expected.push(manifest.file());
    }
    assert!(
        different.is_empty(),
        "not as made (MILLRACE_BLESS=1 rewrites): {different:#?}"
    );
    let mut there: Vec<String> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    expected.sort();
    assert_eq!(
        there, expected,
        "a manifest without its kind, or the other way"
    );
}

#[test]
fn manifests_are_read_back_as_what_they_say() {
    for manifest in manifests() {
        let read: Value = serde_saphyr::from_str(&manifest.render()).unwrap();
        let versions = read["spec"]["versions"].as_array().unwrap();
        assert_eq!(versions.len(), manifest.versions.len(), "{}", manifest.kind);
        for version in versions {
            let properties = &version["schema"]["openAPIV3Schema"]["properties"];
            let spec = &properties["spec"]["properties"];
            assert_eq!(*spec, manifest.spec["properties"], "{}", manifest.kind);
        }
    }
    let routes = trace::schema::<crd::VirtualServiceSpec>();
    let port = "/properties/http/items/properties/match/items/properties/port/type";
    assert_eq!(routes.pointer(port), Some(&"integer".into()));
}
