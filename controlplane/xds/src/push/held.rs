//! What a client is believed to have, by name.
//!
//! A sorted list, not a tree: a stream has some thousand entries, a pilot a thousand streams, and a tree that is
//! filled in order is half empty. What a response adds comes in one step. Kept by [`super::TypeState`].

use std::sync::Arc;

use super::Sent;

/// Names with what was sent under them, sorted.
#[derive(Debug, Default)]
pub struct Held(Vec<(Arc<str>, Sent)>);

impl Held {
    /// What was sent under a name.
    pub fn get(&self, name: &str) -> Option<&Sent> {
        let at = self.find(name).ok()?;
        Some(&self.0[at].1)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Sent> {
        let at = self.find(name).ok()?;
        Some(&mut self.0[at].1)
    }

    /// Notes one.
    pub fn insert(&mut self, name: Arc<str>, sent: Sent) {
        match self.find(&name) {
            Ok(at) => self.0[at].1 = sent,
            Err(at) => self.0.insert(at, (name, sent)),
        }
    }

    /// Notes many, in place of what was sent under the same names.
    pub fn extend(&mut self, mut more: Vec<(Arc<str>, Sent)>) {
        more.retain_mut(|(name, sent)| match self.find(name) {
            Ok(at) => {
                std::mem::swap(&mut self.0[at].1, sent);
                false
            }
            Err(_) => true,
        });
        if more.is_empty() {
            return;
        }
        more.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let before = std::mem::take(&mut self.0);
        let mut all = Vec::with_capacity(before.len() + more.len());
        let mut more = more.into_iter().peekable();
        for entry in before {
            while let Some(new) = more.next_if(|new| new.0 < entry.0) {
                all.push(new);
            }
            all.push(entry);
        }
        all.extend(more);
        all.dedup_by(|one, other| one.0 == other.0);
        self.0 = all;
    }

    /// Forgets one.
    pub fn remove(&mut self, name: &str) {
        if let Ok(at) = self.find(name) {
            self.0.remove(at);
        }
    }

    /// Forgets all but these.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut Sent) -> bool) {
        self.0.retain_mut(|(name, sent)| keep(name, sent));
    }

    /// All of them, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Sent)> {
        self.0.iter().map(|(name, sent)| (name, sent))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(name))
    }
}

impl FromIterator<(Arc<str>, Sent)> for Held {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Sent)>>(entries: I) -> Self {
        let mut held = Self::default();
        held.extend(entries.into_iter().collect());
        held
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::Version;

    proptest! {
        #[test]
        fn it_is_a_map(
            steps in prop::collection::vec((0..4_u8, prop::collection::btree_set(0..40_u8, 0..12), any::<u8>()), 0..30)
        ) {
            let (mut held, mut map) = (Held::default(), BTreeMap::new());
            for (doing, keys, value) in steps {
                let name = |key: &u8| Arc::<str>::from(key.to_string());
                let sent = || Sent::Version(Version::from(value.to_string().as_str()));
                let entries: Vec<_> = keys.iter().rev().map(|key| (name(key), sent())).collect();
                match doing {
                    0 => held.extend(entries.clone()),
                    1 => entries.iter().for_each(|(name, sent)| held.insert(name.clone(), sent.clone())),
                    2 => keys.iter().for_each(|key| held.remove(&name(key))),
                    _ => held.retain(|known, _| keys.iter().any(|key| *known == *name(key))),
                }
                match doing {
                    0 | 1 => map.extend(entries),
                    2 => keys.iter().for_each(|key| drop(map.remove(&name(key)))),
                    _ => map.retain(|known, _| keys.iter().any(|key| **known == *name(key))),
                }
                let seen: Vec<String> = held.iter().map(|entry| format!("{entry:?}")).collect();
                let expected: Vec<String> = map.iter().map(|entry| format!("{entry:?}")).collect();
                prop_assert_eq!(seen, expected);
                prop_assert_eq!(held.len(), map.len());
                for key in 0..40 {
                    prop_assert_eq!(held.get(&name(&key)).is_some(), map.contains_key(&name(&key)));
                }
            }
        }
    }
}
