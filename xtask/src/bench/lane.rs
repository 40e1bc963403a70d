//! One path, ready to be measured: a client pod, a server pod, and what lies between.

use std::net::IpAddr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_testkit::{Cluster, Node, Pod, Process, until};

use super::Path;
use super::envoy::{self, Upstream};
use super::ports::{HTTP, HTTP2, TCP};
use super::setting::Setting;
use super::workload::Target;

/// The name that clients call.
const HOST: &str = "backend.default.svc.cluster.local";
/// The service's address: nobody has it, so a call only arrives if it was captured.
const SERVICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 100, 1));
const START: Duration = Duration::from_secs(20);

pub(super) struct Lane {
    pub(super) path: Path,
    client: Pod,
    address: IpAddr,
    mesh: Vec<Process>,
    scratch: PathBuf,
    _server: (Pod, Process),
}

impl Lane {
    pub(super) fn target(&self) -> Target<'_> {
        Target {
            client: &self.client,
            address: self.address,
            host: HOST,
        }
    }

    pub(super) fn scratch(&self) -> &FilePath {
        &self.scratch
    }

    /// The processes whose CPU time and memory are the mesh's.
    pub(super) fn mesh_pids(&self) -> Vec<u32> {
        self.mesh.iter().map(Process::pid).collect()
    }
}

pub(super) fn build(
    cluster: &Cluster,
    paths: &[Path],
    setting: &Setting,
    binaries: &FilePath,
) -> anyhow::Result<Vec<Lane>> {
    let builder = Builder {
        cluster,
        setting,
        binaries,
    };
    paths
        .iter()
        .map(|path| {
            let node = cluster.node(path.name())?;
            let lane = builder.lane(&node, *path);
            lane.with_context(|| format!("setting up {}", path.name()))
        })
        .collect()
}

struct Builder<'a> {
    cluster: &'a Cluster,
    setting: &'a Setting,
    binaries: &'a FilePath,
}

impl Builder<'_> {
    fn lane(&self, node: &Node, path: Path) -> anyhow::Result<Lane> {
        let client = node.pod("client")?;
        let server = node.pod("server")?;
        let backend = backend(&server)?;
        let mut mesh = Vec::new();
        let mut address = server.ip();
        if path == Path::EnvoySidecarIptables {
            let envoy = envoy::program(self.cluster)?;
            let upstream = Upstream {
                host: HOST,
                address: server.ip(),
            };
            mesh.push(envoy::start(
                &envoy,
                &client,
                Some(&upstream),
                self.setting,
            )?);
            mesh.push(envoy::start(&envoy, &server, None, self.setting)?);
            for pod in [&client, &server] {
                until(START, || {
                    pod.connect((std::net::Ipv4Addr::LOCALHOST, 15001).into())
                })?;
                self.redirect(pod)?;
            }
            address = SERVICE;
        }
        let scratch = client.log_dir().to_path_buf();
        let lane = Lane {
            path,
            client,
            address,
            mesh,
            scratch,
            _server: (server, backend),
        };
        lane.check()?;
        Ok(lane)
    }

    /// Writes the init container's rules into the pod.
    fn redirect(&self, pod: &Pod) -> anyhow::Result<()> {
        let mut init = Command::new(self.binaries.join("millrace-agent"));
        init.arg("init");
        pod.stdout(init).map(drop)
    }
}

impl Lane {
    /// One request, so that a lane that does not work is found before it is measured.
    fn check(&self) -> anyhow::Result<()> {
        let to = (self.address, HTTP).into();
        let authority = format!("{HOST}:{HTTP}");
        let answer = until(START, || {
            let answer = self.client.get(to, &authority, "/1k")?;
            ensure!(
                answer.status == 200,
                "status {}: {}",
                answer.status,
                answer.text()
            );
            Ok(answer)
        })?;
        ensure!(
            answer.body.len() == 1024,
            "a body of {} bytes",
            answer.body.len()
        );
        let mesh = self.path != Path::Direct;
        let through = answer
            .headers
            .first("x-envoy-upstream-service-time")
            .is_some();
        ensure!(
            mesh == through,
            "the call did not take this path: {:?}",
            answer.headers
        );
        Ok(())
    }
}

fn backend(pod: &Pod) -> anyhow::Result<Process> {
    let mut command = Command::new(super::generator()?);
    let at = |port: u16| format!("[::]:{port}");
    command.args([
        "backend",
        "--http",
        &at(HTTP),
        "--http2",
        &at(HTTP2),
        "--tcp",
        &at(TCP),
    ]);
    let process = pod.spawn("backend", command)?;
    until(START, || pod.connect(pod.at(TCP)))?;
    Ok(process)
}
