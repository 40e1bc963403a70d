//! What becomes of given connections when the giver is gone: theirs who hold its will, unless revoked.
//!
//! The end of a conversation does not tell why it ended, and a message that does may find the socket
//! full. So both sides share a memory file. While it is empty, a giver that is gone has died silent, and
//! what it had given and not let go is the taker's. A giver that goes on with its connections makes the
//! file longer first, which nobody has to receive.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// One side's hold on the file.
#[derive(Debug)]
pub struct Will(File);

impl Will {
    /// A will that holds.
    ///
    /// # Errors
    /// When memory or descriptors are short.
    pub fn new() -> io::Result<Self> {
        let file = memfd_create(c"millrace-will", MFdFlags::MFD_CLOEXEC)?;
        Ok(Self(file.into()))
    }

    /// What was given and not let go stays with the giver from here on.
    ///
    /// # Errors
    /// When the file cannot grow.
    pub fn revoke(&self) -> io::Result<()> {
        self.0.set_len(1)
    }

    /// Whether the giver has not revoked it. What cannot be asked holds nothing.
    pub fn holds(&self) -> bool {
        self.0.metadata().is_ok_and(|file| file.len() == 0)
    }
}

impl From<OwnedFd> for Will {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl AsFd for Will {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_will_is_revoked_for_all_who_hold_it() {
        let will = Will::new().unwrap();
        let held = Will::from(will.as_fd().try_clone_to_owned().unwrap());
        assert!(held.holds());
        will.revoke().unwrap();
        drop(will);
        assert!(!held.holds());
    }
}
