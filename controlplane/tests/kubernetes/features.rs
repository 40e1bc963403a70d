//! What a real API server makes of each form of Service and `EndpointSlice`, as the mesh sees it.

use std::net::IpAddr;

use millrace_controlplane::model::names::ObjectName;
use millrace_controlplane::model::near::Reach;
use millrace_controlplane::model::node::Features;
use millrace_controlplane::model::service::{Protocol, Service, ServiceKind, TargetPort};
use millrace_controlplane::translate::{ProxyView, ResourceKind, Translator};
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;
use millrace_xds::json;

use crate::mesh::Mesh;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: dual}
spec:
  ipFamilyPolicy: RequireDualStack
  ports:
  - {name: web, port: 80, targetPort: http}
  - {name: db, port: 81, targetPort: 5432, appProtocol: mysql}
  - {name: answers, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{port: 9090, appProtocol: kubernetes.io/h2c}], publishNotReadyAddresses: true}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: example.com, ports: [{name: https, port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: nodeport}
spec: {type: NodePort, sessionAffinity: ClientIP, internalTrafficPolicy: Local, trafficDistribution: PreferSameZone, ports: [{port: 80}]}
";

const SLICES: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dual-4, labels: {kubernetes.io/service-name: dual}}
addressType: IPv4
ports: [{name: web, port: 8080}, {name: db, port: 5432}]
endpoints:
- {addresses: [10.244.0.1], conditions: {ready: true, serving: true}, zone: a}
- {addresses: [10.244.0.2], conditions: {ready: false, serving: false}, zone: a}
- {addresses: [10.244.0.3], conditions: {ready: false, serving: true, terminating: true}, zone: b}
- {addresses: [10.244.0.4], zone: b}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dual-6, labels: {kubernetes.io/service-name: dual}}
addressType: IPv6
ports: [{name: web, port: 8080}]
endpoints: [{addresses: ['fd00:10::1'], conditions: {ready: true}, zone: a, hints: {forZones: [{name: a}]}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: headless-1, labels: {kubernetes.io/service-name: headless}}
addressType: IPv4
ports: [{name: '', port: 9090}]
endpoints: [{addresses: [10.244.0.9], conditions: {ready: false}, hostname: db-0}]
";

const NEAR: &str = "
apiVersion: v1
kind: Node
metadata: {name: near-a, labels: {topology.kubernetes.io/zone: near-zone-a}}
---
apiVersion: v1
kind: Node
metadata: {name: near-b, labels: {topology.kubernetes.io/zone: near-zone-b}}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {internalTrafficPolicy: Local, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: zone}
spec: {trafficDistribution: PreferSameZone, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: node}
spec: {trafficDistribution: PreferSameNode, ports: [{name: http, port: 80}]}
";

/// Slices as a cluster's controller writes them for these services: hints for those that prefer.
const NEAR_SLICES: [(&str, &str, &str); 3] = [
    ("local", "", ""),
    (
        "zone",
        ", hints: {forZones: [{name: near-zone-a}]}",
        ", hints: {forZones: [{name: near-zone-b}]}",
    ),
    (
        "node",
        ", hints: {forNodes: [{name: near-a}], forZones: [{name: near-zone-a}]}",
        ", hints: {forNodes: [{name: elsewhere}], forZones: [{name: near-zone-b}]}",
    ),
];

fn near_slice((name, one, other): (&str, &str, &str)) -> String {
    format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: 80}}]
endpoints:
- {{addresses: [10.244.9.1], nodeName: near-a, zone: near-zone-a{one}}}
- {{addresses: [10.244.9.2], nodeName: elsewhere, zone: near-zone-b{other}}}
"
    )
}

