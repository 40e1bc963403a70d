//! The resolvers that unknown names are forwarded to.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How often the file is looked at.
const RELOAD: Duration = Duration::from_secs(5);
/// Port of DNS.
const PORT: u16 = 53;
/// Resolvers used of one file, as the C library does.
const MAX: usize = 3;

/// Resolvers from a file in the form of `resolv.conf`, or a fixed list.
pub struct Upstreams {
    file: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    servers: Vec<SocketAddr>,
    looked: Option<Instant>,
    modified: Option<SystemTime>,
}

impl Upstreams {
    /// The resolvers of the system, read again when the file changes.
    pub fn file(path: PathBuf) -> Self {
        Self {
            file: Some(path),
            state: Mutex::new(State {
                servers: Vec::new(),
                looked: None,
                modified: None,
            }),
        }
    }

    /// Always these.
    pub fn fixed(servers: Vec<SocketAddr>) -> Self {
        Self {
            file: None,
            state: Mutex::new(State {
                servers,
                looked: None,
                modified: None,
            }),
        }
    }

    /// Whom to ask: `asked`, where the client's own choice is known, else all of them.
    pub(super) fn of(&self, asked: Option<SocketAddr>) -> Vec<SocketAddr> {
        if let Some(asked) = asked {
            return vec![asked];
        }
        let mut state = self.state.lock();
        if let Some(file) = &self.file
            && state.looked.is_none_or(|at| at.elapsed() >= RELOAD)
        {
            state.looked = Some(Instant::now());
            let modified = std::fs::metadata(file).and_then(|m| m.modified()).ok();
            if modified.is_none() || modified != state.modified {
                state.modified = modified;
                match std::fs::read_to_string(file) {
                    Ok(text) => state.servers = parse(&text),
                    Err(error) => {
                        tracing::warn!(path = %file.display(), %error, "resolvers are not known");
                    }
                }
            }
        }
        state.servers.clone()
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        // A scope (`fe80::1%eth0`) means nothing in another network namespace.
        let address: IpAddr = words.next()?.parse().ok()?;
        Some(SocketAddr::new(address.to_canonical(), PORT))
    });
    servers.take(MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_the_rest_is_not() {
        let text = "search a b\n# nameserver 1.1.1.1\nnameserver 10.96.0.10\n\
                    nameserver fd00::a extra\nnameserver fe80::1%eth0\nnameserver\n\
                    nameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n";
        let found: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.96.0.10:53", "[fd00::a]:53", "10.0.0.1:53"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_read_again_and_a_lost_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 10.0.0.1").unwrap();
        let upstreams = Upstreams::file(path.clone());
        assert_eq!(upstreams.of(None), ["10.0.0.1:53".parse().unwrap()]);
        std::fs::remove_file(&path).unwrap();
        tokio::time::advance(RELOAD).await;
        assert_eq!(upstreams.of(None), ["10.0.0.1:53".parse().unwrap()]);
        std::fs::write(&path, "nameserver 10.0.0.2").unwrap();
        tokio::time::advance(RELOAD).await;
        assert_eq!(upstreams.of(None), ["10.0.0.2:53".parse().unwrap()]);
        let asked = "10.9.9.9:53".parse().unwrap();
        assert_eq!(upstreams.of(Some(asked)), [asked]);
    }
}
