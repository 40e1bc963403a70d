//! Agents and proxies are killed while applications exchange bytes. Connections of a killed proxy break, and
//! bytes that were under way go with them; but none may turn up elsewhere, twice, or out of order, and
//! everything works again afterwards. Connections of a killed agent do not notice.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use millrace_testkit::mesh::Role;
use serde::Serialize;

use super::counts::Counts;
use super::lane::{self, Lane, Setting};
use super::tag::Faults;
use crate::ui;

/// Who is killed, one after the other.
const VICTIMS: [Role; 3] = [Role::Agent, Role::Proxy, Role::Agent];
/// Between two kills.
const BETWEEN: Duration = Duration::from_secs(4);

/// What was seen in one mode.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Found {
    mode: String,
    messages: u64,
    bytes: u64,
    #[serde(flatten)]
    faults: Faults,
    /// Connections by what became of them.
    connections: BTreeMap<String, u64>,
    /// Why the mode did not work again, if it did not.
    error: Option<String>,
}

impl Found {
    pub(super) fn ok(&self) -> bool {
        let faults = Faults {
            lost: 0,
            ..self.faults
        };
        !faults.any() && self.error.is_none() && !self.connections.contains_key("stalled")
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = &self.faults;
        write!(
            f,
            "{:<14} agent, proxy and agent killed: {} messages {} bytes; reordered {} duplicated {} leaked {} \
             corrupt {}; {:?}",
            self.mode,
            self.messages,
            self.bytes,
            faults.reordered,
            faults.duplicated,
            faults.leaked,
            faults.corrupt,
            self.connections,
        )?;
        match &self.error {
            Some(error) => write!(f, " NOT WORKING AGAIN {error}"),
            None => Ok(()),
        }
    }
}

/// All lanes at once; what their servers count afterwards is no part of the exchange's sums.
pub(super) fn check_all(
    setting: &Setting<'_>,
    lanes: &[Lane],
    seed: u64,
) -> anyhow::Result<Vec<Found>> {
    let seconds = VICTIMS
        .iter()
        .fold(BETWEEN, |sum, _| sum + BETWEEN)
        .as_secs_f64();
    let clients = lanes.iter().map(|lane| lane.call(setting, seed, seconds));
    let clients = clients.collect::<anyhow::Result<Vec<_>>>()?;
    for role in VICTIMS {
        thread::sleep(BETWEEN);
        for lane in lanes {
            lane.kill(role)?;
        }
    }
    let mut found = Vec::new();
    for (children, lane) in clients.into_iter().zip(lanes) {
        let mut sum = Counts::default();
        for child in children {
            let counts: Counts = lane::report(child)
                .with_context(|| format!("{}:\n{}", lane.mode.name(), lane.log()))?;
            sum.add(&counts);
        }
        let works = lane
            .clients
            .iter()
            .try_for_each(|client| lane.await_service(client));
        let one = Found {
            mode: lane.mode.name(),
            messages: sum.messages,
            bytes: sum.bytes,
            faults: sum.faults,
            connections: sum.connections,
            error: works.err().map(|error| format!("{error:#}")),
        };
        ui::say(format_args!("    {one}"));
        found.push(one);
    }
    Ok(found)
}
