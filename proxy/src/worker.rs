//! One worker: a thread with its own runtime on which a connection stays for life.
//!
//! [`Worker`] is what every stage of a connection needs, shared as `Rc<Worker>`; nothing in it
//! is locked on the request path.

use tokio_util::sync::CancellationToken;

use crate::upstream::connect::Connector;

/// What the connections of one worker share.
pub struct Worker {
    /// 0 to the number of workers.
    pub id: usize,
    /// Opens upstream connections.
    pub connector: Connector,
    /// Cancelled when the proxy drains: finish what is under way, keep nothing alive.
    pub drain: CancellationToken,
}
