//! Addresses and address ranges.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use millrace_xds::proto::envoy::config::core::v3::address::Address as Kind;
use millrace_xds::proto::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use millrace_xds::proto::envoy::config::core::v3::{Address, CidrRange, SocketAddress};

use super::value::enumeration;
use super::{Cx, Invalid};

/// An address that must be an IP address and a port, in canonical form.
pub(super) fn socket_addr(
    cx: &mut Cx,
    field: &str,
    address: Option<&Address>,
) -> Result<SocketAddr, Invalid> {
    let (host, port) = host_and_port(cx, field, address)?;
    let ip: IpAddr = host.parse().map_err(|_| {
        cx.bad(
            field,
            format_args!("{host:?} is not an IP address (names need a DNS cluster)"),
        )
    })?;
    Ok(SocketAddr::new(ip.to_canonical(), port))
}

/// An address whose host may be a name.
pub(super) fn host_and_port(
    cx: &mut Cx,
    field: &str,
    address: Option<&Address>,
) -> Result<(String, u16), Invalid> {
    cx.at(field, |cx| match address.and_then(|a| a.address.as_ref()) {
        Some(Kind::SocketAddress(socket)) => cx.at("socket_address", |cx| tcp(cx, socket)),
        Some(Kind::Pipe(_)) => Err(cx.bad("pipe", "Unix sockets are not supported")),
        Some(Kind::EnvoyInternalAddress(_)) => Err(cx.bad(
            "envoy_internal_address",
            "internal listeners are not supported",
        )),
        None => Err(cx.invalid("an address is required")),
    })
}

/// The parts of a TCP socket address.
pub(super) fn tcp(cx: &mut Cx, socket: &SocketAddress) -> Result<(String, u16), Invalid> {
    if enumeration::<Protocol>(cx, "protocol", socket.protocol)? != Protocol::Tcp {
        return Err(cx.bad("protocol", "only TCP is supported"));
    }
    if socket.address.is_empty() {
        return Err(cx.bad("address", "is required"));
    }
    if !socket.resolver_name.is_empty() {
        return Err(cx.bad("resolver_name", "custom resolvers are not supported"));
    }
    let port = match &socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(*port)
            .map_err(|_| cx.bad("port_value", format_args!("{port} is not a port"))),
        Some(PortSpecifier::NamedPort(_)) => {
            Err(cx.bad("named_port", "named ports are not supported"))
        }
        None => Err(cx.bad("port_value", "is required")),
    }?;
    Ok((socket.address.clone(), port))
}

/// An address range; bits behind the prefix are cleared.
pub(super) fn cidr(cx: &mut Cx, range: &CidrRange) -> Result<IpNet, Invalid> {
    let Ok(ip) = range.address_prefix.parse::<IpAddr>() else {
        let text = format!("{:?} is not an IP address", range.address_prefix);
        return Err(cx.bad("address_prefix", text));
    };
    let length = range.prefix_len.as_ref().map_or(0, |l| l.value);
    u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(ip, length).ok())
        .map(|net| net.trunc())
        .ok_or_else(|| cx.bad("prefix_len", format_args!("{length} does not fit {ip}")))
}
