//! Messages between the agent and the broker.
//!
//! Every call carries a number and is answered by exactly one reply with that number; besides
//! replies the broker sends events, so the agent learns of proxies that come and go and of
//! sockets that were made after `Adopted`. Errors are values: a call that fails leaves the
//! connection usable.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Message;
use super::pod::{CaptureMode, Families, Family, PodSpec, PodUid};
use super::proxy::ListenerLabel;

/// What happens to a pod's traffic when its capture is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCaptureLoss {
    /// Connections fail; nothing un-proxied leaves the pod.
    #[default]
    Closed,
    /// Connections go direct.
    Open,
}

impl fmt::Display for OnCaptureLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
        })
    }
}

/// What the nat rules of a pod shall do; the agent's rule generator turns it into a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IptablesConfig {
    /// Seed-era rules: both directions to `proxy_port`, nothing else.
    pub seed_era: bool,
    /// Port of outbound capture.
    pub proxy_port: u16,
    /// Port of inbound capture.
    pub inbound_capture_port: u16,
    /// Uids whose sockets are never captured.
    pub proxy_uids: Vec<u32>,
    /// Gids whose sockets are never captured.
    pub proxy_gids: Vec<u32>,
    /// Mark of the proxy's own sockets, matched under `0xffff`.
    pub proxy_mark: u32,
    /// Mark bit of delivery sockets; traffic with it is left alone inbound too.
    pub delivery_bit: u32,
    /// Inbound ports to capture; `None` captures every port.
    pub inbound_ports_include: Option<Vec<u16>>,
    /// Inbound ports never captured.
    pub inbound_ports_exclude: Vec<u16>,
    /// Outbound ports captured whatever their address.
    pub outbound_ports_include: Vec<u16>,
    /// Outbound ports never captured.
    pub outbound_ports_exclude: Vec<u16>,
    /// Outbound destinations to capture; `None` captures every address.
    pub outbound_cidrs_include: Option<Vec<IpNet>>,
    /// Outbound destinations never captured.
    pub outbound_cidrs_exclude: Vec<IpNet>,
    /// Sends DNS over UDP and TCP to `dns_port`.
    pub redirect_dns: bool,
    /// Port of DNS capture.
    pub dns_port: u16,
    /// Resolvers whose DNS is captured; empty captures all of it.
    pub dns_servers: Vec<std::net::IpAddr>,
    /// Source addresses that inbound capture leaves alone: the node's own, as kubelet probes come
    /// from there.
    pub host_probe_sources: Vec<std::net::IpAddr>,
    /// Writes IPv6 rules as well.
    pub ipv6: bool,
}

impl Default for IptablesConfig {
    fn default() -> Self {
        Self {
            seed_era: false,
            proxy_port: 15001,
            inbound_capture_port: 15006,
            proxy_uids: vec![1337],
            proxy_gids: vec![1337],
            proxy_mark: super::OUTBOUND_MARK,
            delivery_bit: super::DELIVERY_BIT,
            inbound_ports_include: None,
            inbound_ports_exclude: vec![15001, 15006, 15008, 15020, 15021, 15053, 15090],
            outbound_ports_include: Vec::new(),
            outbound_ports_exclude: Vec::new(),
            outbound_cidrs_include: None,
            outbound_cidrs_exclude: Vec::new(),
            redirect_dns: true,
            dns_port: 15053,
            dns_servers: Vec::new(),
            host_probe_sources: Vec::new(),
            ipv6: true,
        }
    }
}

/// One numbered call of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentCall {
    /// Chosen by the agent, repeated in the reply.
    pub id: u64,
    /// What is asked.
    pub request: AgentRequest,
}

impl Message for AgentCall {
    fn fd_count(&self) -> usize {
        0
    }
}

/// Agent → broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentRequest {
    /// First call.
    Hello {
        /// [`super::PROTOCOL_VERSION`] of the agent.
        version: u32,
        /// The agent's process id.
        pid: u32,
    },
    /// Takes a pod on: opens its namespace, makes (or finds) its listening sockets, prepares its
    /// delivery routes. Idempotent for a uid whose namespace is unchanged.
    Adopt {
        /// The pod; the broker opens `netns` itself.
        pod: Box<PodSpec>,
    },
    /// Gives a pod up: rules, routes and sockets are removed.
    Release {
        /// The pod.
        uid: PodUid,
    },
    /// Says how a pod is captured; `iptables` writes the rules, any other mode removes them.
    Capture {
        /// The pod.
        uid: PodUid,
        /// The new mode.
        mode: CaptureMode,
        /// What happens when capture is lost.
        on_loss: OnCaptureLoss,
        /// Rules for [`CaptureMode::Iptables`], exclusions of a closed pod's guard in either mode.
        iptables: Option<Box<IptablesConfig>>,
    },
    /// Every pod that shall be adopted is; what was only returned by a proxy may go.
    Synced,
    /// Lists adopted pods, a page at a time.
    List {
        /// The last uid of the page before.
        after: Option<PodUid>,
    },
    /// Makes fresh sockets in the pod for a canary. They carry no mark, so capture takes them for an
    /// application's, and whatever gets past it all the same dies at the first router.
    CanarySockets {
        /// The pod.
        uid: PodUid,
    },
    /// Asks what inside pods is not as it was left, a page at a time.
    Inspect {
        /// The last uid of the page before.
        after: Option<PodUid>,
    },
    /// Asks for the names of loaded eBPF programs, which the agent may not look up itself.
    ProgramNames {
        /// Their ids.
        ids: Vec<u32>,
    },
}

