//! Every kind of configuration, with the manifests that a cluster gets: the same from it as from a directory, whenever
//! its definition comes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, DeleteParams};
use millrace_controlplane::model::api_route::ApiRoute;
use millrace_controlplane::model::names::ObjectName;
use millrace_controlplane::model::{Kind, ObjectId};
use millrace_controlplane::snapshot::MeshSnapshot;
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::documents;
use millrace_testkit::require;
use serde_json::Value;

use crate::apply_in_time;
use crate::mesh::Mesh;

const CASES: [&str; 4] = [
    "http-route",
    "grpc-route",
    "connection-routes",
    "egress-rule",
];

/// Gateways of both groups and of one name.
const GATEWAYS: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.example.com]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec: {gatewayClassName: millrace, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: edge}
spec: {controllerName: example.com/edge}
";

/// Makes the API server know every kind that has a manifest.
pub(crate) async fn define(client: &Client) -> anyhow::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let text = fs::read_to_string(&path)?;
            let what = || format!("{}", path.display());
            apply(client, "", &text).await.with_context(what)?;
        }
    }
    Ok(())
}

/// The routes of the goldens, without what else is in them.
fn routes() -> anyhow::Result<Vec<Value>> {
    let mut all = Vec::new();
    for case in CASES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testdata/translate")
            .join(case)
            .join("in.yaml");
        all.extend(documents(&fs::read_to_string(path)?)?);
    }
    let group = |object: &Value| -> String {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        version.split('/').next().unwrap_or_default().to_owned()
    };
    all.retain(|object| {
        ["gateway.networking.k8s.io", "config.istio.io"].contains(&&*group(object))
    });
    Ok(all)
}

/// Routes without the time at which the API server made each.
fn timeless(mesh: &MeshSnapshot) -> BTreeMap<ObjectId, ApiRoute> {
    let routes = mesh.api_routes.iter().map(|(id, route)| {
        let mut route = ApiRoute::clone(route);
        route.created = None;
        (id.clone(), route)
    });
    routes.collect()
}

