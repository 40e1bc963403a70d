//! What is told of a raw TCP connection: metrics while it lives, one access log record when it
//! has ended.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::upstream::{Connected, Failure};
use crate::access_log::Record;
use crate::cluster::{ClusterEntry, Host};
use crate::flags::ResponseFlags;
use crate::listener::DownstreamInfo;
use crate::metrics::labels::{Peers, Reporter, TcpKey, TcpLabels, Workload};
use crate::metrics::series::TcpSeries;
use crate::pods::LocalPod;
use crate::resource::{TcpProxy, TrafficDirection};
use crate::worker::Worker;

/// Collects what happens to one connection.
pub(super) struct Report {
    began: SystemTime,
    received: Cell<u64>,
    sent: Cell<u64>,
    flags: ResponseFlags,
    cluster: Option<Arc<ClusterEntry>>,
    host: Option<Arc<Host>>,
    local: Option<SocketAddr>,
    attempts: u32,
    failure: Option<String>,
    series: Vec<Arc<TcpSeries>>,
    /// Another epoch opened the connection and counted it.
    resumed: bool,
}

impl Report {
    pub(super) fn new(info: &DownstreamInfo) -> Self {
        Self {
            began: SystemTime::now() - info.started.elapsed(),
            received: Cell::new(0),
            sent: Cell::new(0),
            flags: ResponseFlags::NONE,
            cluster: None,
            host: None,
            local: None,
            attempts: 0,
            failure: None,
            series: Vec::new(),
            resumed: false,
        }
    }

    /// Of a connection that another epoch had, which counted these bytes.
    pub(super) fn resume(info: &DownstreamInfo, received: u64, sent: u64) -> Self {
        Self {
            received: Cell::new(received),
            sent: Cell::new(sent),
            resumed: true,
            ..Self::new(info)
        }
    }

    /// Bytes from the client, bytes to it.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }

    pub(super) fn connected(&mut self, worker: &Worker, info: &DownstreamInfo, to: &Connected) {
        self.cluster = Some(to.cluster.clone());
        self.host = Some(to.host.clone());
        self.local = to.stream.local_addr().ok();
        self.attempts = to.attempts;
        self.open_series(worker, info);
    }

    pub(super) fn failed(&mut self, worker: &Worker, failure: &Failure) {
        self.flags.insert(failure.flag());
        let snapshot = worker.snapshot.load();
        self.cluster = failure
            .cluster()
            .and_then(|name| snapshot.cluster(name.as_str()).cloned());
        if let Failure::Connect {
            host,
            attempts,
            source,
            ..
        } = failure
        {
            self.host = Some(host.clone());
            self.attempts = *attempts;
            self.failure = Some(source.to_string());
        }
    }

    pub(super) fn flag(&mut self, flag: ResponseFlags) {
        self.flags.insert(flag);
    }

    pub(super) fn received(&self, n: usize) {
        self.received.set(self.received.get() + n as u64);
        self.series.iter().for_each(|s| s.received(n as u64));
    }

    pub(super) fn sent(&self, n: usize) {
        self.sent.set(self.sent.get() + n as u64);
        self.series.iter().for_each(|s| s.sent(n as u64));
    }

    pub(super) fn finish(mut self, worker: &Worker, info: &DownstreamInfo, proxy: &Arc<TcpProxy>) {
        if self.series.is_empty() {
            self.open_series(worker, info);
        }
        self.series.iter().for_each(|s| s.closed());
        let loggers = worker.telemetry.loggers(proxy, &proxy.access_log);
        if loggers.is_empty() {
            return;
        }
        let config = self.cluster.as_ref().map(|c| &c.config);
        let name = config.map(|c| c.name.as_str());
        let mut record = Record::new(self.began, info.orig_dst, info.peer);
        record.duration = info.started.elapsed();
        record.flags = self.flags;
        record.transport_failure = self.failure.as_deref();
        record.bytes_received = self.received.get();
        record.bytes_sent = self.sent.get();
        record.upstream_host = self.host.as_ref().map(|h| h.address());
        record.upstream_local = self.local;
        record.upstream_cluster = config.and_then(|c| c.alt_stat_name.as_deref()).or(name);
        record.upstream_cluster_raw = name;
        record.attempts = self.attempts;
        record.server_name = info.server_name.as_deref();
        record.filter_chain = (!info.filter_chain.is_empty()).then_some(&*info.filter_chain);
        record.connection_id = info.id;
        loggers.record(&record);
    }

    fn open_series(&mut self, worker: &Worker, info: &DownstreamInfo) {
        let ends = Ends::new(worker, info, self.host.as_deref());
        let inbound = info.direction == TrafficDirection::Inbound;
        let cluster = self.cluster.as_deref();
        let key = TcpKey {
            reporter: Reporter::Source,
            pod: Ends::number(ends.here.as_ref()),
            peer: Ends::number(ends.other.as_ref()),
            cluster: cluster.map(ClusterEntry::id),
            host: self.host.as_ref().map(|h| h.id()),
            flags: self.flags,
        };
        let reporters: &[_] = match (inbound, &ends.other) {
            (true, _) => &[Reporter::Destination],
            (false, None) => &[Reporter::Source],
            // Within a node one proxy stands on both sides and reports for both.
            (false, Some(_)) => &[Reporter::Source, Reporter::Destination],
        };
        for &reporter in reporters {
            let labels = || TcpLabels {
                peers: Peers {
                    reporter,
                    source: ends.source(inbound),
                    destination: ends.destination(inbound, self.host.as_deref()),
                    service: Peers::service_of(cluster.and_then(|c| c.config.service.as_ref())),
                },
                flags: self.flags.to_string(),
            };
            let series = worker.telemetry.tcp(TcpKey { reporter, ..key }, labels);
            if !self.resumed {
                series.opened();
            }
            self.series.push(series);
        }
    }
}

/// Both ends, as far as they are pods of this node or the one that the proxy serves.
struct Ends {
    /// The pod in whose namespace the connection was accepted.
    here: Option<Arc<LocalPod>>,
    /// The pod at the other end.
    other: Option<Arc<LocalPod>>,
    /// The workload of a proxy that serves one.
    own: Option<Workload>,
}

impl Ends {
    fn new(worker: &Worker, info: &DownstreamInfo, host: Option<&Host>) -> Self {
        let other = match info.direction {
            TrafficDirection::Inbound => worker.pods.by_ip(info.peer.ip()),
            _ => host.and_then(|h| worker.pods.by_ip(h.address().ip())),
        };
        Self {
            here: info.pod.clone(),
            other,
            own: worker.snapshot.load().own_workload().map(Workload::from),
        }
    }

    fn number(pod: Option<&Arc<LocalPod>>) -> u64 {
        pod.map_or(0, |pod| pod.number())
    }

    fn source(&self, inbound: bool) -> Option<Workload> {
        let pod = if inbound { &self.other } else { &self.here };
        pod.as_ref()
            .map(|p| Workload::from(&p.spec))
            .or_else(|| self.own.clone().filter(|_| !inbound))
    }

    fn destination(&self, inbound: bool, host: Option<&Host>) -> Option<Workload> {
        let pod = if inbound { &self.here } else { &self.other };
        let known = host.and_then(|h| h.endpoint.workload.as_ref());
        pod.as_ref()
            .map(|p| Workload::from(&p.spec))
            .or_else(|| self.own.clone().filter(|_| inbound))
            .or_else(|| known.filter(|_| !inbound).map(Workload::from))
    }
}
