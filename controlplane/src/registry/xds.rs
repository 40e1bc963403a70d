//! Configuration from another server over xDS, as Istio's `configSources` have it: each kind of object is a type
//! called `group/version/Kind`, asked for whole on one aggregated stream.
//!
//! Input: the server's address; output: objects and what is wrong with them. A server that is gone takes nothing with
//! it; an object that is refused is named to the server with field and reason, and keeps its last good version.

mod catalog;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use millrace_xds::client::{ClientConfig, InvalidServer, StateEvent, StateStream};
use millrace_xds::node::{Node, NodeId, NodeRole};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use self::catalog::Catalog;
use super::{Registry, RegistryError, RegistryEvent, Running, Sink};

pub(super) const NAME: &str = "xds";

/// A server of configuration: `xds://host:port`, in plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSource {
    authority: String,
}

/// Why an address of configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidSource {
    /// Another scheme, which is a registry here.
    #[error("{address:?}: of config sources only xds://host:port is read here; {instead} instead")]
    Elsewhere {
        /// The address.
        address: String,
        /// The flags that do the same.
        instead: &'static str,
    },
    /// Nothing of the form.
    #[error("{0:?} is not of the form xds://host:port")]
    Malformed(String),
}

impl FromStr for ConfigSource {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || InvalidSource::Malformed(text.to_owned());
        let elsewhere = |instead| InvalidSource::Elsewhere {
            address: text.to_owned(),
            instead,
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(malformed)?;
        match scheme {
            "xds" => {}
            "fs" => return Err(elsewhere("use --registries file --config-dir")),
            "k8s" => return Err(elsewhere("use --registries kubernetes")),
            _ => return Err(malformed()),
        }
        let authority = rest.trim_end_matches('/');
        let valid: http::uri::Authority = authority.parse().map_err(|_| malformed())?;
        if valid.port_u16().is_none() || valid.host().is_empty() || authority.contains('@') {
            return Err(malformed());
        }
        Ok(Self {
            authority: authority.to_owned(),
        })
    }
}

impl fmt::Display for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xds://{}", self.authority)
    }
}

/// The registry.
#[derive(Debug)]
pub(super) struct XdsRegistry {
    source: ConfigSource,
    domain: String,
}

impl XdsRegistry {
    /// The registry of what a server has, for a mesh of this domain.
    pub(super) fn new(source: ConfigSource, domain: &str) -> Self {
        Self {
            source,
            domain: domain.to_owned(),
        }
    }

    fn stream(&self) -> Result<StateStream, InvalidServer> {
        let id = NodeId {
            role: NodeRole::Sidecar,
            ip: Some(Ipv4Addr::LOCALHOST.into()),
            id: "millrace-pilot.millrace-system".to_owned(),
            domain: format!("millrace-system.svc.{}", self.domain),
        };
        // By this Istio knows that objects are asked for, and not what a proxy gets of them.
        let node = Node::new(&id).with_metadata("GENERATOR", "api");
        StateStream::new(ClientConfig::new(
            format!("http://{}", self.source.authority),
            node,
        ))
    }
}

impl Registry for XdsRegistry {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(self: Box<Self>, sink: Sink, stop: CancellationToken) -> Running {
        Box::pin(async move {
            let stream = self
                .stream()
                .map_err(|source| RegistryError::Server { name: NAME, source })?;
            let source = self.source.to_string();
            let mut follow = Follow {
                catalog: Catalog::new(&source, &self.domain),
                stream,
                sink,
                synced: false,
            };
            // biased: a stop before work.
            tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                ended = follow.run() => ended,
            }
        })
    }
}

/// The registry at work.
struct Follow {
    catalog: Catalog,
    stream: StateStream,
    sink: Sink,
    synced: bool,
}

impl Follow {
    async fn run(&mut self) -> Result<(), RegistryError> {
        loop {
            for type_url in self.catalog.take_wanted() {
                self.stream.want_all(&type_url);
            }
            let mut events = match self.stream.next().await {
                StateEvent::Connected => {
                    self.catalog.set_broken(None);
                    Vec::new()
                }
                StateEvent::Disconnected { error, retry_in } => {
                    tracing::info!(%error, ?retry_in, "a server of configuration is gone");
                    self.catalog.set_broken(Some(error));
                    Vec::new()
                }
                StateEvent::Update(update) => {
                    let (changed, rejected) = self.catalog.take(&update);
                    self.stream.finish(&update, &rejected);
                    changed.into_iter().collect()
                }
            };
            events.extend(self.catalog.problems());
            if !self.synced && self.catalog.is_synced() {
                self.synced = true;
                events.push(RegistryEvent::Synced);
            }
            for event in events {
                let sent = self.sink.send(event).await;
                sent.map_err(|_| RegistryError::Closed { name: NAME })?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_istios_and_others_are_told_where_they_belong() {
        let read = |text: &str| text.parse::<ConfigSource>().map(|read| read.to_string());
        assert_eq!(read("xds://istiod:15010").unwrap(), "xds://istiod:15010");
        assert_eq!(read("xds://[::1]:1/").unwrap(), "xds://[::1]:1");
        for wrong in [
            "istiod:15010",
            "xds://istiod",
            "xds://",
            "tcp://a:1",
            "xds://u@a:1",
        ] {
            assert!(
                matches!(read(wrong), Err(InvalidSource::Malformed(_))),
                "{wrong}"
            );
        }
        let elsewhere = read("fs:///etc/config").unwrap_err().to_string();
        assert!(elsewhere.contains("--registries file"), "{elsewhere}");
    }
}
