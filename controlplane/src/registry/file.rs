//! The file registry: a directory of ordinary Kubernetes YAML, watched.
//!
//! Input: files and the system's word that they changed; output: objects, gone objects and problems.
//! [`catalog`] decides what a file's new contents mean, [`pending`] when a file is worth reading, and
//! [`scan`] finds what there is; this file only moves bytes between them.

pub(crate) mod catalog;
mod pending;
mod scan;

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::catalog::Catalog;
use self::pending::{Due, Pending};
use self::scan::Scanner;
use super::{Registry, RegistryError, RegistryEvent, Running, Sink};
use crate::kube::document;
use crate::model::problem::{Problem, Reason, Severity};

const NAME: &str = "file";
/// Files are looked at this often without being told, in case the system's word was lost.
const SWEEP: Duration = Duration::from_secs(10);
/// And this often while the system cannot tell.
const POLL: Duration = Duration::from_secs(1);
const EVERYTHING: Due = Due {
    paths: std::collections::BTreeSet::new(),
    all: true,
};
/// Events that wait for the reader. Where more come they are dropped by nobody: the watcher waits.
const EVENTS: usize = 256;

/// The registry.
#[derive(Debug)]
pub struct FileRegistry {
    directory: PathBuf,
    domain: String,
}

impl FileRegistry {
    /// A registry of this directory, for a mesh of this domain.
    pub fn new(directory: PathBuf, domain: &str) -> Self {
        Self {
            directory,
            domain: domain.to_owned(),
        }
    }
}

impl Registry for FileRegistry {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(self: Box<Self>, sink: Sink, stop: CancellationToken) -> Running {
        Box::pin(async move {
            // The real path, since that is what the system names in its events.
            let directory =
                self.directory
                    .canonicalize()
                    .map_err(|source| RegistryError::Unreadable {
                        name: NAME,
                        path: self.directory.clone(),
                        source,
                    })?;
            let mut reader = Reader::new(directory, self.domain, sink);
            reader.run(&stop).await
        })
    }
}

/// The registry at work.
struct Reader {
    directory: PathBuf,
    domain: String,
    scanner: Scanner,
    catalog: Catalog,
    pending: Pending,
    problems: Vec<Problem>,
    sink: Sink,
}

impl Reader {
    fn new(directory: PathBuf, domain: String, sink: Sink) -> Self {
        let scanner = Scanner::new(directory.clone());
        let (catalog, pending, problems) = (Catalog::default(), Pending::default(), Vec::new());
        Self {
            directory,
            domain,
            scanner,
            catalog,
            pending,
            problems,
            sink,
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<(), RegistryError> {
        let (events, mut received) = mpsc::channel(EVENTS);
        let mut watcher = watch(&self.directory, &events);
        self.sweep(&EVERYTHING).await?;
        self.send(RegistryEvent::Synced).await?;
        let mut swept = Instant::now();
        loop {
            let next = swept + if watcher.is_some() { SWEEP } else { POLL };
            let wake = self.pending.deadline().map_or(next, |due| due.min(next));
            // biased: a stop before work, and events before the clock, so that a burst is one read.
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(event) = received.recv() => self.record(event),
                () = tokio::time::sleep_until(wake) => {
                    let mut due = self.pending.take(Instant::now());
                    due.all |= next <= Instant::now();
                    if watcher.is_none() || !self.scanner.is_same_directory() {
                        // A directory that was replaced needs a watch of its own.
                        watcher = watch(&self.directory, &events);
                        due.all = true;
                    }
                    self.sweep(&due).await?;
                    if due.all {
                        swept = Instant::now();
                    }
                }
            }
        }
    }

    fn record(&mut self, event: notify::Result<notify::Event>) {
        match event {
            Ok(event) => self.pending.record(&event, Instant::now()),
            Err(error) => {
                tracing::warn!(%error, "the configuration directory cannot be watched without gaps, looking at all of it");
                self.pending.rescan(Instant::now());
            }
        }
    }

    /// Reads what is new, different or due, and tells the writer what that means.
    async fn sweep(&mut self, due: &Due) -> Result<(), RegistryError> {
        let scan = match self.scanner.scan(due, self.pending.open()) {
            Ok(scan) => scan,
            Err(error) => {
                let problem = Problem {
                    severity: Severity::Error,
                    reason: Reason::Unreadable,
                    file: Some(".".to_owned()),
                    line: None,
                    object: None,
                    field: String::new(),
                    message: format!(
                        "the configuration directory cannot be read, so nothing changes: {error}"
                    ),
                };
                let problems = [vec![problem], self.catalog.problems()].concat();
                return self.report(problems).await;
            }
        };
        let mut changes = catalog::Changes::default();
        for name in &scan.gone {
            changes.merge(self.catalog.remove(name));
        }
        for (name, text) in scan.read {
            let contents = match text {
                Ok(text) => document::read(&name, &text, &self.domain),
                Err(error) => unreadable(&name, &error.to_string()),
            };
            changes.merge(self.catalog.put(&name, contents));
        }
        if !changes.is_empty() {
            let (applied, deleted) = changes.into_parts();
            self.send(RegistryEvent::Changed { applied, deleted })
                .await?;
        }
        let problems = self.catalog.problems();
        self.report(problems).await
    }

    async fn report(&mut self, problems: Vec<Problem>) -> Result<(), RegistryError> {
        if problems == self.problems {
            return Ok(());
        }
        self.problems.clone_from(&problems);
        self.send(RegistryEvent::Problems(problems)).await
    }

    async fn send(&self, event: RegistryEvent) -> Result<(), RegistryError> {
        self.sink
            .send(event)
            .await
            .map_err(|_| RegistryError::Closed { name: NAME })
    }
}

/// Contents of a file that nothing is known of, so that all its objects keep their last good version.
fn unreadable(file: &str, message: &str) -> document::Contents {
    document::Contents {
        unidentified: true,
        problems: vec![Problem {
            severity: Severity::Error,
            reason: Reason::Unreadable,
            file: Some(file.to_owned()),
            line: None,
            object: None,
            field: String::new(),
            message: format!("cannot be read: {message}"),
        }],
        ..document::Contents::default()
    }
}

fn watch(
    directory: &Path,
    events: &mpsc::Sender<notify::Result<notify::Event>>,
) -> Option<RecommendedWatcher> {
    let events = events.clone();
    // Runs on the watcher's own thread, which may wait.
    let handler = move |event| drop(events.blocking_send(event));
    let started = notify::recommended_watcher(handler).and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    match started {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, directory = %directory.display(), "cannot watch, looking every second instead");
            None
        }
    }
}

#[cfg(test)]
mod tests;
