//! What this kernel and host can do for eBPF capture, found out by trying.
//!
//! Each program is really loaded (and let go), each helper really called by a throw-away program; mounts are
//! read, never assumed. The result is shown by `millctl precheck` and decides the node's default capture.

use std::path::{Path, PathBuf};
use std::{fs, io};

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use serde::{Deserialize, Serialize};

use super::{object, sys};

/// What was found.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Capabilities {
    /// Release of the running kernel.
    pub kernel: String,
    /// Where cgroup2 is mounted.
    pub cgroup2: Option<PathBuf>,
    /// Where bpffs is mounted; launcher or agent mount it if it is not.
    pub bpffs: Option<PathBuf>,
    /// Everything that was tried.
    pub features: Vec<Feature>,
    /// What acceleration needs besides; capture does without.
    #[serde(default)]
    pub acceleration: Vec<Feature>,
}

/// One thing that eBPF capture needs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Feature {
    /// What it is.
    pub name: String,
    /// What it is needed for.
    pub purpose: String,
    /// Whether it is there.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Whether a feature is there, and why not.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "verdict")]
pub enum Verdict {
    /// It is.
    Available,
    /// It is not.
    Missing {
        /// Why, and what helps.
        reason: String,
    },
}

impl Capabilities {
    /// Whether connections can be accelerated here; else what is missing, in one line.
    ///
    /// # Errors
    ///
    /// The missing features with their reasons.
    pub fn acceleration(&self) -> Result<(), String> {
        summary(&self.acceleration)
    }

    /// Whether pods can be captured by eBPF here; else what is missing, in one line.
    ///
    /// # Errors
    ///
    /// The missing features with their reasons.
    pub fn ebpf(&self) -> Result<(), String> {
        summary(&self.features)
    }
}

/// The features without which nothing else can be tried; the first that are looked for.
const PRIVILEGES: &str = "privileges";
const BPF_CALL: &str = "bpf system call";

/// What of `features` is missing, in one line.
fn summary(features: &[Feature]) -> Result<(), String> {
    let mut missing = features
        .iter()
        .filter_map(|feature| match &feature.verdict {
            Verdict::Available => None,
            Verdict::Missing { reason } => Some((feature.name.as_str(), reason.as_str())),
        });
    let Some((name, reason)) = missing.next() else {
        return Ok(());
    };
    // Whoever may not use eBPF is refused everything; saying so once says it all.
    if name == PRIVILEGES || name == BPF_CALL {
        return Err(reason.to_owned());
    }
    // One cause is often that of many: each is told once.
    let mut causes: Vec<(&str, Vec<&str>)> = vec![(reason, vec![name])];
    for (name, reason) in missing {
        match causes.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(name),
            None => causes.push((reason, vec![name])),
        }
    }
    let causes: Vec<String> = causes
        .iter()
        .map(|(reason, names)| match names[..] {
            [name] => format!("{name}: {reason}"),
            [name, ..] => format!("{name} and {} more: {reason}", names.len() - 1),
            [] => (*reason).to_owned(),
        })
        .collect();
    Err(causes.join("; "))
}

/// Finds out what this kernel and host can do. Changes nothing; takes about a tenth of a second.
pub fn probe() -> Capabilities {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cgroup2 = mount_of(&mounts, "cgroup2");
    let mut features = vec![
        Feature {
            name: PRIVILEGES.to_owned(),
            purpose: "loading and attaching programs".to_owned(),
            verdict: verdict(crate::privileges::require_ebpf().map_err(|error| chain(&error))),
        },
        Feature {
            name: BPF_CALL.to_owned(),
            purpose: "loading programs and making maps".to_owned(),
            verdict: verdict(sys::try_call().map_err(|error| refused_call(&error))),
        },
        host_feature(
            "cgroup2 mount",
            "attaching the connect, sendmsg, sockops and getsockopt programs",
            cgroup2.is_some(),
            "no cgroup2 file system in /proc/self/mounts; boot with systemd.unified_cgroup_hierarchy=1 or mount one",
        ),
        host_feature(
            "bpffs mount",
            "keeping programs, links and maps while no agent runs",
            mount_of(&mounts, "bpf").is_some() || may_mount_bpffs(),
            "no bpf file system in /proc/self/mounts, and this process may not mount one; mount -t bpf bpf /sys/fs/bpf helps",
        ),
        host_feature(
            "kernel BTF",
            "socket storage",
            Path::new("/sys/kernel/btf/vmlinux").exists(),
            "no /sys/kernel/btf/vmlinux; the kernel is built without CONFIG_DEBUG_INFO_BTF",
        ),
        cookie_feature(),
    ];
    features.extend(HELPERS.iter().map(helper_feature));
    let (capture, acceleration) = object::try_all();
    features.extend(capture.into_iter().map(|(program, result)| Feature {
        name: format!("program {program}"),
        purpose: purpose_of(program).to_owned(),
        verdict: verdict(result.map_err(|error| chain(&error))),
    }));
    Capabilities {
        kernel: kernel.trim().to_owned(),
        cgroup2,
        bpffs: mount_of(&mounts, "bpf"),
        features,
        acceleration: accel_features(acceleration),
    }
}

