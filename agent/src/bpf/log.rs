//! What the programs say: aya-log's ring into `tracing`, and events as values.
//!
//! Both are owned by a task of the agent. Nothing is read, and nothing is lost but the messages themselves,
//! while no reader runs.

use std::io;
use std::os::fd::AsRawFd;

use aya::Ebpf;
use aya::maps::{Map, MapData, RingBuf};
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};
use millrace_ebpf_abi::{Addr, Counter, Direction, EventKind};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::BpfError;
use super::pins::Pins;

/// The target of the programs' messages.
const TARGET: &str = "millrace_ebpf";

/// The agent's log filter with the programs' messages let through: their own level decides which of
/// them are made at all. A filter that names them is left as it is.
pub fn with_programs(filter: &str) -> String {
    if filter.contains(TARGET) {
        filter.to_owned()
    } else {
        format!("{filter},{TARGET}=trace")
    }
}

/// Reader of the programs' log messages.
pub struct LogPump {
    logger: AsyncFd<EbpfLogger<IntoTracing>>,
}

/// The programs' log ring, not read yet.
pub(super) struct Logs(EbpfLogger<IntoTracing>);

impl Logs {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        EbpfLogger::init_with_logger(ebpf, IntoTracing)
            .map(Self)
            .map_err(io::Error::other)
            .map_err(BpfError::bpffs("opening the log ring of", "AYA_LOGS"))
    }
}

impl LogPump {
    pub(super) fn open(logs: Logs) -> Result<Self, BpfError> {
        Ok(Self {
            logger: watch(logs.0).map_err(BpfError::bpffs("polling", "AYA_LOGS"))?,
        })
    }

    /// Passes messages on to `tracing` (target `millrace_ebpf`) until dropped.
    ///
    /// # Errors
    ///
    /// If the ring cannot be polled any more.
    pub async fn run(mut self) -> io::Result<()> {
        loop {
            let mut ready = self.logger.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

/// Bridges aya-log's records: the level of a message is decided by the programs' own level.
struct IntoTracing;

impl Log for IntoTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let message = readable(&record.args().to_string());
        match record.level() {
            Level::Error => tracing::error!(target: TARGET, "{message}"),
            Level::Warn => tracing::warn!(target: TARGET, "{message}"),
            Level::Info => tracing::info!(target: TARGET, "{message}"),
            Level::Debug => tracing::debug!(target: TARGET, "{message}"),
            Level::Trace => tracing::trace!(target: TARGET, "{message}"),
        }
    }

    fn flush(&self) {}
}

/// A message whose outcome is named: the programs can only print the number of its counter.
fn readable(message: &str) -> String {
    let named = message.rsplit_once(" outcome ").and_then(|(what, number)| {
        let counter = Counter::ALL.get(number.trim().parse::<usize>().ok()?)?;
        Some(format!("{what} outcome {}", counter.outcome()))
    });
    named.unwrap_or_else(|| message.to_owned())
}

/// Something that the programs could not capture.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BpfEvent {
    /// The pod.
    pub netns_cookie: u64,
    /// What became of the connection.
    pub kind: EventKind,
    /// Why.
    pub reason: Counter,
    /// Which way.
    pub direction: Direction,
    /// Where it went or wanted to go.
    pub destination: std::net::SocketAddr,
}

/// Reader of the programs' events.
pub struct EventStream {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl EventStream {
    pub(super) fn open(pins: &Pins) -> Result<Self, BpfError> {
        let ring = MapData::from_pin(pins.map("EVENTS"))
            .and_then(Map::from_map_data)
            .and_then(RingBuf::try_from)
            .map_err(|source| BpfError::Layout {
                map: "EVENTS",
                source: Box::new(source),
            })?;
        Ok(Self {
            ring: watch(ring).map_err(BpfError::bpffs("polling", pins.map("EVENTS")))?,
        })
    }

    /// The next event.
    ///
    /// # Errors
    ///
    /// If the ring cannot be polled any more.
    pub async fn next(&mut self) -> io::Result<BpfEvent> {
        loop {
            if let Some(event) = self.take() {
                return Ok(event);
            }
            self.ring.readable().await?.clear_ready();
            // An event may have come between the look and the clearing of readiness.
            if let Some(event) = self.take() {
                return Ok(event);
            }
        }
    }

    fn take(&mut self) -> Option<BpfEvent> {
        while let Some(item) = self.ring.get_mut().next() {
            if let Some(event) = parse(&item) {
                return Some(event);
            }
        }
        None
    }
}

#[expect(
    unsafe_code,
    reason = "registering a descriptor with the reactor is unsafe where its type does not promise to keep it"
)]
fn watch<T: AsRawFd>(ring: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: both rings own their descriptor until they are dropped and always name the same one.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)
}

/// An event from its bytes; `None` if it is of a kind that this agent does not know.
fn parse(bytes: &[u8]) -> Option<BpfEvent> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let addr = Addr::from_v6_words([word(16)?, word(20)?, word(24)?, word(28)?]);
    let port = u16::from_ne_bytes(bytes.get(32..34)?.try_into().ok()?);
    Some(BpfEvent {
        netns_cookie: u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?),
        kind: EventKind::from_value(word(8)?)?,
        reason: *Counter::ALL.get(usize::try_from(word(12)?).ok()?)?,
        direction: if *bytes.get(34)? == 0 {
            Direction::Outbound
        } else {
            Direction::Inbound
        },
        destination: (std::net::IpAddr::from(addr), port).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_messages_pass_every_filter_that_does_not_name_them() {
        assert_eq!(with_programs("info"), "info,millrace_ebpf=trace");
        let own = "info,millrace_ebpf=warn";
        assert_eq!(with_programs(own), own);
    }

    #[test]
    fn outcomes_are_named() {
        let number = Counter::ConnectExcludedPort as u32;
        let message = format!("connect passed: netns 7 outcome {number}");
        assert_eq!(
            readable(&message),
            "connect passed: netns 7 outcome excluded_port"
        );
        for other in ["something else", "x outcome 99999", "x outcome y"] {
            assert_eq!(readable(other), other);
        }
    }
}
