//! Flags of `millrace-agent init`: the seed's `-p PORT -u UID`, and istio-iptables' for the rest.

use std::net::IpAddr;

use clap::Args;
use ipnet::IpNet;
use millrace_runtime::handoff::IptablesConfig;

/// Arguments of `init`.
#[derive(Clone, Debug, Default, Args)]
pub struct InitArgs {
    /// Port that outbound TCP is redirected to; with only this and -u, the seed-era rules are
    /// written: both directions to this port.
    #[arg(short = 'p', long = "envoy-port", visible_alias = "proxy-port")]
    pub port: Option<u16>,
    /// User ids that are not captured, comma-separated.
    #[arg(short = 'u', long = "proxy-uid", value_delimiter = ',')]
    pub uids: Vec<u32>,
    /// Group ids that are not captured, comma-separated.
    #[arg(short = 'g', long = "proxy-gid", value_delimiter = ',')]
    pub gids: Vec<u32>,
    /// Port that inbound TCP is redirected to.
    #[arg(short = 'z', long = "inbound-capture-port")]
    pub inbound_port: Option<u16>,
    /// How inbound traffic is redirected.
    #[arg(short = 'm', long = "istio-inbound-interception-mode", value_parser = ["REDIRECT"])]
    pub mode: Option<String>,
    /// Inbound ports to capture, comma-separated; `*` is all of them, an empty list none.
    #[arg(short = 'b', long = "istio-inbound-ports")]
    pub inbound_ports: Option<String>,
    /// Inbound ports not to capture, comma-separated.
    #[arg(short = 'd', long = "istio-local-exclude-ports", value_delimiter = ',')]
    pub exclude_inbound_ports: Vec<u16>,
    /// Outbound destinations to capture, comma-separated CIDRs; `*` is all of them.
    #[arg(short = 'i', long = "istio-service-cidr")]
    pub outbound_cidrs: Option<String>,
    /// Outbound destinations not to capture, comma-separated CIDRs.
    #[arg(
        short = 'x',
        long = "istio-service-exclude-cidr",
        value_delimiter = ','
    )]
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Outbound ports to capture whatever their destination, comma-separated.
    #[arg(short = 'q', long = "istio-outbound-ports", value_delimiter = ',')]
    pub outbound_ports: Vec<u16>,
    /// Outbound ports not to capture, comma-separated.
    #[arg(
        short = 'o',
        long = "istio-local-outbound-ports-exclude",
        value_delimiter = ','
    )]
    pub exclude_outbound_ports: Vec<u16>,
    /// Captures DNS, UDP and TCP, to this proxy's port 15053.
    #[arg(long)]
    pub redirect_dns: bool,
    /// Captures DNS to these resolvers only, comma-separated; all of them by default.
    #[arg(long, value_delimiter = ',')]
    pub dns_servers: Vec<IpAddr>,
    /// Source addresses whose inbound connections are left alone (the node's own, for probes).
    #[arg(long, value_delimiter = ',')]
    pub probe_sources: Vec<IpAddr>,
    /// Prints the rules instead of writing them.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// A value of a flag that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{flag}: {item:?} cannot be read")]
pub struct InvalidFlag {
    flag: &'static str,
    item: String,
}

impl InitArgs {
    /// The rules that these flags ask for, in a namespace that has IPv6 or not.
    ///
    /// # Errors
    /// Names the flag and the item that cannot be read.
    pub fn config(&self, ipv6: bool) -> Result<IptablesConfig, InvalidFlag> {
        let mut config = IptablesConfig {
            seed_era: self.is_seed_era(),
            ipv6,
            redirect_dns: self.redirect_dns,
            dns_servers: self.dns_servers.clone(),
            host_probe_sources: self.probe_sources.clone(),
            inbound_ports_include: list("--istio-inbound-ports", self.inbound_ports.as_deref())?,
            outbound_cidrs_include: list("--istio-service-cidr", self.outbound_cidrs.as_deref())?,
            outbound_cidrs_exclude: self.exclude_outbound_cidrs.clone(),
            outbound_ports_include: self.outbound_ports.clone(),
            outbound_ports_exclude: self.exclude_outbound_ports.clone(),
            ..IptablesConfig::default()
        };
        if let Some(port) = self.port {
            config.proxy_port = port;
        }
        if let Some(port) = self.inbound_port {
            config.inbound_capture_port = port;
        }
        if !self.uids.is_empty() {
            config.proxy_uids.clone_from(&self.uids);
        }
        if !self.gids.is_empty() {
            config.proxy_gids.clone_from(&self.gids);
        }
        config
            .inbound_ports_exclude
            .extend(&self.exclude_inbound_ports);
        Ok(config)
    }

    /// `-p PORT -u UID` and nothing else, as the seed's init container has it.
    fn is_seed_era(&self) -> bool {
        let others = Self {
            port: None,
            uids: Vec::new(),
            dry_run: false,
            ..self.clone()
        };
        self.port.is_some() && !self.uids.is_empty() && others.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.port.is_none()
            && self.inbound_port.is_none()
            && self.mode.is_none()
            && self.inbound_ports.is_none()
            && self.outbound_cidrs.is_none()
            && !self.redirect_dns
            && self.uids.is_empty()
            && self.gids.is_empty()
            && self.exclude_inbound_ports.is_empty()
            && self.exclude_outbound_cidrs.is_empty()
            && self.outbound_ports.is_empty()
            && self.exclude_outbound_ports.is_empty()
            && self.dns_servers.is_empty()
            && self.probe_sources.is_empty()
    }
}

fn list<T: std::str::FromStr>(
    flag: &'static str,
    text: Option<&str>,
) -> Result<Option<Vec<T>>, InvalidFlag> {
    match text {
        None | Some("*") => Ok(None),
        Some(text) => text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| {
                item.parse().map_err(|_| InvalidFlag {
                    flag,
                    item: item.to_owned(),
                })
            })
            .collect::<Result<_, _>>()
            .map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> InitArgs {
        InitArgs {
            port: Some(15001),
            uids: vec![1337],
            ..InitArgs::default()
        }
    }

    #[test]
    fn port_and_user_alone_are_the_seeds_rules() {
        assert!(seed().config(false).unwrap().seed_era);
        assert!(!InitArgs::default().config(false).unwrap().seed_era);
        let more = InitArgs {
            inbound_port: Some(15006),
            ..seed()
        };
        assert!(!more.config(false).unwrap().seed_era);
    }

    #[test]
    fn lists_know_all_some_and_none() {
        let ports = |text: &str| {
            let args = InitArgs {
                inbound_ports: Some(text.to_owned()),
                ..InitArgs::default()
            };
            args.config(false)
                .map(|config| config.inbound_ports_include)
        };
        assert_eq!(ports("*").unwrap(), None);
        assert_eq!(ports("80, 443").unwrap(), Some(vec![80, 443]));
        assert_eq!(ports("").unwrap(), Some(vec![]));
        assert_eq!(
            ports("http").unwrap_err().to_string(),
            "--istio-inbound-ports: \"http\" cannot be read"
        );
    }
}
