//! HTTP/1.1 requests, answered with bodies of the length that the path asks for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::rc::Rc;

use super::connection::Output;
use super::{LARGE, SMALL};

/// A request head longer than this is nothing that the bench sends.
const MAX_HEAD: usize = 64 * 1024;
/// No longer body is made.
const MAX_BODY: usize = 16 * 1024 * 1024;

type Responses = HashMap<(usize, bool), Rc<[u8]>>;

thread_local! {
    /// Answers by length, for connections that stay and for those that end.
    static RESPONSES: RefCell<Responses> = RefCell::default();
}

fn response(length: usize, close: bool) -> Rc<[u8]> {
    let make = || {
        let header = if close { "connection: close\r\n" } else { "" };
        let mut bytes = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{header}content-length: {length}\r\n\r\n"
        )
        .into_bytes();
        bytes.resize(bytes.len() + length, b'x');
        bytes.into()
    };
    RESPONSES.with_borrow_mut(|made| Rc::clone(made.entry((length, close)).or_insert_with(make)))
}

#[derive(Default)]
pub(super) struct Http1 {
    unparsed: Vec<u8>,
    request: Option<Request>,
}

/// A request whose head was read.
struct Request {
    /// What is still to come of its body.
    left: usize,
    answer: Rc<[u8]>,
    close: bool,
}

impl Http1 {
    pub(super) fn receive(&mut self, bytes: &[u8], output: &mut Output) -> std::io::Result<()> {
        self.unparsed.extend_from_slice(bytes);
        let mut start = 0;
        loop {
            let rest = &self.unparsed[start..];
            if let Some(request) = &mut self.request {
                let taken = rest.len().min(request.left);
                start += taken;
                request.left -= taken;
                if request.left > 0 {
                    break;
                }
                output.push(Rc::clone(&request.answer));
                output.close |= request.close;
                self.request = None;
                continue;
            }
            let Some(length) = head_length(rest) else {
                break;
            };
            let head = &rest[..length];
            let close = wants_close(head);
            self.request = Some(Request {
                left: content_length(head),
                answer: response(asked_length(head), close),
                close,
            });
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

/// The length of the body that the path asks for: `/1k`, `/1mib` or `/bytes/N`.
fn asked_length(head: &[u8]) -> usize {
    let path = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    match path {
        b"/1mib" => LARGE,
        _ => path
            .strip_prefix(b"/bytes/")
            .and_then(number)
            .unwrap_or(SMALL)
            .min(MAX_BODY),
    }
}

fn content_length(head: &[u8]) -> usize {
    const NAME: &[u8] = b"content-length:";
    lines(head)
        .find_map(|line| {
            let (name, value) = line.split_at_checked(NAME.len())?;
            name.eq_ignore_ascii_case(NAME).then(|| number(value))?
        })
        .unwrap_or(0)
}

fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

fn wants_close(head: &[u8]) -> bool {
    lines(head).any(|line| line.eq_ignore_ascii_case(b"connection: close\r\n"))
}

fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split_inclusive(|byte| *byte == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(parts: &[&[u8]]) -> Output {
        let (mut http1, mut output) = (Http1::default(), Output::default());
        for part in parts {
            http1.receive(part, &mut output).unwrap();
        }
        output
    }

    #[test]
    fn a_head_may_come_in_parts() {
        let head: [&[u8]; 2] = [b"GET /1k HTTP/1.1\r\nConnection: ", b"close\r\n\r\n"];
        assert!(!receive(&head[..1]).close);
        assert!(receive(&head).close);
    }

    #[test]
    fn the_path_says_how_much_is_answered() {
        for (path, length) in [
            ("/1k", 1024),
            ("/1mib", 1 << 20),
            ("/bytes/7", 7),
            ("/", 1024),
        ] {
            let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            let answer = response(length, false);
            assert_eq!(receive(&[head.as_bytes()]).parts(), [answer]);
        }
    }

    #[test]
    fn a_request_is_answered_when_its_body_is_there() {
        let request = b"POST /bytes/3 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
        for cut in 0..request.len() {
            assert!(receive(&[&request[..cut]]).parts().is_empty(), "{cut}");
            let whole = receive(&[&request[..cut], &request[cut..], request]);
            assert_eq!(whole.parts().len(), 2, "{cut}");
        }
    }
}
