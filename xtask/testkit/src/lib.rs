//! Real hosts for tests: a [`Cluster`] of [`Node`]s whose [`Pod`]s are network namespaces with a
//! veth, a cgroup and processes of their own.
//!
//! Nothing is put into the machine's own network namespace and no namespace has an uplink, so
//! nothing a test does can leave the machine. Whatever a run made is removed when its [`Cluster`]
//! goes out of scope; what a killed run left behind is removed by the next one and by
//! [`clean::all`].

mod registry;
pub use registry::{RunId, STATE_ROOT};
pub mod clean;

mod cgroup;
pub use cgroup::{Cgroup, cgroup2_mount};
mod netns;
pub use netns::{Netns, in_netns};
mod host;
mod ip;
mod sandbox;
mod spawn;
pub use host::Host;
pub use spawn::{Launch, Process};

mod cluster;
pub use cluster::{Cluster, ClusterOptions, FabricHost};
mod node;
pub use node::Node;
mod pod;
pub use pod::{CLUSTER_DNS, Pod, PodOptions};

pub mod assets;
mod bin;
pub use bin::binary;
mod wait;
pub use wait::{eventually, until};
pub mod skip;

mod kubernetes;
pub use kubernetes::documents;

#[cfg(feature = "apiserver")]
pub mod apiserver;

#[cfg(feature = "fuzz")]
pub mod fuzz;

pub mod mesh;

pub mod echo;
pub mod envoy;
pub mod http;
pub mod raw;

#[cfg(feature = "h2")]
pub mod h2;
