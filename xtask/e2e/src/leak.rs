//! An application that tries to get a packet out of its pod past capture: `leak WAY DESTINATION [MARK]`.
//!
//! Prints what became of the attempt and ends with success, also when it was refused: whether anything left is
//! for the witness on the wire to say. With `MARK` (hexadecimal) the packet carries that mark.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "constants and lengths of the kernel's interface, whose types differ from field to field"
)]
#![expect(clippy::print_stdout, reason = "what became of it is its output")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::process::ExitCode;

use nix::libc::{self, c_int, c_void};
use socket2::SockAddr;

/// `PACKET_QDISC_BYPASS` (`linux/if_packet.h`).
const QDISC_BYPASS: c_int = 20;
const DEVICE: &std::ffi::CStr = c"eth0";
const SYN: u8 = 0x02;
const PUSH_ACK: u8 = 0x18;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [way, destination, rest @ ..] = &arguments[..] else {
        eprintln!("usage: leak WAY ADDRESS:PORT [MARK]");
        return ExitCode::from(2);
    };
    let mark = rest
        .first()
        .and_then(|mark| u32::from_str_radix(mark, 16).ok());
    let Ok(to) = destination.parse() else {
        eprintln!("leak: {destination:?} is not an address with a port");
        return ExitCode::from(2);
    };
    match attempt(way, to, mark) {
        Some(Ok(told)) => println!("{way}: {told}"),
        Some(Err(error)) => println!("{way}: refused: {error}"),
        None => {
            eprintln!("leak: there is no way {way:?}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn attempt(way: &str, to: SocketAddr, mark: Option<u32>) -> Option<io::Result<String>> {
    Some(match way {
        "raw-syn" => raw(
            to,
            Header::Plain,
            &tcp(to, SYN, b""),
            libc::IPPROTO_TCP,
            mark,
        ),
        "raw-data" => {
            let segment = tcp(to, PUSH_ACK, b"un-proxied");
            raw(to, Header::Plain, &segment, libc::IPPROTO_TCP, mark)
        }
        "raw-dns" => raw(
            to,
            Header::Plain,
            &udp(to, b"question"),
            libc::IPPROTO_UDP,
            mark,
        ),
        "raw-fragment" => fragment(to, mark),
        "raw-options" => raw(
            to,
            Header::Options,
            &tcp(to, SYN, b""),
            libc::IPPROTO_TCP,
            mark,
        ),
        "raw-atomic" => raw(
            to,
            Header::Fragment(0),
            &tcp(to, SYN, b""),
            libc::IPPROTO_TCP,
            mark,
        ),
        "packet" => packet(&frame(to, Header::Plain), ether_type(to), false, mark),
        "packet-bypass" => packet(&frame(to, Header::Plain), ether_type(to), true, mark),
        "packet-disguised" => packet(&frame(to, Header::Plain), libc::ETH_P_ARP, true, mark),
        "packet-options" => packet(&frame(to, Header::Options), ether_type(to), true, mark),
        "xdp" => xdp(to),
        "datagram" => datagram(to, mark, false),
        "datagram-connected" => datagram(to, mark, true),
        "datagram-marked" => marked_message(to, mark.unwrap_or_default()),
        "connect" => connect(to, mark),
        "fast-open" => fast_open(to, mark),
        "fast-open-connect" => fast_open_connect(to, mark),
        _ => return None,
    })
}

/// A packet with an IP header made by hand.
fn raw(
    to: SocketAddr,
    header: Header,
    segment: &[u8],
    protocol: c_int,
    mark: Option<u32>,
) -> io::Result<String> {
    let socket = socket(family(to), libc::SOCK_RAW, libc::IPPROTO_RAW, mark)?;
    if to.is_ipv4() && matches!(header, Header::Fragment(_)) {
        option(&socket, libc::SOL_IP, libc::IP_NODEFRAG, 1)?;
    }
    // The port of such a socket's address is a protocol in IPv6.
    let there = SocketAddr::new(to.ip(), 0);
    let sent = send_to(&socket, &ip(to, header, segment, protocol), there)?;
    Ok(format!("sent {sent} bytes"))
}

/// A second fragment, in which no port or flag can be seen.
fn fragment(to: SocketAddr, mark: Option<u32>) -> io::Result<String> {
    raw(to, Header::Fragment(4), &[7; 64], libc::IPPROTO_TCP, mark)
}

/// A frame past the IP stack, which says of itself that it is `protocol`.
fn packet(frame: &[u8], protocol: c_int, bypass: bool, mark: Option<u32>) -> io::Result<String> {
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0, mark)?;
    if bypass {
        option(&socket, libc::SOL_PACKET, QDISC_BYPASS, 1)?;
    }
    // SAFETY: all zero is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = device() as c_int;
    address.sll_halen = 6;
    address.sll_addr[..6].fill(0xff);
    // SAFETY: frame and address outlive the call and have the lengths that are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    told(sent)
}

fn frame(to: SocketAddr, header: Header) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend((ether_type(to) as u16).to_be_bytes());
    frame.extend(ip(to, header, &tcp(to, SYN, b""), libc::IPPROTO_TCP));
    frame
}

