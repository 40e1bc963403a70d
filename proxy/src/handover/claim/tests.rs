//! Sockets that go from one epoch to the next, in this process.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::task::JoinHandle;

use super::*;

const LONG: Duration = Duration::from_mins(1);

/// A name that no other test has.
fn name() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("@millrace-test-{}-{next}", std::process::id()).into()
}

/// Epoch 3, which listens at `name` and on so many ports.
fn epoch(name: &Path, ports: usize) -> (JoinHandle<Successor>, Vec<(Place, TcpListener)>) {
    let estate = Estate::default();
    let sockets: Vec<_> = (0..ports)
        .map(|_| {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            let place = Place::Tcp(socket.local_addr().unwrap());
            estate.hold(place, &[&socket]).unwrap();
            (place, socket)
        })
        .collect();
    let listener = Listener::bind_name(name).unwrap();
    let claims = Claims::new(listener, estate, 3);
    (tokio::spawn(claims.run()), sockets)
}

#[tokio::test]
async fn who_waits_in_the_backlog_is_accepted_by_the_next_epoch() {
    let name = name();
    let (old, mut sockets) = epoch(&name, 1);
    let (place, socket) = sockets.pop().unwrap();
    let client = TcpStream::connect(socket.local_addr().unwrap()).unwrap();
    let (claim, estate) = Claim::make(&name, 4).await.unwrap();
    assert_eq!(claim.epoch, 3);
    claim.succeed(LONG).await.unwrap();
    let successor = Successor {
        epoch: 4,
        within: LONG,
    };
    assert_eq!(old.await.unwrap(), successor);
    drop(socket);
    let taken = TcpListener::from(estate.take(place).pop().unwrap());
    let (_, peer) = taken.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
}

#[tokio::test]
async fn every_socket_arrives_however_many_there_are() {
    let name = name();
    let (_old, sockets) = epoch(&name, 2 * BATCH + 1);
    let (_claim, estate) = Claim::make(&name, 4).await.unwrap();
    for (place, _) in &sockets {
        assert_eq!(estate.take(*place).len(), 1, "{place:?}");
    }
}

#[tokio::test]
async fn an_heir_that_goes_away_changes_nothing() {
    let name = name();
    let (old, sockets) = epoch(&name, 1);
    drop(Claim::make(&name, 4).await.unwrap());
    let (claim, estate) = Claim::make(&name, 5).await.unwrap();
    assert_eq!(estate.take(sockets[0].0).len(), 1);
    claim.succeed(LONG).await.unwrap();
    assert_eq!(old.await.unwrap().epoch, 5);
}

#[tokio::test]
async fn an_epoch_that_is_not_newer_gets_nothing() {
    let name = name();
    let (_old, _sockets) = epoch(&name, 1);
    for number in [0, 3] {
        let error = Claim::make(&name, number).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ClaimError::Epoch(3)), "{text}");
        assert!(
            text.contains("--restart-epoch 4") && !error.is_nobody(),
            "{text}"
        );
    }
    assert!(Claim::make(&name, 4).await.is_ok());
}

#[tokio::test]
async fn an_epoch_of_another_version_is_told_so() {
    let name = name();
    let (_old, _sockets) = epoch(&name, 1);
    let heir: Connection<Granting, Claiming> = Connection::connect(&name).unwrap();
    let hello = Claiming::Hello {
        version: VERSION + 1,
        epoch: 4,
        pid: 1,
    };
    heir.send(&hello, &[]).await.unwrap();
    let answer = heir.recv().await.unwrap().unwrap().message;
    let refused = Granting::Refused {
        version: VERSION,
        epoch: 3,
    };
    assert_eq!(answer, refused);
    // And the other way round.
    let name = self::name();
    let listener = Listener::bind_name(&name).unwrap();
    let old = tokio::spawn(async move {
        let (heir, _): (Heir, _) = listener.accept().await.unwrap();
        heir.recv().await.unwrap().unwrap();
        let refused = Granting::Refused {
            version: VERSION + 1,
            epoch: 3,
        };
        heir.send(&refused, &[]).await.unwrap();
    });
    let error = Claim::make(&name, 4).await.unwrap_err();
    assert!(matches!(error, ClaimError::Version(_)), "{error}");
    old.await.unwrap();
}

#[tokio::test]
async fn where_nobody_listens_there_is_nothing_to_claim() {
    let error = Claim::make(&name(), 1).await.unwrap_err();
    assert!(error.is_nobody(), "{error}");
}
