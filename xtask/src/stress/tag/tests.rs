use super::*;

const MINE: Tag = Tag {
    run: 7,
    number: 40,
    way: Way::Up,
};

const LENGTH: usize = 10_000;

fn check(parts: &[&[u8]]) -> Checked {
    let mut checker = Checker::new(MINE);
    for part in parts {
        checker.take(part);
    }
    checker.finish(Some(LENGTH as u64))
}

/// The same, byte by byte.
fn check_slowly(parts: &[&[u8]]) -> Checked {
    let mut checker = Checker::new(MINE);
    for part in parts {
        for byte in part.chunks(1) {
            checker.take(byte);
        }
    }
    checker.finish(Some(LENGTH as u64))
}

fn faults(parts: &[&[u8]]) -> Faults {
    let (fast, slow) = (check(parts), check_slowly(parts));
    assert_eq!(fast, slow, "the size of reads does not matter");
    fast.faults
}

#[test]
fn a_stream_as_it_was_sent_has_no_faults() {
    let all = MINE.bytes(0, LENGTH);
    for cut in [0, 1, 15, 16, 17, 5000, LENGTH] {
        let checked = check(&[&all[..cut], &all[cut..]]);
        assert_eq!(checked.bytes, LENGTH as u64, "cut at {cut}");
        assert!(!checked.faults.any(), "cut at {cut}: {checked:?}");
    }
}

#[test]
fn any_part_is_made_alone() {
    let all = MINE.bytes(0, 200);
    for from in 0..60 {
        assert_eq!(MINE.bytes(from as u64, 77), all[from..from + 77], "{from}");
    }
}

#[test]
fn missing_bytes_are_lost() {
    let all = MINE.bytes(0, LENGTH);
    for (from, to) in [(16, 32), (100, 101), (5, 4000), (9990, LENGTH), (0, LENGTH)] {
        let seen = faults(&[&all[..from], &all[to..]]);
        let expected = Faults {
            lost: (to - from) as u64,
            ..Faults::default()
        };
        assert_eq!(seen, expected, "{from} to {to}");
    }
}

#[test]
fn bytes_that_come_again_are_duplicated() {
    let all = MINE.bytes(0, LENGTH);
    for (from, to) in [(16, 64), (101, 4000), (0, 16)] {
        let seen = faults(&[&all[..to], &all[from..to], &all[to..]]);
        let expected = Faults {
            duplicated: (to - from) as u64,
            ..Faults::default()
        };
        assert_eq!(seen, expected, "{from} to {to}");
    }
}

#[test]
fn bytes_that_were_overtaken_are_reordered() {
    let all = MINE.bytes(0, LENGTH);
    for (a, b, c) in [(160, 320, 640), (96, 1008, 3008), (0, 784, 1552)] {
        let seen = faults(&[&all[..a], &all[b..c], &all[a..b], &all[c..]]);
        let expected = Faults {
            reordered: (b - a) as u64,
            ..Faults::default()
        };
        assert_eq!(seen, expected, "{a}, {b}, {c}");
    }
}

#[test]
fn cuts_within_blocks_are_faults_all_the_same() {
    let all = MINE.bytes(0, LENGTH);
    for (a, b, c) in [(100, 1000, 3000), (1, 777, 1554)] {
        let seen = faults(&[&all[..a], &all[b..c], &all[a..b], &all[c..]]);
        let near = (b - a - 2 * BLOCK) as u64;
        assert!(seen.reordered >= near, "{a}, {b}, {c}: {seen:?}");
    }
}

#[test]
fn blocks_of_another_stream_are_leaked() {
    let all = MINE.bytes(0, LENGTH);
    let mut other = MINE;
    other.way = Way::Down;
    let foreign = other.bytes(48, 32);
    let seen = faults(&[&all[..160], &foreign, &all[160..]]);
    let expected = Faults {
        leaked: 32,
        ..Faults::default()
    };
    assert_eq!(seen, expected);
}

#[test]
fn bytes_of_nobody_are_corrupt() {
    let all = MINE.bytes(0, LENGTH);
    let seen = faults(&[&all[..160], &[0; 5], &all[160..]]);
    assert!(seen.any(), "{seen:?}");
    assert_eq!((seen.leaked, seen.lost), (0, 0), "{seen:?}");
}

#[test]
fn too_much_is_a_fault() {
    let more = MINE.bytes(0, LENGTH + 3);
    assert_eq!(faults(&[&more]).corrupt, 3);
}

#[test]
fn pieces_of_two_readers_are_put_in_order() {
    let all = MINE.bytes(0, 500);
    let cuts = [0, 3, 40, 41, 90, 200, 201, 203, 260, 500];
    let mut chunks: Vec<_> = cuts.windows(2).map(|w| all[w[0]..w[1]].to_vec()).collect();
    chunks.reverse();
    chunks.swap(1, 4);
    assert_eq!(assemble(MINE, chunks).concat(), all);
}

#[test]
fn any_pieces_of_two_readers_are_put_in_order() {
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..40 {
        let all = MINE.bytes(0, 8_000);
        let mut chunks = Vec::new();
        let mut at = 0;
        while at < all.len() {
            let most = if rng.u8(..3) == 0 { 20 } else { 128 };
            let length = rng.usize(1..=most).min(all.len() - at);
            chunks.push(all[at..at + length].to_vec());
            at += length;
        }
        rng.shuffle(&mut chunks);
        let mut damaged = chunks.clone();
        assert!(assemble(MINE, chunks).concat() == all, "round {round}");
        // A changed byte of a piece too short to be placed may be right elsewhere.
        let victim = rng.usize(..damaged.len());
        if damaged[victim].len() < 2 * BLOCK {
            damaged.remove(victim);
        } else {
            damaged[victim][0] ^= 1;
        }
        assert!(assemble(MINE, damaged).concat() != all, "round {round}");
    }
}
