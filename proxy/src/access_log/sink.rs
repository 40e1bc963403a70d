//! Takes log lines off the workers and writes them.
//!
//! Every worker has a buffer per file, which only it and the writer touch; the writer is a
//! thread of its own, since writing to a full pipe blocks. A line that finds its buffer full is
//! dropped and counted: a slow disk never holds up a request.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;

/// Largest buffer of one worker and file.
const MAX_BUFFER: usize = 4 << 20;
/// A buffer of this size wakes the writer before its time.
const FLUSH_SIZE: usize = 256 << 10;
/// How long lines wait to be written together.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// All log files of the process.
#[derive(Clone, Debug)]
pub struct Sinks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: Mutex<HashMap<String, Arc<Sink>>>,
    /// Set when a line is written, so that an idle writer sleeps.
    dirty: AtomicBool,
    closing: AtomicBool,
    writer: Mutex<Option<Thread>>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Sink {
    buffers: Mutex<HashMap<usize, Arc<Mutex<Vec<u8>>>>>,
}

/// One worker's end of one file.
#[derive(Clone, Debug)]
pub struct Line {
    buffer: Arc<Mutex<Vec<u8>>>,
    shared: Arc<Shared>,
}

/// Owner of the writer thread; dropping it writes what is left and joins the thread.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Default for Sinks {
    fn default() -> Self {
        Self::new()
    }
}

impl Sinks {
    /// No file yet.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            files: Mutex::default(),
            dirty: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            writer: Mutex::new(None),
            dropped: AtomicU64::new(0),
        }))
    }

    /// Starts the thread that writes.
    ///
    /// # Errors
    /// Where the thread cannot be made.
    pub fn start(&self) -> io::Result<Writer> {
        let shared = self.0.clone();
        let thread = thread::Builder::new()
            .name("access-log".into())
            .spawn(move || shared.run())?;
        *self.0.writer.lock() = Some(thread.thread().clone());
        Ok(Writer {
            shared: self.0.clone(),
            thread: Some(thread),
        })
    }

    /// A worker's end of the file at `path` (`/dev/stdout` and `/dev/stderr` included).
    pub fn line(&self, path: &str, worker: usize) -> Line {
        let mut files = self.0.files.lock();
        let sink = files.entry(path.to_owned()).or_default().clone();
        let buffer = sink.buffers.lock().entry(worker).or_default().clone();
        Line {
            buffer,
            shared: self.0.clone(),
        }
    }

    /// Lines dropped because their buffer was full or their file could not be written.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl Line {
    /// Appends what `render` writes.
    pub fn write(&self, render: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = self.buffer.lock();
        if buffer.len() > MAX_BUFFER {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        render(&mut buffer);
        let full = buffer.len() > FLUSH_SIZE;
        drop(buffer);
        let first = !self.shared.dirty.load(Ordering::Relaxed)
            && !self.shared.dirty.swap(true, Ordering::AcqRel);
        if full || first {
            self.shared.wake();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the access log writer panicked");
        }
    }
}

impl Shared {
    fn wake(&self) {
        if let Some(writer) = &*self.writer.lock() {
            writer.unpark();
        }
    }

    fn run(&self) {
        let mut open = HashMap::new();
        loop {
            let closing = self.closing.load(Ordering::Acquire);
            if self.dirty.swap(false, Ordering::AcqRel) {
                self.flush(&mut open);
            }
            if closing {
                return self.flush(&mut open);
            }
            if self.dirty.load(Ordering::Acquire) {
                thread::park_timeout(FLUSH_INTERVAL);
            } else {
                thread::park();
                // The first line of a burst wakes this thread; the rest are waited for.
                if !self.closing.load(Ordering::Acquire) {
                    thread::park_timeout(FLUSH_INTERVAL);
                }
            }
        }
    }

    fn flush(&self, open: &mut HashMap<String, File>) {
        let files: Vec<(String, Arc<Sink>)> = self
            .files
            .lock()
            .iter()
            .map(|(path, sink)| (path.clone(), sink.clone()))
            .collect();
        for (path, sink) in files {
            let buffers: Vec<_> = sink.buffers.lock().values().cloned().collect();
            for buffer in buffers {
                let lines = std::mem::take(&mut *buffer.lock());
                if !lines.is_empty() {
                    self.write(&path, &lines, open);
                }
            }
        }
    }

    fn write(&self, path: &str, lines: &[u8], open: &mut HashMap<String, File>) {
        if let Err(error) = append(path, lines, open) {
            open.remove(path);
            let count = lines.split(|b| *b == b'\n').count() - 1;
            self.dropped.fetch_add(count as u64, Ordering::Relaxed);
            tracing::warn!(path, %error, "cannot write access log");
        }
    }
}

fn append(path: &str, lines: &[u8], open: &mut HashMap<String, File>) -> io::Result<()> {
    match path {
        "/dev/stdout" => io::stdout().lock().write_all(lines),
        "/dev/stderr" => io::stderr().lock().write_all(lines),
        _ => {
            if !open.contains_key(path) {
                let file = OpenOptions::new().create(true).append(true).open(path)?;
                open.insert(path.to_owned(), file);
            }
            match open.get_mut(path) {
                Some(file) => file.write_all(lines),
                None => Ok(()),
            }
        }
    }
}
