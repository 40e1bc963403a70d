use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use millrace_testkit::{Cluster, Node, Pod, require};

use super::*;

struct Scene {
    pod: Pod,
    _node: Node,
    _cluster: Cluster,
}

impl Scene {
    fn new() -> anyhow::Result<Self> {
        let cluster = Cluster::new()?;
        let node = cluster.node("n1")?;
        Ok(Self {
            pod: node.pod("pod")?,
            _node: node,
            _cluster: cluster,
        })
    }

    fn nft(&self, command: &str) -> anyhow::Result<String> {
        let mut nft = Command::new("nft");
        nft.arg(command);
        self.pod.stdout(nft)
    }

    fn read(&self) -> anyhow::Result<Ruleset> {
        self.pod.run(|| Ok(Ruleset::read()?))
    }
}

#[test]
fn what_packets_change_is_no_change_of_rules() -> anyhow::Result<()> {
    require!(cluster);
    require!(tool "nft");
    let scene = Scene::new()?;
    assert!(!scene.read()?.has_others);
    scene
        .nft("table inet other { chain out { type filter hook output priority 0; counter; }; }")?;
    let before = scene.read()?;
    assert!(before.has_others && before.table == Table::Gone);

    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    scene
        .pod
        .udp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?
        .send_to(b"counted", to)?;
    let listed = scene.nft("list table inet other")?;
    assert!(!listed.contains("packets 0"), "{listed}");
    assert_eq!(scene.read()?.whole, before.whole);

    scene.nft("add rule inet other out tcp dport { 80, 81 } accept")?;
    let more = scene.read()?;
    assert_ne!(more.whole, before.whole);
    // Only the elements of the set without a name differ.
    scene.nft("flush chain inet other out; add rule inet other out counter")?;
    assert_eq!(
        scene.read()?.whole,
        before.whole,
        "other rules, which say the same"
    );
    scene.nft("add rule inet other out tcp dport { 80, 15001 } accept")?;
    assert_ne!(scene.read()?.whole, more.whole);
    Ok(())
}

#[test]
fn the_guard_is_told_from_the_rest_and_from_what_it_remembers_for_a_while() -> anyhow::Result<()> {
    require!(cluster);
    require!(tool "nft");
    let scene = Scene::new()?;
    scene.nft(
        "table inet millrace_guard { \
         set steered { typeof meta nfproto; flags dynamic,timeout; timeout 10s; }; \
         set node4 { type ipv4_addr; }; \
         chain unheld { }; \
         chain leaving { type filter hook output priority 10; }; }",
    )?;
    let before = scene.read()?;
    assert_eq!(before.table, Table::Judges);
    assert!(before.says_unheld && !before.has_others);
    scene.nft("add element inet millrace_guard steered { ipv4 }")?;
    assert_eq!(scene.read()?.guard, before.guard);

    scene.nft("add table ip other")?;
    let beside = scene.read()?;
    assert!(beside.has_others && beside.guard == before.guard && beside.whole != before.whole);

    scene.nft("add element inet millrace_guard node4 { 10.0.0.1, 10.0.0.2 }")?;
    let more = scene.read()?;
    assert_ne!(more.guard, before.guard);
    scene.nft("delete element inet millrace_guard node4 { 10.0.0.1 }")?;
    assert_ne!(scene.read()?.guard, more.guard);
    scene.nft("add element inet millrace_guard node4 { 10.0.0.1 }")?;
    assert_eq!(scene.read()?.guard, more.guard);

    scene.nft("delete chain inet millrace_guard leaving")?;
    assert_eq!(scene.read()?.table, Table::Empty);
    scene.nft("delete table inet millrace_guard")?;
    assert_eq!(scene.read()?.table, Table::Gone);
    Ok(())
}

#[test]
fn half_a_message_is_an_error_and_half_an_attribute_is_none() {
    let mut message = vec![0_u8; 28];
    message[0] = 28;
    message[20..24].copy_from_slice(&[8, 0, 1, 0]);
    let mut found = Vec::new();
    assert!(!take_messages(&message, &mut found).unwrap());
    assert_eq!(found[0].attribute(TABLE), Some(&[0_u8; 4][..]));
    for cut in 1..message.len() {
        assert!(take_messages(&message[..cut], &mut found).is_err(), "{cut}");
    }
    assert_eq!(
        attributes(&[9, 0, 1, 0, 0, 0, 0, 0]).count(),
        0,
        "longer than there is"
    );
    assert_eq!(
        attributes(&[3, 0, 1, 0]).count(),
        0,
        "shorter than its head"
    );
    let refused = [
        20_u8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255,
    ];
    let error = take_messages(&refused, &mut found).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
}
