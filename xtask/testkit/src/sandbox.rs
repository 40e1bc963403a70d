//! The process that holds a host's namespaces (a pod's pause container) and makes sockets in it.
//!
//! The kernel programs judge a socket by the cgroup and network namespace of the process that
//! created it. So a test that wants to act as the pod asks this process for a socket and gets the
//! descriptor, and may then use it from its own threads. The process is a fork without exec: it
//! makes system calls and nothing else.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use parking_lot::Mutex;

use crate::spawn::{Place, namespace_of, on_spawner};

/// What the sandbox's private mount namespace differs in.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Files bound over others: (source, place).
    pub(crate) binds: Vec<(PathBuf, PathBuf)>,
    /// Mounts of the machine that the host may not see (and so not keep alive).
    pub(crate) hidden: Vec<PathBuf>,
    pub(crate) hostname: String,
}

/// A running sandbox process; it ends on drop.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pid: libc::pid_t,
    requests: Mutex<OwnedFd>,
    detached: bool,
}

impl Sandbox {
    /// Forks the process into `place`; with a `view` it gets mount and UTS namespaces of its own.
    pub(crate) fn start(place: Place, view: Option<View>) -> anyhow::Result<Self> {
        let plan = Plan::new(place, view)?;
        let detached = plan.place.detached;
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .context("making the sandbox's socket pair")?;
        let pid = on_spawner(move || {
            // SAFETY: the child calls only `Plan::child`, which makes async-signal-safe system
            // calls on memory prepared before the fork and never returns.
            match unsafe { libc::fork() } {
                -1 => Err(io::Error::last_os_error()),
                0 => plan.child(theirs.as_raw_fd()),
                pid => Ok(pid),
            }
        })?
        .context("forking the sandbox")?;
        let sandbox = Self {
            pid,
            requests: Mutex::new(ours),
            detached,
        };
        sandbox.await_ready()?;
        Ok(sandbox)
    }

    pub(crate) fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// The sandbox's mount and UTS namespaces, for processes started beside it.
    pub(crate) fn namespaces(&self) -> anyhow::Result<Vec<(OwnedFd, CloneFlags)>> {
        Ok(vec![
            namespace_of(self.pid, "uts", CloneFlags::CLONE_NEWUTS)?,
            namespace_of(self.pid, "mnt", CloneFlags::CLONE_NEWNS)?,
        ])
    }

    /// A socket made by the sandbox process.
    pub(crate) fn socket(&self, domain: i32, kind: i32, protocol: i32) -> anyhow::Result<OwnedFd> {
        let requests = self.requests.lock();
        let request = [domain, kind | libc::SOCK_CLOEXEC, protocol];
        send(requests.as_raw_fd(), &request, None).context("asking the sandbox for a socket")?;
        let (answer, socket) =
            receive(requests.as_raw_fd()).context("waiting for the sandbox's socket")?;
        match socket {
            Some(socket) => Ok(socket),
            None => Err(io::Error::from_raw_os_error(answer[1])).context("socket in the sandbox"),
        }
    }

    fn await_ready(&self) -> anyhow::Result<()> {
        let ([step, errno, _], _) =
            receive(self.requests.lock().as_raw_fd()).context("waiting for the sandbox")?;
        if step == READY {
            return Ok(());
        }
        let error = io::Error::from_raw_os_error(errno);
        bail!("setting up the sandbox failed in step {step}: {error}")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        let pid = nix::unistd::Pid::from_raw(self.pid);
        // It may have been killed with its cgroup already.
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
        nix::sys::wait::waitpid(pid, None).ok();
    }
}

const READY: i32 = 0;

/// Everything the child needs, in memory that it need not allocate.
struct Plan {
    place: Place,
    mounts: Option<Mounts>,
}

struct Mounts {
    binds: Vec<(CString, CString)>,
    hidden: Vec<CString>,
    hostname: CString,
}

impl Plan {
    fn new(place: Place, view: Option<View>) -> anyhow::Result<Self> {
        let text = |path: PathBuf| CString::new(path.into_os_string().into_encoded_bytes());
        let mounts = view
            .map(|view| -> anyhow::Result<Mounts> {
                let mut binds = Vec::new();
                for (from, to) in view.binds {
                    binds.push((text(from)?, text(to)?));
                }
                let hidden = view
                    .hidden
                    .into_iter()
                    .map(text)
                    .collect::<Result<_, _>>()?;
                Ok(Mounts {
                    binds,
                    hidden,
                    hostname: CString::new(view.hostname)?,
                })
            })
            .transpose()
            .context("a path holds a zero byte")?;
        Ok(Self { place, mounts })
    }

