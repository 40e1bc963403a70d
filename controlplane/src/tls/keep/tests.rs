//! Keepers that share a store, and handshakes with what they serve.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

use super::*;

const NAME: &str = "millrace-pilot.millrace-system.svc";
const LIFETIMES: Lifetimes = Lifetimes {
    authority: Duration::from_hours(1000),
    serving: Duration::from_hours(10),
};

fn keeper<S: Store>(store: S) -> (Keeper<S>, Arc<Serving>) {
    let serving = Serving::new();
    let keeper = Keeper::new(
        store,
        Arc::clone(&serving),
        vec![NAME.to_owned()],
        LIFETIMES,
    );
    (keeper, serving)
}

fn roots(serving: &Serving) -> Arc<str> {
    serving.roots().borrow().clone().unwrap()
}

/// The certificate that a client which trusts these roots is shown.
fn handshake(
    serving: &Arc<Serving>,
    roots: &str,
) -> Result<CertificateDer<'static>, rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from(NAME).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(serving.config(&[b"h2"]).unwrap()).unwrap();
    while client.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut bytes.as_slice()).unwrap();
        server.process_new_packets()?;
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(client.peer_certificates().unwrap()[0].clone().into_owned())
}

#[tokio::test]
async fn replicas_share_one_authority_and_each_has_a_certificate_of_its_own() {
    let store = Memory::default();
    let (mut one, first) = keeper(store.clone());
    let (mut other, second) = keeper(store);
    let now = SystemTime::now();
    assert!(
        handshake(&first, "").is_err(),
        "there is no certificate yet"
    );
    one.step(now).await.unwrap();
    other.step(now).await.unwrap();
    assert_eq!(roots(&first), roots(&second));
    let shown = handshake(&first, &roots(&second)).unwrap();
    assert_ne!(shown, handshake(&second, &roots(&first)).unwrap());
    let (mut stranger, unknown) = keeper(Memory::default());
    stranger.step(now).await.unwrap();
    assert!(handshake(&unknown, &roots(&first)).is_err());
}

#[tokio::test]
async fn a_server_changes_its_certificate_without_a_restart() {
    let (mut keeper, serving) = keeper(Memory::default());
    // Far enough in the past that every certificate here has begun, and the last has not ended.
    let start = SystemTime::now() - Duration::from_hours(12);
    let due = keeper.step(start).await.unwrap();
    let roots = roots(&serving);
    let before = serving.roots();
    assert!(handshake(&serving, &roots).is_err(), "the first has ended");
    assert_eq!(keeper.step(start).await.unwrap(), due, "nothing is due");
    keeper.step(due).await.unwrap();
    let shown = handshake(&serving, &roots).unwrap();
    keeper.step(due + Duration::from_secs(1)).await.unwrap();
    assert_eq!(handshake(&serving, &roots).unwrap(), shown);
    assert!(
        !before.has_changed().unwrap(),
        "roots are told when they change"
    );
}

#[tokio::test]
async fn both_authorities_are_trusted_while_one_follows_the_other() {
    let store = Memory::default();
    let (mut ahead, first) = keeper(store.clone());
    let (mut behind, second) = keeper(store);
    let start = SystemTime::now() - Duration::from_hours(852);
    ahead.step(start).await.unwrap();
    let published = start + Duration::from_hours(801);
    ahead.step(published).await.unwrap();
    behind.step(published).await.unwrap();
    let known = roots(&first);
    let now = SystemTime::now();
    ahead.step(now).await.unwrap();
    assert_eq!(known.matches("BEGIN").count(), 2);
    // A client with the roots of before meets a replica that has switched, and one with those of after meets one that has not.
    handshake(&first, &known).unwrap();
    behind.issued = None;
    let old =
        behind
            .known
            .as_ref()
            .unwrap()
            .signing
            .issue(&[NAME.to_owned()], LIFETIMES.serving, now);
    second.set_certificate(old.unwrap()).unwrap();
    handshake(&second, &roots(&first)).unwrap();
}

/// A store of which the answer is lost once somebody says so.
#[derive(Clone, Default)]
struct Failing {
    memory: Memory,
    fails: Arc<Mutex<bool>>,
    /// Somebody else writes between reading and writing.
    raced: Arc<Mutex<Option<Authorities>>>,
}

impl Store for Failing {
    type Version = u64;

    async fn load(&mut self) -> Result<Option<(Authorities, u64)>, TlsError> {
        if *self.fails.lock() {
            let (place, message) = ("here".to_owned(), "away".to_owned());
            return Err(TlsError::Store { place, message });
        }
        self.memory.load().await
    }

    async fn save(
        &mut self,
        authorities: &Authorities,
        over: Option<u64>,
    ) -> Result<bool, TlsError> {
        let other = self.raced.lock().take();
        if let Some(other) = other {
            assert!(self.memory.save(&other, over).await?);
        }
        self.memory.save(authorities, over).await
    }

    async fn changed(&mut self) {
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn certificates_are_made_anew_while_the_store_is_away() {
    let store = Failing::default();
    let (mut keeper, serving) = keeper(store.clone());
    let start = SystemTime::now() - Duration::from_hours(12);
    let due = keeper.step(start).await.unwrap();
    *store.fails.lock() = true;
    keeper.step(due).await.unwrap_err();
    handshake(&serving, &roots(&serving)).unwrap();
    let (mut late, without) = self::keeper(store);
    late.step(due).await.unwrap_err();
    assert!(without.roots().borrow().is_none());
}

#[tokio::test]
async fn whoever_comes_second_takes_the_first_ones_authority() {
    let store = Failing::default();
    let now = SystemTime::now();
    let winner = Authorities::create("other", LIFETIMES.authority, now).unwrap();
    *store.raced.lock() = Some(winner.clone());
    let (mut keeper, serving) = keeper(store);
    keeper.step(now).await.unwrap();
    assert_eq!(*roots(&serving), *winner.roots());
}

#[tokio::test]
async fn a_keeper_serves_until_it_is_stopped() {
    let (keeper, serving) = keeper(Memory::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(keeper.run(stop.clone()));
    serving.ready().await;
    handshake(&serving, &roots(&serving)).unwrap();
    stop.cancel();
    running.await.unwrap();
}
