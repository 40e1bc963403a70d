//! A proxy without a broker in a pod's network namespace, and the epochs that follow it there.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::MeshPod;
use crate::spawn::Process;
use crate::wait::until;

/// The user of a proxy, whose connections the rules leave alone.
const UID: u32 = 1337;
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
const START: Duration = Duration::from_secs(30);
/// How long an epoch may live that another one has taken over from.
const END: Duration = Duration::from_secs(90);

/// The newest epoch and those before it; all end when this is dropped.
#[derive(Debug)]
pub struct Epochs {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    number: u32,
    newest: Process,
    before: Vec<Process>,
}

impl Epochs {
    /// Starts epoch 0 of a proxy with its admin port at 127.0.0.1:15000, and waits until it is ready.
    pub fn start(
        pod: &MeshPod,
        name: &str,
        program: PathBuf,
        arguments: Vec<String>,
    ) -> anyhow::Result<Self> {
        let newest = launch(pod, name, &program, &arguments, 0)?;
        let mut epochs = Self {
            name: name.to_owned(),
            program,
            arguments,
            number: 0,
            newest,
            before: Vec::new(),
        };
        epochs.serves(pod)?;
        Ok(epochs)
    }

    /// Starts the next epoch beside the newest one, and waits until it serves in that one's place; its page
    /// about the hand-over.
    pub fn replace(&mut self, pod: &MeshPod) -> anyhow::Result<Value> {
        self.number += 1;
        let (program, arguments) = (&self.program, &self.arguments);
        let next = launch(pod, &self.name, program, arguments, self.number)?;
        self.before.push(std::mem::replace(&mut self.newest, next));
        self.serves(pod)
    }

    /// Waits until the newest epoch alone is asked at the admin port and is ready.
    fn serves(&mut self, pod: &MeshPod) -> anyhow::Result<Value> {
        until(START, || {
            self.newest.ensure_running()?;
            let ready = pod.get(ADMIN, "admin", "/ready")?;
            ensure!(ready.status == 200, "{}", ready.text().trim());
            let page = pod.get(ADMIN, "admin", "/handover")?.json()?;
            ensure!(page["pid"] == self.newest.pid(), "another answers: {page}");
            anyhow::Ok(page)
        })
        .with_context(|| {
            let log = self.newest.log();
            format!(
                "epoch {} of {} in {}:\n{log}",
                self.number,
                self.name,
                pod.name()
            )
        })
    }

    /// Waits until every epoch but the newest has ended by itself, as it should.
    pub fn ended(&mut self) -> anyhow::Result<()> {
        for epoch in &mut self.before {
            let status = epoch.wait(END)?;
            ensure!(status.success(), "{status}\n{}", epoch.log());
        }
        Ok(())
    }

    /// The newest epoch's process.
    pub fn newest(&mut self) -> &mut Process {
        &mut self.newest
    }
}

fn launch(
    pod: &MeshPod,
    name: &str,
    program: &PathBuf,
    arguments: &[String],
    epoch: u32,
) -> anyhow::Result<Process> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args(["--restart-epoch", &epoch.to_string()]);
    pod.launch(name, command)?.uid(UID).spawn()
}
