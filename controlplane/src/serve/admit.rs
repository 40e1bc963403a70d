//! Who may be which node, at the port that asks for tokens.
//!
//! Input: a stream's first request and its token; output: whether it goes on, and when no longer. A node's proxy runs
//! under one of the accounts that were named, on the node that it asks for; any other client is the pod that it says it is.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millrace_xds::node::Node;
use millrace_xds::server::{Connection, Guard, Stay};
use tonic::Status;

use crate::kube::tokens::{Identity, TokenError, Tokens, expiry};
use crate::model::names::ObjectName;
use crate::translate::ProxyView;

/// Lets in who has the right token; every refusal says why.
#[derive(Debug)]
pub(crate) struct TokenGuard {
    pub(crate) tokens: Tokens,
    /// The accounts of nodes' proxies.
    pub(crate) nodes: Vec<ObjectName>,
    /// The longest time between two reviews of a token.
    pub(crate) review: Duration,
}

/// A token that was found good for a client.
struct Shown {
    token: String,
    identity: Identity,
    node: Arc<Node>,
    tokens: Tokens,
    review: Duration,
}

impl TokenGuard {
    async fn identify(&self, connection: &Connection) -> Result<Shown, Status> {
        let node = &connection.node;
        if super::objects::are_read_by(node) {
            // It would be everybody's, and a pod's token says only which pod it is.
            return Err(Status::permission_denied(
                "configuration itself is not told to pods and nodes",
            ));
        }
        let view = ProxyView::of_node(node)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let header = connection.metadata.get("authorization");
        let header = header.and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| Status::unauthenticated("there is no bearer token"))?;
        let identity = self.tokens.review(token.trim()).await;
        let identity = identity.map_err(|error| refusal(&error))?;
        let pod = match &view {
            ProxyView::Node { .. } => None,
            ProxyView::Sidecar { namespace, pod, .. }
            | ProxyView::Router { namespace, pod, .. } => Some((namespace.as_str(), pod.clone())),
            // Its id says which pod it is, though what it is told depends on the namespace alone.
            ProxyView::Grpc { namespace, .. } => {
                let id = node.parsed_id().map(|id| id.id).unwrap_or_default();
                let own = id.strip_suffix(&format!(".{namespace}"));
                Some((namespace.as_str(), own.unwrap_or(&id).to_owned()))
            }
        };
        let allowed = match (&view, &pod) {
            (ProxyView::Node { name, .. }, _) => of_node(&identity, name, &self.nodes),
            (_, Some((namespace, pod))) => of_pod(&identity, namespace, pod),
            (_, None) => Err("it is neither a node nor a pod".to_owned()),
        };
        allowed.map_err(Status::permission_denied)?;
        Ok(Shown {
            token: token.trim().to_owned(),
            identity,
            node: Arc::clone(node),
            tokens: self.tokens.clone(),
            review: self.review,
        })
    }
}

fn refusal(error: &TokenError) -> Status {
    match error {
        TokenError::Unreviewed(cause) => {
            let why = match &**cause {
                kube::Error::Api(answer) => answer.message.clone(),
                other => other.to_string(),
            };
            Status::unavailable(format!("{error}: {why}"))
        }
        _ => Status::unauthenticated(error.to_string()),
    }
}

impl Shown {
    /// Waits until the token is good no more. An API server that cannot be asked sends nobody away.
    async fn outlived(self) -> Status {
        let ends = expiry(&self.token);
        loop {
            // Those who came together, to a replica that has just started, do not ask together.
            let pause = self.review.mul_f64(0.75 + 0.25 * fastrand::f64());
            let left = ends.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
            if let Some(left) = left.filter(|left| *left <= pause) {
                tokio::time::sleep(left).await;
                return self.sent_away(Status::unauthenticated("the token has expired"));
            }
            tokio::time::sleep(pause).await;
            match self.tokens.review(&self.token).await {
                Ok(identity) if identity == self.identity => {}
                Ok(_) => return self.sent_away(Status::unauthenticated("the token is another's")),
                Err(error @ TokenError::Unreviewed(_)) => {
                    tracing::warn!(node = %self.node.id, why = refusal(&error).message(), "not reviewed again");
                }
                Err(error) => return self.sent_away(refusal(&error)),
            }
        }
    }

    fn sent_away(&self, status: Status) -> Status {
        tracing::info!(node = %self.node.id, why = status.message(), "sent away");
        status
    }
}

/// Whether a token is that of a node's proxy.
fn of_node(identity: &Identity, name: &str, accounts: &[ObjectName]) -> Result<(), String> {
    let account = &identity.account;
    if !accounts.contains(account) {
        return Err(format!("{account} is no service account of nodes' proxies"));
    }
    match &identity.node {
        Some(node) if node == name => Ok(()),
        Some(node) => Err(format!("the token is of node {node}, and not of {name}")),
        None => Err(format!(
            "the token is bound to no node, and so not to {name}"
        )),
    }
}

/// Whether a token is that of a pod.
fn of_pod(identity: &Identity, namespace: &str, pod: &str) -> Result<(), String> {
    let own = &identity.account.namespace;
    match &identity.pod {
        Some(bound) if **own == *namespace && bound == pod => Ok(()),
        Some(bound) => Err(format!(
            "the token is of pod {own}/{bound}, and not of {namespace}/{pod}"
        )),
        None => Err(format!(
            "the token is bound to no pod, and so not to {namespace}/{pod}"
        )),
    }
}

#[tonic::async_trait]
impl Guard for TokenGuard {
    async fn admit(&self, connection: &Connection) -> Result<Stay, Status> {
        let (node, peer) = (&connection.node.id, connection.peer);
        match self.identify(connection).await {
            Ok(shown) => {
                tracing::debug!(%node, account = %shown.identity.account, "let in");
                Ok(Box::pin(shown.outlived()))
            }
            Err(status) => {
                tracing::warn!(%node, ?peer, why = status.message(), "not let in");
                Err(status)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: Option<&str>, pod: Option<&str>) -> Identity {
        Identity {
            account: ObjectName::new("mesh", "node"),
            node: node.map(str::to_owned),
            pod: pod.map(str::to_owned),
        }
    }

    #[test]
    fn a_node_is_where_its_token_is_bound_to() {
        let accounts = [ObjectName::new("mesh", "node")];
        let asks = |identity: &Identity| of_node(identity, "a", &accounts);
        assert_eq!(asks(&identity(Some("a"), None)), Ok(()));
        let other = asks(&identity(Some("b"), None)).expect_err("another node");
        assert!(other.contains("of node b, and not of a"), "{other}");
        asks(&identity(None, None)).expect_err("no node");
        let stranger = of_node(&identity(Some("a"), None), "a", &[]).expect_err("a stranger");
        assert!(
            stranger.contains("mesh/node is no service account of nodes"),
            "{stranger}"
        );
    }

    #[test]
    fn a_pod_is_itself() {
        let own = identity(Some("a"), Some("x"));
        assert_eq!(of_pod(&own, "mesh", "x"), Ok(()));
        of_pod(&own, "mesh", "y").expect_err("another pod");
        of_pod(&own, "other", "x").expect_err("another namespace");
        of_pod(&identity(None, None), "mesh", "x").expect_err("bound to nothing");
    }
}
