//! Raw TCP: one downstream connection to one upstream connection.
//!
//! Called by `listener::accept` for chains that end in `TcpProxy`. `upstream` chooses cluster and
//! host and connects; `copy` moves the bytes; [`serve`] ties them together and reports the
//! connection once, when it has ended.

pub mod copy;
mod report;
pub mod upstream;

#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;

use crate::acceleration::Carries;
use crate::flags::ResponseFlags;
use crate::listener::{DownstreamInfo, DownstreamStream};
use crate::resource::TcpProxy;
use crate::worker::Worker;
use copy::{End, Side, Terms};
use report::Report;
pub use upstream::{Connected, connect};

/// Serves a connection until it has ended. `upstream` is given where it was opened already to
/// see who speaks first.
pub async fn serve(
    worker: Rc<Worker>,
    mut stream: DownstreamStream,
    info: Rc<DownstreamInfo>,
    proxy: Arc<TcpProxy>,
    upstream: Option<Connected>,
) {
    let mut report = Report::new(&info);
    let connected = match upstream {
        Some(connected) => Ok(connected),
        None => connect(&worker, &info, &proxy).await,
    };
    let mut connected = match connected {
        Ok(connected) => connected,
        Err(failure) => {
            tracing::debug!(id = info.id, orig_dst = %info.orig_dst, %failure, "no upstream");
            stream.reset_on_close();
            report.failed(&worker, &failure);
            return report.finish(&worker, &info, &proxy);
        }
    };
    report.connected(&worker, &info, &connected);
    for stream in [&stream, &connected.stream] {
        stream.carry(Carries::Bytes);
    }
    let terms = Terms {
        scratch: &worker.scratch,
        idle_timeout: proxy.idle_timeout,
        passed: |side, n| match side {
            Side::Downstream => report.received(n),
            Side::Upstream => report.sent(n),
        },
    };
    let end = copy::copy(&mut stream, &mut connected.stream, terms).await;
    tracing::debug!(id = info.id, ?end, "connection ended");
    match end {
        End::Finished => {}
        End::Reset(Side::Downstream, _) => {
            report.flag(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
        }
        End::Reset(Side::Upstream, _) => {
            report.flag(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION);
        }
        End::Idle => report.flag(ResponseFlags::STREAM_IDLE_TIMEOUT),
    }
    drop((stream, connected));
    report.finish(&worker, &info, &proxy);
}
