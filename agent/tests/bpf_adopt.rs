//! The programs outlive the agent: adoption, replacement and clean-up, under load.

#![allow(clippy::expect_used, reason = "what a test needs must be there")]

#[path = "support/bpf.rs"]
mod bpf;

use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use bpf::{Captured, Fixture, PATIENCE, accept, addr, config, listen, node, original_dst};
use millrace_agent::bpf::{Bpf, BpfConfig, CapturePolicy, Counter, PodEnrolment, Replace, probe};
use millrace_testkit::eventually;

const SERVICE: &str = "10.96.0.10:9080";

#[test]
fn programs_and_pods_are_adopted() {
    let mut fixture = node!();
    assert_eq!(fixture.bpf().adoption().attached, 12);
    let app = fixture.captured("app", CapturePolicy::default());
    let before = fixture.bpf().enrolled().expect("listed");
    fixture.kill_agent();
    let _captured = app
        .pod
        .connect(addr(SERVICE))
        .expect("captured without an agent");
    accept(&app.outbound4);

    let bpf = fixture.restart_agent(Replace::Changed);
    let adoption = bpf.adoption();
    assert_eq!(
        (adoption.attached, adoption.replaced, adoption.pods),
        (0, 0, 1)
    );
    assert_eq!(bpf.enrolled().expect("listed"), before);
    assert_eq!(
        fixture.count(Counter::ConnectRedirected),
        1,
        "counters go on"
    );
}

#[test]
fn a_pod_that_is_enrolled_already_has_no_policy_written() {
    let mut fixture = node!();
    let excluding = |ports: &[u16]| CapturePolicy {
        exclude_outbound_ports: ports.to_vec(),
        ..CapturePolicy::default()
    };
    let app = fixture.captured("app", excluding(&[]));
    let set = |fixture: &mut Fixture| {
        let enrolled = fixture.bpf().enrolled().expect("listed");
        enrolled.first().expect("enrolled").policy.rule_set
    };
    let before = set(&mut fixture);
    fixture.restart_agent(Replace::Changed);
    fixture.enroll(&app, excluding(&[]));
    assert_eq!(set(&mut fixture), before);
    fixture.enroll(&app, excluding(&[3306]));
    let ruled = set(&mut fixture);
    assert!(ruled > before);
    // Which rules are in the map is not known of a policy that has some.
    fixture.restart_agent(Replace::Changed);
    fixture.enroll(&app, excluding(&[3306]));
    assert!(set(&mut fixture) > ruled);
    let _captured = app.pod.connect(addr(SERVICE)).expect("captured");
    accept(&app.outbound4);
}

#[test]
fn no_connection_is_lost_while_agents_come_and_go() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let other = fixture.pod("other");
    let stop = AtomicBool::new(false);
    let (outbound, inbound) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let (stop, outbound, inbound, app, other) = (&stop, &outbound, &inbound, &app, &other);
        scope.spawn(move || {
            load(
                stop,
                outbound,
                &app.outbound4,
                |to| app.pod.connect(to),
                addr(SERVICE),
            );
        });
        let target = app.pod.at(9080);
        scope.spawn(move || {
            load(
                stop,
                inbound,
                &app.inbound[0],
                |to| other.connect(to),
                target,
            );
        });
        for replace in [
            Replace::Changed,
            Replace::Always,
            Replace::Always,
            Replace::Changed,
            Replace::Always,
        ] {
            let seen = outbound.load(Ordering::Relaxed) + inbound.load(Ordering::Relaxed);
            fixture.kill_agent();
            let replaced = fixture.restart_agent(replace).adoption().replaced;
            assert_eq!(replaced, if replace == Replace::Always { 13 } else { 0 });
            eventually(PATIENCE, "connections go on", || {
                outbound.load(Ordering::Relaxed) + inbound.load(Ordering::Relaxed) > seen + 100
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (outbound, inbound) = (outbound.into_inner(), inbound.into_inner());
    assert_eq!(fixture.count(Counter::ConnectRedirected), outbound);
    assert_eq!(fixture.count(Counter::SockopsAdopted), outbound);
    assert_eq!(fixture.count(Counter::LookupSteered), inbound);
    let occupancy = fixture.bpf().occupancy().expect("counted");
    for map in occupancy
        .iter()
        .filter(|map| ["ORIG_DSTS", "ANNOUNCED"].contains(&map.map))
    {
        assert_eq!(map.used, 0, "{map:?}");
    }
}

/// Connects without a pause; every single connection must reach the listener with its destination.
fn load(
    stop: &AtomicBool,
    done: &AtomicU64,
    listener: &TcpListener,
    connect: impl Fn(SocketAddr) -> anyhow::Result<std::net::TcpStream>,
    to: SocketAddr,
) {
    while !stop.load(Ordering::Relaxed) {
        let client = connect(to).expect("captured");
        let (mut proxy, _) = accept(listener);
        assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(to));
        drop(client);
        proxy.read_to_end(&mut Vec::new()).expect("closed");
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn connections_survive_another_program_version() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let client = app.pod.connect(addr(SERVICE)).expect("captured");
    let (proxy, _) = accept(&app.outbound4);
    fixture.kill_agent();
    fixture.restart_agent(Replace::Always);

    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE)));
    assert_eq!(client.peer_addr().expect("getpeername"), addr(SERVICE));
}

