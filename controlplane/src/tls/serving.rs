//! What a TLS server takes: a rustls configuration whose certificate changes under it, and the roots to be told to clients.
//!
//! Input: certificates from [`super::keep`]; output: handshakes. A handshake before the first certificate fails, so a
//! server waits for [`Serving::ready`] before it says that it is one.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::crypto::aws_lc_rs::{default_provider, sign::any_supported_type};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ConfigBuilder, ServerConfig, WantsVerifier};
use tokio::sync::watch;

use super::TlsError;
use super::authority::Issued;

/// The certificate that all TLS ports of this process serve with, and the roots behind it.
#[derive(Debug)]
pub struct Serving {
    certificate: ArcSwapOption<CertifiedKey>,
    roots: watch::Sender<Option<Arc<str>>>,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            certificate: ArcSwapOption::empty(),
            roots: watch::Sender::new(None),
        }
    }
}

impl Serving {
    /// Nothing to serve with yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A server's configuration that asks no certificate of clients.
    ///
    /// # Errors
    /// When rustls has none of the versions of TLS: never in this build.
    pub fn config(self: &Arc<Self>, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = Self::builder()?;
        let mut config = builder
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// The beginning of a configuration, for a server that has its own mind about clients; its certificates are resolved
    /// by this.
    ///
    /// # Errors
    /// As for [`Self::config`].
    pub fn builder() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, TlsError> {
        ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(TlsError::Unservable)
    }

    /// The roots that clients are to trust, as PEM: none until there is a certificate.
    pub fn roots(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.roots.subscribe()
    }

    /// Waits until there is a certificate.
    pub async fn ready(&self) {
        let mut roots = self.roots.subscribe();
        // The sender lives in `self`, so the channel cannot close here.
        drop(roots.wait_for(Option::is_some).await);
    }

    /// Serves with this from the next handshake on.
    pub(super) fn set_certificate(&self, issued: Issued) -> Result<(), TlsError> {
        let key = any_supported_type(&issued.key).map_err(TlsError::Unservable)?;
        let certified = CertifiedKey::new(issued.chain, key);
        self.certificate.store(Some(Arc::new(certified)));
        Ok(())
    }

    /// Clients are to trust these.
    pub(super) fn set_roots(&self, roots: String) {
        let roots: Arc<str> = roots.into();
        self.roots.send_if_modified(|known| {
            let differs = known.as_ref() != Some(&roots);
            if differs {
                *known = Some(Arc::clone(&roots));
            }
            differs
        });
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate.load_full()
    }
}
