//! Kubernetes' and Istio's objects: reading them from YAML, and turning them into the model.
//!
//! Input: text; output: [`crate::model::Object`]s and problems with their line. Called by registries.

pub mod convert;
pub mod crd;
pub mod document;
pub mod mesh_config;
pub mod yaml;
