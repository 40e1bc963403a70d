//! The access log of the admin port: one line per request, as the static file asks for.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::{Method, StatusCode, Uri};
use parking_lot::Mutex;

use crate::access_log::time::Civil;

/// An open log.
pub(super) struct AccessLog {
    path: PathBuf,
    file: Mutex<File>,
}

impl AccessLog {
    /// Opens it for appending; a log that cannot be opened is reported and left out, as the
    /// proxy serves without it too.
    pub(super) fn open(path: &Path) -> Option<Self> {
        match OpenOptions::new().create(true).append(true).open(path) {
            Ok(file) => Some(Self {
                path: path.to_owned(),
                file: Mutex::new(file),
            }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "admin access log is not written");
                None
            }
        }
    }

    pub(super) fn record(&self, method: &Method, uri: &Uri, status: StatusCode) {
        let time = Civil::new(SystemTime::now());
        let line = format!("[{time}] \"{method} {uri}\" {}\n", status.as_u16());
        if let Err(error) = self.file.lock().write_all(line.as_bytes()) {
            tracing::warn!(path = %self.path.display(), %error, "admin access log is not written");
        }
    }
}