fn accel_features(tried: object::Tried<String>) -> Vec<Feature> {
    let purpose = |name: &str| match name {
        "kernel structures" => "reading what sockets have sent and read",
        "millrace_message" => "moving messages past the TCP stack",
        "millrace_promote" => "promoting connections",
        _ => "acceleration",
    };
    tried
        .into_iter()
        .map(|(name, result)| Feature {
            name: name.to_owned(),
            purpose: purpose(name).to_owned(),
            verdict: verdict(result),
        })
        .collect()
}

/// Why bpf(2) fails for a process that has the capabilities for it, and what helps.
fn refused_call(error: &io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "a seccomp filter or a security module forbids it; allow the system call `bpf` in the \
             profile that this process runs under"
        }
        Some(libc::ENOSYS) => {
            "the kernel is built without CONFIG_BPF_SYSCALL, or a seccomp filter hides it"
        }
        _ => "the smallest of maps cannot be made",
    };
    format!("bpf(2) fails: {error}; {cause}")
}

fn may_mount_bpffs() -> bool {
    let known = fs::read_to_string("/proc/filesystems")
        .is_ok_and(|text| text.split_whitespace().any(|word| word == "bpf"));
    known && crate::privileges::require(&[caps::Capability::CAP_SYS_ADMIN]).is_ok()
}

/// First mount point of a file system type, from the text of `/proc/self/mounts` (proc(5)).
fn mount_of(mounts: &str, kind: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == kind).then(|| PathBuf::from(unescape(path)))
    })
}

/// Octal escapes of space, tab, newline and backslash in `/proc/self/mounts`.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

struct Helper {
    program: ProgramType,
    function: BpfHelper,
    name: &'static str,
    purpose: &'static str,
}

const HELPERS: [Helper; 10] = [
    Helper {
        program: ProgramType::CgroupSockAddr,
        function: BpfHelper::BPF_FUNC_get_netns_cookie,
        name: "bpf_get_netns_cookie in connect programs",
        purpose: "knowing the pod",
    },
    Helper {
        program: ProgramType::CgroupSockAddr,
        function: BpfHelper::BPF_FUNC_sk_storage_get,
        name: "bpf_sk_storage_get in connect programs",
        purpose: "remembering the original destination",
    },
    Helper {
        program: ProgramType::CgroupSockAddr,
        function: BpfHelper::BPF_FUNC_bind,
        name: "bpf_bind in connect programs",
        purpose: "keeping the pod's address as source",
    },
    Helper {
        program: ProgramType::CgroupSockAddr,
        function: BpfHelper::BPF_FUNC_sk_lookup_tcp,
        name: "bpf_sk_lookup_tcp in connect programs",
        purpose: "open pods going direct without a listener",
    },
    Helper {
        program: ProgramType::CgroupSockAddr,
        function: BpfHelper::BPF_FUNC_sk_lookup_udp,
        name: "bpf_sk_lookup_udp in connect programs",
        purpose: "open pods resolving names without a listener",
    },
    Helper {
        program: ProgramType::SockOps,
        function: BpfHelper::BPF_FUNC_get_netns_cookie,
        name: "bpf_get_netns_cookie in sockops programs",
        purpose: "handing the original destination over",
    },
    Helper {
        program: ProgramType::SockOps,
        function: BpfHelper::BPF_FUNC_sk_storage_get,
        name: "bpf_sk_storage_get in sockops programs",
        purpose: "handing the original destination over",
    },
    Helper {
        program: ProgramType::CgroupSockopt,
        function: BpfHelper::BPF_FUNC_get_netns_cookie,
        name: "bpf_get_netns_cookie in getsockopt programs",
        purpose: "answering SO_ORIGINAL_DST",
    },
    Helper {
        program: ProgramType::CgroupSockopt,
        function: BpfHelper::BPF_FUNC_sk_storage_get,
        name: "bpf_sk_storage_get in getsockopt programs",
        purpose: "answering SO_ORIGINAL_DST",
    },
    Helper {
        program: ProgramType::SkLookup,
        function: BpfHelper::BPF_FUNC_sk_assign,
        name: "bpf_sk_assign in sk_lookup programs",
        purpose: "inbound capture",
    },
];

