//! Ports and ids of the bench's hosts.

/// The backend's HTTP/1.1 port.
pub(super) const HTTP: u16 = 9080;
/// The backend's HTTP/2 port.
pub(super) const HTTP2: u16 = 9081;
/// The backend's TCP echo port.
pub(super) const TCP: u16 = 9082;
/// The user that every proxy runs as; capture leaves it alone.
pub(super) const PROXY_UID: u32 = 1337;
