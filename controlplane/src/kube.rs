//! Kubernetes' and Istio's objects: reading them from YAML, and turning them into the model; and what pilot itself writes
//! to an API server.
//!
//! Input: text; output: [`crate::model::Object`]s and problems with their line, for registries. [`secret`] keeps the
//! authorities of pilot's certificates, [`lease`] says which replica writes the rest, [`status`] writes statuses,
//! [`tokens`] asks whose a token is.

pub mod convert;
pub mod crd;
pub mod document;
pub mod lease;
pub mod mesh_config;
pub mod secret;
pub mod status;
pub mod tokens;
pub mod yaml;
