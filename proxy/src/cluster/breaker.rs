//! Circuit breakers: the limits of one cluster, shared by all workers.
//!
//! A [`Permit`] is one unit of one limit and gives it back when dropped. Counting is exact: a
//! unit is taken first and given back where it was one too many, so the limit is never passed,
//! whatever the number of workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::resource::Thresholds;

/// Limits of one cluster and priority with what is taken of them.
#[derive(Debug)]
pub struct Breakers {
    connections: Limit,
    pending: Limit,
    requests: Limit,
    retries: Limit,
}

#[derive(Debug)]
struct Limit {
    taken: AtomicU32,
    max: AtomicU32,
}

/// Which limit is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Open connections.
    Connection,
    /// Requests that wait for a connection.
    Pending,
    /// Requests under way.
    Request,
    /// Retries under way.
    Retry,
}

/// One unit of a limit.
#[derive(Debug)]
pub struct Permit {
    breakers: Arc<Breakers>,
    resource: Resource,
}

impl Breakers {
    /// Breakers with nothing taken.
    pub fn new(limits: &Thresholds) -> Self {
        let breakers = Self {
            connections: Limit::new(),
            pending: Limit::new(),
            requests: Limit::new(),
            retries: Limit::new(),
        };
        breakers.configure(limits);
        breakers
    }

    /// Takes over new limits; what is taken already stays taken.
    pub fn configure(&self, limits: &Thresholds) {
        let set = |limit: &Limit, max| limit.max.store(max, Ordering::Relaxed);
        set(&self.connections, limits.max_connections);
        set(&self.pending, limits.max_pending_requests);
        set(&self.requests, limits.max_requests);
        set(&self.retries, limits.max_retries);
    }

    /// One unit, or `None` where the limit is reached.
    pub fn acquire(self: &Arc<Self>, resource: Resource) -> Option<Permit> {
        self.limit(resource).take().then(|| Permit {
            breakers: self.clone(),
            resource,
        })
    }

    /// How much is taken.
    pub fn taken(&self, resource: Resource) -> u32 {
        self.limit(resource).taken.load(Ordering::Relaxed)
    }

    /// Whether the limit is reached.
    pub fn is_open(&self, resource: Resource) -> bool {
        let limit = self.limit(resource);
        limit.taken.load(Ordering::Relaxed) >= limit.max.load(Ordering::Relaxed)
    }

    fn limit(&self, resource: Resource) -> &Limit {
        match resource {
            Resource::Connection => &self.connections,
            Resource::Pending => &self.pending,
            Resource::Request => &self.requests,
            Resource::Retry => &self.retries,
        }
    }
}

impl Limit {
    fn new() -> Self {
        Self {
            taken: AtomicU32::new(0),
            max: AtomicU32::new(0),
        }
    }

    fn take(&self) -> bool {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let granted = before < self.max.load(Ordering::Relaxed);
        if !granted {
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
        granted
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.breakers
            .limit(self.resource)
            .taken
            .fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_never_passed_and_a_dropped_permit_is_given_back() {
        let breakers = Arc::new(Breakers::new(&Thresholds {
            max_requests: 2,
            ..Thresholds::default()
        }));
        let first = breakers.acquire(Resource::Request).unwrap();
        let _second = breakers.acquire(Resource::Request).unwrap();
        assert!(breakers.acquire(Resource::Request).is_none());
        assert!(breakers.is_open(Resource::Request));
        drop(first);
        assert!(breakers.acquire(Resource::Request).is_some());
    }

    #[test]
    fn a_lower_limit_takes_nothing_away_but_grants_nothing() {
        let breakers = Arc::new(Breakers::new(&Thresholds::default()));
        let _held = breakers.acquire(Resource::Retry).unwrap();
        breakers.configure(&Thresholds {
            max_retries: 1,
            ..Thresholds::default()
        });
        assert!(breakers.acquire(Resource::Retry).is_none());
        assert_eq!(breakers.taken(Resource::Retry), 1);
    }
}
