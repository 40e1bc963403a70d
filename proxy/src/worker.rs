//! Workers: threads with their own runtimes on which connections stay for life.
//!
//! [`Worker`] is what every stage of a connection needs, shared as `Rc<Worker>`; nothing in it
//! is locked on the request path. [`Workers`] is the control thread's end: it starts the threads,
//! gives them sockets to serve and sees them end after a drain.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use millrace_runtime::drain;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acceleration::Accelerator;
use crate::handover::adopt::{self, Adoptee};
use crate::handover::{Handover, Parking};
use crate::listener::accept;
use crate::listener::accepted::Origin;
use crate::listener::server_first::ServerFirst;
use crate::listener::stats::ListenerStats;
use crate::metrics::{Telemetry, WorkerTelemetry};
use crate::pods::LocalPods;
use crate::snapshot::{Generation, Reader, Store};
use crate::tcp::copy::{self, Scratch};
use crate::upstream::Pools;
use crate::upstream::connect::Connector;

/// What the connections of one worker share.
pub struct Worker {
    /// 0 to the number of workers.
    pub id: usize,
    /// The configuration.
    pub snapshot: Reader,
    /// Changes when the configuration does.
    pub generations: watch::Receiver<Generation>,
    /// Pods of this node; none alone or as a sidecar.
    pub pods: Arc<LocalPods>,
    /// Opens upstream connections.
    pub connector: Connector,
    /// HTTP connections to upstream hosts.
    pub pools: Pools,
    /// Metrics and access logs.
    pub telemetry: WorkerTelemetry,
    /// Counters of connections that no chain took.
    pub stats: ListenerStats,
    /// Destinations whose server speaks first.
    pub server_first: ServerFirst,
    /// Cancelled when the proxy ends: accept nothing, hand over what the next epoch takes.
    pub leaving: CancellationToken,
    /// Cancelled when nobody takes anything, which implies `leaving`: finish what is under way, keep
    /// nothing alive.
    pub drain: CancellationToken,
    /// The way to the next epoch.
    pub handover: Handover,
    /// The connections; the worker ends when it drains and there are none.
    pub tasks: TaskTracker,
    /// Asks for connections of applications to be accelerated.
    pub accelerator: Accelerator,
    /// Buffer of `tcp::copy`.
    pub scratch: Scratch,
    connections: Cell<u64>,
}

impl Worker {
    /// A number that no other connection of the process has, nor one of the epochs around it.
    pub fn next_connection_id(&self) -> u64 {
        let n = self.connections.get() + 1;
        self.connections.set(n);
        let epoch = u64::from(self.handover.epoch() & 0x7f);
        epoch << 56 | (self.id as u64) << 48 | n
    }

    /// A connection's part in handing it over.
    pub fn parking(&self) -> Parking {
        Parking::new(self.handover.clone(), self.leaving.clone())
    }
}

/// What every worker is made of.
#[derive(Clone)]
pub struct Parts {
    /// The configuration.
    pub store: Arc<Store>,
    /// Pods of this node.
    pub pods: Arc<LocalPods>,
    /// Addresses at which the proxy itself has its capture ports.
    pub own_addresses: Arc<[std::net::IpAddr]>,
    /// Metrics and access logs.
    pub telemetry: Arc<Telemetry>,
    /// Counters of connections that no chain took.
    pub stats: ListenerStats,
    /// Destinations whose server speaks first.
    pub server_first: ServerFirst,
    /// Asks for connections of applications to be accelerated.
    pub accelerator: Accelerator,
    /// The way to the next epoch.
    pub handover: Handover,
}

impl Parts {
    /// The part of one worker; called on its thread.
    pub fn worker(&self, id: usize) -> Worker {
        let drain = CancellationToken::new();
        Worker {
            id,
            snapshot: self.store.reader(),
            generations: self.store.subscribe(),
            pods: self.pods.clone(),
            connector: Connector::new(self.pods.clone(), self.own_addresses.clone())
                .accelerating(self.accelerator.clone()),
            pools: Pools::new(),
            telemetry: self.telemetry.worker(id),
            stats: self.stats.clone(),
            server_first: self.server_first.clone(),
            leaving: drain.child_token(),
            drain,
            handover: self.handover.clone(),
            tasks: TaskTracker::new(),
            accelerator: self.accelerator.clone(),
            scratch: copy::scratch(),
            connections: Cell::new(0),
        }
    }
}

