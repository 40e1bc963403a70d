//! Command operators of Envoy's format strings: what each is called and what it prints.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::span::Span;
use super::time::Civil;
use super::{Headers, InvalidFormat, Record, Which};

/// One operator, with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `START_TIME`, with a `strftime` format.
    StartTime(Option<String>),
    /// `REQ(A?B):N`, `RESP(..)`, `TRAILER(..)`.
    Header {
        /// Of which message.
        which: Which,
        /// The header, or a pseudo header of the request.
        first: Field,
        /// The one taken where the first is absent.
        second: Option<Field>,
        /// Longest value.
        max: Option<usize>,
    },
    /// `GRPC_STATUS`, by name.
    GrpcStatus,
    /// `COMMON_DURATION(START:END:PRECISION)`.
    Span(Span),
    /// A value that has a number or text of its own.
    Simple(Simple),
    /// A value that this proxy never has (metadata, filter state, TLS, virtual clusters).
    Absent,
}

/// A header or pseudo header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `:method`.
    Method,
    /// `:path`.
    Path,
    /// `:authority`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// `:status`.
    Status,
    /// An ordinary one.
    Header(HeaderName),
}

macro_rules! simple {
    ($($name:ident = $text:literal,)*) => {
        /// Operators without arguments.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is documented by the operator of its name")]
        pub enum Simple { $($name,)* }

        fn simple(name: &str) -> Option<Simple> {
            match name {
                $($text => Some(Simple::$name),)*
                _ => None,
            }
        }
    };
}

simple! {
    Duration = "DURATION",
    RequestDuration = "REQUEST_DURATION",
    ResponseDuration = "RESPONSE_DURATION",
    ResponseTxDuration = "RESPONSE_TX_DURATION",
    BytesReceived = "BYTES_RECEIVED",
    BytesSent = "BYTES_SENT",
    Protocol = "PROTOCOL",
    ResponseCode = "RESPONSE_CODE",
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS",
    ConnectionTerminationDetails = "CONNECTION_TERMINATION_DETAILS",
    ResponseFlags = "RESPONSE_FLAGS",
    UpstreamHost = "UPSTREAM_HOST",
    UpstreamRemoteAddress = "UPSTREAM_REMOTE_ADDRESS",
    UpstreamRemoteAddressWithoutPort = "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    UpstreamRemotePort = "UPSTREAM_REMOTE_PORT",
    UpstreamCluster = "UPSTREAM_CLUSTER",
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW",
    UpstreamLocalAddress = "UPSTREAM_LOCAL_ADDRESS",
    UpstreamLocalAddressWithoutPort = "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    UpstreamLocalPort = "UPSTREAM_LOCAL_PORT",
    UpstreamTransportFailureReason = "UPSTREAM_TRANSPORT_FAILURE_REASON",
    UpstreamRequestAttemptCount = "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    DownstreamLocalAddress = "DOWNSTREAM_LOCAL_ADDRESS",
    DownstreamLocalAddressWithoutPort = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT",
    DownstreamRemoteAddress = "DOWNSTREAM_REMOTE_ADDRESS",
    DownstreamRemoteAddressWithoutPort = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamRemotePort = "DOWNSTREAM_REMOTE_PORT",
    DownstreamDirectRemoteAddress = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    DownstreamDirectRemoteAddressWithoutPort = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    DownstreamDirectRemotePort = "DOWNSTREAM_DIRECT_REMOTE_PORT",
    RequestedServerName = "REQUESTED_SERVER_NAME",
    RouteName = "ROUTE_NAME",
    FilterChainName = "FILTER_CHAIN_NAME",
    GrpcStatusNumber = "GRPC_STATUS_NUMBER",
    ConnectionId = "CONNECTION_ID",
}

/// Operators that are Envoy's and never have a value here.
const ABSENT: &[&str] = &[
    "CLUSTER_METADATA",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DYNAMIC_METADATA",
    "FILTER_STATE",
    "METADATA",
    "UPSTREAM_FILTER_STATE",
    "UPSTREAM_METADATA",
    "VIRTUAL_CLUSTER_NAME",
];

