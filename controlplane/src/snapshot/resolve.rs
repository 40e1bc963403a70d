//! Questions that the translation asks of a snapshot: which rule routes this host, which subsets it
//! has, which policy holds on a port, which cluster a destination means.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::MeshSnapshot;
use crate::model::Kind;
use crate::model::names::{ClusterName, Hostname};
use crate::model::place::Place;
use crate::model::policy::{DestinationRule, Subset, TrafficPolicy};
use crate::model::route::{Destination, HttpAction, RouteRule, SubsetRef, VirtualService};
use crate::model::service::Service;
use crate::model::workload::Labels;

/// A subset of a service, from a `DestinationRule` or from the labels of a `RouteRule`.
#[derive(Debug)]
pub struct ResolvedSubset<'a> {
    /// Its name within the service.
    pub name: String,
    /// The labels its endpoints carry.
    pub labels: Labels,
    /// The rule's own entry, where a rule made it.
    pub subset: Option<&'a Subset>,
    /// Where that is written.
    pub place: Option<Place>,
}

/// What `DestinationRules` say about a service, for one client namespace.
#[derive(Debug)]
pub struct Policy<'a> {
    rules: Vec<&'a Arc<DestinationRule>>,
    synthetic: Vec<(String, Labels)>,
}

impl MeshSnapshot {
    /// `VirtualServices` that route traffic of `namespace`, in the order in which they claim hosts.
    pub fn virtual_services_for(&self, namespace: &str) -> Vec<&Arc<VirtualService>> {
        let sidecar = self.sidecar_of(namespace);
        let visible = |rule: &&Arc<VirtualService>| {
            let imported = || {
                sidecar.is_none_or(|sidecar| {
                    let mut hosts = rule.hosts.iter();
                    hosts.any(|host| sidecar.imports_rules(namespace, &rule.name.namespace, host))
                })
            };
            rule.for_mesh && rule.export_to.includes(namespace) && imported()
        };
        let mut rules: Vec<_> = self.routed.values().filter(visible).collect();
        // Older ones first, as Istio has it; those without a time come after, by name.
        rules.sort_by_key(|rule| {
            (
                rule.created.is_none(),
                rule.created.clone(),
                rule.name.clone(),
            )
        });
        rules
    }

    /// The hosts that routes of a namespace's clients lead to.
    pub fn hosts_routed_to(&self, namespace: &str) -> BTreeSet<Hostname> {
        let rules = self.virtual_services_for(namespace);
        let routes = self.api_routes.values();
        let http = rules.iter().flat_map(|rule| &rule.http);
        let http = http.chain(routes.clone().flat_map(|route| &route.http));
        let http = http.filter_map(|route| match &route.action {
            HttpAction::Forward(destinations) => Some(destinations),
            _ => None,
        });
        let tcp = rules
            .iter()
            .flat_map(|rule| rule.tcp.iter().chain(&rule.tls));
        let tcp = tcp.chain(routes.filter_map(|route| route.connections.as_ref()));
        let all = http.chain(tcp.map(|route| &route.destinations)).flatten();
        all.map(|to| to.host.clone()).collect()
    }

    /// `RouteRules` for a host: higher precedence first, then by name.
    pub fn route_rules_for(&self, host: &Hostname) -> Vec<&Arc<RouteRule>> {
        let mut rules: Vec<_> = self
            .route_rules
            .values()
            .filter(|rule| rule.destination == *host)
            .collect();
        rules.sort_by_key(|rule| (Reverse(rule.precedence), rule.name.clone()));
        rules
    }

