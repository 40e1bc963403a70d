//! Millrace's node side: which pods are captured and how (`run`), the sockets and rules inside
//! pods (`broker`), the init container's rules (`init`) and the processes of a node (`node`).
//!
//! A pod's way into the mesh: `pods` describes it, `enroll` plans, `redirect` chooses, `reconcile`
//! carries out through `kernel` (eBPF) and `broker_client`, the `broker` acts inside the pod.

#![deny(unsafe_code)]

pub mod accel;
pub mod api;
pub mod app;
pub mod bpf;
pub mod broker;
pub mod broker_client;
pub mod cleanup;
pub mod cli;
pub mod config;
pub mod dump;
pub mod enroll;
pub mod integrity;
pub mod iptables;
pub mod kernel;
pub mod metrics;
pub mod node;
pub mod pods;
pub mod privileges;
pub mod reconcile;
pub mod redirect;
pub mod status;
pub mod store;
pub mod supervise;
