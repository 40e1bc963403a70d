//! Health, metrics and debug pages on 15014.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_runtime::admin::{Reply, Request, Response, Routes};
use millrace_runtime::build_info::BuildInfo;
use millrace_runtime::metrics::{CONTENT_TYPE, Metrics};
use millrace_runtime::ready::Ready;
use millrace_runtime::telemetry::LevelHandle;
use millrace_xds::json;
use millrace_xds::node::{Node, NodeId};
use millrace_xds::server::{ConfigView as _, Connections};
use millrace_xds::subscription::Selection;
use serde_json::{Value, json};

use crate::kube::document::Origin;
use crate::model::endpoint::Endpoint;
use crate::model::place::Place;
use crate::model::problem::Severity;
use crate::model::service::{Service, ServiceKind};
use crate::serve::MeshSource;
use crate::snapshot::MeshSnapshot;
use crate::translate::{ProxyView, ResourceKind};

/// What the pages show.
pub(crate) struct Admin {
    pub(crate) source: Arc<MeshSource>,
    pub(crate) connections: Connections,
    pub(crate) metrics: Metrics,
    pub(crate) ready: Ready,
    pub(crate) build: BuildInfo,
    pub(crate) level: Option<LevelHandle>,
}

/// The pages.
pub(crate) fn routes(admin: &Arc<Admin>) -> Routes {
    let page = |show: fn(&Admin, &Request) -> Response| {
        let admin = Arc::clone(admin);
        move |request: Request| {
            let response = show(&admin, &request);
            async move { response }
        }
    };
    Routes::new()
        .get(
            "/healthz",
            "200 while the process runs",
            page(|_, _| Reply::text(200, "ok\n")),
        )
        .get("/ready", "200 once the registry has been read", page(ready))
        .get("/metrics", "pilot's own metrics", page(metrics))
        .get(
            "/version",
            "the build",
            page(|admin, _| Reply::json(200, &admin.build)),
        )
        .get(
            "/debug/syncz",
            "how far every client is",
            page(|admin, _| Reply::json(200, &admin.connections.status())),
        )
        .get(
            "/debug/registryz",
            "services, their endpoints, pods and rules",
            page(registryz),
        )
        .get(
            "/debug/config_errors",
            "what is wrong with the configuration",
            page(config_errors),
        )
        .get(
            "/debug/places",
            "?of=<object>#<field>, as resources name them in their metadata: file and line, or version",
            page(places),
        )
        .get(
            "/debug/config_dump",
            "?node=<id>: what a proxy gets; without it, the connected ones",
            page(config_dump),
        )
        .get("/debug/pushq", "what waits to be pushed", page(pushq))
        .route(
            http::Method::POST,
            "/logging",
            "?level=<filter>: changes the log level",
            page(logging),
        )
}

fn ready(admin: &Admin, _: &Request) -> Response {
    if admin.ready.is_ready() {
        return Reply::text(200, "ready\n");
    }
    Reply::text(
        503,
        format!("waiting for {}\n", admin.ready.pending().join(", ")),
    )
}

fn metrics(admin: &Admin, _: &Request) -> Response {
    Reply::with_type(200, CONTENT_TYPE, admin.metrics.encode())
}

fn logging(admin: &Admin, request: &Request) -> Response {
    let Some(level) = &admin.level else {
        return Reply::text(501, "this process does not own its logs\n");
    };
    if let Some(filter) = request.query("level")
        && let Err(error) = level.set(filter)
    {
        return Reply::text(400, format!("{error}\n"));
    }
    Reply::text(200, format!("{}\n", level.current()))
}

fn config_errors(admin: &Admin, _: &Request) -> Response {
    let problems = admin.source.problems();
    let of = |severity| {
        problems
            .iter()
            .filter(move |problem| problem.severity == severity)
            .collect::<Vec<_>>()
    };
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    Reply::json(200, &json!({ "errors": errors, "warnings": warnings }))
}

/// Where objects stand that resources come from, and what is wrong with them.
fn places(admin: &Admin, request: &Request) -> Response {
    let asked = request.query.iter().filter(|(key, _)| key == "of");
    let places: Vec<Value> = asked.map(|(_, place)| place_json(admin, place)).collect();
    Reply::json(200, &json!({ "places": places }))
}

fn place_json(admin: &Admin, place: &str) -> Value {
    let (config, field) = place.split_once('#').unwrap_or((place, ""));
    let Some(id) = Place::object_of(config) else {
        return json!({ "of": place, "error": "is no object as resources name them" });
    };
    let origin = admin.source.origins().of(&id);
    let origin = origin.as_deref();
    let object = id.to_string();
    let all = admin.source.problems();
    let of_object = all
        .iter()
        .filter(|problem| problem.object.as_deref() == Some(&object));
    // What is wrong with another rule of the object is not of interest here.
    let problems: Vec<_> = of_object
        .filter(|problem| problem.field.starts_with(field) || field.starts_with(&problem.field))
        .collect();
    json!({
        "of": place,
        "object": object,
        "field": field,
        "file": origin.and_then(Origin::file),
        "line": origin.and_then(|origin| origin.line_of(field)),
        "resource_version": origin.and_then(Origin::resource_version),
        "problems": problems,
    })
}

