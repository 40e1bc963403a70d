//! Nodes: where a proxy and its pods are, and what it executes.
//!
//! Pilot and proxies of different versions work together: a proxy names what it executes beside what the first
//! version did, and pilot leaves out what it does not name. Names that pilot does not know mean nothing to it.

use super::names::ObjectName;

/// A place, by the labels that Kubernetes has for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// The region; empty where unknown.
    pub region: String,
    /// The zone; empty where unknown.
    pub zone: String,
    /// The part of the zone; empty where unknown.
    pub subzone: String,
}

/// A Kubernetes Node, of which only the place is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The name, without a namespace.
    pub name: ObjectName,
    /// Where it stands, by its labels.
    pub locality: Locality,
}

/// Something that not every version of a proxy executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Faults of routes.
    Faults,
    /// Balancers that hash.
    Hashing,
    /// Leaving out endpoints that fail.
    Outliers,
}

impl Feature {
    const ALL: [Self; 3] = [Self::Faults, Self::Hashing, Self::Outliers];

    /// What a proxy calls it in its metadata.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Faults => "faults",
            Self::Hashing => "hashing",
            Self::Outliers => "outliers",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Faults => 1,
            Self::Hashing => 2,
            Self::Outliers => 4,
        }
    }
}

/// What a proxy executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Features(u8);

impl Features {
    /// All that pilot knows of, as stock Envoy does.
    pub fn all() -> Self {
        Self::of(Feature::ALL.into_iter().map(Feature::name))
    }

    /// Those of these names that pilot knows.
    pub fn of<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        let feature = |name: &str| Feature::ALL.into_iter().find(|known| known.name() == name);
        Self(
            names
                .filter_map(feature)
                .fold(0, |all, one| all | one.bit()),
        )
    }

    /// Whether one is among them.
    pub fn has(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_known_mean_nothing() {
        let some = Features::of(["hashing", "of a later version"].into_iter());
        assert!(some.has(Feature::Hashing));
        assert!(!some.has(Feature::Faults) && !some.has(Feature::Outliers));
        assert_eq!(
            Features::of(["of a later version"].into_iter()),
            Features::default()
        );
        assert!(
            Feature::ALL
                .into_iter()
                .all(|feature| Features::all().has(feature))
        );
    }
}
