use std::process::Command;

use millrace_runtime::handoff::{CaptureMode, OnCaptureLoss, PodSpec};
use millrace_testkit::{Cluster, Node, Pod as Host, require};

use super::*;

const NONE: [usize; 0] = [];

/// Pods that a broker has adopted, captured by programs and guarded.
struct Scene {
    hub: Hub,
    pods: Vec<Host>,
    _node: Node,
    _cluster: Cluster,
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        let cluster = Cluster::new()?;
        let node = cluster.node("n1")?;
        let scene = Self {
            hub: Hub::new(2),
            pods: (0..3)
                .map(|at| node.pod(&format!("p{at}")))
                .collect::<Result<_, _>>()?,
            _node: node,
            _cluster: cluster,
        };
        for pod in &scene.pods {
            let spec: PodSpec = serde_json::from_value(serde_json::json!({
                "uid": pod.uid(),
                "name": pod.options().name,
                "namespace": "default",
                "ips": [pod.ip()],
                "netns": pod.netns().path(),
            }))?;
            let uid = spec.uid.clone();
            scene.hub.adopt(spec).await?;
            let (mode, on_loss) = (CaptureMode::Ebpf, OnCaptureLoss::Closed);
            scene.hub.capture(&uid, mode, on_loss, None).await?;
        }
        Ok(scene)
    }

    fn uid(&self, at: usize) -> PodUid {
        PodUid(self.pods[at].uid().to_owned())
    }

    /// Which pods are asked by themselves.
    fn asked(&self) -> Vec<usize> {
        let found = rest_to_look_at(&self.hub.state.lock(), None);
        let number = |(uid, _)| (0..self.pods.len()).find(|at| self.uid(*at) == uid);
        found.into_iter().filter_map(number).collect()
    }

    fn run(&self, at: usize, command: &[&str]) -> anyhow::Result<()> {
        let mut program = Command::new(command[0]);
        program.args(&command[1..]);
        self.pods[at].stdout(program).map(drop)
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_asked_only_when_something_stirs_in_it() -> anyhow::Result<()> {
    require!(cluster);
    require!(tool "nft");
    let scene = Scene::new().await?;
    // Not even once: what was written was read in passing.
    assert_eq!(scene.asked(), NONE);

    scene.run(1, &["nft", "add", "table", "inet", "other"])?;
    assert_eq!(scene.asked(), [1]);
    assert_eq!(scene.hub.inspect(None).await.0, []);
    assert_eq!(scene.asked(), NONE);

    let add = "ip link add later type veth peer name end";
    scene.run(2, &add.split(' ').collect::<Vec<_>>())?;
    assert_eq!(scene.asked(), [2]);
    let remove = "ip link del later";
    scene.run(2, &remove.split(' ').collect::<Vec<_>>())?;
    assert_eq!(scene.hub.inspect(None).await.0, []);
    assert_eq!(scene.asked(), NONE);

    tokio::time::advance(READ_UNCOUNTED).await;
    assert_eq!(scene.asked(), [0, 1, 2], "legacy tables change in silence");
    assert_eq!(scene.hub.inspect(None).await.0, []);
    assert_eq!(scene.asked(), NONE);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_is_broken_is_found_in_the_one_call_that_asks_all() -> anyhow::Result<()> {
    require!(cluster);
    require!(tool "nft");
    let scene = Scene::new().await?;
    {
        let state = scene.hub.state.lock();
        let pod = &state.pods[&scene.uid(0)];
        let mut streams = pod.listeners.iter().filter(|l| !l.label.role.is_datagram());
        streams.next().expect("there").shut_down();
    }
    assert_eq!(scene.asked(), [0]);
    let insert = "nft insert rule inet millrace_guard leaving accept";
    scene.run(1, &insert.split(' ').collect::<Vec<_>>())?;
    let (found, _) = scene.hub.inspect(None).await;
    let causes: Vec<_> = found
        .iter()
        .map(|pod| (pod.uid.clone(), pod.broken[0].cause, pod.broken.len()))
        .collect();
    let (listener, guard) = (Cause::Listener, Cause::Guard);
    assert_eq!(
        causes,
        [(scene.uid(0), listener, 1), (scene.uid(1), guard, 1)]
    );
    // It is said again, and the guard read again, until it is as it was.
    assert_eq!(scene.asked(), [0, 1]);
    Ok(())
}