    /// `DestinationRules` for a service that clients of `namespace` use: those of the most specific host
    /// in the first namespace that has any of client, service and root. Without a client namespace,
    /// as on a node whose pods share clusters, the service's own comes first.
    pub fn destination_rules_for(
        &self,
        service: &Service,
        client: Option<&str>,
    ) -> Vec<&Arc<DestinationRule>> {
        let own: &str = &service.name.namespace;
        let root = self.mesh.root_namespace.as_str();
        let covering = self.destination_rules_covering(&service.hostname);
        for namespace in client.into_iter().chain([own, root]) {
            let holds = |rule: &&&Arc<DestinationRule>| {
                &*rule.name.namespace == namespace
                    && (client == Some(namespace) || rule.export_to.includes(client.unwrap_or(own)))
            };
            let mut rules: Vec<_> = covering.iter().filter(holds).copied().collect();
            let Some(longest) = rules.iter().map(|rule| specificity(&rule.host)).max() else {
                continue;
            };
            rules.retain(|rule| specificity(&rule.host) == longest);
            rules.sort_by_key(|rule| {
                (
                    rule.created.is_none(),
                    rule.created.clone(),
                    rule.name.clone(),
                )
            });
            return rules;
        }
        Vec::new()
    }

    /// The `DestinationRules` for a host, or for a wildcard that covers it.
    fn destination_rules_covering(&self, host: &Hostname) -> Vec<&Arc<DestinationRule>> {
        if self.ruled.is_empty() {
            return Vec::new();
        }
        let hosts = host.and_wildcards();
        let names = hosts.iter().filter_map(|host| self.ruled.get(host));
        let rules = names.flatten();
        rules
            .filter_map(|name| self.destination_rules.get(name))
            .collect()
    }

    /// Whether clients of a namespace have a cluster of their own for a host's port: they mean another
    /// service than the mesh at large, or are under other `DestinationRules`.
    pub fn has_own_cluster(&self, host: &Hostname, port: u16, client: &str) -> bool {
        let own = self.service_on(host, port, Some(client));
        let shared = self.service_on(host, port, None);
        let (own, shared) = match (own, shared) {
            (Some(own), Some(shared)) => (own, shared),
            // What these clients may not use must not be reached through what others may.
            (None, Some(_)) => return true,
            (_, None) => return false,
        };
        if own.name != shared.name {
            return true;
        }
        let rules = |client| self.destination_rules_for(own, client);
        let (mine, all) = (rules(Some(client)), rules(None));
        mine.len() != all.len()
            || mine
                .iter()
                .zip(all)
                .any(|(one, other)| one.name != other.name)
    }

    /// What `DestinationRules` say about a service.
    pub fn policy_of(&self, service: &Service, client: Option<&str>) -> Policy<'_> {
        let rules = self.destination_rules_for(service, client);
        let mut policy = Policy {
            rules,
            synthetic: Vec::new(),
        };
        for rule in self.route_rules.values() {
            let HttpAction::Forward(destinations) = &rule.route.action else {
                continue;
            };
            for destination in destinations.iter().filter(|to| to.host == service.hostname) {
                if let SubsetRef::Labels(labels) = &destination.subset {
                    policy.add_labels(labels);
                }
            }
        }
        policy
    }

    /// The cluster that a destination means for a request that came in on `listener_port`.
    pub fn cluster_of(
        &self,
        to: &Destination,
        listener_port: u16,
        client: Option<&str>,
    ) -> ClusterName {
        let port = to.port.or_else(|| self.only_port(&to.host, client));
        let port = port.unwrap_or(listener_port);
        let service = self.service_on(&to.host, port, client);
        let subset = match &to.subset {
            SubsetRef::All => String::new(),
            SubsetRef::Named(name) => name.clone(),
            SubsetRef::Labels(labels) => match service {
                Some(service) => self.policy_of(service, client).name_of(labels),
                None => SubsetRef::name_of_labels(labels),
            },
        };
        ClusterName::outbound(port, &subset, &to.host)
    }
}

impl MeshSnapshot {
    /// The one port of a host that has no other.
    fn only_port(&self, host: &Hostname, client: Option<&str>) -> Option<u16> {
        let services = self.services_with(host);
        let visible =
            services.filter(|service| client.is_none_or(|client| self.may_use(client, service)));
        let mut ports = visible
            .flat_map(|service| &service.ports)
            .map(|port| port.port);
        let first = ports.next()?;
        ports.all(|port| port == first).then_some(first)
    }
}