fn same(one: &MeshSnapshot, other: &MeshSnapshot) {
    similar_asserts::assert_eq!(timeless(one), timeless(other));
    similar_asserts::assert_eq!(one.reference_grants, other.reference_grants);
    similar_asserts::assert_eq!(one.attached, other.attached);
    let hosts = |mesh: &MeshSnapshot| {
        let entries = mesh.service_entries.values();
        let services = entries.flat_map(|entry| entry.services.iter());
        services
            .map(|service| (service.hostname.clone(), service.ports.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    similar_asserts::assert_eq!(hosts(one), hosts(other));
}

#[tokio::test]
async fn routes_are_the_same_from_a_cluster_whose_definitions_come_late() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    let directory = tempfile::tempdir()?;
    let mut got = Mesh::of_cluster(server.kubeconfig());
    got.synced().await?;
    assert_eq!(got.problems, [], "a kind that is not there is no problem");

    define(&client).await?;
    apply(&client, "", BILLING).await?;
    let routes = routes()?;
    for (count, route) in routes.iter().enumerate() {
        let text = route.to_string();
        fs::write(directory.path().join(format!("{count}.yaml")), &text)?;
        apply_in_time(&client, "default", &text).await?;
    }
    let mut expected = Mesh::of_directory(directory.path().to_owned());
    expected.synced().await?;
    let count = |mesh: &Mesh| {
        let mesh = mesh.snapshot();
        (
            mesh.api_routes.len(),
            mesh.reference_grants.len(),
            mesh.service_entries.len(),
        )
    };
    let all = count(&expected);
    assert_eq!(all.0 + all.1 + all.2, routes.len());
    let kinds: std::collections::BTreeSet<Kind> = expected
        .snapshot()
        .api_routes
        .keys()
        .map(|id| id.kind)
        .collect();
    let every = [
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TcpRoute,
        Kind::TlsRoute,
    ];
    assert!(every.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    got.until("all of it is read", |mesh| count(mesh) == all)
        .await?;
    same(&got.snapshot(), &expected.snapshot());
    let said = |mesh: &Mesh| -> Vec<String> {
        let problems = mesh.problems.iter().cloned().map(|mut problem| {
            (problem.file, problem.line) = (None, None);
            problem.to_string()
        });
        let mut said: Vec<_> = problems.collect();
        said.sort();
        said
    };
    let wanted = said(&expected);
    got.until("the same is wrong", |mesh| said(mesh) == wanted)
        .await?;

    // What goes with its definition is gone, and nothing else.
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = "httproutes.gateway.networking.k8s.io";
    definitions.delete(name, &DeleteParams::default()).await?;
    let without = |mesh: &Mesh| {
        let mesh = mesh.snapshot();
        mesh.api_routes.keys().all(|id| id.kind != Kind::HttpRoute)
    };
    got.until("the HTTPRoutes are gone", without).await?;
    let left = kinds.len() - 1;
    let mesh = got.snapshot();
    let kinds: std::collections::BTreeSet<Kind> =
        mesh.api_routes.keys().map(|id| id.kind).collect();
    assert_eq!(kinds.len(), left);
    expected.end().await?;
    got.end().await
}

/// One for the mesh, one for somebody else.
const INGRESSES: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: ours}
spec: {ingressClassName: istio, defaultBackend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: theirs}
spec: {ingressClassName: nginx, defaultBackend: {service: {name: web, port: {number: 80}}}}
";

#[tokio::test]
async fn an_ingress_of_the_mesh_is_read_and_what_it_cannot_have_is_named() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    let namespace = server.namespace(&client).await?;
    let mut mesh = Mesh::of_cluster(server.kubeconfig());
    mesh.synced().await?;
    apply(&client, &namespace, INGRESSES).await?;
    let said = |mesh: &Mesh, name: &str| -> Vec<String> {
        let object = Some(format!("Ingress {namespace}/{name}"));
        let problems = mesh.problems.iter();
        let of_it = problems.filter(|problem| problem.object == object);
        of_it.map(|problem| problem.message.clone()).collect()
    };
    let reads = |mesh: &Mesh, name: &str| {
        let id = ObjectId {
            kind: Kind::Ingress,
            name: ObjectName::new(&namespace, name),
        };
        mesh.snapshot().gateways.contains_key(&id)
    };
    mesh.until("ours is read", |mesh| reads(mesh, "ours"))
        .await?;
    assert!(!reads(&mesh, "theirs"));
    let named = INGRESSES.replace("nginx", "istio");
    let named = named.replace(
        "ingressClassName: istio, default",
        "ingressClassName: istio, tls: [{secretName: a}], default",
    );
    apply(&client, &namespace, &named).await?;
    mesh.until("it is read once it is ours", |mesh| reads(mesh, "theirs"))
        .await?;
    let certificates =
        "gateways of this release let in plain HTTP alone: nobody serves them certificates";
    mesh.until("what is left out is named", |mesh| {
        said(mesh, "theirs") == [certificates]
    })
    .await?;
    mesh.end().await
}

const BILLING: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: billing}}";

#[tokio::test]
async fn gateways_of_two_groups_do_not_get_in_each_others_way() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    define(&client).await?;
    apply_in_time(&client, "default", GATEWAYS).await?;
    let mut mesh = Mesh::of_cluster(server.kubeconfig());
    mesh.synced().await?;
    let kinds = |mesh: &Mesh| -> Vec<Kind> {
        let mesh = mesh.snapshot();
        mesh.gateways.keys().map(|id| id.kind).collect()
    };
    // A kind that was only just defined may not be listed yet: the server is making its storage.
    let both = [Kind::Gateway, Kind::IstioGateway];
    mesh.until("both are read and nothing is wrong", |mesh| {
        kinds(mesh) == both && mesh.problems.is_empty()
    })
    .await?;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = "gateways.networking.istio.io";
    definitions.delete(name, &DeleteParams::default()).await?;
    mesh.until("Istio's is gone", |mesh| kinds(mesh) == [Kind::Gateway])
        .await?;
    mesh.end().await
}
