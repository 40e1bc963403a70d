//! Remembers the destinations whose server speaks first, so that their next connection does not
//! wait for a client that will stay silent.
//!
//! Shared by all workers; read and written only on the new-connection path. A destination is
//! forgotten when its client speaks first after all, or to make room.

use std::net::SocketAddr;
use std::sync::Arc;

use indexmap::IndexSet;
use parking_lot::Mutex;

/// Destinations remembered at most.
const CAPACITY: usize = 4096;

/// Destinations whose server speaks first; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ServerFirst {
    destinations: Arc<Mutex<IndexSet<SocketAddr>>>,
}

impl ServerFirst {
    /// Whether the destination's server spoke first the last time.
    pub fn knows(&self, destination: SocketAddr) -> bool {
        self.destinations.lock().contains(&destination)
    }

    /// Remembers a destination, in place of any other where there is no room.
    pub fn learn(&self, destination: SocketAddr) {
        let mut destinations = self.destinations.lock();
        if destinations.len() >= CAPACITY && !destinations.contains(&destination) {
            let victim = fastrand::usize(..destinations.len());
            destinations.swap_remove_index(victim);
        }
        destinations.insert(destination);
    }

    /// The destination's client spoke first.
    pub fn forget(&self, destination: SocketAddr) {
        self.destinations.lock().swap_remove(&destination);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_bounded() {
        let table = ServerFirst::default();
        for i in 0..=u32::try_from(CAPACITY).unwrap() {
            table.learn(SocketAddr::new(
                std::net::Ipv4Addr::from_bits(i).into(),
                3306,
            ));
        }
        assert_eq!(table.destinations.lock().len(), CAPACITY);
    }

    #[test]
    fn a_destination_is_forgotten_when_its_client_speaks_first() {
        let table = ServerFirst::default();
        let mysql = "10.0.0.1:3306".parse().unwrap();
        table.learn(mysql);
        assert!(table.knows(mysql));
        table.forget(mysql);
        assert!(!table.knows(mysql));
    }
}