fn pushq(admin: &Admin, _: &Request) -> Response {
    let generation = admin.source.published().generation;
    let behind: Vec<Value> = admin
        .connections
        .status()
        .into_iter()
        .filter_map(|client| {
            let unanswered: Vec<Value> = client
                .types
                .iter()
                .filter_map(|kind| {
                    Some(json!({ "type": kind.short_name, "unanswered_ms": kind.unanswered_ms? }))
                })
                .collect();
            (!unanswered.is_empty())
                .then(|| json!({ "node": client.node_id, "id": client.id, "types": unanswered }))
        })
        .collect();
    Reply::json(
        200,
        &json!({ "generation": generation, "changes_waiting": admin.source.waiting(), "clients_waiting": behind }),
    )
}

fn registryz(admin: &Admin, _: &Request) -> Response {
    let published = admin.source.published();
    let snapshot = &published.snapshot;
    let services: Vec<Value> = snapshot
        .services
        .values()
        .map(|service| service_json(snapshot, service))
        .collect();
    let pods: Vec<Value> = snapshot
        .workloads
        .values()
        .map(|pod| {
            json!({
                "name": pod.name.to_string(), "addresses": pod.addresses, "node": pod.node, "ready": pod.ready,
                "service_account": pod.service_account, "workload": pod.owner, "labels": pod.labels,
            })
        })
        .collect();
    let names = |names: &mut dyn Iterator<Item = String>| names.collect::<Vec<_>>();
    Reply::json(
        200,
        &json!({
            "generation": published.generation,
            "services": services,
            "pods": pods,
            "deployments": names(&mut snapshot.templates.keys().map(ToString::to_string)),
            "service_accounts": names(&mut snapshot.service_accounts.keys().map(ToString::to_string)),
            "namespaces": names(&mut snapshot.namespaces.keys().map(ToString::to_string)),
            "api_routes": names(&mut snapshot.api_routes.keys().map(ToString::to_string)),
            "virtual_services": names(&mut snapshot.virtual_services.keys().map(ToString::to_string)),
            "destination_rules": names(&mut snapshot.destination_rules.keys().map(ToString::to_string)),
            "route_rules": names(&mut snapshot.route_rules.keys().map(ToString::to_string)),
        }),
    )
}

fn service_json(snapshot: &MeshSnapshot, service: &Service) -> Value {
    let kind = match &service.kind {
        ServiceKind::ClusterIp => "ClusterIP".to_owned(),
        ServiceKind::Headless => "headless".to_owned(),
        ServiceKind::ExternalName(name) => format!("ExternalName {name}"),
        ServiceKind::Entry(entry) => entry.object.to_string(),
    };
    let endpoint = |endpoint: &Endpoint| {
        let pod = endpoint
            .workload
            .as_ref()
            .map(|workload| workload.name.to_string());
        json!({ "address": endpoint.address, "port": endpoint.port, "pod": pod, "zone": endpoint.locality.zone })
    };
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            let endpoints = snapshot.endpoints_of(&service.name, port.port);
            json!({
                "name": port.name, "port": port.port, "protocol": format!("{:?}", port.protocol),
                "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "host": service.hostname.as_str(), "kind": kind, "addresses": snapshot.addresses_of(service), "ports": ports })
}

fn config_dump(admin: &Admin, request: &Request) -> Response {
    let Some(node_id) = request.query("node").filter(|node| !node.is_empty()) else {
        let nodes: Vec<String> = admin
            .connections
            .status()
            .into_iter()
            .map(|client| client.node_id)
            .collect();
        return Reply::json(
            400,
            &json!({ "error": "say which: ?node=<id>", "connected": nodes }),
        );
    };
    // A node that is not connected gets what it would get if it asked for everything.
    let (view, selections) = match admin.source.client_of(node_id) {
        Some(found) => found,
        None => match node_id
            .parse::<NodeId>()
            .map(|id| ProxyView::of_node(&Node::new(&id)))
        {
            Ok(Ok(view)) => (admin.source.view_of(Arc::new(view)), BTreeMap::new()),
            Ok(Err(error)) => return Reply::text(400, format!("{error}\n")),
            Err(error) => return Reply::text(400, format!("{error}\n")),
        },
    };
    let connected = !selections.is_empty();
    let mut types = serde_json::Map::new();
    for kind in ResourceKind::ALL {
        let type_url = kind.type_url();
        let selection = match selections.get(type_url.as_str()) {
            Some(selection) => selection.clone(),
            None if connected => Selection::default(),
            None => Selection::everything(),
        };
        let resources: Vec<Value> = view
            .resources(&type_url, &selection)
            .iter()
            .map(|resource| {
                let body = json::any_to_value(&resource.to_any());
                let body = body.unwrap_or_else(|error| json!({ "error": error.to_string() }));
                json!({ "name": resource.name(), "version": resource.version().as_str(), "resource": body })
            })
            .collect();
        types.insert(type_url.short_name().to_owned(), resources.into());
    }
    Reply::json(
        200,
        &json!({ "node": node_id, "connected": connected, "generation": view.generation(), "types": types }),
    )
}
