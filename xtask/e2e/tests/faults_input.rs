//! Bad input, from people who configure and from clients and servers that talk: each mistake is
//! answered or named, and everybody else is served on.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millrace_e2e::{CAPTURE, CAPTURES, Scene, Service};
use millrace_testkit::http::{Client, Request, Server};
use millrace_testkit::mesh::MeshPod;
use millrace_testkit::raw::{End, exchange, read_to_end};
use millrace_testkit::{PodOptions, require, until};
use nix::sys::socket::{setsockopt, sockopt};

const SOON: Duration = Duration::from_secs(15);
const SOME: u64 = 200;

/// Waits until pilot reports a problem of `file` that says all of `words`.
fn reported(scene: &Scene, file: &str, words: &[&str]) -> anyhow::Result<()> {
    until(SOON, || {
        let problems = scene.mesh.pilot().debug("/debug/config_errors")?.json()?;
        let listed = ["errors", "warnings"].iter();
        let found = listed
            .filter_map(|severity| problems[severity].as_array())
            .flatten()
            .map(ToString::to_string)
            .any(|problem| {
                problem.contains(file) && words.iter().all(|word| problem.contains(word))
            });
        ensure!(found, "no {words:?} of {file}: {problems}");
        Ok(())
    })
}

/// A request to a service that is not the scene's: status, and the flag in the access log.
fn refused(scene: &Scene, service: &Service, path: &str) -> anyhow::Result<(u16, String)> {
    let host = format!("{}:8080", service.host());
    let answer = until(SOON, || {
        let answer = scene.client.get(service.at(Scene::HTTP), &host, path)?;
        ensure!(
            answer.status != 200 && answer.status != 404,
            "{} so far",
            answer.status
        );
        Ok(answer)
    })?;
    let entry = scene.logged(|entry| {
        entry["path"] == path && entry["response_code"] == i64::from(answer.status)
    })?;
    let flags = entry["response_flags"].as_str().unwrap_or_default();
    Ok((answer.status, flags.to_owned()))
}

fn virtual_service(name: &str, route: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n  hosts: [{name}]\n  http:\n  - route:\n{route}"
    )
}

#[test]
fn mistakes_in_files_are_named_and_everything_else_serves_on() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    scene.only("v1")?;
    scene.answered_by("echo-v1")?;
    let load = scene.load()?;
    let pilot = scene.mesh.pilot();

    pilot.apply(
        "broken.yaml",
        "kind: VirtualService\nspec: [not, closed\nmetadata: {",
    )?;
    reported(&scene, "broken.yaml", &["line"])?;
    pilot.apply("tabs.yaml", "kind: Service\n\tspec: {}\n")?;
    reported(&scene, "tabs.yaml", &["line"])?;
    pilot.apply("binary.yaml", "\u{0}\u{1}\u{2}")?;
    reported(&scene, "binary.yaml", &[])?;
    // A rule that was good goes bad: the good one serves on.
    let route = "    - {destination: {host: \"*.echo\", subset: v2}}\n";
    pilot.apply(
        "rule.yaml",
        &format!(
            "{}---\n{}",
            millrace_e2e::SUBSETS,
            virtual_service("echo", route)
        ),
    )?;
    reported(&scene, "rule.yaml", &["cannot be a wildcard"])?;
    for _ in 0..20 {
        let answer = scene.ask()?;
        assert_eq!(
            answer.headers.first("x-server"),
            Some("echo-v1"),
            "the last good rule"
        );
    }
    load.more(SOME)?;
    // Corrected, it takes effect.
    scene.only("v2")?;
    scene.answered_by("echo-v2")?;
    load.stop()?.ensure_flawless()
}

#[test]
fn routes_to_what_does_not_exist_are_answered_with_503_and_a_flag() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let load = scene.load()?;
    let other = |name: &str, number: u8| -> anyhow::Result<Service> {
        let service = Service::new(name, number).port("http", Scene::HTTP);
        service.apply(&scene.mesh)?;
        Ok(service)
    };
    let (subset, missing, empty) = (
        other("subset", 2)?,
        other("missing", 3)?,
        other("empty", 4)?,
    );
    let pilot = scene.mesh.pilot();
    pilot.apply(
        "subset.yaml",
        &virtual_service("subset", "    - destination: {host: echo, subset: v9}\n"),
    )?;
    pilot.apply(
        "missing.yaml",
        &virtual_service("missing", "    - destination: {host: nowhere}\n"),
    )?;
    reported(&scene, "subset.yaml", &["v9"])?;
    reported(&scene, "missing.yaml", &["nowhere"])?;
    // A service without pods answers 503 before its rule arrives too: then by another flag.
    for (service, flag) in [(&subset, "NC"), (&missing, "NC"), (&empty, "UH")] {
        until(SOON, || {
            let found = refused(&scene, service, &format!("/{flag}/{}", service.host()))?;
            ensure!(
                found == (503, flag.to_owned()),
                "{}: {found:?}",
                service.host()
            );
            Ok(())
        })?;
    }
    load.more(SOME)?;
    load.stop()?.ensure_flawless()
}

