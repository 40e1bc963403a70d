//! Where the running kernel keeps what the acceleration programs read: member offsets from its BTF.
//!
//! Reads as much of the format as that takes (Documentation/bpf/btf.rst); the whole of it lists some
//! 150,000 types. Called once per load and by the probe.

use std::collections::HashMap;
use std::fs;
use std::sync::OnceLock;

use millrace_ebpf_abi::KernelLayout;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Names and unnamed members within each other, at most; real ones need four.
const DEPTH: u32 = 16;

/// Offsets of everything that the programs read, or which of it this kernel does not have. Read once: a kernel
/// does not change.
pub(super) fn kernel_layout() -> Result<KernelLayout, String> {
    static LAYOUT: OnceLock<Result<KernelLayout, String>> = OnceLock::new();
    LAYOUT.get_or_init(read).clone()
}

fn read() -> Result<KernelLayout, String> {
    let bytes = fs::read(VMLINUX).map_err(|error| format!("{VMLINUX}: {error}"))?;
    layout(&Btf::parse(&bytes).ok_or_else(|| format!("{VMLINUX} is malformed"))?)
}

fn layout(btf: &Btf<'_>) -> Result<KernelLayout, String> {
    let sock =
        |path: &str, size| btf.offset("tcp_sock", &format!("inet_conn.icsk_inet.sk.{path}"), size);
    // Came with the count of redirected bytes in ioctl(FIONREAD), which nginx relies on. Asked for first: of all
    // that an older kernel lacks it is what matters.
    let psock_unread = btf.offset("sk_psock", "msg_tot_len", 4).map_err(|_| {
        "this kernel's ioctl(FIONREAD) does not count redirected bytes (no sk_psock.msg_tot_len)"
    })?;
    let inq = btf.member("tcp_sock", "recvmsg_inq")?;
    let mut excluded_flags = 0;
    for flag in [
        "SOCK_URGINLINE",
        "SOCK_RCVTSTAMP",
        "SOCK_RCVTSTAMPNS",
        "SOCK_ZEROCOPY",
    ] {
        let bit = btf
            .enumerator("sock_flags", flag)
            .filter(|bit| *bit < u32::BITS)
            .ok_or_else(|| format!("no enumerator {flag} in the kernel's BTF"))?;
        excluded_flags |= 1 << bit;
    }
    Ok(KernelLayout {
        cookie: sock("__sk_common.skc_cookie", 8)?,
        flags: sock("__sk_common.skc_flags", 8)?,
        prot: sock("__sk_common.skc_prot", 8)?,
        memory_pressure: btf.offset("proto", "memory_pressure", 8)?,
        net: sock("__sk_common.skc_net", 8)?,
        net_cookie: btf.offset("net", "net_cookie", 8)?,
        peek_off: sock("sk_peek_off", 4)?,
        rmem_alloc: sock("sk_backlog.rmem_alloc", 4)?,
        rcvbuf: sock("sk_rcvbuf", 4)?,
        filter: sock("sk_filter", 8)?,
        rcvlowat: sock("sk_rcvlowat", 4)?,
        socket: sock("sk_socket", 8)?,
        tsflags: sock("sk_tsflags", 4)?,
        priority: sock("sk_priority", 4)?,
        user_data: sock("sk_user_data", 8)?,
        copied_seq: btf.offset("tcp_sock", "copied_seq", 4)?,
        write_seq: btf.offset("tcp_sock", "write_seq", 4)?,
        inq: inq.bits / 8,
        inq_mask: 1 << (inq.bits % 8),
        mptcp: btf.offset("tcp_sock", "is_mptcp", 1)?,
        file: btf.offset("socket", "file", 8)?,
        file_flags: btf.offset("file", "f_flags", 4)?,
        psock_unread,
        psock_refs: btf.offset("sk_psock", "refcnt", 4)?,
        excluded_flags,
        known: 1,
    })
}

/// A member, by where it begins in the outermost structure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Member {
    bits: u32,
    kind: u32,
}

