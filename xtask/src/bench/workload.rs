//! The workloads, and one measurement of one of them.
//!
//! HTTP/1.1 is measured with wrk, HTTP/2 and TCP with `cargo xtask client`; a workload has the same
//! generator on every path.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use millrace_testkit::Pod;

use super::ports::{HTTP, HTTP2, TCP};
use crate::client::Measured;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Http1,
    Http2,
    NewConnection,
    Mebibyte,
    PingPong,
}

/// A kind of traffic with a number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) kind: Kind,
    pub(super) connections: usize,
}

pub(super) const WORKLOADS: [Workload; 8] = [
    Workload {
        kind: Kind::Http1,
        connections: 1,
    },
    Workload {
        kind: Kind::Http1,
        connections: 32,
    },
    Workload {
        kind: Kind::Http2,
        connections: 1,
    },
    Workload {
        kind: Kind::Http2,
        connections: 32,
    },
    Workload {
        kind: Kind::NewConnection,
        connections: 8,
    },
    Workload {
        kind: Kind::Mebibyte,
        connections: 4,
    },
    Workload {
        kind: Kind::PingPong,
        connections: 1,
    },
    Workload {
        kind: Kind::PingPong,
        connections: 32,
    },
];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::NewConnection => "http1-new-connection",
            Self::Mebibyte => "http1-1mib",
            Self::PingPong => "tcp-pingpong",
        }
    }

    fn path(self) -> &'static str {
        if self == Self::Mebibyte {
            "/1mib"
        } else {
            "/1k"
        }
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
        let command = match self.kind {
            Kind::Http1 | Kind::NewConnection | Kind::Mebibyte => {
                self.wrk(target, seconds, scratch)?
            }
            Kind::Http2 => {
                let mut command = self.own("http2", target, HTTP2, seconds)?;
                command.args(["--authority", &format!("{}:{HTTP2}", target.host)]);
                command.args(["--path", self.kind.path()]);
                command
            }
            Kind::PingPong => self.own("tcp", target, TCP, seconds)?,
        };
        let printed = target.client.stdout(command)?;
        let Some(report) = printed.lines().find(|line| line.starts_with('{')) else {
            bail!("the load generator reported nothing:\n{printed}");
        };
        serde_json::from_str(report).with_context(|| format!("the load generator said {report}"))
    }

    fn wrk(&self, target: &Target<'_>, seconds: f64, scratch: &Path) -> anyhow::Result<Command> {
        let script = scratch.join("report.lua");
        fs::write(&script, WRK_SCRIPT).with_context(|| format!("writing {}", script.display()))?;
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
        target: &Target<'_>,
        port: u16,
        seconds: f64,
    ) -> anyhow::Result<Command> {
        let mut command = Command::new(super::generator()?);
        command
            .args([
                "client",
                kind,
                "--to",
                &SocketAddr::new(target.address, port).to_string(),
            ])
            .args(["--connections", &self.connections.to_string()])
            .args(["--seconds", &seconds.to_string()]);
        Ok(command)
    }
}
