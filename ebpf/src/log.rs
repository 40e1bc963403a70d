//! Logging that an operator can switch at run time.
//!
//! The level is in the `NODE` map, so a change needs no reload; a program that says nothing pays one array
//! lookup, which the kernel inlines.

use millrace_ebpf_abi::{LogLevel, NodeConfig};

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

/// Logs every decision: hook, pod, destination, and the index of the counter that names the outcome.
macro_rules! decision {
    ($node:expr, $level:ident, $ctx:expr, $hook:literal, $cookie:expr, $destination:expr, $counter:expr) => {
        if crate::log::enabled($node, millrace_ebpf_abi::LogLevel::$level) {
            aya_log_ebpf::log!(
                $ctx,
                aya_log_ebpf::macro_support::Level::$level,
                "{}: netns {} destination [{:i}]:{} outcome {}",
                $hook,
                $cookie,
                $destination.addr.octets(),
                $destination.port,
                $counter as u32
            );
        }
    };
}

pub(crate) use decision;
