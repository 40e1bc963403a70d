//! Objects from one file's text: documents, kinds, lists, and what is wrong with each.
//!
//! Called by the file registry for every file it reads; pure, so the whole behaviour of a bad file is
//! tested without a file system.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::convert;
use super::yaml::{self, Node, Value};
use crate::model::names::ObjectName;
use crate::model::problem::{Finding, Problem, Reason, Severity};
use crate::model::validate::{self, Validated};
use crate::model::{Kind, Object, ObjectId};

/// The versions of Istio's networking kinds, which all say the same.
const ISTIO_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];

/// Where an object was read, for problems that are found when others are known too.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// In a file.
    File {
        /// Its name.
        name: String,
        /// The object as it stands there.
        tree: Node,
    },
    /// At an API server, in this version.
    Cluster {
        /// `metadata.resourceVersion`.
        resource_version: String,
        /// The object as [`stated`] has it.
        text: Arc<str>,
    },
}

impl Origin {
    /// The file's name.
    pub fn file(&self) -> Option<&str> {
        match self {
            Self::File { name, .. } => Some(name),
            Self::Cluster { .. } => None,
        }
    }

    /// The line of a field of the object, or of the deepest part of its path that exists.
    pub fn line_of(&self, field: &str) -> Option<u64> {
        match self {
            Self::File { tree, .. } => Some(tree.line_of(field)),
            Self::Cluster { .. } => None,
        }
    }

    /// The version that was read from an API server.
    pub fn resource_version(&self) -> Option<&str> {
        match self {
            Self::File { .. } => None,
            Self::Cluster {
                resource_version, ..
            } => Some(resource_version),
        }
    }

    /// The object as [`stated`] has it.
    pub fn text(&self) -> Arc<str> {
        match self {
            Self::File { tree, .. } => stated(tree),
            Self::Cluster { text, .. } => Arc::clone(text),
        }
    }
}

/// An object with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced {
    /// The object.
    pub object: Object,
    /// Where it was read; kept for kinds that refer to others.
    pub origin: Option<Arc<Origin>>,
}

/// What a file says.
#[derive(Debug, Default)]
pub struct Contents {
    /// The objects that are good.
    pub objects: Vec<Sourced>,
    /// Objects that are there but cannot be used as they stand: their last good version is kept.
    pub refused: Vec<ObjectId>,
    /// Whether a part of the file could not be told apart, so that any of its objects may be meant.
    pub unidentified: bool,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Reads one object that came from an API server, where there are no files and lines to name.
pub fn read_value(object: serde_json::Value, domain: &str) -> Contents {
    let mut reader = FileReader {
        file: None,
        domain,
        contents: Contents::default(),
    };
    reader.object(&Node::from(object), "");
    reader.contents
}

/// Reads a file's text. `file` is the name that problems carry.
pub fn read(file: &str, text: &str, domain: &str) -> Contents {
    let mut reader = FileReader {
        file: Some(file),
        domain,
        contents: Contents::default(),
    };
    for document in yaml::documents(text) {
        match yaml::parse(document) {
            Ok(node) => reader.object(&node, ""),
            Err(error) => {
                reader.contents.unidentified = true;
                reader.problem(
                    None,
                    error.line,
                    Finding {
                        severity: Severity::Error,
                        reason: Reason::Unreadable,
                        field: String::new(),
                        message: error.to_string(),
                    },
                );
            }
        }
    }
    reader.contents
}

/// `apiVersion`, `kind` and `metadata` of any object.
struct Header {
    group: String,
    version: String,
    kind: String,
    name: ObjectName,
}

impl Header {
    fn describe(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }
}

#[derive(Deserialize)]
struct TypeMeta {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Option<HeaderMeta>,
}

#[derive(Deserialize)]
struct HeaderMeta {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
}

struct FileReader<'a> {
    file: Option<&'a str>,
    domain: &'a str,
    contents: Contents,
}

