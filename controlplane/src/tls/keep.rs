//! Keeps the authorities where all replicas see them, and this process in a valid certificate.
//!
//! Input: a [`Store`], the names of the server, the time; output: [`Serving`] is given certificates and roots. Replicas
//! that want to make the first authority at once, or renew it at once, meet at the store: one of them wins, the others
//! read what it wrote. While the store does not answer, certificates are made from what was last read.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millrace_runtime::backoff::Backoff;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::TlsError;
use super::authority::Root;
use super::rotation::{Authorities, Lifetimes, reissue};
use super::serving::Serving;

/// The name of an authority, as its certificate has it.
const AUTHORITY: &str = "Millrace control plane";
/// The first wait after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Nothing is slept through for longer: clocks jump.
const LONGEST: Duration = Duration::from_hours(1);

/// Where authorities are kept.
pub trait Store: Send + 'static {
    /// What a writer must have read; each write makes a new one.
    type Version: Send;

    /// What is kept, if something is.
    fn load(
        &mut self,
    ) -> impl Future<Output = Result<Option<(Authorities, Self::Version)>, TlsError>> + Send;

    /// Keeps these instead of what was read as `over`, or as the first; false when somebody else was faster.
    fn save(
        &mut self,
        authorities: &Authorities,
        over: Option<Self::Version>,
    ) -> impl Future<Output = Result<bool, TlsError>> + Send;

    /// Returns when there may be something new. May be dropped and called again.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Keeps authorities in this process alone, for a pilot without replicas.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<(u64, Option<Authorities>)>>);

impl Store for Memory {
    type Version = u64;

    async fn load(&mut self) -> Result<Option<(Authorities, u64)>, TlsError> {
        let kept = self.0.lock();
        Ok(kept.1.clone().map(|authorities| (authorities, kept.0)))
    }

    async fn save(
        &mut self,
        authorities: &Authorities,
        over: Option<u64>,
    ) -> Result<bool, TlsError> {
        let mut kept = self.0.lock();
        let known = kept.1.as_ref().map(|_| kept.0);
        if known != over {
            return Ok(false);
        }
        *kept = (kept.0 + 1, Some(authorities.clone()));
        Ok(true)
    }

    async fn changed(&mut self) {
        std::future::pending::<()>().await;
    }
}

/// Keeps one process's certificate valid.
#[derive(Debug)]
pub struct Keeper<S> {
    store: S,
    serving: Arc<Serving>,
    names: Vec<String>,
    lifetimes: Lifetimes,
    known: Option<Authorities>,
    /// Who issued the certificate that is served, and when it is to be made anew.
    issued: Option<(Root, SystemTime)>,
}

impl<S: Store> Keeper<S> {
    /// For a server of these names and addresses.
    pub fn new(store: S, serving: Arc<Serving>, names: Vec<String>, lifetimes: Lifetimes) -> Self {
        Self {
            store,
            serving,
            names,
            lifetimes,
            known: None,
            issued: None,
        }
    }

    /// Works until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1).with_jitter();
        loop {
            let now = SystemTime::now();
            let wait = match self.step(now).await {
                Ok(due) => {
                    backoff.reset();
                    due.duration_since(now).unwrap_or_default().min(LONGEST)
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "pilot's certificate"
                    );
                    backoff.next_delay().unwrap_or(BACKOFF.1)
                }
            };
            // biased: a stop before work.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.store.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Does what is due, and says when there is more to do.
    async fn step(&mut self, now: SystemTime) -> Result<SystemTime, TlsError> {
        let stored = self.agree(now).await;
        let Some(authorities) = &self.known else {
            return stored.map(|()| now);
        };
        let due = self
            .issued
            .as_ref()
            .is_none_or(|(root, until)| root != authorities.signing.root() || *until <= now);
        if due {
            let issued = authorities
                .signing
                .issue(&self.names, self.lifetimes.serving, now)?;
            let again = reissue(&issued);
            self.serving.set_certificate(issued)?;
            tracing::info!(names = ?self.names, "serving with a new certificate");
            self.issued = Some((authorities.signing.root().clone(), again));
        }
        self.serving.set_roots(authorities.roots());
        stored?;
        let reissue = self.issued.as_ref().map(|(_, at)| *at);
        Ok(reissue
            .into_iter()
            .fold(authorities.renewal(), SystemTime::min))
    }

    /// Reads what is kept, and renews it where that is due.
    async fn agree(&mut self, now: SystemTime) -> Result<(), TlsError> {
        loop {
            let lifetime = self.lifetimes.authority;
            let (renewed, over) = match self.store.load().await? {
                Some((kept, version)) => {
                    let renewed = kept.renewed(AUTHORITY, lifetime, now)?;
                    if renewed == kept {
                        self.known = Some(kept);
                        return Ok(());
                    }
                    (renewed, Some(version))
                }
                None => (Authorities::create(AUTHORITY, lifetime, now)?, None),
            };
            if self.store.save(&renewed, over).await? {
                tracing::info!("certificate authorities renewed");
                self.known = Some(renewed);
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
