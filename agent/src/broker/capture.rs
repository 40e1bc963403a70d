//! What a pod's capture mode means inside its namespace: nat rules, or none.
//!
//! Runs in the calling thread's namespace. The rules of an open pod are in place only while a
//! proxy is there to serve them.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use millrace_runtime::handoff::{CaptureMode, IptablesConfig, OnCaptureLoss};

use super::chain;
use super::guard::{self, Guard, GuardError, Hold, Steered};
use crate::iptables::{self, IptablesError, Pulse, Ruleset};

/// Why capture inside the namespace could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The nat rules.
    #[error("iptables capture")]
    Iptables(#[from] IptablesError),
    /// The guard of a closed pod.
    #[error("guard of a closed pod")]
    Guard(#[from] GuardError),
    /// What holds the rules of an open pod.
    #[error("the stamp that the rules of an open pod look at")]
    Pulse(#[source] io::Error),
}

/// What shall be in the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    rules: Option<IptablesConfig>,
    guard: Option<Guard>,
    /// The pod's own.
    addresses: Vec<IpAddr>,
    mode: CaptureMode,
    on_loss: OnCaptureLoss,
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
        let config = IptablesConfig {
            // The proxy's sockets are made by the broker; in a pod these are an application's.
            proxy_uids: Vec::new(),
            proxy_gids: Vec::new(),
            ..config.unwrap_or_default()
        };
        let closed = mode != CaptureMode::None && on_loss == OnCaptureLoss::Closed;
        let guarded = closed || (mode == CaptureMode::Iptables && !suspended);
        Self {
            rules: (mode == CaptureMode::Iptables && !suspended).then(|| config.clone()),
            guard: guarded.then_some(Guard {
                config,
                mode,
                closed,
            }),
            addresses,
            mode,
            on_loss,
            suspended,
        }
    }

    /// Brings the namespace in line and says what was used. The calling thread must end afterwards.
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
        let mut applied = if let Some(rules) = &self.rules {
            self.write(rules)?
        } else {
            iptables::disarm()?;
            let detail = match (self.mode, self.suspended) {
                (CaptureMode::Iptables, true) => "nat rules suspended, no proxy".to_owned(),
                (mode, _) => format!("no nat rules, mode {mode}"),
            };
            Applied {
                detail,
                ..Applied::default()
            }
        };
        if let Some(guard) = &self.guard {
            match guard.install() {
                Ok(hold) => {
                    if guard.hears() && hold.marks.is_none() {
                        let steered = Steered::open(guard.config.proxy_mark);
                        applied.steered = steered.map(Arc::new).ok();
                    }
                    applied.tell(guard.closed, hold);
                }
                // An open pod has its nat rules, and does without.
                Err(_) if !guard.closed => applied.detail.push_str(", marks are trusted"),
                Err(error @ GuardError::NotInstalled) => {
                    applied.detail.push_str(", no guard");
                    applied.problem = Some(error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(applied)
    }

    /// Writes the nat rules; those of an open pod hold only while they are refreshed.
    fn write(&self, rules: &IptablesConfig) -> Result<Applied, CaptureError> {
        let plain = iptables::rulesets_at(rules, &self.present());
        if self.on_loss == OnCaptureLoss::Closed {
            return Ok(Applied {
                detail: put(&plain)?,
                ..Applied::default()
            });
        }
        let sets = iptables::held(plain.clone());
        let held = put(&sets).map_err(CaptureError::from).and_then(|detail| {
            let pulse = Pulse::open(&sets).map_err(CaptureError::Pulse)?;
            pulse.beat().map_err(CaptureError::Pulse)?;
            Ok((detail, pulse))
        });
        match held {
            Ok((detail, pulse)) => Ok(Applied {
                detail: format!("{detail}, refreshed"),
                pulse: Some(Arc::new(pulse)),
                ..Applied::default()
            }),
            // A kernel without xt_recent: the rules stay until somebody takes them out.
            Err(error) => Ok(Applied {
                detail: format!("{}, not refreshed: {}", put(&plain)?, chain(&error)),
                ..Applied::default()
            }),
        }
    }

    /// Whether the rules that shall be in the calling thread's namespace are there, unaltered.
    ///
    /// # Errors
    /// When no tool works, or with the rules that are missing.
    pub fn verify(&self) -> Result<(), IptablesError> {
        let Some(rules) = &self.rules else {
            return Ok(());
        };
        let plain = iptables::rulesets_at(rules, &self.present());
        if self.on_loss == OnCaptureLoss::Closed {
            return iptables::verify(&plain);
        }
        // Without xt_recent an open pod has the plain ones.
        iptables::verify(&iptables::held(plain.clone()))
            .or_else(|missing| iptables::verify(&plain).map_err(|_| missing))
    }

    /// Whether there shall be nat rules.
    pub fn has_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// Whether there shall be a guard that refuses.
    pub fn is_guarded(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.closed)
    }

    /// The addresses that the namespace really has: rules send connections there, and those to
    /// any other would leave the pod.
    pub fn present(&self) -> Vec<IpAddr> {
        let binds = |address: &&IpAddr| UdpSocket::bind((**address, 0)).is_ok();
        self.addresses.iter().filter(binds).copied().collect()
    }
}

/// Writes rules unless they are as they should be: this runs again and again.
fn put(sets: &[Ruleset]) -> Result<String, IptablesError> {
    if iptables::verify(sets).is_ok() {
        return Ok("nat rules in place".to_owned());
    }
    let applied = iptables::install(sets)?;
    Ok(format!(
        "nat rules written by {}",
        applied.tools.join(" and ")
    ))
}

/// What a plan left in the namespace.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Tool and form used, for people.
    pub detail: String,
    /// What the pod goes without although it is captured.
    pub problem: Option<String>,
    /// What the broker renews, for the rules to hold.
    pub pulse: Option<Arc<Pulse>>,
    /// How the broker tells the guard that inbound connections are steered.
    pub steered: Option<Arc<Steered>>,
}

impl Applied {
    fn tell(&mut self, closed: bool, hold: Hold) {
        if closed {
            self.detail.push_str(", guarded by nft");
        }
        if let Some(why) = hold.marks {
            self.detail.push_str(", marks are trusted: ");
            self.detail.push_str(&why);
        }
        if let Some(why) = hold.packet_sockets {
            self.detail.push_str(", packet sockets are not held: ");
            self.detail.push_str(&why);
        }
    }
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
