//! The file of mesh settings: read at the start, where it must be right, and again when it changes,
//! where a wrong one leaves the last good one in force.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::kube::mesh_config;
use crate::model::mesh::MeshConfig;
use crate::model::problem::{Problem, Reason, Severity};
use crate::push::writer::Input;

/// One small file, looked at this often: a watch on its directory would see everything else too.
const INTERVAL: Duration = Duration::from_millis(500);

/// Inode, length and time of the last change.
type Stamp = (u64, u64, i64, i64);

pub(super) struct MeshFile {
    path: PathBuf,
    domain: String,
    stamp: Option<Stamp>,
    problems: Vec<Problem>,
}

impl MeshFile {
    pub(super) fn new(path: PathBuf, domain: &str) -> Self {
        Self {
            path,
            domain: domain.to_owned(),
            stamp: None,
            problems: Vec::new(),
        }
    }

    pub(super) fn read_at_start(&mut self) -> anyhow::Result<MeshConfig> {
        let name = self.path.display().to_string();
        self.stamp = self.look();
        let text =
            std::fs::read_to_string(&self.path).with_context(|| format!("reading {name}"))?;
        let (mesh, problems) = mesh_config::read(&name, &text, &self.domain);
        let Some(mesh) = mesh else {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            bail!("the mesh settings are wrong:\n{}", lines.join("\n"));
        };
        self.problems = problems;
        Ok(mesh)
    }

    pub(super) async fn watch(mut self, inputs: mpsc::Sender<Input>, stop: CancellationToken) {
        let first = Input::Mesh(None, std::mem::take(&mut self.problems));
        if inputs.send(first).await.is_err() {
            return;
        }
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            // biased: a stop must not wait for a tick.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let stamp = self.look();
            if stamp == self.stamp {
                continue;
            }
            self.stamp = stamp;
            let (mesh, problems) = self.read();
            if inputs.send(Input::Mesh(mesh, problems)).await.is_err() {
                return;
            }
        }
    }

    fn read(&self) -> (Option<MeshConfig>, Vec<Problem>) {
        let name = self.path.display().to_string();
        match std::fs::read_to_string(&self.path) {
            Ok(text) => mesh_config::read(&name, &text, &self.domain),
            Err(error) => {
                let problem = Problem {
                    severity: Severity::Error,
                    reason: Reason::Unreadable,
                    file: Some(name),
                    line: None,
                    object: None,
                    field: String::new(),
                    message: format!("cannot be read, so the settings stay as they were: {error}"),
                };
                (None, vec![problem])
            }
        }
    }

    fn look(&self) -> Option<Stamp> {
        let metadata = std::fs::metadata(&self.path).ok()?;
        Some((
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        ))
    }
}
