//! The client: where the API server is, who asks, and how a connection that leads nowhere is noticed.
//!
//! Input: flags, the environment, a kubeconfig; output: a client. Called at the start, by the registry and whoever else asks the API server.

use std::path::PathBuf;
use std::time::Duration;

use http::Response;
use http_body::Body;
use http_body_util::{BodyExt as _, Limited};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::Status;
use kube::{Client, Config};
use thiserror::Error;
use tower::{BoxError, ServiceBuilder};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// A watch may be silent for a minute, so it is the kernel that finds a peer which is gone: it asks after this long,
const KEEPALIVE: Duration = Duration::from_secs(10);
/// then this often,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// and gives up after so many questions without an answer,
const KEEPALIVE_TRIES: u32 = 3;
/// or when what was sent is not acknowledged for this long.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// An answer that says no is as long as its reason.
const LONGEST_REFUSAL: usize = 64 * 1024;

/// How the cluster is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A kubeconfig file; without one, the pod's own service account, else kubectl's places.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it; its current one where absent.
    pub context: Option<String>,
}

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The named kubeconfig does not do.
    #[error("kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// None was named, and there is none at the usual places.
    #[error("no --kubeconfig, no service account of a pod, no kubeconfig at the usual places")]
    Nowhere(#[source] Box<InferConfigError>),
    /// The certificates or credentials do not do.
    #[error("credentials of the API server's client")]
    Credentials(#[source] Box<kube::Error>),
    /// A proxy stands between.
    #[error("an HTTP proxy towards the API server is not supported: {0}")]
    Proxy(String),
}

/// A client; nothing is asked of the API server yet.
///
/// # Errors
/// When the configuration cannot be read or its credentials not be used.
pub(crate) async fn connect(access: &Access) -> Result<Client, ConnectError> {
    let config = configuration(access).await?;
    if let Some(proxy) = &config.proxy_url {
        return Err(ConnectError::Proxy(proxy.to_string()));
    }
    client(&config).map_err(|error| ConnectError::Credentials(Box::new(error)))
}

async fn configuration(access: &Access) -> Result<Config, ConnectError> {
    let options = KubeConfigOptions {
        context: access.context.clone(),
        ..KubeConfigOptions::default()
    };
    let Some(path) = &access.kubeconfig else {
        // In a pod its own account comes first: a kubeconfig there is an accident.
        return match Config::incluster() {
            Ok(config) => Ok(config),
            Err(_) => Config::infer()
                .await
                .map_err(|error| ConnectError::Nowhere(Box::new(error))),
        };
    };
    let wrong = |error| ConnectError::Kubeconfig {
        path: path.clone(),
        source: Box::new(error),
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(wrong)
}

fn client(config: &Config) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_TRIES));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let client = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .and_then(successful)
        .map_err(BoxError::from)
        .service(client);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Makes an error of an answer that says no. The client itself looks at the status of no watch: it reads its body line by
/// line as events, and finds none in a 403, 404 or 410 that stands on several lines.
async fn successful<B>(response: Response<B>) -> Result<Response<B>, BoxError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let code = response.status();
    if code.is_success() {
        return Ok(response);
    }
    let body = Limited::new(response.into_body(), LONGEST_REFUSAL);
    let body = body.collect().await?.to_bytes();
    let status = serde_json::from_slice::<Status>(&body).unwrap_or_else(|_| {
        let reason = code.canonical_reason().unwrap_or_default();
        Status::failure(String::from_utf8_lossy(&body).trim(), reason).with_code(code.as_u16())
    });
    Err(kube::Error::Api(status.boxed()).into())
}
