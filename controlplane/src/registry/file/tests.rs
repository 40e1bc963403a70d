//! The registry over a real directory, by what it tells the writer.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::FileRegistry;
use crate::registry::{Registry as _, RegistryError, RegistryEvent};

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: 10.0.0.1\n  \
         ports: [{{port: {port}}}]\n"
    )
}

struct Watching {
    events: mpsc::Receiver<RegistryEvent>,
    stop: CancellationToken,
}

impl Watching {
    fn start(directory: &Path) -> Self {
        let (sink, events) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let registry = Box::new(FileRegistry::new(directory.to_owned(), "cluster.local"));
        tokio::spawn(registry.run(sink, stop.clone()));
        Self { events, stop }
    }

    async fn next(&mut self) -> RegistryEvent {
        let next = tokio::time::timeout(Duration::from_secs(20), self.events.recv());
        next.await.unwrap().unwrap()
    }

    /// Names of what was applied and deleted by the next change.
    async fn change(&mut self) -> (Vec<String>, Vec<String>) {
        loop {
            if let RegistryEvent::Changed { applied, deleted } = self.next().await {
                let applied = applied
                    .iter()
                    .map(|sourced| sourced.object.id().name.name.to_string());
                let deleted = deleted.iter().map(|id| id.name.name.to_string());
                return (applied.collect(), deleted.collect());
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn everything_there_is_comes_before_synced() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("below")).unwrap();
    fs::write(directory.path().join("a.yaml"), service("a", 1)).unwrap();
    fs::write(directory.path().join("below/b.yml"), service("b", 1)).unwrap();
    fs::write(directory.path().join(".c.yaml"), service("c", 1)).unwrap();
    fs::write(directory.path().join("notes.txt"), "not ours").unwrap();
    let mut watching = Watching::start(directory.path());
    assert_eq!(watching.change().await, (names(&["a", "b"]), names(&[])));
    assert_eq!(watching.next().await, RegistryEvent::Synced);
}

#[tokio::test]
async fn writes_renames_and_removals_are_seen() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let mut watching = Watching::start(directory.path());
    assert_eq!(watching.next().await, RegistryEvent::Synced);
    fs::write(file("a.yaml"), service("a", 1)).unwrap();
    assert_eq!(watching.change().await, (names(&["a"]), names(&[])));
    fs::write(file("a.yaml"), service("b", 1)).unwrap();
    assert_eq!(watching.change().await, (names(&["b"]), names(&["a"])));
    // The same length within the same tick of the clock looks the same from outside.
    fs::write(file("a.yaml"), service("b", 2)).unwrap();
    assert_eq!(watching.change().await, (names(&["b"]), names(&[])));
    fs::remove_file(file("a.yaml")).unwrap();
    assert_eq!(watching.change().await, (names(&[]), names(&["b"])));
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_when_its_links_are_swapped() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    for (version, port) in [("..1", 1), ("..2", 2)] {
        fs::create_dir(file(version)).unwrap();
        fs::write(file(version).join("a.yaml"), service("a", port)).unwrap();
    }
    std::os::unix::fs::symlink("..1", file("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", file("a.yaml")).unwrap();
    let mut watching = Watching::start(directory.path());
    assert_eq!(watching.change().await, (names(&["a"]), names(&[])));
    std::os::unix::fs::symlink("..2", file("..new")).unwrap();
    fs::rename(file("..new"), file("..data")).unwrap();
    assert_eq!(watching.change().await, (names(&["a"]), names(&[])));
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let registry = Box::new(FileRegistry::new(missing, "cluster.local"));
    let (sink, _events) = mpsc::channel(1);
    let failed = registry.run(sink, CancellationToken::new()).await;
    assert!(matches!(failed, Err(RegistryError::Unreadable { .. })));
}
