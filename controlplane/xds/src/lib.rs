//! xDS for Millrace: the protocol, its messages and its two ends.
//!
//! Everything that the pilot and the proxies say to each other, and what the pilot says to stock
//! Envoys and gRPC clients, goes through this crate. In data-flow order:
//!
//! | module | holds | used by |
//! |---|---|---|
//! | [`proto`] | every Envoy message, Istio's name table, `Any` packing | translation, conversion |
//! | [`node`] | node ids and metadata | both ends |
//! | [`resource`] | [`EncodedResource`] out, [`RawResource`] in, two-phase decoding | both ends |
//! | [`subscription`] | what a client asks for: `*`, names, `<prefix>/*` | both ends |
//! | [`push`] | server state machine: push order, one response per type outstanding | [`server`] |
//! | [`delta`], [`sotw`] | the two variants, server and client | [`server`], [`client`] |
//! | [`server`] | ADS service over a [`server::ConfigSource`] | pilot |
//! | [`client`] | one delta ADS stream with reconnects | proxy |
//! | [`mcp`] | objects of configuration as MCP servers send them | both ends of pilot |
//! | [`json`] | canonical proto-JSON both ways, YAML in | config dumps, static bootstrap, goldens |
//!
//! # Pilot
//!
//! Implement [`server::ConfigSource`] and [`server::ConfigView`]; encode resources once with
//! [`EncodedResource::encode`] (`encode_as` for the name table) and hand out `Arc`s of them. Then
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use millrace_xds::server::{AdsService, ConfigSource, ServerConfig};
//! # async fn serve(source: Arc<impl ConfigSource>) -> Result<(), tonic::transport::Error> {
//! let service = AdsService::new(source, ServerConfig::default());
//! let connections = service.connections(); // count(), status() for /debug/syncz, drain()
//! let server = tonic::transport::Server::builder().add_service(service.into_server());
//! # let _: Vec<_> = connections.status();
//! server.serve(([127, 0, 0, 1], 15010).into()).await
//! # }
//! ```
//!
//! # Proxy
//!
//! ```no_run
//! # use millrace_xds::client::{ClientConfig, Event, client};
//! # use millrace_xds::{TypeUrl, node::Node, proto};
//! # struct Listener;
//! # impl TryFrom<proto::Listener> for Listener {
//! #     type Error = String;
//! #     fn try_from(_: proto::Listener) -> Result<Self, String> { Ok(Self) }
//! # }
//! # async fn run(node: Node) -> Result<(), Box<dyn std::error::Error>> {
//! let (client, mut events, driver) = client(ClientConfig::new("http://pilot:15010", node))?;
//! let driver = tokio::spawn(driver.run()); // ends when `events` is dropped
//! client.subscribe(&TypeUrl::LISTENER, ["default/*", "pod/default/reviews-v1"]);
//! while let Some(event) = events.next().await {
//!     match event {
//!         Event::Update(update) if update.type_url == TypeUrl::LISTENER => {
//!             let decoded = update.decode(|wire: proto::Listener| Listener::try_from(wire));
//!             // Apply `decoded.accepted` and `update.removed`, then:
//!             update.reject(decoded.rejected); // an ACK when nothing is rejected
//!         }
//!         Event::Missing { type_url, names } => { /* stop waiting for them */ }
//!         _ => {}
//!     }
//! }
//! # driver.await?; Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
pub mod delta;
#[cfg(feature = "json")]
pub mod json;
pub mod mcp;
pub mod nack;
mod names;
pub mod node;
pub mod proto;
pub mod push;
mod reflect;
pub mod resource;
#[cfg(feature = "server")]
pub mod server;
pub mod sotw;
pub mod subscription;
mod type_url;
mod version;
mod wire;

pub use reflect::{FieldVisitor, visit_fields};
pub use resource::{EncodedResource, RawResource, ResourceError, WireResource};
pub use subscription::Selection;
pub use type_url::TypeUrl;
pub use version::Version;