fn helper_feature(helper: &Helper) -> Feature {
    let result = match is_helper_supported(helper.program, helper.function) {
        Ok(true) => Ok(()),
        Ok(false) => Err("this kernel does not have it".to_owned()),
        Err(error) => Err(chain(&error)),
    };
    Feature {
        name: helper.name.to_owned(),
        purpose: helper.purpose.to_owned(),
        verdict: verdict(result),
    }
}

fn cookie_feature() -> Feature {
    Feature {
        name: "SO_NETNS_COOKIE".to_owned(),
        purpose: "naming a pod's network namespace".to_owned(),
        verdict: verdict(
            super::netns_cookie()
                .map(drop)
                .map_err(|error| format!("{error}; the kernel must be 5.14 or later")),
        ),
    }
}

fn host_feature(name: &str, purpose: &str, present: bool, reason: &str) -> Feature {
    Feature {
        name: name.to_owned(),
        purpose: purpose.to_owned(),
        verdict: verdict(if present {
            Ok(())
        } else {
            Err(reason.to_owned())
        }),
    }
}

fn purpose_of(program: &str) -> &'static str {
    match program {
        "millrace_connect4" | "millrace_connect6" => "outbound capture",
        "millrace_peer4" | "millrace_peer6" => "applications seeing the peer that they asked for",
        "millrace_send4" | "millrace_send6" | "millrace_recv4" | "millrace_recv6" => "DNS capture",
        "millrace_create" => "telling the proxy's sockets from those with a forged mark",
        "millrace_getopt" => "answering SO_ORIGINAL_DST",
        "millrace_setopt" => "seeing options that acceleration cannot honour",
        "millrace_sockops" => "handing original destinations over, L4 telemetry",
        "millrace_lookup" => "inbound capture",
        _ => "everything",
    }
}

fn verdict(result: Result<(), String>) -> Verdict {
    match result {
        Ok(()) => Verdict::Available,
        Err(reason) => Verdict::Missing { reason },
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.trim().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                          cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                          cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n";

    #[test]
    fn cgroup2_is_found_beside_cgroup_v1() {
        assert_eq!(
            mount_of(HYBRID, "cgroup2"),
            Some(PathBuf::from("/sys/fs/cgroup/uni fied"))
        );
        assert_eq!(mount_of(HYBRID, "bpf"), None);
    }

    #[test]
    fn what_is_missing_is_named_with_its_reason() {
        let capabilities = Capabilities {
            kernel: "6.1".to_owned(),
            cgroup2: None,
            bpffs: None,
            features: vec![
                host_feature("kernel BTF", "x", true, ""),
                host_feature("cgroup2 mount", "x", false, "none"),
            ],
            acceleration: Vec::new(),
        };
        assert_eq!(capabilities.ebpf(), Err("cgroup2 mount: none".to_owned()));
    }

    #[test]
    fn a_refused_call_is_told_instead_of_all_that_it_makes_impossible() {
        let call = refused_call(&io::Error::from_raw_os_error(libc::EPERM));
        let feature = |name, reason| host_feature(name, "x", false, reason);
        let capabilities = Capabilities {
            kernel: "6.1".to_owned(),
            cgroup2: None,
            bpffs: None,
            features: vec![
                feature(BPF_CALL, call.as_str()),
                feature("program millrace_connect4", "refused"),
            ],
            acceleration: Vec::new(),
        };
        let told = capabilities.ebpf().expect_err("nothing can be loaded");
        assert_eq!(told, call);
        assert!(told.contains("seccomp"), "{told}");
    }

    #[test]
    fn one_cause_of_many_is_told_once() {
        let feature = |name, reason| host_feature(name, "x", false, reason);
        let capabilities = Capabilities {
            kernel: "6.1".to_owned(),
            cgroup2: None,
            bpffs: None,
            features: vec![
                feature("a", "refused"),
                feature("b", "too old"),
                feature("c", "refused"),
            ],
            acceleration: Vec::new(),
        };
        let told = "a and 1 more: refused; b: too old";
        assert_eq!(capabilities.ebpf(), Err(told.to_owned()));
    }

    #[test]
    fn capabilities_survive_json() {
        let feature = host_feature("kernel BTF", "x", false, "none");
        let text = serde_json::to_string(&feature).expect("serialises");
        assert!(text.contains(r#""verdict":"missing""#), "{text}");
        assert_eq!(
            serde_json::from_str::<Feature>(&text).expect("parses"),
            feature
        );
    }
}
