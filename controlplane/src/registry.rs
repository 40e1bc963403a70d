//! Registries: where services, pods and configuration come from.
//!
//! A registry watches one place and sends what it finds to the writer of the index. It never judges:
//! objects come validated through [`crate::kube`], with problems beside them.

mod aggregate;
pub mod consul;
pub mod eureka;
#[cfg(test)]
mod fake;
mod fetch;
pub mod file;
pub mod kubernetes;
mod mock;
mod outside;
pub mod xds;

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::aggregate::AggregateRegistry;
use self::consul::{Agent, ConsulRegistry};
use self::eureka::EurekaRegistry;
pub use self::fetch::InvalidAddress;
use self::file::FileRegistry;
use self::kubernetes::{Access, ConnectError, KubernetesRegistry};
use self::mock::MockRegistry;
use self::xds::{ConfigSource, XdsRegistry};
use crate::kube::document::Sourced;
use crate::model::ObjectId;
use crate::model::problem::Problem;

/// What a registry tells the writer.
#[derive(Clone, Debug, PartialEq)]
pub enum RegistryEvent {
    /// Objects are new or different, others are gone.
    Changed {
        /// New and different ones.
        applied: Vec<Sourced>,
        /// Gone ones.
        deleted: Vec<ObjectId>,
    },
    /// All that is wrong at the registry now, instead of what was said before.
    Problems(Vec<Problem>),
    /// All that was there at the start has been sent.
    Synced,
}

/// Where registries send to. Bounded, so that a registry waits for the writer instead of piling up.
pub type Sink = mpsc::Sender<RegistryEvent>;

/// A registry at work.
pub type Running = Pin<Box<dyn Future<Output = Result<(), RegistryError>> + Send>>;

/// A place that services and configuration come from.
pub trait Registry: Send {
    /// Its name, as the flag has it.
    fn name(&self) -> &'static str;

    /// Watches until stopped. Everything there is comes first, then [`RegistryEvent::Synced`].
    fn run(self: Box<Self>, sink: Sink, stop: CancellationToken) -> Running;
}

/// Why a registry cannot go on.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// Its place cannot be read at the start.
    #[error("registry {name}: cannot read {path}")]
    Unreadable {
        /// The registry.
        name: &'static str,
        /// The place.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// There is no way to its place.
    #[error("registry kubernetes: cannot reach a cluster")]
    Unreachable(#[from] ConnectError),
    /// Its server's address is none.
    #[error("registry {name}: the address of its server")]
    Address {
        /// The registry.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidAddress,
    },
    /// Its xDS server's address is none.
    #[error("registry {name}: the address of its server")]
    Server {
        /// The registry.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: millrace_xds::client::InvalidServer,
    },
    /// Its token cannot be sent.
    #[error("registry {name}: its token has characters that no header may have")]
    Token {
        /// The registry.
        name: &'static str,
    },
    /// A watch that never ends has ended.
    #[error("registry {name}: a watch has ended")]
    WatchEnded {
        /// The registry.
        name: &'static str,
        /// Why, if it panicked.
        #[source]
        source: Option<tokio::task::JoinError>,
    },
    /// The writer of the index has ended.
    #[error("registry {name}: nobody listens any more")]
    Closed {
        /// The registry.
        name: &'static str,
    },
}

/// The registries that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryKind {
    /// A Consul agent.
    Consul,
    /// A Eureka server.
    Eureka,
    /// A directory of YAML.
    File,
    /// A Kubernetes cluster.
    Kubernetes,
    /// Two fixed services.
    Mock,
}

/// A registry that this build does not have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnknownRegistry {
    /// One whose platform no longer offers what it needs.
    #[error(
        "registry CloudFoundry: its discovery API is gone from the world; write its services as YAML into a directory \
         and use --registry file"
    )]
    CloudFoundry,
    /// Istio's store of configuration, which is no place of its own here.
    #[error(
        "registry Config: configuration comes from file and kubernetes, ServiceEntries with it"
    )]
    Config,
    /// What several registries make together.
    #[error(
        "registry aggregate: name the registries, the first of which counts where several have an object, as in --registries kubernetes,file"
    )]
    Aggregate,
    /// One that stands in the list twice.
    #[error("registry {0} is named twice")]
    Twice(RegistryKind),
    /// None that anyone knows.
    #[error("{0:?} is not a registry; there are consul, eureka, file, kubernetes and mock")]
    Unknown(String),
}

