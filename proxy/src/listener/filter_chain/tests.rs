//! The order of `FilterChainMatch`, as documented for `config.listener.v3.FilterChainMatch`:
//! "1. Destination port. 2. Destination IP address. 3. Server name. 4. Transport protocol.
//! 5. Application protocols. 6. ... 8. Source IP address. 9. Source port."

use std::borrow::Cow;

use super::*;
use crate::fixture::{listener, tcp_chain};

/// A chain whose name says what it matches, in the words of the field's short names.
fn chain(name: &str) -> FilterChain {
    let mut chain = tcp_chain(name, "c");
    let m = &mut chain.matches;
    for word in name.split_whitespace() {
        let (field, value) = word.split_once('=').unwrap();
        let values = || value.split(',').map(str::to_owned);
        match field {
            "port" => m.destination_port = Some(value.parse().unwrap()),
            "ip" => m.prefix_ranges = values().map(|v| v.parse().unwrap()).collect(),
            "sni" => m.server_names = values().collect(),
            "transport" => m.transport_protocol = value.to_owned(),
            "alpn" => m.application_protocols = values().collect(),
            "src" => m.source_prefix_ranges = values().map(|v| v.parse().unwrap()).collect(),
            "sport" => m.source_ports = values().map(|v| v.parse().unwrap()).collect(),
            other => panic!("{other}"),
        }
    }
    chain
}

struct Connection {
    to: &'static str,
    from: &'static str,
    detected: Detected,
}

fn tcp(to: &'static str) -> Connection {
    Connection {
        to,
        from: "192.0.2.1:40000",
        detected: Detected::default(),
    }
}

fn tls(to: &'static str, sni: &str, alpn: &[&'static str]) -> Connection {
    Connection {
        detected: Detected {
            tls: true,
            server_name: Some(sni.to_owned()).filter(|s| !s.is_empty()),
            application_protocols: alpn.iter().map(|p| Cow::Borrowed(*p)).collect(),
        },
        ..tcp(to)
    }
}

fn from(from: &'static str, connection: Connection) -> Connection {
    Connection { from, ..connection }
}

fn chosen(chains: &[&str], connection: &Connection) -> Option<String> {
    let listener = listener("l", chains.iter().map(|name| chain(name)));
    let candidates = Candidates::narrow(&listener, connection.to.parse().unwrap());
    let chosen = candidates.select(&connection.detected, connection.from.parse().unwrap());
    chosen.map(|chain| chain.name.clone())
}

#[test]
fn criteria_are_applied_in_envoys_order() {
    let to = "10.1.2.3:443";
    for (chains, connection, expected) in [
        // 1. Destination port goes before everything else, a longer prefix included.
        (
            &["ip=10.1.2.3/32", "port=443"][..],
            tcp(to),
            Some("port=443"),
        ),
        (&["port=443 ip=11.0.0.0/8", "ip=10.0.0.0/8"], tcp(to), None),
        // 2. Longest destination prefix; none is as 0.0.0.0/0.
        (
            &[
                "ip=10.0.0.0/8",
                "ip=10.1.0.0/16,192.0.2.0/24",
                "sni=a.example.com",
            ],
            tls(to, "a.example.com", &[]),
            Some("ip=10.1.0.0/16,192.0.2.0/24"),
        ),
        (
            &["ip=fd00::/8", "alpn=h2"],
            tls("[fd00::1]:443", "", &["h2"]),
            Some("ip=fd00::/8"),
        ),
        // 3. Server name: exact, then the longest wildcard, then any.
        (
            &["sni=*.example.com", "sni=a.example.com", "transport=tls"],
            tls(to, "A.example.com", &[]),
            Some("sni=a.example.com"),
        ),
        (
            &["sni=*.com", "sni=*.example.com"],
            tls(to, "b.a.example.com", &[]),
            Some("sni=*.example.com"),
        ),
        (&["sni=*.example.com"], tls(to, "example.com", &[]), None),
        (&["sni=*.example.com"], tls(to, "badexample.com", &[]), None),
        (&["sni=a.example.com"], tcp(to), None),
        // 4. Transport protocol before application protocols.
        (
            &["alpn=h2", "transport=tls"],
            tls(to, "", &["h2"]),
            Some("transport=tls"),
        ),
        (
            &["transport=raw_buffer", "transport=tls"],
            tcp(to),
            Some("transport=raw_buffer"),
        ),
        // 5. Application protocols in the order of the client.
        (
            &["alpn=http/1.1", "alpn=h2"],
            tls(to, "", &["h2", "http/1.1"]),
            Some("alpn=h2"),
        ),
        (
            &["alpn=h2", "src=192.0.2.0/24"],
            tls(to, "", &["h2"]),
            Some("alpn=h2"),
        ),
        (&["alpn=h2"], tls(to, "", &["http/1.1"]), None),
        // 8. Longest source prefix before 9. source port.
        (
            &["src=192.0.0.0/16", "src=192.0.2.0/24", "sport=40000"],
            tcp(to),
            Some("src=192.0.2.0/24"),
        ),
        (
            &["sport=40000,40001", "port=443"],
            from("192.0.2.1:40001", tcp("10.1.2.3:80")),
            Some("sport=40000,40001"),
        ),
        (&["sport=1"], tcp(to), None),
    ] {
        let got = chosen(chains, &connection);
        assert_eq!(got.as_deref(), expected, "{chains:?} for {}", connection.to);
    }
}

#[test]
fn there_is_no_way_back_to_a_less_specific_chain() {
    // The exact port has no chain for this source, the chain without a port would match.
    let chains = ["port=443 src=198.51.100.0/24", "src=192.0.2.0/24"];
    assert_eq!(chosen(&chains, &tcp("10.1.2.3:443")), None);
}

#[test]
fn the_default_chain_is_taken_where_none_matches() {
    let mut listener = listener("l", [chain("port=80")]);
    listener.default_filter_chain = Some(Arc::new(tcp_chain("default", "c")));
    let candidates = Candidates::narrow(&listener, "10.0.0.1:443".parse().unwrap());
    let source = "192.0.2.1:1".parse().unwrap();
    let chosen = candidates.select(&Detected::default(), source).unwrap();
    assert_eq!(chosen.name, "default");
}

#[test]
fn bytes_are_inspected_only_where_a_chain_of_this_destination_asks() {
    let chains = [
        "port=9080",
        "port=80 alpn=h2c",
        "port=443 sni=a.example.com",
    ];
    let mut listener = listener("l", chains.map(chain));
    listener.http_inspector = true;
    listener.tls_inspector = true;
    let needs = |to: &str| Candidates::narrow(&listener, to.parse().unwrap()).needs();
    assert!(!needs("10.0.0.1:9080").any());
    let expected = Needs {
        tls: true,
        http: true,
    };
    assert_eq!(needs("10.0.0.1:80"), expected);
    let expected = Needs {
        tls: true,
        http: false,
    };
    assert_eq!(needs("10.0.0.1:443"), expected);
}
