//! Accepts connections of one listening socket and hands each to the filter chain that takes it.
//!
//! Input: sockets that the broker or `listener::bind` made, each with its [`Origin`]. What is known of a connection is
//! its [`Accepted`]. Output: a task per connection that ends in `http::connection::serve` or `tcp::serve`. A connection that
//! nobody takes is reset and counted by [`Refusal`]; the agent's canaries are answered here.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millrace_runtime::handoff::canary_answer;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::DownstreamInfo;
use super::accepted::{Accepted, Origin};
use super::detect::{self, Choice, Chosen};
use super::stats::Refusal;
use crate::acceleration::Side;
use crate::access_log::Record;
use crate::handover::Turn;
use crate::handover::parcel::Contents;
use crate::http;
use crate::resource::{Listener, NetworkFilter};
use crate::socket::{Stream, canonical};
use crate::tcp;
use crate::worker::Worker;

/// How long a connection waits for configuration that names its listener: as long as a warming
/// resource may take.
const CONFIGURATION_WAIT: Duration = Duration::from_secs(15);
/// Pause after a failed accept (descriptors or memory are short).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stop` is cancelled or the worker drains. Connections in the backlog stay there
/// for whoever else holds the socket.
pub async fn run(
    worker: Rc<Worker>,
    listener: TcpListener,
    origin: Origin,
    stop: CancellationToken,
) {
    let mut stopped = pin!(stop.cancelled());
    let leaving = worker.leaving.clone();
    let mut leaving = pin!(leaving.cancelled());
    loop {
        // biased: a stop must not lose against a busy listener.
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => return,
            () = &mut leaving => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, peer)) => {
                let connection = serve(worker.clone(), io, canonical(peer), origin.clone());
                worker.tasks.spawn_local(connection);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                worker.stats.accept_failed();
                tracing::warn!(%error, ?origin, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors that accept(2) passes on from a connection that is gone already.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

async fn serve(worker: Rc<Worker>, io: TcpStream, peer: SocketAddr, origin: Origin) {
    let mut stream = Stream::new(io);
    let accepted = match Accepted::new(&worker, &stream, peer, origin) {
        Ok(accepted) => accepted,
        Err(refusal) => return refuse(&worker, &stream, peer, refusal),
    };
    if accepted.is_canary() {
        return answer_canary(&worker, stream, &accepted).await;
    }
    if let (Origin::Outbound(_), Some(pod)) = (&accepted.origin, &accepted.pod) {
        stream.set_lane(worker.accelerator.lane(pod, Side::Downstream));
    }
    attend(worker, stream, accepted).await;
}

/// Tells the agent that its canary arrived, and at whose listener.
async fn answer_canary(worker: &Worker, mut stream: Stream, accepted: &Accepted) {
    worker.stats.canary();
    let uid = accepted.pod.as_ref().map(|pod| pod.spec.uid.clone());
    let answer = canary_answer(&uid.unwrap_or_default());
    if let Err(error) = stream.write_all(answer.as_bytes()).await {
        tracing::debug!(peer = %accepted.peer, %error, "canary is gone");
    }
}

/// Finds listener and chain of a connection and serves it; hands it over where it is still undecided
/// when the worker leaves.
pub(crate) async fn attend(worker: Rc<Worker>, mut stream: Stream, accepted: Accepted) {
    let mut parking = worker.parking();
    loop {
        let listener = tokio::select! {
            biased;
            listener = configured(&worker, &accepted) => match listener {
                Some(listener) => Ok(listener),
                None => return refuse(&worker, &stream, accepted.peer, Refusal::NoListener),
            },
            turn = parking.turn() => Err(turn),
        };
        let turn = match listener {
            Err(turn) => turn,
            Ok(listener) => {
                let park = parking.turn();
                match serve_chain(&worker, &mut stream, &accepted, &listener, park).await {
                    Decided::Refused => return,
                    Decided::Taken(info, choice) => {
                        return hand_to_chain(worker, stream, info, choice).await;
                    }
                    Decided::Parked(turn) => turn,
                }
            }
        };
        let parcel = accepted.parcel(&worker, &stream);
        let contents = Contents::of_one(&stream);
        if parking.give(turn, parcel, contents).await {
            return stream.let_go();
        }
    }
}

/// The listener of a connection, waiting for the configuration to have one: a pod may be
/// enrolled before its resources have come.
async fn configured(worker: &Worker, accepted: &Accepted) -> Option<Arc<Listener>> {
    if let Some(listener) = accepted.listener(&worker.snapshot.load()) {
        return Some(listener);
    }
    let mut generations = worker.generations.clone();
    let wait = async {
        loop {
            generations.mark_unchanged();
            if let Some(listener) = accepted.listener(&worker.snapshot.load()) {
                return Some(listener);
            }
            if generations.changed().await.is_err() {
                return None;
            }
        }
    };
    // biased: a drain ends the wait at once.
    tokio::select! {
        biased;
        () = worker.drain.cancelled() => None,
        found = tokio::time::timeout(CONFIGURATION_WAIT, wait) => found.ok().flatten(),
    }
}

/// What became of a connection that has a listener.
enum Decided {
    /// No chain takes it; it has been told so.
    Refused,
    /// This chain takes it.
    Taken(Rc<DownstreamInfo>, Choice),
    /// It is to be handed over.
    Parked(Turn),
}

async fn serve_chain(
    worker: &Worker,
    stream: &mut Stream,
    accepted: &Accepted,
    listener: &Arc<Listener>,
    park: impl Future<Output = Turn>,
) -> Decided {
    let mut info = accepted.info(listener);
    match detect::choose(worker, stream, &mut info, listener, park).await {
        Ok(Chosen::Chain(choice)) => {
            tracing::trace!(id = info.id, listener = %info.listener, chain = info.filter_chain,
                orig_dst = %info.orig_dst, "filter chain chosen");
            Decided::Taken(Rc::new(info), choice)
        }
        Ok(Chosen::Parked(turn)) => Decided::Parked(turn),
        Err(refusal) => {
            record(worker, listener, &info, refusal);
            refuse(worker, stream, info.peer, refusal);
            Decided::Refused
        }
    }
}

async fn hand_to_chain(
    worker: Rc<Worker>,
    stream: Stream,
    info: Rc<DownstreamInfo>,
    choice: Choice,
) {
    match &choice.chain.filter {
        NetworkFilter::Http(hcm) => {
            Box::pin(http::connection::serve(worker, stream, info, hcm.clone())).await;
        }
        NetworkFilter::Tcp(proxy) => {
            Box::pin(tcp::serve(
                worker,
                stream,
                info,
                proxy.clone(),
                choice.upstream,
            ))
            .await;
        }
    }
}

fn refuse(worker: &Worker, stream: &Stream, peer: SocketAddr, refusal: Refusal) {
    worker.stats.refused(refusal);
    tracing::debug!(%peer, ?refusal, "connection refused");
    stream.reset_on_close();
}

/// One access log record for a connection that no filter chain took.
fn record(worker: &Worker, listener: &Arc<Listener>, info: &DownstreamInfo, refusal: Refusal) {
    let loggers = worker.telemetry.loggers(listener, &listener.access_log);
    if loggers.is_empty() {
        return;
    }
    let began = SystemTime::now() - info.started.elapsed();
    let mut record = Record::new(began, info.orig_dst, info.peer);
    record.duration = info.started.elapsed();
    record.flags = refusal.flag();
    record.termination_details =
        (refusal == Refusal::InspectionTimeout).then_some("listener_filter_timeout");
    record.connection_id = info.id;
    loggers.record(&record);
}
