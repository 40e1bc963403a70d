//! What a client asks for within one resource type: everything (`*`), names, and collections
//! (`<prefix>/*`); with the rules by which requests change it.
//!
//! In: the names of requests. Out: a [`Selection`], given to the pilot to pick resources by, and
//! what a request newly asked for. Used by the server's state machines; clients keep a
//! [`Selection`] of what they want.
//!
//! Rules: xDS protocol, "How the client specifies what resources to return".

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use crate::TypeUrl;
use crate::names;

/// The name that subscribes to everything.
pub const WILDCARD: &str = "*";

/// A set of resources: everything, names, or collections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    wildcard: bool,
    /// Shared with all who ask for the same.
    names: BTreeSet<Arc<str>>,
    /// Prefixes of collections, without `/*`.
    globs: BTreeSet<String>,
}

impl Selection {
    /// Everything the node is meant to have.
    pub fn everything() -> Self {
        Self {
            wildcard: true,
            ..Self::default()
        }
    }

    /// Whether nothing is selected.
    pub fn is_empty(&self) -> bool {
        !self.wildcard && self.names.is_empty() && self.globs.is_empty()
    }

    /// Whether the client leaves the choice to the server (besides what it names).
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// Resources asked for by name.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(AsRef::as_ref)
    }

    /// A name as it is shared by all who ask for it; none where it is not asked for.
    pub fn shared_name(&self, name: &str) -> Option<&Arc<str>> {
        self.names.get(name)
    }

    /// Resources asked for by names that begin like this.
    pub fn names_from<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let range = (Bound::Included(prefix), Bound::Unbounded);
        let names = self.names.range::<str, _>(range).map(AsRef::as_ref);
        names.take_while(move |name: &&str| name.starts_with(prefix))
    }

    /// Collections asked for, by their prefix: `default` for `default/*`.
    pub fn glob_prefixes(&self) -> impl ExactSizeIterator<Item = &str> {
        self.globs.iter().map(String::as_str)
    }

    /// Whether the resource is asked for by its name.
    pub fn names_exactly(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Whether the resource belongs to a collection that is asked for: collections hold the
    /// names directly under their prefix, not deeper ones.
    pub fn globs_match(&self, name: &str) -> bool {
        name.rsplit_once('/')
            .is_some_and(|(prefix, last)| !last.is_empty() && self.globs.contains(prefix))
    }

    /// Whether the resource may be sent: with a wildcard, any.
    pub fn contains(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name) || self.globs_match(name)
    }

    /// Adds a name, a collection or the wildcard; false when it was there.
    pub fn insert(&mut self, name: &str) -> bool {
        match Term::of(name) {
            Term::Wildcard => !std::mem::replace(&mut self.wildcard, true),
            Term::Glob(prefix) => self.globs.insert(prefix.to_owned()),
            Term::Name => !self.names.contains(name) && self.names.insert(names::share(name)),
        }
    }

    /// Takes a name, a collection or the wildcard out; false when it was not there.
    pub fn remove(&mut self, name: &str) -> bool {
        match Term::of(name) {
            Term::Wildcard => std::mem::take(&mut self.wildcard),
            Term::Glob(prefix) => self.globs.remove(prefix),
            Term::Name => self.names.remove(name),
        }
    }

    /// Whether exactly this name, collection or wildcard was asked for.
    pub fn has(&self, name: &str) -> bool {
        match Term::of(name) {
            Term::Wildcard => self.wildcard,
            Term::Glob(prefix) => self.globs.contains(prefix),
            Term::Name => self.names.contains(name),
        }
    }

    /// The selection in the words of requests: `*`, then collections, then names.
    pub fn terms(&self) -> impl Iterator<Item = String> {
        self.wildcard
            .then(|| WILDCARD.to_owned())
            .into_iter()
            .chain(self.globs.iter().map(|prefix| format!("{prefix}/*")))
            .chain(self.names.iter().map(ToString::to_string))
    }
}

impl<S: AsRef<str>> FromIterator<S> for Selection {
    fn from_iter<I: IntoIterator<Item = S>>(terms: I) -> Self {
        let mut selection = Self::default();
        for term in terms {
            selection.insert(term.as_ref());
        }
        selection
    }
}

enum Term<'a> {
    Wildcard,
    Glob(&'a str),
    Name,
}

impl<'a> Term<'a> {
    fn of(name: &'a str) -> Self {
        match name.strip_suffix("/*") {
            _ if name == WILDCARD => Self::Wildcard,
            Some(prefix) if !prefix.is_empty() => Self::Glob(prefix),
            _ => Self::Name,
        }
    }
}

/// Whether a term is a collection (`<prefix>/*`).
pub fn is_glob(term: &str) -> bool {
    matches!(Term::of(term), Term::Glob(_))
}

/// One type's subscription on one stream, as the server sees it.
#[derive(Clone, Debug, Default)]
pub struct Subscription {
    /// Shared with who has to know it, copied when it changes.
    selection: Arc<Selection>,
    /// Whether a request has come at all.
    started: bool,
    /// Whether a request ever named something: from then on an empty list means nothing, no
    /// longer everything.
    explicit: bool,
}

/// What a request did to a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionChange {
    /// Terms to answer: newly subscribed ones and, in delta, repeated ones.
    pub subscribed: Vec<String>,
    /// Terms no longer subscribed.
    pub unsubscribed: Vec<String>,
}

impl Subscription {
    /// What is subscribed to.
    pub fn selection(&self) -> &Arc<Selection> {
        &self.selection
    }

    /// Whether no request was applied yet.
    pub fn is_new(&self) -> bool {
        !self.started
    }

    /// Applies a delta request's changes. A term in both lists stays subscribed and is answered
    /// again.
    pub fn apply_delta(
        &mut self,
        type_url: &TypeUrl,
        subscribe: &[String],
        unsubscribe: &[String],
    ) -> SubscriptionChange {
        let first = !std::mem::replace(&mut self.started, true);
        let mut change = SubscriptionChange::default();
        let selection = Arc::make_mut(&mut self.selection);
        if first && subscribe.is_empty() && unsubscribe.is_empty() && type_url.has_legacy_wildcard()
        {
            selection.insert(WILDCARD);
            change.subscribed.push(WILDCARD.to_owned());
        }
        for term in unsubscribe {
            if !subscribe.contains(term) && selection.remove(term) {
                change.unsubscribed.push(term.clone());
            }
        }
        for term in subscribe {
            self.explicit = true;
            selection.insert(term);
            change.subscribed.push(term.clone());
        }
        change
    }

    /// Replaces the subscription by a `SotW` request's full list.
    pub fn apply_sotw(&mut self, type_url: &TypeUrl, names: &[String]) -> SubscriptionChange {
        self.started = true;
        self.explicit |= !names.is_empty();
        let wanted = if !self.explicit && type_url.has_legacy_wildcard() {
            Selection::everything()
        } else {
            names.iter().collect()
        };
        let change = SubscriptionChange {
            subscribed: wanted
                .terms()
                .filter(|term| !self.selection.has(term))
                .collect(),
            unsubscribed: self
                .selection
                .terms()
                .filter(|term| !wanted.has(term))
                .collect(),
        };
        self.selection = Arc::new(wanted);
        change
    }
}

#[cfg(test)]
mod tests;
