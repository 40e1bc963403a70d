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
        }
    }

    pub(super) fn connected(&mut self, worker: &Worker, info: &DownstreamInfo, to: &Connected) {
        self.cluster = Some(to.cluster.clone());
        self.host = Some(to.host.clone());
        self.local = to.stream.local_addr().ok();
        self.attempts = to.attempts;
        self.open_series(worker, info);
    }

    pub(super) fn failed(&mut self, failure: &Failure) {
        self.flags.insert(failure.flag());
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
        let host = self.host.clone();
        let there = host
            .as_ref()
            .and_then(|h| worker.pods.by_ip(h.address().ip()));
        let client = worker.pods.by_ip(info.peer.ip());
        let inbound = info.direction == TrafficDirection::Inbound;
        let (here, other) = if inbound {
            (info.pod.clone(), client)
        } else {
            (info.pod.clone(), there)
        };
        let id = |pod: &Option<Arc<crate::pods::LocalPod>>| {
            pod.as_ref()
                .map_or(0, |p| worker.telemetry.intern(&p.spec.uid.0))
        };
        let reporter = if inbound {
            Reporter::Destination
        } else {
            Reporter::Source
        };
        let key = TcpKey {
            reporter,
            pod: id(&here),
            peer: id(&other),
            cluster: self.cluster.as_ref().map(|c| c.id()),
            host: host.as_ref().map(|h| h.id()),
            flags: self.flags,
        };
        let workload = |pod: &Option<Arc<crate::pods::LocalPod>>| {
            pod.as_ref().map(|p| Workload::from(&p.spec))
        };
        let labels = |reporter| {
            let known = host.as_ref().and_then(|h| h.endpoint.workload.as_ref());
            let (source, destination) = if inbound {
                (workload(&other), workload(&here))
            } else {
                let there = workload(&other).or_else(|| known.map(Workload::from));
                (workload(&here), there)
            };
            let service = self
                .cluster
                .as_ref()
                .and_then(|c| c.config.service.as_ref());
            TcpLabels {
                peers: Peers {
                    reporter,
                    source,
                    destination,
                    service: Peers::service_of(service),
                },
                flags: self.flags.to_string(),
            }
        };
        let mut series = vec![worker.telemetry.tcp(key, || labels(reporter))];
        // Within a node one proxy stands on both sides and reports for both.
        if !inbound && other.is_some() {
            let key = TcpKey {
                reporter: Reporter::Destination,
                ..key
            };
            series.push(worker.telemetry.tcp(key, || labels(Reporter::Destination)));
        }
        series.iter().for_each(|s| s.opened());
        self.series = series;
    }
}
