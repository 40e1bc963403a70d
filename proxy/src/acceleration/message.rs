//! Which way a message to an application goes: a pure decision over what is about to be written.

use std::io::IoSlice;

use millrace_runtime::handoff::accel::MAX_REDIRECTED;

use crate::http::io::MessageSize;

/// Where a head ends.
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// Whether this write is a whole HTTP/1.1 message that may go by the map: small, and with the body
/// that was announced, at hand. What was not announced (interim and streamed messages) may not.
pub fn is_whole(size: MessageSize, parts: &[IoSlice<'_>]) -> bool {
    let MessageSize::Known(body) = size else {
        return false;
    };
    let total = length(parts);
    let Some(head) = usize::try_from(body)
        .ok()
        .and_then(|body| total.checked_sub(body))
    else {
        return false;
    };
    total <= MAX_REDIRECTED && head > 0 && head_length(parts) == Some(head)
}

/// Bytes of all parts.
pub fn length(parts: &[IoSlice<'_>]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

/// How long the head is that the first part begins with. hyper writes a head in one piece.
fn head_length(parts: &[IoSlice<'_>]) -> Option<usize> {
    let first = parts.iter().find(|part| !part.is_empty())?;
    let mut from = 0;
    while let Some(at) = first[from..].iter().position(|byte| *byte == b'\r') {
        let at = from + at;
        if first[at..].starts_with(END_OF_HEAD) {
            return Some(at + END_OF_HEAD.len());
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";

    fn whole(size: MessageSize, parts: &[&[u8]]) -> bool {
        let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        is_whole(size, &parts)
    }

    #[test]
    fn a_small_message_at_hand_is_whole() {
        let known = MessageSize::Known;
        let flat = [HEAD, b"hello"].concat();
        assert!(whole(known(5), &[HEAD, b"hello"]));
        assert!(whole(known(5), &[&flat]));
        assert!(whole(known(5), &[b"", HEAD, b"he", b"llo"]));
        assert!(whole(known(0), &[b"GET / HTTP/1.1\r\n\r\n"]));
    }

    #[test]
    fn parts_and_what_was_not_announced_are_not() {
        let known = MessageSize::Known;
        for (size, parts) in [
            (MessageSize::Streamed, vec![HEAD, b"hello"]),
            (known(5), vec![HEAD]),
            (known(5), vec![HEAD, b"hell"]),
            (known(5), vec![HEAD, b"hello!"]),
            (known(5), vec![&b"hello"[..]]),
            (known(500), vec![HEAD, b"hello"]),
            (known(0), vec![]),
            (known(0), vec![b"HTTP/1.1 200 OK\r\n"]),
            (known(u64::MAX), vec![HEAD]),
        ] {
            assert!(!whole(size, &parts), "{size:?} {parts:?}");
        }
    }

    #[test]
    fn a_large_message_is_not_for_the_map() {
        let head = b"HTTP/1.1 200 OK\r\n\r\n";
        let room = MAX_REDIRECTED - head.len();
        for (length, fits) in [(room, true), (room + 1, false)] {
            let body = vec![b'x'; length];
            assert_eq!(
                whole(MessageSize::Known(length as u64), &[head, &body]),
                fits
            );
        }
    }
}
