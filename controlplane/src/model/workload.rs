//! Workloads: pods, and what a Deployment says about pods to come.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use super::names::ObjectName;
use super::service::Protocol;

/// Labels of an object, sorted.
pub type Labels = BTreeMap<String, String>;

/// All that pods carry, each once.
static SHARED: LazyLock<Mutex<HashSet<Arc<Labels>>>> = LazyLock::new(Mutex::default);

/// Labels, shared with all pods that carry the same, as those of one template do: a tree of texts for each pod
/// would be the largest part of what is known of it.
pub fn share(labels: Labels) -> Arc<Labels> {
    let mut known = SHARED.lock();
    if let Some(same) = known.get(&labels) {
        return Arc::clone(same);
    }
    if known.len() == known.capacity() {
        known.retain(|labels| Arc::strong_count(labels) > 1);
    }
    let shared = Arc::new(labels);
    known.insert(Arc::clone(&shared));
    shared
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Namespace and pod name.
    pub name: ObjectName,
    /// The pod's addresses; empty until it has one.
    pub addresses: Vec<IpAddr>,
    /// The pod's labels, which it shares with its like: [`share`].
    pub labels: Arc<Labels>,
    /// The service account it runs as.
    pub service_account: String,
    /// The node it runs on.
    pub node: Option<String>,
    /// Whether it may receive traffic: running, Ready and not being deleted.
    pub ready: bool,
    /// Whether it shares the host's network namespace, where nothing is captured.
    pub host_network: bool,
    /// The ports its containers declare, TCP only.
    pub ports: Vec<ContainerPort>,
    /// `spec.hostname`, or the pod's name: its label under a headless service.
    pub hostname: String,
    /// `spec.subdomain`: the headless service that names it.
    pub subdomain: Option<String>,
    /// What made the pod: the Deployment's name where it can be told.
    pub owner: String,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// The port's name; may be empty.
    pub name: String,
    /// The number.
    pub port: u16,
    /// The protocol by the port's name.
    pub protocol: Protocol,
}

/// What a Deployment says about its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadTemplate {
    /// Namespace and name of the Deployment.
    pub name: ObjectName,
    /// The labels its pods will carry.
    pub labels: Labels,
    /// The service account its pods will run as.
    pub service_account: String,
    /// The ports its pods will declare.
    pub ports: Vec<ContainerPort>,
}

impl Workload {
    /// Istio's canonical service: what metrics group by.
    pub fn canonical_name(&self) -> &str {
        [
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ]
        .iter()
        .find_map(|label| self.labels.get(*label))
        .map_or(self.owner.as_str(), String::as_str)
    }

    /// Istio's canonical revision.
    pub fn canonical_revision(&self) -> &str {
        [
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ]
        .iter()
        .find_map(|label| self.labels.get(*label))
        .map_or("latest", String::as_str)
    }
}

/// Whether `labels` has every pair of a selector that is not empty.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && has_all(selector, labels)
}

/// Whether `labels` has every pair of `wanted`.
pub fn has_all(wanted: &Labels, labels: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_there_once_and_go_with_the_last_pod_that_carries_them() {
        let labels = |number: usize| {
            let value = format!("shared-{number}");
            Labels::from([("test".to_owned(), value)])
        };
        let first = share(labels(0));
        assert!(Arc::ptr_eq(&first, &share(labels(0))));
        for number in 1..20_000 {
            share(labels(number));
        }
        assert!(SHARED.lock().len() < 15_000);
        assert!(Arc::ptr_eq(&first, &share(labels(0))));
    }
}
