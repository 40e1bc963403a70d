//! Ports and ids of the bench's hosts.

/// The backend's HTTP/1.1 port.
pub(super) const HTTP: u16 = 9080;
/// The backend's HTTP/2 port.
pub(super) const HTTP2: u16 = 9081;
/// The backend's TCP echo port.
pub(super) const TCP: u16 = 9082;
/// The backend's port that echoes once and ends the connection.
pub(super) const ONCE: u16 = 9083;
/// The backend's port that reads and forgets.
pub(super) const SINK: u16 = 9084;
/// The backend's port that writes without end.
pub(super) const SOURCE: u16 = 9085;
/// All of them, with the names that tell the protocol.
pub(super) const ALL: [(&str, u16); 6] = [
    ("http", HTTP),
    ("http2", HTTP2),
    ("tcp-echo", TCP),
    ("tcp-once", ONCE),
    ("tcp-sink", SINK),
    ("tcp-source", SOURCE),
];
/// The user that every proxy runs as; capture leaves it alone.
pub(super) const PROXY_UID: u32 = 1337;

/// Whether HTTP is spoken there.
pub(super) fn is_http(port: u16) -> bool {
    matches!(port, HTTP | HTTP2)
}