/// Broker → agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAgent {
    /// Answer to the call of the same number.
    Reply {
        /// Number of the call.
        id: u64,
        /// What came of it.
        result: Result<AgentAnswer, BrokerFault>,
    },
    /// Event: the proxies that are connected now, oldest epoch first.
    Proxies {
        /// Their states.
        proxies: Vec<ProxyState>,
        /// None has been heard of for [`super::HEARTBEAT_DEADLINE`]: nothing listens in any pod.
        gone: bool,
        /// Ids of the cgroups that broker and proxies live in; none when they cannot be told from
        /// those of others.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        trusted: Vec<u64>,
    },
    /// Event: the pod's listening sockets are now these; its inbound ones are attached.
    Listeners {
        /// The pod.
        uid: PodUid,
        /// One label per descriptor; none means that nothing listens any more.
        inbound: Vec<ListenerLabel>,
    },
}

impl Message for ToAgent {
    fn fd_count(&self) -> usize {
        match self {
            Self::Reply {
                result: Ok(AgentAnswer::Adopted(adopted)),
                ..
            } => 1 + adopted.inbound.len(),
            Self::Reply {
                result: Ok(AgentAnswer::CanarySockets { sockets }),
                ..
            } => sockets.len(),
            Self::Listeners { inbound, .. } => inbound.len(),
            _ => 0,
        }
    }
}

/// A call that went well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentAnswer {
    /// To `Hello`.
    Welcome {
        /// [`super::PROTOCOL_VERSION`] of the broker.
        version: u32,
        /// The broker's process id.
        pid: u32,
    },
    /// To `Adopt`; the first descriptor is the namespace, the others are `inbound`.
    Adopted(Adopted),
    /// To every call that has nothing to say but that it is done.
    Done,
    /// To `Capture`, with what was found out on the way.
    Captured {
        /// The mode now.
        mode: CaptureMode,
        /// Tool and form used, for people.
        detail: String,
        /// What the pod goes without although it is captured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        problem: Option<String>,
    },
    /// To `List`.
    Pods {
        /// At most 100 of them, ordered by uid.
        pods: Vec<BrokerPod>,
        /// Proxies that are connected.
        proxies: Vec<ProxyState>,
        /// There are more pods after the last one.
        more: bool,
    },
    /// To `CanarySockets`; one descriptor each.
    CanarySockets {
        /// What they are.
        sockets: Vec<CanarySocket>,
    },
    /// To `Inspect`.
    Inspected {
        /// Pods with anything to say, ordered by uid.
        pods: Vec<Inspection>,
        /// Where the next page begins, if there is one.
        next: Option<PodUid>,
    },
    /// To `ProgramNames`; ids of programs that are gone are left out.
    ProgramNames {
        /// In the order that was asked for.
        programs: Vec<ProgramName>,
    },
}

/// A socket for a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanarySocket {
    /// Address family.
    pub family: Family,
    /// UDP, for a question; else TCP.
    pub datagram: bool,
}

/// What part of a pod's capture is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A program of the node's cgroup is not attached.
    Program,
    /// The inbound program is not attached to the pod's namespace.
    Lookup,
    /// The pod's elements in the maps are missing or others than decided.
    Enrolment,
    /// nat rules of the pod are missing or altered.
    Rules,
    /// The guard of a closed pod is missing or altered.
    Guard,
    /// A listening socket does not listen any more.
    Listener,
    /// A canary did not arrive where it should.
    Canary,
}

impl Cause {
    /// As metrics and people have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Lookup => "lookup",
            Self::Enrolment => "enrolment",
            Self::Rules => "rules",
            Self::Guard => "guard",
            Self::Listener => "listener",
            Self::Canary => "canary",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breakage {
    /// Which part.
    pub cause: Cause,
    /// What exactly, for people.
    pub detail: String,
}

/// What the broker found inside a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The pod.
    pub uid: PodUid,
    /// What is not as it was left.
    pub broken: Vec<Breakage>,
    /// Rules of others that redirect or mark the pod's traffic.
    pub foreign: Vec<String>,
}

/// An eBPF program that is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramName {
    /// The kernel's number for it.
    pub id: u32,
    /// As its author named it; at most 15 characters.
    pub name: String,
}

/// What the broker found in a pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// The pod.
    pub uid: PodUid,
    /// `SO_NETNS_COOKIE` of its namespace: the key of its enrolment.
    pub netns_cookie: u64,
    /// Address families that its namespace has.
    pub families: Families,
    /// Inbound listening sockets, for the `sk_lookup` map, in descriptor order.
    pub inbound: Vec<ListenerLabel>,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct BrokerFault {
    /// Whether trying the same call again can help.
    pub retryable: bool,
    /// What failed, with its causes.
    pub message: String,
}

/// A pod as the broker holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerPod {
    /// The pod.
    pub uid: PodUid,
    /// `SO_NETNS_COOKIE` of its namespace.
    pub netns_cookie: u64,
    /// How it is captured, as last told.
    pub capture: CaptureMode,
    /// Number of listening sockets.
    pub listeners: usize,
}

/// A proxy as the broker sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyState {
    /// Restart epoch.
    pub epoch: u32,
    /// Process id.
    pub pid: u32,
    /// Worker threads.
    pub workers: u16,
    /// It accepts nothing new any more.
    pub draining: bool,
}
