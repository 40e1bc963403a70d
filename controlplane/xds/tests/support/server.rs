//! An ADS server over a [`World`], on a socket of loopback or of the file system.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use millrace_xds::TypeUrl;
use millrace_xds::push::Generation;
use millrace_xds::server::{
    AdsService, ConfigSource, Connection, Connections, Report, ServerConfig,
};
use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::Status;
use tonic::transport::Server;

use crate::support::World;

/// A source whose configuration is a [`World`], and which keeps what it is told.
#[derive(Debug)]
pub(crate) struct Source {
    world: Mutex<World>,
    generations: watch::Sender<Generation>,
    pub(crate) events: watch::Sender<Vec<String>>,
}

impl Source {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            world: Mutex::default(),
            generations: watch::Sender::default(),
            events: watch::Sender::default(),
        })
    }

    /// Changes the configuration and publishes it.
    pub(crate) fn change(&self, change: impl FnOnce(&mut World)) {
        let generation = {
            let mut world = self.world.lock();
            change(&mut world);
            world.publish()
        };
        self.generations.send_replace(generation);
    }

    pub(crate) fn set(&self, type_url: &TypeUrl, name: &str, content: u8) {
        self.change(|world| world.set(type_url, name, content));
    }

    /// Waits until the source was told something that begins like this; gives it whole.
    pub(crate) async fn told(&self, prefix: &str) -> String {
        let mut events = self.events.subscribe();
        let events = events
            .wait_for(|events| events.iter().any(|event| event.starts_with(prefix)))
            .await
            .unwrap();
        let event = events.iter().find(|event| event.starts_with(prefix));
        event.unwrap().clone()
    }

    fn note(&self, event: String) {
        self.events.send_modify(|events| events.push(event));
    }
}

impl ConfigSource for Source {
    type Client = String;
    type View = World;

    fn connect(&self, connection: &Connection) -> Result<String, Status> {
        let id = connection.node.id.clone();
        if connection
            .metadata
            .get("authorization")
            .is_some_and(|value| value == "wrong")
        {
            return Err(Status::unauthenticated("wrong token"));
        }
        self.note(format!("connected {id} {:?}", connection.variant));
        Ok(id)
    }

    fn generations(&self) -> watch::Receiver<Generation> {
        self.generations.subscribe()
    }

    fn view(&self, _client: &String) -> World {
        self.world.lock().clone()
    }

    fn report(&self, client: &String, report: Report<'_>) {
        self.note(match report {
            Report::Acked(acked) => {
                format!("acked {client} {:?} {}", acked.type_url, acked.version)
            }
            Report::Nacked(nacked) => {
                let rejected: Vec<_> = nacked.rejected.iter().map(ToString::to_string).collect();
                let (all, rejected) = (nacked.resources.join(","), rejected.join(","));
                format!("nacked {client} {:?} of {all}: {rejected}", nacked.type_url)
            }
            Report::Subscribed {
                type_url,
                selection,
                ..
            } => {
                let terms: Vec<_> = selection.terms().collect();
                format!("subscribed {client} {type_url:?} {}", terms.join(","))
            }
        });
    }

    fn disconnect(&self, client: String) {
        self.note(format!("disconnected {client}"));
    }
}

/// A running server; it ends with the value or the test.
pub(crate) struct Running {
    pub(crate) addr: Option<SocketAddr>,
    pub(crate) connections: Connections,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    /// Serves on a port of loopback; 0 takes one from the kernel.
    pub(crate) async fn on_port(source: Arc<Source>, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let service = AdsService::new(source, ServerConfig::default());
        let connections = service.connections();
        let server = Server::builder().add_service(service.into_server());
        let (shutdown, signal) = oneshot::channel();
        let task = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let signal = async move { drop(signal.await) };
            server
                .serve_with_incoming_shutdown(incoming, signal)
                .await
                .unwrap();
        });
        Self {
            addr: Some(addr),
            connections,
            shutdown,
            task,
        }
    }

    pub(crate) fn on_socket(source: Arc<Source>, path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let service = AdsService::new(source, ServerConfig::default());
        let connections = service.connections();
        let server = Server::builder().add_service(service.into_server());
        let (shutdown, signal) = oneshot::channel();
        let task = tokio::spawn(async move {
            let incoming = UnixListenerStream::new(listener);
            let signal = async move { drop(signal.await) };
            server
                .serve_with_incoming_shutdown(incoming, signal)
                .await
                .unwrap();
        });
        Self {
            addr: None,
            connections,
            shutdown,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr.unwrap())
    }

    /// Ends all streams, then the server, and frees the port.
    pub(crate) async fn stop(self) {
        self.connections.drain();
        self.shutdown.send(()).unwrap();
        self.task.await.unwrap();
    }
}
