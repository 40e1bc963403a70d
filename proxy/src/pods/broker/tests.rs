//! The proxy's side of the protocol, against a broker of this test.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use millrace_runtime::handoff::{
    BindOptions, CaptureMode, Connection, Families, Family, Listener, ListenerFamily,
    ListenerLabel, PodSpec, SocketKind,
};
use millrace_runtime::ready::Ready;
use parking_lot::Mutex;
use socket2::SockRef;

use super::*;

type Session = Connection<ProxyRequest, ToProxy>;

/// What reached the workers.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<(Socket, CancellationToken)>>>);

impl Listening for Recorder {
    fn serve(&self, socket: Socket, stop: CancellationToken) {
        self.0.lock().push((socket, stop));
    }
}

struct Test {
    listener: Listener,
    pods: Arc<LocalPods>,
    recorder: Recorder,
    ready: Ready,
    draining: CancellationToken,
    changes: watch::Receiver<u64>,
    released: CancellationToken,
    client: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Drop for Test {
    fn drop(&mut self) {
        self.client.abort();
    }
}

fn bind(path: &Path) -> Listener {
    let options = BindOptions {
        mode: 0o600,
        owner: None,
    };
    Listener::bind(path, options).unwrap()
}

fn start() -> Test {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.sock");
    let listener = bind(&path);
    let (pods, recorder, ready) = (Arc::default(), Recorder::default(), Ready::new());
    let draining = CancellationToken::new();
    let identity = Identity {
        epoch: 7,
        workers: 2,
    };
    let end = (ready.block("pods"), draining.clone());
    let client = BrokerClient::new(path, identity, Arc::clone(&pods), recorder.clone(), end);
    Test {
        listener,
        pods,
        recorder,
        ready,
        draining,
        changes: client.changes(),
        released: client.released(),
        client: tokio::spawn(client.run()),
        dir,
    }
}

impl Test {
    /// Accepts the proxy and greets it; returns what it gives back before `Ready`.
    async fn greet(&self) -> (Session, Vec<(ProxyRequest, Vec<OwnedFd>)>) {
        self.greet_after(|| {}).await
    }

    /// As [`Test::greet`]; `first` runs while the proxy is without a session.
    async fn greet_after(
        &self,
        first: impl FnOnce(),
    ) -> (Session, Vec<(ProxyRequest, Vec<OwnedFd>)>) {
        let (session, _) = self.listener.accept().await.unwrap();
        let session: Session = session;
        let hello = session.recv().await.unwrap().unwrap().message;
        assert!(matches!(
            hello,
            ProxyRequest::Hello {
                version: PROTOCOL_VERSION,
                epoch: 7,
                workers: 2,
                ..
            }
        ));
        first();
        let welcome = ToProxy::Welcome {
            version: PROTOCOL_VERSION,
            pid: 1,
        };
        session.send(&welcome, &[]).await.unwrap();
        let mut returned = Vec::new();
        loop {
            let received = session.recv().await.unwrap().unwrap();
            if received.message == ProxyRequest::Ready {
                return (session, returned);
            }
            returned.push((received.message, received.fds));
        }
    }
}

fn label(socket: &TcpListener, index: u16) -> ListenerLabel {
    ListenerLabel {
        role: ListenerRole::Outbound,
        index,
        family: ListenerFamily::V4,
        cookie: SockRef::from(socket).cookie().unwrap(),
    }
}

async fn pod_up(session: &Session, sockets: &[TcpListener]) {
    let labels = sockets.iter().zip(0..);
    let message = ToProxy::PodUp {
        pod: Box::new(PodSpec {
            uid: "u-1".into(),
            name: "reviews-v1".into(),
            namespace: "default".into(),
            ips: vec!["10.1.0.7".parse().unwrap()],
            ..PodSpec::default()
        }),
        families: Families { v4: true, v6: true },
        capture: CaptureMode::Ebpf,
        listeners: labels.map(|(s, i)| label(s, i)).collect(),
        total: sockets.len(),
    };
    let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    session.send(&message, &fds).await.unwrap();
    session.send(&ToProxy::Synced, &[]).await.unwrap();
}

fn sockets(n: usize) -> Vec<TcpListener> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").unwrap();
    (0..n).map(bind).collect()
}

