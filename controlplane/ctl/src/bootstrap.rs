//! `bootstrap`: what a seed-era Envoy is started with.

use millrace_controlplane::legacy::bootstrap::{Flags, render};

use crate::app::Output;
use crate::cli::Bootstrap;

/// Prints the file, for `envoy -c`.
pub(crate) fn run(options: Bootstrap) -> anyhow::Result<Output> {
    let flags = Flags {
        discovery: options.discovery_address,
        refresh_delay: options.discovery_refresh_delay,
        connect_timeout: options.connect_timeout,
        admin_port: options.proxy_admin_port,
        zipkin: options.zipkin_address,
        statsd: options.statsd_udp_address,
    };
    Output::json(&render(&flags), true)
}
