//! Bytes that say where they belong: every 16 of them name their stream and their place in it, so
//! that a reader tells lost, repeated, reordered and foreign bytes apart.
//!
//! [`Tag::fill`] makes the bytes of any part of a stream; a [`Checker`] reads a stream as it comes and
//! counts what is wrong with it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Bytes that carry a whole tag.
pub(super) const BLOCK: usize = 16;
/// Expected bytes are made this many at a time; a multiple of [`BLOCK`].
const PIECE: usize = 1024;

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From client to server.
    Up,
    /// From server to client.
    Down,
}

/// One direction of one connection, or the body of one request or response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// Another for every run.
    pub(super) run: u32,
    /// Another for every stream of a run.
    pub(super) number: u32,
    pub(super) way: Way,
}

/// The top bit of a block's index says which way it goes.
const DOWN: u32 = 1 << 31;

impl Tag {
    /// Writes the stream's bytes from `at` on.
    pub(super) fn fill(self, at: u64, bytes: &mut [u8]) {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = offset(at);
            let take = (BLOCK - within).min(rest.len());
            let (now, later) = rest.split_at_mut(take);
            now.copy_from_slice(&self.block(index(at))[within..within + take]);
            at += take as u64;
            rest = later;
        }
    }

    /// The stream's bytes from `at` on.
    pub(super) fn bytes(self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(at, &mut bytes);
        bytes
    }

    fn block(self, index: u32) -> [u8; BLOCK] {
        let place = index | if self.way == Way::Down { DOWN } else { 0 };
        let mut block = [0; BLOCK];
        block[..4].copy_from_slice(&self.number.to_le_bytes());
        block[4..8].copy_from_slice(&place.to_le_bytes());
        block[8..].copy_from_slice(&seal(self.run, self.number, place).to_le_bytes());
        block
    }

    /// Whose block this is and which, if it is one of the run.
    fn recognise(run: u32, bytes: &[u8]) -> Option<(Self, u32)> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let (number, place) = (word(0)?, word(4)?);
        let sealed = u64::from_le_bytes(bytes.get(8..BLOCK)?.try_into().ok()?);
        let way = if place & DOWN == 0 {
            Way::Up
        } else {
            Way::Down
        };
        let tag = Self { run, number, way };
        (sealed == seal(run, number, place)).then_some((tag, place & !DOWN))
    }
}

fn offset(at: u64) -> usize {
    usize::try_from(at % BLOCK as u64).unwrap_or_default()
}

/// Streams are shorter than the 2^35 bytes that an index can count.
fn index(at: u64) -> u32 {
    u32::try_from(at / BLOCK as u64).unwrap_or(u32::MAX) & !DOWN
}

