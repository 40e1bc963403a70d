//! The validating admission webhook: what pilot would refuse, the API server refuses when it is written.
//!
//! [`review`] answers one question of the API server (pure), [`server`] listens for them over TLS, [`registration`] keeps
//! the API server told whom to ask and whom to trust. Started by [`crate::app`] where pilot's registry is Kubernetes.

pub mod registration;
pub mod review;
pub mod server;
