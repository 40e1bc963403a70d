use std::io::{self, Write as _};
use std::process::Command;
use std::time::Duration;

use millrace_testkit::{Cluster, Node, Pod, require};

use super::*;
use crate::broker::capture::Plan;
use crate::integrity::{Generations, Seen, look};
use millrace_runtime::handoff::OnCaptureLoss;

/// An answer that the guard refuses never comes.
const PATIENCE: Duration = Duration::from_secs(10);

struct Scene {
    pod: Pod,
    stranger: Pod,
    _node: Node,
    _cluster: Cluster,
}

impl Scene {
    fn new() -> anyhow::Result<Self> {
        let cluster = Cluster::new()?;
        let node = cluster.node("n1")?;
        Ok(Self {
            pod: node.pod("closed")?,
            stranger: node.pod("stranger")?,
            _node: node,
            _cluster: cluster,
        })
    }

    fn in_pod(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(program);
        command.args(arguments);
        self.pod.stdout(command)
    }
}

fn closed() -> Plan {
    let (mode, on_loss) = (CaptureMode::Ebpf, OnCaptureLoss::Closed);
    Plan::new(mode, on_loss, None, Vec::new(), false)
}

#[test]
fn a_guard_that_was_begun_and_not_finished_knows_what_came_in_before_it() -> anyhow::Result<()> {
    require!(cluster);
    require!(tool "nft");
    let scene = Scene::new()?;
    let server = scene.pod.listen(scene.pod.at(0))?;
    let mut client = scene.stranger.connect(server.local_addr()?)?;
    let (mut taken, _) = server.accept()?;
    // As far as an earlier broker got before it was killed.
    scene.pod.run(|| Ok(nft(&script::watching())?))?;
    scene.pod.run(|| Ok(closed().apply()?))?;
    taken.write_all(b"answer")?;
    client.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = [0; 6];
    io::Read::read_exact(&mut client, &mut bytes)?;

    // A whole one has judged everything, and is not begun anew.
    scene.pod.run(|| {
        assert!(nft(&script::watching()).is_err());
        Ok(())
    })?;
    let guard = scene.in_pod("nft", &["list", "table", "inet", TABLE])?;
    assert!(guard.contains("reject"), "{guard}");
    Ok(())
}

#[test]
fn a_device_that_comes_later_is_noticed_and_held() -> anyhow::Result<()> {
    require!(cluster);
    require!(tool "nft");
    let scene = Scene::new()?;
    let found = |then: Option<Seen>| {
        let looked = || Ok(look(&closed(), then.as_ref(), false));
        anyhow::Ok(scene.pod.run(looked)?.expect("no tool is needed"))
    };
    let generations = scene.pod.run(|| Ok(Generations::open()))?;
    let hold = scene.pod.run(|| Ok(closed().apply()?))?.detail;
    if hold.contains("not held") {
        return millrace_testkit::skip::not_applicable("netfilter-egress", &hold);
    }
    let before = found(None)?;
    assert_eq!(before.broken, []);
    let intact = generations.now();
    assert_eq!(generations.now(), intact);

    scene.in_pod(
        "ip",
        &[
            "link", "add", "later", "type", "veth", "peer", "name", "end",
        ],
    )?;
    assert_ne!(generations.now(), intact, "rules are read again");
    let broken = found(before.seen)?.broken;
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert!(broken[0].detail.contains("not held on"), "{broken:?}");

    scene.pod.run(|| Ok(closed().apply()?))?;
    assert_eq!(found(None)?.broken, []);
    let guard = scene.in_pod("nft", &["list", "table", "netdev", TABLE])?;
    assert!(guard.contains("later"), "{guard}");
    Ok(())
}
