//! Istio's name table (NDS).

use std::net::IpAddr;

use millrace_xds::proto::nds;

use super::{Cx, Invalid};
use crate::dns::names::{NameTable, NameTableBuilder};

/// Converts a name table.
pub(super) fn convert(cx: &mut Cx, m: &nds::NameTable) -> Result<NameTable, Invalid> {
    let mut builder = NameTableBuilder::default();
    cx.at("table", |cx| {
        for (host, info) in &m.table {
            cx.key(host, |cx| {
                let ips = cx.each("ips", &info.ips, |cx, ip| {
                    ip.parse::<IpAddr>()
                        .map(|ip| ip.to_canonical())
                        .map_err(|_| cx.invalid(format_args!("{ip:?} is not an IP address")))
                })?;
                let names = std::iter::once(host).chain(&info.alt_hosts);
                for name in names {
                    if !builder.add(name, &ips) {
                        return Err(cx.invalid(format_args!("{name:?} is not a host name")));
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    })?;
    Ok(builder.build())
}
