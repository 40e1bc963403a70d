//! Ends of streams: one swallows whatever comes, the other sends without end. Each connection has a
//! thread, so that a stream that is never done holds up nobody.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::thread;

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The longest write that a client may ask for.
const MAX_WRITE: usize = 1024 * 1024;

/// Reads until the client has sent all, then says so by closing.
pub(super) fn sink(at: SocketAddr) -> anyhow::Result<()> {
    listen(at, |stream| {
        let mut buffer = vec![0; 64 * 1024];
        while read(stream, &mut buffer)? > 0 {}
        Ok(())
    })
}

/// Reads how long a write shall be, four bytes in network order, and writes until the client is gone.
pub(super) fn source(at: SocketAddr) -> anyhow::Result<()> {
    listen(at, |stream| {
        let (mut length, mut at) = ([0; 4], 0);
        while at < length.len() {
            match read(stream, &mut length[at..])? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                got => at += got,
            }
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(MAX_WRITE);
        let bytes = vec![b'x'; length.clamp(1, MAX_WRITE)];
        loop {
            write(stream, &bytes)?;
        }
    })
}

type Serve = fn(&mut TcpStream) -> std::io::Result<()>;

fn listen(at: SocketAddr, serve: Serve) -> anyhow::Result<()> {
    let listener = TcpListener::bind(at).with_context(|| format!("binding {at}"))?;
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let prepared = stream
                    .set_nodelay(true)
                    .and_then(|()| stream.set_nonblocking(true));
                // A client that went away has measured what it wanted to.
                prepared.and_then(|()| serve(&mut stream)).ok();
            });
        }
    });
    Ok(())
}

/// Reads what is there, after waiting for it.
pub(crate) fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(stream, PollFlags::POLLIN)?,
            other => return other,
        }
    }
}

/// Writes all, waiting where the socket is full.
pub(crate) fn write(stream: &mut TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait(stream, PollFlags::POLLOUT)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait(stream: &TcpStream, what: PollFlags) -> std::io::Result<()> {
    poll(&mut [PollFd::new(stream.as_fd(), what)], PollTimeout::NONE)?;
    Ok(())
}
