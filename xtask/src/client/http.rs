//! A plain HTTP/1.1 client: it resolves a name as any program does, keeps its connections, and counts
//! answers by a field of their JSON.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use millrace_testkit::http::{Client, Request};
use serde::{Deserialize, Serialize};

use super::Latencies;

#[derive(Debug, clap::Args)]
pub(crate) struct HttpArgs {
    /// What to get, `http://host:port/path`.
    #[arg(long)]
    url: String,
    /// How many requests to send.
    #[arg(long, default_value_t = 1)]
    requests: u64,
    /// On how many connections.
    #[arg(long, default_value_t = 1)]
    connections: u64,
    /// A header to send, `name: value`; may be repeated.
    #[arg(long = "header")]
    headers: Vec<String>,
    /// A JSON pointer into the answers; they are counted by what is there.
    #[arg(long)]
    count_by: Option<String>,
    /// How long a connection may take to be made.
    #[arg(long, default_value_t = 5)]
    connect_seconds: u64,
}

/// What the requests came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Called {
    /// Answers with a status of 200.
    pub(crate) ok: u64,
    /// Requests without one, by reason.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Answers by what they said at the pointer.
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) latencies: Latencies,
    /// The last answer's body, for a person to look at.
    pub(crate) last: String,
}

#[derive(Default)]
struct Share {
    called: Called,
    samples: Vec<Duration>,
}

pub(super) fn run(args: &HttpArgs) -> anyhow::Result<Called> {
    let target = Target::parse(args)?;
    let left = AtomicU64::new(args.requests);
    let started = Instant::now();
    let shares: Vec<Share> = thread::scope(|scope| {
        let workers: Vec<_> = (0..args.connections)
            .map(|_| scope.spawn(|| target.work(&left)))
            .collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .collect()
    });
    let mut total = Called {
        seconds: started.elapsed().as_secs_f64(),
        ..Called::default()
    };
    let mut samples = Vec::new();
    for share in shares {
        total.ok += share.called.ok;
        add(&mut total.errors, share.called.errors);
        add(&mut total.counts, share.called.counts);
        if !share.called.last.is_empty() {
            total.last = share.called.last;
        }
        samples.extend(share.samples);
    }
    total.latencies = Latencies::of(&mut samples);
    Ok(total)
}

fn add(to: &mut BTreeMap<String, u64>, from: BTreeMap<String, u64>) {
    for (key, count) in from {
        *to.entry(key).or_default() += count;
    }
}

struct Target<'a> {
    authority: &'a str,
    address: String,
    request: Request,
    args: &'a HttpArgs,
}

impl<'a> Target<'a> {
    fn parse(args: &'a HttpArgs) -> anyhow::Result<Self> {
        let url = &args.url;
        let rest = url
            .strip_prefix("http://")
            .with_context(|| format!("{url}: not http://"))?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        ensure!(!authority.is_empty(), "{url}: no host");
        let has_port = authority
            .rsplit(':')
            .next()
            .is_some_and(|port| port.parse::<u16>().is_ok());
        let address = if has_port {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        };
        let mut request = Request::get(authority, path);
        for header in &args.headers {
            let (name, value) = header
                .split_once(':')
                .with_context(|| format!("{header}: not `name: value`"))?;
            request = request.header(name.trim(), value.trim());
        }
        Ok(Self {
            authority,
            address,
            request,
            args,
        })
    }

    /// Sends requests on one connection at a time until none is left to send.
    fn work(&self, left: &AtomicU64) -> Share {
        let mut share = Share::default();
        let mut connection = None;
        let take = |left: &AtomicU64| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_ok()
        };
        while take(left) {
            let started = Instant::now();
            match self.call(&mut connection, &mut share.called) {
                Ok(()) => share.samples.push(started.elapsed()),
                Err(error) => {
                    connection = None;
                    *share.called.errors.entry(format!("{error:#}")).or_default() += 1;
                }
            }
        }
        share
    }

    fn call(&self, connection: &mut Option<Client>, called: &mut Called) -> anyhow::Result<()> {
        let client = match connection {
            Some(client) => client,
            None => connection.insert(self.connect()?),
        };
        let response = client.send(&self.request)?;
        if client.closed() {
            *connection = None;
        }
        called.last = response.text();
        ensure!(response.status == 200, "status {}", response.status);
        called.ok += 1;
        if let Some(pointer) = &self.args.count_by {
            let body = response.json()?;
            let value = body
                .pointer(pointer)
                .with_context(|| format!("no {pointer} in the answer"))?;
            let key = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            *called.counts.entry(key).or_default() += 1;
        }
        Ok(())
    }

    fn connect(&self) -> anyhow::Result<Client> {
        let resolving = || format!("resolving {}", self.authority);
        let addresses: Vec<SocketAddr> = self
            .address
            .to_socket_addrs()
            .with_context(resolving)?
            .collect();
        let limit = Duration::from_secs(self.args.connect_seconds);
        let mut last = None;
        for address in &addresses {
            match TcpStream::connect_timeout(address, limit) {
                Ok(stream) => return Client::over(stream),
                Err(error) => last = Some((address, error)),
            }
        }
        let (address, error) = last.with_context(|| format!("{}: no address", self.authority))?;
        Err(error).with_context(|| format!("connecting to {address}"))
    }
}
