//! Certificate authorities in a Secret, where all replicas of pilot meet.
//!
//! Input: an API server; output: [`Store`] for [`crate::tls::keep`]. A write carries the version that was read, so that of
//! two replicas that renew at once one is refused. What cannot be read is left alone: a person may have put it there.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Error as WatchError, watch_object};
use kube::{Client, Error};

use crate::tls::TlsError;
use crate::tls::authority::{Authority, Root};
use crate::tls::keep::Store;
use crate::tls::rotation::Authorities;

/// The name of the Secret, in pilot's own namespace.
pub const NAME: &str = "millrace-ca";
const TYPE: &str = "millrace.io/ca";

const SIGNING: (&str, &str) = ("ca-cert.pem", "ca-key.pem");
const NEXT: (&str, &str) = ("next-cert.pem", "next-key.pem");
const RETIRED: &str = "retired-cert.pem";
/// For people and other programs: all that is to be trusted. Pilot writes it and never reads it.
const ROOTS: &str = "root-cert.pem";

type Changes = Pin<Box<dyn Stream<Item = Result<Option<Secret>, WatchError>> + Send>>;

/// The Secret.
pub struct SecretStore {
    api: Api<Secret>,
    place: String,
    changes: Changes,
}

impl SecretStore {
    /// The Secret of pilot's namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        let api = Api::<Secret>::namespaced(client, namespace);
        Self {
            changes: watch_object(api.clone(), NAME).default_backoff().boxed(),
            api,
            place: format!("Secret {namespace}/{NAME}"),
        }
    }

    fn failed(&self, error: &Error) -> TlsError {
        TlsError::Store {
            place: self.place.clone(),
            message: error.to_string(),
        }
    }
}

impl Store for SecretStore {
    type Version = Box<Secret>;

    async fn load(&mut self) -> Result<Option<(Authorities, Box<Secret>)>, TlsError> {
        let secret = self.api.get_opt(NAME).await;
        let Some(secret) = secret.map_err(|error| self.failed(&error))? else {
            return Ok(None);
        };
        let authorities = read(secret.data.as_ref().unwrap_or(&BTreeMap::new()))?;
        Ok(Some((authorities, Box::new(secret))))
    }

    async fn save(
        &mut self,
        authorities: &Authorities,
        over: Option<Box<Secret>>,
    ) -> Result<bool, TlsError> {
        let params = PostParams::default();
        let written = if let Some(mut secret) = over {
            secret.data = Some(data(authorities));
            self.api.replace(NAME, &params, &secret).await
        } else {
            let secret = Secret {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                type_: Some(TYPE.to_owned()),
                data: Some(data(authorities)),
                ..Secret::default()
            };
            self.api.create(&params, &secret).await
        };
        match written {
            Ok(_) => Ok(true),
            // 404: it went after it was read.
            Err(Error::Api(status)) if [404, 409].contains(&status.code) => Ok(false),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn changed(&mut self) {
        loop {
            match self.changes.next().await {
                Some(Ok(_)) => return,
                Some(Err(error)) => {
                    tracing::debug!(place = self.place, %error, "the watch is broken");
                }
                None => std::future::pending().await,
            }
        }
    }
}

fn read(data: &BTreeMap<String, ByteString>) -> Result<Authorities, TlsError> {
    let text = |key: &str| -> Result<&str, TlsError> {
        let bytes = data.get(key).map(|bytes| bytes.0.as_slice());
        str::from_utf8(bytes.unwrap_or_default())
            .map_err(|error| TlsError::Unreadable(format!("{key}: {error}")))
    };
    let authority = |keys: (&str, &str)| Authority::read(text(keys.0)?, text(keys.1)?);
    let next = data.contains_key(NEXT.0).then(|| authority(NEXT));
    Ok(Authorities {
        signing: authority(SIGNING)?,
        next: next.transpose()?,
        retired: Root::read_all(text(RETIRED)?)?,
    })
}

fn data(authorities: &Authorities) -> BTreeMap<String, ByteString> {
    let mut data = BTreeMap::new();
    let mut put = |key: &str, text: &str| {
        data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
    };
    let next = authorities.next.iter().map(|next| (NEXT, next));
    for (keys, authority) in std::iter::once((SIGNING, &authorities.signing)).chain(next) {
        put(keys.0, authority.root().pem());
        put(keys.1, authority.key_pem());
    }
    let retired: String = authorities.retired.iter().map(Root::pem).collect();
    put(RETIRED, &retired);
    put(ROOTS, &authorities.roots());
    data
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn authorities_are_read_as_they_were_written() {
        let life = Duration::from_hours(1000);
        let now = SystemTime::now();
        let hours = |hours| now + Duration::from_hours(hours);
        let first = Authorities::create("test", life, now).unwrap();
        let published = first.renewed("test", life, hours(801)).unwrap();
        let switched = published.renewed("test", life, hours(860)).unwrap();
        assert_eq!(
            (published.next.is_some(), switched.retired.len()),
            (true, 1)
        );
        for authorities in [first, published, switched] {
            let data = data(&authorities);
            assert_eq!(read(&data).unwrap(), authorities);
            assert_eq!(data[ROOTS].0, authorities.roots().into_bytes());
        }
        assert!(read(&BTreeMap::new()).is_err());
    }
}
