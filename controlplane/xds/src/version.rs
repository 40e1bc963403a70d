//! Resource versions: a hash of the content, so that every pilot replica gives the same resource
//! the same version and a reconnecting client is resent nothing that it already has.
//!
//! In: encoded bytes. Out: [`Version`], compared by the server's state machines.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// The version of one resource, or of a set of resources.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(Arc<str>);

impl Version {
    /// The version of these bytes: 64 bits of their SHA-256 in hexadecimal. A collision matters
    /// only between two versions of one resource name.
    pub fn of(content: &[u8]) -> Self {
        Self::from_digest(&Sha256::digest(content))
    }

    /// The version of a set: depends on the names and versions in the order given.
    pub fn of_set<'a>(members: impl IntoIterator<Item = (&'a str, &'a Version)>) -> Self {
        let mut hasher = Sha256::new();
        for (name, version) in members {
            hasher.update((name.len() as u64).to_be_bytes());
            hasher.update(name);
            hasher.update((version.0.len() as u64).to_be_bytes());
            hasher.update(version.as_str());
        }
        Self::from_digest(&hasher.finalize())
    }

    /// The version as it is on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_digest(digest: &[u8]) -> Self {
        let head = digest.iter().take(8);
        let bits = head.fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        Self(format!("{bits:016x}").into())
    }
}

/// A version as a client or another server wrote it.
impl From<&str> for Version {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_has_equal_versions_and_other_content_has_others() {
        assert_eq!(Version::of(b"a"), Version::of(b"a"));
        assert_ne!(Version::of(b"a"), Version::of(b"b"));
        assert_eq!(Version::of(b"a").as_str().len(), 16);
    }

    #[test]
    fn set_version_does_not_confuse_names_and_versions() {
        let (a, b) = (Version::from("a"), Version::from("bc"));
        let one = Version::of_set([("x", &a), ("y", &b)]);
        assert_ne!(one, Version::of_set([("xa", &b)]));
        assert_ne!(one, Version::of_set([("x", &a)]));
    }
}
