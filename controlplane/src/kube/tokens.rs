//! Tokens of service accounts, reviewed by the API server: whose they are, and on which node they may be used.
//!
//! Input: what a client shows; output: [`Identity`], or why there is none. Asked by [`crate::serve::admit`].

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use serde::Deserialize;
use thiserror::Error;

use crate::model::names::ObjectName;

/// Where the API server writes which pod a token is bound to, and on which node that runs.
const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-name";
const ACCOUNT: &str = "system:serviceaccount:";

/// Asks the API server about tokens for one audience.
#[derive(Clone)]
pub struct Tokens {
    reviews: Api<TokenReview>,
    audience: String,
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The service account.
    pub account: ObjectName,
    /// The node of the pod that the token is bound to.
    pub node: Option<String>,
    /// That pod's name, in the account's namespace.
    pub pod: Option<String>,
}

/// Why a token proves nothing.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The API server cannot be asked.
    #[error("the API server reviews no tokens")]
    Unreviewed(#[source] Box<kube::Error>),
    /// It does not know the token, or not any more.
    #[error("the API server does not take the token: {0}")]
    Refused(String),
    /// The token is meant for somebody else.
    #[error("the token is not for {0}")]
    Audience(String),
    /// It is a person's or a node's.
    #[error("{0:?} is no service account")]
    NoAccount(String),
}

impl Tokens {
    /// Asks this API server.
    pub fn new(client: Client, audience: &str) -> Self {
        Self {
            reviews: Api::all(client),
            audience: audience.to_owned(),
        }
    }

    /// Whose a token is.
    ///
    /// # Errors
    /// When it proves nothing.
    pub async fn review(&self, token: &str) -> Result<Identity, TokenError> {
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: token.to_owned(),
            },
            status: None,
        };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| TokenError::Unreviewed(Box::new(error)))?;
        let status = answer.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let reason = status.error.filter(|reason| !reason.is_empty());
            let reason = reason.unwrap_or_else(|| "it gives no reason".to_owned());
            return Err(TokenError::Refused(reason));
        }
        // A server that knows nothing of audiences answers without any.
        let audiences = status.audiences.unwrap_or_default();
        if !audiences.contains(&self.audience) {
            return Err(TokenError::Audience(self.audience.clone()));
        }
        Identity::of(&status.user.unwrap_or_default())
    }
}

/// When a token ends, as it says itself: to be believed of one that was reviewed. None for one that does not say.
pub fn expiry(token: &str) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp))
}

impl Identity {
    fn of(user: &UserInfo) -> Result<Self, TokenError> {
        let name = user.username.as_deref().unwrap_or_default();
        let account = name
            .strip_prefix(ACCOUNT)
            .and_then(|account| account.split_once(':'))
            .map(|(namespace, name)| ObjectName::new(namespace, name))
            .ok_or_else(|| TokenError::NoAccount(name.to_owned()))?;
        let nothing = BTreeMap::new();
        let extra = user.extra.as_ref().unwrap_or(&nothing);
        let first = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
        Ok(Self {
            account,
            node: first(NODE),
            pod: first(POD),
        })
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_when_it_ends() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let says = |claims: &str| expiry(&token(claims));
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_001);
        assert_eq!(says(r#"{"exp":1800000001,"sub":"x"}"#), Some(at));
        for other in [r#"{"sub":"x"}"#, r#"{"exp":-1}"#, "{}", "nonsense"] {
            assert_eq!(says(other), None, "{other}");
        }
        assert_eq!(expiry("millrace"), None, "no token of the usual form");
    }
}
