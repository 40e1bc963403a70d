//! What a Eureka server says, and what that comes to.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::model::endpoint::Locality;
use crate::model::names::Hostname;
use crate::model::workload::Labels;
use crate::registry::outside::{self, Instance, Listed};

/// The domain of virtual addresses that have none of their own.
const DOMAIN: &str = "eureka";

/// The answer to `/apps`.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    applications: Applications,
}

#[derive(Debug, Deserialize)]
struct Applications {
    #[serde(default)]
    application: List<Application>,
}

/// Servers write a list of one as the one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum List<T> {
    Many(Vec<T>),
    One(T),
}

#[derive(Debug, Deserialize)]
struct Application {
    #[serde(default)]
    name: String,
    #[serde(default)]
    instance: List<Stated>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Stated {
    instance_id: String,
    host_name: String,
    ip_addr: String,
    status: String,
    port: Option<StatedPort>,
    secure_port: Option<StatedPort>,
    vip_address: Option<String>,
    metadata: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
struct StatedPort {
    #[serde(rename = "$")]
    number: Value,
    /// `true` or `"true"`.
    #[serde(rename = "@enabled", default)]
    enabled: Value,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> List<T> {
    fn all(&self) -> &[T] {
        match self {
            Self::Many(all) => all,
            Self::One(one) => std::slice::from_ref(one),
        }
    }
}

impl Answer {
    /// Every virtual address with what it comes to.
    pub(super) fn services(&self) -> BTreeMap<String, Listed> {
        let mut found: BTreeMap<String, (Vec<Instance>, Vec<String>)> = BTreeMap::new();
        for application in self.applications.application.all() {
            for stated in application.instance.all() {
                for name in stated.names(&application.name) {
                    let (instances, problems) = found.entry(name).or_default();
                    if stated.status == "UP" {
                        match stated.instances() {
                            Ok(more) => instances.extend(more),
                            Err(message) => problems.push(message),
                        }
                    }
                }
            }
        }
        let services = found.into_iter();
        services
            .map(|(name, (instances, problems))| {
                let listed = listed(&name, &instances, problems);
                (name, listed)
            })
            .collect()
    }
}

fn listed(name: &str, instances: &[Instance], mut problems: Vec<String>) -> Listed {
    let host = if name.contains('.') {
        name.to_owned()
    } else {
        format!("{name}.{DOMAIN}")
    };
    let object = match Hostname::literal(&host) {
        Ok(host) if !host.is_wildcard() => {
            Some(outside::service_entry("eureka", name, &host, instances))
        }
        Ok(_) => {
            problems.push("vipAddress: a service cannot be a wildcard".to_owned());
            None
        }
        Err(error) => {
            problems.push(format!("vipAddress: {error}"));
            None
        }
    };
    Listed { object, problems }
}

impl Stated {
    /// Its virtual addresses, without ports; the application's name where it has none.
    fn names(&self, application: &str) -> Vec<String> {
        let stated = self.vip_address.as_deref().unwrap_or_default();
        let names: Vec<String> = stated
            .split(',')
            .map(|name| name.trim().split(':').next().unwrap_or_default())
            .filter(|name| !name.is_empty())
            .map(str::to_ascii_lowercase)
            .collect();
        if names.is_empty() {
            vec![application.to_ascii_lowercase()]
        } else {
            names
        }
    }

    /// One for each port that is enabled.
    fn instances(&self) -> Result<Vec<Instance>, String> {
        let id = match self.instance_id.as_str() {
            "" => self.host_name.as_str(),
            id => id,
        };
        let Ok(address) = self.ip_addr.parse() else {
            let text = &self.ip_addr;
            return Err(format!(
                "instance {id:?}: ipAddr: {text:?} is not an address"
            ));
        };
        let text = |key: &str| self.metadata.get(key).and_then(Value::as_str);
        let labels: Labels = self
            .metadata
            .iter()
            .filter(|(key, _)| !key.starts_with('@'))
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
        let declared = text("protocol").unwrap_or_default();
        let mut instances = Vec::new();
        for (field, port, protocol) in [
            ("port", &self.port, declared),
            ("securePort", &self.secure_port, "https"),
        ] {
            let Some(port) = port.as_ref().filter(|port| port.is_enabled()) else {
                continue;
            };
            let Some(number) = port.number() else {
                let stated = &port.number;
                return Err(format!("instance {id:?}: {field}: {stated} is not a port"));
            };
            instances.push(Instance {
                id: id.to_owned(),
                address,
                port: number,
                protocol: protocol.to_owned(),
                labels: labels.clone(),
                locality: Locality {
                    zone: text("zone").unwrap_or_default().to_owned(),
                    ..Locality::default()
                },
                weight: 1,
            });
        }
        Ok(instances)
    }
}

impl StatedPort {
    fn is_enabled(&self) -> bool {
        self.enabled == Value::Bool(true) || self.enabled.as_str() == Some("true")
    }

    fn number(&self) -> Option<u16> {
        let stated = match &self.number {
            Value::String(text) => text.parse().ok()?,
            number => number.as_u64()?,
        };
        u16::try_from(stated).ok().filter(|port| *port != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Object;
    use serde_json::json;

    #[test]
    fn services_are_virtual_addresses_of_instances_that_are_up() {
        let port = |number: u32| json!({"$": number, "@enabled": "true"});
        let off = json!({"$": 443, "@enabled": "false"});
        let answer: Answer = serde_json::from_value(json!({"applications": {"application": [
            {"name": "ORDERS", "instance": [
                {"instanceId": "a", "ipAddr": "10.0.0.1", "status": "UP", "port": port(8080), "securePort": off,
                    "vipAddress": "orders, Orders.example.com:80", "metadata": {"@class": "x", "version": "v1", "protocol": "http"}},
                {"instanceId": "b", "ipAddr": "10.0.0.2", "status": "DOWN", "port": port(8080), "vipAddress": "orders"},
                {"instanceId": "c", "ipAddr": "orders-3", "status": "UP", "port": port(8080), "vipAddress": "orders"},
            ]},
            {"name": "STOCK", "instance": {"hostName": "h", "ipAddr": "10.0.0.4", "status": "UP",
                "port": {"$": "80", "@enabled": true}, "securePort": port(443)}},
            {"name": "BAD", "instance": {"hostName": "h", "ipAddr": "10.0.0.4", "status": "UP", "port": port(0), "vipAddress": "a/b"}},
        ]}}))
        .unwrap();
        let shown: Vec<String> = answer
            .services()
            .iter()
            .map(|(name, listed)| {
                let mut shown = vec![name.clone()];
                if let Some(Object::ServiceEntry(entry)) = &listed.object {
                    for service in &entry.services {
                        let endpoints = &service.entry().unwrap().endpoints;
                        let (port, count) = (&service.ports[0], endpoints.len());
                        let host = &service.hostname;
                        shown.push(format!("{host}:{} {:?} {count}", port.port, port.protocol));
                    }
                }
                shown.extend(listed.problems.iter().cloned());
                shown.join("; ")
            })
            .collect();
        assert_eq!(
            shown,
            [
                "a/b; instance \"h\": port: 0 is not a port; vipAddress: \"a/b.eureka\" is not a host name: only letters, \
                 digits, '-', '_' and '.' may be used, and '*' only as the first label",
                "orders; orders.eureka:8080 Http 1; instance \"c\": ipAddr: \"orders-3\" is not an address",
                "orders.example.com; orders.example.com:8080 Http 1",
                "stock; stock.eureka:80 Auto 1; stock.eureka:443 Tls 1",
            ]
        );
    }
}
