//! When sockets of pods begin to be served.

use std::net::TcpListener;

use parking_lot::Mutex;

use super::*;

#[test]
fn a_sidecars_own_addresses_include_loopback() {
    let own: Vec<_> = interface_addresses().collect();
    for loopback in ["127.0.0.1", "::1"] {
        assert!(own.contains(&loopback.parse().unwrap()), "{own:?}");
    }
}

#[test]
fn a_pod_is_reached_at_none_of_its_local_addresses() {
    for (address, reachable) in [
        ("10.244.1.9", true),
        ("127.0.0.1", false),
        ("169.254.1.1", false),
        ("fd00:244:1::9", true),
        ("::1", false),
        ("::6", false),
        ("fe80::1", false),
    ] {
        assert_eq!(
            is_reachable(&address.parse().unwrap()),
            reachable,
            "{address}"
        );
    }
}

#[derive(Default)]
struct Recorder(Mutex<Vec<u16>>);

impl Listening for Recorder {
    fn serve(&self, socket: Socket, _: CancellationToken) {
        self.0.lock().push(socket.index);
    }
}

fn socket(index: u16) -> Socket {
    Socket {
        uid: "u-1".into(),
        role: ListenerRole::Outbound,
        index,
        fd: TcpListener::bind("127.0.0.1:0").unwrap().into(),
    }
}

#[tokio::test]
async fn sockets_are_not_served_before_the_first_configuration() {
    let store = Arc::new(Store::new());
    let gate = Gate {
        store: store.clone(),
        serving: Arc::new(Recorder::default()),
    };
    let (kept, stopped) = (CancellationToken::new(), CancellationToken::new());
    gate.serve(socket(0), kept.clone());
    gate.serve(socket(1), stopped.clone());
    stopped.cancel();
    // What was spawned runs before this task does again.
    tokio::task::yield_now().await;
    assert!(gate.serving.0.lock().is_empty());

    store.open();
    while gate.serving.0.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    gate.serve(socket(2), kept);
    assert_eq!(*gate.serving.0.lock(), [0, 2]);
}