/// Values of operators, before they are text.
pub enum Value<'a> {
    /// There is none.
    Absent,
    /// A number.
    Number(u64),
    /// Text.
    Text(&'a str),
    /// Bytes of a header.
    Bytes(&'a [u8]),
    /// An address and whether it is printed with its port.
    Address(SocketAddr, bool),
    /// Flags.
    Flags(crate::flags::ResponseFlags),
    /// A time and how it is printed.
    Time(Civil, Option<&'a str>),
}

impl Command {
    /// The operator between two `%`.
    ///
    /// # Errors
    /// Where it is not Envoy's, or its arguments cannot be used.
    pub fn parse(text: &str) -> Result<Self, InvalidFormat> {
        let (call, max) = match text.rsplit_once("):") {
            Some((call, max)) => (format!("{call})"), Some(max)),
            None => (text.to_owned(), None),
        };
        let max = max
            .map(|digits| {
                digits
                    .parse::<usize>()
                    .map_err(|_| InvalidFormat::Length(text.to_owned()))
            })
            .transpose()?;
        let (name, argument) = match call.split_once('(') {
            Some((name, rest)) => {
                let argument = rest
                    .strip_suffix(')')
                    .ok_or_else(|| InvalidFormat::Unclosed(text.to_owned()))?;
                (name, Some(argument))
            }
            None => (call.as_str(), None),
        };
        match (name, argument) {
            ("START_TIME", format) => Ok(Self::StartTime(format.map(str::to_owned))),
            ("REQ", Some(names)) => header(Which::Request, names, max),
            ("RESP", Some(names)) => header(Which::Response, names, max),
            ("TRAILER", Some(names)) => header(Which::Trailers, names, max),
            ("COMMON_DURATION", Some(arguments)) => Span::parse(arguments).map(Self::Span),
            ("GRPC_STATUS", None | Some("" | "CAMEL_STRING")) => Ok(Self::GrpcStatus),
            ("GRPC_STATUS", Some("NUMBER")) => Ok(Self::Simple(Simple::GrpcStatusNumber)),
            (name, _) if ABSENT.contains(&name) => Ok(Self::Absent),
            (name, None) => simple(name)
                .map(Self::Simple)
                .ok_or_else(|| InvalidFormat::Unknown(text.to_owned())),
            _ => Err(InvalidFormat::Unknown(text.to_owned())),
        }
    }

    /// Its value in a record.
    pub fn value<'a>(&'a self, record: &Record<'a>) -> Value<'a> {
        match self {
            Self::StartTime(format) => Value::Time(Civil::new(record.started), format.as_deref()),
            Self::Header {
                which,
                first,
                second,
                max,
            } => field(*which, first, record)
                .or_else(|| field(*which, second.as_ref()?, record))
                .map_or(Value::Absent, |bytes| {
                    Value::Bytes(&bytes[..max.map_or(bytes.len(), |m| m.min(bytes.len()))])
                }),
            Self::GrpcStatus => record
                .grpc_status
                .map_or(Value::Absent, |code| Value::Text(grpc_name(code))),
            Self::Span(span) => span.value(record).map_or(Value::Absent, Value::Number),
            Self::Simple(simple) => simple.value(record),
            Self::Absent => Value::Absent,
        }
    }

    /// The ordinary headers of `which` that it reads.
    pub fn headers(&self, wanted: Which) -> impl Iterator<Item = &HeaderName> {
        let fields = match self {
            Self::Header {
                which,
                first,
                second,
                ..
            } if *which == wanted => [Some(first), second.as_ref()],
            _ => [None, None],
        };
        fields
            .into_iter()
            .flatten()
            .filter_map(|field| match field {
                Field::Header(name) => Some(name),
                _ => None,
            })
    }
}

impl Simple {
    fn value<'a>(self, r: &Record<'a>) -> Value<'a> {
        let text = |value: Option<&'a str>| {
            value
                .filter(|v| !v.is_empty())
                .map_or(Value::Absent, Value::Text)
        };
        let address = |address: Option<SocketAddr>, port| {
            address.map_or(Value::Absent, |a| Value::Address(a, port))
        };
        let port = |address: Option<SocketAddr>| {
            address.map_or(Value::Absent, |a| Value::Number(u64::from(a.port())))
        };
        let time = |t: Option<Duration>| t.map_or(Value::Absent, |t| Value::Number(millis(t)));
        match self {
            Self::Duration => Value::Number(millis(r.duration)),
            Self::RequestDuration => time(r.request_duration),
            Self::ResponseDuration => time(r.response_duration),
            Self::ResponseTxDuration => {
                time(r.response_duration.map(|d| r.duration.saturating_sub(d)))
            }
            Self::BytesReceived => Value::Number(r.bytes_received),
            Self::BytesSent => Value::Number(r.bytes_sent),
            Self::Protocol => text(r.protocol),
            Self::ResponseCode => Value::Number(u64::from(r.status)),
            Self::ResponseCodeDetails => text(r.details),
            Self::ConnectionTerminationDetails => text(r.termination_details),
            Self::ResponseFlags => Value::Flags(r.flags),
            Self::UpstreamHost | Self::UpstreamRemoteAddress => address(r.upstream_host, true),
            Self::UpstreamRemoteAddressWithoutPort => address(r.upstream_host, false),
            Self::UpstreamRemotePort => port(r.upstream_host),
            Self::UpstreamCluster => text(r.upstream_cluster),
            Self::UpstreamClusterRaw => text(r.upstream_cluster_raw),
            Self::UpstreamLocalAddress => address(r.upstream_local, true),
            Self::UpstreamLocalAddressWithoutPort => address(r.upstream_local, false),
            Self::UpstreamLocalPort => port(r.upstream_local),
            Self::UpstreamTransportFailureReason => text(r.transport_failure),
            Self::UpstreamRequestAttemptCount => Value::Number(u64::from(r.attempts)),
            Self::DownstreamLocalAddress => Value::Address(r.downstream_local, true),
            Self::DownstreamLocalAddressWithoutPort => Value::Address(r.downstream_local, false),
            Self::DownstreamLocalPort => port(Some(r.downstream_local)),
            Self::DownstreamRemoteAddress => Value::Address(r.downstream_remote, true),
            Self::DownstreamRemoteAddressWithoutPort => Value::Address(r.downstream_remote, false),
            Self::DownstreamRemotePort => port(Some(r.downstream_remote)),
            Self::DownstreamDirectRemoteAddress => Value::Address(r.downstream_direct_remote, true),
            Self::DownstreamDirectRemoteAddressWithoutPort => {
                Value::Address(r.downstream_direct_remote, false)
            }
            Self::DownstreamDirectRemotePort => port(Some(r.downstream_direct_remote)),
            Self::RequestedServerName => text(r.server_name),
            Self::RouteName => text(r.route_name),
            Self::FilterChainName => text(r.filter_chain),
            Self::GrpcStatusNumber => r
                .grpc_status
                .map_or(Value::Absent, |c| Value::Number(u64::from(c))),
            Self::ConnectionId => Value::Number(r.connection_id),
        }
    }
}

