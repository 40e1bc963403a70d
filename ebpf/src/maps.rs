//! Every map of the programs, once; the names are ABI and the agent pins each under its own.
//!
//! Nothing here evicts: maps that the agent fills are refused more than they hold, and what a program fills
//! is counted when it is full. What belongs to a socket lives in socket storage.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{
    Array, HashMap, LpmTrie, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage, SockHash,
};
use aya_ebpf::macros::btf_map;
use millrace_ebpf_abi::{
    AccelSocket, AccelSplice, Addr, CidrKey, Counter, Event, ListenerKey, NodeConfig, OrigDst,
    PodAcceleration, PodPolicy, PodTelemetry, PortKey, SockTuple, SocketState, TelemetryKey,
};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// The node's own facts.
#[btf_map]
pub static NODE: Array<NodeConfig, 1> = Array::new();

/// Network namespace cookie → policy. Whoever is in here is captured, nobody else.
#[btf_map]
pub static POLICIES: HashMap<u64, PodPolicy, 16384, ON_DEMAND> = HashMap::new();

/// Address of a pod → its network namespace cookie; `sk_lookup` cannot ask for the cookie.
#[btf_map]
pub static ADDRESSES: HashMap<Addr, u64, 65536, ON_DEMAND> = HashMap::new();

/// Port exceptions.
#[btf_map]
pub static PORT_RULES: HashMap<PortKey, u8, 262_144, ON_DEMAND> = HashMap::new();

/// CIDR exceptions and further addresses of a pod's own.
#[btf_map]
pub static CIDR_RULES: LpmTrie<CidrKey, u8, 262_144, ON_DEMAND> = LpmTrie::new();

/// Inbound listeners.
#[btf_map]
pub static LISTENERS: SockHash<ListenerKey, 65536> = SockHash::new();

/// Ids of the cgroups that broker and proxies live in.
#[btf_map]
pub static TRUSTED: HashMap<u64, u8, 1024, ON_DEMAND> = HashMap::new();

/// Original destinations on their way from the connecting socket to the accepted one: an element lives from
/// SYN to establishment.
#[btf_map]
pub static ORIG_DSTS: HashMap<SockTuple, OrigDst, 262_144, ON_DEMAND> = HashMap::new();

/// Connections that `sk_lookup` lets straight to the application: an `Announced` each, from SYN to
/// establishment.
#[btf_map]
pub static ANNOUNCED: HashMap<SockTuple, u8, 65536, ON_DEMAND> = HashMap::new();

/// What a socket is to the capture path.
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Both ends of every promoted connection by their own cookies; the message program is attached to it. An
/// element leaves when its socket closes and never before: its unread bytes would be lost.
#[btf_map]
pub static ACCELERATED: SockHash<u64, 262_144> = SockHash::new();

/// What an end of a promoted connection is.
#[btf_map]
pub static ACCEL_SOCKETS: SkStorage<AccelSocket> = SkStorage::new();

/// Cookie of an application's end → where what it sends goes, instead of to the proxy, or went. The agent removes
/// it when the socket has been gone for a while.
#[btf_map]
pub static SPLICED: HashMap<u64, AccelSplice, 131_072, ON_DEMAND> = HashMap::new();

/// Network namespace cookie → sums over the pod's promoted connections.
#[btf_map]
pub static ACCELERATION: PerCpuHashMap<u64, PodAcceleration, 16384, ON_DEMAND> =
    PerCpuHashMap::new();

/// L4 telemetry.
#[btf_map]
pub static TELEMETRY: PerCpuHashMap<TelemetryKey, PodTelemetry, 32768, ON_DEMAND> =
    PerCpuHashMap::new();

/// Outcomes.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();

/// What the agent should hear of at once.
#[btf_map]
pub static EVENTS: RingBuf<Event, 65536> = RingBuf::new();