#[test]
fn vanished_pods_leave_nothing_after_a_sweep() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let cookie = app.cookie;
    let pin = fixture.node.bpffs_dir().join(format!("v2/lookup/{cookie}"));
    assert!(pin.exists());
    drop(app);
    fixture.bpf().withdraw(cookie).expect("withdrawn");

    assert!(!pin.exists());
    assert!(fixture.bpf().enrolled().expect("listed").is_empty());
    assert!(fixture.bpf().traffic().expect("listed").is_empty());
}

#[test]
fn link_of_a_dead_namespace_is_dropped_by_the_next_agent() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let pin = fixture
        .node
        .bpffs_dir()
        .join(format!("v2/lookup/{}", app.cookie));
    fixture.kill_agent();
    drop(app);
    eventually(PATIENCE, "the namespace is gone", || {
        fixture.restart_agent(Replace::Changed);
        !pin.exists()
    });
}

#[test]
fn detaching_ends_all_capture_and_removes_every_pin() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    let server = fixture.pod("server");
    let (outside, inside) = (
        listen(&server, "0.0.0.0:9080"),
        listen(&app.pod, "0.0.0.0:9080"),
    );
    fixture.kill_agent();
    Bpf::clean(&fixture.node.bpffs_dir()).expect("cleaned");

    app.pod.connect(server.at(9080)).expect("direct");
    accept(&outside);
    server.connect(app.pod.at(9080)).expect("direct");
    accept(&inside);
    assert!(!fixture.node.bpffs_dir().join("v2").exists());
    Bpf::clean(&fixture.node.bpffs_dir()).expect("twice is fine");
}

#[test]
fn programs_move_to_another_cgroup() {
    let mut fixture = node!();
    let app = fixture.captured("app", CapturePolicy::default());
    fixture.kill_agent();
    // As if the agent had been told a narrower directory: the pod is below it, the node is not.
    let narrower = BpfConfig {
        cgroup: app.pod.cgroup_dir().to_owned(),
        ..config(&fixture.node)
    };
    let bpf = Bpf::load_or_adopt(&narrower).expect("attached there");
    assert_eq!(bpf.adoption().attached, 12);
    let _client = app.pod.connect(addr(SERVICE)).expect("captured");
    let (proxy, _) = accept(&app.outbound4);
    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE)));
    drop(bpf);
    fixture.restart_agent(Replace::Changed);
}

#[test]
fn other_abi_version_stays_in_charge_until_the_pods_are_enrolled() {
    let mut fixture = node!();
    fixture.kill_agent();
    // The pins of a version that this agent does not know, as far as it may look into them.
    let root = fixture.node.bpffs_dir();
    fs::rename(root.join("v2"), root.join("v9")).expect("renamed");
    let bpf = fixture.restart_agent(Replace::Changed);
    assert!(bpf.is_waiting());
    let app = fixture.captured("app", CapturePolicy::default());
    let server = fixture.pod("server");
    let listener = listen(&server, "0.0.0.0:9080");
    app.pod
        .connect(server.at(9080))
        .expect("direct: the other version knows no pod");
    accept(&listener);

    fixture.bpf().take_over().expect("took over");
    assert!(!fixture.bpf().is_waiting());
    app.pod.connect(server.at(9080)).expect("captured");
    accept(&app.outbound4);
    assert!(!root.join("v9").exists());
}

