//! The gRPC service: opens a [`super::stream`] per call.
//!
//! In: calls of clients. Out: response streams. Added to a tonic server by the pilot.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::stream::{self, Call};
use super::{ConfigSource, Connections, Guard, ProtocolVariant};
use crate::delta::server::Delta;
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::proto::envoy::service::route::v3::virtual_host_discovery_service_server::{
    VirtualHostDiscoveryService, VirtualHostDiscoveryServiceServer,
};
use crate::proto::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
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

/// The tonic service of [`AdsService::virtual_hosts`].
pub type VirtualHostServer<S> = VirtualHostDiscoveryServiceServer<AdsService<S>>;

/// The tonic service of an [`AdsService`].
pub type AdsServer<S> = AggregatedDiscoveryServiceServer<AdsService<S>>;

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
        VirtualHostDiscoveryServiceServer::new(Self {
            source: Arc::clone(&self.source),
            config: self.config.clone(),
            connections: self.connections.clone(),
            guard: self.guard.clone(),
        })
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(usize::MAX)
    }

    /// The service for `tonic::transport::Server::add_service`.
    pub fn into_server(self) -> AdsServer<S> {
        AggregatedDiscoveryServiceServer::new(self)
            .max_decoding_message_size(MAX_REQUEST)
            .max_encoding_message_size(usize::MAX)
    }

    fn serve<V: Variant>(
        &self,
        request: Request<Streaming<V::Request>>,
        variant: ProtocolVariant,
    ) -> Result<Response<ResponseStream<V::Response>>, Status> {
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
        Ok(Response::new(Box::pin(responses)))
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

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<S: ConfigSource> AggregatedDiscoveryService for AdsService<S> {
    type StreamAggregatedResourcesStream = ResponseStream<DiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.serve::<Sotw>(request, ProtocolVariant::Sotw)
    }

    type DeltaAggregatedResourcesStream = ResponseStream<DeltaDiscoveryResponse>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.serve::<Delta>(request, ProtocolVariant::Delta)
    }
}

#[tonic::async_trait]
impl<S: ConfigSource> VirtualHostDiscoveryService for AdsService<S> {
    type DeltaVirtualHostsStream = ResponseStream<DeltaDiscoveryResponse>;

    async fn delta_virtual_hosts(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaVirtualHostsStream>, Status> {
        self.serve::<Delta>(request, ProtocolVariant::Delta)
    }
}
