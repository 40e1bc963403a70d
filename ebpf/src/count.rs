//! Per-CPU counters.

use millrace_ebpf_abi::Counter;

use crate::maps::COUNTERS;

/// Adds one to `counter`.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU element; programs of these types are not preempted by themselves on a CPU, and a
        // lost increment would only be a lost count.
        unsafe { *value += 1 };
    }
}
