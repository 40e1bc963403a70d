//! Labels of Istio's metrics, and the keys under which a worker finds its series.

use std::fmt;
use std::sync::Arc;

use millrace_runtime::handoff::PodSpec;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use crate::cluster::{ClusterId, HostId};
use crate::flags::ResponseFlags;
use crate::resource::cluster::ServiceRef;
use crate::resource::endpoint::WorkloadRef;

/// Value of labels beyond the largest number of series.
const OTHER: &str = "overflow";

/// Who reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// The client's side.
    Source,
    /// The server's side.
    Destination,
}

/// `request_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP.
    Http,
    /// gRPC.
    Grpc,
    /// Raw TCP.
    Tcp,
}

/// What identifies a series of requests within a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HttpKey {
    /// Who and what.
    pub peers: TcpKey,
    /// Status.
    pub status: u16,
    /// `grpc-status`.
    pub grpc_status: Option<u32>,
    /// Whether it is gRPC.
    pub grpc: bool,
}

/// What identifies a series of connections within a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpKey {
    /// Who reports.
    pub reporter: Reporter,
    /// The local pod by its number; 0 where there is none.
    pub pod: u64,
    /// The other end where it is a local pod, likewise.
    pub peer: u64,
    /// The cluster, where one was chosen.
    pub cluster: Option<ClusterId>,
    /// The host, where one was chosen.
    pub host: Option<HostId>,
    /// Flags.
    pub flags: ResponseFlags,
}

/// Both ends and the service between them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peers {
    /// Who reports.
    pub reporter: Reporter,
    /// The client, where it is known.
    pub source: Option<Workload>,
    /// The server, where it is known.
    pub destination: Option<Workload>,
    /// The service, where it is known: host, name, namespace.
    pub service: Option<(Arc<str>, Arc<str>, Arc<str>)>,
}

/// One end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    /// Name of the workload.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Canonical service.
    pub service: Arc<str>,
    /// Canonical revision.
    pub revision: Arc<str>,
}

/// Labels of requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HttpLabels {
    /// Both ends.
    pub peers: Peers,
    /// `http` or `grpc`.
    pub protocol: Protocol,
    /// Status.
    pub status: u16,
    /// `grpc-status`.
    pub grpc_status: Option<u32>,
    /// Flags, as text.
    pub flags: String,
}

/// Labels of connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TcpLabels {
    /// Both ends.
    pub peers: Peers,
    /// Flags, as text.
    pub flags: String,
}

impl From<&WorkloadRef> for Workload {
    fn from(workload: &WorkloadRef) -> Self {
        Self {
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            service: workload.canonical_name.clone(),
            revision: workload.canonical_revision.clone(),
        }
    }
}

/// As Istio derives it from a pod: labels first, else the pod's name without the suffixes of its
/// `ReplicaSet`.
impl From<&PodSpec> for Workload {
    fn from(pod: &PodSpec) -> Self {
        let label = |keys: &[&str]| keys.iter().find_map(|key| pod.labels.get(*key));
        let name = label(&["service.istio.io/workload-name"])
            .map_or_else(|| workload_name(&pod.name), String::as_str);
        let service = label(&[
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ])
        .map_or(name, String::as_str);
        let revision = label(&[
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ])
        .map_or("latest", String::as_str);
        Self {
            name: name.into(),
            namespace: pod.namespace.as_str().into(),
            service: service.into(),
            revision: revision.into(),
        }
    }
}

impl Peers {
    /// The service as a cluster names it.
    pub fn service_of(service: Option<&ServiceRef>) -> Option<(Arc<str>, Arc<str>, Arc<str>)> {
        service.map(|s| (s.host.clone(), s.name.clone(), s.namespace.clone()))
    }
}

/// `reviews-v1` of `reviews-v1-545db77b95-2zq5p`; a `StatefulSet`'s `-0` goes too.
fn workload_name(pod: &str) -> &str {
    // Kubernetes makes both suffixes of these characters alone, so that they spell nothing.
    let generated = |part: &str| {
        part.bytes()
            .all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b))
    };
    let Some((rest, last)) = pod.rsplit_once('-') else {
        return pod;
    };
    if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) && last.len() < 4 {
        return rest;
    }
    if last.len() != 5 || !generated(last) {
        return pod;
    }
    match rest.rsplit_once('-') {
        Some((name, hash)) if (6..=10).contains(&hash.len()) && generated(hash) => name,
        _ => rest,
    }
}

