//! One typed wrapper per map, opened from its pin; the kernel's own sizes are checked against the types.
//!
//! The loader opens them all; `enrolment` writes them; `metrics` and `status` read counters and telemetry.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{
    Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuHashMap,
    PerCpuValues, SockHash,
};
use millrace_ebpf_abi::{
    Addr, CidrKey, Counter, Direction, LISTENER_SLOTS, ListenerKey, NodeConfig, OrigDst,
    PodAcceleration, PodPolicy, PodTelemetry, PortKey, SockTuple, TelemetryKey,
};

use super::pins::Pins;
use super::{BpfError, sys};

/// Every map of the object that is pinned; aya-log's ring is one of them.
pub(super) const NAMES: [&str; 18] = [
    "NODE",
    "POLICIES",
    "ADDRESSES",
    "PORT_RULES",
    "CIDR_RULES",
    "LISTENERS",
    "TRUSTED",
    "ORIG_DSTS",
    "ANNOUNCED",
    "SOCKETS",
    "ACCELERATED",
    "ACCEL_SOCKETS",
    "SPLICED",
    "ACCELERATION",
    "TELEMETRY",
    "COUNTERS",
    "EVENTS",
    "AYA_LOGS",
];

/// The maps that the agent reads and writes.
pub(super) struct Maps {
    pub(super) node: Node,
    pub(super) policies: Policies,
    pub(super) addresses: Addresses,
    pub(super) rules: Rules,
    pub(super) listeners: Listeners,
    pub(super) trusted: Trusted,
    pub(super) telemetry: Telemetry,
    pub(super) acceleration: PodSums,
    pub(super) counters: Counters,
}

impl Maps {
    /// Opens the pinned maps.
    pub(super) fn open(pins: &Pins) -> Result<Self, BpfError> {
        Ok(Self {
            node: Node(open(pins, "NODE")?),
            policies: Policies(open(pins, "POLICIES")?, open_fd(pins, "POLICIES")?),
            addresses: Addresses(open(pins, "ADDRESSES")?, open_fd(pins, "ADDRESSES")?),
            rules: Rules {
                ports: open(pins, "PORT_RULES")?,
                cidrs: open(pins, "CIDR_RULES")?,
            },
            listeners: Listeners(open(pins, "LISTENERS")?),
            trusted: Trusted(open(pins, "TRUSTED")?),
            telemetry: Telemetry(open(pins, "TELEMETRY")?),
            acceleration: PodSums(open(pins, "ACCELERATION")?),
            counters: Counters(open(pins, "COUNTERS")?),
        })
    }
}

/// `NODE`: the node's own facts.
pub(super) struct Node(Array<MapData, NodeConfig>);

impl Node {
    pub(super) fn read(&self) -> Result<NodeConfig, BpfError> {
        self.0.get(&0, 0).map_err(BpfError::map("NODE", "read"))
    }

    pub(super) fn write(&mut self, config: NodeConfig) -> Result<(), BpfError> {
        self.0
            .set(0, config, 0)
            .map_err(BpfError::map("NODE", "written"))
    }
}

/// `POLICIES`: who is captured. One write here starts or ends a pod's capture.
pub(super) struct Policies(HashMap<MapData, u64, PodPolicy>, OwnedFd);

impl Policies {
    pub(super) fn get(&self, netns_cookie: u64) -> Result<Option<PodPolicy>, BpfError> {
        found(self.0.get(&netns_cookie, 0)).map_err(BpfError::map("POLICIES", "read"))
    }

    pub(super) fn insert(&mut self, netns_cookie: u64, policy: PodPolicy) -> Result<(), BpfError> {
        self.0
            .insert(netns_cookie, policy, 0)
            .map_err(BpfError::map("POLICIES", "written"))
    }

    pub(super) fn remove(&mut self, netns_cookie: u64) -> Result<(), BpfError> {
        gone(self.0.remove(&netns_cookie)).map_err(BpfError::map("POLICIES", "written"))
    }

    pub(super) fn all(&self) -> Result<Vec<(u64, PodPolicy)>, BpfError> {
        listed_at_once(&self.1).map_err(BpfError::map("POLICIES", "listed"))
    }
}

/// `TRUSTED`: cgroups whose processes may use the proxy's mark.
pub(super) struct Trusted(HashMap<MapData, u64, u8>);

