//! Exchanges that share nothing: a new connection or a new question each time, a thread for each that
//! may be under way.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::Latencies;
use super::load::{LoadArgs, Measured};

/// Longest wait for a connection, an answer, an end.
const PATIENCE: Duration = Duration::from_secs(5);
/// After as many failures in a row the server counts as broken.
const HOPELESS: u64 = 100;

/// A connection for every message: made, one message, its echo, the server's end.
pub(super) fn connections(args: &LoadArgs) -> Measured {
    repeat(args, |to| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connecting")?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .context("read timeout")?;
        // As programs do that write a log.
        stream.peer_addr().context("getpeername")?;
        stream.write_all(&[b'x'; 64]).context("sending")?;
        let mut answer = Vec::with_capacity(64);
        stream.read_to_end(&mut answer).context("reading")?;
        ensure!(answer.len() == 64, "{} bytes came back", answer.len());
        Ok(())
    })
}

/// A DNS question of an unconnected socket and its answer.
pub(super) fn questions(args: &LoadArgs, name: &str) -> anyhow::Result<Measured> {
    let question = question(name)?;
    Ok(repeat(args, |to| {
        let socket = UdpSocket::bind("0.0.0.0:0").context("binding")?;
        socket
            .set_read_timeout(Some(PATIENCE))
            .context("read timeout")?;
        socket.send_to(&question, to).context("asking")?;
        let mut answer = [0; 512];
        let (length, from) = socket.recv_from(&mut answer).context("waiting")?;
        ensure!(from == to, "{from} answered");
        // Response, no error, at least one answer (RFC 1035, 4.1.1).
        let good = length > 12 && answer[2] & 0x80 != 0 && answer[3] % 16 == 0;
        ensure!(
            good && answer[6..8] != [0, 0],
            "not an answer: {:?}",
            &answer[..12]
        );
        Ok(())
    }))
}

fn question(name: &str) -> anyhow::Result<Vec<u8>> {
    // One question, recursion desired.
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        ensure!((1..64).contains(&label.len()), "{name}: not a name");
        message.push(u8::try_from(label.len())?);
        message.extend(label.as_bytes());
    }
    // The root, type A, class IN.
    message.extend([0, 0, 1, 0, 1]);
    Ok(message)
}

fn repeat(args: &LoadArgs, exchange: impl Fn(SocketAddr) -> anyhow::Result<()> + Sync) -> Measured {
    let started = Instant::now();
    let end = started + Duration::from_secs_f64(args.seconds);
    let one = || {
        let (mut samples, mut errors, mut row) = (Vec::new(), 0, 0);
        while Instant::now() < end && row < HOPELESS {
            let began = Instant::now();
            match exchange(args.to) {
                Ok(()) => {
                    samples.push(began.elapsed());
                    row = 0;
                }
                Err(error) => {
                    eprintln!("{error:#}");
                    errors += 1;
                    row += 1;
                }
            }
        }
        (samples, errors)
    };
    let shares: Vec<(Vec<Duration>, u64)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..args.connections).map(|_| scope.spawn(one)).collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    let seconds = started.elapsed().as_secs_f64();
    let errors = shares.iter().map(|(_, errors)| errors).sum();
    let mut samples: Vec<Duration> = shares
        .into_iter()
        .flat_map(|(samples, _)| samples)
        .collect();
    Measured {
        requests: samples.len() as u64,
        errors,
        seconds,
        latencies: Latencies::of(&mut samples),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_holds_the_name_by_labels() {
        let message = question("a.bc").unwrap();
        assert_eq!(&message[12..], b"\x01a\x02bc\x00\x00\x01\x00\x01");
        assert!(question("a..b").is_err());
    }
}