fn ether_type(to: SocketAddr) -> c_int {
    if to.is_ipv4() {
        libc::ETH_P_IP
    } else {
        libc::ETH_P_IPV6
    }
}

fn family(to: SocketAddr) -> c_int {
    if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }
}

fn device() -> u32 {
    // SAFETY: the name outlives the call.
    unsafe { libc::if_nametoindex(DEVICE.as_ptr()) }
}

/// Frames and descriptors in the rings of [`xdp`].
const RING: u32 = 64;
const FRAME_SIZE: u32 = 2048;

/// A frame that the device's driver is handed directly (`linux/if_xdp.h`).
fn xdp(to: SocketAddr) -> io::Result<String> {
    let socket = socket(libc::AF_XDP, libc::SOCK_RAW, 0, None)?;
    let memory = share_memory(&socket)?;
    for ring in [
        libc::XDP_UMEM_FILL_RING,
        libc::XDP_UMEM_COMPLETION_RING,
        libc::XDP_TX_RING,
    ] {
        option(&socket, libc::SOL_XDP, ring, RING as c_int)?;
    }
    let offsets = ring_offsets(&socket)?.tx;
    let ring = map(
        socket.as_raw_fd(),
        libc::MAP_SHARED | libc::MAP_POPULATE,
        offsets.desc as usize + RING as usize * size_of::<libc::xdp_desc>(),
        libc::XDP_PGOFF_TX_RING as libc::off_t,
    )?;
    bind_to_device(&socket)?;
    let frame = frame(to, Header::Plain);
    let descriptor = libc::xdp_desc {
        addr: 0,
        len: frame.len() as u32,
        options: 0,
    };
    // SAFETY: frame, descriptor and producer lie within what was mapped.
    told(unsafe {
        memory.cast::<u8>().copy_from(frame.as_ptr(), frame.len());
        ring.byte_add(offsets.desc as usize)
            .cast::<libc::xdp_desc>()
            .write_volatile(descriptor);
        ring.byte_add(offsets.producer as usize)
            .cast::<u32>()
            .write_volatile(1);
        libc::sendto(
            socket.as_raw_fd(),
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    })
}

/// Memory for frames that the kernel takes from and puts into.
fn share_memory(socket: &OwnedFd) -> io::Result<*mut c_void> {
    let size = (RING * FRAME_SIZE) as usize;
    let memory = map(-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, size, 0)?;
    // SAFETY: all zero is a valid value of this plain structure.
    let mut area: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
    area.addr = memory as u64;
    area.len = size as u64;
    area.chunk_size = FRAME_SIZE;
    // SAFETY: the structure outlives the call and has the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_UMEM_REG,
            (&raw const area).cast(),
            size_of::<libc::xdp_umem_reg>() as libc::socklen_t,
        )
    };
    told(result as isize).map(|_| memory)
}

fn ring_offsets(socket: &OwnedFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: all zero is a valid value of this plain structure.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::xdp_mmap_offsets>() as libc::socklen_t;
    // SAFETY: structure and length outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            (&raw mut offsets).cast(),
            &raw mut length,
        )
    };
    told(result as isize).map(|_| offsets)
}

