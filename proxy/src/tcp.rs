//! Raw TCP: one downstream connection to one upstream connection.
//!
//! Called by `listener::accept` for chains that end in `TcpProxy`. `upstream` chooses cluster and
//! host and connects; `copy` moves the bytes; [`serve`] ties them together and reports the
//! connection once, when it has ended. Where the proxy is replaced meanwhile, the connection is handed
//! to the next epoch, which goes on with [`resume`] and reports all of it.

pub mod copy;
mod report;
pub mod upstream;

#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;

use crate::acceleration::Carries;
use crate::flags::ResponseFlags;
use crate::handover::message::{Carried, Pair, Parcel};
use crate::handover::parcel::{self, Contents};
use crate::listener::{DownstreamInfo, DownstreamStream};
use crate::resource::TcpProxy;
use crate::worker::Worker;
use copy::{Copied, End, Progress, Side, Terms};
use report::Report;
pub use upstream::{Connected, connect};

/// Serves a connection until it has ended. `upstream` is given where it was opened already to
/// see who speaks first.
pub async fn serve(
    worker: Rc<Worker>,
    stream: DownstreamStream,
    info: Rc<DownstreamInfo>,
    proxy: Arc<TcpProxy>,
    upstream: Option<Connected>,
) {
    let mut report = Report::new(&info);
    let connected = match upstream {
        Some(connected) => Ok(connected),
        None => connect(&worker, &info, &proxy).await,
    };
    let connected = match connected {
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
    let tied = Tied {
        worker,
        info,
        proxy,
        stream,
        connected,
        report,
        progress: Progress::default(),
    };
    tied.run().await;
}

/// Goes on with a connection that another epoch had, from where it stopped.
pub async fn resume(
    worker: Rc<Worker>,
    stream: DownstreamStream,
    info: Rc<DownstreamInfo>,
    proxy: Arc<TcpProxy>,
    (connected, pair, progress): (Connected, &Pair, Progress),
) {
    let mut report = Report::resume(&info, pair.received, pair.sent);
    report.connected(&worker, &info, &connected);
    let tied = Tied {
        worker,
        info,
        proxy,
        stream,
        connected,
        report,
        progress,
    };
    tied.run().await;
}

/// A downstream connection tied to an upstream connection.
struct Tied {
    worker: Rc<Worker>,
    info: Rc<DownstreamInfo>,
    proxy: Arc<TcpProxy>,
    stream: DownstreamStream,
    connected: Connected,
    report: Report,
    progress: Progress,
}

impl Tied {
    async fn run(mut self) {
        let mut parking = self.worker.parking();
        let end = loop {
            let (stream, upstream) = (&mut self.stream, &mut self.connected.stream);
            let report = &self.report;
            let terms = Terms {
                scratch: &self.worker.scratch,
                idle_timeout: self.proxy.idle_timeout,
                passed: |side, n| match side {
                    Side::Downstream => report.received(n),
                    Side::Upstream => report.sent(n),
                },
            };
            let park = parking.turn();
            match copy::copy(stream, upstream, &mut self.progress, &terms, park).await {
                Copied::Ended(end) => break end,
                Copied::Parked(turn) => {
                    let (parcel, contents) = self.pack();
                    if parking.give(turn, parcel, contents).await {
                        self.stream.let_go();
                        self.connected.stream.let_go();
                        return;
                    }
                }
            }
        };
        self.finish(&end);
    }

    /// The connection as the next epoch gets it.
    fn pack(&self) -> (Parcel, Option<Contents>) {
        let (to, counts) = (&self.connected, self.report.bytes());
        let cluster = to.cluster.name().to_string();
        let host = (cluster, to.host.address(), to.attempts);
        let pair = parcel::pair(host, &to.stream, &self.progress, counts);
        let parcel = parcel::describe(
            &self.worker,
            &self.info,
            &self.stream,
            Carried::Bytes { pair },
        );
        let contents = Contents::of_pair(&self.stream, &to.stream, &self.progress);
        (parcel, contents)
    }

    fn finish(mut self, end: &End) {
        tracing::debug!(id = self.info.id, ?end, "connection ended");
        match end {
            End::Finished => {}
            End::Reset(Side::Downstream, _) => {
                let flag = ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
                self.report.flag(flag);
            }
            End::Reset(Side::Upstream, _) => {
                let flag = ResponseFlags::UPSTREAM_CONNECTION_TERMINATION;
                self.report.flag(flag);
            }
            End::Idle => self.report.flag(ResponseFlags::STREAM_IDLE_TIMEOUT),
        }
        drop((self.stream, self.connected));
        self.report.finish(&self.worker, &self.info, &self.proxy);
    }
}
