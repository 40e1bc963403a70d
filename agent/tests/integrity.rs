//! Whatever ends capture behind Millrace's back is noticed, repaired, and shown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

#[path = "support/scene.rs"]
mod scene;

use http::Method;
use millrace_agent::integrity::Way;
use millrace_agent::status::PodStatus;
use millrace_runtime::handoff::{Cause, ListenerRole};
use scene::{Scene, agent, attach, support};

/// The proxy written by hand answers no canary's question.
const NO_DNS: (&str, &str) = ("traffic.sidecar.istio.io/excludeOutboundPorts", "53");

const WAYS: [Way; 4] = [Way::Outbound4, Way::Outbound6, Way::Inbound4, Way::Inbound6];
const PROGRAMS: [&str; 12] = [
    "millrace_create",
    "millrace_sockops",
    "millrace_getopt",
    "millrace_setopt",
    "millrace_peer4",
    "millrace_peer6",
    "millrace_recv4",
    "millrace_recv6",
    "millrace_send4",
    "millrace_send6",
    "millrace_connect4",
    "millrace_connect6",
];

macro_rules! scene {
    ($mode:expr, $canaries:expr) => {{
        if !millrace_testkit::skip::is_root() {
            return millrace_testkit::skip::skip("network namespaces need root");
        }
        Scene::start(scene::node($mode, &[NO_DNS]), $canaries).await
    }};
}

/// Long enough that only comparisons can notice anything.
const NO_CANARIES: &str = "0";

