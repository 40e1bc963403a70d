//! The broker's two sockets: accepts, checks who is there, and turns messages into operations of
//! the [`Hub`].

use std::sync::Arc;

use millrace_runtime::handoff::{
    AgentAnswer, AgentCall, AgentRequest, BrokerFault, Connection, HandoffError, Listener,
    MAX_WANT, MAX_WORKERS, PROTOCOL_VERSION, PeerPolicy, ProxyRequest, ProxyState, Received,
    ToAgent, ToProxy,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hub::{Hub, chain};
use super::inspect;
use super::outbox::Outbox;
use super::state::Proxy;

/// Calls of one agent that are under way at a time.
const CALLS: usize = 32;
/// Peers of one socket at a time.
const PEERS: usize = 64;
/// Pods in one answer to `List`.
const PAGE: usize = 100;

type AgentPeer = Connection<AgentCall, ToAgent>;
type ProxyPeer = Connection<ProxyRequest, ToProxy>;

/// Serves agents until `stop`.
pub(super) async fn serve_agents(
    listener: Listener,
    policy: PeerPolicy,
    hub: Arc<Hub>,
    stop: CancellationToken,
) {
    let mut peers = JoinSet::new();
    while let Some(peer) = next_peer::<AgentCall, ToAgent>(&listener, &policy, &stop).await {
        while peers.try_join_next().is_some() {}
        if peers.len() < PEERS {
            peers.spawn(agent(peer, Arc::clone(&hub), stop.child_token()));
        }
    }
}

/// Serves proxies until `stop`.
pub(super) async fn serve_proxies(
    listener: Listener,
    policy: PeerPolicy,
    hub: Arc<Hub>,
    stop: CancellationToken,
) {
    let mut peers = JoinSet::new();
    while let Some(peer) = next_peer::<ProxyRequest, ToProxy>(&listener, &policy, &stop).await {
        while peers.try_join_next().is_some() {}
        if peers.len() < PEERS {
            peers.spawn(proxy(peer, Arc::clone(&hub), stop.child_token()));
        }
    }
}

async fn next_peer<R, S>(
    listener: &Listener,
    policy: &PeerPolicy,
    stop: &CancellationToken,
) -> Option<Arc<Connection<R, S>>>
where
    R: millrace_runtime::handoff::Message,
    S: millrace_runtime::handoff::Message,
{
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((connection, peer)) if policy.allows(peer) => return Some(Arc::new(connection)),
            Ok((_, peer)) => {
                tracing::warn!(
                    uid = peer.uid,
                    pid = peer.pid,
                    socket = %listener.path().display(),
                    "peer refused: its user may not speak here"
                );
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "peer not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn receive<R, S>(
    connection: &Connection<R, S>,
    closed: &CancellationToken,
) -> Option<Received<R>>
where
    R: millrace_runtime::handoff::Message,
    S: millrace_runtime::handoff::Message,
{
    let received: Result<_, HandoffError> = tokio::select! {
        () = closed.cancelled() => return None,
        received = connection.recv() => received,
    };
    received.unwrap_or_else(|error| {
        tracing::warn!(error = %chain(&error), "peer is disconnected");
        None
    })
}

async fn agent(connection: Arc<AgentPeer>, hub: Arc<Hub>, closed: CancellationToken) {
    let outbox = Outbox::start(Arc::clone(&connection), closed.clone());
    let peer = {
        let mut state = hub.state.lock();
        let peer = state.next_peer();
        state.agents.insert(peer, outbox.clone());
        peer
    };
    let slots = Arc::new(Semaphore::new(CALLS));
    let mut calls = JoinSet::new();
    while let Some(received) = receive(&connection, &closed).await {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            break;
        };
        let (hub, outbox) = (Arc::clone(&hub), outbox.clone());
        calls.spawn(async move {
            let AgentCall { id, request } = received.message;
            let (result, fds) = match answer(&hub, request).await {
                Ok((answer, fds)) => (Ok(answer), fds),
                Err(fault) => {
                    tracing::warn!(message = fault.message, "call of the agent failed");
                    (Err(fault), Vec::new())
                }
            };
            outbox.answer(ToAgent::Reply { id, result }, fds).await;
            drop(slot);
        });
        while calls.try_join_next().is_some() {}
    }
    // A call that is under way is finished: half an adoption helps nobody.
    while calls.join_next().await.is_some() {}
    hub.state.lock().agents.remove(&peer);
    closed.cancel();
}

type Answered = (AgentAnswer, Vec<Arc<std::os::fd::OwnedFd>>);

async fn answer(hub: &Hub, request: AgentRequest) -> Result<Answered, BrokerFault> {
    let answer = match request {
        AgentRequest::Hello { version, pid } => {
            tracing::info!(pid, version, "agent connected");
            hub.state.lock().announce_proxies();
            AgentAnswer::Welcome {
                version: PROTOCOL_VERSION,
                pid: std::process::id(),
            }
        }
        AgentRequest::Adopt { pod } => {
            let adoption = hub.adopt(*pod).await?;
            return Ok((AgentAnswer::Adopted(adoption.adopted), adoption.fds));
        }
        AgentRequest::Release { uid } => {
            hub.release(&uid).await;
            AgentAnswer::Done
        }
        AgentRequest::Capture {
            uid,
            mode,
            on_loss,
            iptables,
        } => {
            let rules = iptables.map(|rules| *rules);
            let applied = hub.capture(&uid, mode, on_loss, rules).await?;
            AgentAnswer::Captured {
                mode,
                detail: applied.detail,
                problem: applied.problem,
            }
        }
        AgentRequest::Synced => {
            hub.agent_synced();
            AgentAnswer::Done
        }
        AgentRequest::CanarySockets { uid } => {
            let (sockets, fds) = hub.canary_sockets(&uid).await?;
            let fds = fds.into_iter().map(Arc::new).collect();
            return Ok((AgentAnswer::CanarySockets { sockets }, fds));
        }
        AgentRequest::Inspect { after } => {
            let (pods, next) = hub.inspect(after.as_ref()).await;
            AgentAnswer::Inspected { pods, next }
        }
        AgentRequest::ProgramNames { ids } => AgentAnswer::ProgramNames {
            programs: inspect::program_names(&ids),
        },
        AgentRequest::List { after } => {
            let state = hub.state.lock();
            let (pods, more) = state.page(after.as_ref(), PAGE);
            let proxies = state.proxy_states();
            AgentAnswer::Pods {
                pods,
                proxies,
                more,
            }
        }
    };
    Ok((answer, Vec::new()))
}

async fn proxy(connection: Arc<ProxyPeer>, hub: Arc<Hub>, closed: CancellationToken) {
    let outbox = Outbox::start(Arc::clone(&connection), closed.clone());
    let hello = receive(&connection, &closed).await.map(|r| r.message);
    let Some(mut state) = welcome(hello.as_ref(), &outbox) else {
        outbox.answer(refusal(), Vec::new()).await;
        // The refusal must be on its way before the connection ends.
        receive(&connection, &closed).await;
        return;
    };
    // What the kernel says counts; 0 means that the proxy lives in another pid namespace.
    if let Some(pid) = connection
        .peer_cred()
        .ok()
        .and_then(|peer| u32::try_from(peer.pid).ok())
        && pid > 0
    {
        state.pid = pid;
    }
    let epoch = state.epoch;
    tracing::info!(
        epoch,
        workers = state.workers,
        pid = state.pid,
        "proxy connected"
    );
    let peer = {
        let mut shared = hub.state.lock();
        let peer = shared.next_peer();
        let proxy = Proxy {
            state,
            asked: false,
            ready: false,
            draining: CancellationToken::new(),
            heard: Instant::now(),
            outbox: outbox.clone(),
        };
        shared.proxies.insert(peer, proxy);
        peer
    };
    while let Some(received) = receive(&connection, &closed).await {
        hub.state.lock().heard(peer);
        if !message(&hub, peer, &outbox, received).await {
            break;
        }
    }
    closed.cancel();
    let mut state = hub.state.lock();
    state.proxies.remove(&peer);
    state.announce_proxies();
    tracing::info!(epoch, "proxy disconnected");
}

fn refusal() -> ToProxy {
    ToProxy::Refused {
        reason: format!(
            "the first message must be hello of protocol {PROTOCOL_VERSION} with 1 to {MAX_WORKERS} workers"
        ),
    }
}

fn welcome(hello: Option<&ProxyRequest>, outbox: &Outbox<ToProxy>) -> Option<ProxyState> {
    let Some(ProxyRequest::Hello {
        version: PROTOCOL_VERSION,
        epoch,
        workers: workers @ 1..=MAX_WORKERS,
        pid,
    }) = hello
    else {
        return None;
    };
    outbox.post(
        ToProxy::Welcome {
            version: PROTOCOL_VERSION,
            pid: std::process::id(),
        },
        Vec::new(),
    );
    Some(ProxyState {
        epoch: *epoch,
        pid: *pid,
        workers: *workers,
        draining: false,
    })
}

/// Acts on one message; false when the proxy breaks the protocol.
async fn message(
    hub: &Arc<Hub>,
    peer: u64,
    outbox: &Outbox<ToProxy>,
    received: Received<ProxyRequest>,
) -> bool {
    match received.message {
        ProxyRequest::Hello { .. } => return false,
        ProxyRequest::Heartbeat => {}
        ProxyRequest::Return { uid, listeners } => hub.give_back(&uid, listeners, received.fds),
        ProxyRequest::Ready => {
            let mut state = hub.state.lock();
            let proxy = state.proxies.get_mut(&peer);
            if proxy.is_none_or(|proxy| std::mem::replace(&mut proxy.asked, true)) {
                // Telling it of all pods is work, which it gets done once.
                return false;
            }
            drop(state);
            // Beside the reader: filling many pods must not look like silence.
            let hub = Arc::clone(hub);
            tokio::spawn(async move { hub.proxy_ready(peer).await });
        }
        ProxyRequest::Draining => {
            let mut state = hub.state.lock();
            let proxy = state.proxies.get_mut(&peer);
            if let Some(proxy) = proxy.filter(|proxy| !proxy.state.draining) {
                proxy.state.draining = true;
                proxy.draining.cancel();
                state.announce_proxies();
            }
        }
        ProxyRequest::Want {
            uid,
            kind,
            family,
            count,
        } => {
            let answer = hub.want(&uid, kind, family, count.min(MAX_WANT)).await;
            match answer {
                Ok(sockets) => {
                    let count = u16::try_from(sockets.len()).unwrap_or(MAX_WANT);
                    let fds = sockets.into_iter().map(Arc::new).collect();
                    let message = ToProxy::Sockets {
                        uid,
                        kind,
                        family,
                        count,
                    };
                    outbox.answer(message, fds).await;
                }
                Err(error) => {
                    let reason = chain(&error);
                    let message = ToProxy::WantFailed {
                        uid,
                        kind,
                        family,
                        reason,
                    };
                    outbox.answer(message, Vec::new()).await;
                }
            }
        }
    }
    true
}
