//! Pilot with the rights of its manifest and no others.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use anyhow::Context as _;
use clap::Parser as _;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use millrace_controlplane::app::Pilot;
use millrace_controlplane::config::Config;
use millrace_testkit::apiserver::{ApiServer, apply};
use millrace_testkit::require;
use millrace_xds::server::{ConfigSource as _, Generation};
use parking_lot::Mutex;
use serde_json::json;

use crate::configuration::define;
use crate::mesh::{Mesh, PATIENCE};
use crate::{admission, apply_in_time};

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

/// A right to write: group, resource and verb.
type Writing = (&'static str, &'static str, &'static str);

const WRITING: [Writing; 6] = [
    ("coordination.k8s.io", "leases", "create"),
    ("coordination.k8s.io", "leases", "update"),
    ("", "secrets", "create"),
    ("networking.istio.io", "virtualservices/status", "patch"),
    ("networking.istio.io", "virtualservices", "create"),
    (
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        "update",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_right_to_write_is_needed_and_all_of_them_are_enough() -> anyhow::Result<()> {
    require!(apiserver);
    let server = ApiServer::start()?;
    let client = server.client().await?;
    let kubeconfig = kubeconfig(&server, &client).await?;
    let said = Said::listen();
    for (round, right) in WRITING.into_iter().enumerate() {
        apply(&client, "default", RIGHTS).await?;
        forget(&client).await?;
        let rule = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "rule"},
            "spec": {"hosts": [format!("host-{round}")], "http": [{"route": [{"destination": {"host": "kubernetes"}}]}]},
        });
        apply_in_time(&client, "default", &rule.to_string()).await?;
        take_away(&client, right).await?;
        let before = said.misses(right);
        let flags = ["--lease-duration", "3s"];
        let pilot = admission::pilot(&kubeconfig, "127.0.0.1:0", &flags).await?;
        admission::register(&client, &pilot).await?;
        admission::until(&format!("{right:?} is refused"), async || {
            Ok((said.misses(right) > before).then_some(()))
        })
        .await?;
        // What is refused is tried again: with the right, all of it comes about.
        apply(&client, "default", RIGHTS).await?;
        admission::armed(&client).await?;
        admission::until("there is a status", async || {
            let rule = rules(&client).get("rule").await?;
            let judged = &rule.data["status"]["observedGeneration"];
            Ok((judged.as_i64() == rule.metadata.generation).then_some(()))
        })
        .await?;
        pilot.stop().await;
    }
    Ok(())
}

fn rules(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("networking.istio.io", "v1", "VirtualService");
    Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk(&kind))
}

/// Nothing is left of the pilot before.
async fn forget(client: &Client) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let delete = DeleteParams::default();
    for gone in [
        leases.delete("millrace-leader", &delete).await.err(),
        secrets.delete("millrace-ca", &delete).await.err(),
        webhooks.delete("millrace-validator", &delete).await.err(),
    ] {
        match gone {
            Some(kube::Error::Api(status)) if status.code == 404 => {}
            Some(error) => return Err(error.into()),
            None => {}
        }
    }
    Ok(())
}

/// Takes a right away, wherever it is granted, and waits until it is gone.
async fn take_away(client: &Client, right: Writing) -> anyhow::Result<()> {
    let own: Api<Role> = Api::namespaced(client.clone(), NAMESPACE);
    let everywhere: Api<ClusterRole> = Api::all(client.clone());
    let writer = format!("{NAME}-writer");
    let to_own = own.get(NAME).await?.rules.unwrap_or_default();
    let to_all = everywhere.get(&writer).await?.rules.unwrap_or_default();
    let parameters = PatchParams::default();
    let rest = |rules| Patch::Merge(json!({"rules": rest(rules, right)}));
    own.patch(NAME, &parameters, &rest(to_own)).await?;
    everywhere
        .patch(&writer, &parameters, &rest(to_all))
        .await?;
    let (group, resource, verb) = right;
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review: SubjectAccessReview = serde_json::from_value(json!({"spec": {
        "user": format!("system:serviceaccount:{NAMESPACE}:{NAME}"),
        "resourceAttributes": {
            "verb": verb, "group": group, "resource": resource, "subresource": subresource,
            "namespace": NAMESPACE, "name": if resource == "leases" { "millrace-leader" } else { "millrace-validator" },
        },
    }}))?;
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    admission::until("the right is gone", async || {
        let answer = reviews.create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        Ok((!allowed).then_some(()))
    })
    .await
}

/// Rules without a right.
fn rest(mut rules: Vec<PolicyRule>, (group, resource, verb): Writing) -> Vec<PolicyRule> {
    let has = |list: &Option<Vec<String>>, wanted: &str| {
        list.iter().flatten().any(|known| known == wanted)
    };
    for rule in &mut rules {
        if has(&rule.api_groups, group) && has(&rule.resources, resource) {
            rule.verbs.retain(|known| known != verb);
        }
    }
    rules.retain(|rule| !rule.verbs.is_empty());
    rules
}

/// What pilot has said so far; its words for what the API server refuses are that server's.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    /// Of everything that is logged in this process from now on.
    fn listen() -> Self {
        static SAID: LazyLock<Said> = LazyLock::new(|| {
            let said = Said::default();
            let writer = said.clone();
            let logs = tracing_subscriber::fmt().with_ansi(false);
            let logs = logs.with_writer(move || writer.clone());
            // Whoever listens already hears it instead, and the test fails.
            drop(logs.try_init());
            said
        });
        SAID.clone()
    }

    /// How often a right was missed.
    fn misses(&self, (_, resource, verb): Writing) -> usize {
        let said = self.0.lock();
        let text = String::from_utf8_lossy(&said);
        text.matches(&format!("cannot {verb} resource \"{resource}\""))
            .count()
    }
}

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
