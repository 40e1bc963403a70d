//! HTTP/1.1 requests without bodies, answered from two responses made once.

use std::io::ErrorKind;
use std::rc::Rc;

use super::connection::Output;
use super::{LARGE, SMALL};

/// A request head longer than this is nothing that the bench sends.
const MAX_HEAD: usize = 64 * 1024;

thread_local! {
    /// The small and the large answer, each for a connection that stays and for one that ends.
    static RESPONSES: [[Rc<[u8]>; 2]; 2] =
        ["", "connection: close\r\n"].map(|header| [SMALL, LARGE].map(|length| response(header, length)));
}

fn response(header: &str, length: usize) -> Rc<[u8]> {
    let mut bytes = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{header}content-length: {length}\r\n\r\n"
    )
    .into_bytes();
    bytes.resize(bytes.len() + length, b'x');
    bytes.into()
}

#[derive(Default)]
pub(super) struct Http1 {
    unparsed: Vec<u8>,
}

impl Http1 {
    pub(super) fn receive(&mut self, bytes: &[u8], output: &mut Output) -> std::io::Result<()> {
        self.unparsed.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(length) = head_length(&self.unparsed[start..]) {
            let head = &self.unparsed[start..start + length];
            let large = head.starts_with(b"GET /1mib ");
            let close = wants_close(head);
            output
                .push(RESPONSES.with(|of| Rc::clone(&of[usize::from(close)][usize::from(large)])));
            output.close |= close;
            start += length;
        }
        self.unparsed.drain(..start);
        if self.unparsed.len() > MAX_HEAD {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}

fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

fn wants_close(head: &[u8]) -> bool {
    let wanted = b"connection: close\r\n";
    head.split_inclusive(|byte| *byte == b'\n')
        .any(|line| line.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_may_come_in_parts() {
        let (mut http1, mut output) = (Http1::default(), Output::default());
        http1
            .receive(b"GET /1k HTTP/1.1\r\nConnection: ", &mut output)
            .unwrap();
        assert!(!output.close);
        http1.receive(b"close\r\n\r\n", &mut output).unwrap();
        assert!(output.close);
    }
}
