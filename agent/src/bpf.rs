//! The eBPF side of the agent: what this kernel can do, loading and adopting the programs, and the maps
//! that say who is captured and how.
//!
//! `app` makes one [`Bpf`] at start; `redirect` enrols and withdraws pods through it; `status` and
//! `metrics` read it. Nothing here decides whether a pod is captured.

mod accel;
mod attach;
mod btf;
mod enrolment;
mod error;
mod foreign;
mod layout;
mod loader;
mod log;
mod maps;
mod nsid;
mod object;
mod pins;
mod policy;
mod probe;
mod programs;
mod sys;
mod verify;

pub use accel::{AcceleratedEnd, Inspector, Promotion, SpliceEnd};
pub use enrolment::{Enrolled, PodEnrolment};
pub use error::BpfError;
pub use foreign::{ForeignProgram, Order, foreign_at};
pub use loader::{Adoption, Bpf, BpfConfig, Replace};
pub use log::{BpfEvent, EventStream, LogPump, with_programs};
pub use maps::{CounterValue, MapOccupancy, PodTraffic};
pub use millrace_ebpf_abi::{
    AccelOutcome, AccelTraffic, Acceleration, Counter, Direction, EventKind, LogLevel,
    PodAcceleration, PodPolicy, PodTelemetry, experiment,
};
pub use nsid::nsid;
pub use pins::ensure_bpffs;
pub use policy::{CapturePolicy, ListenerPorts, OnCaptureLoss};
pub use probe::{Capabilities, Feature, Verdict, probe};
pub use sys::{netns_cookie, program_name};
pub use verify::{Listing, Steering};
