//! The local source: a watched directory of pod descriptions.
//!
//! Each `*.yaml`, `*.yml` or `*.json` file holds one or more pods. A file that cannot be read or
//! parsed is reported and its last good content stays in force; a file that is removed takes its
//! pods with it. Pods put through the API become files named `api-<uid>.json`, so that they
//! outlive the agent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millrace_runtime::handoff::{PodSpec, PodUid};
use notify::{RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::describe::{self, Malformed};
use super::{PodSet, PodSource, PutError, SourceProblem};

/// A burst of writes is read once, this long after its first one.
const SETTLE: Duration = Duration::from_millis(20);
/// Read anyway: a lost notification must not be for ever.
const RESCAN: Duration = Duration::from_secs(5);
/// A file that changed within this time may change again without looking different, on the coarsest clock
/// that a file system has.
const COARSE: Duration = Duration::from_secs(2);
/// Largest description file.
const MAX_FILE: u64 = 1024 * 1024;

/// Watches one directory.
#[derive(Debug)]
pub struct LocalSource {
    dir: PathBuf,
    /// Pods of other nodes are left out.
    node: Option<String>,
    sets: watch::Sender<Arc<PodSet>>,
    files: Mutex<BTreeMap<PathBuf, Described>>,
}

/// What a file said when it was last good.
#[derive(Debug)]
struct Described {
    /// How it then looked; `None` where that would not tell a later change.
    stamp: Option<Stamp>,
    pods: Vec<PodSpec>,
}

/// Tells a file that was changed or replaced from the one that was read, so that a thousand files need not
/// be parsed because one is new: device, inode, length, and the times of content and inode in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp([i128; 5]);

impl Stamp {
    /// How the file looks, if it has looked so for a while at `now`.
    fn at(path: &Path, now: SystemTime) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        let changed = nanoseconds(meta.ctime(), meta.ctime_nsec());
        let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let age = i128::try_from(now.as_nanos()).ok()? - changed;
        let content = nanoseconds(meta.mtime(), meta.mtime_nsec());
        (age >= i128::try_from(COARSE.as_nanos()).ok()?).then_some(Self([
            meta.dev().into(),
            meta.ino().into(),
            meta.len().into(),
            content,
            changed,
        ]))
    }
}

impl LocalSource {
    /// A source for `dir`, which is made if it is missing; pods that name another node than
    /// `node` are left out.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(dir: &Path, node: &str) -> io::Result<Self> {
        Self::of(dir, Some(node.to_owned()))
    }

    /// A source for `dir` of every pod described there, whichever node it names.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn of_all_nodes(dir: &Path) -> io::Result<Self> {
        Self::of(dir, None)
    }

    fn of(dir: &Path, node: Option<String>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            node,
            sets: watch::Sender::new(Arc::default()),
            files: Mutex::default(),
        })
    }

    /// Reads the directory now, and again whenever it changes, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        // One notification that something changed is as good as many.
        let (notice, mut changes) = mpsc::channel::<()>(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the directory is an event too, and no reason to read it again.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                // Full means that a reading is due already.
                notice.try_send(()).ok();
            }
        })
        .and_then(|mut watcher| {
            watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watcher {
            tracing::warn!(dir = %self.dir.display(), %error, "directory is not watched, only read now and then");
        }
        loop {
            self.scan();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RESCAN) => {}
                Some(()) = changes.recv() => tokio::time::sleep(SETTLE).await,
            }
            while changes.try_recv().is_ok() {}
        }
    }

    /// Reads the directory once.
    pub fn scan(&self) {
        self.scan_at(SystemTime::now());
    }

    fn scan_at(&self, now: SystemTime) {
        let mut files = self.files.lock();
        let mut problems = Vec::new();
        match list(&self.dir) {
            Ok(paths) => {
                files.retain(|path, _| paths.binary_search(path).is_ok());
                for path in paths {
                    let stamp = Stamp::at(&path, now);
                    let known = files.get(&path).and_then(|file| file.stamp);
                    if known.is_some() && known == stamp {
                        continue;
                    }
                    match read(&path) {
                        Ok(pods) => {
                            files.insert(path, Described { stamp, pods });
                        }
                        Err(malformed) => {
                            let last_good_kept = files.contains_key(&path);
                            problems.push(problem(&path, malformed, last_good_kept));
                        }
                    }
                }
            }
            Err(error) => problems.push(SourceProblem {
                origin: self.dir.display().to_string(),
                line: None,
                field: None,
                reason: error.to_string(),
                last_good_kept: !files.is_empty(),
            }),
        }
        let set = self.assemble(&files, problems);
        self.sets.send_if_modified(|current| {
            if **current == set {
                return false;
            }
            for problem in set
                .problems
                .iter()
                .filter(|p| !current.problems.contains(p))
            {
                tracing::error!(
                    file = problem.origin,
                    line = problem.line,
                    field = problem.field,
                    reason = problem.reason,
                    last_good_kept = problem.last_good_kept,
                    "pod description is not usable"
                );
            }
            *current = Arc::new(set);
            true
        });
    }

    fn assemble(
        &self,
        files: &BTreeMap<PathBuf, Described>,
        mut problems: Vec<SourceProblem>,
    ) -> PodSet {
        let mut pods: BTreeMap<PodUid, Arc<PodSpec>> = BTreeMap::new();
        let mut origins: BTreeMap<PodUid, &Path> = BTreeMap::new();
        for (path, described) in files {
            for pod in &described.pods {
                let other = |node: &String| !pod.node.is_empty() && pod.node != *node;
                if self.node.as_ref().is_some_and(other) {
                    continue;
                }
                if let Some(first) = origins.get(&pod.uid) {
                    let malformed = Malformed {
                        line: None,
                        field: Some("uid".to_owned()),
                        reason: format!(
                            "pod {} is described by {} already",
                            pod.uid,
                            first.display()
                        ),
                    };
                    problems.push(problem(path, malformed, false));
                    continue;
                }
                origins.insert(pod.uid.clone(), path);
                pods.insert(pod.uid.clone(), Arc::new(pod.clone()));
            }
        }
        PodSet {
            synced: true,
            pods,
            problems,
        }
    }

    fn owner(&self, uid: &PodUid) -> Option<PathBuf> {
        let files = self.files.lock();
        let describes = |pods: &Vec<PodSpec>| pods.iter().any(|pod| pod.uid == *uid);
        files
            .iter()
            .find(|(_, file)| describes(&file.pods))
            .map(|(path, _)| path.clone())
    }

    fn api_file(&self, uid: &PodUid) -> PathBuf {
        self.dir.join(format!("api-{uid}.json"))
    }
}

