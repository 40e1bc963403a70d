//! CDS: clusters as routes and listeners come to name them.

use std::time::Duration;

use super::schema::{CircuitBreakers, Cluster, HostUrl, Limits, OutlierDetection};
use super::{Client, Renderer, names, schema};
use crate::model::entry::Resolution;
use crate::model::mesh::OutboundPolicy;
use crate::model::names::ClusterName;
use crate::model::policy::{LoadBalancer, TrafficPolicy};
use crate::model::route::{Destination, Reference, SubsetRef};
use crate::model::service::{Protocol, Service, ServiceKind, ServicePort};
use crate::model::workload::{Labels, has_all};
use crate::snapshot::MeshSnapshot;

/// To the address that the client asked for.
const ORIGINAL_DESTINATION: &str = "out.orig-dst-cluster-tcp";
/// A cluster without endpoints: requests get 503.
const NOWHERE: &str = "not-rendered";

/// The answer of CDS, and what it leaves out.
pub(super) fn document(
    snapshot: &MeshSnapshot,
    client: &Client,
) -> (schema::Clusters, Vec<String>) {
    let mut renderer = Renderer::new(snapshot, client);
    renderer.listeners();
    for port in renderer.http_ports() {
        renderer.routes(port);
    }
    let clusters = renderer.clusters.into_values().collect();
    let left_out = renderer.left_out.into_iter().collect();
    (schema::Clusters { clusters }, left_out)
}

