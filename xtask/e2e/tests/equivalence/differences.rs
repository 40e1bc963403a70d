//! The one list of what may differ between the ways of capturing. Each entry is tested: the value must be
//! seen, exactly so, or the entry is wrong.

use crate::scene::Mode;

/// Something that is another in one mode.
pub(crate) struct Difference {
    /// Where it differs.
    pub(crate) mode: Mode,
    /// In what.
    pub(crate) behaviour: &'static str,
    /// In which aspects of it.
    pub(crate) aspects: &'static [&'static str],
    /// What is seen there.
    pub(crate) value: &'static str,
    /// Why it cannot or shall not be the same.
    pub(crate) reason: &'static str,
}

const ISTIOS: &str = "a sidecar may not bind the client's address: its deliveries have Istio's, by which the rules know them";
const ANOTHER_CONNECTION: &str =
    "the server's sidecar makes a connection of its own to the application";
const WHO_PROBES: &str = "in a pod's namespace nothing but its source address tells a connection of the host from what the host \
     forwards and masquerades, and an address proves nothing: what may be a probe passes the proxy";
const PROBED_SIDECAR: &str = "as in Istio: what probes a sidecar's application is rewritten by the injector, or its port is excluded";

const NO_PEER: &str = "the server's sidecar sees another proxy's connection, which without certificates does not tell whose it is or \
     for which service: as between nodes";