    fn child(&self, socket: RawFd) -> ! {
        let report = match self.enter() {
            Ok(()) => [READY, 0, 0],
            Err((step, errno)) => [step, errno, 0],
        };
        // SAFETY: system calls on integers and on memory that outlives them; the process has one
        // thread after the fork, and leaves by `_exit`.
        unsafe {
            // Holding the test's other descriptors would keep its peers from seeing them closed.
            libc::dup2(socket, 3);
            libc::syscall(libc::SYS_close_range, 4_u32, u32::MAX, 0_u32);
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            for stream in 0..3 {
                libc::dup2(null, stream);
            }
            if send(3, &report, None).is_ok() && report[0] == READY {
                serve(3);
                if self.place.detached {
                    loop {
                        libc::pause();
                    }
                }
            }
            libc::_exit(0)
        }
    }

    fn enter(&self) -> Result<(), (i32, i32)> {
        let check = |step: i32, result: libc::c_int| {
            if result < 0 {
                Err((step, nix::errno::Errno::last_raw()))
            } else {
                Ok(())
            }
        };
        // SAFETY: system calls on descriptors and strings owned by `self`.
        unsafe {
            let moved = libc::write(self.place.cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1);
            check(1, if moved < 0 { -1 } else { 0 })?;
            for (namespace, kind) in &self.place.namespaces {
                check(2, libc::setns(namespace.as_raw_fd(), kind.bits()))?;
            }
            check(3, libc::setsid())?;
            libc::prctl(libc::PR_SET_NAME, c"sandbox".as_ptr());
            if !self.place.detached {
                check(4, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            }
            let Some(mounts) = &self.mounts else {
                return Ok(());
            };
            check(5, libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS))?;
            let null = std::ptr::null();
            // Slave, not private: an unmount on the machine must reach here or it would not end
            // the namespace or file system it was meant to end.
            let flags = libc::MS_REC | libc::MS_SLAVE;
            check(
                6,
                libc::mount(null, c"/".as_ptr(), null, flags, null.cast()),
            )?;
            for path in &mounts.hidden {
                // Another run may have removed its mount in the meantime.
                libc::umount2(path.as_ptr(), libc::MNT_DETACH);
            }
            for (from, to) in &mounts.binds {
                let bound =
                    libc::mount(from.as_ptr(), to.as_ptr(), null, libc::MS_BIND, null.cast());
                check(7, bound)?;
            }
            let name = mounts.hostname.as_bytes();
            check(8, libc::sethostname(name.as_ptr().cast(), name.len()))
        }
    }
}

/// Answers requests for sockets until the test closes its end.
fn serve(socket: RawFd) {
    while let Ok(([domain, kind, protocol], _)) = receive(socket) {
        // SAFETY: a system call on integers; the descriptor is checked before it is owned.
        let made = unsafe { libc::socket(domain, kind, protocol) };
        let errno = nix::errno::Errno::last_raw();
        // SAFETY: `made` is a new descriptor that nothing else owns.
        let made = (made >= 0).then(|| unsafe { OwnedFd::from_raw_fd(made) });
        let passed = made.as_ref().map(AsRawFd::as_raw_fd);
        if send(socket, &[0, errno, 0], passed).is_err() {
            return;
        }
    }
}

type Message = [i32; 3];

/// Room for one descriptor's control message, aligned for `cmsghdr`.
type Control = [u64; 4];

fn send(socket: RawFd, message: &Message, passed: Option<RawFd>) -> io::Result<()> {
    let mut control: Control = [0; 4];
    let mut part = libc::iovec {
        iov_base: message.as_ptr().cast_mut().cast(),
        iov_len: size_of::<Message>(),
    };
    // SAFETY: a zeroed msghdr is an empty one; every pointer put in outlives the call, and the
    // control buffer has room for one descriptor.
    let sent = unsafe {
        let mut header: libc::msghdr = MaybeUninit::zeroed().assume_init();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if let Some(fd) = passed {
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(4) as usize;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd);
        }
        libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL)
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn receive(socket: RawFd) -> io::Result<(Message, Option<OwnedFd>)> {
    let mut message: Message = [0; 3];
    let mut control: Control = [0; 4];
    let mut part = libc::iovec {
        iov_base: message.as_mut_ptr().cast(),
        iov_len: size_of::<Message>(),
    };
    // SAFETY: as in `send`; a received descriptor is new and owned by nobody else.
    unsafe {
        let mut header: libc::msghdr = MaybeUninit::zeroed().assume_init();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of::<Control>();
        let got = libc::recvmsg(socket, &raw mut header, libc::MSG_CMSG_CLOEXEC);
        match got {
            -1 => return Err(io::Error::last_os_error()),
            0 => return Err(io::Error::from_raw_os_error(libc::EPIPE)),
            _ => {}
        }
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        let passed = (!first.is_null() && (*first).cmsg_type == libc::SCM_RIGHTS)
            .then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned()));
        Ok((message, passed))
    }
}
