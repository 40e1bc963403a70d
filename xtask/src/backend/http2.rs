//! HTTP/2 requests without bodies (RFC 9113): every stream that opens and ends is answered with the
//! small body. Header blocks are not decoded, since every request means the same.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::rc::Rc;

use super::SMALL;
use super::connection::Output;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
const MAX_FRAME: usize = 1 << 14;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// [`SMALL`], as windows are counted.
const ANSWER: i64 = 1024;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

pub(super) struct Http2 {
    unparsed: Vec<u8>,
    greeted: bool,
    /// What the client still takes on the connection; a stream's own window always holds an answer.
    window: i64,
    /// Streams whose answer waits for the window.
    waiting: VecDeque<[u8; 4]>,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            unparsed: Vec::new(),
            greeted: false,
            window: 65_535,
            waiting: VecDeque::new(),
        }
    }
}

impl Http2 {
    pub(super) fn receive(&mut self, bytes: &[u8], output: &mut Output) -> std::io::Result<()> {
        self.unparsed.extend_from_slice(bytes);
        let mut at = 0;
        if !self.greeted {
            if self.unparsed.len() < PREFACE.len() {
                return Ok(());
            }
            if !self.unparsed.starts_with(PREFACE) {
                return Err(ErrorKind::InvalidData.into());
            }
            self.greeted = true;
            at = PREFACE.len();
            output.push(frame(SETTINGS, 0, [0; 4], &[]).into());
        }
        let unparsed = std::mem::take(&mut self.unparsed);
        let mut answers = Vec::new();
        while let Some((header, after)) = unparsed[at..].split_at_checked(FRAME_HEADER) {
            let length =
                usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            if length > MAX_FRAME {
                return Err(ErrorKind::InvalidData.into());
            }
            let Some(payload) = after.get(..length) else {
                break;
            };
            self.frame(header, payload, &mut answers)?;
            at += FRAME_HEADER + length;
        }
        self.unparsed = unparsed[at..].to_vec();
        self.answer(&mut answers);
        if !answers.is_empty() {
            output.push(Rc::from(answers));
        }
        Ok(())
    }

    fn frame(
        &mut self,
        header: &[u8],
        payload: &[u8],
        answers: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        let (kind, flags) = (header[3], header[4]);
        let stream = [header[5], header[6], header[7], header[8]];
        match kind {
            SETTINGS if flags & ACK == 0 => answers.extend(frame(SETTINGS, ACK, [0; 4], &[])),
            PING if flags & ACK == 0 => answers.extend(frame(PING, ACK, [0; 4], payload)),
            HEADERS | DATA if flags & END_STREAM != 0 => self.waiting.push_back(stream),
            WINDOW_UPDATE if stream == [0; 4] => {
                let increment = payload
                    .try_into()
                    .map(u32::from_be_bytes)
                    .unwrap_or_default();
                self.window += i64::from(increment);
            }
            GOAWAY => return Err(ErrorKind::ConnectionAborted.into()),
            _ => {}
        }
        Ok(())
    }

    fn answer(&mut self, answers: &mut Vec<u8>) {
        while self.window >= ANSWER {
            let Some(stream) = self.waiting.pop_front() else {
                return;
            };
            self.window -= ANSWER;
            // `:status: 200`, indexed (RFC 7541, appendix A).
            answers.extend(frame(HEADERS, END_HEADERS, stream, &[0x88]));
            answers.extend(frame(DATA, END_STREAM, stream, &[b'x'; SMALL]));
        }
    }
}

fn frame(kind: u8, flags: u8, stream: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len())
        .unwrap_or_default()
        .to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags];
    bytes.extend(stream);
    bytes.extend(payload);
    bytes
}
