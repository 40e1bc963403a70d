//! Leave for the agent to copy these types to and from maps.

use crate::{
    Addr, CidrKey, Event, ListenerKey, NodeConfig, OrigDst, PodPolicy, PodTelemetry, PortKey,
    SockTuple, SocketState, TelemetryKey,
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
    Addr,
    CidrKey,
    Event,
    ListenerKey,
    NodeConfig,
    OrigDst,
    PodPolicy,
    PodTelemetry,
    PortKey,
    SockTuple,
    SocketState,
    TelemetryKey,
);