impl PodSource for LocalSource {
    fn watch(&self) -> watch::Receiver<Arc<PodSet>> {
        self.sets.subscribe()
    }

    fn put(&self, pod: PodSpec) -> Result<(), PutError> {
        pod.validate()?;
        let file = self.api_file(&pod.uid);
        if let Some(owner) = self.owner(&pod.uid).filter(|owner| *owner != file) {
            return Err(PutError::Owned {
                uid: pod.uid,
                origin: owner.display().to_string(),
            });
        }
        write_whole(&file, &pod).map_err(|source| PutError::Write {
            origin: file.display().to_string(),
            source,
        })?;
        self.scan();
        Ok(())
    }

    fn delete(&self, uid: &PodUid) -> Result<bool, PutError> {
        let Some(owner) = self.owner(uid) else {
            return Ok(false);
        };
        if owner != self.api_file(uid) {
            return Err(PutError::Owned {
                uid: uid.clone(),
                origin: owner.display().to_string(),
            });
        }
        fs::remove_file(&owner).map_err(|source| PutError::Write {
            origin: owner.display().to_string(),
            source,
        })?;
        self.scan();
        Ok(true)
    }
}

fn problem(path: &Path, malformed: Malformed, last_good_kept: bool) -> SourceProblem {
    SourceProblem {
        origin: path.display().to_string(),
        line: malformed.line,
        field: malformed.field,
        reason: malformed.reason,
        last_good_kept,
    }
}

