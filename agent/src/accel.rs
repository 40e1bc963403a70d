//! `accel.sock`: proxies ask here for connections to be promoted (`millrace_runtime::handoff::accel`).
//!
//! Answers at once and remembers nothing of a proxy, so that proxies and agents come and go as they like:
//! what is promoted lives in the kernel.

use std::path::Path;
use std::time::Duration;

use millrace_runtime::handoff::accel::{ACCEL_VERSION, MAX_PROMOTIONS, SpliceRequest};
use millrace_runtime::handoff::{
    AccelCall, AccelReply, BindOptions, Connection, HandoffError, Listener, PeerPolicy,
    PromotionRequest, PromotionResult, Refusal,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::chain;
use crate::kernel::Kernel;

/// Proxies at a time; an upgrade has two.
const PEERS: usize = 16;
/// How often promoted connections are looked at for readers that do not read.
const LOOK: Duration = Duration::from_secs(5);
/// An application that has left redirected bytes unread for so long does not read: acceleration is not
/// for it.
const STALLED: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be accepted, for want of descriptors for instance.
const PAUSE: Duration = Duration::from_millis(50);

type Peer = Connection<AccelCall, AccelReply>;

/// Binds the socket. The agent may not give it to the proxy's user, so everybody may connect; who
/// may speak is asked of the kernel.
///
/// # Errors
/// When the path cannot be bound.
pub fn bind(path: &Path) -> Result<Listener, HandoffError> {
    let options = BindOptions {
        mode: 0o666,
        owner: None,
    };
    Listener::bind(path, options)
}

/// Serves proxies until `stop`.
pub async fn serve(
    listener: Listener,
    policy: PeerPolicy,
    kernel: Kernel,
    stop: CancellationToken,
) {
    let mut peers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while peers.try_join_next().is_some() {}
        match accepted {
            Ok((peer, cred)) if policy.allows(cred) && peers.len() < PEERS => {
                peers.spawn(converse(peer, kernel.clone(), stop.clone()));
            }
            Ok((_, cred)) => {
                tracing::warn!(uid = cred.uid, pid = cred.pid, "refused on accel.sock");
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "peer not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    peers.join_all().await;
}

/// Looks at promoted connections every now and then until `stop`.
pub async fn watch(kernel: Kernel, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {
                let kernel = kernel.clone();
                let looked = tokio::task::spawn_blocking(move || {
                    kernel.suspend_stalled(STALLED);
                    kernel.forget_spliced();
                });
                if let Err(error) = looked.await {
                    tracing::warn!(%error, "promoted connections are not looked at");
                }
            }
        }
    }
}

async fn converse(peer: Peer, kernel: Kernel, stop: CancellationToken) {
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = peer.recv() => received,
        };
        let call = match received {
            Ok(Some(received)) => received.message,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "proxy is disconnected from accel.sock");
                return;
            }
        };
        let (reply, last) = answer(&kernel, call);
        let sent = tokio::select! {
            () = stop.cancelled() => return,
            sent = peer.send(&reply, &[]) => sent,
        };
        if let Err(error) = sent {
            tracing::debug!(error = %chain(&error), "proxy has left accel.sock");
            return;
        }
        if last {
            return;
        }
    }
}

/// The answer, and whether it is the last.
fn answer(kernel: &Kernel, call: AccelCall) -> (AccelReply, bool) {
    match call {
        AccelCall::Hello { version, pid } => {
            let unavailable = kernel.acceleration().err();
            tracing::info!(pid, version, ?unavailable, "proxy asks for acceleration");
            let welcome = AccelReply::Welcome {
                version: ACCEL_VERSION,
                unavailable,
            };
            (welcome, version != ACCEL_VERSION)
        }
        AccelCall::Promote { requests } => {
            let results = each(&requests, |request| kernel.promote(request));
            (AccelReply::Promoted { results }, false)
        }
        AccelCall::Leave { requests } => {
            let results = each(&requests, |request| kernel.leave(request));
            (AccelReply::Left { results }, false)
        }
        AccelCall::Splice { requests } => {
            let results = each(&requests, |request| kernel.splice(request));
            (AccelReply::Spliced { results }, false)
        }
    }
}

fn each<T: Numbered>(requests: &[T], what: impl Fn(&T) -> PromotionResult) -> Vec<PromotionResult> {
    let refused = |request: &T| PromotionResult {
        id: request.id(),
        refused: Some(Refusal::Full),
    };
    let (taken, rest) = requests.split_at(requests.len().min(MAX_PROMOTIONS));
    taken
        .iter()
        .map(what)
        .chain(rest.iter().map(refused))
        .collect()
}

/// A request that says in its result which one it was.
trait Numbered {
    fn id(&self) -> u64;
}

impl Numbered for PromotionRequest {
    fn id(&self) -> u64 {
        self.id
    }
}

impl Numbered for SpliceRequest {
    fn id(&self) -> u64 {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u64) -> PromotionRequest {
        PromotionRequest {
            id,
            uid: "u-1".into(),
            local: "127.0.0.1:15001".parse().unwrap(),
            remote: "10.1.0.7:40000".parse().unwrap(),
        }
    }

    #[test]
    fn a_node_without_programs_says_so_and_refuses() {
        let kernel = Kernel::without("no BTF");
        let hello = AccelCall::Hello {
            version: ACCEL_VERSION,
            pid: 1,
        };
        let welcome = AccelReply::Welcome {
            version: ACCEL_VERSION,
            unavailable: Some("no BTF".to_owned()),
        };
        assert_eq!(answer(&kernel, hello), (welcome, false));
        let AccelReply::Promoted { results } = answer(
            &kernel,
            AccelCall::Promote {
                requests: vec![request(7)],
            },
        )
        .0
        else {
            panic!("no results");
        };
        assert_eq!(results[0].id, 7);
        assert_eq!(results[0].refused, Some(Refusal::UnknownPod));
    }

    #[test]
    fn a_proxy_of_another_version_is_told_and_let_go() {
        let hello = AccelCall::Hello {
            version: ACCEL_VERSION + 1,
            pid: 1,
        };
        let (reply, last) = answer(&Kernel::without("x"), hello);
        assert!(matches!(reply, AccelReply::Welcome { version, .. } if version == ACCEL_VERSION));
        assert!(last);
    }

    #[test]
    fn requests_beyond_a_batch_are_refused() {
        let requests = (0..=MAX_PROMOTIONS as u64).map(request).collect();
        let (reply, _) = answer(&Kernel::without("x"), AccelCall::Promote { requests });
        let AccelReply::Promoted { results } = reply else {
            panic!("no results");
        };
        assert_eq!(results.len(), MAX_PROMOTIONS + 1);
        assert_eq!(results[MAX_PROMOTIONS].refused, Some(Refusal::Full));
    }

    #[tokio::test]
    async fn strangers_are_not_heard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accel.sock");
        let stop = CancellationToken::new();
        let strangers = PeerPolicy::users(&[u32::MAX - 1]);
        let serving = tokio::spawn(serve(
            bind(&path).unwrap(),
            strangers,
            Kernel::without("x"),
            stop.clone(),
        ));
        let proxy = millrace_runtime::handoff::AccelConnection::connect(&path).unwrap();
        assert!(matches!(proxy.recv().await, Ok(None) | Err(_)));
        stop.cancel();
        serving.await.unwrap();
    }
}
