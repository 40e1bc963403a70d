//! A sorted table that is cheap to take as it is: copies share what neither has changed.
//!
//! Entries lie in sorted chunks. A copy shares all of them, and a change copies the one chunk that it falls
//! into, so that neither costs more in a mesh of a hundred thousand pods than in one of ten.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

use crate::model::names::ObjectName;

/// A chunk is split when it has more entries than this.
const CHUNK: usize = 128;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// A table of the mesh, sorted by key.
#[derive(Clone)]
pub struct Table<K, V> {
    /// None is empty.
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

/// Entries of a table in order.
#[derive(Debug)]
pub struct Iter<'a, K, V> {
    chunks: std::slice::Iter<'a, Chunk<K, V>>,
    chunk: std::slice::Iter<'a, (K, V)>,
}

impl<K: Ord, V> Table<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (chunk, at) = self.find(key).ok()?;
        Some(&self.chunks[chunk][at].1)
    }

    /// Whether there is a key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).is_ok()
    }

    /// All entries, sorted.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter {
            chunks: self.chunks.iter(),
            chunk: [].iter(),
        }
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// All values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// Entries from the first key that is not `before`.
    fn starting_after(&self, before: impl Fn(&K) -> bool) -> Iter<'_, K, V> {
        let ends_before = |chunk: &Chunk<K, V>| chunk.last().is_some_and(|(key, _)| before(key));
        let at = self.chunks.partition_point(ends_before);
        let mut chunks = self.chunks[at..].iter();
        let chunk = chunks.next().map_or(&[][..], |chunk| chunk.as_slice());
        let first = chunk.partition_point(|(key, _)| before(key));
        Iter {
            chunks,
            chunk: chunk[first..].iter(),
        }
    }

    /// Where a key is, or belongs.
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Result<(usize, usize), (usize, usize)>
    where
        K: Borrow<Q>,
    {
        let ends_before =
            |chunk: &Chunk<K, V>| chunk.last().is_some_and(|(last, _)| last.borrow() < key);
        let at = self.chunks.partition_point(ends_before);
        let Some(chunk) = self.chunks.get(at) else {
            let end = self.chunks.last().map_or(0, |chunk| chunk.len());
            return Err((at.saturating_sub(1), end));
        };
        let found = chunk.binary_search_by(|(known, _)| known.borrow().cmp(key));
        found.map(|place| (at, place)).map_err(|place| (at, place))
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    /// Sets a key's value; the one it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let place = self.find(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        match place {
            Ok((chunk, at)) => {
                let chunk = Arc::make_mut(&mut chunks[chunk]);
                Some(std::mem::replace(&mut chunk[at].1, value))
            }
            Err((number, at)) => {
                self.len += 1;
                let Some(chunk) = chunks.get_mut(number) else {
                    chunks.push(Arc::new(vec![(key, value)]));
                    return None;
                };
                let chunk = Arc::make_mut(chunk);
                chunk.insert(at, (key, value));
                if chunk.len() > CHUNK {
                    // One that grows at its end is full, as when all comes in order.
                    let cut = if at + 1 == chunk.len() {
                        CHUNK
                    } else {
                        CHUNK / 2
                    };
                    let rest = chunk.split_off(cut);
                    chunks.insert(number + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    /// Takes a key out; the value it had.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (number, at) = self.find(key).ok()?;
        self.len -= 1;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[number]);
        let (_, value) = chunk.remove(at);
        if chunk.is_empty() {
            chunks.remove(number);
        }
        Some(value)
    }

    /// A key's value, to be changed.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (chunk, at) = self.find(key).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        Some(&mut Arc::make_mut(&mut chunks[chunk])[at].1)
    }
}

impl<V> Table<ObjectName, V> {
    /// The entries of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &V> + Clone {
        let first = self.starting_after(|name| *name.namespace < *namespace);
        // Owned, so that what is iterated does not depend on where the text came from.
        let namespace: Arc<str> = namespace.into();
        first
            .take_while(move |(name, _)| name.namespace == namespace)
            .map(|(_, value)| value)
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.chunk.next() {
                return Some((key, value));
            }
            self.chunk = self.chunks.next()?.iter();
        }
    }
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            chunk: self.chunk.clone(),
        }
    }
}

impl<'a, K: Ord, V> IntoIterator for &'a Table<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            chunks: Arc::default(),
            len: 0,
        }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
            || (self.len == other.len && self.iter().eq(other.iter()))
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord, V, Q: Ord + ?Sized> Index<&Q> for Table<K, V>
where
    K: Borrow<Q>,
{
    type Output = V;

    /// As of any map: the key must be there.
    fn index(&self, key: &Q) -> &V {
        let Ok((chunk, at)) = self.find(key) else {
            panic!("no such key in the table");
        };
        &self.chunks[chunk][at].1
    }
}

impl<K: Ord, V> From<BTreeMap<K, V>> for Table<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        let len = map.len();
        let mut chunks = Vec::with_capacity(len.div_ceil(CHUNK));
        let mut entries = map.into_iter().peekable();
        while entries.peek().is_some() {
            chunks.push(Arc::new(entries.by_ref().take(CHUNK).collect()));
        }
        Self {
            chunks: Arc::new(chunks),
            len,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_table_is_a_map(steps in prop::collection::vec((0..2000_u32, any::<bool>()), 0..1500)) {
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for (at, (key, add)) in steps.into_iter().enumerate() {
                if add {
                    prop_assert_eq!(table.insert(key, at), map.insert(key, at));
                } else {
                    prop_assert_eq!(table.remove(&key), map.remove(&key));
                }
            }
            prop_assert_eq!(table.len(), map.len());
            prop_assert!(table.iter().eq(map.iter()));
            prop_assert_eq!(&table, &Table::from(map.clone()));
            for key in 0..2000 {
                prop_assert_eq!(table.get(&key), map.get(&key));
                prop_assert!(table.starting_after(|k| *k < key).eq(map.range(key..)));
            }
        }
    }

    #[test]
    fn a_copy_stays_as_it_was_and_shares_the_rest() {
        let mut table: Table<u32, u32> = (0..10_000)
            .map(|n| (n, n))
            .collect::<BTreeMap<_, _>>()
            .into();
        let before = table.clone();
        table.insert(5000, 0);
        assert_eq!(before[&5000], 5000);
        let same = before.chunks.iter().zip(table.chunks.iter());
        let copied = same.filter(|(one, other)| !Arc::ptr_eq(one, other)).count();
        assert_eq!(copied, 1);
    }

    #[test]
    fn a_namespace_ends_where_the_next_begins() {
        let name = |namespace: &str, name: &str| ObjectName::new(namespace, name);
        let mut table = Table::default();
        for (at, (ns, own)) in [("a", "x"), ("a", "y"), ("a-b", "x"), ("b", "x")]
            .into_iter()
            .enumerate()
        {
            table.insert(name(ns, own), at);
        }
        let of = |namespace: &str| table.in_namespace(namespace).copied().collect::<Vec<_>>();
        assert_eq!(
            (of("a"), of("a-b"), of("aa"), of("c")),
            (vec![0, 1], vec![2], vec![], vec![])
        );
    }
}
