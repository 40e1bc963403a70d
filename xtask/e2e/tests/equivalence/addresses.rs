//! Whom each end of a connection sees: the address that was asked for, its own, and the other end's.

use std::io::Read as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::Context as _;
use millrace_testkit::Host;
use millrace_testkit::echo::Seen;
use millrace_testkit::http::{Client, Request};
use nix::sys::socket::{SockaddrStorage, connect};

use crate::observation::Observation;
use crate::scene::{FAMILIES, PLACES, SOON, Scene};
use crate::server;

/// Ports that clients take theirs from (`net.ipv4.ip_local_port_range`).
const OF_CLIENTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// What the two ends of a TCP connection say of it: the client's own address, its peer, and what the
/// server sees of both.
struct Ends {
    local: SocketAddr,
    peer: SocketAddr,
    remote: SocketAddr,
    destination: SocketAddr,
}

fn ends(mut stream: TcpStream) -> anyhow::Result<Ends> {
    stream.set_read_timeout(Some(SOON))?;
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    stream.write_all(b"seen\n")?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen)?;
    let (remote, destination) = seen.split_once(' ').context("the server saw nothing")?;
    Ok(Ends {
        local,
        peer,
        remote: remote.parse()?,
        destination: destination.parse()?,
    })
}

/// Connects by a socket of both families, to the address in the form that such sockets use.
fn connect_mapped(from: &Host, to: SocketAddr) -> anyhow::Result<TcpStream> {
    let ip = match to.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let socket = from.socket(nix::libc::AF_INET6, nix::libc::SOCK_STREAM, 0)?;
    let to = SocketAddr::new(ip.into(), to.port());
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(socket))
}

/// What the client's calls are to both ends, over TCP.
pub(crate) fn of_both_ends(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for place in PLACES {
        for (family, v6) in FAMILIES {
            let to = scene.service(place, server::CONTROL, v6);
            let ends = ends(scene.client.connect(to)?);
            note(scene, &mut seen, &format!("{place} {family}"), to, ends);
        }
    }
    let to = scene.service("near", server::CONTROL, false);
    let ends_seen = ends(connect_mapped(&scene.client, to)?);
    note(scene, &mut seen, "near v4-mapped", to, ends_seen);
    Ok(seen)
}

fn note(
    scene: &Scene,
    seen: &mut Observation,
    what: &str,
    asked: SocketAddr,
    ends: anyhow::Result<Ends>,
) {
    match ends {
        Ok(ends) => {
            let form = if ends.peer == asked {
                "as asked".to_owned()
            } else {
                scene.whose(ends.peer)
            };
            seen.see(format!("{what}: getpeername"), form);
            seen.see(format!("{what}: getsockname"), scene.who(ends.local.ip()));
            seen.see(format!("{what}: source"), scene.who(ends.remote.ip()));
            let kept = ends.remote.port() == ends.local.port();
            seen.see(
                format!("{what}: source port"),
                if kept { "kept" } else { "another" },
            );
            seen.see(
                format!("{what}: destination"),
                scene.whose(ends.destination),
            );
        }
        Err(error) => seen.see(what, format!("failed: {error:#}")),
    }
}

/// The same of HTTP, whose connections the proxy shares among requests.
pub(crate) fn of_http(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for place in PLACES {
        for (family, v6) in FAMILIES {
            let what = format!("{place} {family}");
            let to = scene.service(place, server::HTTP, v6);
            let stream = scene.client.connect(to)?;
            let peer = stream.peer_addr()?;
            let answer =
                Client::over(stream)?.send(&Request::get(&format!("{place}:8080"), "/"))?;
            let server = Seen::of(&answer)?;
            seen.see(format!("{what}: getpeername"), scene.whose(peer));
            seen.see(format!("{what}: source"), scene.who(server.remote.ip()));
            let port = if OF_CLIENTS.contains(&server.remote.port()) {
                "one that a client may take"
            } else {
                "one that no client takes"
            };
            seen.see(format!("{what}: source port"), port);
            // A client and a server that speak different families meet at the proxy.
            let destination = SocketAddr::new(server.local.ip(), server.local.port());
            seen.see(format!("{what}: destination"), scene.whose(destination));
        }
    }
    Ok(seen)
}

/// Connections to addresses of no service: a pod's own, the client's own, one outside the mesh, one that
/// nobody has.
pub(crate) fn of_no_service(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for (name, v4, v6) in [
        ("pod near", scene.near.member.ip(), scene.near.member.ip6()),
        ("pod far", scene.far.member.ip(), scene.far.member.ip6()),
        ("outside", scene.outside.ip(), scene.outside.ip6()),
    ] {
        for (family, ip) in [("v4", v4), ("v6", v6)] {
            let to = SocketAddr::new(ip, server::CONTROL);
            let ends = scene.client.connect(to).and_then(ends);
            note(scene, &mut seen, &format!("{name} {family}"), to, ends);
            for port in [server::HTTP, server::UNDECLARED] {
                let to = SocketAddr::new(ip, port);
                let answer = scene.ask(to, &Request::get("somebody", "/"));
                let answer = answer.and_then(|answer| {
                    let server = Seen::of(&answer)?;
                    Ok(format!(
                        "{} from {}, {} by the proxy",
                        answer.status,
                        server.server,
                        if server.header("x-request-id").is_some() {
                            "routed"
                        } else {
                            "passed on"
                        }
                    ))
                });
                seen.see_result(format!("{name} {family}: HTTP on {port}"), answer);
            }
        }
    }
    for (family, own) in [
        ("v4", scene.near.member.ip()),
        ("v6", scene.near.member.ip6()),
    ] {
        let to = SocketAddr::new(own, server::CONTROL);
        let ends = scene.near.member.connect(to).and_then(ends);
        note(scene, &mut seen, &format!("itself {family}"), to, ends);
    }
    Ok(seen)
}

/// The original destination as the client's proxy has it, which its access log tells.
pub(crate) fn logged(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for (family, v6) in FAMILIES {
        let path = format!("/logged-{family}");
        let to = scene.service("near", server::HTTP, v6);
        scene.ask(to, &Request::get("near:8080", &path))?;
        let line = crate::routes::log_line(scene, |line| line["path"] == path.as_str())?;
        for field in ["downstream_local_address", "upstream_host"] {
            let address = line[field].as_str().unwrap_or_default();
            let who = address
                .parse()
                .map_or(address.to_owned(), |it| scene.whose(it));
            seen.see(format!("{family}: {field}"), who);
        }
        let client = line["downstream_remote_address"]
            .as_str()
            .unwrap_or_default();
        let client: anyhow::Result<SocketAddr> = client.parse().context("no address");
        seen.see_result(
            format!("{family}: downstream_remote_address"),
            client.map(|client| scene.who(client.ip())),
        );
    }
    Ok(seen)
}
