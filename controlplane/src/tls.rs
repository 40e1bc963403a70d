//! Pilot's own certificates: an authority that replicas share, and what each serves with.
//!
//! [`authority`] makes certificates, [`rotation`] decides which authority signs and when the next one comes (both pure),
//! [`keep`] holds them where all replicas see them, [`serving`] is what servers take: a rustls configuration whose
//! certificate is swapped under it, and the roots that clients are to trust. Used by every TLS port of pilot's.

pub mod authority;
pub mod keep;
pub mod rotation;
pub mod serving;

use thiserror::Error;

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A key or certificate could not be made.
    #[error("making a certificate")]
    Made(#[source] rcgen::Error),
    /// What was kept is no certificate.
    #[error("the certificate of the authority that was kept cannot be read: {0}")]
    Unreadable(String),
    /// What was kept belongs together no longer.
    #[error("the key of the authority that was kept does not belong to its certificate")]
    Mismatch,
    /// rustls takes it not.
    #[error("the certificate that was made cannot be served")]
    Unservable(#[source] rustls::Error),
    /// The place where authorities are kept does not answer.
    #[error("the place of the authorities, {place}: {message}")]
    Store {
        /// Where it is.
        place: String,
        /// What it said.
        message: String,
    },
}