/// Of `VirtualServices` in the order in which they claim hosts, the one that routes `host`: the most
/// specific claim, and of equal ones the first.
pub fn claim<'a>(
    rules: &[&'a Arc<VirtualService>],
    host: &Hostname,
) -> Option<&'a Arc<VirtualService>> {
    let claims = rules.iter().filter_map(|rule| {
        let best = rule
            .hosts
            .iter()
            .filter(|claim| claim.covers(host))
            .map(specificity)
            .max()?;
        Some((best, *rule))
    });
    // `min_by_key` keeps the first of equals.
    claims
        .min_by_key(|(best, _)| Reverse(*best))
        .map(|(_, rule)| rule)
}

impl<'a> Policy<'a> {
    /// Gives labels that a route names directly a subset, unless a rule has one with those labels.
    fn add_labels(&mut self, labels: &Labels) {
        let known = self.rule_subsets().any(|subset| subset.labels == *labels)
            || self.synthetic.iter().any(|(_, known)| known == labels);
        if known {
            return;
        }
        let short = SubsetRef::name_of_labels(labels);
        let taken = self.rule_subsets().any(|subset| subset.name == short);
        let name = if taken { full_name(labels) } else { short };
        self.synthetic.push((name, labels.clone()));
    }

    fn rule_subsets(&self) -> impl Iterator<Item = &'a Subset> + use<'a> {
        self.rules
            .clone()
            .into_iter()
            .flat_map(|rule| &rule.subsets)
    }

    /// The name of the subset with exactly these labels.
    pub fn name_of(&self, labels: &Labels) -> String {
        let rule = self
            .rule_subsets()
            .find(|subset| subset.labels == *labels)
            .map(|subset| subset.name.clone());
        let synthetic = || {
            self.synthetic
                .iter()
                .find(|(_, known)| known == labels)
                .map(|(name, _)| name.clone())
        };
        rule.or_else(synthetic)
            .unwrap_or_else(|| SubsetRef::name_of_labels(labels))
    }

    /// All subsets, by name; of two with one name the first wins.
    pub fn subsets(&self) -> BTreeMap<String, ResolvedSubset<'a>> {
        let mut result = BTreeMap::new();
        for rule in self.rules.clone() {
            for (index, subset) in rule.subsets.iter().enumerate() {
                let field = format!("spec.subsets[{index}]");
                let resolved = || ResolvedSubset {
                    name: subset.name.clone(),
                    labels: subset.labels.clone(),
                    subset: Some(subset),
                    place: Some(Place::new(Kind::DestinationRule, &rule.name, field)),
                };
                result.entry(subset.name.clone()).or_insert_with(resolved);
            }
        }
        for (name, labels) in &self.synthetic {
            let resolved = || ResolvedSubset {
                name: name.clone(),
                labels: labels.clone(),
                subset: None,
                place: None,
            };
            result.entry(name.clone()).or_insert_with(resolved);
        }
        result
    }

    /// Where the policy for the whole service is written.
    pub fn place(&self) -> Option<Place> {
        let rule = self.rules.first()?;
        Some(Place::new(Kind::DestinationRule, &rule.name, ""))
    }

    /// The traffic policy on a port, of the whole service or of a subset.
    pub fn on_port(&self, port: u16, subset: Option<&Subset>) -> TrafficPolicy {
        let find = |ports: &[(u16, TrafficPolicy)]| {
            ports
                .iter()
                .find(|(number, _)| *number == port)
                .map(|(_, policy)| policy.clone())
        };
        let whole = self
            .rules
            .first()
            .map(|rule| find(&rule.port_policies).unwrap_or_else(|| rule.policy.clone()));
        let whole = whole.unwrap_or_default();
        match subset {
            None => whole,
            Some(subset) => find(&subset.port_policies)
                .unwrap_or_else(|| subset.policy.clone())
                .over(&whole),
        }
    }
}

fn full_name(labels: &Labels) -> String {
    let pairs: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(",")
}

/// Exact hosts before wildcards, longer wildcards before shorter ones.
fn specificity(host: &Hostname) -> (bool, usize) {
    (!host.is_wildcard(), host.as_str().len())
}
