//! Original destinations, loop protection and the client's address.

use millrace_runtime::handoff::{CaptureMode, Families, PodSpec};
use tokio::sync::mpsc;

use super::*;

#[test]
fn the_destination_is_the_steered_address_or_the_redirected_one_or_a_loop() {
    let (out, into) = (Origin::Outbound(None), Origin::Inbound(None));
    let plain = Origin::Listener("l".into());
    let to = Some("10.96.0.5:3306");
    for (origin, local, redirected, expected) in [
        (&out, "127.0.0.1:15001", to, Ok("10.96.0.5:3306")),
        (
            &out,
            "[::1]:15001",
            Some("[fd00::5]:80"),
            Ok("[fd00::5]:80"),
        ),
        (
            &into,
            "10.1.0.7:15006",
            Some("10.1.0.7:80"),
            Ok("10.1.0.7:80"),
        ),
        (&into, "10.1.0.7:9080", None, Ok("10.1.0.7:9080")),
        (&plain, "127.0.0.1:10000", None, Ok("127.0.0.1:10000")),
        (&plain, "127.0.0.1:10000", to, Ok("10.96.0.5:3306")),
        (&out, "127.0.0.1:15001", None, Err(Refusal::Loop)),
        (
            &out,
            "10.1.0.7:15001",
            Some("10.1.0.7:15001"),
            Err(Refusal::Loop),
        ),
        (&into, "10.1.0.7:15006", None, Err(Refusal::Loop)),
    ] {
        let parse = |a: &str| a.parse::<SocketAddr>().unwrap();
        let got = destination(origin, parse(local), || redirected.map(parse));
        assert_eq!(
            got,
            expected.map(parse),
            "{origin:?} {local} {redirected:?}"
        );
    }
}

#[test]
fn a_captured_client_is_known_by_its_pods_address() {
    let spec = PodSpec {
        ips: vec!["10.1.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        ..PodSpec::default()
    };
    let (wants, _) = mpsc::unbounded_channel();
    let pod = LocalPod::new(spec, Families::default(), CaptureMode::Ebpf, &wants);
    let (out, into) = (Origin::Outbound(None), Origin::Inbound(None));
    for (origin, peer, expected) in [
        (&out, "127.0.0.1:4000", "10.1.0.7:4000"),
        (&out, "[::1]:4000", "[fd00::7]:4000"),
        (&out, "10.1.0.7:4000", "10.1.0.7:4000"),
        (&into, "127.0.0.1:4000", "127.0.0.1:4000"),
    ] {
        let got = client_address(origin, Some(&pod), peer.parse().unwrap());
        assert_eq!(got, expected.parse().unwrap());
    }
}

#[test]
fn a_canary_is_known_by_its_destination_and_only_where_capture_led_it() {
    let uid = || Some("u".into());
    let accepted = |origin: Origin, orig_dst: &str| Accepted {
        id: 0,
        pod: None,
        peer: "10.1.0.7:4000".parse().unwrap(),
        local: "127.0.0.1:15001".parse().unwrap(),
        orig_dst: orig_dst.parse().unwrap(),
        origin,
        started: Instant::now(),
    };
    for (origin, orig_dst, expected) in [
        (Origin::Outbound(uid()), "192.0.2.15:15009", true),
        (Origin::Outbound(uid()), "[100::f]:80", true),
        (Origin::Outbound(uid()), "10.96.0.5:15009", false),
        (Origin::Inbound(uid()), "10.1.0.7:15009", true),
        (Origin::Inbound(uid()), "10.1.0.7:8080", false),
        (Origin::Listener("l".into()), "192.0.2.15:15009", false),
    ] {
        let got = accepted(origin.clone(), orig_dst).is_canary();
        assert_eq!(got, expected, "{origin:?} {orig_dst}");
    }
}
