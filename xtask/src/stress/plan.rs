//! What happens on one connection of bytes: both ends draw the same plan from the seed that the
//! client's first bytes carry, so each knows what the other will do.

use super::half::{Read, WAITS, Wait, Write};

/// Calls of one direction take about this many at most.
const CALLS: usize = 1500;

/// What a client sends first: magic, the connection's number, the seed of its plan.
pub(super) const HELLO: usize = 16;
const MAGIC: [u8; 4] = *b"mlrs";

/// The first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) number: u32,
    pub(super) seed: u64,
}

impl Hello {
    pub(super) fn encode(self) -> [u8; HELLO] {
        let mut bytes = [0; HELLO];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..].copy_from_slice(&self.seed.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HELLO]) -> Option<Self> {
        let number = u32::from_le_bytes(bytes[4..8].try_into().ok()?);
        let seed = u64::from_le_bytes(bytes[8..].try_into().ok()?);
        (bytes[..4] == MAGIC).then_some(Self { number, seed })
    }
}

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// The order in which bytes flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// One message up, one down, and so on: lengths of each pair.
    Turns(Vec<(usize, usize)>),
    /// Both directions at once, this many bytes up and down.
    Both(u64, u64),
}

impl Flow {
    /// Bytes up and down in all.
    pub(super) fn totals(&self) -> (u64, u64) {
        match self {
            Self::Turns(pairs) => pairs.iter().fold((0, 0), |(up, down), (u, d)| {
                (up + *u as u64, down + *d as u64)
            }),
            Self::Both(up, down) => (*up, *down),
        }
    }
}

/// How the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// This side half-closes as soon as it has sent everything, the other when it has seen that.
    HalfClose(Side),
    /// This side resets the connection (`SO_LINGER` 0) when it has sent this many bytes.
    Reset(Side, u64),
    /// This side reads this many bytes and closes, whatever else has come.
    CloseUnread(Side, u64),
    /// Both have what they wait for; this side closes with `SO_LINGER` 0 once it has seen the end.
    LingerAfter(Side),
}

impl Ending {
    /// Whether every byte arrives and both ends see the end of the stream.
    pub(super) fn is_orderly(self) -> bool {
        matches!(self, Self::HalfClose(_) | Self::LingerAfter(_))
    }
}

/// How a client connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connect {
    Plain,
    /// `TCP_FASTOPEN_CONNECT`: the first write connects.
    FastOpen,
    /// `sendto` with `MSG_FASTOPEN`.
    SendTo,
}

/// How one end works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conduct {
    pub(super) wait: Wait,
    pub(super) reads: Vec<Read>,
    pub(super) writes: Vec<Write>,
    /// Largest read.
    pub(super) read: usize,
    /// Largest write.
    pub(super) write: usize,
    /// Of 100 reads so many are preceded by a nap.
    pub(super) naps: u32,
    /// Two threads read the socket.
    pub(super) two_readers: bool,
}

/// What is not to be drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spare {
    /// splice(2) from the socket.
    pub(super) splice: bool,
}

/// A connection of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) connect: Connect,
    pub(super) flow: Flow,
    pub(super) client: Conduct,
    pub(super) server: Conduct,
    pub(super) ending: Ending,
}

impl Plan {
    pub(super) fn draw(seed: u64, spare: Spare) -> Self {
        let rng = &mut fastrand::Rng::with_seed(seed);
        let turns = rng.u8(..10) < 6;
        let flow = if turns {
            let pairs = rng.usize(1..60);
            Flow::Turns((0..pairs).map(|_| (message(rng), message(rng))).collect())
        } else {
            Flow::Both(volume(rng), volume(rng))
        };
        let connect = match rng.u8(..10) {
            0 => Connect::FastOpen,
            1 => Connect::SendTo,
            _ => Connect::Plain,
        };
        let ending = ending(rng, &flow);
        let two = matches!((&flow, ending), (Flow::Both(..), Ending::HalfClose(_)));
        Self {
            connect,
            client: Conduct::draw(rng, two, spare, &flow),
            server: Conduct::draw(rng, two, spare, &flow),
            flow,
            ending,
        }
    }
}

/// Mostly small, now and then more than sixteen KiB.
fn message(rng: &mut fastrand::Rng) -> usize {
    match rng.u8(..20) {
        0..8 => rng.usize(1..200),
        8..15 => rng.usize(200..4000),
        15..19 => rng.usize(4000..20_000),
        _ => rng.usize(20_000..200_000),
    }
}

