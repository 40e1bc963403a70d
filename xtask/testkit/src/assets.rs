//! Where the servers of a Kubernetes control plane are: `KUBEBUILDER_ASSETS`, as envtest has it, else what
//! `cargo xtask setup` built into the cache.
//!
//! Input: the environment and the pinned tools module; output: a directory with `etcd`, `kube-apiserver`, `kubectl` and
//! `kube-controller-manager`. Asked by the setup, which fills it, and by whoever runs them.

use std::path::{Path, PathBuf};

/// The variable that names a directory of one's own.
pub const VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// The tools module whose versions are built.
pub const GO_MOD: &str = include_str!("../../kubernetes/go.mod");

/// What the directory must hold: the other programs only a mesh on Kubernetes asks for.
const SERVERS: [&str; 2] = ["etcd", "kube-apiserver"];

/// The directory that the environment names, if it does.
pub fn named() -> Option<PathBuf> {
    let named = std::env::var_os(VARIABLE).filter(|dir| !dir.is_empty())?;
    Some(PathBuf::from(named))
}

/// Where what is built is kept: by version, outside of any target directory.
pub fn built(cache: &Path) -> PathBuf {
    let version = version_of("k8s.io/kubernetes").unwrap_or("unknown");
    cache.join(format!("kubernetes-{version}"))
}

/// A directory that has the servers.
pub fn find() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty());
    let cache = cache.map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".cache"))
    });
    let dir = named().or_else(|| Some(built(&cache?.join("millrace"))))?;
    complete(&dir).then_some(dir)
}

/// Whether a directory has all servers.
pub fn complete(dir: &Path) -> bool {
    SERVERS.iter().all(|name| dir.join(name).is_file())
}

/// The version of a module that the tools module requires, without its `v`.
pub fn version_of(module: &str) -> Option<&'static str> {
    GO_MOD.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(module))
            .then(|| words.next())??
            .strip_prefix('v')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_staging_module_is_on_the_servers_own_patch() {
        let kubernetes = version_of("k8s.io/kubernetes").expect("a version of Kubernetes");
        let staging = kubernetes.replacen("1.", "v0.", 1);
        let replaced = GO_MOD.lines().filter(|line| line.contains("=>"));
        assert!(replaced.clone().count() > 20);
        for line in replaced {
            assert!(line.ends_with(&staging), "{line}");
        }
        assert!(version_of("go.etcd.io/etcd/server/v3").is_some());
        assert!(version_of("example.com/none").is_none());
    }
}