/// A hash that no other bytes of a run have by chance (splitmix64's finaliser).
fn seal(run: u32, number: u32, place: u32) -> u64 {
    let mut x = (u64::from(number) << 32 | u64::from(place))
        .wrapping_add(u64::from(run).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Puts pieces of a stream that several threads read into its order. Pieces too short to say where they
/// belong are looked at together: if each is what the stream has somewhere in a gap, and all of them are
/// as long as the gaps, then the gaps are filled. Which of them lay where cannot be told.
pub(super) fn assemble(tag: Tag, chunks: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut placed = Vec::new();
    let mut loose = Vec::new();
    for chunk in chunks {
        match place(tag, &chunk) {
            Some(at) => placed.push((at, chunk)),
            None => loose.push(chunk),
        }
    }
    placed.sort_by_key(|(at, _)| *at);
    let mut at = 0;
    let mut gaps = Vec::new();
    for (begin, chunk) in &placed {
        if *begin > at {
            gaps.push(at..*begin);
        }
        at = begin + chunk.len() as u64;
    }
    let missing = gaps.iter().map(|gap| gap.end - gap.start).sum::<u64>();
    let found = loose.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
    if found > missing {
        gaps.push(at..at + found - missing);
    }
    let fits = |chunk: &Vec<u8>| gaps.iter().any(|gap| is_within(tag, gap, chunk));
    if found < missing || !loose.iter().all(fits) {
        // The checker finds out what is wrong.
        return placed
            .into_iter()
            .map(|(_, chunk)| chunk)
            .chain(loose)
            .collect();
    }
    let filled = gaps.into_iter().map(|gap| {
        let length = usize::try_from(gap.end - gap.start).unwrap_or_default();
        (gap.start, tag.bytes(gap.start, length))
    });
    placed.extend(filled);
    placed.sort_by_key(|(at, _)| *at);
    placed.into_iter().map(|(_, chunk)| chunk).collect()
}

/// Where a piece says that it belongs.
fn place(tag: Tag, chunk: &[u8]) -> Option<u64> {
    let mut windows = chunk.windows(BLOCK).enumerate();
    windows.find_map(|(at, window)| {
        let (found, index) = Tag::recognise(tag.run, window)?;
        let begin = u64::from(index) * BLOCK as u64;
        (found == tag).then(|| begin.saturating_sub(at as u64))
    })
}

/// Whether a part of the gap, which may end within the piece, has this content. Pieces of neighbouring
/// gaps never run into each other: a placed piece lies between.
fn is_within(tag: Tag, gap: &Range<u64>, chunk: &[u8]) -> bool {
    let length = chunk.len() as u64;
    (gap.start..gap.end)
        .take_while(|at| at + length <= gap.end)
        .any(|at| tag.bytes(at, chunk.len()) == chunk)
}

/// What was wrong with a stream, in bytes. Which kind of fault the bytes of a torn block belong to
/// cannot always be told, so a kind may be off by a block for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Faults {
    /// Came after bytes that were sent later.
    pub(super) reordered: u64,
    /// Never came.
    pub(super) lost: u64,
    /// Came again.
    pub(super) duplicated: u64,
    /// Belong to another stream.
    pub(super) leaked: u64,
    /// Are nobody's.
    pub(super) corrupt: u64,
}

impl Faults {
    pub(super) fn any(&self) -> bool {
        *self != Self::default()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.reordered += other.reordered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.leaked += other.leaked;
        self.corrupt += other.corrupt;
    }
}

/// Reads one stream.
#[derive(Debug)]
pub(super) struct Checker {
    tag: Tag,
    /// Where the current block begins.
    at: u64,
    /// Bytes of it that were right so far; they count when all of it was.
    partial: usize,
    /// How far the stream has come, whatever is missing before.
    reached: u64,
    correct: u64,
    faults: Faults,
    /// What was skipped; it may still come.
    gaps: Vec<Range<u64>>,
    /// Bytes that have not been recognised, once one was wrong.
    strange: Option<Vec<u8>>,
}

impl Checker {
    pub(super) fn new(tag: Tag) -> Self {
        Self {
            tag,
            at: 0,
            partial: 0,
            reached: 0,
            correct: 0,
            faults: Faults::default(),
            gaps: Vec::new(),
            strange: None,
        }
    }

    /// Where the next byte belongs.
    pub(super) fn position(&self) -> u64 {
        self.at + self.partial as u64
    }

    /// Takes the next bytes of the stream in.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        if let Some(strange) = &mut self.strange {
            strange.extend_from_slice(bytes);
            self.recover();
            return;
        }
        let mut rest = bytes;
        let mut expected = [0; PIECE];
        while !rest.is_empty() {
            let now = rest.len().min(PIECE);
            let expected = &mut expected[..now];
            self.tag.fill(self.position(), expected);
            let same = if rest[..now] == *expected {
                now
            } else {
                let pairs = rest.iter().zip(&*expected);
                pairs.take_while(|(seen, due)| seen == due).count()
            };
            self.partial += same;
            let whole = self.partial - self.partial % BLOCK;
            self.advance(whole);
            self.partial -= whole;
            rest = &rest[same..];
            if same < now {
                let mut strange = self.tag.bytes(self.at, self.partial);
                strange.extend_from_slice(rest);
                self.partial = 0;
                self.strange = Some(strange);
                self.recover();
                return;
            }
        }
    }

    /// Counts bytes that are what was due at this place.
    fn advance(&mut self, bytes: usize) {
        let range = self.at..self.at + bytes as u64;
        self.at = range.end;
        let fresh = range.end.saturating_sub(range.start.max(self.reached));
        self.reached = self.reached.max(range.end);
        self.correct += fresh;
        let old = (bytes as u64) - fresh;
        let late = self.fill_gaps(&range);
        self.faults.lost -= late;
        self.faults.reordered += late;
        self.faults.duplicated += old - late;
    }

    /// Takes what has come out of the gaps; returns how much of it was missing.
    fn fill_gaps(&mut self, range: &Range<u64>) -> u64 {
        let mut filled = 0;
        let mut left = Vec::new();
        for gap in std::mem::take(&mut self.gaps) {
            let (from, to) = (gap.start.max(range.start), gap.end.min(range.end));
            if from >= to {
                left.push(gap);
                continue;
            }
            filled += to - from;
            let parts = [gap.start..from, to..gap.end];
            left.extend(parts.into_iter().filter(|part| part.start < part.end));
        }
        self.gaps = left;
        filled
    }

    /// Looks for the next block in what was not recognised, and goes on from there.
    fn recover(&mut self) {
        while let Some(strange) = self.strange.take() {
            let mut windows = strange.windows(BLOCK).enumerate();
            let found = windows.find_map(|(at, window)| {
                Tag::recognise(self.tag.run, window).map(|(tag, index)| (at, tag, index))
            });
            let Some((skipped, tag, index)) = found else {
                self.strange = Some(strange);
                return;
            };
            if tag == self.tag {
                self.jump(u64::from(index) * BLOCK as u64, skipped as u64);
                self.take(&strange[skipped..]);
            } else {
                self.faults.corrupt += skipped as u64;
                self.faults.leaked += BLOCK as u64;
                let rest = &strange[skipped + BLOCK..];
                self.strange = (!rest.is_empty()).then(|| rest.to_vec());
                if self.strange.is_none() {
                    return;
                }
            }
        }
    }

    /// The stream goes on at `to`, `skipped` bytes after what was due.
    fn jump(&mut self, to: u64, skipped: u64) {
        let began = to.saturating_sub(skipped);
        // The bytes that were skipped are the end of the block before, wherever that belongs.
        self.faults.corrupt += skipped - (to - began);
        if began >= self.reached {
            let gap = self.reached..to;
            self.faults.lost += gap.end - gap.start;
            self.gaps.push(gap);
            // Known by its place, not by its content: it has come.
            let known = began.max(self.reached)..to;
            let come = self.fill_gaps(&known);
            self.faults.lost -= come;
            self.correct += come;
            self.reached = to;
        } else {
            self.at = began;
            self.advance(usize::try_from(to - began).unwrap_or_default());
        }
        self.at = to;
    }

    /// What was wrong. `length` is how long the stream should have been, where it ended as it should.
    pub(super) fn finish(mut self, length: Option<u64>) -> Checked {
        self.advance(self.partial);
        self.faults.corrupt += self
            .strange
            .take()
            .map_or(0, |strange| strange.len() as u64);
        if let Some(length) = length {
            self.faults.lost += length.saturating_sub(self.reached);
            self.faults.corrupt += self.reached.saturating_sub(length);
        }
        Checked {
            bytes: self.correct,
            faults: self.faults,
        }
    }
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    /// Bytes that came as they were sent.
    pub(super) bytes: u64,
    pub(super) faults: Faults,
}

#[cfg(test)]
mod tests;
