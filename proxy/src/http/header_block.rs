//! Tells whether the headers of an HTTP/2 request have begun and not ended.
//!
//! A block of headers may come in many frames (RFC 9113 section 4.3), and nothing else may come
//! on the connection before it ends. hyper shows a request only then, so the proxy looks at the
//! frames itself to bound the time that a client takes. [`BlockScan`] reads the nine bytes before
//! each frame and skips the rest.

const PREFACE: u32 = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Scans the frames of a connection as their bytes come.
#[derive(Debug)]
pub struct BlockScan {
    header: [u8; FRAME_HEADER],
    filled: usize,
    /// Bytes to skip: the preface, or a frame's payload.
    skip: u32,
    /// Blocks begun.
    begun: u64,
    open: bool,
    /// Whether the block ends with the frame that is being read.
    ends: bool,
}

impl Default for BlockScan {
    fn default() -> Self {
        Self {
            header: [0; FRAME_HEADER],
            filled: 0,
            skip: PREFACE,
            begun: 0,
            open: false,
            ends: false,
        }
    }
}

impl BlockScan {
    /// Looks at bytes that were read.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = bytes.len().min(self.skip as usize);
            bytes = &bytes[skipped..];
            // At most `skip`, which is no larger.
            self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
            if self.skip == 0 && self.ends {
                (self.open, self.ends) = (false, false);
            }
            if bytes.is_empty() {
                return;
            }
            let part = bytes.len().min(FRAME_HEADER - self.filled);
            self.header[self.filled..self.filled + part].copy_from_slice(&bytes[..part]);
            self.filled += part;
            bytes = &bytes[part..];
            if self.filled == FRAME_HEADER {
                self.filled = 0;
                self.begin_frame();
            }
        }
    }

    /// The number of the block that has begun and not ended, if there is one.
    pub fn unfinished(&self) -> Option<u64> {
        self.open.then_some(self.begun)
    }

    fn begin_frame(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.header;
        self.skip = u32::from_be_bytes([0, high, middle, low]);
        if kind == HEADERS {
            self.open = true;
            self.begun += 1;
        }
        self.ends = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS != 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.extend(std::iter::repeat_n(0xff, length.into()));
        frame
    }

    #[test]
    fn a_block_is_unfinished_from_its_first_frame_to_the_end_of_its_last() {
        let steps = [
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), None),
            (frame(4, 0, 0), None),
            (frame(HEADERS, END_HEADERS, 5), None),
            (frame(0, 0, 200), None),
            (frame(HEADERS, 0, 7), Some(2)),
            (frame(CONTINUATION, 0, 0), Some(2)),
            (frame(CONTINUATION, END_HEADERS, 3), None),
            (frame(HEADERS, END_HEADERS, 0), None),
        ];
        let (mut whole, mut split) = (BlockScan::default(), BlockScan::default());
        for (bytes, expected) in steps {
            whole.feed(&bytes);
            bytes.chunks(1).for_each(|byte| split.feed(byte));
            assert_eq!(whole.unfinished(), expected, "{bytes:?}");
            assert_eq!(split.unfinished(), expected, "{bytes:?}");
        }
        whole.feed(&frame(HEADERS, END_HEADERS, 5)[..12]);
        assert_eq!(whole.unfinished(), Some(4));
    }
}
