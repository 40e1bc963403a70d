//! Who made what: every run has an id and a directory with its owner, so that the things of a dead
//! run can be told from those of a living one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;

/// Below this every run keeps its state in a directory named by its id.
pub const STATE_ROOT: &str = "/run/millrace-test";

/// Below this a run keeps copies of programs; `/run` does not let anything be executed everywhere.
pub(crate) const PROGRAM_ROOT: &str = "/var/tmp/millrace-test";

/// The file that names the process a run belongs to.
const OWNER: &str = "owner";

/// Names one run; it is part of the name of everything the run makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId(String);

impl RunId {
    /// Claims a new id for this process and makes its state directory.
    pub(crate) fn claim() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let pid = std::process::id();
        let id = Self(format!("{pid}x{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        // Made under another name first: a directory without its owner would look like a dead run's.
        let nascent = Path::new(STATE_ROOT).join(format!(".new-{}", id.0));
        fs::create_dir_all(&nascent).with_context(|| format!("creating {}", nascent.display()))?;
        let owner = format!("{pid} {}\n", start_time(pid).unwrap_or_default());
        fs::write(nascent.join(OWNER), owner).context("recording the run's owner")?;
        fs::rename(&nascent, id.state_dir()).context("naming the run's directory")?;
        Ok(id)
    }

    /// Makes the run outlive this process, until [`clean::all`](crate::clean::all).
    pub(crate) fn keep(&self) -> anyhow::Result<()> {
        fs::write(self.state_dir().join(OWNER), "kept\n").context("marking the run as kept")
    }

    /// The runs that have a directory.
    pub(crate) fn known() -> Vec<Self> {
        [STATE_ROOT, PROGRAM_ROOT]
            .iter()
            .filter_map(|root| fs::read_dir(root).ok())
            .flatten()
            .filter_map(|entry| Self::parse(entry.ok()?.file_name().to_str()?))
            .collect()
    }

    /// Reads an id as it stands in a name; `None` for anything that no run would have made.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (pid, counter) = text.split_once('x')?;
        let numeric = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        (numeric(pid) && numeric(counter)).then(|| Self(text.to_owned()))
    }

    /// Whether the process that made the run still runs, or the run was left running on purpose.
    pub(crate) fn is_owned(&self) -> bool {
        let Ok(owner) = fs::read_to_string(self.state_dir().join(OWNER)) else {
            // Whoever sees another `/run`, as in a chroot, sees the cgroups of runs but not their owners.
            return self.maker().and_then(start_time).is_some();
        };
        if owner.trim() == "kept" {
            return true;
        }
        let mut fields = owner.split_whitespace();
        let Some(pid) = fields.next().and_then(|pid| pid.parse().ok()) else {
            return false;
        };
        let started = fields.next().and_then(|time| time.parse().ok());
        started.is_some() && start_time(pid) == started
    }

    /// The process that made it, by its name.
    fn maker(&self) -> Option<u32> {
        self.0.split_once('x')?.0.parse().ok()
    }

    /// Whether this very process made the run.
    pub(crate) fn is_mine(&self) -> bool {
        let owner = fs::read_to_string(self.state_dir().join(OWNER)).unwrap_or_default();
        let pid = owner
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        pid == Some(std::process::id())
    }

    /// The directory of the run's files.
    pub fn state_dir(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(&self.0)
    }

    /// The directory of the run's copies of programs.
    pub(crate) fn program_dir(&self) -> PathBuf {
        Path::new(PROGRAM_ROOT).join(&self.0)
    }

    /// The prefix of the run's network namespaces.
    pub(crate) fn netns_prefix(&self) -> String {
        format!("millrace-{}-", self.0)
    }

    /// The name of the run's directory below the cgroup2 mount.
    pub(crate) fn cgroup_name(&self) -> String {
        format!("{CGROUP_PREFIX}{}", self.0)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The prefix of every run's directory below the cgroup2 mount.
pub(crate) const CGROUP_PREFIX: &str = "millrace-test-";

/// A process's start time in clock ticks since boot: with the pid it names the process for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and brackets; the fields begin after the last bracket.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_our_form_are_recognised() {
        assert_eq!(
            RunId::parse("12x3").map(|id| id.cgroup_name()).as_deref(),
            Some("millrace-test-12x3")
        );
        for other in ["", "x", "12x", "x3", "12", "12x3-a", "axb"] {
            assert!(RunId::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn without_a_record_a_run_lives_as_long_as_its_maker() {
        let of = |pid: u32| RunId::parse(&format!("{pid}x4000000000")).unwrap();
        assert!(of(std::process::id()).is_owned());
        assert!(!of(u32::MAX).is_owned());
    }

    #[test]
    fn a_process_has_one_start_time() {
        let pid = std::process::id();
        assert!(start_time(pid).is_some());
        assert_eq!(start_time(pid), start_time(pid));
        assert_eq!(start_time(u32::MAX), None);
    }
}