impl FileReader<'_> {
    fn problem(&mut self, object: Option<String>, line: u64, finding: Finding) {
        self.contents.problems.push(Problem {
            severity: finding.severity,
            reason: finding.reason,
            file: self.file.map(str::to_owned),
            line: self.file.map(|_| line),
            object,
            field: finding.field,
            message: finding.message,
        });
    }

    /// Reads one object, or each item of a list. `prefix` is the path from the document's root.
    fn object(&mut self, node: &Node, prefix: &str) {
        if node.value == Value::Null {
            return;
        }
        let kind = node
            .field("kind")
            .and_then(Node::as_str)
            .unwrap_or_default();
        if kind.ends_with("List")
            && let Some(Value::Seq(items)) = node.field("items").map(|items| &items.value)
        {
            for (index, item) in items.iter().enumerate() {
                self.object(item, &format!("items[{index}]"));
            }
            return;
        }
        let header = match read_header(node) {
            Ok(header) => header,
            Err(error) => {
                self.contents.unidentified = true;
                let field = join(prefix, &error.path);
                return self.problem(None, error.line, Finding::error(field, error.message));
            }
        };
        self.identified(node, &header);
    }

    fn identified(&mut self, node: &Node, header: &Header) {
        let version = header.version.as_str();
        let known = match header.group.as_str() {
            "" | "discovery.k8s.io" | "apps" | "networking.k8s.io" if version == "v1" => {
                self.kubernetes(node, header)
            }
            "networking.istio.io" if ISTIO_VERSIONS.contains(&version) => self.istio(node, header),
            "config.istio.io" if version == "v1alpha2" => self.seeds(node, header),
            "gateway.networking.k8s.io" => self.gateway_api(node, header),
            _ => false,
        };
        if !known {
            self.other_kind(node, header);
        }
    }

    /// Kubernetes' own kinds; false for one that pilot does not read.
    fn kubernetes(&mut self, node: &Node, header: &Header) -> bool {
        match (header.group.as_str(), header.kind.as_str()) {
            ("", "Namespace") => self.accept(node, header, Kind::Namespace, convert::namespace),
            ("", "Node") => self.accept(node, header, Kind::Node, convert::node),
            ("", "ServiceAccount") => {
                self.accept(node, header, Kind::ServiceAccount, convert::service_account);
            }
            ("", "Service") => self.accept(node, header, Kind::Service, convert::service),
            ("", "Endpoints") => self.accept(node, header, Kind::Endpoints, convert::endpoints),
            ("", "Pod") => self.accept(node, header, Kind::Pod, convert::pod),
            ("discovery.k8s.io", "EndpointSlice") => {
                self.accept(node, header, Kind::EndpointSlice, convert::endpoint_slice);
            }
            ("networking.k8s.io", "Ingress") => {
                self.accept(node, header, Kind::Ingress, convert::ingress);
            }
            ("apps", "Deployment") => {
                self.accept(node, header, Kind::Deployment, convert::deployment);
            }
            _ => return false,
        }
        true
    }

    /// Istio's kinds; false for one that pilot does not read.
    fn istio(&mut self, node: &Node, header: &Header) -> bool {
        match header.kind.as_str() {
            "VirtualService" => {
                self.judge(
                    node,
                    header,
                    Kind::VirtualService,
                    validate::virtual_service,
                );
            }
            "DestinationRule" => {
                self.judge(
                    node,
                    header,
                    Kind::DestinationRule,
                    validate::destination_rule,
                );
            }
            "Gateway" => self.judge(node, header, Kind::IstioGateway, validate::istio_gateway),
            "Sidecar" => self.judge(node, header, Kind::Sidecar, validate::sidecar),
            "ServiceEntry" => self.judge(node, header, Kind::ServiceEntry, validate::service_entry),
            "WorkloadEntry" => {
                self.judge(node, header, Kind::WorkloadEntry, validate::workload_entry);
            }
            _ => return false,
        }
        true
    }

    /// Kinds of the seeds' time; false for one that pilot does not read.
    fn seeds(&mut self, node: &Node, header: &Header) -> bool {
        match header.kind.as_str() {
            "RouteRule" => self.judge(node, header, Kind::RouteRule, validate::route_rule),
            "EgressRule" => self.judge(node, header, Kind::EgressRule, validate::egress_rule),
            _ => return false,
        }
        true
    }

    /// The Gateway API's kinds; false for one that pilot does not read, or not in this version.
    fn gateway_api(&mut self, node: &Node, header: &Header) -> bool {
        match (header.kind.as_str(), header.version.as_str()) {
            ("HTTPRoute", "v1" | "v1beta1") => {
                self.judge(node, header, Kind::HttpRoute, validate::http_route);
            }
            ("GRPCRoute", "v1" | "v1alpha2") => {
                self.judge(node, header, Kind::GrpcRoute, validate::grpc_route);
            }
            ("TCPRoute", "v1" | "v1alpha2") => {
                self.judge(node, header, Kind::TcpRoute, validate::tcp_route);
            }
            ("TLSRoute", "v1" | "v1alpha3" | "v1alpha2") => {
                self.judge(node, header, Kind::TlsRoute, validate::tls_route);
            }
            ("ReferenceGrant", "v1" | "v1beta1" | "v1alpha2") => {
                self.judge(
                    node,
                    header,
                    Kind::ReferenceGrant,
                    validate::reference_grant,
                );
            }
            ("Gateway", "v1" | "v1beta1") => {
                self.judge(node, header, Kind::Gateway, validate::gateway);
            }
            ("GatewayClass", "v1" | "v1beta1") => {
                self.judge(node, header, Kind::GatewayClass, validate::gateway_class);
            }
            _ => return false,
        }
        true
    }

    fn judge<T: DeserializeOwned>(
        &mut self,
        node: &Node,
        header: &Header,
        kind: Kind,
        judge: fn(&T, &str) -> Validated<Object>,
    ) {
        self.accept(node, header, kind, |object: T, domain| {
            judge(&object, domain)
        });
    }

    fn other_kind(&mut self, node: &Node, header: &Header) {
        let object = Some(header.describe());
        let Some(finding) = other_kind(header) else {
            return;
        };
        if finding.severity == Severity::Error {
            self.contents.unidentified = true;
        }
        self.problem(object, node.line_of("kind"), finding);
    }

    fn accept<T: DeserializeOwned>(
        &mut self,
        node: &Node,
        header: &Header,
        kind: Kind,
        convert: impl FnOnce(T, &str) -> Validated<Object>,
    ) {
        let name = if kind.is_cluster_scoped() {
            ObjectName::new("", &header.name.name)
        } else {
            header.name.clone()
        };
        let id = ObjectId { kind, name };
        let object = Some(id.to_string());
        let decoded = match yaml::decode::<T>(node) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.contents.refused.push(id);
                return self.problem(
                    object,
                    error.line,
                    Finding::error(error.path, error.message),
                );
            }
        };
        for (path, line) in decoded.unknown {
            // Both are in every typed object, but the typed structs leave them to the header.
            if path != "apiVersion" && path != "kind" {
                let finding = Finding::warning(
                    Reason::UnknownField,
                    path,
                    "no such field, it has no effect",
                );
                self.problem(object.clone(), line, finding);
            }
        }
        let validated = convert(decoded.value, self.domain);
        for finding in validated.findings {
            let line = node.line_of(&finding.field);
            self.problem(object.clone(), line, finding);
        }
        match validated.object {
            Some(object) => {
                let refers = !matches!(object, Object::Workload(_) | Object::EndpointSlice(_));
                let origin = refers.then(|| origin(self.file, node)).flatten();
                let origin = origin.map(Arc::new);
                self.contents.objects.push(Sourced { object, origin });
            }
            None => self.contents.refused.push(id),
        }
    }
}

