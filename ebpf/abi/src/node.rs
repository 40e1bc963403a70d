//! What the programs must know of the node; one element, written by the agent.

/// The node's own facts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NodeConfig {
    /// Cookie of the host's network namespace, where the kubelet connects from.
    pub host_netns_cookie: u64,
    /// [`crate::ABI_VERSION`] of the agent that wrote this.
    pub abi_version: u32,
    /// A [`LogLevel`].
    pub log_level: u32,
    /// See the constants of this type.
    pub flags: u32,
    /// Always 0.
    pub reserved: u32,
}

impl NodeConfig {
    /// The proxy is gone: open pods go direct, closed pods get an error.
    pub const PROXY_GONE: u32 = 1 << 0;
    /// The map of trusted cgroups is filled: a socket with the proxy's mark is the proxy's only if a process
    /// of one of them made or uses it. Without this bit the mark says all.
    pub const CREATORS_KNOWN: u32 = 1 << 1;
}

/// How much the programs say; aya-log's numbers.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum LogLevel {
    /// Nothing.
    #[default]
    Off = 0,
    /// What went wrong.
    Error = 1,
    /// What was let through or refused for want of something.
    Warn = 2,
    /// Changes of state; the programs keep none that they would tell of.
    Info = 3,
    /// Every decision.
    Debug = 4,
    /// Every call of every program.
    Trace = 5,
}

impl LogLevel {
    /// The level's number, as the maps hold it.
    #[inline(always)]
    pub const fn value(self) -> u32 {
        self as u32
    }

    /// The level of a number; more than `Trace` is `Trace`.
    pub const fn from_value(value: u32) -> Self {
        match value {
            0 => Self::Off,
            1 => Self::Error,
            2 => Self::Warn,
            3 => Self::Info,
            4 => Self::Debug,
            _ => Self::Trace,
        }
    }
}

const _: () = assert!(size_of::<NodeConfig>() == 8 + 4 * 4);
