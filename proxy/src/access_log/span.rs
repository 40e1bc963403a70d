//! `COMMON_DURATION(START:END:PRECISION)`: the time between two points of a request, in a unit of one's
//! choice. [`Command`](super::command::Command) parses it from a format and asks for its value.

use std::time::Duration;

use super::{InvalidFormat, Record};

/// Two points of a request and a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    from: Option<Point>,
    to: Option<Point>,
    unit: Unit,
}

/// A point in the life of a request that this proxy takes the time of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// `DS_RX_BEG`: the request begins to arrive.
    RequestBegin,
    /// `DS_RX_END`: it has arrived.
    RequestEnd,
    /// `US_RX_BEG`: the upstream's response begins to arrive.
    ResponseBegin,
    /// `DS_TX_END`: the response has been sent.
    ResponseSent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl Span {
    /// Reads `START:END:PRECISION`. A point that this proxy does not know has no value, as one that an
    /// Envoy never reached.
    ///
    /// # Errors
    /// Where there are not three parts, or the precision is not `ms`, `us` or `ns`.
    pub fn parse(arguments: &str) -> Result<Self, InvalidFormat> {
        let unknown = || InvalidFormat::Unknown(format!("COMMON_DURATION({arguments})"));
        let mut parts = arguments.split(':');
        let (Some(from), Some(to), Some(unit), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(unknown());
        };
        let unit = match unit {
            "ms" => Unit::Milliseconds,
            "us" => Unit::Microseconds,
            "ns" => Unit::Nanoseconds,
            _ => return Err(unknown()),
        };
        Ok(Self {
            from: Point::named(from),
            to: Point::named(to),
            unit,
        })
    }

    /// How long it was, where both points were reached, the second not before the first.
    pub fn value(self, record: &Record<'_>) -> Option<u64> {
        let time = self
            .to?
            .reached(record)?
            .checked_sub(self.from?.reached(record)?)?;
        let count = match self.unit {
            Unit::Milliseconds => time.as_millis(),
            Unit::Microseconds => time.as_micros(),
            Unit::Nanoseconds => time.as_nanos(),
        };
        Some(u64::try_from(count).unwrap_or(u64::MAX))
    }
}

impl Point {
    fn named(name: &str) -> Option<Self> {
        match name {
            "DS_RX_BEG" => Some(Self::RequestBegin),
            "DS_RX_END" => Some(Self::RequestEnd),
            "US_RX_BEG" => Some(Self::ResponseBegin),
            "DS_TX_END" => Some(Self::ResponseSent),
            _ => None,
        }
    }

    /// When it was reached, from the request's beginning.
    fn reached(self, record: &Record<'_>) -> Option<Duration> {
        match self {
            Self::RequestBegin => Some(Duration::ZERO),
            Self::RequestEnd => record.request_duration,
            Self::ResponseBegin => record.response_duration,
            Self::ResponseSent => Some(record.duration),
        }
    }
}
