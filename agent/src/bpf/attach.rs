//! Attaching: one pinned link per program at the node's cgroup, replaced in one step where there is one.
//!
//! Ours run before everybody else's. What a service's address is rewritten to by another program first (a CNI's
//! socket load balancer) would reach the proxy as the destination, and nobody would know the service; ours leave
//! a loopback address behind, which no load balancer has a service for. Answers are then undone by who changed
//! the question, so the programs that hide a rewrite come first as well.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::loader::{Adoption, Bpf};
use super::pins::unpin;
use super::programs::{CgroupProgram, LOOKUP, MESSAGE, PROMOTE};
use super::sys::{self, LinkInfo};
use super::{BpfError, object};

enum Outcome {
    Attached,
    Kept,
    Replaced,
}

impl Bpf {
    /// Attaches every program, or brings its link up to date. If one cannot be attached, those that this
    /// call attached are detached again: half a set would redirect without answering for it.
    pub(super) fn attach_all(&mut self) -> Result<(), BpfError> {
        let mut adoption = Adoption {
            pods: self.enrolled()?.len(),
            ..Adoption::default()
        };
        let mut made = Vec::new();
        for (program, fd) in &self.programs {
            let path = self.pins.link(program.name);
            match self.attach(*program, fd.as_fd(), &path) {
                Ok(Outcome::Attached) => {
                    adoption.attached += 1;
                    made.push(path);
                }
                Ok(Outcome::Kept) => adoption.kept += 1,
                Ok(Outcome::Replaced) => adoption.replaced += 1,
                Err(error) => {
                    for path in made {
                        unpin(&path)?;
                    }
                    return Err(error);
                }
            }
        }
        adoption.replaced += self.refresh_lookups()?;
        for (program, fd) in &self.programs {
            object::pin(&self.pins, program.name, fd)?;
        }
        object::pin(&self.pins, LOOKUP, &self.lookup)?;
        if let Ok(accel) = &self.accel {
            object::pin(&self.pins, MESSAGE, &accel.message)?;
            object::pin(&self.pins, PROMOTE, &accel.promote)?;
        }
        tracing::info!(?adoption, cgroup = %self.cgroup.display(), "eBPF programs in place");
        self.adoption = adoption;
        Ok(())
    }

    fn attach(
        &self,
        program: CgroupProgram,
        fd: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<Outcome, BpfError> {
        let error = |source| BpfError::Attach {
            program: program.name,
            target: self.cgroup.display().to_string(),
            source,
        };
        // The id of a cgroup is the inode of its directory.
        let wanted = fs::metadata(&self.cgroup).map_err(error)?.ino();
        let mut stale = false;
        match sys::get(path) {
            Ok(link) => {
                let info =
                    sys::link_info(link.as_fd()).map_err(BpfError::bpffs("examining", path))?;
                if info.cgroup_id() == wanted {
                    if has_program(info, fd) {
                        return Ok(Outcome::Kept);
                    }
                    sys::link_update(link.as_fd(), fd).map_err(error)?;
                    return Ok(Outcome::Replaced);
                }
                // Detached by somebody, attached elsewhere, or to a cgroup that is gone.
                stale = true;
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(BpfError::bpffs("opening", path)(source)),
        }
        let cgroup = File::open(&self.cgroup).map_err(error)?;
        let link =
            sys::link_create_first(fd, cgroup.as_fd(), program.attach_type).map_err(error)?;
        if stale {
            // Only now that ours is in place.
            unpin(path)?;
        }
        sys::pin(link.as_fd(), path).map_err(BpfError::bpffs("pinning", path))?;
        Ok(Outcome::Attached)
    }
}

impl Bpf {
    /// Attaches the program of a hook anew, before all that are attached now. Both are attached for a moment;
    /// the second to see a connection finds a loopback address and leaves it alone.
    pub(super) fn attach_first(&self, hook: &str) -> Result<(), BpfError> {
        let found = self
            .programs
            .iter()
            .find(|(program, _)| program.hook() == hook);
        let Some((program, fd)) = found else {
            return Ok(());
        };
        let path = self.pins.link(program.name);
        let error = |source| BpfError::Attach {
            program: program.name,
            target: self.cgroup.display().to_string(),
            source,
        };
        let cgroup = File::open(&self.cgroup).map_err(error)?;
        let link = sys::link_create_first(fd.as_fd(), cgroup.as_fd(), program.attach_type)
            .map_err(error)?;
        unpin(&path)?;
        sys::pin(link.as_fd(), &path).map_err(BpfError::bpffs("pinning", &path))
    }
}

/// Whether a link has this very program.
pub(super) fn has_program(link: LinkInfo, program: BorrowedFd<'_>) -> bool {
    sys::program_id(program).is_ok_and(|id| id == link.program_id)
}
