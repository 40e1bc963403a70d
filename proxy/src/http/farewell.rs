//! The last moments of an HTTP/2 connection that has ended in order.
//!
//! Called by `connection` once every stream is over and the end is sent. What a client still sends
//! (a request that crossed the GOAWAY, window updates for what it reads) would reset a socket that is
//! closed, and a reset takes along what is still on its way. So the socket is read until the client has
//! everything.

use std::time::Duration;

use nix::sys::socket::{GetSockOpt as _, sockopt::GetStruct};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use crate::listener::DownstreamStream;

/// How long a client may take to close its end when it has everything.
const LINGER: Duration = Duration::from_secs(1);
/// How long it may take to get everything.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often the kernel is asked.
const CHECK: Duration = Duration::from_millis(100);

/// `tcpi_state`, the first field of `struct tcp_info`.
#[derive(Clone, Copy, Debug)]
struct State;

nix::getsockopt_impl!(
    State,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    [u8; 1],
    GetStruct<[u8; 1]>
);

/// States in which this end has said its last and the other has not acknowledged all of it
/// (`include/net/tcp_states.h`): `FIN_WAIT1`, `CLOSING`, `LAST_ACK`.
const ON_THE_WAY: [u8; 3] = [4, 11, 9];

/// Reads until the client closes the connection, or has everything and does not.
pub(super) async fn see_off(mut stream: DownstreamStream) {
    if let Err(error) = stream.end_writing() {
        tracing::trace!(%error, "the client has closed the connection");
        return;
    }
    let begun = Instant::now();
    let mut delivered: Option<Instant> = None;
    let mut sink = [0; 4096];
    while begun.elapsed() < PATIENCE && delivered.is_none_or(|at| at.elapsed() < LINGER) {
        // An error of the wait is no news from the client: the kernel is asked.
        if let Ok(read) = tokio::time::timeout(CHECK, stream.read(&mut sink)).await
            && !matches!(read, Ok(1..))
        {
            return;
        }
        if delivered.is_none() && !is_on_the_way(&stream) {
            delivered = Some(Instant::now());
        }
    }
}

fn is_on_the_way(stream: &DownstreamStream) -> bool {
    State
        .get(stream)
        .is_ok_and(|[state]| ON_THE_WAY.contains(&state))
}