/// The next request that is no heartbeat.
async fn request(session: &Session) -> ProxyRequest {
    loop {
        let message = session.recv().await.unwrap().unwrap().message;
        if message != ProxyRequest::Heartbeat {
            return message;
        }
    }
}

#[tokio::test]
async fn a_pods_sockets_are_served_and_its_pools_filled() {
    let mut test = start();
    let (session, returned) = test.greet().await;
    assert!(returned.is_empty());
    assert!(!test.ready.is_ready());
    pod_up(&session, &sockets(3)).await;
    test.changes.changed().await.unwrap();
    let served = test
        .recorder
        .0
        .lock()
        .iter()
        .map(|(s, _)| s.index)
        .collect::<Vec<_>>();
    assert_eq!(served, [0, 1, 2]);
    test.ready.wait().await;

    let mut kinds = Vec::new();
    for _ in 0..2 {
        let ProxyRequest::Want {
            kind,
            family,
            count,
            uid,
        } = request(&session).await
        else {
            panic!("not a want");
        };
        let fds = sockets(usize::from(count));
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let answer = ToProxy::Sockets {
            uid,
            kind,
            family,
            count,
        };
        session.send(&answer, &fds).await.unwrap();
        kinds.push((kind, family));
    }
    assert_eq!(
        kinds,
        [
            (SocketKind::Outbound, Family::V4),
            (SocketKind::Delivery, Family::V4)
        ]
    );
    let pod = test.pods.by_ip("10.1.0.7".parse().unwrap()).unwrap();
    assert!(
        pod.pool(SocketKind::Delivery, Family::V4)
            .take()
            .await
            .is_some()
    );
}

/// As where broker and agent are replaced together: the agent tells the new broker of the pods by and by.
#[tokio::test]
async fn a_broker_that_does_not_know_the_pod_yet_is_waited_for() {
    let mut test = start();
    let (session, _) = test.greet().await;
    let made = sockets(1);
    pod_up(&session, &made).await;
    test.changes.changed().await.unwrap();
    drop(session);
    let (session, _) = test.greet().await;
    let pod = test.pods.by_uid(&"u-1".into()).unwrap();
    let connecting = pod.clone();
    let waiting = tokio::spawn(async move {
        let pool = connecting.pool(SocketKind::Delivery, Family::V4);
        pool.take().await
    });
    let want = |message| match message {
        ProxyRequest::Want {
            uid,
            kind,
            family,
            count,
        } => (uid, kind, family, count),
        other => panic!("{other:?}"),
    };
    let (uid, kind, family, _) = want(request(&session).await);
    assert_eq!(kind, SocketKind::Delivery);
    let reason = "pod u-1 is not adopted".to_owned();
    let failed = ToProxy::WantFailed {
        uid,
        kind,
        family,
        reason,
    };
    session.send(&failed, &[]).await.unwrap();
    pod_up(&session, &made).await;
    loop {
        let (uid, kind, family, count) = want(request(&session).await);
        let fds = sockets(usize::from(count));
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let answer = ToProxy::Sockets {
            uid,
            kind,
            family,
            count,
        };
        session.send(&answer, &fds).await.unwrap();
        if kind == SocketKind::Delivery {
            break;
        }
    }
    assert!(waiting.await.unwrap().is_some(), "it waited");
}

#[tokio::test]
async fn a_new_broker_gets_the_sockets_back_and_nothing_is_served_twice() {
    let mut test = start();
    let (session, _) = test.greet().await;
    let made = sockets(2);
    pod_up(&session, &made).await;
    test.changes.changed().await.unwrap();
    drop(session);

    let (session, returned) = test.greet().await;
    let [(ProxyRequest::Return { uid, listeners }, fds)] = &returned[..] else {
        panic!("{returned:?}");
    };
    assert_eq!(uid.0, "u-1");
    let cookies: Vec<_> = fds
        .iter()
        .map(|fd| SockRef::from(fd).cookie().unwrap())
        .collect();
    let named: Vec<_> = listeners.iter().map(|l| l.cookie).collect();
    assert_eq!(cookies, named);
    assert_eq!(named.len(), 2);

    pod_up(&session, &made).await;
    test.changes.changed().await.unwrap();
    let served = test.recorder.0.lock();
    assert_eq!(served.len(), 2);
    assert!(served.iter().all(|(_, stop)| !stop.is_cancelled()));
}

