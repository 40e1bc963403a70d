//! A small HTTP server for tests of registries that ask: each request is answered by a function of its path.

use std::future::Future;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Status, index (Consul's header) and body.
pub(super) type Answer = (u16, Option<u64>, String);

/// The server; it ends with this.
pub(super) struct Fake {
    pub(super) address: String,
    serving: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Serves on a port of its own.
pub(super) async fn serve<F, A>(answer: F) -> Fake
where
    F: Fn(String) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            connections.spawn(async move { drop(converse(stream, answer).await) });
        }
    });
    Fake { address, serving }
}

async fn converse<F, A>(mut stream: TcpStream, answer: F) -> std::io::Result<()>
where
    F: Fn(String) -> A,
    A: Future<Output = Answer>,
{
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    let (status, index, body) = answer(path).await;
    let index = index.map(|index| format!("X-Consul-Index: {index}\r\n"));
    let head = format!(
        "HTTP/1.1 {status} x\r\n{}Content-Length: {}\r\nConnection: close\r\n\r\n",
        index.unwrap_or_default(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// A registry at work with the index that it fills.
pub(super) struct Mesh {
    pub(super) index: crate::index::Index,
    pub(super) problems: Vec<String>,
    pub(super) synced: bool,
    events: tokio::sync::mpsc::Receiver<super::RegistryEvent>,
    _stop: tokio_util::sync::DropGuard,
}

impl Mesh {
    pub(super) fn of(registry: Box<dyn super::Registry>) -> Self {
        let stop = tokio_util::sync::CancellationToken::new();
        let (sink, events) = tokio::sync::mpsc::channel(8);
        tokio::spawn(registry.run(sink, stop.clone()));
        Self {
            index: crate::index::Index::new(crate::model::mesh::MeshConfig::default()),
            problems: Vec::new(),
            synced: false,
            events,
            _stop: stop.drop_guard(),
        }
    }

    /// Takes what the registry tells until this holds.
    pub(super) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !holds(self) {
                match self.events.recv().await.expect("the registry has ended") {
                    super::RegistryEvent::Changed { applied, deleted } => {
                        for id in deleted {
                            self.index.delete(&id);
                        }
                        for sourced in applied {
                            self.index.apply(sourced.object);
                        }
                    }
                    super::RegistryEvent::Problems(problems) => {
                        self.problems = problems.iter().map(ToString::to_string).collect();
                    }
                    super::RegistryEvent::Synced => self.synced = true,
                }
            }
        };
        let patience = std::time::Duration::from_mins(1);
        let waited = tokio::time::timeout(patience, waiting).await;
        assert!(
            waited.is_ok(),
            "{what}: {:#?} {:#?}",
            self.problems,
            self.index.snapshot().hosts
        );
    }

    /// Each host's ports with the addresses behind them.
    pub(super) fn shown(&self) -> Vec<String> {
        let snapshot = self.index.snapshot();
        let mut shown = Vec::new();
        for service in snapshot.services.values() {
            let port = service.ports[0].port;
            let endpoints = snapshot.endpoints_of(&service.name, port).iter();
            let addresses: Vec<_> = endpoints.map(|at| at.address.to_string()).collect();
            shown.push(format!(
                "{}:{port} {}",
                service.hostname,
                addresses.join(" ")
            ));
        }
        shown
    }
}