fn volume(rng: &mut fastrand::Rng) -> u64 {
    match rng.u8(..10) {
        0 => 0,
        1..5 => rng.u64(1..3000),
        5..9 => rng.u64(3000..300_000),
        _ => rng.u64(300_000..3_000_000),
    }
}

fn ending(rng: &mut fastrand::Rng, flow: &Flow) -> Ending {
    let side = if rng.bool() {
        Side::Client
    } else {
        Side::Server
    };
    let (up, down) = flow.totals();
    let (sent, received) = match side {
        Side::Client => (up, down),
        Side::Server => (down, up),
    };
    match rng.u8(..20) {
        0 => Ending::Reset(side, rng.u64(..=sent)),
        1 => Ending::CloseUnread(side, rng.u64(..=received)),
        2 => Ending::LingerAfter(side),
        _ => Ending::HalfClose(side),
    }
}

impl Conduct {
    fn draw(rng: &mut fastrand::Rng, two_readers: bool, spare: Spare, flow: &Flow) -> Self {
        let wait = WAITS[rng.usize(..WAITS.len())];
        let mut reads = vec![Read::Plain, Read::Vectored, Read::PeekFirst, Read::WaitAll];
        // A socket whose epoll says nothing below the mark is not read by others meanwhile.
        if matches!(wait, Wait::Blocking | Wait::Poll) {
            reads.push(Read::LowWater);
        }
        if !spare.splice {
            reads.push(Read::Splice);
        }
        let mut writes = vec![
            Write::Plain,
            Write::Vectored,
            Write::SendFile,
            Write::Splice,
        ];
        if matches!(wait, Wait::Blocking | Wait::Poll) {
            writes.push(Write::ZeroCopy);
        }
        let two_readers = two_readers && rng.u8(..8) == 0;
        if two_readers {
            reads = vec![Read::Plain, Read::Vectored];
        }
        // However small, all calls together take no longer than a moment.
        let (up, down) = flow.totals();
        let least = usize::try_from(up.max(down)).unwrap_or(usize::MAX) / CALLS;
        Self {
            wait,
            reads: some(rng, &reads),
            writes: some(rng, &writes),
            read: least.max(1 << rng.u32(4..17)),
            write: least.max(1 << rng.u32(4..17)),
            naps: if rng.u8(..10) == 0 { rng.u32(1..20) } else { 0 },
            two_readers,
        }
    }
}

/// One kind only, or all.
fn some<T: Copy>(rng: &mut fastrand::Rng, of: &[T]) -> Vec<T> {
    match rng.u8(..3) {
        0 => of.to_vec(),
        1 => vec![of[0]],
        _ => vec![of[rng.usize(..of.len())]],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_draw_the_same_plan() {
        for seed in 0..500 {
            let plan = Plan::draw(seed, Spare::default());
            assert_eq!(plan, Plan::draw(seed, Spare::default()));
        }
    }

    #[test]
    fn a_hello_survives_the_wire() {
        let hello = Hello {
            number: 77,
            seed: u64::MAX - 5,
        };
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        assert_eq!(Hello::decode(&[0; HELLO]), None);
    }

    #[test]
    fn every_kind_of_plan_is_drawn() {
        let plans: Vec<_> = (0..5000)
            .map(|seed| Plan::draw(seed, Spare::default()))
            .collect();
        let has = |what: &str, is: &dyn Fn(&Plan) -> bool| {
            assert!(plans.iter().any(is), "no plan with {what}");
        };
        has("a reset", &|p| matches!(p.ending, Ending::Reset(..)));
        has("unread bytes", &|p| {
            matches!(p.ending, Ending::CloseUnread(..))
        });
        has("two readers", &|p| p.client.two_readers);
        has("fast open", &|p| p.connect == Connect::SendTo);
        has("splice", &|p| p.server.reads == [Read::Splice]);
        has("zero copy", &|p| p.server.writes == [Write::ZeroCopy]);
        let spare = Spare { splice: true };
        let spliced = |c: &Conduct| c.reads.contains(&Read::Splice);
        assert!((0..5000).all(|seed| {
            let plan = Plan::draw(seed, spare);
            !spliced(&plan.client) && !spliced(&plan.server)
        }));
    }
}
