//! `ServiceEntry` and `WorkloadEntry`.

use super::findings;

const PORT: &str = "  ports: [{number: 80, name: http, protocol: HTTP}]\n";

#[test]
fn wrong_entries_are_refused_with_their_field() {
    for (kind, spec, wanted) in [
        ("ServiceEntry", "  hosts: []\n  ports: []\n".to_owned(), vec![
            "!5 spec.hosts: at least one host is needed",
            "!6 spec.ports: at least one port is needed",
        ]),
        ("ServiceEntry", format!("  hosts: [\"*\", a b, x.com, x.com]\n{PORT}"), vec![
            "!5 spec.hosts[0]: the host \"*\" would take the traffic of every host",
            "!5 spec.hosts[1]: \"a b\" is not a host name: only letters, digits, '-', '_' and '.' may be used, and '*' only as the first label",
            "!5 spec.hosts[3]: the host x.com is there twice",
        ]),
        ("ServiceEntry", format!("  hosts: [x.com]\n{PORT}  resolution: MAYBE\n  location: MOON\n"), vec![
            "!7 spec.resolution: \"MAYBE\" is not one of NONE, STATIC, DNS and DNS_ROUND_ROBIN",
            "!8 spec.location: \"MOON\" is not MESH_EXTERNAL or MESH_INTERNAL",
        ]),
        ("ServiceEntry", format!("  hosts: [\"*.x.com\"]\n{PORT}  resolution: DNS\n"), vec![
            "!5 spec.hosts[0]: DNS cannot resolve a wildcard: endpoints or another resolution are needed",
        ]),
        ("ServiceEntry", format!("  hosts: [x.com]\n{PORT}  resolution: DNS\n  addresses: [10.0.0.0/8, nowhere]\n"), vec![
            "!8 spec.addresses[0]: networks go with the resolutions NONE and STATIC only",
            "!8 spec.addresses[1]: \"nowhere\" is not an address or a network",
        ]),
        ("ServiceEntry", format!("  hosts: [x.com]\n{PORT}  endpoints: [{{address: 10.0.0.1}}]\n"), vec![
            "!7 spec.endpoints: with the resolution NONE connections go where the client asked",
        ]),
        ("ServiceEntry", format!("  hosts: [x.com]\n{PORT}  resolution: STATIC\n  endpoints:\n  - {{address: y.com}}\n  - {{address: 10.0.0.1, ports: {{web: 70000}}}}\n"), vec![
            "!9 spec.endpoints[0].address: \"y.com\" is not an address, which the resolution STATIC needs",
            "!10 spec.endpoints[1].ports.web: the entry has no port \"web\"",
            "!10 spec.endpoints[1].ports.web: 70000 is not a port, which is 1 to 65535",
        ]),
        ("ServiceEntry", format!("  hosts: [x.com]\n{PORT}  resolution: DNS_ROUND_ROBIN\n  endpoints: [{{address: y.com}}, {{address: z.com}}]\n"), vec![
            "!8 spec.endpoints: DNS_ROUND_ROBIN takes one endpoint at most",
        ]),
        ("ServiceEntry", format!("  hosts: [x.com]\n{PORT}  resolution: STATIC\n  endpoints: [{{address: 10.0.0.1}}]\n  workloadSelector: {{labels: {{}}}}\n"), vec![
            "!9 spec.workloadSelector.labels: at least one label is needed",
            "!9 spec.workloadSelector: only one of endpoints and workloadSelector may be set",
        ]),
        ("ServiceEntry", "  hosts: [x.com]\n  ports:\n  - {number: 0, name: a, protocol: SMOKE}\n  - {number: 81, name: a}\n  - {number: 81}\n".to_owned(), vec![
            "!7 spec.ports[0].number: 0 is not a port, which is 1 to 65535",
            "!7 spec.ports[0].protocol: \"SMOKE\" is not a protocol that Istio knows",
            "!8 spec.ports[1].name: the name \"a\" is there twice",
            "!9 spec.ports[2].name: a name is needed",
            "!9 spec.ports[2].number: the port 81 is there twice",
        ]),
        ("ServiceEntry", format!("  hosts: [x.com]\n{PORT}  exportTo: [., \"*\", Not_A_Name]\n"), vec![
            "!7 spec.exportTo[1]: \"*\" stands alone: it already says it all",
            "!7 spec.exportTo[2]: \"Not_A_Name\" is not a namespace, \".\", \"*\" or \"~\"",
        ]),
        ("WorkloadEntry", "  labels: {app: a}\n".to_owned(), vec![
            "!4 spec.address: an address or a DNS name is needed",
        ]),
        ("WorkloadEntry", "  address: \"*.x.com\"\n".to_owned(), vec![
            "!5 spec.address: an endpoint cannot be a wildcard",
        ]),
    ] {
        assert_eq!(findings(kind, &spec), wanted, "{spec}");
    }
}

#[test]
fn what_no_proxy_executes_of_an_entry_is_named() {
    let spec = format!(
        "  hosts: [x.com]\n{PORT}  resolution: STATIC\n  subjectAltNames: [spiffe://x]\n  endpoints:\n  \
         - {{address: 10.0.0.1, network: other}}\n  - {{address: \"unix:///run/x\"}}\n"
    );
    assert_eq!(
        findings("ServiceEntry", &spec),
        [
            "10 spec.endpoints[0].network: no proxy of this release executes it",
            "11 spec.endpoints[1].address: no proxy of this release connects to a unix socket, so the endpoint is left out",
            "8 spec.subjectAltNames: no proxy of this release executes it",
        ]
    );
    let spec = "  hosts: [x.com]\n  ports: [{number: 53, name: dns, protocol: UDP}, {number: 80, name: http}]\n  resolution: STATIC\n";
    assert_eq!(
        findings("ServiceEntry", spec),
        [
            "6 spec.ports[0].protocol: no proxy of this release takes UDP, so the port is left out",
            "4 spec.endpoints: without endpoints and workloadSelector every call gets 503 (UH)",
        ]
    );
}
