//! Capture: a plain `connect()` reaches the right service, whatever captures it, and neither end can
//! tell the ways of capturing apart.

use std::net::SocketAddr;

use millrace_e2e::{CAPTURE, CAPTURES, Observed, Service, observe_soon};
use millrace_testkit::echo;
use millrace_testkit::http::{Client, Request};
use millrace_testkit::mesh::Mesh;
use millrace_testkit::raw::End;
use millrace_testkit::{Cluster, PodOptions, require};

const HTTP: u16 = 8080;
const TCP: u16 = 9000;

/// Calls from one pod to a service whose only pod is on the same or on another node.
fn observations(across: bool, v6: bool) -> anyhow::Result<Vec<Observed>> {
    let cluster = Cluster::new()?;
    let mesh = Mesh::start(&cluster)?;
    let (near, far) = (mesh.node("near")?, mesh.node("far")?);
    let service = Service::new("echo", 1)
        .port("http", HTTP)
        .port("tcp-echo", TCP);
    service.apply(&mesh)?;
    let mut observed = Vec::new();
    for capture in CAPTURES {
        let backend = service.backend(if across { &far } else { &near }, "v1", capture)?;
        let client = PodOptions::named("client").annotation(CAPTURE, capture);
        let client = near.pod(client)?;
        let to = |port: u16| SocketAddr::new(if v6 { service.ip6() } else { service.ip() }, port);
        let seen = observe_soon(&client, to(HTTP), "echo:8080", to(TCP))?;

        assert_eq!(
            seen.peer,
            to(HTTP),
            "{capture}: the client sees the address it asked for"
        );
        assert_eq!(seen.server, "echo-v1", "{capture}");
        assert!(seen.request_id, "{capture}: the proxy saw the request");
        assert_eq!(seen.host.as_deref(), Some("echo:8080"), "{capture}");
        assert_eq!(
            (&seen.echoed[..], seen.end),
            (&b"to the end"[..], End::Closed),
            "{capture}"
        );
        let sources = [client.ip(), client.ip6()];
        assert!(
            sources.contains(&seen.source),
            "{capture}: the server sees the client: {seen:?}"
        );
        assert_eq!(seen.destination.port(), HTTP, "{capture}");

        // The two ways of capturing use pods of their own; their addresses are what differs.
        let servers = [backend.pod.ip(), backend.pod.ip6()];
        assert!(
            servers.contains(&seen.destination.ip()),
            "{capture}: {seen:?}"
        );
        let anonymous = |ip: std::net::IpAddr| match ip {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let destination = SocketAddr::new(anonymous(seen.destination.ip()), HTTP);
        observed.push(Observed {
            source: anonymous(seen.source),
            destination,
            ..seen
        });
    }
    Ok(observed)
}

fn same(across: bool, v6: bool) -> anyhow::Result<()> {
    let observed = observations(across, v6)?;
    assert_eq!(observed[0], observed[1], "ebpf and iptables differ");
    Ok(())
}

#[test]
fn a_call_on_one_node_looks_the_same_however_it_is_captured() -> anyhow::Result<()> {
    require!(cluster);
    same(false, false)
}

#[test]
fn a_call_across_nodes_looks_the_same_however_it_is_captured() -> anyhow::Result<()> {
    require!(cluster);
    same(true, false)
}

#[test]
fn a_call_over_ipv6_looks_the_same_however_it_is_captured() -> anyhow::Result<()> {
    require!(cluster);
    same(false, true)
}

#[test]
fn http_is_delivered_from_ports_that_no_client_takes() -> anyhow::Result<()> {
    require!(cluster);
    for across in [false, true] {
        let cluster = Cluster::new()?;
        let mesh = Mesh::start(&cluster)?;
        let (near, far) = (mesh.node("near")?, mesh.node("far")?);
        let service = Service::new("echo", 1)
            .port("http", HTTP)
            .port("tcp-echo", TCP);
        service.apply(&mesh)?;
        for capture in CAPTURES {
            let backend = service.backend(if across { &far } else { &near }, "v1", capture)?;
            let client = PodOptions::named("client").annotation(CAPTURE, capture);
            let client = near.pod(client)?;
            let (http, tcp) = (service.at(HTTP), service.at(TCP));
            observe_soon(&client, http, "echo:8080", tcp)?;
            let mut clients = (0..20)
                .map(|_| {
                    let stream = client.connect(http)?;
                    let port = stream.local_addr()?.port();
                    anyhow::Ok((port, Client::over(stream)?))
                })
                .collect::<anyhow::Result<Vec<_>>>()?;
            let taken: Vec<u16> = clients.iter().map(|(port, _)| *port).collect();
            for (_, client) in &mut clients {
                let (_, seen) = echo::ask(client, &Request::get("echo:8080", "/ports"))?;
                let port = seen.remote.port();
                assert!(port >= 61_000, "{capture}, across {across}: {port}");
                assert!(!taken.contains(&port), "{capture}, across {across}: {port}");
            }
            drop(backend);
        }
    }
    Ok(())
}
