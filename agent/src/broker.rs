//! The broker: the only process that enters pod namespaces. It makes sockets there, writes
//! capture rules there and hands the sockets to the proxy; it parses no traffic and knows no
//! Kubernetes.
//!
//! Input: calls of the agent on `broker.sock`, messages of proxies on `proxy.sock`. Output:
//! descriptors. All state is in memory: after a restart the agent adopts its pods again and the
//! proxy returns its listening sockets, so no backlog is lost.

pub mod netns;
pub mod routes;
pub mod sockets;

mod netlink;
