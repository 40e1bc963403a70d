//! What nftables has in a namespace, asked of the kernel itself: a few messages, where listing it takes a process.
//!
//! Only so much is understood as tells whether the guard is whole and whether there are rules of others; the
//! rest goes into digests, by which a rule set is told from the one that was there before. What packets change
//! (counters, elements that are remembered for a while) stays out of them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use sha2::{Digest as _, Sha256};

use crate::broker::guard;

/// Tells one state of rules from another.
pub(super) type Digest = [u8; 32];

/// Messages of nftables (`linux/netfilter/nf_tables.h`).
const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLES: u16 = SUBSYSTEM + 1;
const GET_CHAINS: u16 = SUBSYSTEM + 4;
const GET_RULES: u16 = SUBSYSTEM + 7;
const GET_SETS: u16 = SUBSYSTEM + 10;
const GET_ELEMENTS: u16 = SUBSYSTEM + 13;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `nlmsghdr`.
const HEADER: usize = 16;
/// `nlmsghdr` and `nfgenmsg`.
const HEADERS: usize = HEADER + 4;
/// The name of a table; of what belongs to one, the table's.
const TABLE: u16 = 1;
/// Of `NFTA_CHAIN_`.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
/// Of `NFTA_HOOK_`.
const HOOK_NUMBER: u16 = 1;
const HOOK_DEVICES: u16 = 4;
/// Of `NFTA_RULE_`.
const RULE_EXPRESSIONS: u16 = 4;
/// Of `NFTA_EXPR_`, and of `NFTA_DEVICE_`.
const NAME: u16 = 1;
/// Of `NFTA_SET_`.
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_ANONYMOUS: u32 = 1;
/// Of `NFTA_SET_ELEM_LIST_`.
const ELEMENTS: u16 = 3;
/// Expressions with a state that packets change.
const COUNTING: [&[u8]; 5] = [b"counter", b"quota", b"limit", b"last", b"connlimit"];
/// Longest rule set that is read.
const LONGEST: usize = 4 << 20;

/// Which attributes of a kind of object say what it does: not handles and numbers of users.
fn lasts(get: u16, kind: u16) -> bool {
    match get {
        GET_TABLES => [TABLE, 2].contains(&kind),
        // Table, name, hook, policy, type, flags.
        GET_CHAINS => [TABLE, CHAIN_NAME, CHAIN_HOOK, 5, 7, 10].contains(&kind),
        // Table, chain, expressions, compatibility, what the tool wrote beside it.
        GET_RULES => [TABLE, 2, RULE_EXPRESSIONS, 5, 7].contains(&kind),
        // Not its handle, nor how many elements it has.
        GET_SETS => ![16, 20].contains(&kind),
        _ => true,
    }
}

/// A rule set as far as it is understood.
#[derive(Debug)]
pub(super) struct Ruleset {
    /// All of it.
    pub(super) whole: Digest,
    /// The guard's own tables.
    pub(super) guard: Digest,
    /// What there is of the one that sees what the IP stack sends.
    pub(super) table: Table,
    /// It says that packet sockets are not held.
    pub(super) says_unheld: bool,
    /// Devices on which they are.
    pub(super) held: Vec<String>,
    /// There are tables that are not the guard's.
    pub(super) has_others: bool,
}

/// The guard's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Gone,
    /// Nothing that leaves is judged.
    Empty,
    Judges,
}

impl Ruleset {
    /// Of the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel does not tell, or there is more than anybody would write by hand.
    pub(super) fn read() -> io::Result<Self> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        let mut reading = Reading::new();
        let mut sets = Vec::new();
        for get in [GET_TABLES, GET_CHAINS, GET_RULES, GET_SETS] {
            for object in dump(&netlink, get, 0, &[])? {
                reading.take(get, &object);
                if get == GET_SETS && has_lasting_elements(&object) {
                    sets.push(object);
                }
            }
        }
        for set in sets {
            let name = |kind| set.attribute(kind).unwrap_or_default();
            let of = [(TABLE, name(TABLE)), (SET_NAME, name(SET_NAME))];
            for elements in dump(&netlink, GET_ELEMENTS, set.family, &of)? {
                reading.take_elements(&elements);
            }
        }
        Ok(reading.finish())
    }
}

/// Elements that only rules and tools change, of sets whose elements matter.
fn has_lasting_elements(set: &Object) -> bool {
    let flags = set.attribute(SET_FLAGS).and_then(number).unwrap_or(0);
    let is_remembered = set.text(SET_NAME) == guard::STEERED;
    flags & SET_ANONYMOUS != 0 || (set.is_guards() && !is_remembered)
}

/// What has been read so far.
struct Reading {
    whole: Sha256,
    guard: Sha256,
    found: Ruleset,
}

impl Reading {
    fn new() -> Self {
        Self {
            whole: Sha256::new(),
            guard: Sha256::new(),
            found: Ruleset {
                whole: Digest::default(),
                guard: Digest::default(),
                table: Table::Gone,
                says_unheld: false,
                held: Vec::new(),
                has_others: false,
            },
        }
    }

