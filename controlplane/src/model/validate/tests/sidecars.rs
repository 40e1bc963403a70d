//! `Sidecar`, and what is new in a `VirtualService` beside HTTP routes.

use super::findings;

#[test]
fn wrong_sidecars_are_refused_with_their_field() {
    for (spec, wanted) in [
        (
            "  egress:\n  - {hosts: []}\n  - {hosts: [a, /b, \"x/a b\"]}\n  - {port: {number: 0}, hosts: [\"*/*\"]}\n",
            vec![
                "!6 spec.egress[0].hosts: at least one host is needed, as namespace/host",
                "!7 spec.egress[1]: only one listener may be without a port",
                "!7 spec.egress[1].hosts[0]: \"a\" is not namespace/host",
                "!7 spec.egress[1].hosts[1]: a namespace is needed before the slash",
                "!7 spec.egress[1].hosts[2]: \"a b\" is not a host name: only letters, digits, '-', '_' and '.' may be used, and '*' only as the first label",
                "!8 spec.egress[2].port.number: 0 is not a port, which is 1 to 65535",
            ],
        ),
        (
            "  outboundTrafficPolicy: {mode: SOME}\n  workloadSelector: {}\n",
            vec![
                "!6 spec.workloadSelector.labels: at least one label is needed; without workloadSelector it is for all pods",
                "!5 spec.outboundTrafficPolicy.mode: \"SOME\" is not REGISTRY_ONLY or ALLOW_ANY",
            ],
        ),
        (
            "  ingress:\n  - {port: {number: 80}, defaultEndpoint: here}\n  - {port: {number: 80}, defaultEndpoint: \"10.0.0.1:80\", captureMode: SOME}\n",
            vec![
                "!6 spec.ingress[0].defaultEndpoint: \"here\" is not address:port",
                "!7 spec.ingress[1].captureMode: \"SOME\" is not DEFAULT, IPTABLES or NONE",
                "!7 spec.ingress[1].port: another listener is for port 80",
                "!7 spec.ingress[1].defaultEndpoint: \"10.0.0.1\" is not 127.0.0.1, 0.0.0.0, [::1] or [::]",
            ],
        ),
    ] {
        assert_eq!(findings("Sidecar", spec), wanted, "{spec}");
    }
}

#[test]
fn what_no_proxy_executes_of_a_sidecar_is_named() {
    let spec = "  workloadSelector: {labels: {app: a}}\n  egress: [{bind: 127.0.0.1, captureMode: NONE, hosts: [\"*/*\"]}]\n  \
                ingress: [{port: {number: 80}, defaultEndpoint: \"127.0.0.1:81\", tls: {}}, {port: {number: 81}, defaultEndpoint: \"unix:///x\"}]\n  \
                outboundTrafficPolicy: {egressProxy: {host: x}}\n";
    assert_eq!(
        findings("Sidecar", spec),
        [
            "6 spec.egress[0].bind: no proxy of this release executes it",
            "6 spec.egress[0].captureMode: every connection is captured",
            "7 spec.ingress[0].tls: no proxy of this release executes it",
            "7 spec.ingress[0].defaultEndpoint: calls are delivered to the port that they came for: they go to port 80",
            "7 spec.ingress[1].defaultEndpoint: no proxy of this release connects to a unix socket: calls go to port 81",
            "8 spec.outboundTrafficPolicy.egressProxy: no proxy of this release executes it",
            "6 spec.egress: pods of a namespace share listeners, so with a workloadSelector it has no effect",
            "8 spec.outboundTrafficPolicy: pods of a namespace share listeners, so with a workloadSelector it has no effect",
        ]
    );
}

#[test]
fn wrong_delegates_and_server_names_are_refused_with_their_field() {
    for (spec, wanted) in [
        (
            "  http: [{delegate: {}}]\n  gateways: [mesh]\n",
            vec![
                "!6 spec.gateways: without hosts others can delegate HTTP routes to it, and nothing else",
                "!5 spec.http[0].delegate.name: a name is needed",
            ],
        ),
        (
            "  hosts: [a.com]\n  http: [{delegate: {name: x}, route: [{destination: {host: b}}]}]\n",
            vec![
                "!6 spec.http[0]: exactly one of route, redirect, directResponse and delegate is needed",
            ],
        ),
        (
            "  hosts: [a.com]\n  tls:\n  - {route: [{destination: {host: b}}]}\n  - match: [{sniHosts: []}, {sniHosts: [\"*\", a b]}]\n    route: []\n",
            vec![
                "!7 spec.tls[0].match: at least one match is needed",
                "!9 spec.tls[1].route: at least one destination is needed",
                "!8 spec.tls[1].match[0].sniHosts: at least one host is needed",
                "!8 spec.tls[1].match[1].sniHosts[0]: \"*\" alone is no server name",
                "!8 spec.tls[1].match[1].sniHosts[1]: \"a b\" is not a host name: only letters, digits, '-', '_' and '.' may be used, and '*' only as the first label",
            ],
        ),
    ] {
        assert_eq!(findings("VirtualService", spec), wanted, "{spec}");
    }
}
