//! Smooth weighted round robin.
//!
//! Each turn every host gains its weight, the richest is taken and pays the total. Turns of a
//! heavy host are thereby spread among those of the others. Equal weights need no accounts: a
//! cursor does.

/// A cursor over hosts `0..n`.
#[derive(Clone, Debug)]
pub enum RoundRobin {
    /// All weights are equal.
    Equal {
        /// Number of hosts.
        len: usize,
        /// The next one.
        next: usize,
    },
    /// Weights differ.
    Weighted {
        /// The weights.
        weights: Vec<i64>,
        /// What each host has.
        credit: Vec<i64>,
        /// Sum of the weights.
        total: i64,
    },
}

impl RoundRobin {
    /// A cursor that begins somewhere, as `start` says, so that workers do not march in step.
    /// There must be a host.
    pub fn new(weights: impl Iterator<Item = u32>, start: usize) -> Self {
        let weights: Vec<i64> = weights.map(i64::from).collect();
        let len = weights.len();
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Equal {
                len,
                next: start % len.max(1),
            };
        }
        let total = weights.iter().sum();
        let mut cursor = Self::Weighted {
            credit: vec![0; len],
            weights,
            total,
        };
        for _ in 0..start % len {
            cursor.turn();
        }
        cursor
    }

    /// The next host.
    pub fn turn(&mut self) -> usize {
        match self {
            Self::Equal { len, next } => {
                let host = *next;
                *next = if host + 1 >= *len { 0 } else { host + 1 };
                host
            }
            Self::Weighted {
                weights,
                credit,
                total,
            } => {
                let mut richest = 0;
                for host in 0..weights.len() {
                    credit[host] += weights[host];
                    if credit[host] > credit[richest] {
                        richest = host;
                    }
                }
                credit[richest] -= *total;
                richest
            }
        }
    }
}