/// The addresses that a node's proxy gets for port 80 of a service.
fn served(mesh: &Mesh, node: &str, service: &ObjectName) -> Vec<String> {
    let view = ProxyView::Node {
        name: node.to_owned(),
        zone: String::new(),
        netns: None,
        features: Features::default(),
    };
    let (namespace, name) = (&service.namespace, &service.name);
    let cluster = format!("outbound|80||{name}.{namespace}.svc.cluster.local");
    let snapshot = mesh.snapshot();
    let made = Translator::new(&snapshot, &view).resource(ResourceKind::Endpoints, &cluster);
    let made = json::any_to_value(&made.unwrap().to_any()).unwrap();
    let mut addresses = Vec::new();
    for locality in made["endpoints"].as_array().into_iter().flatten() {
        for endpoint in locality["lb_endpoints"].as_array().into_iter().flatten() {
            let socket = &endpoint["endpoint"]["address"]["socket_address"];
            addresses.push(socket["address"].as_str().unwrap().to_owned());
        }
    }
    addresses
}

#[tokio::test]
async fn clients_are_served_by_where_they_stand() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    let namespace = server.namespace(&client).await?;
    apply(&client, &namespace, NEAR).await?;
    for slice in NEAR_SLICES {
        apply(&client, &namespace, &near_slice(slice)).await?;
    }
    let mut mesh = Mesh::of_cluster(server.kubeconfig());
    mesh.synced().await?;
    let (one, other) = ("10.244.9.1", "10.244.9.2");
    for (service, node, wanted) in [
        ("local", "near-a", vec![one]),
        ("local", "near-b", vec![]),
        ("zone", "near-a", vec![one]),
        ("zone", "near-b", vec![other]),
        ("zone", "unknown", vec![one, other]),
        ("node", "near-a", vec![one]),
        ("node", "near-b", vec![other]),
        ("node", "elsewhere", vec![other]),
    ] {
        let name = ObjectName::new(&namespace, service);
        assert_eq!(served(&mesh, node, &name), wanted, "{service} from {node}");
    }
    // What ends serves while there is nothing else.
    let zone = ObjectName::new(&namespace, "zone");
    let ending = near_slice(NEAR_SLICES[1]).replace(
        "zone: near-zone-",
        "conditions: {ready: false, serving: true, terminating: true}, zone: near-zone-",
    );
    apply(&client, &namespace, &ending).await?;
    let moved = NEAR.replace(
        "near-b, labels: {topology.kubernetes.io/zone: near-zone-b}",
        "near-b, labels: {topology.kubernetes.io/zone: near-zone-a}",
    );
    apply(&client, &namespace, &moved).await?;
    mesh.until("the node has moved", |mesh| {
        served(mesh, "near-b", &zone) == [one]
    })
    .await?;
    mesh.end().await
}

const NODE: &str = "
apiVersion: v1
kind: Node
metadata:
  name: node-features
  labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: a, topology.istio.io/subzone: rack-1}
";

fn addresses(mesh: &Mesh, service: &ObjectName, port: u16) -> Vec<String> {
    let mesh = mesh.snapshot();
    let endpoints = mesh.endpoints_of(service, port).iter();
    let shown = endpoints.map(|endpoint| format!("{}:{}", endpoint.address, endpoint.port));
    shown.collect()
}