/// All of it.
pub(crate) const PERMITTED: &[Difference] = &[
    Difference {
        mode: Mode::Iptables,
        behaviour: "probes",
        aspects: &["v4: HTTP", "v6: HTTP"],
        value: "through the proxy as node near",
        reason: WHO_PROBES,
    },
    Difference {
        mode: Mode::Iptables,
        behaviour: "probes",
        aspects: &["v4: TCP, nobody listens", "v6: TCP, nobody listens"],
        value: "succeeds",
        reason: WHO_PROBES,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "probes",
        aspects: &["v4: HTTP"],
        value: "through the proxy as 127.0.0.6",
        reason: PROBED_SIDECAR,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "probes",
        aspects: &["v6: HTTP"],
        value: "through the proxy as ::6",
        reason: PROBED_SIDECAR,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "probes",
        aspects: &["v4: TCP, nobody listens", "v6: TCP, nobody listens"],
        value: "succeeds",
        reason: PROBED_SIDECAR,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "addresses of TCP",
        aspects: &[
            "near v4: source",
            "near v6: source",
            "near v4-mapped: source",
            "far v4: source",
            "far v6: source",
        ],
        value: "127.0.0.6",
        reason: ISTIOS,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "addresses of TCP",
        aspects: &[
            "near v4: source port",
            "near v6: source port",
            "near v4-mapped: source port",
        ],
        value: "another",
        reason: ANOTHER_CONNECTION,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "addresses of HTTP",
        aspects: &[
            "near v4: source",
            "near v6: source",
            "far v4: source",
            "far v6: source",
        ],
        value: "127.0.0.6",
        reason: ISTIOS,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "addresses of no service",
        aspects: &["pod near v4: source", "pod far v4: source"],
        value: "127.0.0.6",
        reason: ISTIOS,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "addresses of no service",
        aspects: &["pod near v6: source", "pod far v6: source"],
        value: "::6",
        reason: ISTIOS,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "addresses of no service",
        aspects: &["pod near v4: source port", "pod near v6: source port"],
        value: "another",
        reason: ANOTHER_CONNECTION,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "host ports",
        aspects: &[
            "from outside v4",
            "from a pod of the node v4",
            "from a pod of another node v4",
            "from the node itself v4",
        ],
        value: "near as 127.0.0.6 to near:8080, through the proxy",
        reason: ISTIOS,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "host ports",
        aspects: &[
            "from outside v6",
            "from a pod of the node v6",
            "from a pod of another node v6",
            "from the node itself v6",
        ],
        value: "near as ::6 to near:8080, through the proxy",
        reason: ISTIOS,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "failed requests",
        aspects: &["nobody listens near: logged"],
        value: "authority=near:9555 method=GET path=/nobody-listens-near protocol=HTTP/1.1 response_code=503 \
                response_code_details=via_upstream response_flags=- route_name=default \
                upstream_cluster=outbound|9555||near.default.svc.cluster.local bytes_received=0 \
                requested_server_name=null",
        reason: "between pods of one node a node's proxy is both ends and sees the refusal itself; a client's sidecar \
                 hears of it from the server's, as between nodes",
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "metrics",
        aspects: &["istio_requests_total by destination at near, grpc 200"],
        value: "1 with connection_security_policy=none destination_app=echo \
                destination_canonical_revision=latest destination_canonical_service=echo \
                destination_cluster=Kubernetes destination_principal=unknown \
                destination_service=unknown destination_service_name=unknown \
                destination_service_namespace=unknown destination_version=latest \
                destination_workload_namespace=default grpc_response_status=0 response_flags=- \
                source_app=unknown source_canonical_revision=latest source_canonical_service=unknown \
                source_cluster=Kubernetes source_principal=unknown source_version=latest \
                source_workload=unknown source_workload_namespace=unknown",
        reason: NO_PEER,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "metrics",
        aspects: &["istio_requests_total by destination at near, http 200"],
        value: "3 with connection_security_policy=none destination_app=echo \
                destination_canonical_revision=latest destination_canonical_service=echo \
                destination_cluster=Kubernetes destination_principal=unknown \
                destination_service=unknown destination_service_name=unknown \
                destination_service_namespace=unknown destination_version=latest \
                destination_workload_namespace=default grpc_response_status= response_flags=- \
                source_app=unknown source_canonical_revision=latest source_canonical_service=unknown \
                source_cluster=Kubernetes source_principal=unknown source_version=latest \
                source_workload=unknown source_workload_namespace=unknown",
        reason: NO_PEER,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "metrics",
        aspects: &["istio_requests_total by destination at near, http 500"],
        value: "1 with connection_security_policy=none destination_app=echo \
                destination_canonical_revision=latest destination_canonical_service=echo \
                destination_cluster=Kubernetes destination_principal=unknown \
                destination_service=unknown destination_service_name=unknown \
                destination_service_namespace=unknown destination_version=latest \
                destination_workload_namespace=default grpc_response_status= response_flags=- \
                source_app=unknown source_canonical_revision=latest source_canonical_service=unknown \
                source_cluster=Kubernetes source_principal=unknown source_version=latest \
                source_workload=unknown source_workload_namespace=unknown",
        reason: NO_PEER,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "metrics",
        aspects: &[
            "istio_tcp_connections_closed_total by destination at near, tcp ",
            "istio_tcp_connections_opened_total by destination at near, tcp ",
        ],
        value: "2 with connection_security_policy=none destination_app=echo \
                destination_canonical_revision=latest destination_canonical_service=echo \
                destination_cluster=Kubernetes destination_principal=unknown \
                destination_service=unknown destination_service_name=unknown \
                destination_service_namespace=unknown destination_version=latest \
                destination_workload_namespace=default response_flags=- source_app=unknown \
                source_canonical_revision=latest source_canonical_service=unknown \
                source_cluster=Kubernetes source_principal=unknown source_version=latest \
                source_workload=unknown source_workload_namespace=unknown",
        reason: NO_PEER,
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "init containers",
        aspects: &["meanwhile"],
        value: "refused",
        reason: "between the init container's rules and the proxy's start nobody listens; a node's proxy listens before \
                 the pod is captured",
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "jobs",
        aspects: &["processes left when it has ended"],
        value: "millrace-proxy",
        reason: "a sidecar is a process of the pod: Kubernetes ends it after the pod's own containers where it is a \
                 native sidecar (an init container that restarts always)",
    },
    Difference {
        mode: Mode::Sidecar,
        behaviour: "drain",
        aspects: &["new connection"],
        value: "refused",
        reason: "a sidecar ends with its pod; a node's broker holds duplicates of the listening sockets for the next \
                 proxy",
    },
];