/// Work for a worker.
enum Order {
    /// A listening socket.
    Serve {
        socket: OwnedFd,
        origin: Origin,
        stop: CancellationToken,
    },
    /// A connection of the epoch before.
    Adopt(Box<Adoptee>),
}

/// The workers, seen from the control thread. Cloning shares them.
#[derive(Clone)]
pub struct Workers {
    /// Unbounded because listening sockets are few, connections come one by one, and all come from the
    /// control thread.
    handles: Arc<[mpsc::UnboundedSender<Order>]>,
}

/// The workers' threads.
pub struct Threads(Vec<JoinHandle<()>>);

impl Workers {
    /// Starts the threads. They end when `drain` does.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(
        count: usize,
        parts: &Parts,
        drain: &drain::Watcher,
    ) -> io::Result<(Self, Threads)> {
        let mut handles = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for id in 0..count {
            let (sender, orders) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (parts, drain) = (parts.clone(), drain.clone());
            let thread = std::thread::Builder::new()
                .name(format!("worker-{id}"))
                .spawn(move || {
                    let worker = Rc::new(parts.worker(id));
                    let local = LocalSet::new();
                    local.block_on(&runtime, run(worker, orders, drain));
                })?;
            handles.push(sender);
            threads.push(thread);
        }
        let handles = handles.into();
        Ok((Self { handles }, Threads(threads)))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// Serves a listening socket on worker `index` modulo their number until `stop` is cancelled.
    pub fn serve(&self, index: usize, socket: OwnedFd, origin: Origin, stop: CancellationToken) {
        self.send(
            index,
            Order::Serve {
                socket,
                origin,
                stop,
            },
        );
    }

    /// Lets a connection of the epoch before go on, on worker `index` modulo their number.
    pub fn adopt(&self, index: usize, adoptee: Box<Adoptee>) {
        self.send(index, Order::Adopt(adoptee));
    }

    fn send(&self, index: usize, order: Order) {
        if self.handles[index % self.handles.len()]
            .send(order)
            .is_err()
        {
            tracing::debug!("a socket came after its worker had ended");
        }
    }
}

impl Threads {
    /// Waits for every thread to end, which a drain makes them do.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// One worker's life.
async fn run(
    worker: Rc<Worker>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    mut drain: drain::Watcher,
) {
    tracing::debug!(worker = worker.id, "worker is up");
    loop {
        // biased: sockets that come after the drain has begun are let go. Where nobody is left to send
        // any (a sidecar has all of its own at once), only the drain ends the worker.
        tokio::select! {
            biased;
            () = drain.draining() => break,
            Some(next) = orders.recv() => carry_out(&worker, next),
        }
    }
    worker.leaving.cancel();
    worker.tasks.close();
    // biased: what has finished need not be forced.
    tokio::select! {
        biased;
        () = ended(&worker, &mut orders) => {}
        () = drain.forced() => {
            tracing::warn!(worker = worker.id, connections = worker.tasks.len(),
                "drain deadline passed, closing what is left");
        }
    }
}

/// Waits for the last connection of a worker that leaves; where nobody takes them they are told to
/// finish.
async fn ended(worker: &Rc<Worker>, orders: &mut mpsc::UnboundedReceiver<Order>) {
    let last = async || {
        worker.tasks.wait().await;
        worker.handover.unprepared().await;
    };
    loop {
        // Not biased: all arms are cancel-safe and none may starve the others.
        tokio::select! {
            // What was taken from the epoch before must not be lost between two epochs.
            Some(order) = orders.recv() => if let Order::Adopt(_) = &order {
                carry_out(worker, order);
            },
            () = last() => if orders.is_empty() {
                return;
            },
            () = worker.handover.alone(), if !worker.drain.is_cancelled() => {
                worker.drain.cancel();
            }
        }
    }
}

fn carry_out(worker: &Rc<Worker>, order: Order) {
    match order {
        Order::Serve {
            socket,
            origin,
            stop,
        } => match listener(socket) {
            Ok(socket) => {
                let accepting = accept::run(worker.clone(), socket, origin, stop);
                worker.tasks.spawn_local(accepting);
            }
            Err(error) => {
                tracing::error!(?origin, %error, "cannot serve a listening socket");
            }
        },
        Order::Adopt(adoptee) => {
            worker
                .tasks
                .spawn_local(adopt::resume(worker.clone(), adoptee));
        }
    }
}

fn listener(socket: OwnedFd) -> io::Result<TcpListener> {
    let socket = std::net::TcpListener::from(socket);
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

#[cfg(test)]
mod tests;