/// The descriptions in a directory, in the order of their paths.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let hidden = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            let kind = path.extension().and_then(|e| e.to_str());
            !hidden && matches!(kind, Some("yaml" | "yml" | "json"))
        })
        .collect();
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<PodSpec>, Malformed> {
    let unreadable = |reason: String| Malformed {
        line: None,
        field: None,
        reason,
    };
    let length = fs::metadata(path)
        .map_err(|error| unreadable(error.to_string()))?
        .len();
    if length > MAX_FILE {
        return Err(unreadable(format!("larger than {MAX_FILE} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    describe::pods(&text)
}

/// Writes a file beside its place and moves it there, so that no reader sees half of it.
fn write_whole(path: &Path, pod: &PodSpec) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    fs::write(&beside, serde_json::to_vec_pretty(pod)?)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> (tempfile::TempDir, LocalSource) {
        let dir = tempfile::tempdir().unwrap();
        let source = LocalSource::new(dir.path(), "n1").unwrap();
        (dir, source)
    }

    fn names(source: &LocalSource) -> Vec<String> {
        let set = source.watch().borrow().clone();
        set.pods.values().map(|pod| pod.name.clone()).collect()
    }

    #[test]
    fn a_bad_file_is_reported_and_its_last_good_content_stays() {
        let (dir, source) = source();
        let file = dir.path().join("a.yaml");
        fs::write(&file, "name: a\nnetns: /run/netns/a\n").unwrap();
        fs::write(dir.path().join("b.yaml"), "name: b\nnetns: /run/netns/b\n").unwrap();
        source.scan();
        assert_eq!(names(&source), ["a", "b"]);
        fs::write(&file, "name: a\nnetnz: /run/netns/a\n").unwrap();
        source.scan();
        assert_eq!(names(&source), ["a", "b"]);
        let set = source.watch().borrow().clone();
        assert_eq!(set.problems.len(), 1);
        assert!(set.problems[0].origin.ends_with("a.yaml"));
        assert_eq!(set.problems[0].line, Some(2));
        assert!(set.problems[0].last_good_kept);
        fs::remove_file(&file).unwrap();
        source.scan();
        assert_eq!(names(&source), ["b"]);
        assert!(source.watch().borrow().problems.is_empty());
    }

    #[test]
    fn a_file_that_looks_as_before_is_not_read_again_and_one_that_changed_is() {
        let (dir, source) = source();
        let file = dir.path().join("a.yaml");
        fs::write(&file, "name: a\nnetns: /run/netns/a\n").unwrap();
        source.scan();
        assert_eq!(
            source.files.lock()[&file].stamp,
            None,
            "it has just changed"
        );
        // As if it had been read long ago.
        let looks = || Stamp::at(&file, SystemTime::now() + COARSE).unwrap();
        let pretend = |stamp: Stamp, name: &str| {
            let mut files = source.files.lock();
            let known = files.get_mut(&file).unwrap();
            known.stamp = Some(stamp);
            known.pods[0].name = name.to_owned();
        };
        pretend(looks(), "kept");
        source.scan_at(SystemTime::now() + COARSE);
        assert_eq!(names(&source), ["kept"]);
        fs::write(&file, "name: other\nnetns: /run/netns/b\n").unwrap();
        source.scan_at(SystemTime::now() + COARSE);
        assert_eq!(names(&source), ["other"]);
    }

    #[test]
    fn pods_of_other_nodes_and_second_descriptions_are_left_out() {
        let (dir, source) = source();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("a.yaml", "name: a\nnetns: /run/netns/a\nnode: n2\n");
        write("b.yaml", "name: b\nuid: u\nnetns: /run/netns/b\nnode: n1\n");
        write("c.yaml", "name: c\nuid: u\nnetns: /run/netns/c\n");
        write(".hidden.yaml", "nonsense");
        source.scan();
        assert_eq!(names(&source), ["b"]);
        let set = source.watch().borrow().clone();
        assert!(set.problems[0].reason.contains("b.yaml already"));
    }

    #[test]
    fn a_pod_that_was_put_outlives_the_agent_and_can_be_deleted() {
        let (dir, source) = source();
        let pod = describe::pods("name: a\nuid: u-1\nnetns: /run/netns/a\n").unwrap();
        source.put(pod[0].clone()).unwrap();
        let next = LocalSource::new(dir.path(), "n1").unwrap();
        next.scan();
        assert_eq!(names(&next), ["a"]);
        assert!(next.delete(&"u-1".into()).unwrap());
        assert!(!next.delete(&"u-1".into()).unwrap());
        assert_eq!(names(&next), Vec::<String>::new());
    }

    #[test]
    fn a_described_pod_cannot_be_deleted_through_the_api() {
        let (dir, source) = source();
        fs::write(dir.path().join("a.yaml"), "name: a\nuid: u\nnetns: /x\n").unwrap();
        source.scan();
        let error = source.delete(&"u".into()).unwrap_err();
        assert!(error.to_string().contains("a.yaml"));
    }

    #[tokio::test]
    async fn a_new_file_is_noticed() {
        let (dir, source) = source();
        let source = Arc::new(source);
        let stop = CancellationToken::new();
        let running = {
            let (source, stop) = (Arc::clone(&source), stop.clone());
            tokio::spawn(async move { source.run(stop).await })
        };
        let mut sets = source.watch();
        sets.wait_for(|set| set.synced).await.unwrap();
        fs::write(dir.path().join("a.yaml"), "name: a\nnetns: /x\n").unwrap();
        let noticed = sets.wait_for(|set| set.pods.len() == 1);
        tokio::time::timeout(Duration::from_secs(4), noticed)
            .await
            .expect("before the rescan")
            .unwrap();
        stop.cancel();
        running.await.unwrap();
    }
}