fn origin(file: Option<&str>, node: &Node) -> Option<Origin> {
    if let Some(name) = file {
        return Some(Origin::File {
            name: name.to_owned(),
            tree: node.clone(),
        });
    }
    let version = node.field("metadata")?.field("resourceVersion")?.as_str()?;
    Some(Origin::Cluster {
        resource_version: version.to_owned(),
        text: stated(node),
    })
}

/// What people have said of an object, as JSON: its spec, and of its metadata what is theirs. What an API server adds
/// is no part of it, nor are statuses: those change without anybody having said anything new.
fn stated(node: &Node) -> Arc<str> {
    let mut metadata = serde_json::Map::new();
    for field in [
        "name",
        "namespace",
        "labels",
        "annotations",
        "creationTimestamp",
    ] {
        let value = node.field("metadata").and_then(|it| it.field(field));
        if let Some(value) = value {
            metadata.insert(field.to_owned(), value.into());
        }
    }
    if let Some(annotations) = metadata.get_mut("annotations")
        && let Some(annotations) = annotations.as_object_mut()
    {
        // kubectl's copy of the whole.
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    let spec = node.field("spec").map(Json::from).unwrap_or_default();
    serde_json::json!({"metadata": metadata, "spec": spec})
        .to_string()
        .into()
}

fn join(prefix: &str, path: &str) -> String {
    match (prefix.is_empty(), path.is_empty()) {
        (true, _) => path.to_owned(),
        (false, true) => prefix.to_owned(),
        (false, false) => format!("{prefix}.{path}"),
    }
}

fn read_header(node: &Node) -> Result<Header, yaml::DecodeError> {
    if !matches!(node.value, Value::Map(_)) {
        let message = "an object with apiVersion, kind and metadata is expected".to_owned();
        return Err(yaml::DecodeError {
            path: String::new(),
            line: node.line,
            message,
        });
    }
    let meta = yaml::decode::<TypeMeta>(node)?.value;
    let (group, version) = meta
        .api_version
        .split_once('/')
        .unwrap_or(("", &meta.api_version));
    let metadata = meta.metadata.unwrap_or(HeaderMeta {
        name: None,
        namespace: None,
    });
    let Some(name) = metadata.name.filter(|name| !name.is_empty()) else {
        let line = node.line_of("metadata");
        let message = format!("a {} needs a name", meta.kind);
        return Err(yaml::DecodeError {
            path: "metadata.name".to_owned(),
            line,
            message,
        });
    };
    let namespace = metadata
        .namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or("default");
    Ok(Header {
        group: group.to_owned(),
        version: version.to_owned(),
        name: ObjectName::new(namespace, &name),
        kind: meta.kind,
    })
}

/// What to say about a kind that pilot does not serve: nothing for what is no pilot's business.
fn other_kind(header: &Header) -> Option<Finding> {
    let mesh = header.group.ends_with("istio.io") || header.group == "gateway.networking.k8s.io";
    let known = [
        "VirtualService",
        "DestinationRule",
        "RouteRule",
        "ServiceEntry",
        "WorkloadEntry",
        "Sidecar",
        "Gateway",
        "GatewayClass",
        "HTTPRoute",
        "GRPCRoute",
        "TCPRoute",
        "TLSRoute",
        "ReferenceGrant",
        "EgressRule",
        "EndpointSlice",
        "Deployment",
        "Service",
        "Pod",
    ];
    if known.contains(&header.kind.as_str())
        && (mesh || header.group.is_empty() || header.group == "discovery.k8s.io")
    {
        let message = format!(
            "{} has no version {:?} that pilot reads",
            header.kind,
            api_version(header)
        );
        return Some(Finding::error("apiVersion", message));
    }
    if mesh || (header.group == "networking.k8s.io" && header.kind == "Ingress") {
        let message = format!(
            "no proxy of this release executes {} {}",
            api_version(header),
            header.kind
        );
        return Some(Finding::not_executed("kind", message));
    }
    None
}

fn api_version(header: &Header) -> String {
    if header.group.is_empty() {
        header.version.clone()
    } else {
        format!("{}/{}", header.group, header.version)
    }
}

#[cfg(test)]
mod tests;
