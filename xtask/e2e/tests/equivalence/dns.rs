//! DNS as an application has it: names of the mesh and others, by datagrams and streams, with sockets that
//! are connected and such that are not, over both families.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::{CLUSTER_DNS, Host};

use crate::observation::Observation;
use crate::outside::{CLUSTER_DNS6, ELSEWHERE, ELSEWHERE6};
use crate::scene::Scene;

const A: u16 = 1;
const AAAA: u16 = 28;
const PATIENCE: Duration = Duration::from_secs(5);

/// The question of a query: a name, two bytes of type, two of class (RFC 1035, 4.1.2).
fn question(query: &[u8]) -> Option<&[u8]> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += usize::from(query[end]) + 1;
    }
    query.get(12..end + 5)
}

/// The name that a query asks for.
pub(crate) fn name(query: &[u8]) -> Option<String> {
    let mut name = String::new();
    let mut at = 12;
    while *query.get(at)? != 0 {
        let length = usize::from(query[at]);
        let label = query.get(at + 1..at + 1 + length)?;
        let dot = if name.is_empty() { "" } else { "." };
        write!(name, "{dot}{}", String::from_utf8_lossy(label)).ok()?;
        at += length + 1;
    }
    Some(name)
}

/// The answer of a resolver that knows one address of each family for every name.
pub(crate) fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let question = question(query)?;
    let kind = u16::from_be_bytes(question[question.len() - 4..][..2].try_into().ok()?);
    let address = match kind {
        A => ELSEWHERE.octets().to_vec(),
        AAAA => ELSEWHERE6.octets().to_vec(),
        _ => return None,
    };
    let mut answer = query.get(..2)?.to_vec();
    // A response, recursion desired and available; one question, one answer.
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(question);
    // The question's name, the type, IN, 60 s.
    answer.extend([0xc0, 12]);
    answer.extend(kind.to_be_bytes());
    answer.extend([0, 1, 0, 0, 0, 60, 0, u8::try_from(address.len()).ok()?]);
    answer.extend(address);
    Some(answer)
}

fn query(name: &str, kind: u16) -> anyhow::Result<Vec<u8>> {
    let mut query = vec![0x4d, 0x52, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend([0, 1]);
    Ok(query)
}

/// The last address that an answer gives, or what it says instead.
fn read(query: &[u8], answer: &[u8], kind: u16) -> anyhow::Result<String> {
    ensure!(
        answer.len() >= 12 && answer[..2] == query[..2],
        "another id"
    );
    let (code, answers) = (answer[3] & 15, u16::from_be_bytes([answer[6], answer[7]]));
    if code != 0 || answers == 0 {
        return Ok(format!("code {code}, {answers} answers"));
    }
    // The address is the end of the last record, where no other sections follow.
    ensure!(answer[8..12] == [0; 4], "more sections than one");
    let octets = if kind == A { 4 } else { 16 };
    let last = answer.get(answer.len() - octets..).context("too short")?;
    Ok(match kind {
        A => IpAddr::from(<[u8; 4]>::try_from(last)?),
        _ => IpAddr::from(<[u8; 16]>::try_from(last)?),
    }
    .to_string())
}

/// How a question is asked.
#[derive(Clone, Copy, Debug)]
enum Way {
    Unconnected,
    Connected,
    Stream,
}

fn ask(from: &Host, way: Way, server: SocketAddr, name: &str, kind: u16) -> anyhow::Result<String> {
    let query = query(name, kind)?;
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut buffer = [0; 1500];
    let length = match way {
        Way::Stream => {
            let mut stream = from.connect(server)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let length = u16::try_from(query.len())?.to_be_bytes();
            stream.write_all(&[&length[..], &query].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let length = usize::from(u16::from_be_bytes(length));
            stream.read_exact(&mut buffer[..length])?;
            ensure!(stream.peer_addr()? == server, "the peer is another");
            length
        }
        Way::Connected => {
            let socket = from.udp((any, 0).into())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(server)?;
            socket.send(&query)?;
            let length = socket.recv(&mut buffer)?;
            ensure!(socket.peer_addr()? == server, "the peer is another");
            length
        }
        Way::Unconnected => {
            let socket = from.udp((any, 0).into())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(&query, server)?;
            let (length, from) = socket.recv_from(&mut buffer)?;
            ensure!(from == server, "{from} answers for {server}");
            length
        }
    };
    read(&query, &buffer[..length], kind)
}

/// What names are, and who was asked.
pub(crate) fn names(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    scene.outside.asked();
    let server = SocketAddr::new(CLUSTER_DNS.into(), 53);
    for name in [
        "near.default.svc.cluster.local",
        "near.default",
        "near",
        "near.default.svc.cluster.local.default.svc.cluster.local",
        "nobody.default.svc.cluster.local",
        "www.example.com",
        "NEAR.default.svc.CLUSTER.local",
    ] {
        for (kind, number) in [("A", A), ("AAAA", AAAA)] {
            let found = ask(&scene.client, Way::Unconnected, server, name, number);
            seen.see_result(
                format!("{kind} {name}"),
                found.map(|found| named(scene, &found)),
            );
        }
    }
    seen.see("asked at the resolver", scene.outside.asked().join(" "));
    Ok(seen)
}

/// The ways to ask.
pub(crate) fn ways(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for (family, ip) in [
        ("v4", CLUSTER_DNS.into()),
        ("v6", IpAddr::from(CLUSTER_DNS6)),
    ] {
        let server = SocketAddr::new(ip, 53);
        for way in [Way::Unconnected, Way::Connected, Way::Stream] {
            for name in ["far.default.svc.cluster.local", "www.example.com"] {
                let found = ask(&scene.client, way, server, name, A);
                seen.see_result(
                    format!("{way:?} {family} {name}"),
                    found.map(|found| named(scene, &found)),
                );
            }
        }
    }
    Ok(seen)
}

fn named(scene: &Scene, found: &str) -> String {
    found.parse().map_or(found.to_owned(), |ip| scene.who(ip))
}