fn bind_to_device(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: all zero is a valid value of this plain structure.
    let mut address: libc::sockaddr_xdp = unsafe { std::mem::zeroed() };
    address.sxdp_family = libc::AF_XDP as libc::sa_family_t;
    address.sxdp_flags = libc::XDP_COPY;
    address.sxdp_ifindex = device();
    // SAFETY: the address outlives the call and has the length that is given.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
        )
    };
    told(result as isize).map(drop)
}

fn map(fd: RawFd, flags: c_int, size: usize, offset: libc::off_t) -> io::Result<*mut c_void> {
    // SAFETY: asks for new memory, and touches none that is there.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            fd,
            offset,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(memory)
}

fn datagram(to: SocketAddr, mark: Option<u32>, connected: bool) -> io::Result<String> {
    let socket = socket(family(to), libc::SOCK_DGRAM, 0, mark)?;
    if !connected {
        return send_to(&socket, b"question", to).map(|sent| format!("sent {sent} bytes"));
    }
    connect_to(&socket, to)?;
    // SAFETY: the buffer outlives the call.
    told(unsafe { libc::send(socket.as_raw_fd(), b"question".as_ptr().cast(), 8, 0) })
}

/// The mark is the message's own, which no option of the socket tells.
fn marked_message(to: SocketAddr, mark: u32) -> io::Result<String> {
    let socket = socket(family(to), libc::SOCK_DGRAM, 0, None)?;
    let address = SockAddr::from(to);
    let mut payload = *b"question";
    let mut vector = libc::iovec {
        iov_base: payload.as_mut_ptr().cast(),
        iov_len: payload.len(),
    };
    let mut control = [0_u64; 4];
    // SAFETY: all zero is a valid value of this plain structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = address.as_ptr().cast_mut().cast();
    message.msg_namelen = address.len();
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the macros compute with the structure above, whose control buffer has room for one
    // message of four bytes and is aligned for its header.
    let sent = unsafe {
        message.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SO_MARK;
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header).cast::<u32>().write_unaligned(mark);
        libc::sendmsg(socket.as_raw_fd(), &raw const message, 0)
    };
    told(sent)
}

fn connect(to: SocketAddr, mark: Option<u32>) -> io::Result<String> {
    let socket = socket(family(to), libc::SOCK_STREAM, 0, mark)?;
    connect_to(&socket, to)?;
    send(&socket, REQUEST)?;
    status(&socket)
}

/// The first bytes travel with the SYN, without a `connect`.
fn fast_open(to: SocketAddr, mark: Option<u32>) -> io::Result<String> {
    let socket = socket(family(to), libc::SOCK_STREAM, 0, mark)?;
    let address = SockAddr::from(to);
    // SAFETY: buffer and address outlive the call and have the lengths that are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            REQUEST.as_ptr().cast(),
            REQUEST.len(),
            libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL,
            address.as_ptr().cast(),
            address.len(),
        )
    };
    told(sent)?;
    status(&socket)
}

/// The SYN leaves with the first `send`.
fn fast_open_connect(to: SocketAddr, mark: Option<u32>) -> io::Result<String> {
    let socket = socket(family(to), libc::SOCK_STREAM, 0, mark)?;
    option(&socket, libc::SOL_TCP, libc::TCP_FASTOPEN_CONNECT, 1)?;
    connect_to(&socket, to)?;
    send(&socket, REQUEST)?;
    status(&socket)
}

const REQUEST: &[u8] = b"GET /leak HTTP/1.1\r\nhost: echo:8080\r\nconnection: close\r\n\r\n";

/// The first line of the answer.
fn status(socket: &OwnedFd) -> io::Result<String> {
    let mut answer = [0_u8; 256];
    // SAFETY: the buffer outlives the call and has the length that is given.
    let read = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            answer.as_mut_ptr().cast::<c_void>(),
            answer.len(),
            0,
        )
    };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    let text = String::from_utf8_lossy(&answer[..read]).into_owned();
    Ok(format!(
        "answered {}",
        text.lines().next().unwrap_or("nothing")
    ))
}

