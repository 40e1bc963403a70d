//! The static file of a proxy that runs alone (`-c FILE`): an Envoy bootstrap in YAML or JSON,
//! of today's form or the seed era's.
//!
//! Input: a file. Output: a [`Bootstrap`]: what it serves by itself and which control plane, if
//! any, it follows. Older forms are rewritten first ([`legacy`]); after that the file goes the
//! same way as what xDS gives (`xds::convert`). Errors name file, field and, where it is
//! certain, the line.

mod legacy;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use millrace_xds::client::ClientConfig;
use millrace_xds::node::Node;
use serde_json::Value;

use crate::resource::{Cluster, ClusterKind};
use crate::snapshot::Resources;
use crate::xds::convert::bootstrap::{self as proto, Static};
use crate::xds::convert::{Invalid, Unsupported};
use crate::xds::{Mode, refs};

/// What a file says.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// What is served from the file.
    pub resources: Resources,
    /// What is taken from a control plane besides.
    pub mode: Mode,
    /// The control plane, where there is one.
    pub server: Option<ClientConfig>,
    /// The admin port, where there is one.
    pub admin: Option<Admin>,
    /// What the file asks for in vain, by resource.
    pub unsupported: Vec<(String, Vec<Unsupported>)>,
    /// The file in today's form, for `/config_dump`.
    pub dump: Value,
}

/// The admin port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Its address.
    pub address: SocketAddr,
    /// Where its requests are logged.
    pub access_log_path: Option<PathBuf>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is neither YAML nor JSON.
    #[error("{path}: malformed YAML or JSON: {reason}")]
    Syntax {
        /// The file.
        path: String,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// A field is unknown or has a bad value.
    #[error("{path}{line}: {reason}", line = Line(*line))]
    Field {
        /// The file.
        path: String,
        /// The line, where it is certain.
        line: Option<usize>,
        /// Field and reason.
        reason: String,
    },
}

struct Line(Option<usize>);

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// Reads a file. `node` is who the proxy is where the file does not say.
///
/// # Errors
/// When the file cannot be read or used; everything it holds must be good.
pub fn load(path: &Path, node: &Node) -> Result<Bootstrap, BootstrapError> {
    let text = std::fs::read_to_string(path).map_err(|source| BootstrapError::Read {
        path: path.display().to_string(),
        source,
    })?;
    parse(&text, &path.display().to_string(), node)
}

