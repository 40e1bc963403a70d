//! What a pod's capture mode means inside its namespace: nat rules, or none.
//!
//! Runs in the calling thread's namespace. The rules of an open pod are in place only while a
//! proxy is there to serve them.

use std::net::{IpAddr, UdpSocket};

use millrace_runtime::handoff::{CaptureMode, IptablesConfig, OnCaptureLoss};

use super::guard::{self, GuardError};
use crate::iptables::{self, IptablesError, Ruleset};

/// Why capture inside the namespace could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The nat rules.
    #[error("iptables capture")]
    Iptables(#[from] IptablesError),
    /// The guard of a closed pod.
    #[error("guard of a closed pod")]
    Guard(#[from] GuardError),
}

/// What shall be in the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    rules: Option<IptablesConfig>,
    guard: Option<IptablesConfig>,
    /// The pod's own.
    addresses: Vec<IpAddr>,
    mode: CaptureMode,
    suspended: bool,
}

impl Plan {
    /// Decides from the pod's mode and whether every proxy is `lost`; `config` carries the
    /// exclusions that rules and guard share.
    pub fn new(
        mode: CaptureMode,
        on_loss: OnCaptureLoss,
        config: Option<IptablesConfig>,
        addresses: Vec<IpAddr>,
        lost: bool,
    ) -> Self {
        let suspended = lost && on_loss == OnCaptureLoss::Open;
        let config = config.unwrap_or_default();
        let closed = mode != CaptureMode::None && on_loss == OnCaptureLoss::Closed;
        Self {
            rules: (mode == CaptureMode::Iptables && !suspended).then(|| config.clone()),
            guard: closed.then_some(config),
            addresses,
            mode,
            suspended,
        }
    }

    /// Brings the namespace in line and says what was used.
    ///
    /// The guard comes last and goes first: it refuses what is not captured, so it may only
    /// stand while capture does.
    ///
    /// # Errors
    /// When a rule could not be written or removed.
    pub fn apply(&self) -> Result<Applied, CaptureError> {
        if self.guard.is_none() {
            guard::remove()?;
        }
        let detail = if let Some(sets) = self.rulesets() {
            // Rules that are as they should be are left alone: this runs again and again.
            if iptables::verify(&sets).is_ok() {
                "nat rules in place".to_owned()
            } else {
                let applied = iptables::install(&sets)?;
                format!("nat rules written by {}", applied.tools.join(" and "))
            }
        } else {
            iptables::remove()?;
            match (self.mode, self.suspended) {
                (CaptureMode::Iptables, true) => "nat rules suspended, no proxy".to_owned(),
                (mode, _) => format!("no nat rules, mode {mode}"),
            }
        };
        let guarded = self.guard.as_ref().map(guard::install);
        let (detail, problem) = match guarded {
            None => (detail, None),
            Some(Ok(())) => (format!("{detail}, guarded by nft"), None),
            Some(Err(error @ GuardError::NotInstalled)) => {
                (format!("{detail}, no guard"), Some(error.to_string()))
            }
            Some(Err(error)) => return Err(error.into()),
        };
        Ok(Applied { detail, problem })
    }

    /// The rules that shall be in the calling thread's namespace, if any.
    pub fn rulesets(&self) -> Option<Vec<Ruleset>> {
        let rules = self.rules.as_ref()?;
        Some(iptables::rulesets_at(rules, &self.present()))
    }

    /// Whether there shall be a guard.
    pub fn is_guarded(&self) -> bool {
        self.guard.is_some()
    }

    /// The addresses that the namespace really has: rules send connections there, and those to
    /// any other would leave the pod.
    fn present(&self) -> Vec<IpAddr> {
        let binds = |address: &&IpAddr| UdpSocket::bind((**address, 0)).is_ok();
        self.addresses.iter().filter(binds).copied().collect()
    }
}

/// What a plan left in the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Tool and form used, for people.
    pub detail: String,
    /// What the pod goes without although it is captured.
    pub problem: Option<String>,
}

/// Removes everything of ours from the namespace.
///
/// # Errors
/// When a tool that found something of ours could not remove it.
pub fn remove() -> Result<(), CaptureError> {
    guard::remove()?;
    iptables::remove()?;
    Ok(())
}
