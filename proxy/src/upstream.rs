//! Upstream connections: how they are opened, pooled and tried.
//!
//! `router` forwards one request: it picks hosts and repeats tries as the route allows. A try
//! (`attempt`) takes a connection from a pool (`pool_h1`, `pool_h2`) and sends the request on it;
//! its response carries the connection as a [`attempt::Lease`], which goes back into the pool
//! when the response has been read. `connect` opens connections, for raw TCP too.

pub mod attempt;
pub mod connect;
pub mod failure;
pub mod pool;
pub mod pool_h1;
pub mod pool_h2;
pub mod replay;
pub mod router;

pub use pool::Pools;
