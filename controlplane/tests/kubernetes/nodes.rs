//! xDS over TLS: who shows which token is let in as which node, for how long, and what it is told.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use millrace_testkit::apiserver::ApiServer;
use millrace_testkit::require;
use millrace_xds::TypeUrl;
use millrace_xds::proto::envoy::service::status::v3::ClientStatusRequest;
use millrace_xds::proto::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use rcgen::{KeyPair, SigningKey as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::door::{CLUSTER, Door, Guest, MESH, pod};
use crate::mesh::PATIENCE;
use crate::rights;

#[tokio::test]
async fn a_token_opens_the_door_of_its_own_node_and_no_other() -> anyhow::Result<()> {
    require!(apiserver);
    let door = Door::open().await?;
    let good = door.token("node", "millrace", Some("proxy-a")).await?;
    let file = door.put("token", &good)?;
    let id = door.node_id("a");
    door.is_served(&id, &file).await?;

    let refused = async |token: &str, why: &str| door.is_refused(&id, Some(token), why).await;
    door.is_refused(&id, None, "there is no bearer token")
        .await?;
    refused("nonsense", "does not take the token").await?;
    let elsewhere = door.token("node", "somebody-else", Some("proxy-a")).await?;
    refused(&elsewhere, "audience").await?;
    refused(&ending(&door, &good, -3600)?, "expired").await?;
    let other = door.token("node", "millrace", Some("proxy-b")).await?;
    let (a, b) = (door.node("a"), door.node("b"));
    let why = format!("the token is of node {b}, and not of {a}");
    refused(&other, &why).await?;
    let unbound = door.token("node", "millrace", None).await?;
    refused(&unbound, "bound to no node").await?;
    let application = door
        .token("application", "millrace", Some("application"))
        .await?;
    let why = format!(
        "{}/application is no service account of nodes' proxies",
        door.namespace
    );
    refused(&application, &why).await?;

    // The application may be its own sidecar's pod, and no other.
    let file = door.put("application", &application)?;
    door.is_served(&door.sidecar_id("application"), &file)
        .await?;
    let stranger = door.sidecar_id("proxy-a");
    door.is_refused(&stranger, Some(&application), "the token is of pod")
        .await?;

    door.pilot.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_token_that_was_replaced_is_read_again() -> anyhow::Result<()> {
    require!(apiserver);
    let door = Door::open().await?;
    let path = door.put("token", "outlived")?;
    let mut guest = Guest::new(door.config(&door.node_id("a"), Some(&path)))?;
    guest.client.subscribe(&TypeUrl::CLUSTER, [CLUSTER]);
    guest.is_sent_away("does not take the token").await?;
    let good = door.token("node", "millrace", Some("proxy-a")).await?;
    door.put("token", &good)?;
    guest.until(|guest| guest.has(CLUSTER)).await?;

    // The one that is shown now ends soon, and so does its stream.
    door.put("token", &ending(&door, &good, 3)?)?;
    let mut other = Guest::new(door.config(&door.node_id("a"), Some(&path)))?;
    other.client.subscribe(&TypeUrl::CLUSTER, [CLUSTER]);
    other.is_sent_away("the token has expired").await?;
    door.put("token", &good)?;
    other.until(|guest| guest.has(CLUSTER)).await?;
    door.pilot.stop().await;
    Ok(())
}

#[tokio::test]
async fn who_is_gone_is_sent_away() -> anyhow::Result<()> {
    require!(apiserver);
    let review = ["--token-review-interval", "1s"];
    let door = Door::open_with(ApiServer::shared()?, None, &review).await?;
    let token = |pod: &'static str| door.token("node", "millrace", Some(pod));
    let [a, b] = [token("proxy-a").await?, token("proxy-b").await?];
    let [a, b] = [door.put("a", &a)?, door.put("b", &b)?];
    let mut going = Guest::new(door.config(&door.node_id("a"), Some(&a)))?;
    let mut staying = Guest::new(door.config(&door.node_id("b"), Some(&b)))?;
    for guest in [&mut going, &mut staying] {
        guest.client.subscribe(&TypeUrl::CLUSTER, [CLUSTER]);
        guest.until(|guest| guest.has(CLUSTER)).await?;
    }
    let mut state = staying.client.state();
    state.mark_unchanged();
    let pods: Api<Pod> = Api::namespaced(door.client.clone(), &door.namespace);
    let at_once = DeleteParams::default().grace_period(0);
    pods.delete("proxy-a", &at_once).await?;
    going.is_sent_away("does not take the token").await?;
    // Who is still there was asked about as often, and is still told what changes.
    let other = CLUSTER.replace("reviews", "ratings");
    staying.client.subscribe(&TypeUrl::CLUSTER, [&other]);
    door.put_mesh(&(door.mesh() + &MESH.replace("reviews", "ratings")))?;
    staying.until(|guest| guest.has(&other)).await?;
    ensure!(!state.has_changed()?, "{:?}", state.borrow());
    door.pilot.stop().await;
    Ok(())
}

/// The same token with another end, signed by the key of the API server that made it.
fn ending(door: &Door, token: &str, seconds: i64) -> anyhow::Result<String> {
    let [header, claims, _] = *token.split('.').collect::<Vec<_>>() else {
        anyhow::bail!("no token of three parts");
    };
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let at = i64::try_from(now.as_secs())? + seconds;
    for (claim, at) in [("exp", at), ("iat", at - 600), ("nbf", at - 600)] {
        claims[claim] = json!(at);
    }
    let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
    let key = KeyPair::from_pem(&door.server.accounts_key()?)?;
    let signature = fixed(&key.sign(format!("{header}.{claims}").as_bytes())?)?;
    let signature = URL_SAFE_NO_PAD.encode(signature);
    Ok(format!("{header}.{claims}.{signature}"))
}

/// An ECDSA signature in P-256 as tokens have it, of one as certificates have it: two numbers of 32 bytes each.
fn fixed(der: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut rest = der.get(2..).context("too short")?;
    let mut fixed = Vec::new();
    for _ in 0..2 {
        let length = usize::from(*rest.get(1).context("no length")?);
        let number = rest.get(2..2 + length).context("no number")?;
        let number = &number[number.len().saturating_sub(32)..];
        fixed.extend(vec![0; 32 - number.len()]);
        fixed.extend_from_slice(number);
        rest = &rest[2 + length..];
    }
    Ok(fixed)
}

/// A service that is its namespace's alone.
fn private(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         annotations: {{networking.istio.io/exportTo: .}}\nspec:\n  clusterIP: 10.96.0.2\n  \
         ports: [{{name: http, port: 80}}]\n---\n"
    )
}

#[tokio::test]
async fn a_node_is_told_what_its_pods_need_and_no_more() -> anyhow::Result<()> {
    require!(apiserver);
    let door = Door::open().await?;
    let (a, b) = (door.node("a"), door.node("b"));
    let mesh = MESH.to_owned()
        + &private("secret", "vault")
        + &pod("default", "own", &a, "10.1.0.1")
        + &pod("default", "far", &b, "10.1.0.2")
        + &pod("secret", "far", &b, "10.1.0.3");
    door.put_mesh(&mesh)?;

    let vault = "outbound|80||vault.secret.svc.cluster.local";
    let listeners = [
        "default/*",
        "secret/*",
        "pod/default/own",
        "pod/default/far",
        "pod/secret/far",
    ];
    let subscribe = |guest: &Guest| {
        guest.client.subscribe(&TypeUrl::LISTENER, listeners);
        let routes = ["default/80", "secret/80"];
        guest.client.subscribe(&TypeUrl::ROUTE, routes);
        guest.client.subscribe(&TypeUrl::CLUSTER, [CLUSTER, vault]);
        let own = format!("secret/{vault}");
        guest
            .client
            .subscribe(&TypeUrl::ENDPOINT, [CLUSTER.to_owned(), own]);
    };
    let everybodys = ["default/virtualOutbound", "default/0.0.0.0_80", CLUSTER];
    let token = door.token("node", "millrace", Some("proxy-b")).await?;
    let token = door.put("b", &token)?;
    let mut other = Guest::new(door.config(&door.node_id("b"), Some(&token)))?;
    subscribe(&other);
    let secret = ["secret/virtualOutbound", "secret/80", "pod/secret/far"];
    let all = |guest: &Guest| everybodys.iter().chain(&secret).all(|name| guest.has(name));
    other.until(|guest| all(guest) && guest.has(vault)).await?;
    other.until(|guest| guest.has("pod/default/far")).await?;
    other.until(|guest| guest.lacks("pod/default/own")).await?;

    let token = door.token("node", "millrace", Some("proxy-a")).await?;
    let token = door.put("a", &token)?;
    let mut guest = Guest::new(door.config(&door.node_id("a"), Some(&token)))?;
    subscribe(&guest);
    let kept = ["pod/secret/far", "pod/default/far", "secret/80", vault];
    let answered = |guest: &Guest| {
        let has = everybodys
            .iter()
            .chain(&["pod/default/own", "default/80"])
            .all(|name| guest.has(name));
        has && kept.iter().all(|name| guest.lacks(name))
    };
    guest.until(answered).await?;
    let of_secret = |guest: &Guest| {
        let told = guest.told.iter().filter(|(_, there)| **there);
        let names: Vec<_> = told.map(|(name, _)| name.clone()).collect();
        names
            .into_iter()
            .filter(|name| name.contains("secret"))
            .collect::<Vec<_>>()
    };
    assert_eq!(of_secret(&guest), [""; 0]);

    // A pod of that namespace comes to the node, and goes again.
    door.put_mesh(&(mesh.clone() + &pod("secret", "near", &a, "10.1.0.4")))?;
    let shared = ["secret/virtualOutbound", "secret/80", vault];
    guest
        .until(|guest| shared.iter().all(|name| guest.has(name)))
        .await?;
    guest.until(|guest| guest.lacks("pod/secret/far")).await?;
    door.put_mesh(&mesh)?;
    guest.until(|guest| of_secret(guest).is_empty()).await?;
    assert_eq!(of_secret(&other).len(), secret.len() + 3);
    door.pilot.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_sidecar_is_told_what_its_namespace_may_call() -> anyhow::Result<()> {
    require!(apiserver);
    let door = Door::open().await?;
    let own = MESH.replace(
        "{name: reviews}",
        &format!("{{name: own, namespace: {}}}", door.namespace),
    );
    let mesh = MESH.to_owned() + &own;
    door.put_mesh(&mesh)?;
    let token = door
        .token("application", "millrace", Some("application"))
        .await?;
    let token = door.put("token", &token)?;
    let mut guest = Guest::new(door.config(&door.sidecar_id("application"), Some(&token)))?;
    let near = format!("outbound|80||own.{}.svc.cluster.local", door.namespace);
    let clusters = [CLUSTER, &near];
    guest.client.subscribe(&TypeUrl::CLUSTER, clusters);
    guest
        .until(|guest| clusters.iter().all(|name| guest.has(name)))
        .await?;
    let sidecar = format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: own, namespace: {}}}\n\
         spec: {{egress: [{{hosts: [./*]}}]}}\n---\n",
        door.namespace
    );
    door.put_mesh(&(mesh.clone() + &sidecar))?;
    guest.until(|guest| guest.lacks(CLUSTER)).await?;
    assert!(guest.has(&near));
    // Where a rule leads it may be sent all the same.
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: own, namespace: {}}}\nspec:\n  \
         hosts: [own]\n  http: [{{route: [{{destination: {{host: reviews.default.svc.cluster.local}}}}]}}]\n",
        door.namespace
    );
    door.put_mesh(&(mesh + &sidecar + &rule))?;
    guest.until(|guest| guest.has(CLUSTER)).await?;
    door.pilot.stop().await;
    Ok(())
}

#[tokio::test]
async fn pilot_asks_with_the_rights_of_its_manifest() -> anyhow::Result<()> {
    require!(apiserver);
    let server = Arc::new(ApiServer::start()?);
    let client = server.client().await?;
    let kubeconfig = rights::kubeconfig(&server, &client).await?;
    let door = Door::open_with(Arc::clone(&server), Some(kubeconfig), &[]).await?;
    let token = door.token("node", "millrace", Some("proxy-a")).await?;
    let file = door.put("token", &token)?;
    door.is_served(&door.node_id("a"), &file).await?;

    let roles: Api<ClusterRole> = Api::all(client);
    let name = "millrace-pilot-tokens";
    let granted = roles.get(name).await?.rules.unwrap_or_default();
    ensure!(granted.len() == 1, "{granted:?}");
    let nothing = Patch::Merge(json!({"rules": []}));
    roles.patch(name, &PatchParams::default(), &nothing).await?;
    let why = "cannot create resource";
    door.is_refused(&door.node_id("a"), Some(&token), why)
        .await?;
    door.pilot.stop().await;
    Ok(())
}

/// A channel to pilot's TLS port.
async fn channel(door: &Door) -> anyhow::Result<Channel> {
    let at = door.pilot.addresses().tls_xds.context("no TLS")?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(door.roots())? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let name = ServerName::IpAddress(at.ip().into());
            let stream = connector
                .connect(name, TcpStream::connect(at).await?)
                .await?;
            std::io::Result::Ok(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{at}"))?;
    Ok(endpoint.connect_with_connector(connect).await?)
}

#[tokio::test]
async fn what_others_have_is_nobodys_to_ask_there() -> anyhow::Result<()> {
    require!(apiserver);
    let door = Door::open().await?;
    let mut service = ClientStatusDiscoveryServiceClient::new(channel(&door).await?);
    let asked = service.fetch_client_status(ClientStatusRequest::default());
    let answer = tokio::time::timeout(PATIENCE, asked).await?;
    let status = answer.expect_err("nobody's to ask");
    assert_eq!(status.code(), tonic::Code::Unimplemented, "{status}");
    // Nor does a first request that never comes keep a stream for ever, or a stranger any resource.
    door.is_refused(&door.node_id("a"), None, "there is no bearer token")
        .await?;
    door.pilot.stop().await;
    Ok(())
}