#[test]
fn a_header_of_a_mebibyte_is_answered_with_431() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let load = scene.load()?;
        for _ in 0..10 {
            let mut stream = scene.client.connect(scene.http())?;
            let request = format!(
                "GET /large HTTP/1.1\r\nhost: {}\r\nx-large: {}\r\n\r\n",
                Scene::HOST,
                "x".repeat(1 << 20)
            );
            let (answer, end) = exchange(&mut stream, request.as_bytes(), SOON)?;
            let answer = String::from_utf8_lossy(&answer);
            assert!(
                answer.starts_with("HTTP/1.1 431"),
                "{capture}: {answer:?} {end:?}"
            );
            assert_ne!(end, End::Open, "{capture}: the connection is closed");
        }
        load.more(SOME)?;
        load.stop()?.ensure_flawless().context(capture)?;
    }
    Ok(())
}

#[test]
fn slow_clients_are_cut_off_and_others_do_not_wait_for_them() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let begun = Instant::now();
    let mut slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = scene.client.connect(scene.http())?;
            stream.write_all(b"GET /slow HTTP/1.1\r\nhost: ec")?;
            anyhow::Ok(stream)
        })
        .collect::<anyhow::Result<_>>()?;
    let load = scene.load()?;
    load.more(SOME)?;
    // One byte more does not buy more time.
    for stream in &mut slow {
        stream.write_all(b"h")?;
    }
    for mut stream in slow {
        let (answer, end) = read_to_end(&mut stream, SOON)?;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer:?} {end:?}");
        assert_eq!(end, End::Closed);
    }
    let took = begun.elapsed();
    load.more(SOME)?;
    let outcome = load.stop()?;
    eprintln!(
        "cut off within {took:?}; others waited {:?} at most",
        outcome.slowest
    );
    outcome.ensure_flawless()
}

/// A service whose one pod serves as a test says.
struct Served {
    service: Service,
    host: String,
    _server: Server,
    _pod: MeshPod,
}

fn serve(
    scene: &Scene,
    capture: &str,
    handler: impl Fn(TcpStream) + Send + Sync + 'static,
) -> anyhow::Result<Served> {
    let service = Service::new("served", 9).port("http", Scene::HTTP);
    service.apply(&scene.mesh)?;
    let options = PodOptions::named("served")
        .label("app", "served")
        .port("http", Scene::HTTP)
        .annotation(CAPTURE, capture);
    let pod = scene.near.pod(options)?;
    let listener = pod.listen((Ipv6Addr::UNSPECIFIED, Scene::HTTP).into())?;
    let server = Server::start(listener, move |stream, _| handler(stream))?;
    let made = Served {
        host: format!("{}:8080", service.host()),
        service,
        _server: server,
        _pod: pod,
    };
    until(SOON, || {
        let answer = made.get(scene, "/ready")?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    })?;
    Ok(made)
}

impl Served {
    fn connect(&self, scene: &Scene) -> anyhow::Result<TcpStream> {
        scene.client.connect(self.service.at(Scene::HTTP))
    }

    fn get(&self, scene: &Scene, path: &str) -> anyhow::Result<millrace_testkit::http::Response> {
        scene
            .client
            .get(self.service.at(Scene::HTTP), &self.host, path)
    }
}