/// Reads the text of a file; `path` is for messages.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, path: &str, node: &Node) -> Result<Bootstrap, BootstrapError> {
    let mut value: Value =
        serde_saphyr::from_str(text).map_err(|error| BootstrapError::Syntax {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    let field = |reason: Reason| BootstrapError::Field {
        path: path.to_owned(),
        line: reason.field.as_deref().and_then(|f| line_of(text, f)),
        reason: reason.text,
    };
    legacy::upgrade(&mut value).map_err(|e| field(Reason::at(&e.path, &e.reason)))?;
    let parsed = proto::read(&value).map_err(|e| field(e.into()))?;
    assemble(parsed, value, node).map_err(field)
}

/// What is wrong, and the path of the field where it is one.
struct Reason {
    field: Option<String>,
    text: String,
}

impl Reason {
    fn at(field: &str, reason: &str) -> Self {
        Self {
            field: Some(field.to_owned()),
            text: format!("{field}: {reason}"),
        }
    }
}

impl From<Invalid> for Reason {
    fn from(error: Invalid) -> Self {
        Self {
            text: error.to_string(),
            field: Some(error.field),
        }
    }
}

fn assemble(parsed: Static, dump: Value, node: &Node) -> Result<Bootstrap, Reason> {
    let mut resources = Resources::default();
    for cluster in parsed.clusters {
        let name = cluster.name.clone();
        if resources
            .clusters
            .insert(name.clone(), cluster.into())
            .is_some()
        {
            return Err(duplicate("clusters", name.as_str()));
        }
    }
    for listener in parsed.listeners {
        let name = listener.name.clone();
        if resources
            .listeners
            .insert(name.clone(), listener.into())
            .is_some()
        {
            return Err(duplicate("listeners", name.as_str()));
        }
    }
    let dynamic = parsed.dynamic;
    if dynamic.as_ref().is_none_or(|d| !d.clusters) {
        check_clusters(&resources, &parsed.unchecked_listeners)?;
    }
    let server = match &dynamic {
        Some(dynamic) => Some(server(&resources, &dynamic.server, parsed.node, node)?),
        None => None,
    };
    Ok(Bootstrap {
        mode: Mode::Wildcard {
            listeners: dynamic.as_ref().is_some_and(|d| d.listeners),
            clusters: dynamic.as_ref().is_some_and(|d| d.clusters),
            names: false,
        },
        resources,
        server,
        admin: parsed.admin,
        unsupported: parsed.unsupported,
        dump,
    })
}

fn duplicate(kind: &str, name: &str) -> Reason {
    Reason::at(
        &format!("static_resources.{kind}"),
        &format!("the name {name:?} occurs twice"),
    )
}

/// Without a source of further clusters an inline route to an unknown one is a mistake, as in
/// Envoy, unless `validate_clusters` is false.
fn check_clusters(resources: &Resources, unchecked: &[String]) -> Result<(), Reason> {
    for (name, listener) in &resources.listeners {
        if unchecked.iter().any(|n| n == name.as_str()) {
            continue;
        }
        for cluster in refs::clusters_of_listener(listener) {
            if !resources.clusters.contains_key(cluster.as_str()) {
                let reason = format!("listener {name:?} routes to the unknown cluster {cluster:?}");
                return Err(Reason::at("static_resources.listeners", &reason));
            }
        }
    }
    Ok(())
}

/// The control plane behind a static cluster.
fn server(
    resources: &Resources,
    cluster: &str,
    own: Option<Node>,
    fallback: &Node,
) -> Result<ClientConfig, Reason> {
    let field = "dynamic_resources";
    let Some(config) = resources.clusters.get(cluster) else {
        let reason = format!("the static cluster {cluster:?} does not exist");
        return Err(Reason::at(field, &reason));
    };
    let Some(address) = address_of(config) else {
        let reason = format!("the cluster {cluster:?} has no endpoint to connect to");
        return Err(Reason::at(field, &reason));
    };
    let mut node = own.unwrap_or_else(|| fallback.clone());
    if node.id.is_empty() {
        node.id.clone_from(&fallback.id);
    }
    if node.cluster.is_empty() {
        node.cluster.clone_from(&fallback.cluster);
    }
    node.user_agent_name.clone_from(&fallback.user_agent_name);
    node.user_agent_version
        .clone_from(&fallback.user_agent_version);
    let mut client = ClientConfig::new(format!("http://{address}"), node);
    client.connect_timeout = config.connect_timeout;
    Ok(client)
}

fn address_of(cluster: &Cluster) -> Option<String> {
    match &cluster.kind {
        ClusterKind::Static(endpoints) => {
            endpoints.iter().next().map(|(_, e)| e.address.to_string())
        }
        ClusterKind::StrictDns(hosts) | ClusterKind::LogicalDns(hosts) => hosts
            .hosts
            .first()
            .map(|(host, port)| format!("{host}:{port}")),
        ClusterKind::Eds(_) | ClusterKind::OriginalDst => None,
    }
}

/// The line of a field, where its name occurs once in the file.
fn line_of(text: &str, field: &str) -> Option<usize> {
    let last = field.rsplit('.').next()?;
    let name = last.split('[').next().filter(|n| !n.is_empty())?;
    let keys = [format!("{name}:"), format!("\"{name}\":")];
    let mut lines = text.lines().enumerate().filter(|(_, line)| {
        let line = line.split('#').next().unwrap_or_default();
        keys.iter().any(|key| {
            line.match_indices(key.as_str()).any(|(at, _)| {
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-')
            })
        })
    });
    let (line, _) = lines.next()?;
    lines.next().is_none().then_some(line + 1)
}