/// The types of a kernel.
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins; number 0 is `void`.
    starts: Vec<usize>,
    /// Structures and enumerations by name; several may have one.
    named: HashMap<&'a [u8], Vec<u32>>,
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        const MAGIC: u32 = 0xeb9f;
        if word(bytes, 0)? & 0xffff != MAGIC {
            return None;
        }
        let header = usize_of(word(bytes, 4)?)?;
        let section = |offset: usize| {
            let start = header.checked_add(usize_of(word(bytes, offset)?)?)?;
            let length = usize_of(word(bytes, offset + 4)?)?;
            bytes.get(start..start.checked_add(length)?)
        };
        let types = section(8)?;
        let mut starts = vec![0];
        let mut at = 0;
        while at < types.len() {
            starts.push(at);
            at += 12 + extra(word(types, at + 4)?);
        }
        let mut btf = Self {
            types,
            strings: section(16)?,
            starts,
            named: HashMap::new(),
        };
        for index in 1..btf.starts.len() {
            let kind = u32::try_from(index).ok()?;
            if [STRUCT, ENUM].contains(&btf.kind(kind)?) {
                let name = btf.name(kind)?;
                btf.named.entry(name).or_default().push(kind);
            }
        }
        Some(btf)
    }

    fn named(&self, name: &str) -> impl Iterator<Item = u32> {
        self.named
            .get(name.as_bytes())
            .into_iter()
            .flatten()
            .copied()
    }

    /// Byte offset of a member that must have `size` bytes.
    fn offset(&self, root: &str, path: &str, size: u32) -> Result<u32, String> {
        let member = self.member(root, path)?;
        let found = self.size(member.kind);
        if member.bits.is_multiple_of(8) && found == Some(size) {
            Ok(member.bits / 8)
        } else {
            Err(format!(
                "{root}.{path} has {found:?} bytes in this kernel, not {size}"
            ))
        }
    }

    fn member(&self, root: &str, path: &str) -> Result<Member, String> {
        let first = path.split('.').next().unwrap_or_default();
        let structure = self
            .named(root)
            .find(|kind| self.find(*kind, first, DEPTH).is_some());
        let mut place = Member {
            bits: 0,
            kind: structure.ok_or_else(|| format!("no {root}.{path} in the kernel's BTF"))?,
        };
        for name in path.split('.') {
            let inner = self
                .find(place.kind, name, DEPTH)
                .ok_or_else(|| format!("no {root}.{path} in the kernel's BTF"))?;
            place = Member {
                bits: place.bits.saturating_add(inner.bits),
                kind: inner.kind,
            };
        }
        Ok(place)
    }

    /// A member of a structure or union, those of unnamed members included.
    fn find(&self, structure: u32, name: &str, depth: u32) -> Option<Member> {
        let deeper = depth.checked_sub(1)?;
        let structure = self.resolve(structure)?;
        if ![STRUCT, UNION].contains(&self.kind(structure)?) {
            return None;
        }
        let info = self.word(structure, 4)?;
        (0..usize_of(info & 0xffff)?).find_map(|index| {
            let at = 12 + index * 12;
            let kind = self.word(structure, at + 4)?;
            let raw = self.word(structure, at + 8)?;
            // With the kind flag the upper byte is the size of a bit field.
            let bits = if info >> 31 == 1 {
                raw & 0xff_ffff
            } else {
                raw
            };
            let own = self.string(self.word(structure, at)?)?;
            if own == name.as_bytes() {
                return Some(Member { bits, kind });
            }
            let inner = own.is_empty().then(|| self.find(kind, name, deeper))??;
            Some(Member {
                bits: bits.saturating_add(inner.bits),
                kind: inner.kind,
            })
        })
    }

    fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        self.named(enumeration).find_map(|kind| {
            if self.kind(kind)? != ENUM {
                return None;
            }
            let count = usize_of(self.word(kind, 4)? & 0xffff)?;
            (0..count).find_map(|index| {
                let at = 12 + index * 8;
                (self.string(self.word(kind, at)?)? == name.as_bytes())
                    .then(|| self.word(kind, at + 4))?
            })
        })
    }

    fn size(&self, kind: u32) -> Option<u32> {
        let kind = self.resolve(kind)?;
        match self.kind(kind)? {
            PTR => Some(8),
            INT | STRUCT | UNION | ENUM | ENUM64 => self.word(kind, 8),
            _ => None,
        }
    }

    /// The type behind names and qualifiers.
    fn resolve(&self, mut kind: u32) -> Option<u32> {
        for _ in 0..DEPTH {
            if ![TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG].contains(&self.kind(kind)?) {
                return Some(kind);
            }
            kind = self.word(kind, 8)?;
        }
        None
    }

    fn kind(&self, kind: u32) -> Option<u32> {
        Some(kind_of(self.word(kind, 4)?))
    }

    fn name(&self, kind: u32) -> Option<&'a [u8]> {
        self.string(self.word(kind, 0)?)
    }

    fn word(&self, kind: u32, at: usize) -> Option<u32> {
        word(self.types, self.starts.get(usize_of(kind)?)? + at)
    }

    fn string(&self, offset: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(usize_of(offset)?..)?;
        rest.split(|byte| *byte == 0).next()
    }
}

