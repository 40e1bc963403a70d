//! Millrace's node side: which pods are captured and how (`run`), the sockets and rules inside
//! pods (`broker`), the init container's rules (`init`) and the processes of a node (`node`).
//!
//! Order is that of a pod's way into the mesh: described, planned, captured, served with sockets.

#![deny(unsafe_code)]

pub mod bpf;
pub mod broker;
pub mod broker_client;
pub mod iptables;