impl Trusted {
    /// Makes the map hold these and no others. What is new comes before what is old goes.
    pub(super) fn set(&mut self, cgroups: &[u64]) -> Result<(), BpfError> {
        let known: Vec<u64> = self
            .0
            .keys()
            .collect::<Result<_, _>>()
            .map_err(BpfError::map("TRUSTED", "listed"))?;
        for cgroup in cgroups.iter().filter(|id| !known.contains(id)) {
            self.0
                .insert(cgroup, 1, 0)
                .map_err(BpfError::map("TRUSTED", "written"))?;
        }
        for cgroup in known.iter().filter(|id| !cgroups.contains(id)) {
            gone(self.0.remove(cgroup)).map_err(BpfError::map("TRUSTED", "written"))?;
        }
        Ok(())
    }
}

/// `ADDRESSES`: which pod an inbound packet is for.
pub(super) struct Addresses(HashMap<MapData, Addr, u64>, OwnedFd);

impl Addresses {
    /// Gives the address to the pod, whoever had it before.
    pub(super) fn assign(&mut self, ip: IpAddr, netns_cookie: u64) -> Result<(), BpfError> {
        self.0
            .insert(Addr::from(ip), netns_cookie, 0)
            .map_err(BpfError::map("ADDRESSES", "written"))
    }

    /// Addresses of a pod.
    pub(super) fn of(&self, netns_cookie: u64) -> Result<Vec<IpAddr>, BpfError> {
        let all = self.all()?;
        Ok(all
            .into_iter()
            .filter(|(_, cookie)| *cookie == netns_cookie)
            .map(|(ip, _)| ip)
            .collect())
    }

    pub(super) fn all(&self) -> Result<Vec<(IpAddr, u64)>, BpfError> {
        let all: Vec<(Addr, u64)> =
            listed_at_once(&self.1).map_err(BpfError::map("ADDRESSES", "listed"))?;
        Ok(all
            .into_iter()
            .map(|(addr, cookie)| (IpAddr::from(addr), cookie))
            .collect())
    }

    /// Takes an address back, unless another pod has it by now.
    pub(super) fn release(&mut self, ip: IpAddr, netns_cookie: u64) -> Result<(), BpfError> {
        let addr = Addr::from(ip);
        let owner = found(self.0.get(&addr, 0)).map_err(BpfError::map("ADDRESSES", "read"))?;
        if owner != Some(netns_cookie) {
            return Ok(());
        }
        gone(self.0.remove(&addr)).map_err(BpfError::map("ADDRESSES", "written"))
    }
}

/// `PORT_RULES` and `CIDR_RULES`, by rule set.
pub(super) struct Rules {
    ports: HashMap<MapData, PortKey, u8>,
    cidrs: LpmTrie<MapData, CidrKey, u8>,
}

impl Rules {
    pub(super) fn insert_ports(&mut self, elements: &[(PortKey, u8)]) -> Result<(), BpfError> {
        for (key, rule) in elements {
            self.ports
                .insert(key, rule, 0)
                .map_err(BpfError::map("PORT_RULES", "written"))?;
        }
        Ok(())
    }

    pub(super) fn insert_cidrs(&mut self, elements: &[(u32, CidrKey, u8)]) -> Result<(), BpfError> {
        for (prefix, key, rule) in elements {
            self.cidrs
                .insert(&Key::new(*prefix, *key), rule, 0)
                .map_err(BpfError::map("CIDR_RULES", "written"))?;
        }
        Ok(())
    }

    /// Whether a port rule is there as it was written.
    pub(super) fn has_port(&self, key: &PortKey, rule: u8) -> Result<bool, BpfError> {
        let is = found(self.ports.get(key, 0)).map_err(BpfError::map("PORT_RULES", "read"))?;
        Ok(is == Some(rule))
    }

    /// Whether a CIDR rule is there as it was written: nothing else matches its own network better.
    pub(super) fn has_cidr(&self, prefix: u32, key: CidrKey, rule: u8) -> Result<bool, BpfError> {
        let is = found(self.cidrs.get(&Key::new(prefix, key), 0))
            .map_err(BpfError::map("CIDR_RULES", "read"))?;
        Ok(is == Some(rule))
    }

    /// Removes the rule sets that `is_stale` names.
    pub(super) fn remove_sets(&mut self, is_stale: impl Fn(u64) -> bool) -> Result<(), BpfError> {
        let ports: Vec<PortKey> =
            listed(self.ports.keys()).map_err(BpfError::map("PORT_RULES", "listed"))?;
        for key in ports.iter().filter(|key| is_stale(key.rule_set)) {
            gone(self.ports.remove(key)).map_err(BpfError::map("PORT_RULES", "written"))?;
        }
        let cidrs: Vec<Key<CidrKey>> =
            listed(self.cidrs.keys()).map_err(BpfError::map("CIDR_RULES", "listed"))?;
        for key in cidrs.iter().filter(|key| is_stale(key.data().rule_set())) {
            gone(self.cidrs.remove(key)).map_err(BpfError::map("CIDR_RULES", "written"))?;
        }
        Ok(())
    }
}