/// Reads a head and returns its first line; `None` at the end.
fn head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut first = String::new();
    if stream.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut line = String::new();
    while stream.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    Some(first)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn no_request_is_smuggled_past_the_proxy() -> anyhow::Result<()> {
    require!(cluster);
    let scene = Scene::start("ebpf")?;
    let (noted, received) = std::sync::mpsc::channel();
    let mut so_far = Vec::new();
    // A server with the loosest of readings: whatever looks like a request is one.
    let served = serve(&scene, "ebpf", move |mut stream| {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            noted.send(buffer[..length].to_vec()).ok();
            if stream.write_all(OK).is_err() {
                return;
            }
        }
    })?;
    let inner = format!("GET /smuggled HTTP/1.1\r\nhost: {}\r\n\r\n", served.host);
    let attempts = [
        (
            "both",
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "the other way round",
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        ),
        (
            "two lengths",
            "Content-Length: 0\r\nContent-Length: 40\r\n\r\n",
        ),
        ("a list of lengths", "Content-Length: 0, 40\r\n\r\n"),
        ("a signed length", "Content-Length: +0\r\n\r\n"),
        (
            "a coding twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        ),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n\r\n"),
        (
            "a blank before the colon",
            "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a folded coding",
            "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a vertical tab",
            "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a bare line feed in a chunk",
            "Transfer-Encoding: chunked\r\n\r\n0\n\r\n",
        ),
        (
            "a chunk size with a sign",
            "Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n",
        ),
        (
            "an upgrade to h2c",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Length: 4, 4\r\n\r\n",
        ),
    ];
    for (what, rest) in attempts {
        let request = format!(
            "POST /outer HTTP/1.1\r\nhost: {}\r\n{rest}{inner}",
            served.host
        );
        let (answer, end) = exchange(&mut served.connect(&scene)?, request.as_bytes(), SOON)?;
        let answer = String::from_utf8_lossy(&answer);
        assert_ne!(
            end,
            End::Open,
            "{what}: the connection is closed: {answer:?}"
        );
        assert!(
            answer.matches("HTTP/1.1 ").count() <= 1,
            "{what}: one answer at most: {answer:?}"
        );
        so_far.extend(received.try_iter().flatten());
        let so_far = String::from_utf8_lossy(&so_far);
        assert!(!so_far.contains("smuggled"), "{what}: {so_far}");
    }
    // The pool is not poisoned: the next client gets the answer to its own request.
    assert_eq!(served.get(&scene, "/after")?.text(), "ok");
    assert_eq!(scene.ask()?.status, 200);
    Ok(())
}

/// Ends a connection with a reset instead of an orderly close.
fn reset(stream: &TcpStream) {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, sockopt::Linger, &linger).ok();
}

#[test]
fn an_upstream_that_dies_within_a_body_cuts_the_answer_off_visibly() -> anyhow::Result<()> {
    require!(cluster);
    for capture in CAPTURES {
        let scene = Scene::start(capture)?;
        let served = serve(&scene, capture, |stream| {
            let mut stream = BufReader::new(stream);
            while let Some(first) = head(&mut stream) {
                let out = stream.get_mut();
                let part = if first.contains("/length") {
                    "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nfirst part".to_owned()
                } else if first.contains("/chunked") {
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nfirst part\r\n"
                        .to_owned()
                } else if first.contains("/within") {
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfff\r\nfirst part"
                        .to_owned()
                } else if first.contains("/nothing") {
                    String::new()
                } else {
                    out.write_all(OK).ok();
                    continue;
                };
                out.write_all(part.as_bytes()).ok();
                if first.contains("reset") {
                    reset(out);
                }
                return;
            }
        })?;
        let load = scene.load()?;
        for path in [
            "/length",
            "/chunked",
            "/within",
            "/length-reset",
            "/chunked-reset",
        ] {
            let mut stream = served.connect(&scene)?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", served.host);
            let (answer, end) = exchange(&mut stream, request.as_bytes(), SOON)?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert_ne!(end, End::Open, "{capture} {path}: {answer:?}");
            // A reset may overtake the head; what must not be is an answer that seems whole.
            let whole = answer.ends_with("0\r\n\r\n") || answer.len() > 100_000;
            assert!(!whole, "{capture} {path}: {answer:?}");
            if !path.contains("reset") {
                assert!(
                    answer.starts_with("HTTP/1.1 200"),
                    "{capture} {path}: {answer:?}"
                );
                assert!(
                    answer.contains("first part"),
                    "{capture} {path}: {answer:?}"
                );
            }
            let entry = scene.logged(|entry| entry["path"] == path)?;
            let flags = entry["response_flags"].as_str().unwrap_or_default();
            assert!(
                flags.contains("UC") || flags.contains("UPE"),
                "{capture} {path}: {entry}"
            );
        }
        let mut client = Client::over(served.connect(&scene)?)?;
        let answer = client.send(&Request::get(&served.host, "/nothing"))?;
        assert_eq!(answer.status, 503, "{capture}: {}", answer.text());
        let entry = scene.logged(|entry| entry["path"] == "/nothing")?;
        assert_eq!(entry["response_flags"], "UC", "{capture}: {entry}");
        // The client's connection is as good as before.
        assert_eq!(
            client.send(&Request::get(&served.host, "/ok"))?.text(),
            "ok"
        );
        load.more(SOME)?;
        load.stop()?.ensure_flawless().context(capture)?;
    }
    Ok(())
}
