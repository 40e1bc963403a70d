//! A rule in force: from the file that is written to the first request that a real proxy answers by it.
//!
//! One `millrace-proxy`, started from a file, takes routes and clusters of a namespace from the pilot under
//! measurement. A request is sent every half millisecond until its answer is the new rule's.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// How long anything may take before the measurement fails.
const LIMIT: Duration = Duration::from_mins(1);
/// Between two requests.
const PACE: Duration = Duration::from_micros(500);
const POLL: Duration = Duration::from_millis(10);

/// A running proxy; ended when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Child,
    address: SocketAddr,
}

impl Proxy {
    /// Starts one as the sidecar of a pod of `namespace`.
    pub(crate) async fn start(
        binary: &Path,
        scratch: &Path,
        xds: &str,
        namespace: &str,
    ) -> anyhow::Result<Self> {
        let file = scratch.join("proxy.yaml");
        std::fs::write(&file, bootstrap(xds, namespace)?)?;
        let log = scratch.join("proxy.log");
        let output = std::fs::File::create(&log)?;
        let child = Command::new(binary)
            .arg("-c")
            .arg(&file)
            .args(["--workers", "1"])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let mut proxy = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let started = Instant::now();
        loop {
            ensure!(
                proxy.child.try_wait()?.is_none(),
                "the proxy ended: {}",
                text_of(&log)
            );
            ensure!(
                started.elapsed() < LIMIT,
                "the proxy did not listen: {}",
                text_of(&log)
            );
            let text = text_of(&log);
            let mut lines = text.lines().filter(|line| line.contains("from_pilot"));
            if let Some(address) = lines.find_map(|line| line.split_once("address=")) {
                let address = address.1.split_whitespace().next().unwrap_or_default();
                proxy.address = address.parse().context("the proxy's address")?;
                return Ok(proxy);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection(BufReader::new(stream)))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A connection to the proxy that is kept open.
#[derive(Debug)]
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Asks until the answer is `expected`.
    pub(crate) async fn until(&mut self, host: &str, expected: &str) -> anyhow::Result<Instant> {
        let started = Instant::now();
        while started.elapsed() < LIMIT {
            if self.get(host).await? == expected {
                return Ok(Instant::now());
            }
            tokio::time::sleep(PACE).await;
        }
        bail!("no answer of {host} was {expected}")
    }

    /// The body of an answer.
    async fn get(&mut self, host: &str) -> anyhow::Result<String> {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes()).await?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).await?;
            ensure!(read > 0, "the proxy closed the connection");
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

fn text_of(path: &Path) -> String {
    // Colours, where there are any, stand between a field and its value.
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut plain = String::new();
    let mut parts = text.split('\u{1b}');
    plain.extend(parts.next());
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

fn bootstrap(xds: &str, namespace: &str) -> anyhow::Result<String> {
    let address = xds.strip_prefix("http://").unwrap_or(xds);
    let (host, port) = address
        .rsplit_once(':')
        .context("an address without a port")?;
    let filters = "type.googleapis.com/envoy.extensions.filters";
    let mut text = String::new();
    write!(
        text,
        r#"node: {{id: sidecar~10.255.1.1~rules.{namespace}~{namespace}.svc.cluster.local, cluster: rules}}
dynamic_resources:
  ads_config: {{api_type: DELTA_GRPC, grpc_services: [{{envoy_grpc: {{cluster_name: pilot}}}}]}}
  cds_config: {{ads: {{}}}}
static_resources:
  listeners:
  - name: from_pilot
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: h
        typed_config:
          "@type": {filters}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: h
          rds: {{config_source: {{ads: {{}}}}, route_config_name: "80"}}
          http_filters: [{{name: r, typed_config: {{"@type": {filters}.http.router.v3.Router}}}}]
  clusters:
  - name: pilot
    connect_timeout: 1s
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: pilot
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}}}]}}]
"#
    )?;
    Ok(text)
}
