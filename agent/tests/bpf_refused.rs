//! A process that may not use eBPF. In a binary of its own: aya finds out once per process what the kernel
//! offers, and here it is offered nothing.

use millrace_agent::bpf::probe;

#[test]
fn refused_ebpf_is_explained() {
    use caps::{CapSet, CapsHashSet};

    millrace_testkit::require!(root);
    let agent = std::thread::spawn(|| {
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::set(None, set, &CapsHashSet::new()).expect("capabilities are dropped");
        }
        probe()
    });
    let missing = agent
        .join()
        .expect("the probe ends")
        .ebpf()
        .expect_err("nothing is allowed");
    let lacking = "lacks CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON";
    assert!(missing.contains(lacking), "{missing}");
    assert!(missing.lines().count() == 1, "{missing}");
}
