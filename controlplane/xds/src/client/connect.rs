//! Where the control plane is, and how a connection to it is made: over TCP, TLS or a Unix socket, to one of
//! several replicas.
//!
//! In: the addresses of a [`super::ClientConfig`]. Out: channels. Names are looked up and roots read for every
//! connection, since both change while a node runs. Called by [`super::driver`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::{ClientConfig, InvalidServer};

/// A replica, or a name that several have.
#[derive(Clone, Debug)]
pub(super) struct Server {
    address: Address,
    endpoint: Endpoint,
    timeout: Duration,
}

#[derive(Clone, Debug)]
enum Address {
    Unix,
    Tcp {
        host: String,
        port: u16,
        tls: Option<Tls>,
    },
}

/// Whom to trust, and as whom.
#[derive(Clone, Debug)]
struct Tls {
    roots: PathBuf,
    name: ServerName<'static>,
}

/// A stream of bytes, whatever carries it.
trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

impl Server {
    /// Reads the comma-separated addresses of a configuration.
    pub(super) fn all(config: &ClientConfig) -> Result<Vec<Self>, InvalidServer> {
        let addresses = config.server.split(',').map(str::trim);
        addresses.map(|text| Self::read(text, config)).collect()
    }

    fn read(text: &str, config: &ClientConfig) -> Result<Self, InvalidServer> {
        let invalid = |reason: String| InvalidServer {
            server: text.to_owned(),
            reason,
        };
        let (address, endpoint) = if text.starts_with("unix:") {
            (Address::Unix, Endpoint::from_shared(text.to_owned()))
        } else {
            let uri: Uri = text.parse().map_err(|error| invalid(format!("{error}")))?;
            let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
                return Err(invalid("it has no host and port".to_owned()));
            };
            let host = host.trim_matches(['[', ']']).to_owned();
            let tls = match uri.scheme_str() {
                Some("http") => None,
                Some("https") => Some(tls(&host, config).map_err(invalid)?),
                _ => return Err(invalid("it begins with none of these".to_owned())),
            };
            // TLS is the connector's business; the transport is to see bytes.
            let plain = Endpoint::from_shared(format!(
                "http://{}",
                uri.authority()
                    .map_or_else(String::new, ToString::to_string)
            ));
            let endpoint = plain.map(|plain| {
                if tls.is_some() {
                    plain.origin(uri.clone())
                } else {
                    plain
                }
            });
            (Address::Tcp { host, port, tls }, endpoint)
        };
        let endpoint = endpoint
            .map_err(|error| invalid(error.to_string()))?
            .connect_timeout(config.connect_timeout)
            .http2_keep_alive_interval(config.keepalive)
            .keep_alive_timeout(config.keepalive)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        Ok(Self {
            address,
            endpoint,
            timeout: config.connect_timeout,
        })
    }

    /// Whether what is said to it is nobody else's to read.
    pub(super) fn is_private(&self) -> bool {
        matches!(
            self.address,
            Address::Unix | Address::Tcp { tls: Some(_), .. }
        )
    }

    /// Connects. Of the addresses that a name has, those after `turn` are tried first.
    pub(super) async fn connect(&self, turn: usize) -> Result<Channel, tonic::transport::Error> {
        let Address::Tcp { host, port, tls } = &self.address else {
            return self.endpoint.connect().await;
        };
        let (host, port, tls, timeout) = (host.clone(), *port, tls.clone(), self.timeout);
        let connector = service_fn(move |_: Uri| {
            let (host, tls) = (host.clone(), tls.clone());
            async move {
                let tcp = open(&host, port, turn, timeout).await?;
                let stream: Box<dyn Bytes> = match tls {
                    None => Box::new(tcp),
                    Some(tls) => {
                        let connector = TlsConnector::from(tls.config()?);
                        Box::new(connector.connect(tls.name, tcp).await?)
                    }
                };
                io::Result::Ok(TokioIo::new(stream))
            }
        });
        self.endpoint.connect_with_connector(connector).await
    }
}

/// Connects to one of the addresses of a host.
async fn open(host: &str, port: u16, turn: usize, timeout: Duration) -> io::Result<TcpStream> {
    let mut addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    addresses.sort_unstable();
    addresses.dedup();
    let count = addresses.len().max(1);
    addresses.rotate_left(turn % count);
    // Each gets its share, so that one that is silent does not take the time of the others.
    let share = timeout / u32::try_from(count).unwrap_or(u32::MAX);
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in addresses {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => {
                last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} is silent"));
            }
        }
    }
    Err(last)
}

fn tls(host: &str, config: &ClientConfig) -> Result<Tls, String> {
    let roots = config.roots.clone().ok_or("https needs a file of roots")?;
    let name = config.server_name.as_deref().unwrap_or(host);
    let name = ServerName::try_from(name.to_owned()).map_err(|error| format!("{name}: {error}"))?;
    Ok(Tls { roots, name })
}

impl Tls {
    /// With the roots as they are now.
    fn config(&self) -> io::Result<Arc<rustls::ClientConfig>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots(&self.roots)?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn roots(path: &Path) -> io::Result<RootCertStore> {
    let wrong = |message: String| io::Error::other(format!("{}: {message}", path.display()));
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("it has no certificate".to_owned()));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Node;

    fn read(server: &str, roots: Option<&str>) -> Result<usize, String> {
        let mut config = ClientConfig::new(server, Node::default());
        config.roots = roots.map(PathBuf::from);
        let servers = Server::all(&config).map_err(|error| error.to_string())?;
        Ok(servers.len())
    }

    #[test]
    fn several_addresses_stand_beside_each_other() {
        assert_eq!(read("http://a:1, unix:///run/x.sock", None), Ok(2));
        assert_eq!(read("https://a:1,https://[::1]:2", Some("/roots")), Ok(2));
    }

    #[test]
    fn what_cannot_be_connected_to_is_named() {
        for (server, reason) in [
            ("a:1", "none of these"),
            ("http://a", "no host and port"),
            ("http://a:1,", "empty"),
            ("https://a:1", "needs a file of roots"),
        ] {
            let error = read(server, None).expect_err("it is wrong");
            assert!(error.contains(reason), "{server}: {error}");
        }
    }
}
