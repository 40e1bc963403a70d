//! What an agent says of a service's instances, and what that comes to.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::endpoint::Locality;
use crate::model::names::Hostname;
use crate::model::workload::Labels;
use crate::registry::outside::{self, Instance, Listed};

/// The domain of Consul's own DNS, by which programs know services.
const DOMAIN: &str = "service.consul";
/// The key of a service's metadata that says what it speaks, as Istio reads it.
const PROTOCOL: &str = "protocol";

/// An instance with its checks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Stated {
    node: StatedNode,
    service: StatedService,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StatedNode {
    #[serde(default)]
    address: String,
    #[serde(default)]
    datacenter: String,
}

#[derive(Debug, Deserialize)]
struct StatedService {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Address", default)]
    address: String,
    #[serde(rename = "Port", default)]
    port: u32,
    #[serde(rename = "Tags", default)]
    tags: Option<Vec<String>>,
    #[serde(rename = "Meta", default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(rename = "Weights", default)]
    weights: Option<Weights>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(default)]
    status: String,
}

/// What a service's instances come to. Without any that can be used the service is there and has no ports.
pub(super) fn listed(name: &str, stated: &[Stated]) -> Listed {
    let host = match Hostname::literal(&format!("{name}.{DOMAIN}")) {
        Ok(host) if !host.is_wildcard() => host,
        Ok(_) => return refused("a service cannot be a wildcard".to_owned()),
        Err(error) => return refused(error.to_string()),
    };
    let mut listed = Listed::default();
    let mut instances = Vec::new();
    for stated in stated {
        match stated.instance() {
            Ok(instance) => instances.extend(instance),
            Err(message) => listed.problems.push(message),
        }
    }
    listed.object = Some(outside::service_entry("consul", name, &host, &instances));
    listed
}

fn refused(message: String) -> Listed {
    Listed {
        object: None,
        problems: vec![message],
    }
}

impl Stated {
    /// The instance; none where its checks or weights take it away, an error where it cannot be used.
    fn instance(&self) -> Result<Option<Instance>, String> {
        let Some(weight) = self.weight() else {
            return Ok(None);
        };
        let service = &self.service;
        let (field, text) = match service.address.as_str() {
            "" => ("Node.Address", &self.node.address),
            _ => ("Service.Address", &service.address),
        };
        let id = &service.id;
        let Ok(address) = text.parse() else {
            return Err(format!(
                "instance {id:?}: {field}: {text:?} is not an address"
            ));
        };
        let port = u16::try_from(service.port).ok().filter(|port| *port != 0);
        let Some(port) = port else {
            let port = service.port;
            return Err(format!(
                "instance {id:?}: Service.Port: {port} is not a port"
            ));
        };
        let protocol = service.meta.as_ref().and_then(|meta| meta.get(PROTOCOL));
        Ok(Some(Instance {
            id: id.clone(),
            address,
            port,
            protocol: protocol.cloned().unwrap_or_default(),
            labels: self.labels(),
            locality: Locality {
                region: self.node.datacenter.clone(),
                ..Locality::default()
            },
            weight,
        }))
    }

    /// By the worst of its checks, as Consul's own DNS weighs it.
    fn weight(&self) -> Option<u32> {
        let mut checks = self
            .checks
            .iter()
            .flatten()
            .map(|check| check.status.as_str());
        let weights = self.service.weights.unwrap_or(Weights {
            passing: 1,
            warning: 1,
        });
        let mut weight = weights.passing;
        if checks.clone().any(|status| status == "warning") {
            weight = weights.warning;
        }
        let usable = checks.all(|status| status == "passing" || status == "warning");
        Some(weight).filter(|weight| usable && *weight > 0)
    }

    /// Its metadata, and its tags of Istio's form `key|value`.
    fn labels(&self) -> Labels {
        let meta = self.service.meta.iter().flatten();
        let meta = meta.map(|(key, value)| (key.clone(), value.clone()));
        let tags = self.service.tags.iter().flatten();
        let tags = tags.filter_map(|tag| {
            let (key, value) = tag.split_once('|')?;
            Some((key.to_owned(), value.to_owned()))
        });
        tags.chain(meta).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Object;
    use serde_json::json;

    fn read(value: serde_json::Value) -> Vec<Stated> {
        serde_json::from_value(value).unwrap()
    }

    /// Each port with its addresses and their weights.
    fn shown(listed: &Listed) -> Vec<String> {
        let Some(Object::ServiceEntry(entry)) = &listed.object else {
            return Vec::new();
        };
        let services = entry.services.iter().map(|service| {
            let entry = service.entry().unwrap();
            let endpoints: Vec<_> = entry
                .endpoints
                .iter()
                .map(|at| format!("{}*{}", at.address.host(), at.weight))
                .collect();
            let port = &service.ports[0];
            format!(
                "{}:{} {:?} {}",
                service.hostname,
                port.port,
                port.protocol,
                endpoints.join(" ")
            )
        });
        services.collect()
    }

    #[test]
    fn instances_count_by_their_checks_address_and_port() {
        let node = |address: &str| json!({"Node": "n", "Address": address, "Datacenter": "dc1"});
        let stated = read(json!([
            {"Node": node("10.0.0.1"), "Service": {"ID": "a", "Address": "", "Port": 80, "Tags": ["version|v1", "plain"],
                "Meta": {"protocol": "http"}, "Weights": {"Passing": 5, "Warning": 2}},
                "Checks": [{"Status": "passing"}, {"Status": "warning"}]},
            {"Node": node("10.0.0.1"), "Service": {"ID": "b", "Address": "10.0.0.2", "Port": 80, "Tags": null, "Meta": null}, "Checks": null},
            {"Node": node("10.0.0.3"), "Service": {"ID": "c", "Port": 81}, "Checks": []},
            {"Node": node("10.0.0.4"), "Service": {"ID": "d", "Port": 80}, "Checks": [{"Status": "critical"}]},
            {"Node": node("10.0.0.5"), "Service": {"ID": "e", "Port": 80, "Weights": {"Passing": 0, "Warning": 1}}, "Checks": []},
            {"Node": node("10.0.0.6"), "Service": {"ID": "f", "Address": "db.internal", "Port": 80}, "Checks": []},
            {"Node": node("10.0.0.7"), "Service": {"ID": "g", "Port": 0}, "Checks": []},
        ]));
        let listed = listed("web", &stated);
        assert_eq!(
            shown(&listed),
            [
                "web.service.consul:80 Http 10.0.0.1*2 10.0.0.2*1",
                "web.service.consul:81 Auto 10.0.0.3*1"
            ]
        );
        assert_eq!(
            listed.problems,
            [
                "instance \"f\": Service.Address: \"db.internal\" is not an address",
                "instance \"g\": Service.Port: 0 is not a port"
            ]
        );
        let labels = stated[0].labels();
        assert_eq!(labels.get("version").map(String::as_str), Some("v1"));
    }

    #[test]
    fn a_name_that_is_no_host_is_refused_by_name() {
        let listed = listed("a/b", &[]);
        assert!(listed.object.is_none());
        assert!(
            listed.problems[0].contains("\"a/b.service.consul\""),
            "{:?}",
            listed.problems
        );
    }
}
