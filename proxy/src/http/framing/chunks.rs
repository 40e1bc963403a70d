//! Finds a line of a chunked request's trailers that LF alone ends.
//!
//! hyper looks for the CRLF at the end of trailers and then reads what lies before it with a parser that
//! takes LF for the end of a line: after `0 CRLF LF` all of the next request goes for trailers and is
//! dropped, and whoever counts requests otherwise gives the wrong client its answer. Called by
//! [`super::HeadScan`] with what follows a head.

/// Follows the chunks of one body.
#[derive(Debug)]
pub(super) enum ChunkScan {
    /// In the line of a chunk's size; extensions do not belong to the number.
    Size { size: u64, extension: bool },
    /// In a chunk's data, so many bytes before their end.
    Data(u64),
    /// After a chunk's data, before the end of its line.
    DataEnd,
    /// In a line of the trailers that holds so many bytes.
    Trailers { length: usize, after_cr: bool },
    /// After the last line.
    Ended,
}

impl Default for ChunkScan {
    fn default() -> Self {
        Self::Size {
            size: 0,
            extension: false,
        }
    }
}

impl ChunkScan {
    /// Looks at bytes of the body, and makes each LF that stands alone in the trailers NUL, which no header
    /// may hold.
    pub(super) fn feed(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let mut used = 1;
            match self {
                Self::Size { size, extension } => match bytes[0] {
                    b'\n' if *size == 0 => {
                        *self = Self::Trailers {
                            length: 0,
                            after_cr: false,
                        };
                    }
                    b'\n' => *self = Self::Data(*size),
                    byte => match char::from(byte).to_digit(16) {
                        Some(digit) if !*extension => {
                            *size = size.saturating_mul(16).saturating_add(digit.into());
                        }
                        _ => *extension = true,
                    },
                },
                Self::Data(left) => {
                    used = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    *left -= used as u64;
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                }
                Self::DataEnd => {
                    if bytes[0] == b'\n' {
                        *self = Self::default();
                    }
                }
                Self::Trailers { length, after_cr } => match bytes[0] {
                    b'\n' if *after_cr && *length == 0 => *self = Self::Ended,
                    b'\n' if *after_cr => (*length, *after_cr) = (0, false),
                    byte => {
                        if byte == b'\n' {
                            bytes[0] = 0;
                        }
                        *after_cr = byte == b'\r';
                        *length += usize::from(!*after_cr);
                    }
                },
                Self::Ended => return,
            }
            bytes = &mut bytes[used..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body as it is after the look, however it is cut.
    fn fed(body: &str) -> String {
        let whole = cut(body, body.len());
        for size in 1..body.len() {
            assert_eq!(cut(body, size), whole, "{size}");
        }
        whole
    }

    fn cut(body: &str, size: usize) -> String {
        let mut scan = ChunkScan::default();
        let mut bytes = body.as_bytes().to_vec();
        bytes.chunks_mut(size).for_each(|part| scan.feed(part));
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_is_well_formed_is_left_alone() {
        for body in [
            "3\r\na\nb\r\n0\r\n\r\nGET / HTTP/1.1\n\n",
            "0003;x=0a\r\n\n\n\n\r\nA\r\n0123456789\r\n0;z\r\nX: y\r\nZ: z\r\n\r\n\n",
        ] {
            assert_eq!(fed(body), body);
        }
    }

    #[test]
    fn lines_of_trailers_that_end_in_lf_are_spoilt() {
        assert_eq!(fed("0\r\n\nGET"), "0\r\n\0GET");
        assert_eq!(fed("1\r\na\r\n0\r\nX: y\n\nG"), "1\r\na\r\n0\r\nX: y\0\0G");
        assert_eq!(fed("0\r\nX: y\r\n\nG"), "0\r\nX: y\r\n\0G");
    }
}