impl FromStr for RegistryKind {
    type Err = UnknownRegistry;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "file" => Ok(Self::File),
            "kubernetes" => Ok(Self::Kubernetes),
            "mock" => Ok(Self::Mock),
            "consul" => Ok(Self::Consul),
            "eureka" => Ok(Self::Eureka),
            "cloudfoundry" => Err(UnknownRegistry::CloudFoundry),
            "config" => Err(UnknownRegistry::Config),
            "aggregate" => Err(UnknownRegistry::Aggregate),
            _ => Err(UnknownRegistry::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for RegistryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Consul => "consul",
            Self::Eureka => "eureka",
            Self::File => "file",
            Self::Kubernetes => "kubernetes",
            Self::Mock => "mock",
        })
    }
}

/// Where each registry looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The directory of the file registry.
    pub directory: PathBuf,
    /// The cluster of the Kubernetes registry.
    pub cluster: Access,
    /// The agent of the Consul registry.
    pub consul: Agent,
    /// The server of the Eureka registry, `http://host:port/eureka`.
    pub eureka: String,
    /// Servers whose configuration is read besides, after that of the registries.
    pub sources: Vec<ConfigSource>,
}

/// The registries of a pilot, in the order in which their objects count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registries(Vec<RegistryKind>);

impl FromStr for Registries {
    type Err = UnknownRegistry;

    /// Reads names with commas between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self::none());
        }
        let mut kinds = Vec::new();
        for name in text.split(',') {
            let kind: RegistryKind = name.trim().parse()?;
            if kinds.contains(&kind) {
                return Err(UnknownRegistry::Twice(kind));
            }
            kinds.push(kind);
        }
        Ok(Self(kinds))
    }
}

impl fmt::Display for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&names.join(","))
    }
}

impl Registries {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this one is among them.
    pub fn includes(&self, kind: RegistryKind) -> bool {
        self.0.contains(&kind)
    }

    /// No registry: services and configuration come from servers of configuration alone.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// The one registry, or what all of them and the servers of configuration make together.
    pub fn build(&self, places: &Places, domain: &str) -> Box<dyn Registry> {
        let registries = self.0.iter().map(|kind| kind.build(places.clone(), domain));
        let sources = places.sources.iter().map(|source| {
            let source = XdsRegistry::new(source.clone(), domain);
            Box::new(source) as Box<dyn Registry>
        });
        let mut members: Vec<Box<dyn Registry>> = registries.chain(sources).collect();
        match members.len() {
            1 => members.remove(0),
            _ => Box::new(AggregateRegistry::new(members)),
        }
    }
}

impl RegistryKind {
    /// The registry, for a mesh of this domain.
    fn build(self, places: Places, domain: &str) -> Box<dyn Registry> {
        match self {
            Self::Consul => Box::new(ConsulRegistry::new(places.consul)),
            Self::Eureka => Box::new(EurekaRegistry::new(places.eureka)),
            Self::File => Box::new(FileRegistry::new(places.directory, domain)),
            Self::Kubernetes => Box::new(KubernetesRegistry::new(places.cluster, domain)),
            Self::Mock => Box::new(MockRegistry::new(domain)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_found_by_name_and_others_refused_with_a_reason() {
        assert_eq!("File".parse(), Ok(RegistryKind::File));
        assert_eq!("mock".parse(), Ok(RegistryKind::Mock));
        assert_eq!("Kubernetes".parse(), Ok(RegistryKind::Kubernetes));
        let refused = "CloudFoundry"
            .parse::<RegistryKind>()
            .unwrap_err()
            .to_string();
        assert!(refused.contains("--registry file"), "{refused}");
        assert_eq!("Consul".parse(), Ok(RegistryKind::Consul));
        assert_eq!("Eureka".parse(), Ok(RegistryKind::Eureka));
        assert!(matches!(
            "zookeeper".parse::<RegistryKind>(),
            Err(UnknownRegistry::Unknown(_))
        ));
    }

    #[test]
    fn several_registries_are_a_list_in_their_order() {
        let list: Registries = "kubernetes, Consul,file".parse().unwrap();
        assert_eq!(list.to_string(), "kubernetes,consul,file");
        let wrong = |text: &str| text.parse::<Registries>().unwrap_err();
        assert_eq!(
            wrong("file,file"),
            UnknownRegistry::Twice(RegistryKind::File)
        );
        assert_eq!(wrong("file,"), UnknownRegistry::Unknown(String::new()));
        assert_eq!(wrong("aggregate"), UnknownRegistry::Aggregate);
        let names = |text: &str| {
            let list: Registries = text.parse().unwrap();
            list.build(&Places::default(), "cluster.local").name()
        };
        assert_eq!(names("file"), "file");
        assert_eq!(names("file,consul"), "aggregate");
    }
}
