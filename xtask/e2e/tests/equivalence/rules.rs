//! The services of the scene and the rules for them, which pilot has before anything else starts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use millrace_testkit::mesh::Mesh;
use serde_json::json;

use crate::server;

/// Services with the labels that they select by. Nobody has their addresses: what arrives was captured.
pub(crate) const SERVICES: [(&str, (&str, &str)); 4] = [
    ("near", ("place", "near")),
    ("far", ("place", "far")),
    ("routed", ("app", "echo")),
    ("empty", ("app", "nobody")),
];

/// A service's cluster address.
pub(crate) fn address(service: &str, v6: bool) -> IpAddr {
    let number = SERVICES
        .iter()
        .zip(1..)
        .find(|((name, _), _)| *name == service);
    let number: u8 = number.map_or(0, |(_, number)| number);
    if v6 {
        Ipv6Addr::new(0xfd00, 0x96, 8, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 96, 8, number).into()
    }
}

const RULES: &str = r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: routed, namespace: default}
spec:
  host: routed
  subsets:
  - {name: near, labels: {place: near}}
  - {name: far, labels: {place: far}}
  - {name: none, labels: {place: nowhere}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: routed, namespace: default}
spec:
  hosts: [routed]
  tcp:
  - match: [{port: 9000}]
    route: [{destination: {host: routed, subset: far}}]
  - route: [{destination: {host: routed, subset: near}}]
  http:
  - match: [{uri: {exact: /ready}}]
    directResponse: {status: 299, body: {string: "the rules are in force"}}
  - match: [{headers: {x-to: {exact: far}}}]
    route: [{destination: {host: routed, subset: far}}]
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new, authority: elsewhere.example, redirectCode: 307}
  - match: [{uri: {prefix: /rewrite}}]
    rewrite: {uri: /written, authority: rewritten.example}
    route: [{destination: {host: routed, subset: near}}]
  - match: [{uri: {prefix: /hold}}]
    timeout: 0.3s
    route: [{destination: {host: routed, subset: near}}]
  - match: [{uri: {prefix: /retry}}]
    retries: {attempts: 2, retryOn: 5xx}
    route: [{destination: {host: routed, subset: near}}]
  - match: [{uri: {prefix: /headers}}]
    headers:
      request: {set: {x-set: a}, remove: [x-gone]}
      response: {add: {x-answer: b}}
    route: [{destination: {host: routed, subset: near}}]
  - match: [{uri: {prefix: /subset-of-nobody}}]
    route: [{destination: {host: routed, subset: none}}]
  - match: [{uri: {prefix: /nowhere}}]
    route: [{destination: {host: nowhere}}]
  - match: [{uri: {prefix: /all-to-far}}]
    route:
    - {destination: {host: routed, subset: near}, weight: 0}
    - {destination: {host: routed, subset: far}, weight: 100}
  - route: [{destination: {host: routed, subset: near}}]
"#;

/// Tells pilot of all of it.
pub(crate) fn apply(mesh: &Mesh) -> anyhow::Result<()> {
    for (name, (label, value)) in SERVICES {
        let ports = server::PORTS.iter().map(|(name, port)| {
            if name.is_empty() {
                json!({ "name": format!("p{port}"), "port": port, "targetPort": port })
            } else {
                json!({ "name": name, "port": port, "targetPort": port })
            }
        });
        let (v4, v6) = (address(name, false), address(name, true));
        let mut selector = serde_json::Map::new();
        selector.insert(label.to_owned(), value.into());
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "clusterIP": v4,
                "clusterIPs": [v4, v6],
                "ipFamilies": ["IPv4", "IPv6"],
                "selector": selector,
                "ports": ports.collect::<Vec<_>>(),
            },
        });
        mesh.pilot()
            .apply(&format!("service-{name}.yaml"), &manifest.to_string())?;
    }
    mesh.pilot().apply("rules.yaml", RULES)
}
