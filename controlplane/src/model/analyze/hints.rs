//! What is served as it stands and still is seldom meant: told to whoever checks a configuration, not to whoever runs it.
//!
//! Input: a snapshot; output: findings. Pods come and go, so what is said of them here would come and go in a running
//! mesh.

use std::sync::Arc;

use super::Analysis;
use crate::model::names::Hostname;
use crate::model::policy::DestinationRule;
use crate::model::problem::{Finding, Reason, Severity};
use crate::model::route::{Destination, HttpAction};
use crate::model::service::{Protocol, Service};
use crate::model::workload::{Labels, has_all, selects};
use crate::model::{Kind, ObjectId};
use crate::snapshot::MeshSnapshot;

/// All of it.
pub fn hints(snapshot: &MeshSnapshot) -> Vec<(ObjectId, Finding)> {
    let mut analysis = Analysis {
        snapshot,
        only: None,
        found: Vec::new(),
    };
    analysis.port_names();
    analysis.subsets_without_pods();
    analysis.sidecars_without_pods();
    analysis.missing_ports();
    analysis.found
}

impl Analysis<'_> {
    fn port_names(&mut self) {
        let own = |service: &&Arc<Service>| service.entry().is_none();
        for service in self.snapshot.services.values().filter(own) {
            for port in &service.ports {
                if port.protocol != Protocol::Auto {
                    continue;
                }
                let name = match port.name.as_str() {
                    "" => "it has no name".to_owned(),
                    name => format!("its name {name:?} begins with no protocol"),
                };
                let message = format!(
                    "port {}: {name}, so each connection's first bytes decide; name it like http-web, or set appProtocol",
                    port.port
                );
                let id = ObjectId {
                    kind: Kind::Service,
                    name: service.name.clone(),
                };
                let finding = Finding {
                    severity: Severity::Info,
                    reason: Reason::Unclear,
                    field: "spec.ports".to_owned(),
                    message,
                };
                self.found.push((id, finding));
            }
        }
    }

    /// The labels of all pods of a namespace that are there or will be.
    fn pods_of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Labels> {
        let pods = self.snapshot.workloads.values();
        let pods = pods.map(|pod| (&pod.name, &*pod.labels));
        let templates = self.snapshot.templates.values();
        let templates = templates.map(|template| (&template.name, &template.labels));
        let entries = self.snapshot.workload_entries.values();
        let entries = entries.map(|entry| (&entry.workload.name, &*entry.workload.labels));
        pods.chain(templates)
            .chain(entries)
            .filter(move |(name, _)| &*name.namespace == namespace)
            .map(|(_, labels)| labels)
    }

    /// Only where the service has pods at all: without any nothing is known of their labels.
    fn subsets_without_pods(&mut self) {
        let rules: Vec<Arc<DestinationRule>> =
            self.snapshot.destination_rules.values().cloned().collect();
        for rule in rules {
            let Some(service) = self.snapshot.service(&rule.host) else {
                continue;
            };
            let (selector, namespace) = (service.selector.clone(), service.name.namespace.clone());
            let pods: Vec<Labels> = self
                .pods_of(&namespace)
                .filter(|labels| selects(&selector, labels))
                .cloned()
                .collect();
            if pods.is_empty() {
                continue;
            }
            for (index, subset) in rule.subsets.iter().enumerate() {
                if !pods.iter().any(|labels| has_all(&subset.labels, labels)) {
                    let message = format!(
                        "no pod of {} has the labels of subset {:?}: requests get 503 (UH)",
                        rule.host, subset.name
                    );
                    let field = format!("spec.subsets[{index}].labels");
                    self.warn_rule(&rule, Reason::UnknownReference, field, message);
                }
            }
        }
    }

    fn sidecars_without_pods(&mut self) {
        let sidecars: Vec<_> = self.snapshot.sidecars.values().cloned().collect();
        for sidecar in sidecars
            .iter()
            .filter(|sidecar| !sidecar.selector.is_empty())
        {
            let mut pods = self.pods_of(&sidecar.name.namespace);
            if !pods.any(|labels| has_all(&sidecar.selector, labels)) {
                drop(pods);
                let message = format!("no pod of {} has these labels", sidecar.name.namespace);
                let field = "spec.workloadSelector".to_owned();
                self.warn(
                    Kind::Sidecar,
                    &sidecar.name,
                    Reason::UnknownReference,
                    field,
                    message,
                );
            }
        }
    }

    /// Destinations that name no port of several. Of a host that is routed itself the port that was asked for is meant.
    fn missing_ports(&mut self) {
        let rules: Vec<_> = self.snapshot.virtual_services.values().cloned().collect();
        for rule in rules {
            let http = rule.http.iter().filter_map(|route| match &route.action {
                HttpAction::Forward(to) => Some(("http", route.at, to)),
                _ => None,
            });
            let tcp = rule
                .tcp
                .iter()
                .map(|route| ("tcp", route.at, &route.destinations));
            let tls = rule
                .tls
                .iter()
                .map(|route| ("tls", route.at, &route.destinations));
            for (member, at, to) in http.chain(tcp).chain(tls) {
                for (index, to) in to.iter().enumerate() {
                    if let Some(message) = self.missing_port(&rule.hosts, to) {
                        let field = format!("spec.{member}[{at}].route[{index}].destination.port");
                        let kind = Kind::VirtualService;
                        self.warn(kind, &rule.name, Reason::Unclear, field, message);
                    }
                }
            }
        }
    }

    fn missing_port(&self, routed: &[Hostname], to: &Destination) -> Option<String> {
        let service = self.snapshot.service(&to.host)?;
        let unclear = to.port.is_none()
            && service.ports.len() > 1
            && !routed.iter().any(|host| host.covers(&to.host));
        unclear.then(|| {
            format!(
                "{} has {} ports, and none is named: the one that the client asked for is meant",
                to.host,
                service.ports.len()
            )
        })
    }
}
