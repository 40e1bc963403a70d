//! What agent, broker and proxy tell each other about a pod: its description, the address
//! families of its network namespace and how it is captured.
//!
//! A [`PodSpec`] is written by a registry or a person; [`PodSpec::validate`] is the one place
//! that says what a usable description is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Identity of a pod for its whole life; never reused by another pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUid(pub String);

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for PodUid {
    fn from(uid: &str) -> Self {
        Self(uid.to_owned())
    }
}

/// A container port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPort {
    /// Port name, as in a container's port list; its prefix names the protocol.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Port number.
    pub port: u16,
    /// Transport protocol, `TCP` when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Application protocol that overrides what the name says.
    #[serde(
        default,
        alias = "appProtocol",
        skip_serializing_if = "Option::is_none"
    )]
    pub app_protocol: Option<String>,
}

/// One pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// Identity of the pod.
    pub uid: PodUid,
    /// Name within its namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account, `default` when the source names none.
    #[serde(default = "default_service_account", alias = "serviceAccount")]
    pub service_account: String,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations; between processes only those that concern the mesh travel.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Labels of its namespace, which decide where its own say nothing; for the agent alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_labels: BTreeMap<String, String>,
    /// Annotations of its namespace, likewise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_annotations: BTreeMap<String, String>,
    /// Addresses, the primary one first.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Node that runs the pod.
    #[serde(default)]
    pub node: String,
    /// Path of the network namespace, `/proc/<pid>/ns/net` or `/run/netns/<name>`.
    pub netns: PathBuf,
    /// The pod's cgroup2 directory, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Container ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PodPort>,
}

fn default_service_account() -> String {
    "default".to_owned()
}

/// Why a pod description cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pod {pod}: field {field}: {reason}")]
pub struct InvalidPod {
    /// `namespace/name`, as far as the description says.
    pub pod: String,
    /// The offending field.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

const MAX_NAME: usize = 253;
const MAX_UID: usize = 128;
const MAX_IPS: usize = 16;
const MAX_PORTS: usize = 256;
/// Most bytes of a description between processes: with the labels of as many sockets as a message
/// carries it stays below [`super::MAX_MESSAGE`].
const MAX_ENCODED: usize = 40 * 1024;

impl PodSpec {
    /// `namespace/name`, the way people refer to the pod.
    pub fn qualified_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Checks every field that another process will rely on.
    ///
    /// # Errors
    /// Names the first field that is missing or malformed.
    pub fn validate(&self) -> Result<(), InvalidPod> {
        let fail = |field, reason: String| InvalidPod {
            pod: self.qualified_name(),
            field,
            reason,
        };
        let token = |text: &str, max: usize| {
            !text.is_empty()
                && text.len() <= max
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        for (field, text, max) in [
            ("uid", self.uid.0.as_str(), MAX_UID),
            ("name", self.name.as_str(), MAX_NAME),
            ("namespace", self.namespace.as_str(), MAX_NAME),
            ("service_account", self.service_account.as_str(), MAX_NAME),
        ] {
            if !token(text, max) {
                return Err(fail(
                    field,
                    format!("{text:?} is not 1 to {max} of letters, digits, '-', '.' and '_'"),
                ));
            }
        }
        if !self.netns.is_absolute() {
            return Err(fail(
                "netns",
                format!("{} is not an absolute path", self.netns.display()),
            ));
        }
        if self.ips.len() > MAX_IPS {
            return Err(fail("ips", format!("more than {MAX_IPS} addresses")));
        }
        if let Some(ip) = self
            .ips
            .iter()
            .find(|ip| ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
        {
            return Err(fail("ips", format!("{ip} is no address of a pod")));
        }
        if self.ports.len() > MAX_PORTS {
            return Err(fail("ports", format!("more than {MAX_PORTS} ports")));
        }
        if self.ports.iter().any(|port| port.port == 0) {
            return Err(fail("ports", "port 0 is not a port".to_owned()));
        }
        match self.for_wire().too_long() {
            Some((field, reason)) => Err(fail(field, reason)),
            None => Ok(()),
        }
    }

    /// The largest field of a description that does not fit into a message, with what to say.
    fn too_long(&self) -> Option<(&'static str, String)> {
        let size = |value: serde_json::Result<Vec<u8>>| value.map_or(usize::MAX, |b| b.len());
        let total = size(serde_json::to_vec(self));
        if total <= MAX_ENCODED {
            return None;
        }
        let fields = [
            ("labels", size(serde_json::to_vec(&self.labels))),
            ("annotations", size(serde_json::to_vec(&self.annotations))),
            ("ports", size(serde_json::to_vec(&self.ports))),
            ("node", size(serde_json::to_vec(&self.node))),
            ("netns", size(serde_json::to_vec(&self.netns))),
            ("cgroup", size(serde_json::to_vec(&self.cgroup))),
        ];
        let (field, length) = fields.into_iter().max_by_key(|(_, length)| *length)?;
        let reason = format!(
            "{length} bytes of the description's {total}, which may have {MAX_ENCODED} for the mesh"
        );
        Some((field, reason))
    }

    /// The same pod with only those annotations that concern the mesh, so that it fits into one
    /// message whatever else is written on the pod.
    #[must_use]
    pub fn for_wire(&self) -> Self {
        let mut pod = self.clone();
        pod.annotations
            .retain(|key, _| mesh_key(key.split('/').next().unwrap_or_default()));
        pod.namespace_labels.clear();
        pod.namespace_annotations.clear();
        pod
    }
}

fn mesh_key(domain: &str) -> bool {
    ["millrace.io", "istio.io"]
        .iter()
        .any(|suffix| domain == *suffix || domain.ends_with(&format!(".{suffix}")))
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The address families that a pod's network namespace has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Families {
    /// IPv4 sockets can be made there.
    pub v4: bool,
    /// IPv6 sockets can be made there.
    pub v6: bool,
}

/// How a pod's traffic reaches the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureMode {
    /// By the node's eBPF programs.
    Ebpf,
    /// By nat rules in the pod's network namespace.
    Iptables,
    /// Not captured.
    #[default]
    None,
}

impl CaptureMode {
    /// Whether programs of the node take what the pod sends and gets, which the kernel then carries unchanged.
    pub fn is_by_programs(self) -> bool {
        self == Self::Ebpf
    }

    /// Whether nat rules inside the pod do, which conntrack remembers for each connection.
    pub fn is_by_rules(self) -> bool {
        self == Self::Iptables
    }
}

impl fmt::Display for CaptureMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ebpf => "ebpf",
            Self::Iptables => "iptables",
            Self::None => "none",
        })
    }
}