#[tokio::test]
async fn a_socket_that_is_no_longer_listed_is_let_go() {
    let mut test = start();
    let (session, _) = test.greet().await;
    let mut made = sockets(2);
    pod_up(&session, &made).await;
    test.changes.changed().await.unwrap();
    made.remove(0);
    pod_up(&session, &made).await;
    // Synced comes after the update, so its second change says that both are handled.
    while test
        .recorder
        .0
        .lock()
        .iter()
        .all(|(_, stop)| !stop.is_cancelled())
    {
        test.changes.changed().await.unwrap();
    }
    let stopped: Vec<_> = test
        .recorder
        .0
        .lock()
        .iter()
        .map(|(_, s)| s.is_cancelled())
        .collect();
    assert_eq!(stopped, [true, false]);
}

#[tokio::test]
async fn a_pod_that_is_down_is_forgotten() {
    let mut test = start();
    let (session, _) = test.greet().await;
    pod_up(&session, &sockets(1)).await;
    test.changes.changed().await.unwrap();
    let pod = test.pods.by_uid(&"u-1".into()).unwrap();
    let down = ToProxy::PodDown { uid: "u-1".into() };
    session.send(&down, &[]).await.unwrap();
    pod.gone().cancelled().await;
    test.changes.changed().await.unwrap();
    assert!(test.pods.all().is_empty());
    assert!(test.recorder.0.lock()[0].1.is_cancelled());
    assert!(
        pod.pool(SocketKind::Outbound, Family::V4)
            .take()
            .await
            .is_none()
    );
}

#[tokio::test]
async fn a_draining_proxy_says_so_and_lets_its_sockets_go() {
    let mut test = start();
    let (session, _) = test.greet().await;
    pod_up(&session, &sockets(1)).await;
    test.changes.changed().await.unwrap();
    test.draining.cancel();
    while request(&session).await != ProxyRequest::Draining {}
    test.released.cancelled().await;
    assert!(test.recorder.0.lock()[0].1.is_cancelled());
}

#[tokio::test]
async fn a_proxy_that_drains_without_a_broker_gives_the_next_one_its_sockets() {
    let mut test = start();
    let (session, _) = test.greet().await;
    let made = sockets(1);
    pod_up(&session, &made).await;
    test.changes.changed().await.unwrap();
    drop(session);
    let (session, returned) = test.greet_after(|| test.draining.cancel()).await;
    let said: Vec<_> = returned.iter().map(|(message, _)| message).collect();
    assert!(
        matches!(said[..], [ProxyRequest::Return { listeners, .. }, ProxyRequest::Draining] if listeners.len() == 1),
        "{said:?}"
    );
    // It holds them until the broker has them.
    assert!(!test.released.is_cancelled());
    assert!(!test.recorder.0.lock()[0].1.is_cancelled());
    session.send(&ToProxy::Synced, &[]).await.unwrap();
    test.released.cancelled().await;
    assert!(test.recorder.0.lock()[0].1.is_cancelled());
}

#[tokio::test]
async fn heartbeats_are_sent() {
    let test = start();
    let (session, _) = test.greet().await;
    let first = session.recv().await.unwrap().unwrap();
    assert_eq!(first.message, ProxyRequest::Heartbeat);
}

#[tokio::test]
async fn a_broker_that_is_not_there_yet_is_waited_for() {
    let mut test = start();
    let (session, _) = test.greet().await;
    drop(session);
    let path = test.dir.path().join("proxy.sock");
    std::fs::remove_file(&path).unwrap();
    test.listener = bind(&path);
    test.greet().await;
}
