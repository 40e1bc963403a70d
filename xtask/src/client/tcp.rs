//! Ping-pong over raw TCP: a message goes out, the same number of bytes comes back.

use super::load::{Conversation, Progress};

pub(super) struct PingPong {
    message: Vec<u8>,
    left: usize,
    write: usize,
}

impl PingPong {
    /// A message of `bytes` that goes out in `writes` of about one length.
    pub(super) fn new(bytes: usize, writes: usize) -> Self {
        Self {
            message: vec![b'x'; bytes],
            left: 0,
            write: bytes.div_ceil(writes.max(1)),
        }
    }
}

impl Conversation for PingPong {
    fn open(&mut self) -> Vec<u8> {
        self.next()
    }

    fn next(&mut self) -> Vec<u8> {
        self.left = self.message.len();
        self.message.clone()
    }

    fn receive(&mut self, bytes: &[u8], _reply: &mut Vec<u8>) -> Progress {
        match self.left.checked_sub(bytes.len()) {
            None => Progress::Wrong,
            Some(0) => Progress::Done,
            Some(left) => {
                self.left = left;
                Progress::Pending
            }
        }
    }

    fn write_length(&self) -> usize {
        self.write
    }
}
