//! The layout of the pinned maps: what this agent's object declares, so that maps which an agent of
//! another build pinned are never taken for them.
//!
//! Input: the object, and the pins of earlier agents. Output: a digest over every map's type and sizes,
//! which `pins` writes beside the maps, and whether one map is as it is declared. Used by `loader`.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::MapInfo;
use aya_obj::Object;
use millrace_ebpf_abi::ABI;

use super::BpfError;
use super::maps::NAMES;

/// Maps in which programs keep what they know of live connections, or have counted. An agent of another
/// layout whose own are declared alike goes on with them; all others it fills itself.
pub(super) const CARRIED: [&str; 4] = ["SOCKETS", "ORIG_DSTS", "ANNOUNCED", "COUNTERS"];

/// Type, size of keys, size of values, number of entries, flags.
type Shape = [u32; 5];

/// The maps that an object declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout(BTreeMap<&'static str, Shape>);

impl Layout {
    /// What the object declares, with the sizes that are to replace the declared ones.
    pub(super) fn declared(
        object: &[u8],
        max_entries: &[(&'static str, u32)],
    ) -> Result<Self, BpfError> {
        let object =
            Object::parse(object).map_err(|error| BpfError::Object(Box::new(error.into())))?;
        let shapes = NAMES.iter().filter_map(|name| {
            let map = object.maps.get(*name)?;
            let given = max_entries.iter().find(|(other, _)| other == name);
            let entries = given.map_or(map.max_entries(), |(_, entries)| *entries);
            let shape = [
                map.map_type(),
                map.key_size(),
                map.value_size(),
                entries,
                map.map_flags(),
            ];
            Some((*name, shape))
        });
        Ok(Self(shapes.collect()))
    }

    /// A number that is another one for another layout: FNV-1a over everything declared and over the
    /// sizes of all shared types.
    pub(super) fn digest(&self) -> u32 {
        let shapes = self.0.iter().flat_map(|(name, shape)| {
            let words = shape.iter().flat_map(|word| word.to_le_bytes());
            name.bytes().chain(words)
        });
        let types = ABI.iter().flat_map(|word| word.to_le_bytes());
        shapes.chain(types).fold(0x811c_9dc5, |digest, byte| {
            (digest ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        })
    }

    /// Whether the map that is pinned at `path` is as this one is declared.
    pub(super) fn is_alike(&self, name: &str, path: &Path) -> bool {
        let Ok(info) = MapInfo::from_pin(path) else {
            return false;
        };
        let Ok(kind) = info.map_type() else {
            return false;
        };
        let pinned = [
            kind as u32,
            info.key_size(),
            info.value_size(),
            info.max_entries(),
            info.map_flags(),
        ];
        self.0.get(name) == Some(&pinned)
    }
}
