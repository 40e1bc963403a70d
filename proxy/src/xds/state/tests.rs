use std::time::Duration;

use millrace_xds::json;
use serde_json::json;

use super::*;
use crate::xds::table::WARMING_TIMEOUT;
use crate::xds::unknown::PATIENCE;

/// A resource as the control plane sends it.
pub(crate) fn raw(type_url: &TypeUrl, name: &str, yaml: &str, version: &str) -> RawResource {
    let mut value: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
    value["@type"] = json!(type_url.as_str());
    RawResource {
        name: name.to_owned(),
        version: version.to_owned(),
        body: json::any_from_value(&value).unwrap_or_else(|e| panic!("{e}\n{yaml}")),
    }
}

pub(crate) fn listener(name: &str, route: &str) -> RawResource {
    let package = "type.googleapis.com/envoy.extensions.filters";
    raw(
        &TypeUrl::LISTENER,
        name,
        &format!(
            r#"
name: {name}
address: {{socket_address: {{address: 0.0.0.0, port_value: 9080}}}}
filter_chains:
- filters:
  - name: h
    typed_config:
      "@type": {package}.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: h
      rds: {{config_source: {{ads: {{}}}}, route_config_name: {route}}}
      http_filters: [{{name: r, typed_config: {{"@type": {package}.http.router.v3.Router}}}}]
"#
        ),
        "1",
    )
}

pub(crate) fn route(name: &str, cluster: &str) -> RawResource {
    raw(
        &TypeUrl::ROUTE,
        name,
        &format!(
            "
name: {name}
virtual_hosts:
- {{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}
"
        ),
        "1",
    )
}

pub(crate) fn cluster(name: &str) -> RawResource {
    let yaml =
        format!("name: {name}\ntype: EDS\neds_cluster_config: {{eds_config: {{ads: {{}}}}}}\n");
    raw(&TypeUrl::CLUSTER, name, &yaml, "1")
}

pub(crate) fn endpoints(name: &str, ip: &str) -> RawResource {
    let yaml = format!(
        "
cluster_name: {name}
endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: 80}}}}}}}}]}}]
"
    );
    raw(&TypeUrl::ENDPOINT, name, &yaml, "1")
}

struct Fixture {
    state: State,
    now: Instant,
    last: Settled,
}

impl Fixture {
    fn new(mode: Mode) -> Self {
        let mut state = State::new(mode, Resources::default());
        let now = Instant::now();
        let last = state.settle(now);
        Self { state, now, last }
    }

    /// A node with one pod.
    fn node() -> Self {
        let mut fixture = Self::new(Mode::Node);
        fixture.local(&[("default", "a")]);
        fixture
    }

    fn local(&mut self, pods: &[(&str, &str)]) {
        let pods = pods
            .iter()
            .map(|(ns, n)| ((*ns).to_owned(), (*n).to_owned()));
        self.state.set_interest(Local {
            pods: pods.collect(),
        });
        self.settle();
    }

    fn give(&mut self, resource: RawResource) -> Vec<ResourceError> {
        let type_url = TypeUrl::from(resource.body.type_url.as_str());
        let rejected = self.state.update(&type_url, &[resource], &[], self.now);
        self.settle();
        rejected
    }

