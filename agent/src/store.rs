//! What the agent remembers across its own restarts: capture modes set at run time, and since
//! when each pod is captured as it is.
//!
//! One small JSON file in the state directory. A file that cannot be read is reported and set
//! aside; nothing in it is needed for capture itself, which lives in the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millrace_runtime::handoff::{CaptureMode, PodUid};
use serde::{Deserialize, Serialize};

use crate::redirect::Wish;

/// How a pod was captured when it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// The mode.
    pub mode: CaptureMode,
    /// Since when, seconds since 1970.
    pub since: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Content {
    requested: BTreeMap<PodUid, Wish>,
    captured: BTreeMap<PodUid, Captured>,
}

/// The file and what is in it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    content: Content,
}

impl Store {
    /// Reads `agent.json` of `dir`, or starts empty.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join("agent.json");
        let content = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "state is not readable, starting without");
                Content::default()
            }),
            Err(_) => Content::default(),
        };
        Ok(Self { path, content })
    }

    /// The mode that a person asked for.
    pub fn requested(&self, uid: &PodUid) -> Option<Wish> {
        self.content.requested.get(uid).copied()
    }

    /// Remembers, or forgets with `None`, what a person asked for.
    pub fn request(&mut self, uid: &PodUid, wish: Option<Wish>) {
        match wish {
            Some(wish) => self.content.requested.insert(uid.clone(), wish),
            None => self.content.requested.remove(uid),
        };
        self.save();
    }

    /// Remembers that a pod is captured in `mode` and says since when it is.
    pub fn captured(&mut self, uid: &PodUid, mode: CaptureMode) -> SystemTime {
        let since = match self.content.captured.get(uid) {
            Some(captured) if captured.mode == mode => captured.since,
            _ => {
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or(Duration::ZERO)
                    .as_secs();
                self.content
                    .captured
                    .insert(uid.clone(), Captured { mode, since });
                self.save();
                since
            }
        };
        UNIX_EPOCH + Duration::from_secs(since)
    }

    /// Forgets every pod that is not in `known`.
    pub fn keep(&mut self, known: impl Fn(&PodUid) -> bool) {
        let before = self.content.clone();
        self.content.requested.retain(|uid, _| known(uid));
        self.content.captured.retain(|uid, _| known(uid));
        if self.content != before {
            self.save();
        }
    }

    fn save(&self) {
        let write = || -> io::Result<()> {
            let beside = self.path.with_extension("json.new");
            fs::write(&beside, serde_json::to_vec_pretty(&self.content)?)?;
            fs::rename(&beside, &self.path)
        };
        if let Err(error) = write() {
            tracing::warn!(file = %self.path.display(), %error, "state is not saved");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_times_outlive_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.request(&"a".into(), Some(Wish::Iptables));
        let since = store.captured(&"a".into(), CaptureMode::Iptables);
        let mut again = Store::open(dir.path()).unwrap();
        assert_eq!(again.requested(&"a".into()), Some(Wish::Iptables));
        assert_eq!(again.captured(&"a".into(), CaptureMode::Iptables), since);
        again.keep(|_| false);
        assert_eq!(again.requested(&"a".into()), None);
    }

    #[test]
    fn a_damaged_file_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("agent.json"), "{").unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.requested(&"a".into()), None);
    }
}
