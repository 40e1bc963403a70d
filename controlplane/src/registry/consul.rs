//! The Consul registry: what an agent's catalog lists, by its documented HTTP API with blocking queries.
//!
//! Input: `/v1/catalog/services`, and `/v1/health/service/<name>` for each of them; output: a service `<name>.service.consul`
//! each, of its instances that no check calls critical. One question is always open per service: an agent answers it
//! when something is different. What is known keeps serving while the agent cannot be asked.

mod instances;
mod question;

use std::collections::{BTreeMap, BTreeSet};

use http::HeaderName;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use self::instances::Stated;
use self::question::Question;
use super::fetch::{self, Server};
use super::outside::Told;
use super::{Registry, RegistryError, Running, Sink};

const NAME: &str = "consul";
/// Updates that wait for the reader; questions wait when it is full.
const UPDATES: usize = 64;
/// What is asked about all services, among the names of services in problems.
const ALL: &str = "";

/// How the agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// `http://host:port`.
    pub address: String,
    /// A token of its access control lists.
    pub token: Option<String>,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            address: "http://127.0.0.1:8500".to_owned(),
            token: None,
        }
    }
}

/// The registry.
#[derive(Debug)]
pub struct ConsulRegistry {
    agent: Agent,
}

impl ConsulRegistry {
    /// The registry of the datacenter that this agent belongs to.
    pub fn new(agent: Agent) -> Self {
        Self { agent }
    }
}

/// What the answer to a question is.
#[derive(Debug)]
enum Update {
    /// The services that there are.
    Names(BTreeSet<String>),
    /// A service's instances.
    Service(String, Vec<Stated>),
    /// A question cannot be asked, or can again.
    Broken(String, Option<String>),
}

impl Registry for ConsulRegistry {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(self: Box<Self>, sink: Sink, stop: CancellationToken) -> Running {
        Box::pin(async move {
            let invalid = |error| RegistryError::Address {
                name: NAME,
                source: error,
            };
            let mut server = Server::new(&self.agent.address).map_err(invalid)?;
            if let Some(token) = &self.agent.token {
                let token = token
                    .parse()
                    .map_err(|_| RegistryError::Token { name: NAME })?;
                server = server.with_header(HeaderName::from_static("x-consul-token"), token);
            }
            let (updates, received) = mpsc::channel(UPDATES);
            let mut reader = Reader {
                server,
                updates,
                questions: JoinSet::new(),
                followed: BTreeMap::new(),
                unheard: None,
                told: Told::new(NAME),
                sink,
            };
            // biased: a stop before work.
            tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                ended = reader.run(received) => ended,
            }
        })
    }
}

/// The registry at work.
struct Reader {
    server: Server,
    updates: mpsc::Sender<Update>,
    /// Dropped, and so ended, with the reader.
    questions: JoinSet<()>,
    followed: BTreeMap<String, AbortHandle>,
    /// Services that there were at the start and of which nothing is known yet; none before the names are known.
    unheard: Option<BTreeSet<String>>,
    told: Told,
    sink: Sink,
}

impl Reader {
    async fn run(&mut self, mut received: mpsc::Receiver<Update>) -> Result<(), RegistryError> {
        self.questions
            .spawn(follow_names(self.server.clone(), self.updates.clone()));
        let mut synced = false;
        while let Some(update) = received.recv().await {
            let mut events = self.take(update);
            events.extend(self.told.problems());
            if !synced && self.unheard.as_ref().is_some_and(BTreeSet::is_empty) {
                synced = true;
                events.push(super::RegistryEvent::Synced);
            }
            for event in events {
                let sent = self.sink.send(event).await;
                sent.map_err(|_| RegistryError::Closed { name: NAME })?;
            }
        }
        Ok(())
    }

    fn take(&mut self, update: Update) -> Vec<super::RegistryEvent> {
        match update {
            Update::Names(names) => self.follow(names),
            // Of a service that has just gone an answer may be on its way.
            Update::Service(name, _) | Update::Broken(name, _)
                if name != ALL && !self.followed.contains_key(&name) =>
            {
                Vec::new()
            }
            Update::Service(name, stated) => {
                self.hear(&name);
                let listed = instances::listed(&name, &stated);
                self.told.put(&name, Some(listed)).into_iter().collect()
            }
            Update::Broken(what, message) => {
                self.told.set_broken(&what, message);
                Vec::new()
            }
        }
    }

    /// Asks about services that are new, and no longer about those that are gone.
    fn follow(&mut self, names: BTreeSet<String>) -> Vec<super::RegistryEvent> {
        let gone: Vec<String> = self
            .followed
            .keys()
            .filter(|name| !names.contains(*name))
            .cloned()
            .collect();
        let mut events = Vec::new();
        for name in gone {
            if let Some(question) = self.followed.remove(&name) {
                question.abort();
            }
            self.hear(&name);
            self.told.set_broken(&name, None);
            events.extend(self.told.put(&name, None));
        }
        // Questions that were ended are forgotten.
        while self.questions.try_join_next().is_some() {}
        if self.unheard.is_none() {
            self.unheard = Some(names.clone());
        }
        for name in names {
            if !self.followed.contains_key(&name) {
                let (server, updates) = (self.server.clone(), self.updates.clone());
                let question = follow_service(server, name.clone(), updates);
                let question = self.questions.spawn(question);
                self.followed.insert(name, question);
            }
        }
        events
    }

    fn hear(&mut self, name: &str) {
        if let Some(unheard) = &mut self.unheard {
            unheard.remove(name);
        }
    }
}

async fn follow_names(server: Server, updates: mpsc::Sender<Update>) {
    let mut question = Question::new(server, "/v1/catalog/services".to_owned());
    loop {
        let answer = question.next::<BTreeMap<String, Value>>().await;
        let names = answer.map(|services| Update::Names(services.into_keys().collect()));
        if !tell(&updates, ALL, names).await {
            return;
        }
    }
}

async fn follow_service(server: Server, name: String, updates: mpsc::Sender<Update>) {
    let path = format!("/v1/health/service/{}", fetch::segment(&name));
    let mut question = Question::new(server, path);
    loop {
        let answer = question.next::<Vec<Stated>>().await;
        let stated = answer.map(|stated| Update::Service(name.clone(), stated));
        if !tell(&updates, &name, stated).await {
            return;
        }
    }
}

/// Tells the reader an answer, or why there is none; false when the registry has ended.
async fn tell(updates: &mpsc::Sender<Update>, what: &str, answer: Result<Update, String>) -> bool {
    let (update, broken) = match answer {
        Ok(update) => (Some(update), None),
        Err(message) => (None, Some(message)),
    };
    let told = updates.send(Update::Broken(what.to_owned(), broken)).await;
    match update {
        Some(update) => told.is_ok() && updates.send(update).await.is_ok(),
        None => told.is_ok(),
    }
}

#[cfg(test)]
mod tests;
