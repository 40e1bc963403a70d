//! Which HTTP version a cluster's endpoints speak, and the limits of its connections: the typed
//! extension, or the older fields of the cluster itself.

use std::time::Duration;

use millrace_xds::proto::envoy::config::cluster::v3 as pb;
use millrace_xds::proto::envoy::config::core::v3::{Http2ProtocolOptions, HttpProtocolOptions};
use millrace_xds::proto::envoy::extensions::upstreams::http::v3 as upstream;
use millrace_xds::proto::unpack;
use pb::cluster::ClusterProtocolSelection;
use upstream::http_protocol_options::UpstreamProtocolOptions;
use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;

use crate::resource::UpstreamProtocol;
use crate::xds::convert::value::{duration, enumeration, u32_or};
use crate::xds::convert::{Cx, Invalid};

const EXTENSION: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Envoy's default idle timeout of upstream connections.
const IDLE_TIMEOUT: Duration = Duration::from_hours(1);
const CONCURRENT_STREAMS: u32 = 1024;

/// What a cluster says of its connections.
pub(super) struct Protocol {
    pub(super) upstream: UpstreamProtocol,
    pub(super) idle_timeout: Duration,
    pub(super) max_connection_duration: Duration,
    pub(super) max_requests_per_connection: u32,
    pub(super) max_concurrent_streams: u32,
}

/// Reads the extension, or else the older fields.
pub(super) fn convert(cx: &mut Cx, m: &pb::Cluster) -> Result<Protocol, Invalid> {
    let mut extension = None;
    cx.at("typed_extension_protocol_options", |cx| {
        for (name, any) in &m.typed_extension_protocol_options {
            cx.key(name, |cx| {
                if name == EXTENSION {
                    extension = Some(cx.unpacked(unpack::<upstream::HttpProtocolOptions>(any))?);
                } else {
                    cx.note("", "has no effect");
                }
                Ok(())
            })?;
        }
        Ok(())
    })?;
    match extension {
        Some(options) => cx.at("typed_extension_protocol_options", |cx| {
            cx.key(EXTENSION, |cx| typed(cx, &options))
        }),
        None => older(cx, m),
    }
}

fn typed(cx: &mut Cx, m: &upstream::HttpProtocolOptions) -> Result<Protocol, Invalid> {
    let (protocol, http2) = match &m.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(config)) => {
            match &config.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(_)) => (UpstreamProtocol::Http1, None),
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                    (UpstreamProtocol::Http2, Some(http2))
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    let reason = "HTTP/3 is not supported";
                    return Err(cx.bad("explicit_http_config.http3_protocol_options", reason));
                }
                None => return Err(cx.bad("explicit_http_config", "names no protocol")),
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => (
            UpstreamProtocol::UseDownstream,
            config.http2_protocol_options.as_ref(),
        ),
        Some(UpstreamProtocolOptions::AutoConfig(_)) => {
            cx.note(
                "auto_config",
                "without TLS there is no ALPN; HTTP/1.1 is spoken",
            );
            (UpstreamProtocol::Http1, None)
        }
        None => return Err(cx.invalid("an upstream protocol is required")),
    };
    limits(cx, protocol, m.common_http_protocol_options.as_ref(), http2)
}

#[expect(
    deprecated,
    reason = "control planes and static files still use these fields"
)]
fn older(cx: &mut Cx, m: &pb::Cluster) -> Result<Protocol, Invalid> {
    let selection: ClusterProtocolSelection =
        enumeration(cx, "protocol_selection", m.protocol_selection)?;
    let http2 = m.http2_protocol_options.as_ref();
    let protocol = match selection {
        ClusterProtocolSelection::UseDownstreamProtocol => UpstreamProtocol::UseDownstream,
        ClusterProtocolSelection::UseConfiguredProtocol if http2.is_some() => {
            UpstreamProtocol::Http2
        }
        ClusterProtocolSelection::UseConfiguredProtocol => UpstreamProtocol::Http1,
    };
    let common = m.common_http_protocol_options.as_ref();
    let mut result = limits(cx, protocol, common, http2)?;
    if let Some(requests) = &m.max_requests_per_connection {
        result.max_requests_per_connection = requests.value;
    }
    Ok(result)
}

fn limits(
    cx: &mut Cx,
    upstream: UpstreamProtocol,
    common: Option<&HttpProtocolOptions>,
    http2: Option<&Http2ProtocolOptions>,
) -> Result<Protocol, Invalid> {
    let idle = common.and_then(|c| c.idle_timeout.as_ref());
    let max = common.and_then(|c| c.max_connection_duration.as_ref());
    let requests = common.and_then(|c| c.max_requests_per_connection.as_ref());
    let streams = http2.and_then(|h| h.max_concurrent_streams.as_ref());
    let (idle_timeout, max_connection_duration) = cx.at("common_http_protocol_options", |cx| {
        let idle = duration(cx, "idle_timeout", idle, IDLE_TIMEOUT)?;
        let max = duration(cx, "max_connection_duration", max, Duration::ZERO)?;
        Ok::<_, Invalid>((idle, max))
    })?;
    Ok(Protocol {
        upstream,
        idle_timeout,
        max_connection_duration,
        max_requests_per_connection: u32_or(requests, 0),
        max_concurrent_streams: u32_or(streams, CONCURRENT_STREAMS).max(1),
    })
}
