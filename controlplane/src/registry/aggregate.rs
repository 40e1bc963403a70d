//! Several registries as one: services and configuration from all of them, in the order in which they are named.
//!
//! Input: what each registry tells; output: one stream of the same. An object that several have is the first one's until
//! that one has it no longer; whatever says more about it (`EndpointSlices`, pods, `WorkloadEntries`) is of another name
//! and counts from all of them, so that one service has the endpoints of every registry. Built by
//! [`Registries::build`](super::Registries::build).

mod merge;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::merge::Merge;
use super::{Registry, RegistryError, RegistryEvent, Running, Sink};

const NAME: &str = "aggregate";
/// Events of one registry that wait; it waits when it is full.
const EVENTS: usize = 16;

/// The registries.
pub(super) struct AggregateRegistry {
    members: Vec<Box<dyn Registry>>,
}

impl AggregateRegistry {
    /// What these registries have, the first of them first.
    pub(super) fn new(members: Vec<Box<dyn Registry>>) -> Self {
        Self { members }
    }
}

impl Registry for AggregateRegistry {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(self: Box<Self>, sink: Sink, stop: CancellationToken) -> Running {
        Box::pin(async move {
            let names = self.members.iter().map(|member| member.name()).collect();
            let mut merge = Merge::new(names);
            let mut running = JoinSet::new();
            let (events, mut received) = mpsc::channel(EVENTS);
            for (index, member) in self.members.into_iter().enumerate() {
                let (own, from_member) = mpsc::channel(EVENTS);
                running.spawn(member.run(own, stop.clone()));
                running.spawn(forward(index, from_member, events.clone()));
            }
            loop {
                // biased: a stop before work; what a registry told before it failed is not needed any more.
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    ended = running.join_next() => match ended {
                        Some(Ok(Ok(()))) => {}
                        Some(Ok(Err(error))) => return Err(error),
                        Some(Err(error)) => return Err(RegistryError::WatchEnded {
                            name: NAME,
                            source: Some(error),
                        }),
                        None => return Ok(()),
                    },
                    Some((index, event)) = received.recv() => {
                        for event in merge.take(index, event) {
                            sink.send(event)
                                .await
                                .map_err(|_| RegistryError::Closed { name: NAME })?;
                        }
                    }
                }
            }
        })
    }
}

/// Passes a registry's events on with its place in the list.
async fn forward(
    index: usize,
    mut from: mpsc::Receiver<RegistryEvent>,
    to: mpsc::Sender<(usize, RegistryEvent)>,
) -> Result<(), RegistryError> {
    while let Some(event) = from.recv().await {
        to.send((index, event))
            .await
            .map_err(|_| RegistryError::Closed { name: NAME })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::file::FileRegistry;
    use crate::registry::mock::MockRegistry;

    #[tokio::test]
    async fn everything_of_all_is_told_before_synced() {
        let directory = tempfile::tempdir().unwrap();
        let account = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: mine}}";
        std::fs::write(directory.path().join("a.yaml"), account).unwrap();
        let members: Vec<Box<dyn Registry>> = vec![
            Box::new(MockRegistry::new("cluster.local")),
            Box::new(FileRegistry::new(
                directory.path().to_owned(),
                "cluster.local",
            )),
        ];
        let stop = CancellationToken::new();
        let (sink, mut events) = mpsc::channel(8);
        let running = Box::new(AggregateRegistry::new(members)).run(sink, stop.clone());
        let running = tokio::spawn(running);
        let mut told = Vec::new();
        loop {
            match events.recv().await.unwrap() {
                RegistryEvent::Changed { applied, .. } => told.extend(applied),
                RegistryEvent::Problems(problems) => assert_eq!(problems, []),
                RegistryEvent::Synced => break,
            }
        }
        let told: Vec<_> = told
            .iter()
            .map(|told| told.object.id().to_string())
            .collect();
        for wanted in ["Service default/hello", "ServiceAccount default/mine"] {
            assert!(told.iter().any(|told| told == wanted), "{wanted}: {told:?}");
        }
        stop.cancel();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_registry_that_fails_is_named() {
        let members: Vec<Box<dyn Registry>> = vec![
            Box::new(MockRegistry::new("cluster.local")),
            Box::new(FileRegistry::new("/nowhere/at/all".into(), "cluster.local")),
        ];
        let (sink, mut events) = mpsc::channel(8);
        let running = Box::new(AggregateRegistry::new(members)).run(sink, CancellationToken::new());
        let running = tokio::spawn(running);
        while events.recv().await.is_some() {}
        let error = running.await.unwrap().unwrap_err().to_string();
        assert!(error.starts_with("registry file: "), "{error}");
    }
}
