//! The certificates and keys of one API server, made for it and gone with it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::write_private;

/// Names by which every server is reached, beside its own address.
const NAMES: [&str; 4] = ["127.0.0.1", "::1", "localhost", "kubernetes.default.svc"];

/// Files with keys and certificates.
#[derive(Debug)]
pub(crate) struct Pki {
    /// The authority's certificate, for clients.
    pub(crate) authority: PathBuf,
    /// The server's certificate.
    pub(crate) certificate: PathBuf,
    /// The server's key.
    pub(crate) key: PathBuf,
    /// The key that signs service accounts' tokens.
    pub(crate) accounts: PathBuf,
    /// The public half of it, by which the tokens are known.
    pub(crate) accounts_public: PathBuf,
}

impl Pki {
    /// Makes them, for a server that is reached at `address`.
    pub(crate) fn make(dir: &Path, address: IpAddr) -> anyhow::Result<Self> {
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
        let mut names: Vec<String> = NAMES.map(str::to_owned).to_vec();
        if !address.is_loopback() {
            names.push(address.to_string());
        }
        let certificate = CertificateParams::new(names)
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
