//! The programs by name, and where each is attached.

/// `BPF_SK_LOOKUP` of `enum bpf_attach_type`.
pub(super) const SK_LOOKUP_ATTACH_TYPE: u32 = 36;
/// Name of the inbound program, which is attached to each pod's namespace.
pub(super) const LOOKUP: &str = "millrace_lookup";

/// Name of the message program, which is attached to the map of promoted connections.
pub(super) const MESSAGE: &str = "millrace_message";
/// `BPF_SK_MSG_VERDICT` of `enum bpf_attach_type`.
pub(super) const MESSAGE_ATTACH_TYPE: u32 = 7;
/// Name of the promotion program, which is run and never attached.
pub(super) const PROMOTE: &str = "millrace_promote";

/// A program that is attached once, at the node's cgroup directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct CgroupProgram {
    /// Its name in the object, and that of its link's pin.
    pub(super) name: &'static str,
    /// Its number in `enum bpf_attach_type`.
    pub(super) attach_type: u32,
}

impl CgroupProgram {
    /// The hook as `bpftool` names it.
    pub(super) fn hook(&self) -> &'static str {
        hook_name(self.attach_type)
    }
}

/// The name of a hook, as `bpftool` has it.
pub(super) fn hook_name(attach_type: u32) -> &'static str {
    match attach_type {
        2 => "sock_create",
        3 => "sock_ops",
        10 => "connect4",
        11 => "connect6",
        14 => "sendmsg4",
        15 => "sendmsg6",
        19 => "recvmsg4",
        20 => "recvmsg6",
        21 => "getsockopt",
        22 => "setsockopt",
        29 => "getpeername4",
        30 => "getpeername6",
        SK_LOOKUP_ATTACH_TYPE => "sk_lookup",
        _ => "unknown",
    }
}

/// The order is that of attaching: what only answers comes before what redirects, so that no connection is
/// redirected without the programs that make it look untouched.
pub(super) const CGROUP_PROGRAMS: [CgroupProgram; 12] = [
    program("millrace_create", 2),
    program("millrace_sockops", 3),
    program("millrace_getopt", 21),
    program("millrace_setopt", 22),
    program("millrace_peer4", 29),
    program("millrace_peer6", 30),
    program("millrace_recv4", 19),
    program("millrace_recv6", 20),
    program("millrace_send4", 14),
    program("millrace_send6", 15),
    program("millrace_connect4", 10),
    program("millrace_connect6", 11),
];

const fn program(name: &'static str, attach_type: u32) -> CgroupProgram {
    CgroupProgram { name, attach_type }
}
