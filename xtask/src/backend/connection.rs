//! One connection of the backend: bytes in, a protocol's answers out.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::rc::Rc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::http1::Http1;
use super::http2::Http2;

/// What is spoken on a connection.
pub(super) enum Protocol {
    Http1(Http1),
    Http2(Http2),
    Echo,
    /// As before, for the first bytes alone.
    Once,
}

/// Bytes to be sent; answers share theirs.
#[derive(Default)]
pub(super) struct Output {
    parts: VecDeque<Rc<[u8]>>,
    written: usize,
    /// The connection ends when everything is sent.
    pub(super) close: bool,
}

impl Output {
    pub(super) fn push(&mut self, part: Rc<[u8]>) {
        self.parts.push_back(part);
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> Vec<Rc<[u8]>> {
        self.parts.iter().cloned().collect()
    }
}

pub(super) struct Connection {
    stream: TcpStream,
    protocol: Protocol,
    output: Output,
}

impl Connection {
    pub(super) fn start(
        epoll: &Epoll,
        stream: TcpStream,
        token: u64,
        protocol: Protocol,
    ) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&stream, EpollEvent::new(flags, token))?;
        Ok(Self {
            stream,
            protocol,
            output: Output::default(),
        })
    }

    /// Reads and writes as far as it goes; an error means that the connection is over.
    pub(super) fn progress(&mut self, buffer: &mut [u8]) -> std::io::Result<()> {
        self.flush()?;
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let bytes = &buffer[..length];
            match &mut self.protocol {
                Protocol::Http1(http1) => http1.receive(bytes, &mut self.output)?,
                Protocol::Http2(http2) => http2.receive(bytes, &mut self.output)?,
                Protocol::Echo => self.output.push(bytes.into()),
                Protocol::Once => {
                    self.output.push(bytes.into());
                    self.output.close = true;
                }
            }
            self.flush()?;
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let output = &mut self.output;
        while let Some(part) = output.parts.front() {
            match self.stream.write(&part[output.written..]) {
                Ok(length) => output.written += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            if output.written == part.len() {
                output.parts.pop_front();
                output.written = 0;
            }
        }
        if output.close {
            Err(ErrorKind::ConnectionAborted.into())
        } else {
            Ok(())
        }
    }
}
