//! Just enough HTTP/2 to ask one thing again and again (RFC 9113): the request's header block is made
//! once, answers are followed by their frames, and flow control is kept.

use anyhow::ensure;

use super::load::{Conversation, Progress};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// HPACK's static entry for `:status: 200` (RFC 7541, appendix A), indexed.
const STATUS_200: u8 = 0x88;
/// The connection's window is given back in steps of this size.
const WINDOW_STEP: u32 = 32 * 1024;

/// A GET in its wire form.
pub(super) struct Request {
    block: Vec<u8>,
}

impl Request {
    pub(super) fn new(authority: &str, path: &str) -> anyhow::Result<Self> {
        // `:method: GET` and `:scheme: http`, indexed.
        let mut block = vec![0x82, 0x86];
        // `:path` (4) and `:authority` (1) with literal values, never indexed: the block must mean the
        // same every time it is sent.
        for (index, value) in [(4, path), (1, authority)] {
            ensure!(value.len() < 127, "{value}: too long for a one-byte length");
            block.push(0x10 | index);
            block.push(u8::try_from(value.len())?);
            block.extend(value.as_bytes());
        }
        Ok(Self { block })
    }

    pub(super) fn conversation(&self) -> Http2 {
        Http2 {
            block: self.block.clone(),
            stream: 1,
            unparsed: Vec::new(),
            consumed: 0,
        }
    }
}

/// One connection's state.
pub(super) struct Http2 {
    block: Vec<u8>,
    stream: u32,
    unparsed: Vec<u8>,
    consumed: u32,
}

impl Conversation for Http2 {
    fn open(&mut self) -> Vec<u8> {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        bytes.extend(self.request());
        bytes
    }

    fn next(&mut self) -> Vec<u8> {
        self.stream += 2;
        self.request()
    }

    fn receive(&mut self, bytes: &[u8], reply: &mut Vec<u8>) -> Progress {
        self.unparsed.extend_from_slice(bytes);
        let unparsed = std::mem::take(&mut self.unparsed);
        let mut rest = &unparsed[..];
        let mut progress = Progress::Pending;
        while let Some((header, after)) = rest.split_at_checked(FRAME_HEADER) {
            let length =
                usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            let Some((payload, after)) = after.split_at_checked(length) else {
                break;
            };
            rest = after;
            match self.frame(header, payload, reply) {
                Progress::Pending => {}
                Progress::Done => progress = Progress::Done,
                Progress::Wrong => return Progress::Wrong,
            }
        }
        self.unparsed = rest.to_vec();
        progress
    }
}

impl Http2 {
    fn request(&self) -> Vec<u8> {
        frame(HEADERS, END_HEADERS | END_STREAM, self.stream, &self.block)
    }

    fn frame(&mut self, header: &[u8], payload: &[u8], reply: &mut Vec<u8>) -> Progress {
        let (kind, flags) = (header[3], header[4]);
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]) & 0x7fff_ffff;
        match kind {
            SETTINGS if flags & ACK == 0 => reply.extend(frame(SETTINGS, ACK, 0, &[])),
            PING if flags & ACK == 0 => reply.extend(frame(PING, ACK, 0, payload)),
            HEADERS if payload.first() != Some(&STATUS_200) => return Progress::Wrong,
            DATA => self.give_back(payload.len(), reply),
            RST_STREAM | GOAWAY => return Progress::Wrong,
            _ => {}
        }
        let ends =
            matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 && stream == self.stream;
        if ends {
            Progress::Done
        } else {
            Progress::Pending
        }
    }

    /// Streams are short enough to live from their first window; the connection is not.
    fn give_back(&mut self, length: usize, reply: &mut Vec<u8>) {
        self.consumed += u32::try_from(length).unwrap_or(u32::MAX);
        if self.consumed >= WINDOW_STEP {
            reply.extend(frame(WINDOW_UPDATE, 0, 0, &self.consumed.to_be_bytes()));
            self.consumed = 0;
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len())
        .unwrap_or_default()
        .to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Http2 {
        let mut conversation = Request::new("a:80", "/").unwrap().conversation();
        conversation.open();
        conversation
    }

    #[test]
    fn an_answer_is_done_at_the_end_of_its_stream_however_it_is_cut() {
        let mut bytes = frame(SETTINGS, 0, 0, &[]);
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &[STATUS_200]));
        bytes.extend(frame(DATA, END_STREAM, 1, b"hello"));
        for cut in 0..bytes.len() {
            let (mut conversation, mut reply) = (opened(), Vec::new());
            assert_eq!(
                conversation.receive(&bytes[..cut], &mut reply),
                Progress::Pending
            );
            assert_eq!(
                conversation.receive(&bytes[cut..], &mut reply),
                Progress::Done
            );
            assert_eq!(reply, frame(SETTINGS, ACK, 0, &[]));
        }
    }

    #[test]
    fn another_status_or_a_reset_is_wrong() {
        for bytes in [
            frame(HEADERS, END_HEADERS, 1, &[0x8d]),
            frame(RST_STREAM, 0, 1, &[0; 4]),
        ] {
            assert_eq!(opened().receive(&bytes, &mut Vec::new()), Progress::Wrong);
        }
    }

    #[test]
    fn the_connections_window_is_given_back() {
        let (mut conversation, mut reply) = (opened(), Vec::new());
        conversation.receive(
            &frame(DATA, 0, 1, &vec![0; WINDOW_STEP as usize]),
            &mut reply,
        );
        assert_eq!(
            reply,
            frame(WINDOW_UPDATE, 0, 0, &WINDOW_STEP.to_be_bytes())
        );
    }
}
