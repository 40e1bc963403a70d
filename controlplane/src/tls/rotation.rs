//! Which authority signs, when the next one is made, and who is trusted meanwhile.
//!
//! Pure. The next authority is published long before it signs, so that every client trusts it by then, and an old one
//! stays trusted until it ends. All replicas decide alike, as the decision needs nothing but what is kept and the time.

use std::time::{Duration, SystemTime};

use super::TlsError;
use super::authority::{Authority, Issued, Root};

/// The next authority is made when this share of the present one's life is over,
const RENEW_AT: f64 = 0.8;
/// and signs when this share of its own is: time for every client to learn of it.
const SETTLED_AT: f64 = 0.05;
/// A server's certificate is made anew when this share of its life is over.
const REISSUE_AT: f64 = 0.5;

/// How long certificates hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// An authority's.
    pub authority: Duration,
    /// A server's.
    pub serving: Duration,
}

impl Default for Lifetimes {
    /// Istio's: ten years, one day.
    fn default() -> Self {
        Self {
            authority: Duration::from_hours(10 * 365 * 24),
            serving: Duration::from_hours(24),
        }
    }
}

/// The authorities of a mesh's control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities {
    /// The one that signs.
    pub signing: Authority,
    /// The one that will sign; trusted already.
    pub next: Option<Authority>,
    /// Those that signed; trusted still.
    pub retired: Vec<Root>,
}

impl Authorities {
    /// The first authority of a mesh.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn create(name: &str, lifetime: Duration, now: SystemTime) -> Result<Self, TlsError> {
        Ok(Self {
            signing: Authority::create(name, lifetime, now)?,
            next: None,
            retired: Vec::new(),
        })
    }

    /// What they are to be now; themselves if nothing is due.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn renewed(
        &self,
        name: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let mut renewed = self.clone();
        renewed.retired.retain(|root| root.validity().until > now);
        let ended = self.signing.root().validity().until <= now;
        if renewed.next.is_none() && self.signing.root().validity().at(RENEW_AT) <= now {
            renewed.next = Some(Authority::create(name, lifetime, now)?);
        }
        let settled = |next: &Authority| next.root().validity().at(SETTLED_AT) <= now;
        if let Some(next) = renewed.next.take_if(|next| ended || settled(next)) {
            let old = std::mem::replace(&mut renewed.signing, next);
            if !ended {
                renewed.retired.push(old.root().clone());
            }
        }
        Ok(renewed)
    }

    /// When there will be something to renew.
    pub fn renewal(&self) -> SystemTime {
        let signing = match &self.next {
            Some(next) => next
                .root()
                .validity()
                .at(SETTLED_AT)
                .min(self.signing.root().validity().until),
            None => self.signing.root().validity().at(RENEW_AT),
        };
        let ends = self.retired.iter().map(|root| root.validity().until);
        ends.fold(signing, SystemTime::min)
    }

    /// All that clients are to trust, as PEM, the signing one first.
    pub fn roots(&self) -> String {
        let next = self.next.iter().map(Authority::root);
        let all = std::iter::once(self.signing.root())
            .chain(next)
            .chain(&self.retired);
        all.map(Root::pem).collect()
    }
}

/// When a server's certificate is made anew.
pub fn reissue(issued: &Issued) -> SystemTime {
    issued.validity.at(REISSUE_AT)
}

#[cfg(test)]
mod tests;