impl Renderer<'_> {
    /// The cluster of a service's port, whole.
    pub(super) fn whole(&mut self, service: &Service, port: &ServicePort) -> String {
        let policy = self
            .snapshot
            .policy_of(service, Some(&self.client.namespace))
            .on_port(port.port, None);
        self.outbound(service, port, &Labels::new(), &policy)
    }

    /// The cluster that a destination means for what came to a port; one without endpoints where it means nothing.
    pub(super) fn destination(&mut self, to: &Destination, at: u16) -> String {
        let (snapshot, namespace) = (self.snapshot, self.client.namespace.as_str());
        if let Some(Reference { kind, from, to }) = &to.reference
            && !snapshot.is_granted(*kind, from, to)
        {
            return self.nowhere();
        }
        let ClusterName::Outbound { port, host, .. } = snapshot.cluster_of(to, at, Some(namespace))
        else {
            return self.nowhere();
        };
        let service = snapshot.service_on(&host, port, Some(namespace));
        let Some((service, port)) = service.and_then(|of| Some((of, of.port(port)?))) else {
            return self.nowhere();
        };
        let policy = snapshot.policy_of(service, Some(namespace));
        let subset = match &to.subset {
            SubsetRef::All => None,
            SubsetRef::Labels(labels) => Some(policy.name_of(labels)),
            SubsetRef::Named(name) => Some(name.clone()),
        };
        let Some(subset) = subset else {
            return self.whole(service, port);
        };
        let Some(subset) = policy.subsets().remove(&subset) else {
            return self.nowhere();
        };
        let traffic = policy.on_port(port.port, subset.subset);
        self.outbound(service, port, &subset.labels, &traffic)
    }

    /// A port of the client's own application.
    pub(super) fn inbound_cluster(&mut self, port: u16, protocol: Protocol) -> String {
        let url = format!("tcp://127.0.0.1:{port}");
        self.keep(Cluster {
            hosts: vec![HostUrl { url }],
            features: protocol.is_http2().then_some("http2"),
            ..self.base(names::inbound(port), "static")
        })
    }

    /// Where traffic of no service goes; none where the mesh refuses it.
    pub(super) fn elsewhere(&mut self) -> Option<String> {
        let policy = self.snapshot.outbound_policy(&self.client.namespace);
        (policy == OutboundPolicy::AllowAny).then(|| self.original_destination())
    }

    pub(super) fn original_destination(&mut self) -> String {
        self.keep(Cluster {
            lb_type: "original_dst_lb",
            ..self.base(ORIGINAL_DESTINATION.to_owned(), "original_dst")
        })
    }

    /// Where requests go that nothing may get: what a rule asks for has no words in this API.
    pub(super) fn nowhere(&mut self) -> String {
        self.keep(Cluster {
            service_name: Some(NOWHERE.to_owned()),
            ..self.base(format!("out.{NOWHERE}"), "sds")
        })
    }

    fn outbound(
        &mut self,
        service: &Service,
        port: &ServicePort,
        labels: &Labels,
        policy: &TrafficPolicy,
    ) -> String {
        let key = names::ServiceKey::of(service, port, labels);
        let (kind, hosts) = self.kind(service, port, labels);
        let passthrough = policy.load_balancer == Some(LoadBalancer::Passthrough);
        let kind = if passthrough { "original_dst" } else { kind };
        let mut cluster = Cluster {
            service_name: (kind == "sds").then(|| key.to_string()),
            hosts,
            lb_type: match policy.load_balancer {
                _ if kind == "original_dst" => "original_dst_lb",
                Some(LoadBalancer::LeastRequest) => "least_request",
                Some(LoadBalancer::Random) => "random",
                _ => "round_robin",
            },
            features: port.protocol.is_http2().then_some("http2"),
            ..self.base(key.cluster(), kind)
        };
        if let Some(timeout) = policy.pool.connect_timeout {
            cluster.connect_timeout_ms = millis(timeout);
        }
        let pool = &policy.pool;
        cluster.max_requests_per_connection = pool.max_requests_per_connection;
        let limits = Limits {
            max_connections: pool.max_connections,
            max_pending_requests: pool.max_pending_requests,
            max_requests: pool.max_requests,
            max_retries: pool.max_retries,
        };
        cluster.circuit_breakers =
            (limits != Limits::default()).then_some(CircuitBreakers { default: limits });
        cluster.outlier_detection = policy.outlier.as_ref().map(|outlier| OutlierDetection {
            consecutive_5xx: outlier.consecutive_5xx.filter(|errors| *errors > 0),
            consecutive_gateway_failure: outlier.consecutive_gateway.filter(|errors| *errors > 0),
            interval_ms: outlier.interval.map(millis),
            base_ejection_time_ms: outlier.base_ejection_time.map(millis),
            max_ejection_percent: outlier.max_ejection_percent,
            enforcing_consecutive_5xx: (outlier.consecutive_5xx == Some(0)).then_some(0),
        });
        if matches!(policy.load_balancer, Some(LoadBalancer::Hash(_))) {
            let what = format!("{}: a hash: endpoints are taken in turn", service.hostname);
            self.left_out.insert(what);
        }
        self.keep(cluster)
    }

    /// How a service's endpoints are found, and the names to ask DNS for.
    fn kind(
        &self,
        service: &Service,
        port: &ServicePort,
        labels: &Labels,
    ) -> (&'static str, Vec<HostUrl>) {
        let url = |host: &str, port: u16| HostUrl {
            url: format!("tcp://{}:{port}", bracketed(host)),
        };
        let entry = match &service.kind {
            ServiceKind::ClusterIp | ServiceKind::Headless => return ("sds", Vec::new()),
            ServiceKind::ExternalName(target) => {
                return ("strict_dns", vec![url(target, port.port)]);
            }
            ServiceKind::Entry(entry) => entry,
        };
        let kind = match entry.resolution {
            Resolution::None => return ("original_dst", Vec::new()),
            Resolution::Static => return ("sds", Vec::new()),
            Resolution::Dns => "strict_dns",
            Resolution::DnsRoundRobin => "logical_dns",
        };
        let behind = self.snapshot.endpoints.get(&service.name);
        let known = behind.map_or(&[][..], |behind| behind.names_of_port(port.port));
        let mut hosts: Vec<HostUrl> = Vec::new();
        for name in known.iter().filter(|name| has_all(labels, &name.labels)) {
            let host = url(&name.host, name.port);
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        // Such a cluster must name something; SDS may know of nothing.
        if hosts.is_empty() {
            return ("sds", hosts);
        }
        (kind, hosts)
    }

    fn base(&self, name: String, kind: &'static str) -> Cluster {
        Cluster {
            name,
            service_name: None,
            connect_timeout_ms: millis(self.snapshot.mesh.connect_timeout),
            kind,
            lb_type: "round_robin",
            max_requests_per_connection: None,
            hosts: Vec::new(),
            features: None,
            circuit_breakers: None,
            outlier_detection: None,
        }
    }

    fn keep(&mut self, cluster: Cluster) -> String {
        let name = cluster.name.clone();
        self.clusters.entry(name.clone()).or_insert(cluster);
        name
    }
}

/// As an authority has it.
pub(super) fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// Milliseconds; a time that is shorter than one is not none at all.
pub(super) fn millis(duration: Duration) -> u64 {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    millis.max(u64::from(!duration.is_zero()))
}
