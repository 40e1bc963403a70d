//! Programs and rules of others: named with their place, never removed, and no matter in which order they came, the
//! proxy learns what the application asked for.
//!
//! The stand-ins rewrite addresses where those of a CNI do: Cilium's socket load balancer
//! (`cil_sock4_connect` and its kind at connect, sendmsg, recvmsg and getpeername of both families) and Calico's
//! connect-time load balancer (`calico_connect_v4`, `calico_connect_v46` and their kind, without getpeername).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]

#[path = "support/scene.rs"]
mod scene;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use agent::{AgentNode, PATIENCE, wait};
use attach::Program;
use http::Method;
use millrace_agent::bpf::Order;
use millrace_agent::integrity::ForeignStatus;
use millrace_testkit::{Pod, require};
use scene::{Scene, agent, attach, support};

const NO_CANARIES: &str = "0";
/// Addresses of a service, which nobody has.
const SERVICE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10)),
];
const PORT: u16 = 9080;
const DNS: u16 = 53;
const NAME: &str = "cil_sock4_conne";
const BACKEND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 97, 0, 7)), 8080);

/// A hook of a load balancer: Cilium's and Calico's name for the program as far as the kernel keeps it, its number
/// in `enum bpf_attach_type`, its name, which family it is for and whether it translates what comes back.
struct Hook {
    cilium: &'static str,
    calico: Option<&'static str>,
    number: u32,
    name: &'static str,
    family: usize,
    back: bool,
}