impl Value<'_> {
    /// Writes it as text, `-` where it is absent.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut text = Text(out);
        // Writing to a vector cannot fail.
        let _infallible = match self {
            Self::Absent => text.write_char('-'),
            Self::Number(number) => write!(text, "{number}"),
            Self::Text(value) => text.write_str(value),
            Self::Bytes(bytes) => {
                text.0.extend_from_slice(bytes);
                Ok(())
            }
            Self::Address(address, true) => write!(text, "{address}"),
            Self::Address(address, false) => write!(text, "{}", address.ip()),
            Self::Flags(flags) => write!(text, "{flags}"),
            Self::Time(time, None) => write!(text, "{time}"),
            Self::Time(time, Some(format)) => time.write(format, &mut text),
        };
    }
}

struct Text<'a>(&'a mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn header(which: Which, names: &str, max: Option<usize>) -> Result<Command, InvalidFormat> {
    let (first, second) = match names.split_once('?') {
        Some((first, second)) => (first, Some(second)),
        None => (names, None),
    };
    Ok(Command::Header {
        which,
        first: field_name(first)?,
        second: second.map(field_name).transpose()?,
        max,
    })
}

fn field_name(name: &str) -> Result<Field, InvalidFormat> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => Field::Method,
        ":path" => Field::Path,
        ":authority" | "host" => Field::Authority,
        ":scheme" => Field::Scheme,
        ":status" => Field::Status,
        name => Field::Header(
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| InvalidFormat::Header(name.to_owned()))?,
        ),
    })
}

fn field<'a>(which: Which, field: &Field, record: &Record<'a>) -> Option<&'a [u8]> {
    let headers = match which {
        Which::Request => record.request,
        Which::Response => record.response,
        Which::Trailers => record.trailers,
    };
    let of = |headers: Headers<'a>, name| headers.get(name).map(HeaderValue::as_bytes);
    match field {
        Field::Method => record.method.map(str::as_bytes),
        Field::Path => record.path.map(str::as_bytes),
        Field::Authority => record.authority.map(str::as_bytes),
        Field::Scheme => record.scheme.map(str::as_bytes),
        Field::Status => None,
        Field::Header(name) => of(headers, name),
    }
}

/// Names of gRPC statuses as Envoy prints them.
fn grpc_name(code: u32) -> &'static str {
    match code {
        0 => "OK",
        1 => "Canceled",
        2 => "Unknown",
        3 => "InvalidArgument",
        4 => "DeadlineExceeded",
        5 => "NotFound",
        6 => "AlreadyExists",
        7 => "PermissionDenied",
        8 => "ResourceExhausted",
        9 => "FailedPrecondition",
        10 => "Aborted",
        11 => "OutOfRange",
        12 => "Unimplemented",
        13 => "Internal",
        14 => "Unavailable",
        15 => "DataLoss",
        16 => "Unauthenticated",
        _ => "InvalidCode",
    }
}
