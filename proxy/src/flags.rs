//! Response flags and response code details, in Envoy's words.
//!
//! A stream collects [`ResponseFlags`] while it runs; the access log prints them as
//! `%RESPONSE_FLAGS%` and the metrics carry them as the label `response_flags`. `details` holds
//! the strings of `%RESPONSE_CODE_DETAILS%`.

use std::fmt;

/// A set of Envoy's response flags (`StreamInfo::CoreResponseFlag`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal;)*) => {
        impl ResponseFlags {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*
        }

        /// In the order in which Envoy prints them.
        const NAMES: &[(ResponseFlags, &str)] = &[$((ResponseFlags::$name, $short)),*];
    };
}

flags! {
    /// No healthy upstream host.
    NO_HEALTHY_UPSTREAM = 0, "UH";
    /// The upstream did not answer within the route's or try's timeout.
    UPSTREAM_REQUEST_TIMEOUT = 1, "UT";
    /// The stream was reset by this proxy.
    LOCAL_RESET = 2, "LR";
    /// The stream was reset by the upstream.
    UPSTREAM_REMOTE_RESET = 3, "UR";
    /// The upstream could not be connected to.
    UPSTREAM_CONNECTION_FAILURE = 4, "UF";
    /// The upstream closed the connection.
    UPSTREAM_CONNECTION_TERMINATION = 5, "UC";
    /// A circuit breaker is open.
    UPSTREAM_OVERFLOW = 6, "UO";
    /// No route, or no filter chain, matches.
    NO_ROUTE = 7, "NR";
    /// A delay was injected.
    DELAY_INJECTED = 8, "DI";
    /// An abort was injected.
    FAULT_INJECTED = 9, "FI";
    /// Limited by rate.
    RATE_LIMITED = 10, "RL";
    /// Denied by an authorisation service.
    UNAUTHORIZED_EXTERNAL = 11, "UAEX";
    /// The rate limit service failed.
    RATE_LIMIT_SERVICE_ERROR = 12, "RLSE";
    /// The client closed the connection.
    DOWNSTREAM_CONNECTION_TERMINATION = 13, "DC";
    /// Retries were used up.
    UPSTREAM_RETRY_LIMIT_EXCEEDED = 14, "URX";
    /// The stream was idle for too long.
    STREAM_IDLE_TIMEOUT = 15, "SI";
    /// An `x-envoy-*` header was not valid.
    INVALID_ENVOY_REQUEST_HEADERS = 16, "IH";
    /// The client broke the protocol.
    DOWNSTREAM_PROTOCOL_ERROR = 17, "DPE";
    /// The connection or stream reached its largest duration.
    DURATION_TIMEOUT = 18, "DT";
    /// The upstream broke the protocol.
    UPSTREAM_PROTOCOL_ERROR = 19, "UPE";
    /// The route's cluster does not exist.
    NO_CLUSTER = 20, "NC";
    /// Shed by the overload manager.
    OVERLOAD_MANAGER = 21, "OM";
    /// The upstream's name could not be resolved.
    DNS_FAILURE = 22, "DF";
    /// The client reset the stream.
    DOWNSTREAM_REMOTE_RESET = 23, "DR";
}

impl ResponseFlags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// Adds the flags of `other`.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether none is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as a number, for use as a key.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl std::ops::BitOr for ResponseFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Short names joined by commas, `-` for none.
impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut first = true;
        for (flag, name) in NAMES {
            if self.contains(*flag) {
                if !first {
                    f.write_str(",")?;
                }
                first = false;
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

/// Strings of `%RESPONSE_CODE_DETAILS%`, as in Envoy's documentation.
pub mod details {
    /// The upstream gave the answer.
    pub const VIA_UPSTREAM: &str = "via_upstream";
    /// No route matches.
    pub const ROUTE_NOT_FOUND: &str = "route_not_found";
    /// The route answers itself.
    pub const DIRECT_RESPONSE: &str = "direct_response";
    /// The route's cluster does not exist.
    pub const CLUSTER_NOT_FOUND: &str = "cluster_not_found";
    /// No host of the cluster can be used.
    pub const NO_HEALTHY_UPSTREAM: &str = "no_healthy_upstream";
    /// The route's timeout passed.
    pub const RESPONSE_TIMEOUT: &str = "response_timeout";
    /// The try's timeout passed.
    pub const PER_TRY_TIMEOUT: &str = "upstream_per_try_timeout";
    /// The stream was idle for too long.
    pub const STREAM_IDLE_TIMEOUT: &str = "stream_idle_timeout";
    /// The whole request did not arrive in time.
    pub const REQUEST_OVERALL_TIMEOUT: &str = "request_overall_timeout";
    /// The request's headers did not arrive in time.
    pub const REQUEST_HEADERS_TIMEOUT: &str = "request_header_timeout";
    /// HTTP/1.1 without `Host`.
    pub const MISSING_HOST: &str = "missing_host_header";
    /// `Host` more than once.
    pub const MULTIPLE_HOSTS: &str = "http1.multiple_host_headers";
    /// `Host` or `:authority` is no host and port.
    pub const INVALID_AUTHORITY: &str = "http.invalid_authority";
    /// The path is not absolute.
    pub const ABSOLUTE_PATH_REJECTED: &str = "path_normalization_failed";
    /// The upgrade is not allowed.
    pub const UPGRADE_FAILED: &str = "upgrade_failed";
    /// The headers are larger than allowed.
    pub const HEADERS_TOO_LARGE: &str = "request_headers_too_large";
    /// The message is not valid HTTP/1.
    pub const HTTP1_CODEC_ERROR: &str = "http1.codec_error";
    /// Transfer-Encoding is not `chunked`.
    pub const HTTP1_BAD_TRANSFER_ENCODING: &str = "http1.invalid_transfer_encoding";
    /// The client went away.
    pub const DOWNSTREAM_DISCONNECT: &str = "downstream_remote_disconnect";
    /// A circuit breaker is open.
    pub const OVERFLOW: &str = "upstream_reset_before_response_started{overflow}";
    /// The connection could not be opened.
    pub const CONNECT_FAILURE: &str =
        "upstream_reset_before_response_started{remote_connection_failure}";
    /// The connection could not be opened in time.
    pub const CONNECT_TIMEOUT: &str = "upstream_reset_before_response_started{connection_timeout}";
    /// The connection was closed before the response.
    pub const TERMINATED: &str = "upstream_reset_before_response_started{connection_termination}";
    /// The stream was reset before the response.
    pub const REMOTE_RESET: &str = "upstream_reset_before_response_started{remote_reset}";
    /// The upstream's answer was not valid.
    pub const PROTOCOL_ERROR: &str = "upstream_reset_before_response_started{protocol_error}";
    /// The connection was closed during the response.
    pub const TERMINATED_LATE: &str =
        "upstream_reset_after_response_started{connection_termination}";
    /// The stream was reset during the response.
    pub const REMOTE_RESET_LATE: &str = "upstream_reset_after_response_started{remote_reset}";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_as_envoy_prints_them() {
        let mut flags = ResponseFlags::NONE;
        assert_eq!(flags.to_string(), "-");
        flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
        assert_eq!(flags.to_string(), "UF,URX");
    }
}
