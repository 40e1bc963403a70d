//! The certificates and keys of one API server, made for it and gone with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::write_private;

/// Names by which the server is reached.
const NAMES: [&str; 4] = ["127.0.0.1", "::1", "localhost", "kubernetes.default.svc"];

/// Files with keys and certificates.
#[derive(Debug)]
pub(super) struct Pki {
    /// The authority's certificate, for clients.
    pub(super) authority: PathBuf,
    /// The server's certificate.
    pub(super) certificate: PathBuf,
    /// The server's key.
    pub(super) key: PathBuf,
    /// The key that signs service accounts' tokens.
    pub(super) accounts: PathBuf,
    /// The public half of it, by which the tokens are known.
    pub(super) accounts_public: PathBuf,
}

impl Pki {
    pub(super) fn make(dir: &Path) -> anyhow::Result<Self> {
        let pki = Self {
            authority: dir.join("ca.crt"),
            certificate: dir.join("server.crt"),
            key: dir.join("server.key"),
            accounts: dir.join("accounts.key"),
            accounts_public: dir.join("accounts.pub"),
        };
        let key = KeyPair::generate().context("making the authority's key")?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "millrace-test");
        let authority = params
            .self_signed(&key)
            .context("signing the authority's certificate")?;
        let issuer = Issuer::new(params, key);
        let server = KeyPair::generate().context("making the server's key")?;
        let certificate = CertificateParams::new(NAMES.map(str::to_owned))
            .context("naming the server")?
            .signed_by(&server, &issuer)
            .context("signing the server's certificate")?;
        let accounts = KeyPair::generate().context("making the key of service accounts")?;
        fs::write(&pki.authority, authority.pem()).context("writing the authority")?;
        fs::write(&pki.certificate, certificate.pem()).context("writing the certificate")?;
        write_private(&pki.key, &server.serialize_pem())?;
        fs::write(&pki.accounts_public, accounts.public_key_pem())
            .context("writing the key of service accounts")?;
        write_private(&pki.accounts, &accounts.serialize_pem())?;
        Ok(pki)
    }
}
