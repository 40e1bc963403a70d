//! Log set-up of a process: tracing to stderr as text or JSON, with a level that an operator can
//! change while it runs.
//!
//! Called once by `main` before anything else; the returned [`LevelHandle`] goes to the admin
//! routes (`/logging`, `/log`). Standard output stays free for what a command prints.

use std::fmt;
use std::io::{self, IsTerminal};
use std::str::FromStr;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("log format {other:?} is neither text nor json")),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Why telemetry cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The directives are not of the form `level` or `target=level,…`.
    #[error("log filter {filter:?} is not a level or a list of target=level")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Telemetry was set up before.
    #[error("logging is already set up")]
    Already,
    /// The subscriber is gone.
    #[error("logging has ended")]
    Gone,
}

/// Changes the log level of the running process.
#[derive(Clone, Debug)]
pub struct LevelHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LevelHandle {
    /// Replaces the filter, for example by `debug` or `info,millrace_proxy::http=trace`.
    ///
    /// # Errors
    /// When the filter does not parse; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), TelemetryError> {
        let parsed = parse(filter)?;
        self.filter.reload(parsed).map_err(|_| TelemetryError::Gone)
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.filter
            .with_current(ToString::to_string)
            .unwrap_or_default()
    }
}

/// Starts logging with `filter`.
///
/// # Errors
/// When the filter does not parse or logging was started before.
pub fn init(filter: &str, format: Format) -> Result<LevelHandle, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match format {
        Format::Text => registry
            .with(lines.with_ansi(io::stderr().is_terminal()))
            .try_init(),
        Format::Json => registry
            .with(lines.json().flatten_event(true).with_ansi(false))
            .try_init(),
    }
    .map_err(|_| TelemetryError::Already)?;
    Ok(LevelHandle { filter: handle })
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|source| TelemetryError::Filter {
            filter: filter.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_changes_while_running_and_a_bad_one_is_refused() {
        let handle = init("info", Format::Text).unwrap();
        assert_eq!(handle.current(), "info");
        handle.set("debug,hyper=warn").unwrap();
        assert!(handle.current().contains("hyper=warn"));
        assert!(handle.set("a=b=c").is_err());
        assert!(handle.current().contains("hyper=warn"));
    }
}