    fn take(&mut self, get: u16, object: &Object) {
        let mut lasting = get.to_ne_bytes().to_vec();
        for (kind, value) in attributes(&object.body).filter(|(kind, _)| lasts(get, *kind)) {
            if get == GET_RULES && kind == RULE_EXPRESSIONS {
                for (_, expression) in attributes(value) {
                    put(&mut lasting, kind, lasting_part(expression));
                }
            } else {
                put(&mut lasting, kind, value);
            }
        }
        self.keep(object, &lasting);
        let found = &mut self.found;
        if !object.is_guards() {
            found.has_others = true;
            return;
        }
        let is_inet = i32::from(object.family) == libc::NFPROTO_INET;
        match get {
            GET_TABLES if is_inet => found.table = found.table.max(Table::Empty),
            GET_CHAINS if is_inet => {
                let hook = object.attribute(CHAIN_HOOK).unwrap_or_default();
                let at = attribute(hook, HOOK_NUMBER).and_then(number);
                if at == u32::try_from(libc::NF_INET_LOCAL_OUT).ok() {
                    found.table = Table::Judges;
                }
                found.says_unheld |= object.text(CHAIN_NAME) == guard::UNHELD;
            }
            GET_CHAINS => {
                let hook = object.attribute(CHAIN_HOOK).unwrap_or_default();
                let devices = attribute(hook, HOOK_DEVICES).unwrap_or_default();
                let named = attributes(devices).filter(|(kind, _)| *kind == NAME);
                found.held.extend(named.map(|(_, name)| text(name)));
            }
            _ => {}
        }
    }

    /// The kernel lists elements in no order.
    fn take_elements(&mut self, object: &Object) {
        let list = object.attribute(ELEMENTS).unwrap_or_default();
        let mut elements: Vec<&[u8]> = attributes(list).map(|(_, element)| element).collect();
        elements.sort_unstable();
        let mut lasting = GET_ELEMENTS.to_ne_bytes().to_vec();
        for name in [TABLE, SET_NAME] {
            put(
                &mut lasting,
                name,
                object.attribute(name).unwrap_or_default(),
            );
        }
        for element in elements {
            put(&mut lasting, ELEMENTS, element);
        }
        self.keep(object, &lasting);
    }

    fn keep(&mut self, object: &Object, lasting: &[u8]) {
        let length = lasting.len().to_ne_bytes();
        for digest in [
            Some(&mut self.whole),
            Some(&mut self.guard).filter(|_| object.is_guards()),
        ]
        .into_iter()
        .flatten()
        {
            digest.update([object.family]);
            digest.update(length);
            digest.update(lasting);
        }
    }

    fn finish(self) -> Ruleset {
        Ruleset {
            whole: self.whole.finalize().into(),
            guard: self.guard.finalize().into(),
            ..self.found
        }
    }
}

/// An attribute as it goes into a digest.
fn put(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    into.extend(kind.to_ne_bytes());
    into.extend(value.len().to_ne_bytes());
    into.extend(value);
}

/// An expression; without its state, of one that has any.
fn lasting_part(expression: &[u8]) -> &[u8] {
    let name = attribute(expression, NAME).unwrap_or_default();
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    if COUNTING.contains(&name) {
        name
    } else {
        expression
    }
}

/// One object of a rule set.
#[derive(Debug)]
struct Object {
    family: u8,
    /// Its attributes.
    body: Vec<u8>,
}

impl Object {
    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        attribute(&self.body, kind)
    }

    fn text(&self, kind: u16) -> String {
        text(self.attribute(kind).unwrap_or_default())
    }

    /// Whether it is one of the guard's tables, or belongs to one.
    fn is_guards(&self) -> bool {
        let families = [libc::NFPROTO_INET, libc::NFPROTO_NETDEV];
        families.contains(&i32::from(self.family)) && self.text(TABLE) == guard::TABLE
    }
}

fn text(value: &[u8]) -> String {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(value).into_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut all = attributes(bytes);
    all.find(|(other, _)| *other == kind)
        .map(|(_, value)| value)
}

/// Kind and value of each attribute, as far as they are well formed.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The upper bits say that it is nested, or in network order.
        Some((kind & 0x3fff, value))
    })
}

/// Everything of a kind; of elements, those of the set `of`.
fn dump(netlink: &OwnedFd, get: u16, family: u8, of: &[(u16, &[u8])]) -> io::Result<Vec<Object>> {
    let mut request = vec![0; HEADERS];
    request[4..6].copy_from_slice(&get.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    request[HEADER] = family;
    for (kind, value) in of {
        let length = u16::try_from(4 + value.len()).map_err(io::Error::other)?;
        request.extend(length.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(*value);
        request.resize(request.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(request.len()).map_err(io::Error::other)?;
    request[..4].copy_from_slice(&length.to_ne_bytes());
    let kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
    let mut found = Vec::new();
    let mut read = 0;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        read += length;
        if read > LONGEST {
            return Err(io::Error::other("the rule set is too long to be read"));
        }
        if take_messages(&buffer[..length], &mut found)? {
            return Ok(found);
        }
    }
}

/// The objects in what was received at once; true after the last one of all.
fn take_messages(mut rest: &[u8], found: &mut Vec<Object>) -> io::Result<bool> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "no rule set");
    while !rest.is_empty() {
        let bytes = |from: usize, to: usize| rest.get(from..to).ok_or_else(malformed);
        let length: [u8; 4] = bytes(0, 4)?.try_into().map_err(io::Error::other)?;
        let kind: [u8; 2] = bytes(4, 6)?.try_into().map_err(io::Error::other)?;
        let length = usize::try_from(u32::from_ne_bytes(length)).map_err(io::Error::other)?;
        let message = bytes(0, length.max(HEADER))?;
        match u16::from_ne_bytes(kind) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = message.get(HEADER..HEADERS).ok_or_else(malformed)?;
                let code = i32::from_ne_bytes(code.try_into().map_err(io::Error::other)?);
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            _ => found.push(Object {
                family: *message.get(HEADER).ok_or_else(malformed)?,
                body: message.get(HEADERS..).unwrap_or_default().to_vec(),
            }),
        }
        rest = rest
            .get(length.max(HEADER).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
