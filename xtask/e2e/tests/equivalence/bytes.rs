//! Connections that carry bytes: how they begin, how each side ends them, and what the other one sees.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use anyhow::{Context as _, ensure};
use millrace_testkit::http::Server;
use millrace_testkit::raw::{exchange_half_closed, read_to_end};

use crate::observation::Observation;
use crate::scene::{FAMILIES, PLACES, SOON, Scene};
use crate::server;

/// Bytes that pass unchanged, of declared and other ports; also such that begin like HTTP.
pub(crate) fn echoed(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    let large: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let contents: [(&str, &[u8]); 4] = [
        ("binary", b"\x00\x01\xff\r\n\r\n"),
        (
            "nearly HTTP",
            b"\x00\x01GEX / HTTP/9\r\nnot a header at all",
        ),
        ("one byte", b"x"),
        ("1 MB", &large),
    ];
    for place in PLACES {
        for (family, v6) in FAMILIES {
            for port in [server::ECHO, server::SOME_BYTES] {
                for (name, bytes) in contents {
                    let to = scene.service(place, port, v6);
                    let result = round_trip(scene, to, bytes);
                    seen.see_result(format!("{place} {family} {port}: {name}"), result);
                }
            }
        }
    }
    Ok(seen)
}

/// Sends from a thread of its own, so that neither side waits for the other; half-closes, and reads all.
fn round_trip(scene: &Scene, to: SocketAddr, bytes: &[u8]) -> anyhow::Result<String> {
    let mut stream = scene.client.connect(to)?;
    let mut writer = stream.try_clone()?;
    let bytes = bytes.to_vec();
    let sent = bytes.clone();
    let thread = std::thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(Shutdown::Write)
    });
    let (back, end) = read_to_end(&mut stream, SOON)?;
    let wrote = thread.join();
    ensure!(matches!(wrote, Ok(Ok(()))), "not everything was sent");
    let same = if back == bytes { "all" } else { "other bytes" };
    Ok(format!("{same} came back, then {end:?}"))
}

/// Servers that speak before their clients do.
pub(crate) fn server_first(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for place in PLACES {
        for (family, v6) in FAMILIES {
            for port in [server::BANNER, server::SOME_BANNER] {
                // The second time the destination is known to be one.
                for turn in ["first", "second"] {
                    let to = scene.service(place, port, v6);
                    let heard = heard(scene, to);
                    seen.see_result(format!("{place} {family} {port}: {turn}"), heard);
                }
            }
        }
    }
    Ok(seen)
}

fn heard(scene: &Scene, to: SocketAddr) -> anyhow::Result<String> {
    let mut stream = scene.client.connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut greeting = vec![0; server::GREETING.len()];
    stream
        .read_exact(&mut greeting)
        .context("the server's words")?;
    stream.write_all(b"EHLO\r\n")?;
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).context("the answer")?;
    let all = [greeting, answer.to_vec()].concat();
    Ok(format!("{:?}", String::from_utf8_lossy(&all)))
}

/// One side ends its stream and the other goes on.
pub(crate) fn half_closed(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for place in PLACES {
        for (family, v6) in FAMILIES {
            let what = format!("{place} {family}");
            let to = scene.service(place, server::ECHO, v6);
            let mut stream = scene.client.connect(to)?;
            let ended = exchange_half_closed(&mut stream, b"to the end", SOON);
            let ended = ended.map(|(bytes, end)| format!("{:?}, {end:?}", text(&bytes)));
            seen.see_result(format!("{what}: by the client"), ended);

            let key = format!("half-{family}");
            let (mut stream, _) = told(scene, place, v6, &format!("half {key}\n"))?;
            let (said, end) = read_to_end(&mut stream, SOON)?;
            seen.see(
                format!("{what}: by the server"),
                format!("{:?}, {end:?}", text(&said)),
            );
            stream.write_all(b"the client still speaks")?;
            stream.shutdown(Shutdown::Write)?;
            let event = scene.backend(place).servers.seen.event(&key);
            seen.see_result(format!("{what}: by the server, which still hears"), event);
        }
    }
    Ok(seen)
}

/// A connection to the server that is told what to do; with the end that it is to have.
fn told(
    scene: &Scene,
    place: &str,
    v6: bool,
    command: &str,
) -> anyhow::Result<(TcpStream, SocketAddr)> {
    let to = scene.service(place, server::CONTROL, v6);
    let mut stream = scene.client.connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(command.as_bytes())?;
    Ok((stream, to))
}

/// One side resets, or leaves nothing to talk to.
pub(crate) fn reset(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    for place in PLACES {
        for (family, v6) in FAMILIES {
            let what = format!("{place} {family}");
            let (mut stream, _) = told(scene, place, v6, &format!("reset r-{family}\n"))?;
            let ended = read_to_end(&mut stream, SOON);
            let ended = ended.map(|(bytes, end)| format!("{:?}, {end:?}", text(&bytes)));
            seen.see_result(format!("{what}: by the server"), ended);

            for (name, reset) in [("reset", true), ("closed", false)] {
                let key = format!("{name}-{family}");
                let (mut stream, _) = told(scene, place, v6, &format!("record {key}\n"))?;
                let mut listening = [0; 9];
                stream
                    .read_exact(&mut listening)
                    .context("the server listens")?;
                if reset {
                    Server::abort(&stream);
                } else {
                    stream.write_all(b"farewell")?;
                }
                drop(stream);
                let event = scene.backend(place).servers.seen.event(&key);
                seen.see_result(format!("{what}: {name} by the client"), event);
            }

            let to = scene.service(place, server::CLOSED_TCP, v6);
            seen.see_result(format!("{what}: nobody listens"), refused(scene, to));
        }
    }
    let empty = scene.service("empty", server::ECHO, false);
    seen.see_result("a service without endpoints", refused(scene, empty));
    Ok(seen)
}

fn refused(scene: &Scene, to: SocketAddr) -> anyhow::Result<String> {
    let Ok(mut stream) = scene.client.connect(to) else {
        return Ok("refused".to_owned());
    };
    // Nothing is sent: an error that a write has seen is not seen again by a read.
    let (bytes, end) = read_to_end(&mut stream, SOON)?;
    Ok(format!("accepted, {:?}, {end:?}", text(&bytes)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
