//! The workloads, and one measurement of one of them.
//!
//! HTTP/1.1 is measured with wrk, HTTP/2 and TCP with `cargo xtask client`; a workload has the same
//! generator on every path.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use millrace_testkit::{CLUSTER_DNS, Pod};

use super::ports::{HTTP, HTTP2, ONCE, SINK, SOURCE, TCP};
use crate::client::Measured;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// HTTP/1.1, answers of 1 KiB.
    Http1,
    /// HTTP/2, answers of 1 KiB.
    Http2,
    /// HTTP/1.1, a connection per request.
    NewConnection,
    /// HTTP/1.1, answers of 1 MiB.
    Mebibyte,
    /// TCP, messages of 64 bytes that come back.
    PingPong,
    /// TCP, a connection per message.
    Connect,
    /// HTTP/1.1, answers of so many bytes.
    Get(usize),
    /// HTTP/1.1, requests with a body of so many bytes.
    Post(usize),
    /// TCP, a message that goes out in so many writes of so many bytes, and comes back.
    Echo { writes: usize, bytes: usize },
    /// TCP, the client sends, so many bytes in a write.
    Upload(usize),
    /// TCP, the server sends, so many bytes in a write.
    Download(usize),
    /// Questions to the pod's resolver.
    Dns,
}

/// A kind of traffic with a number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) kind: Kind,
    pub(super) connections: usize,
}

/// What every path is compared by.
pub(super) const WORKLOADS: [Workload; 9] = [
    Kind::Http1.on(1),
    Kind::Http1.on(32),
    Kind::Http2.on(1),
    Kind::Http2.on(32),
    Kind::NewConnection.on(8),
    Kind::Connect.on(8),
    Kind::Mebibyte.on(4),
    Kind::PingPong.on(1),
    Kind::PingPong.on(32),
];

impl Kind {
    /// On a number of connections.
    pub(super) const fn on(self, connections: usize) -> Workload {
        Workload {
            kind: self,
            connections,
        }
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Http1 => "http1".to_owned(),
            Self::Http2 => "http2".to_owned(),
            Self::NewConnection => "http1-new-connection".to_owned(),
            Self::Mebibyte => "http1-1mib".to_owned(),
            Self::PingPong => "tcp-pingpong".to_owned(),
            Self::Connect => "tcp-connect".to_owned(),
            Self::Get(bytes) => format!("http1-get-{}", size(bytes)),
            Self::Post(bytes) => format!("http1-post-{}", size(bytes)),
            Self::Echo { writes: 1, bytes } => format!("tcp-echo-{}", size(bytes)),
            Self::Echo { writes, bytes } => format!("tcp-echo-{writes}x{}", size(bytes)),
            Self::Upload(bytes) => format!("tcp-upload-{}", size(bytes)),
            Self::Download(bytes) => format!("tcp-download-{}", size(bytes)),
            Self::Dns => "dns".to_owned(),
        }
    }

    /// The resource that is asked for.
    fn path(self) -> String {
        match self {
            Self::Mebibyte => "/1mib".to_owned(),
            Self::Get(bytes) => format!("/bytes/{bytes}"),
            _ => "/1k".to_owned(),
        }
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{}m", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}k", bytes >> 10),
        _ => bytes.to_string(),
    }
}

/// Where a path's requests go.
pub(super) struct Target<'a> {
    pub(super) client: &'a Pod,
    pub(super) address: IpAddr,
    pub(super) host: &'a str,
}

/// What wrk prints when it is done, in the form of [`Measured`].
const WRK_SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  print(string.format(
    '{"requests":%d,"errors":%d,"seconds":%.6f,"p50_us":%.1f,"p99_us":%.1f}',
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout,
    summary.duration / 1e6, latency:percentile(50), latency:percentile(99)))
end
"#;

impl Workload {
    pub(super) fn measure(
        &self,
        target: &Target<'_>,
        seconds: f64,
        scratch: &Path,
    ) -> anyhow::Result<Measured> {
        let command = self.command(target, seconds, scratch)?;
        let printed = target.client.stdout(command)?;
        let Some(report) = printed.lines().find(|line| line.starts_with('{')) else {
            bail!("the load generator reported nothing:\n{printed}");
        };
        serde_json::from_str(report).with_context(|| format!("the load generator said {report}"))
    }

