//! One canary: connections and questions on every way that the pod's settings capture, at once.
//!
//! The broker makes the outbound sockets inside the pod; what is done with them is done here, by a process
//! that cannot enter it. Inbound ones are this process's own, since others reach the pod from the node too.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use ipnet::IpNet;
use millrace_runtime::handoff::{
    AgentAnswer, AgentRequest, CANARY_ANSWER, CANARY_NAME, CANARY_PORT, CanarySocket, Family,
    canary_address, canary_answer,
};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::Subject;
use crate::broker::chain;
use crate::broker_client::{BrokerClient, CallError};
use crate::redirect::CaptureSettings;

/// How long a canary may take: long for a proxy under load, short for people who wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// The port of resolvers.
const DNS: u16 = 53;

/// A way that a canary goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// A connection from the pod, IPv4.
    Outbound4,
    /// A connection from the pod, IPv6.
    Outbound6,
    /// A question of the pod's over UDP, IPv4.
    Dns4,
    /// A question of the pod's over UDP, IPv6.
    Dns6,
    /// A connection to the pod, IPv4.
    Inbound4,
    /// A connection to the pod, IPv6.
    Inbound6,
}

impl Way {
    /// As metrics and people have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outbound4 => "outbound4",
            Self::Outbound6 => "outbound6",
            Self::Dns4 => "dns4",
            Self::Dns6 => "dns6",
            Self::Inbound4 => "inbound4",
            Self::Inbound6 => "inbound6",
        }
    }

    pub(super) fn is_inbound(self) -> bool {
        matches!(self, Self::Inbound4 | Self::Inbound6)
    }

    pub(super) fn family(self) -> Family {
        match self {
            Self::Outbound4 | Self::Dns4 | Self::Inbound4 => Family::V4,
            Self::Outbound6 | Self::Dns6 | Self::Inbound6 => Family::V6,
        }
    }

    fn inbound(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Inbound4,
            IpAddr::V6(_) => Self::Inbound6,
        }
    }

    fn of(socket: CanarySocket) -> Self {
        match (socket.family, socket.datagram) {
            (Family::V4, false) => Self::Outbound4,
            (Family::V6, false) => Self::Outbound6,
            (Family::V4, true) => Self::Dns4,
            (Family::V6, true) => Self::Dns6,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What became of a canary on one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The pod's own listener answered.
    Answered,
    /// The pod has no route to anywhere, so its applications could not ask either.
    Unreachable(String),
    /// Nobody answered in time.
    Silent,
    /// It ended elsewhere.
    Lost(String),
}

impl Outcome {
    pub(super) fn reason(&self) -> Option<String> {
        match self {
            Self::Answered => None,
            Self::Silent => Some(format!("no answer within {PATIENCE:?}")),
            Self::Unreachable(reason) | Self::Lost(reason) => Some(reason.clone()),
        }
    }
}

/// Where the canaries of a pod go, by what its settings capture: one that is excluded proves nothing.
fn destination(way: Way, settings: &CaptureSettings) -> Option<SocketAddr> {
    let (family, port) = match way {
        Way::Outbound4 => (Family::V4, CANARY_PORT),
        Way::Outbound6 => (Family::V6, CANARY_PORT),
        Way::Dns4 => (Family::V4, DNS),
        Way::Dns6 => (Family::V6, DNS),
        Way::Inbound4 | Way::Inbound6 => return None,
    };
    let address = canary_address(family);
    let holds = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
    let free = |port: &u16| !settings.exclude_outbound_ports.contains(port);
    if port == DNS {
        return free(&port).then(|| SocketAddr::new(address, port));
    }
    // A port that is included is captured whatever the address.
    let included = settings.include_outbound_ports.iter().copied();
    if let Some(port) = included.filter(|port| *port != DNS).find(|port| free(port)) {
        return Some(SocketAddr::new(address, port));
    }
    let wanted = settings.include_outbound_cidrs.as_deref();
    let captured = wanted.is_none_or(holds) && !holds(&settings.exclude_outbound_cidrs);
    (captured && free(&port)).then(|| SocketAddr::new(address, port))
}

fn inbound(subject: &Subject) -> impl Iterator<Item = SocketAddr> {
    let settings = &subject.settings;
    let captured = settings.include_inbound_ports.is_none()
        && !settings.exclude_inbound_ports.contains(&CANARY_PORT);
    let first = |v4: bool| subject.ips.iter().find(|ip| ip.is_ipv4() == v4).copied();
    [first(true), first(false)]
        .into_iter()
        .flatten()
        .filter(move |_| captured)
        .map(|ip| SocketAddr::new(ip, CANARY_PORT))
}

/// Sends a canary on the ways of these families, and another one where it was not answered: a busy moment is no
/// breakage.
///
/// # Errors
/// When the broker makes no sockets.
pub(super) async fn send_twice(
    broker: &BrokerClient,
    subject: &Subject,
    families: &[Family],
) -> Result<BTreeMap<Way, Outcome>, CallError> {
    let first = send(broker, subject, families).await?;
    if first.values().all(|outcome| *outcome == Outcome::Answered) {
        return Ok(first);
    }
    send(broker, subject, families).await
}

async fn send(
    broker: &BrokerClient,
    subject: &Subject,
    families: &[Family],
) -> Result<BTreeMap<Way, Outcome>, CallError> {
    let request = AgentRequest::CanarySockets {
        uid: subject.uid.clone(),
    };
    let answer = broker.call(request).await?;
    let AgentAnswer::CanarySockets { sockets } = answer.answer else {
        return Err(CallError::Unexpected);
    };
    let expected = canary_answer(&subject.uid);
    let mut under_way = JoinSet::new();
    for (socket, fd) in sockets.into_iter().zip(answer.fds) {
        let way = Way::of(socket);
        let has_address = |ip: &IpAddr| ip.is_ipv4() == (socket.family == Family::V4);
        let Some(to) = destination(way, &subject.settings) else {
            continue;
        };
        if !families.contains(&way.family()) || !subject.ips.iter().any(has_address) {
            continue;
        }
        let expected = expected.clone();
        under_way.spawn(async move {
            let sent = async move {
                if socket.datagram {
                    ask(fd, to).await
                } else {
                    connect(
                        TcpSocket::from_std_stream(std::net::TcpStream::from(fd)),
                        to,
                        &expected,
                    )
                    .await
                }
            };
            (way, in_time(sent).await)
        });
    }
    for to in inbound(subject) {
        let way = Way::inbound(&to.ip());
        if !families.contains(&way.family()) {
            continue;
        }
        let expected = expected.clone();
        under_way.spawn(async move {
            let sent = async move {
                let socket = match to {
                    SocketAddr::V4(_) => TcpSocket::new_v4()?,
                    SocketAddr::V6(_) => TcpSocket::new_v6()?,
                };
                connect(socket, to, &expected).await
            };
            (way, in_time(sent).await)
        });
    }
    Ok(under_way.join_all().await.into_iter().collect())
}

async fn in_time(sent: impl Future<Output = io::Result<Result<(), String>>>) -> Outcome {
    match tokio::time::timeout(PATIENCE, sent).await {
        Ok(Ok(Ok(()))) => Outcome::Answered,
        Ok(Ok(Err(reason))) => Outcome::Lost(reason),
        Ok(Err(error)) if error.raw_os_error() == Some(libc::ENETUNREACH) => {
            Outcome::Unreachable("the pod has no route that leaves it".to_owned())
        }
        Ok(Err(error)) => Outcome::Lost(chain(&error)),
        Err(_) => Outcome::Silent,
    }
}

/// Connects; the answer must be the pod's own, and the socket must know nothing of the detour.
async fn connect(
    socket: TcpSocket,
    to: SocketAddr,
    expected: &str,
) -> io::Result<Result<(), String>> {
    let mut stream: TcpStream = socket.connect(to).await?;
    let peer = stream.peer_addr()?;
    if peer != to {
        return Ok(Err(format!("the socket shows {peer} as its peer")));
    }
    let mut answer = [0_u8; CANARY_ANSWER];
    let mut length = 0;
    loop {
        let more = stream.read(&mut answer[length..]).await?;
        length += more;
        if answer[..length] == *expected.as_bytes() {
            return Ok(Ok(()));
        }
        if more == 0 || length == answer.len() {
            break;
        }
    }
    let reason = if length == 0 {
        "somebody else took the connection and said nothing"
    } else if answer.starts_with(b"millrace-canary ") {
        "another pod's listener took the connection"
    } else {
        "somebody else answered"
    };
    Ok(Err(reason.to_owned()))
}

/// Asks for a name that only the proxy knows.
async fn ask(fd: OwnedFd, server: SocketAddr) -> io::Result<Result<(), String>> {
    let socket = UdpSocket::from_std(fd.into())?;
    socket.send_to(&question(server.is_ipv4()), server).await?;
    let mut answer = [0_u8; 512];
    let (length, from) = socket.recv_from(&mut answer).await?;
    let address: Vec<u8> = match server.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    Ok(if from != server {
        Err(format!("the answer shows {from} as its source"))
    } else if answer[..length].ends_with(&address) {
        Ok(())
    } else {
        Err("somebody else answered".to_owned())
    })
}

/// A question for the canary's name, of type A or AAAA.
fn question(v4: bool) -> Vec<u8> {
    let mut message = vec![0x15, 0x09, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in CANARY_NAME.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or_default());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, if v4 { 1 } else { 28 }, 0, 1]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(way: Way, settings: &CaptureSettings) -> Option<String> {
        destination(way, settings).map(|to| to.to_string())
    }

    #[test]
    fn canaries_go_only_where_the_settings_capture() {
        let all = CaptureSettings::default();
        assert_eq!(to(Way::Outbound4, &all).unwrap(), "192.0.2.15:15009");
        assert_eq!(to(Way::Dns6, &all).unwrap(), "[100::f]:53");
        let nothing = CaptureSettings {
            exclude_outbound_cidrs: vec!["0.0.0.0/0".parse().unwrap()],
            exclude_outbound_ports: vec![53],
            ..CaptureSettings::default()
        };
        assert_eq!(to(Way::Outbound4, &nothing), None);
        assert_eq!(to(Way::Dns4, &nothing), None);
        assert!(to(Way::Outbound6, &nothing).is_some());
        let some = CaptureSettings {
            include_outbound_cidrs: Some(vec!["10.0.0.0/8".parse().unwrap()]),
            ..CaptureSettings::default()
        };
        assert_eq!(to(Way::Outbound4, &some), None);
        let port = CaptureSettings {
            include_outbound_ports: vec![53, 8080],
            ..some
        };
        assert_eq!(to(Way::Outbound4, &port).unwrap(), "192.0.2.15:8080");
    }
}
