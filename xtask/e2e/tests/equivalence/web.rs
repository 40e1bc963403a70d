//! HTTP/1.1, HTTP/2 and gRPC as client and server have them: what they see of each other's messages.

use std::io::Write as _;

use bytes::Bytes;
use millrace_testkit::echo::Seen;
use millrace_testkit::http::{Client, Request, Response};
use millrace_testkit::{h2, raw};

use crate::observation::Observation;
use crate::scene::{FAMILIES, PLACES, SOON, Scene};
use crate::server;

/// A request's headers at the server and the answer's at the client: their names, and the values that do
/// not differ from call to call.
pub(crate) fn headers(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for place in PLACES {
        for port in [server::HTTP, server::SOME_HTTP] {
            let host = format!("{place}:{port}");
            let to = scene.service(place, port, false);
            let request = Request::new("POST", &host, "/a%20b/../c?d=e")
                .header("x-own", "kept")
                .header("connection", "keep-alive, x-hop")
                .header("x-hop", "1")
                .header("x-envoy-max-retries", "7")
                .header("te", "trailers")
                .body("a body");
            let mut client = Client::connect(&scene.client, to)?;
            let answer = client.send(&request)?;
            let server = Seen::of(&answer)?;
            let what = format!("{place} {port}");
            seen.see(format!("{what}: answer"), shown(&answer));
            seen.see(
                format!("{what}: request line"),
                format!("{} {}", server.method, server.path),
            );
            seen.see(format!("{what}: body"), server.body_length);
            seen.see(format!("{what}: request headers"), stable(&server.headers));
            seen.see(
                format!("{what}: response headers"),
                stable(&answer.headers.0),
            );
            let again = client.send(&Request::get(&host, "/again"))?;
            seen.see(format!("{what}: once more"), shown(&again));
        }
    }
    Ok(seen)
}

/// Names, with values where those are the same at every call.
fn stable(headers: &[(String, String)]) -> String {
    let volatile = [
        "x-request-id",
        "date",
        "content-length",
        "x-envoy-upstream-service-time",
    ];
    let mut shown: Vec<String> = headers
        .iter()
        .map(|(name, value)| match name.to_ascii_lowercase() {
            name if volatile.contains(&&*name) => name,
            name => format!("{name}={value}"),
        })
        .collect();
    shown.sort();
    shown.join(" | ")
}

fn shown(answer: &Response) -> String {
    let from = answer.headers.first("x-server").unwrap_or("the proxy");
    format!("{} from {from}", answer.status)
}

/// Requests of every shape, also such as a proxy must refuse.
pub(crate) fn shapes(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    let large = "x".repeat(300_000);
    for (family, v6) in FAMILIES {
        let to = scene.service("near", server::HTTP, v6);
        let ask = |request: Request| scene.ask(to, &request).map(|answer| shown(&answer));
        let get = || Request::get("near:8080", "/");
        seen.see_result(
            format!("{family}: HEAD"),
            ask(Request::new("HEAD", "near", "/")),
        );
        seen.see_result(
            format!("{family}: large body"),
            ask(get().body(large.clone())),
        );
        seen.see_result(
            format!("{family}: chunks"),
            ask(get().header("transfer-encoding", "chunked").body("chunked")),
        );
        seen.see_result(
            format!("{family}: status"),
            ask(get().header("x-echo-status", "404")),
        );
        seen.see_result(
            format!("{family}: too many bytes of headers"),
            ask(get().header("x-large", &large[..100_000])),
        );
        seen.see_result(
            format!("{family}: unknown host"),
            ask(Request::get("nobody", "/")),
        );
        seen.see_result(
            format!("{family}: host of another service"),
            ask(Request::get("far:8080", "/")),
        );
        for (name, bytes) in [
            (
                "two lengths",
                "GET / HTTP/1.1\r\nhost: near\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
            ),
            (
                "length and chunks",
                "POST / HTTP/1.1\r\nhost: near\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
            ("no host", "GET / HTTP/1.1\r\n\r\n"),
            ("HTTP/1.0", "GET / HTTP/1.0\r\nhost: near:8080\r\n\r\n"),
            ("no HTTP", "hello there, is this HTTP?\r\n\r\n"),
        ] {
            let mut stream = scene.client.connect(to)?;
            stream.write_all(bytes.as_bytes())?;
            let answer = raw::read_to_end(&mut stream, SOON);
            let answer = answer.map(|(bytes, end)| {
                let text = String::from_utf8_lossy(&bytes);
                format!("{:?}, {end:?}", text.lines().next().unwrap_or_default())
            });
            seen.see_result(format!("{family}: {name}"), answer);
        }
    }
    Ok(seen)
}

/// Many requests of one HTTP/2 connection, and gRPC with its trailers.
pub(crate) fn grpc(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for place in PLACES {
        for (family, v6) in FAMILIES {
            let what = format!("{place} {family}");
            let to = scene.service(place, server::GRPC, v6);
            let mut client = h2::Client::connect(&scene.client, to)?;
            let request = |path: &str, grpc: bool| {
                let kind = if grpc {
                    "application/grpc"
                } else {
                    "text/plain"
                };
                http::Request::post(format!("http://{place}:{}{path}", server::GRPC))
                    .header("content-type", kind)
                    .header("te", "trailers")
                    .body(Bytes::from_static(b"\0\0\0\0\x05hello"))
            };
            let mut requests = vec![request("/plain", false)?];
            for call in 0..10 {
                requests.push(request(&format!("/echo.Echo/Call{call}"), true)?);
            }
            let answers = client.send_all(requests)?;
            let mut lines: Vec<String> = answers
                .iter()
                .map(|answer| {
                    let trailer = |name| answer.trailers.get(name).and_then(|v| v.to_str().ok());
                    let body = if answer.body == "\0\0\0\0\x05hello" {
                        "its own"
                    } else {
                        "a"
                    };
                    format!(
                        "{} with {body} body, grpc-status {}, from {}",
                        answer.head.status.as_u16(),
                        trailer("grpc-status").unwrap_or("-"),
                        trailer("x-server").unwrap_or("-"),
                    )
                })
                .collect();
            lines.dedup();
            seen.see(what, lines.join("; "));
        }
    }
    // What the proxy itself answers to gRPC.
    let to = scene.service("empty", server::GRPC, false);
    let mut client = h2::Client::connect(&scene.client, to)?;
    let request = http::Request::post(format!("http://empty:{}/echo.Echo/Call", server::GRPC))
        .header("content-type", "application/grpc")
        .body(Bytes::new())?;
    let answer = client.send(request)?;
    let header = |name| {
        answer
            .head
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    seen.see(
        "a service without endpoints",
        format!(
            "{}, grpc-status {:?}",
            answer.head.status.as_u16(),
            header("grpc-status")
        ),
    );
    Ok(seen)
}
