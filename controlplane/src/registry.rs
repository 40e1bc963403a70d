//! Registries: where services, pods and configuration come from.
//!
//! A registry watches one place and sends what it finds to the writer of the index. It never judges:
//! objects come validated through [`crate::kube`], with problems beside them.

pub mod file;
pub mod kubernetes;
mod mock;

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::file::FileRegistry;
use self::kubernetes::{Access, ConnectError, KubernetesRegistry};
use self::mock::MockRegistry;
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
    /// One that belongs to Millrace and is not in this build.
    #[error("registry {0:?} is not in this build, which has file, kubernetes and mock")]
    NotBuilt(String),
    /// None that anyone knows.
    #[error("{0:?} is not a registry; this build has file, kubernetes and mock")]
    Unknown(String),
}

impl FromStr for RegistryKind {
    type Err = UnknownRegistry;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "file" => Ok(Self::File),
            "kubernetes" => Ok(Self::Kubernetes),
            "mock" => Ok(Self::Mock),
            "cloudfoundry" => Err(UnknownRegistry::CloudFoundry),
            "config" | "consul" | "eureka" | "aggregate" => {
                Err(UnknownRegistry::NotBuilt(text.to_owned()))
            }
            _ => Err(UnknownRegistry::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for RegistryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
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
}

impl RegistryKind {
    /// The registry, for a mesh of this domain.
    pub fn build(self, places: Places, domain: &str) -> Box<dyn Registry> {
        match self {
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
        for later in ["Consul", "Eureka", "Config"] {
            let refused = later.parse::<RegistryKind>().unwrap_err();
            assert_eq!(refused, UnknownRegistry::NotBuilt(later.to_owned()));
        }
        assert!(matches!(
            "zookeeper".parse::<RegistryKind>(),
            Err(UnknownRegistry::Unknown(_))
        ));
    }
}