#[tokio::test(flavor = "multi_thread")]
async fn canaries_arrive_on_every_way_in_both_modes_and_nobody_else_sees_them() {
    let mut scene = scene!("ebpf", "1");
    for mode in ["ebpf", "iptables"] {
        scene.node.switch(mode).await;
        let status = scene
            .node
            .until("answered", |pod| {
                let ways = &pod.integrity.canary.ways;
                let answered = |way| ways.get(way).is_some_and(|status| status.ok == Some(true));
                pod.capture.to_string() == mode && WAYS.iter().all(answered)
            })
            .await;
        assert!(status.healthy, "{status:?}");
        assert!(
            !status.integrity.canary.ways.contains_key(&Way::Dns4),
            "a port that is excluded proves nothing: {status:?}"
        );
    }
    assert!(
        scene.proxy.arrived.try_recv().is_err(),
        "every connection was a canary"
    );
    let counters = scene.node.ask(Method::GET, "/counters", "").await.unwrap();
    let counters: serde_json::Value = serde_json::from_slice(&counters.body).unwrap();
    for traffic in counters["traffic"].as_array().unwrap() {
        assert_eq!(traffic["opened"], 0, "{traffic}");
    }
    let metrics = scene.metrics().await;
    for line in [
        "millrace_pod_capture_intact{namespace=\"default\",pod=\"app\"} 1",
        "millrace_pod_canary_failures_total{namespace=\"default\",pod=\"app\",way=\"outbound4\"} 0",
        "millrace_pod_canary_last_success_timestamp_seconds{namespace=\"default\",pod=\"app\"}",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_rules_come_back_whatever_tool_flushed_them() {
    let mut scene = scene!("iptables", NO_CANARIES);
    scene.in_pod("iptables", &["-t", "nat", "-F", "ISTIO_OUTPUT"]);
    let status = scene.repaired(Cause::Rules, 1).await;
    let detail = status.integrity.last_broken.unwrap().detail;
    assert!(detail.contains("-t nat -A ISTIO_OUTPUT"), "{detail}");

    scene.in_pod("nft", &["delete", "table", "ip", "nat"]);
    scene.repaired(Cause::Rules, 2).await;
    let metrics = scene.metrics().await;
    let line =
        "millrace_pod_capture_repaired_total{namespace=\"default\",pod=\"app\",cause=\"rules\"} 2";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_was_deleted_or_altered_is_put_back_in_both_modes() {
    let mut scene = scene!("ebpf", NO_CANARIES);
    for (mode, times) in [("ebpf", 0), ("iptables", 2)] {
        scene.node.switch(mode).await;
        scene.in_pod("nft", &["delete", "table", "inet", "millrace_guard"]);
        let status = scene.repaired(Cause::Guard, times + 1).await;
        let detail = status.integrity.last_broken.unwrap().detail;
        assert!(detail.contains("is gone"), "{detail}");
        let guard = scene.in_pod("nft", &["list", "table", "inet", "millrace_guard"]);
        assert!(guard.contains("reject"), "{guard}");

        scene.in_pod(
            "nft",
            &[
                "insert",
                "rule",
                "inet",
                "millrace_guard",
                "leaving",
                "accept",
            ],
        );
        let status = scene.repaired(Cause::Guard, times + 2).await;
        let detail = status.integrity.last_broken.unwrap().detail;
        assert!(detail.contains("was altered"), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn detached_programs_are_attached_again_each_of_them() {
    let mut scene = scene!("ebpf", NO_CANARIES);
    attach::detach(&scene.pin("links/millrace_connect4"));
    scene.repaired(Cause::Program, 1).await;
    for name in PROGRAMS {
        attach::detach(&scene.pin("links").join(name));
    }
    let status = scene.repaired(Cause::Program, 2).await;
    let node = scene.node.status().await.unwrap().integrity;
    let detail = node.last_broken.as_ref().unwrap().detail.clone();
    for name in PROGRAMS {
        assert!(detail.contains(name), "{name}: {detail}");
    }
    assert!(node.broken.is_empty(), "{node:?}");
    assert_eq!(node.repaired_total[&Cause::Program], 2);
    assert_eq!(status.integrity.broken, []);
    let metrics = scene.metrics().await;
    let line = "millrace_node_capture_broken_total{cause=\"program\"} 2";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_has_of_a_pod_is_written_anew() {
    let mut scene = scene!("ebpf", NO_CANARIES);
    let cookie = scene.node.pod_status().await.unwrap().netns_cookie.unwrap();
    attach::detach(&scene.pin("lookup").join(cookie.to_string()));
    let status = scene.repaired(Cause::Lookup, 1).await;
    let detail = status.integrity.last_broken.unwrap().detail;
    assert!(detail.contains("millrace_lookup"), "{detail}");

    attach::delete(&scene.pin("maps/POLICIES"), cookie);
    let status = scene.repaired(Cause::Enrolment, 1).await;
    let detail = status.integrity.last_broken.unwrap().detail;
    assert!(detail.contains("POLICIES"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_is_gone_is_made_anew_in_both_modes() {
    let mut scene = scene!("ebpf", NO_CANARIES);
    for (mode, times) in [("ebpf", 0), ("iptables", 2)] {
        scene.node.switch(mode).await;
        for (role, times) in [
            (ListenerRole::Outbound, times + 1),
            (ListenerRole::Inbound, times + 2),
        ] {
            assert!(scene.proxy.end(role) > 0);
            let status = scene
                .node
                .until("the listener is made anew", |pod| {
                    pod.integrity.repaired_total.get(&Cause::Listener) == Some(&times)
                        && pod.healthy
                })
                .await;
            let detail = status.integrity.last_broken.unwrap().detail;
            assert!(detail.contains(&role.port().to_string()), "{detail}");
            scene.captures().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_finds_what_no_comparison_can_and_the_foreign_rule_is_named() {
    let mut scene = scene!("ebpf", "1");
    for (mode, times, rule) in [
        ("ebpf", 1, "tcp dport 15001 drop"),
        ("iptables", 2, "ip daddr 192.0.2.15 drop"),
    ] {
        scene.node.switch(mode).await;
        let answered = |pod: &PodStatus| {
            let way = pod.integrity.canary.ways.get(&Way::Outbound4);
            pod.healthy
                && pod.capture.to_string() == mode
                && way.is_some_and(|way| way.ok == Some(true))
        };
        scene.node.until("answered", answered).await;
        let chain = "{ type filter hook output priority -500; }";
        for command in [
            "add table inet foreign".to_owned(),
            format!("add chain inet foreign out {chain}"),
            format!("add rule inet foreign out {rule}"),
            "add rule inet foreign out meta mark set 7".to_owned(),
        ] {
            scene.in_pod("nft", &[&command]);
        }
        let status = scene
            .node
            .until("noticed", |pod| {
                let problem = pod.problem.as_deref().unwrap_or_default();
                problem.contains("canary: outbound4") && !pod.integrity.foreign.is_empty()
            })
            .await;
        assert!(!status.healthy, "{status:?}");
        let named = status.integrity.foreign.join("\n");
        assert!(named.contains("table inet foreign, chain out"), "{named}");
        scene.in_pod("nft", &["delete", "table", "inet", "foreign"]);
        let status = scene.repaired(Cause::Canary, times).await;
        assert!(status.integrity.canary.ways[&Way::Outbound4].failures > 0);
    }
}
