//! The client's proxy is asked to end: what is under way goes on, what is idle is let go, and the proxy ends
//! when nothing is left. The last behaviour of a scene.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use millrace_testkit::http::{Client, Request};
use millrace_testkit::mesh::Role;
use millrace_testkit::until;
use nix::sys::signal::Signal;

use crate::observation::Observation;
use crate::scene::{SOON, Scene};
use crate::server;

/// SIGTERM to the proxy that serves the client.
pub(crate) fn drained(scene: &Scene) -> anyhow::Result<Observation> {
    let mut seen = Observation::default();
    let http = scene.service("near", server::HTTP, false);
    let request = |path: &str| Request::get("near:8080", path);
    let mut kept = Client::connect(&scene.client, http)?;
    kept.send(&request("/kept"))?;
    let mut stream = scene
        .client
        .connect(scene.service("near", server::ECHO, false))?;
    stream.set_read_timeout(Some(SOON))?;
    echo(&mut stream)?;
    let mut held = Client::connect(&scene.client, http)?;
    held.write(b"GET /hold/drained HTTP/1.1\r\nhost: near:8080\r\n\r\n")?;
    let witness = Arc::clone(&scene.near.servers.seen);
    until(SOON, || {
        ensure!(
            witness.requests("/hold/drained") > 0,
            "the request has not arrived"
        );
        anyhow::Ok(())
    })?;

    let pid = end_proxy(scene)?;
    // The idle connection tells that draining has begun: it is ended.
    let ended = kept.receive("GET").is_err();
    seen.see(
        "idle connection",
        if ended { "ended" } else { "answered unasked" },
    );
    seen.see_result(
        "stream of bytes, while draining",
        echo(&mut stream).map(|()| "goes on"),
    );
    witness.release();
    let answer = held.receive("GET");
    seen.see_result(
        "request under way",
        answer.map(|answer| {
            let closes = if held.closed() {
                "and closes"
            } else {
                "and goes on"
            };
            format!("{} {closes}", answer.status)
        }),
    );
    drop((kept, held));
    // A connection that is made now: who else holds the listening sockets decides.
    let late = scene.client.connect(http).map(drop);
    seen.see(
        "new connection",
        if late.is_ok() { "accepted" } else { "refused" },
    );
    seen.see_result(
        "stream of bytes, at the end",
        echo(&mut stream).map(|()| "goes on"),
    );
    seen.see(
        "the proxy, while bytes stream",
        if runs(pid) { "runs" } else { "has ended" },
    );
    drop(stream);
    let ended = until(SOON, || {
        ensure!(!runs(pid), "the proxy still runs");
        anyhow::Ok(())
    });
    seen.see_result(
        "the proxy, when nothing is left",
        ended.map(|()| "has ended"),
    );
    Ok(seen)
}

/// The process has ended, even if nobody has asked how.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

fn end_proxy(scene: &Scene) -> anyhow::Result<u32> {
    match (scene.mesh_node(), scene.client.sidecar()) {
        (Some(node), _) => node.signal(Role::Proxy, Signal::SIGTERM),
        (None, Some(sidecar)) => sidecar.signal(Signal::SIGTERM).map(|()| sidecar.pid()),
        (None, None) => anyhow::bail!("nobody serves the client"),
    }
}

fn echo(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(b"still there?")?;
    let mut back = [0; 12];
    stream.read_exact(&mut back).context("the echo")?;
    ensure!(&back == b"still there?", "{back:?}");
    Ok(())
}
