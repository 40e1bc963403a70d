//! Pilot with the rights of its manifest and no others.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser as _;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use millrace_controlplane::app::Pilot;
use millrace_controlplane::config::Config;
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;
use millrace_xds::server::{ConfigSource as _, Generation};
use serde_json::json;

use crate::configuration::define;
use crate::mesh::{Mesh, PATIENCE};

pub(crate) const RIGHTS: &str = include_str!("../../../deploy/kubernetes/pilot-rbac.yaml");
const NAMESPACE: &str = "millrace-system";
const NAME: &str = "millrace-pilot";

/// A kubeconfig for pilot's service account, whose rights are the manifest's.
pub(crate) async fn kubeconfig(server: &ApiServer, client: &Client) -> anyhow::Result<PathBuf> {
    define(client).await?;
    apply(client, "default", RIGHTS).await?;
    account(server, client).await
}

/// A kubeconfig for pilot's service account.
pub(crate) async fn account(server: &ApiServer, client: &Client) -> anyhow::Result<PathBuf> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let request: TokenRequest = serde_json::from_value(json!({"spec": {"audiences": []}}))?;
    let token = accounts
        .create_token_request(NAME, &PostParams::default(), &request)
        .await?;
    let token = token
        .status
        .and_then(|status| status.token)
        .context("no token")?;
    server.kubeconfig_of("pilot", &token)
}

async fn start(kubeconfig: &Path) -> anyhow::Result<Pilot> {
    start_with(kubeconfig, &[]).await
}

/// Pilot with further flags.
pub(crate) async fn start_with(kubeconfig: &Path, more: &[&str]) -> anyhow::Result<Pilot> {
    let flags = [
        "pilot",
        "--xds-addr",
        "127.0.0.1:0",
        "--http-addr",
        "127.0.0.1:0",
        "--registries",
        "Kubernetes",
        "--kubeconfig",
    ];
    let flags = flags
        .into_iter()
        .map(Into::into)
        .chain([kubeconfig.as_os_str().to_owned()])
        .chain(more.iter().map(Into::into));
    Pilot::start(Config::try_parse_from(flags)?, None).await
}

#[tokio::test]
async fn pilot_serves_with_the_rights_of_its_manifest() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    let pilot = start(&kubeconfig(&server, &client).await?).await?;
    let mut generations = pilot.source().generations();
    let first = generations.wait_for(|generation| *generation > Generation::default());
    tokio::time::timeout(PATIENCE, first).await??;
    let published = pilot.source().published();
    let names: Vec<String> = published
        .snapshot
        .services
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["default/kubernetes"]);
    // A kind that was only just defined may not be served yet; a right that is missing stays missing.
    let nothing_wrong = async {
        while !pilot.source().problems().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, nothing_wrong).await;
    assert!(waited.is_ok(), "{:#?}", pilot.source().problems());
    pilot.stop().await;
    Ok(())
}

#[tokio::test]
async fn every_right_of_the_manifest_is_needed() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    let kubeconfig = kubeconfig(&server, &client).await?;
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let whole = roles.get(NAME).await?.rules.unwrap_or_default();
    for (index, rule) in whole.iter().enumerate() {
        let mut rest = whole.clone();
        rest[index].verbs = vec!["list".to_owned()];
        let first = rule
            .resources
            .iter()
            .flatten()
            .next()
            .context("no resource")?;
        let group = rule
            .api_groups
            .iter()
            .flatten()
            .next()
            .context("no group")?;
        let needed = Right("watch", group, first);
        is_missed(&client, &rest, &kubeconfig, needed).await?;
        for left_out in rule.resources.iter().flatten() {
            let mut rest = whole.clone();
            let resources = rest[index].resources.get_or_insert_default();
            resources.retain(|resource| resource != left_out);
            if resources.is_empty() {
                rest.remove(index);
            }
            let needed = Right("list", group, left_out);
            is_missed(&client, &rest, &kubeconfig, needed).await?;
        }
    }
    Ok(())
}

/// A verb, and the group and name of a resource.
#[derive(Clone, Copy)]
struct Right<'a>(&'a str, &'a str, &'a str);

/// With these rules alone the registry says what it cannot do.
async fn is_missed(
    client: &Client,
    granted: &[PolicyRule],
    kubeconfig: &Path,
    right: Right<'_>,
) -> anyhow::Result<()> {
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"rules": granted}));
    roles.patch(NAME, &PatchParams::default(), &patch).await?;
    // The API server learns of its rules by a watch too; under the old ones the registry would list what it then
    // never lists again.
    let refused = async {
        while is_allowed(client, right).await? {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, refused).await??;
    let Right(verb, _, resource) = right;
    let needed = &format!("cannot {verb} resource \"{resource}\"");
    let mut mesh = Mesh::of_cluster(kubeconfig.to_owned());
    let missed = |mesh: &Mesh| {
        let problems = mesh.problems.iter();
        problems
            .filter(|problem| problem.message.contains(needed.as_str()))
            .count()
            > 0
    };
    mesh.until(needed, missed).await?;
    mesh.end().await
}

async fn is_allowed(
    client: &Client,
    Right(verb, group, resource): Right<'_>,
) -> anyhow::Result<bool> {
    let review: SubjectAccessReview = serde_json::from_value(json!({"spec": {
        "user": format!("system:serviceaccount:{NAMESPACE}:{NAME}"),
        "resourceAttributes": {"verb": verb, "group": group, "resource": resource},
    }}))?;
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
