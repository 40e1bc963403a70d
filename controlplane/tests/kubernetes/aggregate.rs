//! A cluster and a directory as one mesh.

use std::fs;

use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams};
use millrace_controlplane::model::names::ObjectName;
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;

use crate::mesh::Mesh;

fn service(namespace: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\n\
         spec: {{selector: {{app: web}}, ports: [{{name: http, port: {port}}}]}}\n---\n"
    )
}

fn slice(namespace: &str, name: &str, address: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints: [{{addresses: [{address}]}}]\n---\n"
    )
}

/// A machine outside the cluster that serves what the cluster's Service names.
fn machine(namespace: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: machine, namespace: {namespace}}}\nspec: {{address: 192.0.2.9, labels: {{app: web}}}}\n"
    )
}

#[tokio::test]
async fn a_service_has_the_endpoints_of_both_and_the_clusters_definition() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::shared()?;
    let client = server.client().await?;
    let namespace = server.namespace(&client).await?;
    apply(&client, &namespace, &service(&namespace, 80)).await?;
    apply(
        &client,
        &namespace,
        &slice(&namespace, "cluster", "192.0.2.1"),
    )
    .await?;
    let directory = tempfile::tempdir()?;
    let text = service(&namespace, 8080) + &slice(&namespace, "file", "192.0.2.2");
    fs::write(
        directory.path().join("web.yaml"),
        text + &machine(&namespace),
    )?;

    let mut mesh = Mesh::of_both(server.kubeconfig(), directory.path().to_owned())?;
    mesh.synced().await?;
    let name = ObjectName::new(&namespace, "web");
    let addresses = |mesh: &Mesh, port: u16| -> Vec<String> {
        let snapshot = mesh.snapshot();
        let endpoints = snapshot.endpoints_of(&name, port).iter();
        endpoints.map(|at| at.address.to_string()).collect()
    };
    assert_eq!(
        addresses(&mesh, 80),
        ["192.0.2.1", "192.0.2.2", "192.0.2.9"]
    );
    let problem = format!(
        "Service {namespace}/web: the registries kubernetes and file say different things of it; kubernetes counts"
    );
    let said = |mesh: &Mesh| -> bool {
        let problems = mesh.problems.iter();
        problems.filter(|said| said.to_string() == problem).count() == 1
    };
    assert!(said(&mesh), "{:?}", mesh.problems);

    // What the cluster has no longer, the directory still has.
    let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
    services.delete("web", &DeleteParams::default()).await?;
    mesh.until("the directory's counts", |mesh| {
        addresses(mesh, 8080).len() == 3 && !said(mesh)
    })
    .await?;
    mesh.end().await
}
