//! NDS: what the proxies' DNS answers.

use std::collections::BTreeMap;

use millrace_xds::proto::nds::{NameInfo, NameTable};

use super::{ProxyView, Translator};
use crate::model::names::Hostname;
use crate::model::service::{Service, ServiceKind};
use crate::snapshot::MeshSnapshot;

/// The name of the one table.
pub(super) const NAME: &str = "nametable";

/// All names of the mesh; a sidecar's are those that its namespace may call. Names relative to the client's own
/// namespace are for the proxy to find, by `shortname` and `namespace`, since one table serves a node's pods of all
/// namespaces.
pub(super) fn table(translator: &Translator<'_>) -> NameTable {
    let mut table = BTreeMap::new();
    let snapshot = translator.snapshot;
    let visible = visible(translator);
    for host in snapshot.hosts.keys() {
        let Some(service) = snapshot
            .services_with(host)
            .find(|service| visible(service))
        else {
            continue;
        };
        match service.entry() {
            Some(_) => entry_names(snapshot, host, &visible, &mut table),
            None => service_names(snapshot, service, &mut table),
        }
    }
    NameTable { table }
}

/// Which services the clients behind a proxy may call.
fn visible<'a>(translator: &Translator<'a>) -> impl Fn(&Service) -> bool + use<'a> {
    let snapshot = translator.snapshot;
    let client = match translator.view {
        ProxyView::Sidecar { namespace, .. } => Some(namespace.as_str()),
        ProxyView::Node { .. } | ProxyView::Router { .. } | ProxyView::Grpc { .. } => None,
    };
    let sidecar = client.and_then(|client| snapshot.sidecar_of(client));
    move |service| {
        let Some(client) = client else {
            return true;
        };
        let imported = |port| {
            sidecar.is_none_or(|sidecar| {
                let namespace = &service.name.namespace;
                sidecar.imports(client, namespace, &service.hostname, port)
            })
        };
        // A headless service may declare no port, and has a name all the same.
        let mut ports = service.ports.iter().map(|declared| declared.port);
        snapshot.may_use(client, service)
            && (ports.any(imported) || (service.ports.is_empty() && imported(0)))
    }
}

/// The host of `ServiceEntries`, with the addresses of all that have it.
fn entry_names(
    snapshot: &MeshSnapshot,
    host: &Hostname,
    visible: &impl Fn(&Service) -> bool,
    table: &mut BTreeMap<String, NameInfo>,
) {
    let mut ips: Vec<String> = Vec::new();
    let mut namespace = String::new();
    for service in snapshot
        .services_with(host)
        .filter(|service| visible(service))
    {
        for address in snapshot.addresses_of(service) {
            let address = address.to_string();
            if !ips.contains(&address) {
                ips.push(address);
            }
        }
        namespace = service.name.namespace.to_string();
    }
    if !ips.is_empty() {
        let mut info = NameInfo {
            ips,
            registry: "External".to_owned(),
            namespace,
            ..NameInfo::default()
        };
        // A service of the cluster that another server has told as an entry.
        if let Some((short, namespace)) = host.within(&snapshot.mesh.domain) {
            short.clone_into(&mut info.shortname);
            namespace.clone_into(&mut info.namespace);
            info.alt_hosts = vec![
                format!("{short}.{namespace}"),
                format!("{short}.{namespace}.svc"),
            ];
        }
        table.insert(host.to_string(), info);
    }
}

fn service_names(
    snapshot: &MeshSnapshot,
    service: &Service,
    table: &mut BTreeMap<String, NameInfo>,
) {
    let mut ips: Vec<String> = match service.kind {
        ServiceKind::ClusterIp | ServiceKind::Entry(_) => {
            service.addresses.iter().map(ToString::to_string).collect()
        }
        ServiceKind::Headless => Vec::new(),
        // The name it stands for is outside the mesh, where the real DNS knows it.
        ServiceKind::ExternalName(_) => return,
    };
    let info = |ips: Vec<String>, short: &str| {
        let namespace = &service.name.namespace;
        NameInfo {
            ips,
            registry: "Kubernetes".to_owned(),
            shortname: short.to_owned(),
            namespace: namespace.to_string(),
            alt_hosts: vec![
                format!("{short}.{namespace}"),
                format!("{short}.{namespace}.svc"),
            ],
        }
    };
    if service.kind == ServiceKind::Headless {
        let mut pods: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let endpoints = snapshot.endpoints.get(&service.name);
        for endpoint in endpoints
            .iter()
            .flat_map(|endpoints| &endpoints.ports)
            .flat_map(|(_, list)| list)
        {
            let address = endpoint.address.to_string();
            if let Some(hostname) = &endpoint.hostname {
                let of_pod = pods.entry(hostname).or_default();
                if !of_pod.contains(&address) {
                    of_pod.push(address.clone());
                }
            }
            if !ips.contains(&address) {
                ips.push(address);
            }
        }
        for (hostname, ips) in pods {
            let short = format!("{hostname}.{}", service.name.name);
            table.insert(
                format!("{hostname}.{}", service.hostname),
                info(ips, &short),
            );
        }
    }
    if !ips.is_empty() {
        table.insert(service.hostname.to_string(), info(ips, &service.name.name));
    }
}