impl Reporter {
    fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

fn put(encoder: &mut LabelSetEncoder<'_>, name: &str, value: &str) -> fmt::Result {
    (name, value).encode(encoder.encode_label())
}

impl Peers {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        put(encoder, "reporter", self.reporter.as_str())?;
        let end = |workload: &Option<Workload>| {
            let unknown: Arc<str> = Arc::from("unknown");
            workload.clone().unwrap_or_else(|| Workload {
                name: unknown.clone(),
                namespace: unknown.clone(),
                service: unknown.clone(),
                revision: Arc::from("latest"),
            })
        };
        for (side, workload) in [
            ("source", end(&self.source)),
            ("destination", end(&self.destination)),
        ] {
            put(encoder, &format!("{side}_workload"), &workload.name)?;
            put(
                encoder,
                &format!("{side}_workload_namespace"),
                &workload.namespace,
            )?;
            put(encoder, &format!("{side}_principal"), "unknown")?;
            put(encoder, &format!("{side}_app"), &workload.service)?;
            put(encoder, &format!("{side}_version"), &workload.revision)?;
            put(
                encoder,
                &format!("{side}_canonical_service"),
                &workload.service,
            )?;
            put(
                encoder,
                &format!("{side}_canonical_revision"),
                &workload.revision,
            )?;
            put(encoder, &format!("{side}_cluster"), "Kubernetes")?;
        }
        let (host, name, namespace) = match &self.service {
            Some((host, name, namespace)) => (&**host, &**name, &**namespace),
            None => ("unknown", "unknown", "unknown"),
        };
        put(encoder, "destination_service", host)?;
        put(encoder, "destination_service_name", name)?;
        put(encoder, "destination_service_namespace", namespace)
    }
}

impl Peers {
    fn other(reporter: Reporter) -> Self {
        let other: Arc<str> = Arc::from(OTHER);
        let workload = Workload {
            name: other.clone(),
            namespace: other.clone(),
            service: other.clone(),
            revision: other.clone(),
        };
        Self {
            reporter,
            source: Some(workload.clone()),
            destination: Some(workload),
            service: Some((other.clone(), other.clone(), other)),
        }
    }
}

/// Labels that may stand for any others of their kind.
pub(super) trait Overflow {
    /// What a series is counted under when there are too many: who the peers are is lost.
    fn overflow(&self) -> Self;
}

impl Overflow for HttpLabels {
    fn overflow(&self) -> Self {
        Self {
            peers: Peers::other(self.peers.reporter),
            grpc_status: None,
            flags: OTHER.into(),
            ..self.clone()
        }
    }
}

impl Overflow for TcpLabels {
    fn overflow(&self) -> Self {
        Self {
            peers: Peers::other(self.peers.reporter),
            flags: OTHER.into(),
        }
    }
}

impl EncodeLabelSet for HttpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.peers.encode(encoder)?;
        put(encoder, "request_protocol", self.protocol.as_str())?;
        put(encoder, "response_code", &self.status.to_string())?;
        let grpc = self.grpc_status.map(|s| s.to_string()).unwrap_or_default();
        put(encoder, "grpc_response_status", &grpc)?;
        put(encoder, "response_flags", &self.flags)?;
        put(encoder, "connection_security_policy", security(&self.peers))
    }
}

impl EncodeLabelSet for TcpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.peers.encode(encoder)?;
        put(encoder, "request_protocol", Protocol::Tcp.as_str())?;
        put(encoder, "response_flags", &self.flags)?;
        put(encoder, "connection_security_policy", security(&self.peers))
    }
}

/// As Istio reports it: only the server's side knows.
fn security(peers: &Peers) -> &'static str {
    match peers.reporter {
        Reporter::Source => "unknown",
        Reporter::Destination => "none",
    }
}
