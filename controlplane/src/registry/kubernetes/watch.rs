//! One watch, kept alive: what the API server says becomes updates, a failure becomes a problem and a wait.
//!
//! Input: a stream that lists, watches, resumes and lists again when the API server has forgotten (410); output:
//! updates to the registry's reader. The wait after failures doubles, with jitter, so that a hundred pilots do not
//! come back at once.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use kube::runtime::watcher::{Error, Event};
use millrace_runtime::backoff::Backoff;
use tokio::sync::mpsc;

use crate::kube::document::{Contents, Sourced};
use crate::model::names::ObjectName;
use crate::model::problem::{Finding, Problem};
use crate::model::validate::Validated;
use crate::model::{Kind, Object, ObjectId};

/// The first wait after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A watch that fails says so within a connect timeout; one that is silent for longer stands.
const STANDS: Duration = Duration::from_secs(8);

/// What a watch is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// The names of definitions of custom resources.
    Definitions,
    /// Objects of a kind.
    Objects(Kind),
}

impl What {
    /// The kind's name.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Definitions => "CustomResourceDefinition",
            Self::Objects(kind) => kind.as_str(),
        }
    }
}

/// Something a watch has to say.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) what: What,
    pub(super) change: Change,
}

/// What is different.
#[derive(Debug)]
pub(super) enum Change {
    /// These are all there are.
    Replaced(Vec<Entry>),
    /// One is new or different.
    Applied(Box<Entry>),
    /// One is gone.
    Deleted(ObjectName),
    /// Nothing more is known until the watch stands again.
    Broken(String),
    /// It stands.
    Stands,
}

/// One object as it was read.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its name.
    pub(super) name: ObjectName,
    /// The object, if it can be used.
    pub(super) object: Option<Sourced>,
    /// What is wrong with it.
    pub(super) problems: Vec<Problem>,
}

impl Entry {
    /// Something of which only the name counts.
    pub(super) fn name_only(name: ObjectName) -> Self {
        Self {
            name,
            object: None,
            problems: Vec::new(),
        }
    }

    /// A converted object.
    pub(super) fn judged(kind: Kind, name: ObjectName, validated: Validated<Object>) -> Self {
        let id = ObjectId {
            kind,
            name: name.clone(),
        };
        let located = |finding: Finding| Problem {
            severity: finding.severity,
            reason: finding.reason,
            file: None,
            line: None,
            object: Some(id.to_string()),
            field: finding.field,
            message: finding.message,
        };
        Self {
            name,
            object: validated.object.map(|object| Sourced {
                object,
                origin: None,
            }),
            problems: validated.findings.into_iter().map(located).collect(),
        }
    }

    /// An object that was read as a document.
    pub(super) fn read(name: ObjectName, contents: Contents) -> Self {
        Self {
            name,
            object: contents.objects.into_iter().next(),
            problems: contents.problems,
        }
    }
}

/// A watch at work.
#[derive(Debug)]
pub(super) struct Watch {
    what: What,
    updates: mpsc::Sender<Update>,
    backoff: Backoff,
    broken: bool,
}

impl Watch {
    pub(super) fn new(what: What, updates: mpsc::Sender<Update>) -> Self {
        let backoff = Backoff::new(BACKOFF.0, BACKOFF.1).with_jitter();
        Self {
            what,
            updates,
            backoff,
            broken: false,
        }
    }

    /// Drives watches of what is always there, one after the other.
    pub(super) async fn drive_on<T, S>(
        mut self,
        start: impl Fn() -> S + Send,
        read: impl Fn(T) -> Entry + Send,
    ) where
        S: Stream<Item = Result<Event<T>, Error>> + Send,
    {
        loop {
            self.drive(start(), &read).await;
        }
    }

    /// Drives a watch until the API server does not know the resource, or where the watch stood, any more.
    pub(super) async fn drive<T>(
        &mut self,
        stream: impl Stream<Item = Result<Event<T>, Error>> + Send,
        read: &impl Fn(T) -> Entry,
    ) {
        let mut stream = std::pin::pin!(stream);
        let mut listed = Vec::new();
        while self.step(&mut stream, read, &mut listed).await == Step::Next {}
    }

    /// One event of the stream.
    async fn step<T>(
        &mut self,
        stream: &mut (impl Stream<Item = Result<Event<T>, Error>> + Unpin),
        read: &impl Fn(T) -> Entry,
        listed: &mut Vec<Entry>,
    ) -> Step {
        let event = if self.broken {
            let Ok(event) = tokio::time::timeout(STANDS, stream.next()).await else {
                self.stands().await;
                return Step::Next;
            };
            event
        } else {
            stream.next().await
        };
        match event {
            // Listing begins before anything was asked: it proves nothing yet.
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(object))) => listed.push(read(object)),
            Some(Ok(Event::InitDone)) => {
                self.stands().await;
                self.tell(Change::Replaced(std::mem::take(listed))).await;
            }
            Some(Ok(Event::Apply(object))) => {
                self.stands().await;
                self.tell(Change::Applied(Box::new(read(object)))).await;
            }
            Some(Ok(Event::Delete(object))) => {
                self.stands().await;
                self.tell(Change::Deleted(read(object).name)).await;
            }
            Some(Err(error)) => {
                let over = is_over(&error);
                self.broken(describe(&error)).await;
                if over {
                    return Step::Over;
                }
            }
            None => return Step::Over,
        }
        Step::Next
    }

    /// Says that nothing is broken any more.
    pub(super) async fn stands(&mut self) {
        self.backoff.reset();
        if std::mem::take(&mut self.broken) {
            tracing::info!(kind = self.what.as_str(), "the watch stands again");
            self.tell(Change::Stands).await;
        }
    }

    /// Says that the watch is broken, and waits before the next try.
    pub(super) async fn broken(&mut self, message: String) {
        self.broken = true;
        tracing::debug!(kind = self.what.as_str(), message, "the watch is broken");
        self.tell(Change::Broken(message)).await;
        let wait = self.backoff.next_delay().unwrap_or(BACKOFF.1);
        tokio::time::sleep(wait).await;
    }

    /// Tells the reader; where that has ended, the registry has, and this task with it.
    pub(super) async fn tell(&self, change: Change) {
        let update = Update {
            what: self.what,
            change,
        };
        if self.updates.send(update).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Next,
    Over,
}

/// Whether a watch cannot be taken up where it stood: its resource (404) or its place in history (410) is gone. A 410 that
/// comes as an event makes the stream list again by itself.
fn is_over(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status)) => [404, 410].contains(&status.code),
        _ => false,
    }
}

/// An error with its causes: the outermost alone says little more than that there is one. What the API server answered
/// is said in its own words.
pub(super) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            return status.message.clone();
        }
        let own = error.to_string();
        if text.is_empty() {
            text = own;
        } else if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        next = error.source();
    }
    text
}
