//! The same YAML means the same from a cluster as from a directory.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use millrace_controlplane::model::names::ObjectName;
use millrace_controlplane::snapshot::{MeshSnapshot, Table};
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;

use crate::mesh::Mesh;
use crate::{DEFINITIONS, apply_in_time};

const NAMESPACE: &str = "default";
const FILES: [(&str, &str); 4] = [
    (
        "bookinfo.yaml",
        include_str!("../../../deploy/examples/bookinfo/bookinfo.yaml"),
    ),
    (
        "pods.yaml",
        include_str!("../../../deploy/examples/bookinfo/pods.yaml"),
    ),
    (
        "rules.yaml",
        include_str!("../../../deploy/examples/bookinfo/rules/destination-rules.yaml"),
    ),
    (
        "routes.yaml",
        include_str!("../../../deploy/examples/bookinfo/rules/virtual-service-50-50.yaml"),
    ),
];
const ROUTE_RULE: &str = include_str!("../../../deploy/examples/bookinfo/rules/split-99-1.yaml");

/// What is in the namespace, but the service that the API server makes for itself.
fn own<T: Clone>(table: &Table<ObjectName, T>) -> BTreeMap<ObjectName, T> {
    let own = |name: &ObjectName| &*name.namespace == NAMESPACE && &*name.name != "kubernetes";
    let entries = table.iter().filter(|(name, _)| own(name));
    entries
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The table without the time at which the API server made each object.
fn timeless<T: Clone>(
    mut table: BTreeMap<ObjectName, Arc<T>>,
    created: fn(&mut T) -> &mut Option<String>,
) -> Table<ObjectName, Arc<T>> {
    for rule in table.values_mut() {
        *created(Arc::make_mut(rule)) = None;
    }
    table.into()
}

/// The namespace's part of a mesh. Deployments stay out: a cluster has their pods.
fn part(mesh: &MeshSnapshot) -> MeshSnapshot {
    let services = own(&mesh.services);
    let is_own = |names: &Vec<ObjectName>| names.iter().any(|name| services.contains_key(name));
    let hosts = mesh.hosts.iter().filter(|(_, names)| is_own(names));
    MeshSnapshot {
        mesh: Arc::clone(&mesh.mesh),
        service_accounts: own(&mesh.service_accounts).into(),
        services: timeless(services.clone(), |service| &mut service.created),
        hosts: hosts
            .map(|(host, names)| (host.clone(), names.clone()))
            .collect::<BTreeMap<_, _>>()
            .into(),
        slices: own(&mesh.slices).into(),
        legacy_endpoints: own(&mesh.legacy_endpoints).into(),
        workloads: own(&mesh.workloads).into(),
        addresses: mesh.addresses.clone(),
        virtual_services: timeless(own(&mesh.virtual_services), |rule| &mut rule.created),
        destination_rules: timeless(own(&mesh.destination_rules), |rule| &mut rule.created),
        route_rules: own(&mesh.route_rules).into(),
        endpoints: own(&mesh.endpoints).into(),
        ..MeshSnapshot::default()
    }
}

#[tokio::test]
async fn bookinfo_is_the_same_from_a_cluster_and_from_a_directory() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    apply(&client, NAMESPACE, DEFINITIONS).await?;
    let directory = tempfile::tempdir()?;
    let (mut expected, mut got) = (
        Mesh::of_directory(directory.path().to_owned()),
        Mesh::of_cluster(server.kubeconfig()),
    );
    // Half of it is there at the start, the other half comes while both watch.
    for (count, (name, text)) in FILES
        .into_iter()
        .chain([("split.yaml", ROUTE_RULE)])
        .enumerate()
    {
        if count == 2 {
            expected.synced().await?;
            got.synced().await?;
        }
        fs::write(directory.path().join(name), text)?;
        apply_in_time(&client, NAMESPACE, text).await?;
    }
    let complete = |mesh: &Mesh| {
        let mesh = mesh.snapshot();
        mesh.workloads.len() == 6
            && mesh.virtual_services.len() == 1
            && mesh.destination_rules.len() == 1
            && mesh.route_rules.len() == 1
            && own(&mesh.endpoints).len() == 4
            && own(&mesh.service_accounts).len() == 4
    };
    expected.until("the directory is read", complete).await?;
    got.until("the cluster is read", complete).await?;
    similar_asserts::assert_eq!(part(&got.snapshot()), part(&expected.snapshot()));
    assert_eq!(got.deleted, []);

    // And what goes from both is gone from both.
    fs::remove_file(directory.path().join("routes.yaml"))?;
    remove(&client, "virtualservices", FILES[3].1).await?;
    for mesh in [&mut expected, &mut got] {
        let gone = |mesh: &Mesh| mesh.snapshot().virtual_services.is_empty();
        mesh.until("the VirtualService is gone", gone).await?;
    }
    similar_asserts::assert_eq!(part(&got.snapshot()), part(&expected.snapshot()));
    expected.end().await?;
    got.end().await
}

async fn remove(client: &kube::Client, plural: &str, text: &str) -> anyhow::Result<()> {
    use kube::api::{Api, ApiResource, DynamicObject};
    for object in millrace_testkit::documents(text)? {
        let object: DynamicObject = serde_json::from_value(object)?;
        let types = object.types.clone().unwrap_or_default();
        let kind = kube::core::GroupVersionKind::try_from(&types)?;
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), NAMESPACE, &resource);
        let name = object.metadata.name.unwrap_or_default();
        api.delete(&name, &kube::api::DeleteParams::default())
            .await?;
    }
    Ok(())
}
