//! DNS for the pods of this node: mesh names are answered here, everything else is forwarded.
//!
//! Input: datagrams and connections on the sockets that listen on port 15053 of a pod (or of a
//! sidecar). Output: answers. Names come from the newest snapshot; other questions go unchanged,
//! from the pod's own network namespace, to the resolver that the client asked or to those of
//! the node. Runs on the control thread, so a flood of questions cannot delay a request.

mod forward;
pub mod message;
pub mod names;
mod stats;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod upstreams;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use millrace_runtime::handoff::PodUid;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pods::{LocalPod, LocalPods};
use crate::snapshot::Store;
use message::Decision;
use names::Scope;
pub use stats::{DnsStats, Outcome};
pub use upstreams::Upstreams;

/// Questions being forwarded at a time; more are answered SERVFAIL at once.
const MAX_IN_FLIGHT: usize = 4096;
/// Of these, from one socket.
const MAX_PER_SOCKET: usize = 512;

/// What the DNS server needs.
pub struct Dns {
    /// Where the mesh names are.
    pub store: Arc<Store>,
    /// The pods whose sockets are served.
    pub pods: Arc<LocalPods>,
    /// Resolvers for everything else.
    pub upstreams: Upstreams,
    /// Domain of the cluster, such as `cluster.local`.
    pub domain: String,
    /// Counters.
    pub stats: DnsStats,
    in_flight: Arc<Semaphore>,
    /// Sockets that are served, and questions that came from them.
    tasks: TaskTracker,
}

/// Whose questions come in at a socket.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// The pod that the socket is in; `None` for the socket of a sidecar.
    pub pod: Option<PodUid>,
    /// The sidecar's own namespace, whose short names are known.
    pub namespace: Option<String>,
}

impl Dns {
    /// A server that serves no socket yet.
    pub fn new(
        store: Arc<Store>,
        pods: Arc<LocalPods>,
        upstreams: Upstreams,
        domain: String,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            pods,
            upstreams,
            domain,
            stats: DnsStats::default(),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            tasks: TaskTracker::new(),
        })
    }

    /// Serves a bound datagram socket until `stop` is cancelled.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn serve_udp(
        self: &Arc<Self>,
        socket: OwnedFd,
        client: Client,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let socket = udp::Socket::new(socket)?;
        self.tasks
            .spawn(udp::serve(self.clone(), socket, client, stop));
        Ok(())
    }

    /// Serves a listening stream socket until `stop` is cancelled.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn serve_tcp(
        self: &Arc<Self>,
        socket: OwnedFd,
        client: Client,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        self.tasks
            .spawn(tcp::serve(self.clone(), listener, client, stop));
        Ok(())
    }

    /// Waits until every question that was taken is answered; to be called when no socket is served any
    /// more.
    pub async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Looks at a question: answers it, drops it, or says that it is to be forwarded.
    fn decide(&self, query: &[u8], client: &Client, limit: message::Limit) -> Decision {
        let pod = self.pod(client);
        let namespace = match &pod {
            Some(pod) => Some(pod.spec.namespace.as_str()),
            None => client.namespace.as_deref(),
        };
        let scope = Scope {
            namespace,
            domain: &self.domain,
        };
        let decision = message::decide(query, self.store.load().names(), scope, limit);
        match &decision {
            Decision::Drop => self.stats.count(Outcome::Dropped),
            Decision::Refuse(_) => self.stats.count(Outcome::Malformed),
            Decision::Answer(_) if message::is_canary(query) => self.stats.count(Outcome::Canary),
            Decision::Answer(_) => self.stats.count(Outcome::Mesh),
            Decision::Forward => {}
        }
        decision
    }

    /// Forwards a question; the answer is the upstream's, or SERVFAIL.
    async fn forward(
        &self,
        query: &[u8],
        client: &Client,
        asked: Option<SocketAddr>,
        transport: forward::Transport,
    ) -> Vec<u8> {
        let upstreams = self.upstreams.of(asked);
        let pod = self.pod(client);
        match forward::ask(query, pod.as_deref(), &upstreams, transport).await {
            Ok(answer) => {
                self.stats.count(Outcome::Forwarded);
                answer
            }
            Err(error) => {
                self.stats.count(Outcome::Failed);
                tracing::debug!(%error, "question is not answered by any resolver");
                message::failure(query)
            }
        }
    }

    fn pod(&self, client: &Client) -> Option<Arc<LocalPod>> {
        self.pods.by_uid(client.pod.as_ref()?)
    }

    /// Room for one more question, of the whole server and of its socket.
    fn admit(
        &self,
        socket: &Arc<Semaphore>,
    ) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let own = socket.clone().try_acquire_owned().ok()?;
        let all = self.in_flight.clone().try_acquire_owned().ok()?;
        Some((own, all))
    }
}