/// `LISTENERS`: a pod's inbound listeners by family of the arriving packet.
pub(super) struct Listeners(SockHash<MapData, ListenerKey>);

impl Listeners {
    /// Replaces the pod's listeners of one family; a slot is never empty in between.
    pub(super) fn replace(
        &mut self,
        netns_cookie: u64,
        family: u16,
        listeners: &[BorrowedFd<'_>],
    ) -> Result<(), BpfError> {
        for slot in 0..LISTENER_SLOTS {
            let key = ListenerKey::new(netns_cookie, family, slot);
            match listeners.get(usize::from(slot)) {
                Some(listener) => self.0.insert(key, *listener, 0),
                None => gone(self.0.remove(&key)),
            }
            .map_err(BpfError::map("LISTENERS", "written"))?;
        }
        Ok(())
    }

    /// Cookies of the pods, one for each of their elements.
    pub(super) fn cookies(&self) -> Result<Vec<u64>, BpfError> {
        let keys: Vec<ListenerKey> =
            listed(self.0.keys()).map_err(BpfError::map("LISTENERS", "listed"))?;
        Ok(keys.into_iter().map(|key| key.netns_cookie).collect())
    }
}

/// `TELEMETRY`: L4 telemetry of the pods.
pub(super) struct Telemetry(PerCpuHashMap<MapData, TelemetryKey, PodTelemetry>);

/// L4 telemetry of one direction of a pod's own connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PodTraffic {
    /// The pod.
    pub netns_cookie: u64,
    /// Whether the pod's applications connected or accepted.
    pub direction: Direction,
    /// Sums since enrolment.
    pub sums: PodTelemetry,
}

impl Telemetry {
    /// Starts counting for a pod; sums of an enrolled one stay.
    pub(super) fn start(&mut self, netns_cookie: u64) -> Result<(), BpfError> {
        for direction in [Direction::Outbound, Direction::Inbound] {
            let key = TelemetryKey::new(netns_cookie, direction);
            let present = found(self.0.get(&key, 0)).map_err(BpfError::map("TELEMETRY", "read"))?;
            if present.is_none() {
                let cpus = aya::util::nr_cpus()
                    .map_err(|(_, error)| BpfError::map("TELEMETRY", "sized")(error.into()))?;
                let zero = PerCpuValues::try_from(vec![PodTelemetry::default(); cpus])
                    .map_err(|error| BpfError::map("TELEMETRY", "sized")(error.into()))?;
                self.0
                    .insert(key, zero, 0)
                    .map_err(BpfError::map("TELEMETRY", "written"))?;
            }
        }
        Ok(())
    }

    pub(super) fn stop(&mut self, netns_cookie: u64) -> Result<(), BpfError> {
        for direction in [Direction::Outbound, Direction::Inbound] {
            let key = TelemetryKey::new(netns_cookie, direction);
            gone(self.0.remove(&key)).map_err(BpfError::map("TELEMETRY", "written"))?;
        }
        Ok(())
    }

    pub(super) fn all(&self) -> Result<Vec<PodTraffic>, BpfError> {
        self.0
            .iter()
            .map(|element| {
                let (key, values) = element?;
                Ok(PodTraffic {
                    netns_cookie: key.netns_cookie,
                    direction: if key.direction == Direction::Outbound as u32 {
                        Direction::Outbound
                    } else {
                        Direction::Inbound
                    },
                    sums: values
                        .iter()
                        .fold(PodTelemetry::default(), |sum, value| sum.plus(value)),
                })
            })
            .collect::<Result<_, _>>()
            .map_err(BpfError::map("TELEMETRY", "listed"))
    }
}

/// `ACCELERATION`: sums over the promoted connections of the pods.
pub(super) struct PodSums(PerCpuHashMap<MapData, u64, PodAcceleration>);