const fn hook(
    (cilium, calico): (&'static str, Option<&'static str>),
    (number, name): (u32, &'static str),
    family: usize,
    back: bool,
) -> Hook {
    Hook {
        cilium,
        calico,
        number,
        name,
        family,
        back,
    }
}

const HOOKS: [Hook; 8] = [
    hook((NAME, Some("calico_connect_")), (10, "connect4"), 0, false),
    hook(
        ("cil_sock6_conne", Some("calico_connect_")),
        (11, "connect6"),
        1,
        false,
    ),
    hook(
        ("cil_sock4_sendm", Some("calico_sendmsg_")),
        (14, "sendmsg4"),
        0,
        false,
    ),
    hook(
        ("cil_sock6_sendm", Some("calico_sendmsg_")),
        (15, "sendmsg6"),
        1,
        false,
    ),
    hook(
        ("cil_sock4_recvm", Some("calico_recvmsg_")),
        (19, "recvmsg4"),
        0,
        true,
    ),
    hook(
        ("cil_sock6_recvm", Some("calico_recvmsg_")),
        (20, "recvmsg6"),
        1,
        true,
    ),
    hook(("cil_sock4_getpe", None), (29, "getpeername4"), 0, true),
    hook(("cil_sock6_getpe", None), (30, "getpeername6"), 1, true),
];

impl Hook {
    /// The program that leads the service's addresses to a backend's, or shows them instead of those.
    fn program(&self, name: &str, backend: [SocketAddr; 2]) -> Program {
        let (service, backend) = (SERVICE[self.family], backend[self.family]);
        if self.back {
            let shown = SocketAddr::new(service, backend.port());
            attach::translator(name, self.number, backend.ip(), shown)
        } else {
            attach::translator(name, self.number, service, backend)
        }
    }
}

fn balancer() -> Program {
    attach::translator(NAME, HOOKS[0].number, SERVICE[0], BACKEND)
}

fn service() -> SocketAddr {
    SocketAddr::new(SERVICE[0], PORT)
}

/// Waits until a stand-in is reported in this order.
fn reported(node: &AgentNode, name: &str, hook: &str, at: &Path, order: Order) -> ForeignStatus {
    let at = at.display().to_string();
    let found = wait(async || {
        // Sooner than the watch would look by itself.
        let refreshed = node.ask(Method::POST, "/refresh", "").await;
        assert_eq!(refreshed.expect("refreshed").status, 200);
        let status = node.status().await.ok_or("no status")?;
        let foreign = status.integrity.foreign;
        let wanted = |program: &&ForeignStatus| {
            (&*program.name, &*program.hook, &*program.at) == (name, hook, &*at)
                && program.order == order
        };
        let found = foreign.iter().find(wanted).cloned();
        found.ok_or_else(|| format!("{name} {hook} {order:?}: {foreign:?}"))
    });
    found.unwrap_or_else(|error| panic!("{error}\n{}", node.log("agent")))
}

/// The address that an answer to a question shows, asked by a socket that is not connected.
fn answered_by(pod: &Pod, server: SocketAddr) -> SocketAddr {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = pod.udp(SocketAddr::new(any, 0)).expect("socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    socket.send_to(b"question", server).expect("sent");
    let mut bytes = [0; 64];
    let (length, from) = socket.recv_from(&mut bytes).expect("an answer");
    assert_eq!(&bytes[..length], b"question");
    from
}

/// Whether this kernel lets a link say that it comes first.
fn kernel_orders(node: &AgentNode) -> bool {
    attach::attach(&balancer(), node.node.cgroup_root(), attach::FIRST).is_ok()
}

macro_rules! node {
    () => {
        node!("ebpf")
    };
    ($mode:expr) => {{
        if !millrace_testkit::skip::is_root() {
            return millrace_testkit::skip::skip("network namespaces need root");
        }
        scene::node($mode, &[])
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_there_before_is_overtaken_and_named() {
    let node = node!();
    let root = node.node.cgroup_root().to_owned();
    let orders = kernel_orders(&node);
    let _theirs = attach::attach(&balancer(), &root, 0).expect("attached");
    let mut scene = Scene::start(node, NO_CANARIES).await;
    let (order, to) = if orders {
        (Order::After, service())
    } else {
        (Order::Before, BACKEND)
    };
    let found = reported(&scene.node, NAME, "connect4", &root, order);
    assert_eq!(scene.asked_for(service()).await, to);

    let metrics = scene.metrics().await;
    let line = format!(
        "millrace_node_foreign_program{{hook=\"connect4\",program=\"{NAME}\",id=\"{}\"",
        found.id
    );
    assert!(metrics.contains(&line), "{metrics}");
    let probe = scene.node.ask(Method::GET, "/probe", "").await.unwrap();
    assert!(probe.text().contains(NAME), "{}", probe.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_comes_later_above_beside_or_below_runs_after_ours() {
    let node = node!();
    let root = node.node.cgroup_root().to_owned();
    let orders = kernel_orders(&node);
    let mut scene = Scene::start(node, NO_CANARIES).await;
    let own = scene.node.pod.cgroup_dir().to_owned();
    for (at, below) in [
        (root.parent().unwrap(), false),
        (root.as_path(), false),
        (own.as_path(), true),
    ] {
        let _theirs = attach::attach(&balancer(), at, 0).expect("attached");
        let (order, to) = if below && !orders {
            (Order::Before, BACKEND)
        } else {
            (Order::After, service())
        };
        reported(&scene.node, NAME, "connect4", at, order);
        let asked = scene.asked_for(service()).await;
        assert_eq!(asked, to, "attached at {}", at.display());
    }
}

/// A whole load balancer, as Cilium attaches it: what is not captured is balanced by it, what is captured is not,
/// and sees nothing of the two translations that it passes.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_balancer_works_for_others_and_captured_pods_see_nothing_of_it() {
    let node = node!();
    let root = node.node.cgroup_root().to_owned();
    let plain = node.node.pod("plain").expect("pod");
    let backend = node.node.pod("backend").expect("pod");
    let at = |port| [backend.ip(), backend.ip6()].map(|ip| SocketAddr::new(ip, port));
    let mut scene = Scene::start(node, NO_CANARIES).await;
    let mut links = Vec::new();
    for hook in &HOOKS {
        let program = hook.program(hook.cilium, at(DNS));
        links.push(attach::attach(&program, &root, 0).expect("attached"));
        reported(&scene.node, hook.cilium, hook.name, &root, Order::After);
    }
    for (family, service) in SERVICE.into_iter().enumerate() {
        let server = SocketAddr::new(service, DNS);
        let listener = backend.listen(at(DNS)[family]).expect("listener");
        let balanced = plain.connect(server).expect("balanced");
        listener.accept().expect("arrived");
        assert_eq!(
            balanced.peer_addr().unwrap(),
            server,
            "getpeername shows the service"
        );
        let resolver = backend.udp(at(DNS)[family]).expect("socket");
        let echo = std::thread::spawn(move || {
            let mut bytes = [0; 64];
            let (length, from) = resolver.recv_from(&mut bytes).expect("a question");
            resolver.send_to(&bytes[..length], from).expect("answered");
        });
        assert_eq!(
            answered_by(&plain, server),
            server,
            "recvmsg shows the service"
        );
        echo.join().expect("it asked the backend");

        let service = SocketAddr::new(service, PORT);
        assert_eq!(scene.asked_for(service).await, service);
        assert_eq!(answered_by(&scene.node.pod, server), server);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_pushes_in_is_overtaken_once_and_reported_if_it_insists() {
    let node = node!();
    let root = node.node.cgroup_root().to_owned();
    if !kernel_orders(&node) {
        return millrace_testkit::skip::not_applicable("cgroup-link-order", "EINVAL");
    }
    let mut scene = Scene::start(node, NO_CANARIES).await;
    let program = balancer();
    let first = attach::attach(&program, &root, attach::FIRST).expect("attached");
    // As long as it is first the proxy is told its backend, and that is what the order is about.
    let asked = scene.asked_for(service()).await;
    assert!([service(), BACKEND].contains(&asked));
    reported(&scene.node, NAME, "connect4", &root, Order::After);
    assert_eq!(scene.asked_for(service()).await, service());

    let _again = attach::attach(&program, &root, attach::FIRST).expect("attached");
    drop(first);
    reported(&scene.node, NAME, "connect4", &root, Order::Before);
    assert_eq!(scene.asked_for(service()).await, BACKEND);
}

/// As Calico attaches it, at every hook that it has one for; and what an order is about at each.
#[tokio::test(flavor = "multi_thread")]
async fn at_every_hook_one_that_insists_on_being_first_is_reported() {
    let node = node!();
    let root = node.node.cgroup_root().to_owned();
    if !kernel_orders(&node) {
        return millrace_testkit::skip::not_applicable("cgroup-link-order", "EINVAL");
    }
    let other = [
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 97, 0, 7)), DNS),
        "[fd00:97::7]:53".parse().unwrap(),
    ];
    let mut scene = Scene::start(node, NO_CANARIES).await;
    let mut links = Vec::new();
    for hook in &HOOKS {
        let Some(name) = hook.calico else { continue };
        let program = hook.program(name, other);
        let first = attach::attach(&program, &root, attach::FIRST).expect("attached");
        reported(&scene.node, name, hook.name, &root, Order::After);
        links.push(attach::attach(&program, &root, attach::FIRST).expect("attached"));
        drop(first);
        reported(&scene.node, name, hook.name, &root, Order::Before);
        assert!(
            program.company(&root) >= 2,
            "{}: ours and theirs",
            hook.name
        );
    }
    for (family, service) in SERVICE.into_iter().enumerate() {
        let asked = SocketAddr::new(service, PORT);
        let _client = scene.node.pod.connect(asked).expect("captured");
        assert_eq!(scene.proxy.next().await.to, other[family]);
        // The question was theirs before it was ours, and the answer is not theirs again.
        let server = SocketAddr::new(service, DNS);
        assert_eq!(answered_by(&scene.node.pod, server), other[family]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_chooses_sockets_in_a_pod_is_named_with_its_place_and_stays() {
    let node = node!();
    let netns = node.pod.netns().path();
    let (early, late) = (
        attach::chooser("early_chooser"),
        attach::chooser("late_chooser"),
    );
    let _early = attach::attach(&early, &netns, 0).expect("attached");
    let scene = Scene::start(node, NO_CANARIES).await;
    let _late = attach::attach(&late, &netns, 0).expect("attached");
    let named = |name: &str, order: &str| {
        let end = format!("({name}) runs {order} Millrace's");
        move |line: &String| line.starts_with("sk_lookup program ") && line.ends_with(&end)
    };
    let before = named("early_chooser", "before");
    let after = named("late_chooser", "after");
    scene
        .node
        .until("both are named", |pod| {
            let foreign = &pod.integrity.foreign;
            foreign.iter().any(&before) && foreign.iter().any(&after)
        })
        .await;
    assert_eq!(late.company(&netns), 3);
    for mode in ["iptables", "ebpf", "none"] {
        scene.node.switch(mode).await;
        scene
            .node
            .until("switched", |pod| pod.capture.to_string() == mode)
            .await;
        assert_eq!(
            late.company(&netns),
            2 + u64::from(mode == "ebpf"),
            "{mode}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_others_in_a_pod_are_named_with_their_tool_and_stay() {
    let node = node!("iptables");
    require!(tool "iptables-legacy");
    require!(tool "iptables-nft");
    let theirs = |tool: &str, arguments: &str| {
        let mut command = Command::new(tool);
        command.args(arguments.split(' '));
        node.pod.stdout(command)
    };
    if let Err(error) = theirs("iptables-legacy", "-t nat -S OUTPUT") {
        return millrace_testkit::skip::not_applicable("iptables-legacy", &error.to_string());
    }
    let balanced =
        "-t nat -A OUTPUT -d 10.96.0.99/32 -p tcp -j DNAT --to-destination 10.97.0.7:8080";
    let refused =
        "-t filter -A INPUT -p tcp -m multiport --dports 80,15006 -s 192.0.2.7/32 -j DROP";
    let untracked = "-t raw -A OUTPUT -d 10.96.0.99/32 -j CT --notrack";
    let rules = [balanced, refused, untracked];
    for rule in rules {
        theirs("iptables-legacy", rule).expect("written");
    }
    theirs("iptables-nft", &balanced.replace("0.99", "0.98")).expect("written");

    let list = |tool: &str, table: &str| {
        let mut command = Command::new(tool);
        command.args(["-t", table, "-S"]);
        node.pod.stdout(command).expect("listed")
    };
    let remain = || {
        for (tool, table, word) in [
            ("iptables-legacy", "nat", "10.96.0.99/32"),
            ("iptables-legacy", "filter", "80,15006"),
            ("iptables-legacy", "raw", "--notrack"),
            ("iptables-nft", "nat", "10.96.0.98/32"),
        ] {
            let listed = list(tool, table);
            assert!(listed.contains(word), "{tool} -t {table}: {listed}");
        }
    };
    remain();
    let broker = node.broker();
    let agent = node.agent(&[]);
    let proxy =
        scene::answering::Answering::start(&node.node.run_dir().join("proxy.sock"), 0).await;
    for mode in ["iptables", "ebpf"] {
        node.switch(mode).await;
        let named = |words: &[&str], lines: &[String]| {
            let all = |line: &&String| words.iter().all(|word| line.contains(word));
            lines.iter().any(|line| all(&line))
        };
        let wanted: [&[&str]; 4] = [
            &[
                "iptables-legacy -t nat",
                "10.96.0.99/32",
                "DNAT",
                "from OUTPUT",
            ],
            &[
                "iptables-legacy -t filter",
                "80,15006",
                "DROP",
                "from INPUT",
            ],
            &["iptables-legacy -t raw", "--notrack", "from OUTPUT"],
            &[
                "iptables-nft -t nat",
                "10.96.0.98/32",
                "DNAT",
                "from OUTPUT",
            ],
        ];
        node.until("all are named", |pod| {
            let lines = &pod.integrity.foreign;
            pod.healthy
                && pod.capture.to_string() == mode
                && wanted.iter().all(|words| named(words, lines))
        })
        .await;
        remain();
    }
    node.switch("none").await;
    node.until("let go", |pod| pod.capture.to_string() == "none")
        .await;
    remain();
    drop((proxy, agent, broker));
}