/// What lies in the directory of pins.
fn pinned(fixture: &Fixture) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(fixture.node.bpffs_dir()).expect("listed");
    let names = entries.map(|entry| entry.expect("read").file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn maps_of_another_layout_are_replaced_without_a_gap_and_connections_keep_what_is_known_of_them() {
    // As an older or a newer agent declares one map: of another size.
    let mut fixture = Fixture::with_max_entries(&[("TELEMETRY", 64)]);
    let before = pinned(&fixture);
    let app = fixture.captured("app", CapturePolicy::default());
    let client = app.pod.connect(addr(SERVICE)).expect("captured");
    let (proxy, _) = accept(&app.outbound4);
    fixture.kill_agent();
    fixture.forget_max_entries();
    assert!(fixture.restart_agent(Replace::Changed).is_waiting());
    app.pod.connect(addr(SERVICE)).expect("captured as before");
    accept(&app.outbound4);

    // An agent that dies now leaves the old programs in charge, and the next one goes on.
    fixture.kill_agent();
    assert!(fixture.restart_agent(Replace::Changed).is_waiting());
    fixture.enroll(&app, CapturePolicy::default());
    fixture.bpf().take_over().expect("took over");
    assert!(!fixture.bpf().is_waiting());
    app.pod.connect(addr(SERVICE)).expect("captured by the new");
    accept(&app.outbound4);
    assert_eq!(client.peer_addr().expect("getpeername"), addr(SERVICE));
    assert_eq!(original_dst(&proxy, libc::SOL_IP), Ok(addr(SERVICE)));
    assert_eq!(
        fixture.count(Counter::ConnectRedirected),
        3,
        "counters go on"
    );
    assert_eq!(pinned(&fixture), before, "the old pins are gone");
}

#[test]
fn three_capabilities_suffice() {
    use caps::{CapSet, Capability, CapsHashSet};

    let mut fixture = node!();
    fixture.kill_agent();
    let app = Captured::new(fixture.pod("app"));
    let needed: CapsHashSet = [
        Capability::CAP_BPF,
        Capability::CAP_NET_ADMIN,
        Capability::CAP_PERFMON,
    ]
    .into();
    thread::scope(|scope| {
        let agent = scope.spawn(|| {
            // Of this thread alone.
            for set in [CapSet::Effective, CapSet::Permitted] {
                caps::set(None, set, &needed).expect("capabilities are dropped");
            }
            assert_eq!(probe().ebpf(), Ok(()));
            fixture.restart_agent(Replace::Changed);
            fixture.enroll(&app, CapturePolicy::default());
            fixture.kill_agent();
            assert_eq!(fixture.restart_agent(Replace::Changed).adoption().kept, 12);
            fixture.kill_agent();
            let replaced = fixture.restart_agent(Replace::Always).adoption().replaced;
            assert_eq!(replaced, 13);
        });
        agent.join().expect("no more is needed");
    });
    let _client = app.pod.connect(addr(SERVICE)).expect("captured");
    accept(&app.outbound4);
}

#[test]
fn unusable_places_are_named() {
    let mut fixture = node!();
    let wrong = BpfConfig {
        cgroup: "/proc".into(),
        ..config(&fixture.node)
    };
    let error = Bpf::load_or_adopt(&wrong).err().expect("refused");
    assert_eq!(error.to_string(), "cgroup2 directory /proc cannot be used");
    let missing = BpfConfig {
        cgroup: "/no/such/directory".into(),
        ..config(&fixture.node)
    };
    let error = Bpf::load_or_adopt(&missing).err().expect("refused");
    assert_eq!(
        error.to_string(),
        "cgroup2 directory /no/such/directory cannot be used"
    );
    let cookie = config(&fixture.node).host_netns_cookie;
    let app = Captured::new(fixture.pod("app"));
    let host = PodEnrolment {
        netns_cookie: cookie,
        netns: app.pod.netns().file().as_fd(),
        ips: vec![app.pod.ip()],
        policy: CapturePolicy::default(),
        inbound_listeners: vec![app.inbound[0].as_fd()],
    };
    let error = fixture.bpf().enroll(&host).expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("host-network pods cannot be captured"),
        "{error}"
    );
}
