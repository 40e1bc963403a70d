//! A plain HTTP/1.1 client and server for tests: one connection, every byte under the test's
//! control, no retries and no hidden headers.

mod client;
mod message;
mod server;

pub use client::Client;
pub use message::{Headers, Request, Response};
pub use server::{Peer, Server};
