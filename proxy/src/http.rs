//! HTTP: from a downstream connection to the end of each of its requests.
//!
//! `connection` serves HTTP/1.1 and HTTP/2 with hyper; `stream` takes one request through its
//! phases; `exchange` is what is known of it for log and metrics, written when it ends however it
//! ends; `clock` is the time that it may take.

pub mod admission;
pub mod body;
mod clock;
pub mod connection;
pub mod exchange;
mod farewell;
pub mod framing;
pub mod header_block;
pub mod headers;
pub mod io;
pub mod local_reply;
pub mod path;
pub mod stream;
pub mod upgrade;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::access_log::Loggers;
use crate::listener::DownstreamInfo;
use crate::resource::HttpConnectionManager;
use crate::route::RouteTable;
use crate::worker::Worker;
use io::SharedIo;

/// What the requests of one downstream connection share.
pub struct Downstream {
    /// The worker it lives on.
    pub worker: Rc<Worker>,
    /// Where it came from.
    pub info: Rc<DownstreamInfo>,
    /// How it is served.
    pub hcm: Arc<HttpConnectionManager>,
    /// Its routes, where they do not come by RDS.
    pub inline_routes: Option<Arc<RouteTable>>,
    /// Its access logs.
    pub loggers: Loggers,
    /// Number of its pod; 0 where there is none.
    pub pod_key: u64,
    /// Whether it speaks HTTP/2.
    pub h2: bool,
    /// Its socket.
    pub io: SharedIo,
    /// Requests under way.
    pub active: Cell<u32>,
    /// Bytes read when the last request began or ended, to tell whether another has begun.
    pub read_mark: Cell<u64>,
}
