//! The gRPC service: opens a [`super::stream`] per call.
//!
//! In: calls of clients. Out: response streams. Added to a tonic server by the pilot.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::codec::{DecodeBuf, Decoder};
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};

use super::body::ResponseBody;
use super::stream::{self, Call};
use super::{ConfigSource, Connections, Guard, ProtocolVariant};
use crate::delta::server::Delta;
use crate::push::{SessionConfig, Variant};
use crate::sotw::server::Sotw;

/// Requests carry names and versions of everything that a node has.
const MAX_REQUEST: usize = 32 * 1024 * 1024;

/// Limits of the server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Limits of each stream.
    pub session: SessionConfig,
    /// Time for a client to send its first request.
    pub first_request_timeout: Duration,
    /// Streams beyond this number are refused with `RESOURCE_EXHAUSTED`.
    pub max_connections: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            session: SessionConfig::default(),
            first_request_timeout: Duration::from_secs(10),
            max_connections: 10_000,
        }
    }
}

/// An ADS server over a source.
pub struct AdsService<S> {
    source: Arc<S>,
    config: ServerConfig,
    connections: Connections,
    guard: Option<Arc<dyn Guard>>,
}

/// The tonic service of an [`AdsService`].
pub type AdsServer<S> = DiscoveryServer<S, Aggregated>;

/// The tonic service of [`AdsService::virtual_hosts`].
pub type VirtualHostServer<S> = DiscoveryServer<S, VirtualHosts>;

/// A service of gRPC with streams of discovery. It makes bodies of responses itself: a codec of tonic's would
/// copy each resource into a buffer of the stream, which stays as large as the largest response was.
pub struct DiscoveryServer<S, M> {
    service: Arc<AdsService<S>>,
    methods: PhantomData<fn() -> M>,
}

/// What a service of gRPC is called, and its methods.
pub trait Methods: 'static {
    /// Its full name.
    const SERVICE: &'static str;

    /// What a method of this name speaks; none where there is no such method.
    fn variant(method: &str) -> Option<ProtocolVariant>;
}

/// ADS.
#[derive(Debug)]
pub enum Aggregated {}

impl Methods for Aggregated {
    const SERVICE: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";

    fn variant(method: &str) -> Option<ProtocolVariant> {
        match method {
            "StreamAggregatedResources" => Some(ProtocolVariant::Sotw),
            "DeltaAggregatedResources" => Some(ProtocolVariant::Delta),
            _ => None,
        }
    }
}

/// VHDS.
#[derive(Debug)]
pub enum VirtualHosts {}

impl Methods for VirtualHosts {
    const SERVICE: &'static str = "envoy.service.route.v3.VirtualHostDiscoveryService";

    fn variant(method: &str) -> Option<ProtocolVariant> {
        (method == "DeltaVirtualHosts").then_some(ProtocolVariant::Delta)
    }
}

impl<S: ConfigSource> AdsService<S> {
    /// A server without streams.
    pub fn new(source: Arc<S>, config: ServerConfig) -> Self {
        Self {
            source,
            config,
            connections: Connections::new(),
            guard: None,
        }
    }

    /// The same source at another door: with streams counted among this one's, and a guard.
    #[must_use]
    pub fn guarded(&self, guard: Arc<dyn Guard>) -> Self {
        Self {
            source: Arc::clone(&self.source),
            config: self.config.clone(),
            connections: self.connections.clone(),
            guard: Some(guard),
        }
    }

    /// The open streams; the handle stays valid after [`AdsService::into_server`].
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }

    /// VHDS by a stream of its own, which is how Envoy asks for it; over the same source, with the same limits.
    pub fn virtual_hosts(&self) -> VirtualHostServer<S> {
        DiscoveryServer::new(Self {
            source: Arc::clone(&self.source),
            config: self.config.clone(),
            connections: self.connections.clone(),
            guard: self.guard.clone(),
        })
    }

    /// The service for `tonic::transport::Server::add_service`.
    pub fn into_server(self) -> AdsServer<S> {
        DiscoveryServer::new(self)
    }

    fn serve<V: Variant>(
        &self,
        request: Request<Streaming<V::Request>>,
        variant: ProtocolVariant,
    ) -> Result<ResponseBody, Status> {
        if *self.connections.draining().borrow() {
            return Err(stream::draining());
        }
        if self.connections.count() >= self.config.max_connections {
            return Err(Status::resource_exhausted("too many streams"));
        }
        let call = Call {
            peer: request.remote_addr(),
            metadata: request.metadata().clone(),
            variant,
            source: self.source.clone(),
            config: self.config.clone(),
            connections: self.connections.clone(),
            guard: self.guard.clone(),
        };
        let responses = stream::responses::<V, S>(call, request.into_inner());
        Ok(ResponseBody::new(Box::pin(responses)))
    }
}

impl<S> std::fmt::Debug for AdsService<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdsService")
            .field("config", &self.config)
            .field("guarded", &self.guard.is_some())
            .finish_non_exhaustive()
    }
}

impl<S, M> DiscoveryServer<S, M> {
    fn new(service: AdsService<S>) -> Self {
        Self {
            service: Arc::new(service),
            methods: PhantomData,
        }
    }
}

impl<S, M> Clone for DiscoveryServer<S, M> {
    fn clone(&self) -> Self {
        Self {
            service: Arc::clone(&self.service),
            methods: PhantomData,
        }
    }
}

impl<S, M> std::fmt::Debug for DiscoveryServer<S, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.service.fmt(f)
    }
}

impl<S, M: Methods> NamedService for DiscoveryServer<S, M> {
    const NAME: &'static str = M::SERVICE;
}

impl<S: ConfigSource, M: Methods, B> Service<http::Request<B>> for DiscoveryServer<S, M>
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path().strip_prefix('/');
        let method = path.and_then(|path| path.strip_prefix(M::SERVICE)?.strip_prefix('/'));
        let service = &self.service;
        let served = match method.and_then(M::variant) {
            Some(variant @ ProtocolVariant::Sotw) => {
                service.serve::<Sotw>(incoming(request), variant)
            }
            Some(variant @ ProtocolVariant::Delta) => {
                service.serve::<Delta>(incoming(request), variant)
            }
            None => Err(Status::unimplemented("there is no such method")),
        };
        let response = served.map_or_else(Status::into_http, ResponseBody::into_http);
        Box::pin(std::future::ready(Ok(response)))
    }
}

/// A call with its body as messages.
fn incoming<M, B>(request: http::Request<B>) -> Request<Streaming<M>>
where
    M: prost::Message + Default + Send + 'static,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    let decode =
        |body| Streaming::new_request(Messages(PhantomData), body, None, Some(MAX_REQUEST));
    Request::from_http(request.map(decode))
}

/// Reads messages as they are.
struct Messages<M>(PhantomData<fn() -> M>);

impl<M: prost::Message + Default> Decoder for Messages<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let malformed = |error| Status::internal(format!("the request cannot be read: {error}"));
        M::decode(bytes).map(Some).map_err(malformed)
    }
}