fn socket(family: c_int, kind: c_int, protocol: c_int, mark: Option<u32>) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers; the descriptor is owned by nobody else.
    let socket = unsafe {
        let fd: RawFd = libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    if let Some(mark) = mark {
        option(&socket, libc::SOL_SOCKET, libc::SO_MARK, mark as c_int)?;
    }
    Ok(socket)
}

fn option(socket: &OwnedFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the value outlives the call and has the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    told(result as isize).map(drop)
}

fn connect_to(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    let address = SockAddr::from(to);
    // SAFETY: the address outlives the call and has the length that is given.
    let result =
        unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), address.len()) };
    told(result as isize).map(drop)
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the buffer outlives the call and has the length that is given.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_NOSIGNAL,
        )
    };
    told(sent).map(drop)
}

fn send_to(socket: &OwnedFd, bytes: &[u8], to: SocketAddr) -> io::Result<isize> {
    let address = SockAddr::from(to);
    // SAFETY: buffer and address outlive the call and have the lengths that are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            address.as_ptr().cast(),
            address.len(),
        )
    };
    told(sent).map(|_| sent)
}

fn told(result: isize) -> io::Result<String> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(format!("sent {result} bytes"))
}

/// What stands between the addresses of a packet and its payload.
#[derive(Clone, Copy)]
enum Header {
    /// Nothing.
    Plain,
    /// What nobody needs: padding, in IPv6 an extension header.
    Options,
    /// Says that it is a fragment, at so many units of eight bytes, and the last one.
    Fragment(u16),
}

/// `payload` behind a header of the destination's family.
fn ip(to: SocketAddr, header: Header, payload: &[u8], protocol: c_int) -> Vec<u8> {
    let protocol = protocol as u8;
    let own = own_address(to);
    match (own, to.ip()) {
        (IpAddr::V6(own), IpAddr::V6(to)) => {
            let (next, extension) = match header {
                Header::Plain => (protocol, Vec::new()),
                // Destination options: six bytes of padding (RFC 8200, 4.6).
                Header::Options => (60, vec![protocol, 0, 1, 4, 0, 0, 0, 0]),
                Header::Fragment(offset) => {
                    let [high, low] = (offset << 3).to_be_bytes();
                    (44, vec![protocol, 0, high, low, 0, 0, 0, 7])
                }
            };
            let length = (extension.len() + payload.len()) as u16;
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([next, 64]);
            packet.extend(own.octets());
            packet.extend(to.octets());
            packet.extend(extension);
            packet.extend(payload);
            packet
        }
        (IpAddr::V4(own), IpAddr::V4(to)) => ip4((own, to), header, payload, protocol),
        // Nothing that the kernel would send.
        _ => Vec::new(),
    }
}

fn ip4((own, to): (Ipv4Addr, Ipv4Addr), header: Header, payload: &[u8], protocol: u8) -> Vec<u8> {
    let (words, offset) = match header {
        Header::Plain => (5, 0),
        Header::Options => (6, 0),
        Header::Fragment(offset) => (5, offset),
    };
    let size = usize::from(words) * 4;
    let mut packet = vec![0x40 | words, 0];
    packet.extend(((size + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 7]);
    packet.extend(offset.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(own.octets());
    packet.extend(to.octets());
    // No operation (RFC 791, 3.1).
    packet.resize(size, 1);
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet.extend(payload);
    packet
}

/// The pod's own address: the one that a socket towards outside would have.
fn own_address(to: SocketAddr) -> IpAddr {
    let (any, outside) = if to.is_ipv4() {
        ("0.0.0.0:0", "192.0.2.1:9")
    } else {
        ("[::]:0", "[2001:db8::1]:9")
    };
    let chosen = std::net::UdpSocket::bind(any).and_then(|socket| {
        socket.connect(outside)?;
        socket.local_addr()
    });
    chosen.map_or(to.ip(), |address| address.ip())
}

fn tcp(to: SocketAddr, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = 40404_u16.to_be_bytes().to_vec();
    segment.extend(to.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 4, 0, 0, 0, 0, 0]);
    segment.extend(data);
    segment
}

fn udp(to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut datagram = 40404_u16.to_be_bytes().to_vec();
    datagram.extend(to.port().to_be_bytes());
    datagram.extend(((8 + data.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}
