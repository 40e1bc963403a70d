//! Logging that an operator can switch at run time.
//!
//! The level is in the `NODE` map, so a change needs no reload; a program that says nothing pays one array
//! lookup, which the kernel inlines.

use millrace_ebpf_abi::{LogLevel, NodeConfig, OrigDst};

use crate::maps::NODE;

/// The node's facts; all zero until the agent wrote them.
#[inline(always)]
pub fn node() -> NodeConfig {
    NODE.get(0).copied().unwrap_or_default()
}

/// Whether messages of `level` are wanted.
#[inline(always)]
pub fn enabled(node: &NodeConfig, level: LogLevel) -> bool {
    node.log_level >= level.value()
}

/// What a decision is about.
#[derive(Clone, Copy)]
pub struct Subject {
    /// The node's facts.
    pub node: NodeConfig,
    /// The pod.
    pub netns_cookie: u64,
    /// Where a connection or datagram goes or wanted to go.
    pub destination: OrigDst,
}

/// Logs every decision: hook, pod, destination, and the index of the counter that names the outcome.
macro_rules! decision {
    ($level:ident, $ctx:expr, $hook:literal, $subject:expr, $counter:expr) => {
        if crate::log::enabled(&$subject.node, millrace_ebpf_abi::LogLevel::$level) {
            aya_log_ebpf::log!(
                $ctx,
                aya_log_ebpf::macro_support::Level::$level,
                "{}: netns {} destination [{:i}]:{} outcome {}",
                $hook,
                $subject.netns_cookie,
                $subject.destination.addr.octets(),
                $subject.destination.port,
                $counter as u32
            );
        }
    };
}

pub(crate) use decision;
