//! One session with the broker, from `Ready` until the connection ends.

use std::collections::VecDeque;

use millrace_runtime::handoff::{
    BrokerConnection, HEARTBEAT_INTERVAL, ProxyRequest, Received, ToProxy,
};
use tokio::time::MissedTickBehavior;

use super::{BrokerClient, BrokerError, Listening};
use crate::pods::Want;

/// Requests held back while the broker does not read; pools have one each under way, so more
/// wait in their channel.
const MAX_OUTGOING: usize = 64;

impl<L: Listening> BrokerClient<L> {
    /// Serves the session until it ends; says why it did.
    pub(super) async fn session(
        &mut self,
        connection: &BrokerConnection,
        mut told_draining: bool,
    ) -> BrokerError {
        let mut outgoing = VecDeque::new();
        // Whether the broker has handled `Ready` and with it what it was given back before, and has
        // named every pod that there is.
        let mut knows_pods = false;
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What the last session was asked for never comes; the pools ask anew.
        while self.wants.try_recv().is_ok() {}
        self.held.reconnected();
        loop {
            if told_draining && knows_pods && !self.released.is_cancelled() {
                self.held.stop_listening();
                self.released.cancel();
            }
            // Not biased: a broker that sends much must not hold requests and heartbeats back.
            // Every arm is cancel-safe; sending waits beside receiving, so that two full
            // sockets cannot block each other.
            tokio::select! {
                received = connection.recv() => match received {
                    Ok(Some(received)) => {
                        knows_pods |= received.message == ToProxy::Synced;
                        self.handle(received, knows_pods);
                    }
                    Ok(None) => return BrokerError::Closed,
                    Err(error) => return error.into(),
                },
                sent = send_front(connection, &outgoing), if !outgoing.is_empty() => match sent {
                    Ok(()) => drop(outgoing.pop_front()),
                    Err(error) => return error,
                },
                Some(want) = self.wants.recv(), if outgoing.len() < MAX_OUTGOING => {
                    outgoing.push_back(request(want));
                }
                _ = heartbeat.tick() => {
                    self.held.tick();
                    if !outgoing.contains(&ProxyRequest::Heartbeat) {
                        outgoing.push_back(ProxyRequest::Heartbeat);
                    }
                }
                () = self.draining.cancelled(), if !told_draining => {
                    told_draining = true;
                    outgoing.push_back(ProxyRequest::Draining);
                }
            }
        }
    }

    fn handle(&mut self, received: Received<ToProxy>, knows_pods: bool) {
        let Received { message, fds } = received;
        match message {
            ToProxy::PodUp {
                pod,
                families,
                capture,
                listeners,
                total,
            } => {
                let uid = pod.uid.clone();
                self.held.pod_up(*pod, families, capture, total);
                self.held.listeners(&uid, listeners, fds);
            }
            ToProxy::Listeners { uid, listeners } => self.held.listeners(&uid, listeners, fds),
            ToProxy::PodDown { uid } => self.held.pod_down(&uid),
            ToProxy::Synced => {
                tracing::info!(pods = self.held.len(), "the broker has announced every pod");
                self.held.synced();
                self.synced = None;
            }
            ToProxy::Sockets {
                uid, kind, family, ..
            } => self.held.sockets(&uid, kind, family, fds),
            ToProxy::WantFailed {
                uid,
                kind,
                family,
                reason,
            } => {
                tracing::warn!(pod = %uid, ?kind, ?family, reason, "the broker makes no sockets");
                if knows_pods {
                    self.held.want_failed(&uid, kind, family);
                } else {
                    self.held.want_postponed(&uid, kind, family);
                }
            }
            ToProxy::CaptureChanged { uid, capture } => self.held.capture_changed(&uid, capture),
            ToProxy::Welcome { .. } | ToProxy::Refused { .. } => {
                tracing::warn!("unexpected greeting from the broker");
            }
        }
    }
}

async fn send_front(
    connection: &BrokerConnection,
    outgoing: &VecDeque<ProxyRequest>,
) -> Result<(), BrokerError> {
    match outgoing.front() {
        Some(request) => Ok(connection.send(request, &[]).await?),
        None => Ok(()),
    }
}

fn request(want: Want) -> ProxyRequest {
    let Want {
        uid,
        kind,
        family,
        count,
    } = want;
    ProxyRequest::Want {
        uid,
        kind,
        family,
        count,
    }
}
