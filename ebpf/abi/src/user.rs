//! Leave for the agent to copy these types to and from maps.

use crate::{
    AccelCommand, AccelReport, Addr, CidrKey, Event, KernelLayout, ListenerKey, NodeConfig,
    OrigDst, PodAcceleration, PodPolicy, PodTelemetry, PortKey, SockTuple, SocketState,
    TelemetryKey,
};

macro_rules! pod {
    ($($name:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)` without padding (asserted beside each type), `Copy`, and every bit pattern is
            // a valid value: only integers and arrays of them.
            unsafe impl aya::Pod for $name {}
        )+
    };
}

pod!(
    AccelCommand,
    AccelReport,
    Addr,
    CidrKey,
    Event,
    KernelLayout,
    ListenerKey,
    NodeConfig,
    OrigDst,
    PodAcceleration,
    PodPolicy,
    PodTelemetry,
    PortKey,
    SockTuple,
    SocketState,
    TelemetryKey,
);
