//! One certificate authority: made, read again from what was kept, and asked for certificates of servers.
//!
//! Pure but for randomness; the time is the caller's. Used by [`super::rotation`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::TlsError;

/// Certificates begin this much in the past, for clocks that disagree, but never by more than a tenth of their life.
const BACKDATED: Duration = Duration::from_mins(2);

/// What the PEM of a certificate ends with.
const END: &str = "-----END CERTIFICATE-----";

/// From when to when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub from: SystemTime,
    /// The last.
    pub until: SystemTime,
}

impl Validity {
    /// Starts now, or a little earlier.
    pub fn starting(now: SystemTime, lifetime: Duration) -> Self {
        Self {
            from: now - BACKDATED.min(lifetime / 10),
            until: now + lifetime,
        }
    }

    /// When this share of it will be over.
    pub fn at(&self, share: f64) -> SystemTime {
        let whole = self.until.duration_since(self.from).unwrap_or_default();
        self.from + whole.mul_f64(share)
    }

    fn of(certificate: &X509Certificate<'_>) -> Self {
        let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
        let validity = certificate.validity();
        Self {
            from: at(validity.not_before.timestamp()),
            until: at(validity.not_after.timestamp()),
        }
    }
}

/// A certificate authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    root: Root,
    key: Secret,
}

/// The certificate of an authority, of which the key need not be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pem: String,
    validity: Validity,
}

/// PEM that must not be shown.
#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// A server's certificate with its key.
#[derive(Debug)]
pub struct Issued {
    /// The certificate, without its authority's.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// How long it holds.
    pub validity: Validity,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn create(name: &str, lifetime: Duration, now: SystemTime) -> Result<Self, TlsError> {
        let key = KeyPair::generate().map_err(TlsError::Made)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        set_validity(&mut params, &Validity::starting(now, lifetime));
        let certificate = params.self_signed(&key).map_err(TlsError::Made)?;
        Ok(Self {
            root: Root::read(&certificate.pem())?,
            key: Secret(key.serialize_pem()),
        })
    }

    /// Reads one that was kept.
    ///
    /// # Errors
    /// When it is not the certificate of an authority, or the key is another's.
    pub fn read(certificate: &str, key: &str) -> Result<Self, TlsError> {
        let root = Root::read(certificate)?;
        let pair = KeyPair::from_pem(key)
            .map_err(|error| TlsError::Unreadable(format!("its key: {error}")))?;
        let der = der(certificate)?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| unreadable(&error))?;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(TlsError::Mismatch);
        }
        Ok(Self {
            root,
            key: Secret(key.to_owned()),
        })
    }

    /// Its certificate.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Its key as PEM, to be kept.
    pub fn key_pem(&self) -> &str {
        &self.key.0
    }

    /// A certificate for a server of these names and addresses. It holds no longer than the authority.
    ///
    /// # Errors
    /// When a name cannot be written into a certificate.
    pub fn issue(
        &self,
        names: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, TlsError> {
        let own = KeyPair::from_pem(&self.key.0).map_err(TlsError::Made)?;
        let issuer = Issuer::from_ca_cert_pem(&self.root.pem, own).map_err(TlsError::Made)?;
        let key = KeyPair::generate().map_err(TlsError::Made)?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(TlsError::Made)?;
        if let Some(first) = names.first() {
            params
                .distinguished_name
                .push(DnType::CommonName, first.as_str());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let mut validity = Validity::starting(now, lifetime);
        validity.from = validity.from.max(self.root.validity.from);
        validity.until = validity.until.min(self.root.validity.until);
        set_validity(&mut params, &validity);
        let certificate = params.signed_by(&key, &issuer).map_err(TlsError::Made)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|error| TlsError::Unreadable(error.to_owned()))?;
        Ok(Issued {
            chain: vec![certificate.der().clone()],
            key,
            validity,
        })
    }
}

impl Root {
    /// Reads one.
    ///
    /// # Errors
    /// When it is not the certificate of an authority.
    pub fn read(pem: &str) -> Result<Self, TlsError> {
        let der = der(pem)?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|error| unreadable(&error))?;
        if !certificate.is_ca() {
            return Err(TlsError::Unreadable("it is no authority's".to_owned()));
        }
        Ok(Self {
            pem: format!("{}\n", pem.trim()),
            validity: Validity::of(&certificate),
        })
    }

    /// Reads several, one after the other.
    ///
    /// # Errors
    /// When one of them is not the certificate of an authority.
    pub fn read_all(pem: &str) -> Result<Vec<Self>, TlsError> {
        pem.split_inclusive(END)
            .map(str::trim_start)
            .filter(|piece| !piece.is_empty())
            .map(|piece| Self::read(&format!("{piece}\n")))
            .collect()
    }

    /// It as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// How long it holds.
    pub fn validity(&self) -> &Validity {
        &self.validity
    }
}

/// The DER of the one certificate in a PEM text.
fn der(pem: &str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unreadable(&error))
}

fn unreadable(error: &dyn std::fmt::Display) -> TlsError {
    TlsError::Unreadable(error.to_string())
}

fn set_validity(params: &mut CertificateParams, validity: &Validity) {
    let date = |at: SystemTime| {
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        // Further away than a certificate can say: its own last day, RFC 5280 section 4.1.2.5.
        OffsetDateTime::from_unix_timestamp(seconds)
            .unwrap_or_else(|_| rcgen::date_time_ymd(9999, 12, 31))
    };
    params.not_before = date(validity.from);
    params.not_after = date(validity.until);
}
