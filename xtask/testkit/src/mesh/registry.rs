//! Where pilot reads objects and tests write them: a directory of YAML, or a Kubernetes API server.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;

use super::kubernetes::ControlPlane;
use crate::node::Node;

#[derive(Debug)]
pub(super) enum Registry {
    /// A directory that pilot watches.
    Directory(PathBuf),
    /// A control plane, and the kubeconfig by which pilot reads it.
    Kubernetes {
        plane: Box<ControlPlane>,
        kubeconfig: PathBuf,
    },
}

impl Registry {
    /// What pilot is to be told of it.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        match self {
            Self::Directory(path) => vec!["--config-dir".into(), path.into()],
            Self::Kubernetes { kubeconfig, .. } => vec![
                "--registries".into(),
                "kubernetes".into(),
                "--kubeconfig".into(),
                kubeconfig.into(),
            ],
        }
    }

    /// Makes the objects of `yaml` be there under a name, and what was there under it before go.
    pub(super) fn apply(&self, name: &str, yaml: &str) -> anyhow::Result<()> {
        match self {
            Self::Directory(dir) => {
                let (path, nascent) = (dir.join(name), dir.join(format!(".{name}.new")));
                fs::write(&nascent, yaml)
                    .with_context(|| format!("writing {}", nascent.display()))?;
                fs::rename(&nascent, &path).with_context(|| format!("writing {}", path.display()))
            }
            Self::Kubernetes { plane, .. } => plane.apply(name, yaml),
        }
    }

    /// Takes away what is there under a name.
    pub(super) fn remove(&self, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
            }
            Self::Kubernetes { plane, .. } => plane.remove(name),
        }
    }

    /// Makes a node known where nodes are.
    pub(super) fn register(&self, node: &Node) -> anyhow::Result<()> {
        match self {
            Self::Directory(_) => Ok(()),
            Self::Kubernetes { plane, .. } => plane.register(node),
        }
    }
}