    fn command(
        &self,
        target: &Target<'_>,
        seconds: f64,
        scratch: &Path,
    ) -> anyhow::Result<Command> {
        let own = |kind: &str, port: u16, arguments: &[(&str, String)]| {
            let at = SocketAddr::new(target.address, port);
            self.own(kind, at, seconds, arguments)
        };
        let number = |number: usize| number.to_string();
        match self.kind {
            Kind::Http1 | Kind::NewConnection | Kind::Mebibyte | Kind::Get(_) | Kind::Post(_) => {
                self.wrk(target, seconds, scratch)
            }
            Kind::Http2 => {
                let authority = format!("{}:{HTTP2}", target.host);
                let path = self.kind.path();
                own(
                    "http2",
                    HTTP2,
                    &[("--authority", authority), ("--path", path)],
                )
            }
            Kind::PingPong => own("tcp", TCP, &[]),
            Kind::Echo { writes, bytes } => {
                let (bytes, writes) = (number(bytes * writes), number(writes));
                own("tcp", TCP, &[("--bytes", bytes), ("--writes", writes)])
            }
            Kind::Connect => own("connect", ONCE, &[]),
            Kind::Upload(bytes) => {
                let (up, bytes) = (("--direction", "up".to_owned()), ("--bytes", number(bytes)));
                own("stream", SINK, &[up, bytes])
            }
            Kind::Download(bytes) => {
                let (down, bytes) = (
                    ("--direction", "down".to_owned()),
                    ("--bytes", number(bytes)),
                );
                own("stream", SOURCE, &[down, bytes])
            }
            Kind::Dns => {
                let name = target.host.to_owned();
                let resolver = SocketAddr::new(CLUSTER_DNS.into(), 53);
                self.own("dns", resolver, seconds, &[("--name", name)])
            }
        }
    }

    fn wrk(&self, target: &Target<'_>, seconds: f64, scratch: &Path) -> anyhow::Result<Command> {
        let script = scratch.join("report.lua");
        let request = match self.kind {
            Kind::Post(bytes) => {
                format!("wrk.method = 'POST'\nwrk.body = string.rep('x', {bytes})\n")
            }
            _ => String::new(),
        };
        fs::write(&script, format!("{request}{WRK_SCRIPT}"))
            .with_context(|| format!("writing {}", script.display()))?;
        let mut command = Command::new("wrk");
        command
            .args([
                "--threads",
                "1",
                "--connections",
                &self.connections.to_string(),
            ])
            // wrk takes whole seconds only.
            .args([
                "--duration",
                &format!("{}s", seconds.round().max(1.0)),
                "--timeout",
                "10s",
            ])
            .args(["--header", &format!("Host: {}:{HTTP}", target.host)])
            .arg("--script")
            .arg(script);
        if self.kind == Kind::NewConnection {
            command.args(["--header", "connection: close"]);
        }
        let address = SocketAddr::new(target.address, HTTP);
        command.arg(format!("http://{address}{}", self.kind.path()));
        Ok(command)
    }

    fn own(
        &self,
        kind: &str,
        to: SocketAddr,
        seconds: f64,
        arguments: &[(&str, String)],
    ) -> anyhow::Result<Command> {
        let mut command = Command::new(super::generator()?);
        command
            .args(["client", kind, "--to", &to.to_string()])
            .args(["--connections", &self.connections.to_string()])
            .args(["--seconds", &seconds.to_string()]);
        for (flag, value) in arguments {
            command.args([flag, value.as_str()]);
        }
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_named_by_what_it_sends() {
        let echo = |writes, bytes| Kind::Echo { writes, bytes }.name();
        assert_eq!(echo(1, 16 << 10), "tcp-echo-16k");
        assert_eq!(echo(16, 64), "tcp-echo-16x64");
        assert_eq!(Kind::Get(1 << 20).name(), "http1-get-1m");
        assert_eq!(Kind::Upload(1500).name(), "tcp-upload-1500");
    }
}