/// Bytes that follow a type's first twelve.
fn extra(info: u32) -> usize {
    let count = (info & 0xffff) as usize;
    match kind_of(info) {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => count * 12,
        ENUM | FUNC_PROTO => count * 8,
        _ => 0,
    }
}

fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn usize_of(value: u32) -> Option<usize> {
    usize::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; union { struct inner { unsigned char b:4, c:4; } in; }; enum e d; }`, as BTF.
    fn small() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0inner\0b\0c\0in\0e\0X\0uchar\0d\0";
        let name = |text: &str| {
            let wanted: Vec<u8> = [b"\0", text.as_bytes(), b"\0"].concat();
            let at = strings.windows(wanted.len()).position(|w| w == wanted);
            u32::try_from(at.unwrap() + 1).unwrap()
        };
        let info = |kind: u32, count: u32| kind << 24 | count;
        let bit_fields = 1 << 31;
        let types: Vec<u32> = [
            vec![name("int"), info(INT, 0), 4, 32],
            vec![name("uchar"), info(INT, 0), 1, 8],
            vec![name("inner"), info(STRUCT, 2) | bit_fields, 1],
            vec![name("b"), 2, 4 << 24, name("c"), 2, 4 << 24 | 4],
            vec![0, info(UNION, 1), 1, name("in"), 3, 0],
            vec![name("e"), info(ENUM, 1), 4, name("X"), 7],
            vec![name("outer"), info(STRUCT, 3), 12],
            vec![name("a"), 1, 0, 0, 4, 32, name("d"), 5, 64],
        ]
        .concat();
        let length = u32::try_from(types.len() * 4).unwrap();
        let text = u32::try_from(strings.len()).unwrap();
        let header = [0x1_eb9f, 24, 0, length, length, text];
        let mut bytes: Vec<u8> = header.iter().flat_map(|w: &u32| w.to_ne_bytes()).collect();
        bytes.extend(types.iter().flat_map(|w| w.to_ne_bytes()));
        bytes.extend_from_slice(strings);
        bytes
    }

    #[test]
    fn members_are_found_through_unnamed_ones() {
        let bytes = small();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("outer", "a", 4), Ok(0));
        assert_eq!(btf.offset("outer", "d", 4), Ok(8));
        assert_eq!(btf.member("outer", "in.c").map(|m| m.bits), Ok(36));
        assert_eq!(btf.enumerator("e", "X"), Some(7));
        assert_eq!(btf.enumerator("e", "Y"), None);
        let error = btf.offset("outer", "z", 4).unwrap_err();
        assert_eq!(error, "no outer.z in the kernel's BTF");
        assert!(btf.offset("outer", "a", 8).is_err());
    }

    #[test]
    fn damaged_input_is_refused_or_read_but_never_panics() {
        let bytes = small();
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                if let Some(btf) = Btf::parse(&damaged) {
                    drop(btf.offset("outer", "in.c", 4));
                    btf.enumerator("e", "X");
                }
            }
            if let Some(btf) = Btf::parse(&bytes[..at]) {
                drop(btf.offset("outer", "a", 4));
            }
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let bytes = small();
        let error = layout(&Btf::parse(&bytes).unwrap()).unwrap_err();
        assert!(error.contains("FIONREAD"), "{error}");
    }
}