    fn take(&mut self, type_url: &TypeUrl, name: &str) {
        let removed = [name.to_owned()];
        drop(self.state.update(type_url, &[], &removed, self.now));
        self.settle();
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    fn settle(&mut self) {
        self.last = self.state.settle(self.now);
    }

    /// Names of served listeners, routes, clusters and endpoints.
    fn serving(&self) -> String {
        let all = self.state.resources();
        let names = |names: Vec<String>| names.join(",");
        [
            names(all.listeners.keys().map(ToString::to_string).collect()),
            names(all.routes.keys().map(ToString::to_string).collect()),
            names(all.clusters.keys().map(ToString::to_string).collect()),
            names(all.endpoints.keys().cloned().collect()),
        ]
        .join(" ")
    }

    /// A node that serves one listener, one route, one cluster.
    fn warm() -> Self {
        let mut fixture = Self::node();
        fixture.give(listener("default/http", "r"));
        fixture.give(route("r", "c"));
        fixture.give(cluster("c"));
        fixture.give(endpoints("c", "10.0.0.1"));
        assert_eq!(fixture.serving(), "default/http r c c");
        fixture
    }
}

fn terms<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn subscriptions_follow_references() {
    let mut f = Fixture::node();
    assert_eq!(
        f.last.wanted.listeners,
        terms(["default/*", "pod/default/a"])
    );
    assert_eq!(f.last.wanted.names, terms(["*"]));
    f.give(listener("default/http", "r"));
    assert_eq!(f.last.wanted.routes, terms(["r"]));
    f.give(route("r", "c"));
    assert_eq!(f.last.wanted.clusters, terms(["c"]));
    f.give(cluster("c"));
    assert_eq!(f.last.wanted.endpoints, terms(["c"]));
    assert_eq!(
        f.serving(),
        "   ",
        "nothing serves before its endpoints are known"
    );
    f.give(endpoints("c", "10.0.0.1"));
    assert_eq!(f.serving(), "default/http r c c");
    f.local(&[]);
    assert_eq!(
        f.last.wanted,
        Wanted {
            names: terms(["*"]),
            ..Wanted::default()
        }
    );
    assert_eq!(f.serving(), "   ");
}

#[test]
fn a_route_waits_for_a_new_cluster_while_the_old_one_serves() {
    let mut f = Fixture::warm();
    f.give(route("r", "d"));
    assert_eq!(f.last.wanted.clusters, terms(["c", "d"]));
    assert!(!f.last.changed);
    f.give(cluster("d"));
    assert!(!f.last.changed);
    f.give(endpoints("d", "10.0.0.2"));
    assert!(f.last.changed);
    assert_eq!(
        f.serving(),
        "default/http r d d",
        "what is not referred to is dropped"
    );
    assert_eq!(f.last.wanted.clusters, terms(["d"]));
}

#[test]
fn waiting_ends_after_the_initial_fetch_timeout() {
    let mut f = Fixture::warm();
    f.give(route("r", "d"));
    assert_eq!(f.last.deadline, Some(f.now + WARMING_TIMEOUT));
    f.wait(WARMING_TIMEOUT.saturating_sub(Duration::from_millis(1)));
    assert!(!f.last.changed);
    f.wait(Duration::from_millis(1));
    assert!(f.last.changed);
    assert_eq!(f.serving(), "default/http r  ");
}

#[test]
fn what_does_not_exist_is_not_waited_for_where_nothing_serves() {
    let mut f = Fixture::node();
    f.give(listener("default/http", "r"));
    f.give(route("r", "nosuch"));
    f.take(&TypeUrl::CLUSTER, "nosuch");
    assert_eq!(f.serving(), "default/http r  ");
    let mut f = Fixture::node();
    f.give(listener("default/http", "r"));
    f.give(route("r", "silent"));
    f.state.missing(&TypeUrl::CLUSTER, &["silent".to_owned()]);
    f.settle();
    assert_eq!(f.serving(), "default/http r  ");
}

/// A rule may be written before what it names, and by somebody else.
#[test]
fn the_version_before_a_rule_that_came_too_early_serves_on_for_a_while() {
    let mut f = Fixture::warm();
    f.give(route("r", "d"));
    f.take(&TypeUrl::CLUSTER, "d");
    assert_eq!(f.serving(), "default/http r c c");
    assert_eq!(f.last.deadline, Some(f.now + PATIENCE));
    f.give(cluster("d"));
    f.give(endpoints("d", "10.0.0.2"));
    assert_eq!(f.serving(), "default/http r d d");

    // One that never comes is waited for once, whatever else changes meanwhile.
    let mut f = Fixture::warm();
    f.give(route("r", "nosuch"));
    f.take(&TypeUrl::CLUSTER, "nosuch");
    f.wait(PATIENCE / 2);
    let mut changed = route("r", "nosuch");
    changed.version = "2".to_owned();
    changed.body.value.extend([0x52, 0]);
    f.give(changed);
    assert_eq!(f.serving(), "default/http r c c");
    f.wait(PATIENCE / 2);
    assert_eq!(f.serving(), "default/http r  ");
    let mut changed = route("r", "nosuch");
    changed.version = "3".to_owned();
    f.give(changed);
    let serving = f.state.routes.serving("r").unwrap();
    assert_eq!(serving.version, "3", "it waits for nothing new");
}

/// Pilot tells of endpoints that are gone before it tells that their cluster is.
#[test]
fn a_cluster_never_serves_without_endpoints_while_it_is_being_removed() {
    let mut f = Fixture::warm();
    f.give(route("r", "d"));
    f.give(cluster("d"));
    f.take(&TypeUrl::ENDPOINT, "d");
    assert_eq!(f.serving(), "default/http r c c");
    f.take(&TypeUrl::CLUSTER, "d");
    assert_eq!(f.serving(), "default/http r c c");
    f.give(cluster("d"));
    f.give(endpoints("d", "10.0.0.2"));
    assert_eq!(f.serving(), "default/http r d d");
}

/// That another host's rule names what does not exist is no reason to take it from this one.
#[test]
fn each_virtual_host_waits_for_what_is_new_to_it() {
    let hosts = |this: &str, other: &str| {
        let yaml = format!(
            "
name: r
virtual_hosts:
- {{name: this, domains: [this], routes: [{{match: {{prefix: /}}, route: {{cluster: {this}}}}}]}}
- {{name: other, domains: [other], routes: [{{match: {{prefix: /}}, route: {{cluster: {other}}}}}]}}
"
        );
        raw(&TypeUrl::ROUTE, "r", &yaml, "1")
    };
    let mut f = Fixture::warm();
    f.give(hosts("c", "nosuch"));
    f.take(&TypeUrl::CLUSTER, "nosuch");
    assert!(f.state.routes.is_settled(), "nothing served for the other");
    f.give(hosts("nosuch", "nosuch"));
    assert!(!f.state.routes.is_settled());
    f.wait(PATIENCE);
    assert!(f.state.routes.is_settled());
}

/// A proxy of one workload has all clusters before its routes: one that has not come does not exist yet.
#[test]
fn a_proxy_that_subscribes_to_all_clusters_waits_as_well() {
    let mode = Mode::Wildcard {
        listeners: true,
        clusters: true,
        names: false,
    };
    let mut f = Fixture::new(mode);
    f.give(cluster("c"));
    f.give(endpoints("c", "10.0.0.1"));
    f.give(listener("http", "r"));
    f.give(route("r", "c"));
    f.give(route("r", "d"));
    assert_eq!(f.serving(), "http r c c");
    assert!(f.state.routes.get("r").unwrap().warming.is_some());
    f.give(cluster("d"));
    f.give(endpoints("d", "10.0.0.2"));
    assert!(f.state.routes.is_settled());
}

#[test]
fn a_refused_version_leaves_the_last_good_one_and_the_rest_applies() {
    let mut f = Fixture::warm();
    let bad = raw(&TypeUrl::CLUSTER, "c", "name: c\ntype: EDS", "2");
    let good = cluster("other");
    let rejected = f.state.update(&TypeUrl::CLUSTER, &[bad, good], &[], f.now);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].name, "c");
    assert!(
        rejected[0].message.contains("eds_cluster_config"),
        "{}",
        rejected[0]
    );
    assert!(
        f.state.clusters.get("other").is_some(),
        "the good one is taken"
    );
    f.settle();
    assert_eq!(f.serving(), "default/http r c c");
    let entry = f.state.clusters.get("c").unwrap();
    assert_eq!(entry.serving.as_ref().unwrap().version, "1");
    assert_eq!(entry.rejected.as_ref().unwrap().version, "2");
    f.give(cluster("c"));
    let entry = f.state.clusters.get("c").unwrap();
    assert!(entry.rejected.is_none(), "a good version clears the error");
}