#[tokio::test]
async fn every_form_of_service_is_known_for_what_it_is() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    let namespace = server.namespace(&client).await?;
    apply(&client, &namespace, SERVICES).await?;
    let mut mesh = Mesh::of_cluster(server.kubeconfig());
    mesh.synced().await?;
    let snapshot = mesh.snapshot();
    let service = |name: &str| -> Service {
        Service::clone(&snapshot.services[&ObjectName::new(&namespace, name)])
    };

    let dual = service("dual");
    let families: Vec<bool> = dual.addresses.iter().map(IpAddr::is_ipv4).collect();
    assert_eq!(
        (&dual.kind, families),
        (&ServiceKind::ClusterIp, vec![true, false])
    );
    let ports: Vec<_> = dual
        .ports
        .into_iter()
        .map(|port| (port.port, port.target, port.protocol))
        .collect();
    let named = TargetPort::Name("http".to_owned());
    let expected = [
        (80, named, Protocol::Auto),
        (81, TargetPort::Number(5432), Protocol::Tcp),
    ];
    assert_eq!(ports, expected, "of UDP nothing is known");

    let headless = service("headless");
    assert_eq!(
        (headless.kind, headless.addresses),
        (ServiceKind::Headless, vec![])
    );
    assert!(headless.publish_not_ready);
    assert_eq!(headless.ports[0].protocol, Protocol::Http2);
    let elsewhere = service("elsewhere");
    assert_eq!(
        elsewhere.kind,
        ServiceKind::ExternalName("example.com".to_owned())
    );
    assert_eq!(elsewhere.ports[0].protocol, Protocol::Tls);

    let nodeport = service("nodeport");
    assert_eq!(
        (nodeport.kind, nodeport.addresses.len()),
        (ServiceKind::ClusterIp, 1)
    );
    assert_eq!(nodeport.reach, Reach::Local);
    let object = format!("Service {namespace}/nodeport");
    let problems = mesh
        .problems
        .iter()
        .filter(|problem| problem.object.as_ref() == Some(&object));
    let fields: Vec<&str> = problems.map(|problem| problem.field.as_str()).collect();
    assert_eq!(
        fields,
        ["spec.sessionAffinity"],
        "what is not executed is named"
    );
    mesh.end().await
}

#[tokio::test]
async fn endpoints_follow_their_slices_conditions() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    let namespace = server.namespace(&client).await?;
    let mut mesh = Mesh::of_cluster(server.kubeconfig());
    mesh.synced().await?;
    apply(&client, &namespace, SERVICES).await?;
    apply(&client, &namespace, SLICES).await?;
    let (dual, headless) = (
        ObjectName::new(&namespace, "dual"),
        ObjectName::new(&namespace, "headless"),
    );
    // Ready by word or by silence; a pod that is ending takes nothing new.
    let ready = ["10.244.0.1:8080", "10.244.0.4:8080", "fd00:10::1:8080"];
    mesh.until("both families", |mesh| addresses(mesh, &dual, 80) == ready)
        .await?;
    assert_eq!(
        addresses(&mesh, &dual, 81),
        ["10.244.0.1:5432", "10.244.0.4:5432"]
    );
    // A service that publishes what is not ready has it.
    mesh.until("the headless one", |mesh| {
        addresses(mesh, &headless, 9090) == ["10.244.0.9:9090"]
    })
    .await?;
    let named = mesh.snapshot().endpoints_of(&headless, 9090)[0]
        .hostname
        .clone();
    assert_eq!(named.as_deref(), Some("db-0"));

    let ending = SLICES.replace(
        "ready: true, serving: true}",
        "ready: false, serving: true, terminating: true}",
    );
    apply(&client, &namespace, &ending).await?;
    let left = ["10.244.0.4:8080", "fd00:10::1:8080"];
    mesh.until("the ending pod is gone", |mesh| {
        addresses(mesh, &dual, 80) == left
    })
    .await?;
    mesh.end().await
}

#[tokio::test]
async fn a_node_is_known_by_its_place() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    apply(&client, "default", NODE).await?;
    let mut mesh = Mesh::of_cluster(server.kubeconfig());
    mesh.synced().await?;
    let name = ObjectName::new("", "node-features");
    let place = mesh.snapshot().nodes[&name].locality.clone();
    assert_eq!(
        (&*place.region, &*place.zone, &*place.subzone),
        ("r", "a", "rack-1")
    );
    apply(&client, "default", &NODE.replace("zone: a,", "zone: b,")).await?;
    let moved = |mesh: &Mesh| mesh.snapshot().nodes[&name].locality.zone == "b";
    mesh.until("the node has moved", moved).await?;
    mesh.end().await
}
