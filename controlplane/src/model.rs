//! The typed model: what pilot knows, free of Kubernetes, YAML and proto.
//!
//! Input: CRD and Kubernetes types through [`validate`] and `kube::convert`; output: the values the
//! index stores and the translation reads. Nothing here does I/O.

pub mod analyze;
pub mod api_route;
pub mod delegate;
pub mod endpoint;
pub mod entry;
pub mod gateway;
pub mod mesh;
pub mod names;
pub mod near;
pub mod node;
pub mod place;
pub mod policy;
pub mod problem;
pub mod route;
pub mod service;
pub mod sidecar;
pub mod validate;
pub mod workload;

use std::sync::Arc;

use self::api_route::{ApiRoute, ReferenceGrant};
use self::endpoint::EndpointSlice;
use self::entry::{ServiceEntry, WorkloadEntry};
use self::gateway::Gateway;
use self::names::ObjectName;
use self::node::Node;
use self::policy::DestinationRule;
use self::route::{RouteRule, VirtualService};
use self::service::Service;
use self::sidecar::Sidecar;
use self::workload::{Workload, WorkloadTemplate};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $text:literal,)*) => {
        /// The kinds of object that pilot reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// The kind as an object's `kind` field spells it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// A Kubernetes Namespace.
    Namespace = "Namespace",
    /// A Kubernetes Node.
    Node = "Node",
    /// A Kubernetes `ServiceAccount`.
    ServiceAccount = "ServiceAccount",
    /// A Kubernetes Service.
    Service = "Service",
    /// A Kubernetes `EndpointSlice`.
    EndpointSlice = "EndpointSlice",
    /// A Kubernetes Endpoints object, read where no `EndpointSlice` exists.
    Endpoints = "Endpoints",
    /// A Kubernetes Pod.
    Pod = "Pod",
    /// A Kubernetes Deployment: describes pods, makes none.
    Deployment = "Deployment",
    /// A Kubernetes Ingress.
    Ingress = "Ingress",
    /// An Istio `VirtualService`.
    VirtualService = "VirtualService",
    /// An Istio `DestinationRule`.
    DestinationRule = "DestinationRule",
    /// A seed-era `RouteRule` (`config.istio.io/v1alpha2`).
    RouteRule = "RouteRule",
    /// An Istio `ServiceEntry`.
    ServiceEntry = "ServiceEntry",
    /// An Istio `WorkloadEntry`.
    WorkloadEntry = "WorkloadEntry",
    /// An Istio `Sidecar`.
    Sidecar = "Sidecar",
    /// A seed-era `EgressRule` (`config.istio.io/v1alpha2`).
    EgressRule = "EgressRule",
    /// A Gateway API `HTTPRoute`.
    HttpRoute = "HTTPRoute",
    /// A Gateway API `GRPCRoute`.
    GrpcRoute = "GRPCRoute",
    /// A Gateway API `TCPRoute`.
    TcpRoute = "TCPRoute",
    /// A Gateway API `TLSRoute`.
    TlsRoute = "TLSRoute",
    /// A Gateway API `ReferenceGrant`.
    ReferenceGrant = "ReferenceGrant",
    /// A Gateway API `Gateway`.
    Gateway = "Gateway",
    /// A Gateway API `GatewayClass`: judged, not kept.
    GatewayClass = "GatewayClass",
    /// An Istio `Gateway`.
    IstioGateway = "Gateway",
}

impl Kind {
    /// Whether objects of this kind live outside namespaces.
    pub fn is_cluster_scoped(self) -> bool {
        matches!(self, Self::Namespace | Self::Node | Self::GatewayClass)
    }
}

/// What an object is called across all kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// The object's kind.
    pub kind: Kind,
    /// Its namespace and name.
    pub name: ObjectName,
}

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// One validated object on its way into the index.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A namespace, known by name only.
    Namespace(ObjectName),
    /// A node.
    Node(Arc<Node>),
    /// A service account, known by name only.
    ServiceAccount(ObjectName),
    /// A service.
    Service(Arc<Service>),
    /// Endpoints as the registry states them.
    EndpointSlice(Arc<EndpointSlice>),
    /// A pod.
    Workload(Arc<Workload>),
    /// What a Deployment says its pods look like.
    Template(Arc<WorkloadTemplate>),
    /// Routes of Istio's form.
    VirtualService(Arc<VirtualService>),
    /// Subsets and traffic policy.
    DestinationRule(Arc<DestinationRule>),
    /// Routes of the seed-era form.
    RouteRule(Arc<RouteRule>),
    /// Services that are not the cluster's own.
    ServiceEntry(Arc<ServiceEntry>),
    /// An endpoint that is no pod.
    WorkloadEntry(Arc<WorkloadEntry>),
    /// What pods see of the mesh.
    Sidecar(Arc<Sidecar>),
    /// Routes of the Gateway API.
    ApiRoute(Arc<ApiRoute>),
    /// References between namespaces that are allowed.
    ReferenceGrant(Arc<ReferenceGrant>),
    /// A way into the mesh.
    Gateway(Arc<Gateway>),
}

impl Object {
    /// The identity under which the index stores this object.
    pub fn id(&self) -> ObjectId {
        let (kind, name) = match self {
            Self::Namespace(name) => (Kind::Namespace, name),
            Self::Node(node) => (Kind::Node, &node.name),
            Self::ServiceAccount(name) => (Kind::ServiceAccount, name),
            Self::Service(service) => (Kind::Service, &service.name),
            Self::EndpointSlice(slice) => (slice.kind(), &slice.name),
            Self::Workload(workload) => (Kind::Pod, &workload.name),
            Self::Template(template) => (Kind::Deployment, &template.name),
            Self::VirtualService(rule) => (Kind::VirtualService, &rule.name),
            Self::DestinationRule(rule) => (Kind::DestinationRule, &rule.name),
            Self::RouteRule(rule) => (Kind::RouteRule, &rule.name),
            Self::ServiceEntry(entry) => (entry.kind, &entry.name),
            Self::WorkloadEntry(entry) => (Kind::WorkloadEntry, &entry.workload.name),
            Self::Sidecar(sidecar) => (Kind::Sidecar, &sidecar.name),
            Self::ApiRoute(route) => (route.kind, &route.name),
            Self::ReferenceGrant(grant) => (Kind::ReferenceGrant, &grant.name),
            Self::Gateway(gateway) => (gateway.kind, &gateway.name),
        };
        ObjectId {
            kind,
            name: name.clone(),
        }
    }
}
