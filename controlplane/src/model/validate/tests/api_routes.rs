//! The Gateway API's kinds, and `EgressRule`.

use super::findings_of;

const API: &str = "gateway.networking.k8s.io/v1";

#[test]
fn wrong_routes_are_refused_with_their_field() {
    for (kind, spec, wanted) in [
        (
            "HTTPRoute",
            "  parentRefs:\n  - {name: gate}\n  - {group: apps, kind: Deployment, name: a}\n  - {group: \"\", kind: Service, name: \"\", port: 70000}\n  rules: [{}]\n",
            vec![
                "!7 spec.parentRefs[1].kind: Deployment is no parent of routes: Service, ServiceEntry and Gateway are",
                "!8 spec.parentRefs[2].name: a name is needed",
                "!8 spec.parentRefs[2].port: 70000 is not a port, which is 1 to 65535",
            ],
        ),
        (
            "HTTPRoute",
            "  rules:\n  - matches: [{path: {type: Some, value: x}, headers: [{name: \"a b\", value: x}], queryParams: [{name: q, type: RegularExpression, value: \"(\"}]}]\n",
            vec![
                "!6 spec.rules[0].matches[0].path.value: \"x\" does not begin with a slash",
                "!6 spec.rules[0].matches[0].path.type: \"Some\" is not Exact, PathPrefix or RegularExpression",
                "!6 spec.rules[0].matches[0].headers[0].name: \"a b\" is not a header name",
                "!6 spec.rules[0].matches[0].queryParams[0].value: \"(\" is not a regular expression: error: unclosed group",
            ],
        ),
        (
            "HTTPRoute",
            "  rules:\n  - backendRefs: [{name: a}, {name: b, port: 80, weight: -1}, {kind: Bucket, name: c, port: 80}, {name: a.b, port: 80}]\n",
            vec![
                "!6 spec.rules[0].backendRefs[0].port: a port is needed",
                "!6 spec.rules[0].backendRefs[1].weight: -1 is not a weight, which is 0 to 1000000",
                "!6 spec.rules[0].backendRefs[2].kind: Bucket is no backend: Service and Hostname are",
                "!6 spec.rules[0].backendRefs[3].name: \"a.b\" is not the name of a backend",
            ],
        ),
        (
            "HTTPRoute",
            "  rules:\n  - filters:\n    - {type: RequestMirror}\n    - {type: ExtensionRef}\n    - {type: URLRewrite}\n    - {type: Magic}\n    - {type: RequestRedirect, requestRedirect: {statusCode: 200, scheme: ftp, path: {type: ReplacePrefixMatch, replacePrefixMatch: /a}}}\n    matches: [{path: {type: Exact, value: /}}]\n",
            vec![
                "7 spec.rules[0].filters[0].type: no proxy of this release executes RequestMirror",
                "!8 spec.rules[0].filters[1].type: no proxy of this release executes ExtensionRef, and the rule must not go without it",
                "!9 spec.rules[0].filters[2].urlRewrite: the filter's type needs it",
                "!10 spec.rules[0].filters[3].type: \"Magic\" is not a filter of the Gateway API",
                "!11 spec.rules[0].filters[4].requestRedirect.statusCode: 200 is not one of 301, 302, 303, 307 and 308",
                "!11 spec.rules[0].filters[4].requestRedirect.scheme: \"ftp\" is not http or https",
                "!11 spec.rules[0].filters[4].requestRedirect.path.type: it needs one match, of the type PathPrefix",
            ],
        ),
        (
            "HTTPRoute",
            "  rules:\n  - timeouts: {request: 1s, backendRequest: 2s}\n    retry: {codes: [200], backoff: 1s}\n    sessionPersistence: {}\n",
            vec![
                "8 spec.rules[0].sessionPersistence: no proxy of this release executes it",
                "!6 spec.rules[0].timeouts.backendRequest: it cannot be longer than the whole request's",
                "7 spec.rules[0].retry.backoff: no proxy of this release executes it",
                "!7 spec.rules[0].retry.codes: 200 is not a status code from 400 to 599",
            ],
        ),
        (
            "GRPCRoute",
            "  rules:\n  - matches: [{method: {}}, {method: {type: Some, service: a}}]\n    filters: [{type: URLRewrite, urlRewrite: {}}]\n",
            vec![
                "!6 spec.rules[0].matches[0].method: a service or a method is needed",
                "!6 spec.rules[0].matches[1].method.type: \"Some\" is not Exact or RegularExpression",
                "!7 spec.rules[0].filters[0].type: URLRewrite is no filter of a GRPCRoute",
            ],
        ),
        (
            "TLSRoute",
            "  hostnames: [\"*\", a b]\n  rules: [{backendRefs: []}]\n",
            vec![
                "!5 spec.hostnames[0]: \"*\" alone is no server name",
                "!5 spec.hostnames[1]: \"a b\" is not a host name: only letters, digits, '-', '_' and '.' may be used, and '*' only as the first label",
                "!6 spec.rules[0].backendRefs: at least one backend is needed",
            ],
        ),
        (
            "TCPRoute",
            "  rules: []\n",
            vec!["!5 spec.rules: one rule is needed, not 0"],
        ),
        (
            "ReferenceGrant",
            "  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute}, {group: a, kind: B, namespace: c}]\n  to: [{group: \"\", kind: Secret}]\n",
            vec![
                "!5 spec.from[0].namespace: a namespace is needed",
                "5 spec.from[1].kind: nothing of kind B refers to others here",
                "6 spec.to[0].kind: routes of this release name services, not Secret",
            ],
        ),
    ] {
        assert_eq!(findings_of(API, kind, spec), wanted, "{spec}");
    }
}