#[test]
fn a_removed_cluster_serves_until_nothing_refers_to_it() {
    let mut f = Fixture::warm();
    f.take(&TypeUrl::CLUSTER, "c");
    f.take(&TypeUrl::ENDPOINT, "c");
    assert_eq!(f.serving(), "default/http r c c");
    f.give(route("r", "d"));
    f.give(cluster("d"));
    assert_eq!(f.serving(), "default/http r c c");
    f.give(endpoints("d", "10.0.0.2"));
    assert_eq!(f.serving(), "default/http r d d");
}

#[test]
fn a_removed_cluster_that_stays_referred_to_goes_in_the_end() {
    let mut f = Fixture::warm();
    f.take(&TypeUrl::CLUSTER, "c");
    f.wait(WARMING_TIMEOUT);
    assert_eq!(f.serving(), "default/http r  ");
}

/// A pod's first connection may come at any time. It has to wait for the listener that stands for
/// its destination, not go where nothing stands for it.
#[test]
fn what_takes_all_other_connections_comes_after_the_listeners_it_came_with() {
    let mut f = Fixture::node();
    let yaml = "
name: default/virtualOutbound
address: {socket_address: {address: 0.0.0.0, port_value: 15001}}
use_original_dst: true
default_filter_chain:
  filters:
  - name: t
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: t
      cluster: c
";
    let rest = raw(&TypeUrl::LISTENER, "default/virtualOutbound", yaml, "1");
    let resources = [rest, listener("default/http", "r")];
    let rejected = f.state.update(&TypeUrl::LISTENER, &resources, &[], f.now);
    assert!(rejected.is_empty(), "{rejected:?}");
    f.settle();
    assert_eq!(f.serving(), "   ");
    f.give(route("r", "c"));
    f.give(cluster("c"));
    assert_eq!(f.serving(), "   ");
    f.give(endpoints("c", "10.0.0.1"));
    assert_eq!(f.serving(), "default/http,default/virtualOutbound r c c");
    // A listener that comes later holds back nothing that serves.
    f.give(listener("default/late", "s"));
    assert_eq!(f.serving(), "default/http,default/virtualOutbound r c c");
}