impl PodSums {
    /// Starts counting for a pod; sums of an enrolled one stay.
    pub(super) fn start(&mut self, netns_cookie: u64) -> Result<(), BpfError> {
        let present = found(self.0.get(&netns_cookie, 0));
        if present
            .map_err(BpfError::map("ACCELERATION", "read"))?
            .is_some()
        {
            return Ok(());
        }
        let cpus = aya::util::nr_cpus()
            .map_err(|(_, error)| BpfError::map("ACCELERATION", "sized")(error.into()))?;
        let zero = PerCpuValues::try_from(vec![PodAcceleration::default(); cpus])
            .map_err(|error| BpfError::map("ACCELERATION", "sized")(error.into()))?;
        self.0
            .insert(netns_cookie, zero, 0)
            .map_err(BpfError::map("ACCELERATION", "written"))
    }

    pub(super) fn stop(&mut self, netns_cookie: u64) -> Result<(), BpfError> {
        gone(self.0.remove(&netns_cookie)).map_err(BpfError::map("ACCELERATION", "written"))
    }

    /// Sums of a pod; all zero where nothing is counted.
    pub(super) fn of(&self, netns_cookie: u64) -> Result<PodAcceleration, BpfError> {
        let values =
            found(self.0.get(&netns_cookie, 0)).map_err(BpfError::map("ACCELERATION", "read"))?;
        Ok(values.map_or_else(PodAcceleration::default, |values| {
            values
                .iter()
                .fold(PodAcceleration::default(), |sum, value| sum.plus(value))
        }))
    }

    pub(super) fn cookies(&self) -> Result<Vec<u64>, BpfError> {
        listed(self.0.keys()).map_err(BpfError::map("ACCELERATION", "listed"))
    }
}

/// `COUNTERS`: one per outcome, per CPU.
pub(super) struct Counters(PerCpuArray<MapData, u64>);

/// Value of one counter, summed over the CPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CounterValue {
    /// Which outcome; its labels are `counter.hook()` and `counter.outcome()`.
    pub counter: Counter,
    /// How often.
    pub value: u64,
}

impl Counters {
    pub(super) fn all(&self) -> Result<Vec<CounterValue>, BpfError> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let values = self.0.get(&(*counter as u32), 0)?;
                Ok(CounterValue {
                    counter: *counter,
                    value: values.iter().sum(),
                })
            })
            .collect::<Result<_, _>>()
            .map_err(BpfError::map("COUNTERS", "read"))
    }
}

/// How full a map is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapOccupancy {
    /// The map's name.
    pub map: &'static str,
    /// Elements in it; pods come and go while it is counted.
    pub used: usize,
    /// Elements that it can hold.
    pub capacity: u32,
}

/// How full the maps are that programs or pods fill.
pub(super) fn occupancy(pins: &Pins) -> Result<Vec<MapOccupancy>, BpfError> {
    fn of<K: Pod, V: Pod>(pins: &Pins, map: &'static str) -> Result<MapOccupancy, BpfError> {
        let elements: HashMap<MapData, K, V> = open(pins, map)?;
        let info = MapInfo::from_pin(pins.map(map)).map_err(BpfError::map(map, "examined"))?;
        Ok(MapOccupancy {
            map,
            used: elements.keys().flatten().count(),
            capacity: info.max_entries(),
        })
    }
    Ok(vec![
        of::<u64, PodPolicy>(pins, "POLICIES")?,
        of::<Addr, u64>(pins, "ADDRESSES")?,
        of::<PortKey, u8>(pins, "PORT_RULES")?,
        of::<SockTuple, OrigDst>(pins, "ORIG_DSTS")?,
        of::<SockTuple, u8>(pins, "ANNOUNCED")?,
    ])
}

/// A typed view of a pinned map.
fn open<T: TryFrom<Map, Error = MapError>>(pins: &Pins, name: &'static str) -> Result<T, BpfError> {
    MapData::from_pin(pins.map(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(|source| BpfError::Layout {
            map: name,
            source: Box::new(source),
        })
}

/// Another descriptor of a pinned map, for what aya has no function for.
fn open_fd(pins: &Pins, name: &'static str) -> Result<OwnedFd, BpfError> {
    let path = pins.map(name);
    sys::get(&path).map_err(BpfError::bpffs("opening", path))
}

/// Every element of a hash map, by few calls.
fn listed_at_once<K: Pod + Default, V: Pod + Default>(
    map: &OwnedFd,
) -> Result<Vec<(K, V)>, MapError> {
    sys::elements(map.as_fd()).map_err(MapError::IoError)
}

/// A missing key is an answer, not an error.
fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is to be removed may be gone already.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn listed<K: Pod>(keys: impl Iterator<Item = Result<K, MapError>>) -> Result<Vec<K>, MapError> {
    keys.collect()
}