#[test]
fn gateways_are_judged_and_what_needs_certificates_is_named() {
    for (version, kind, spec, wanted) in [
        (
            API,
            "Gateway",
            "  listeners:\n  - {name: a, port: 0, protocol: HTTP}\n  - {name: a, port: 443, protocol: HTTPS, hostname: a b}\n  - {name: b, port: 1, protocol: SMOKE}\n",
            vec![
                "!4 spec.gatewayClassName: a name is needed",
                "!6 spec.listeners[0].port: 0 is not a port, which is 1 to 65535",
                "!7 spec.listeners[1].name: \"a\" is empty or another listener's",
                "!7 spec.listeners[1].hostname: \"a b\" is not a host name: only letters, digits, '-', '_' and '.' may be used, and '*' only as the first label",
                "!7 spec.listeners[1].tls: HTTPS needs it",
                "7 spec.listeners[1].protocol: gateways of this release let in plain HTTP alone: nobody serves them certificates",
                "!8 spec.listeners[2].protocol: \"SMOKE\" is not one of HTTP, HTTPS, TLS, TCP and UDP",
                "4 spec.gatewayClassName: its class \"\" is another controller's, so it has no effect here",
            ],
        ),
        (
            API,
            "GatewayClass",
            "  controllerName: x\n",
            vec!["!5 spec.controllerName: \"x\" is not a domain, a slash and a path"],
        ),
        (
            "networking.istio.io/v1",
            "Gateway",
            "  servers:\n  - {hosts: [ns/a.com, \"?\"]}\n  - {port: {number: 80}, hosts: []}\n",
            vec![
                "!6 spec.servers[0].hosts[1]: \"?\" is not a host name: only letters, digits, '-', '_' and '.' may be used, and '*' only as the first label",
                "!6 spec.servers[0].port: a port is needed",
                "!7 spec.servers[1].hosts: at least one host is needed",
                "!7 spec.servers[1].port.name: a name is needed",
                "!7 spec.servers[1].port.protocol: a protocol is needed",
            ],
        ),
    ] {
        assert_eq!(findings_of(version, kind, spec), wanted, "{spec}");
    }
}

#[test]
fn wrong_egress_rules_are_refused_with_their_field() {
    for (spec, wanted) in [
        (
            "  destination: {service: a.com}\n  useEgressProxy: true\n  ports: [{port: 443, protocol: https}, {port: 1, protocol: tcp}, {port: 1, protocol: smoke}]\n",
            vec![
                "6 spec.useEgressProxy: no egress proxy runs in this release: pods' own proxies go there",
                "7 spec.ports[0].protocol: no proxy of this release starts TLS: what the client sends goes through as it is",
                "!7 spec.ports[1].protocol: tcp needs an address or a network, not a host",
                "!7 spec.ports[2].port: the port 1 is there twice",
                "!7 spec.ports[2].protocol: \"smoke\" is not one of http, https, http2, grpc, tcp and mongo",
            ],
        ),
        (
            "  destination: {service: 10.0.0.0/8}\n  ports: [{port: 80, protocol: http}]\n",
            vec![
                "!6 spec.ports[0].protocol: http is told by its host: an address takes tcp and mongo",
            ],
        ),
        (
            "  destination: {service: \"*\"}\n  ports: []\n",
            vec![
                "!5 spec.destination.service: the host \"*\" would take the traffic of every host",
                "!6 spec.ports: at least one port is needed",
            ],
        ),
    ] {
        assert_eq!(
            findings_of("config.istio.io/v1alpha2", "EgressRule", spec),
            wanted
        );
    }
}
