//! Rules that hold only while they are refreshed: those of a pod that fails open.
//!
//! `xt_recent` keeps a time stamp per namespace and family. The rules let everything go direct once it is older
//! than [`HELD`], without a process of Millrace having to live; the broker renews it while a proxy serves.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

use millrace_runtime::handoff::Family;

use super::rules::{CAPTURE_CHAINS, Rule, Ruleset};

/// How long the rules hold after the last [`Pulse::beat`].
pub const HELD: Duration = Duration::from_secs(10);
/// How often to renew them: one that comes late must not let go.
pub const BEAT: Duration = Duration::from_secs(2);

/// The stamp of a family: its name, its mask and what is written to renew it. Under an empty mask every
/// packet has the same address, so there is one stamp for all.
const fn stamp(family: Family) -> (&'static str, &'static str, &'static str) {
    match family {
        Family::V4 => ("MILLRACE", "0.0.0.0", "+0.0.0.0\n"),
        Family::V6 => ("MILLRACE6", "::", "+::\n"),
    }
}

/// The same rule sets, each chain of capture left at once when the stamp is old.
pub fn held(mut sets: Vec<Ruleset>) -> Vec<Ruleset> {
    for set in &mut sets {
        let (name, mask, _) = stamp(set.family);
        let spec = format!(
            "-m recent ! --rcheck --seconds {} --name {name} --mask {mask} --rsource -j RETURN",
            HELD.as_secs()
        );
        for table in set.tables.iter_mut().filter(|table| table.name == "nat") {
            let chains = CAPTURE_CHAINS
                .into_iter()
                .filter(|chain| table.chains.contains(chain));
            let first: Vec<Rule> = chains
                .map(|chain| Rule {
                    chain,
                    spec: spec.clone(),
                })
                .collect();
            table.rules.splice(0..0, first);
        }
    }
    sets
}

/// The stamps of one namespace, renewed from anywhere.
#[derive(Debug)]
pub struct Pulse {
    stamps: Vec<(File, &'static str)>,
}

impl Pulse {
    /// Opens the stamps that the rules in the calling thread's namespace look at.
    ///
    /// # Errors
    /// When there are none.
    pub fn open(sets: &[Ruleset]) -> io::Result<Self> {
        let directory = Path::new("/proc/thread-self/net/xt_recent");
        let open = |set: &Ruleset| {
            let (name, _, renewal) = stamp(set.family);
            let file = OpenOptions::new().write(true).open(directory.join(name))?;
            Ok((file, renewal))
        };
        let stamps = sets.iter().map(open).collect::<io::Result<_>>()?;
        Ok(Self { stamps })
    }

    /// Renews the stamps.
    ///
    /// # Errors
    /// When the rules are gone.
    pub fn beat(&self) -> io::Result<()> {
        for (file, renewal) in &self.stamps {
            // The kernel takes a line at offset 0 only (`recent_mt_proc_write`), and no pwrite(2).
            let mut file: &File = file;
            file.rewind()?;
            file.write_all(renewal.as_bytes())?;
        }
        Ok(())
    }
}