#[test]
fn a_removed_listener_goes_at_once_and_takes_its_references_along() {
    let mut f = Fixture::warm();
    f.take(&TypeUrl::LISTENER, "default/http");
    assert_eq!(f.serving(), "   ");
    assert!(f.last.wanted.clusters.is_empty());
}

/// Pilot hears of a pod's end before the agent does, and other nodes later still.
#[test]
fn the_way_into_a_pod_serves_until_the_pod_is_gone_from_the_node() {
    let mut f = Fixture::node();
    let yaml = "
name: pod/default/a
address: {socket_address: {address: 0.0.0.0, port_value: 15006}}
traffic_direction: INBOUND
default_filter_chain:
  filters:
  - name: t
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: t
      cluster: inbound
";
    f.give(raw(&TypeUrl::LISTENER, "pod/default/a", yaml, "1"));
    f.give(cluster("inbound"));
    f.give(endpoints("inbound", "10.0.0.1"));
    assert_eq!(f.serving(), "pod/default/a  inbound inbound");
    f.take(&TypeUrl::LISTENER, "pod/default/a");
    f.take(&TypeUrl::CLUSTER, "inbound");
    f.wait(WARMING_TIMEOUT * 2);
    assert_eq!(f.serving(), "pod/default/a  inbound inbound");
    // Another pod of its name takes its place.
    let next = yaml.replace("inbound\n", "next\n");
    f.give(raw(&TypeUrl::LISTENER, "pod/default/a", &next, "2"));
    f.give(cluster("next"));
    f.give(endpoints("next", "10.0.0.2"));
    assert_eq!(f.serving(), "pod/default/a  next next");
    f.take(&TypeUrl::LISTENER, "pod/default/a");
    f.local(&[("default", "b")]);
    assert_eq!(f.serving(), "   ");
}

