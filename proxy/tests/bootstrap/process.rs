//! The proxy's binary, run alone from a file.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};

use crate::LIMIT;

/// A running proxy; killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    lines: mpsc::Receiver<String>,
    _directory: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after this.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Proxy {
    pub(crate) fn start(file: &str, workers: u16) -> Self {
        Self::start_with(file, workers, &[])
    }

    /// With more arguments.
    pub(crate) fn start_with(file: &str, workers: u16, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bootstrap.yaml");
        let log = directory.path().join("admin.log");
        let file = file.replace("ADMIN_LOG", &log.display().to_string());
        std::fs::write(&path, file).unwrap();
        let mut child = Command::new(Path::new(env!("CARGO_BIN_EXE_millrace-proxy")))
            .arg("-c")
            .arg(&path)
            .args(["--workers", &workers.to_string()])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            _directory: directory,
        }
    }

    /// The address in the next log line that holds `what`.
    pub(crate) fn address(&self, what: &str) -> SocketAddr {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(LIMIT) {
            if line.contains(what)
                && let Some((_, address)) = line.split_once("address=")
            {
                return address.trim().parse().unwrap();
            }
            seen.push(line);
        }
        panic!("no line with {what:?} in\n{}", seen.join("\n"));
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for it to end by itself, and returns what it said.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let mut told = Vec::new();
        // It says something, and its output is closed when it ends.
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) => told.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("still runs\n{}", told.join("\n")),
            }
        }
        (self.child.wait().unwrap(), told.join("\n"))
    }
}