#[test]
fn the_same_content_again_changes_nothing() {
    let mut f = Fixture::warm();
    f.give(cluster("c"));
    assert!(!f.last.changed);
    f.give(endpoints("c", "10.0.0.1"));
    assert!(!f.last.changed);
    f.give(endpoints("c", "10.0.0.9"));
    assert!(f.last.changed);
}

#[test]
fn a_proxy_of_one_workload_asks_for_everything_at_once() {
    let mut f = Fixture::new(Mode::Wildcard {
        listeners: true,
        clusters: true,
        names: true,
    });
    assert_eq!(f.last.wanted.listeners, terms(["*"]));
    assert_eq!(f.last.wanted.clusters, terms(["*"]));
    f.give(cluster("c"));
    f.give(cluster("unused"));
    assert_eq!(f.last.wanted.endpoints, terms(["c", "unused"]));
    f.give(endpoints("c", "10.0.0.1"));
    f.give(endpoints("unused", "10.0.0.2"));
    f.give(listener("0.0.0.0_9080", "r"));
    assert!(!f.state.is_complete());
    f.give(route("r", "nosuch"));
    assert_eq!(f.serving(), "0.0.0.0_9080 r c,unused c,unused");
    assert!(f.state.is_complete());
}

#[test]
fn a_node_is_complete_when_every_term_is_answered_and_warm() {
    let mut f = Fixture::new(Mode::Node);
    assert!(!f.state.is_complete(), "the pods are not known");
    f.local(&[("default", "a")]);
    assert!(!f.state.is_complete());
    f.take(&TypeUrl::LISTENER, "pod/default/a");
    f.take(&TypeUrl::LISTENER, "default/*");
    assert!(f.state.is_complete());
    f.local(&[]);
    assert!(f.state.is_complete());
}

#[test]
fn what_was_saved_serves_at_once_and_until_the_pods_are_known() {
    let f = Fixture::warm();
    let saved = f.state.saved();
    assert_eq!(saved.len(), 4);
    let mut f = Fixture::new(Mode::Node);
    assert!(f.state.restore(&saved, f.now).is_empty());
    f.settle();
    assert_eq!(f.serving(), "default/http r c c");
    f.local(&[("other", "b")]);
    assert_eq!(f.serving(), "   ");
}

#[test]
fn names_are_taken_under_any_name() {
    let mut f = Fixture::node();
    let yaml = "table: {a.default.svc.cluster.local: {ips: [10.0.0.1]}}";
    let names = raw_names(yaml);
    let rejected = f.state.update(&TypeUrl::NAME_TABLE, &[names], &[], f.now);
    assert!(rejected.is_empty(), "{rejected:?}");
    f.settle();
    assert_eq!(f.state.resources().names.len(), 1);
}

/// The name table is no message of Envoy's, so it is packed as it is.
fn raw_names(yaml: &str) -> RawResource {
    use millrace_xds::proto::{NameTable, nds::NameInfo, pack};
    let value: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
    let table = value["table"].as_object().unwrap().iter();
    let table = table.map(|(name, info)| {
        let ips = info["ips"].as_array().unwrap().iter();
        let info = NameInfo {
            ips: ips.map(|ip| ip.as_str().unwrap().to_owned()).collect(),
            ..NameInfo::default()
        };
        (name.clone(), info)
    });
    let table = NameTable {
        table: table.collect(),
    };
    RawResource {
        name: "whatever".into(),
        version: "1".into(),
        body: pack(&table),
    }
}
