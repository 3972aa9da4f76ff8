//! The holder's process.

use super::{LOCK, SUFFIX};
use crate::fds::Access;
use crate::object::{self, Object};
use crate::{broker, cmd, elsewhere, fds};
use bpftime_shm::session::inspect::{self, Kind, Reply, Request};
use bpftime_shm::session::wire::Message;
use bpftime_shm::session::{dir, sock};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A file that stands for an object.
struct Pin {
    kind: Kind,
    id: u32,
    /// The file, whatever it is called: an O_PATH descriptor, which keeps its inode from being used for another.
    file: OwnedFd,
    /// A descriptor of the object: what is alive in this session, by the rule that holds for every tool.
    object: OwnedFd,
}

/// A link that this session attaches, while any descriptor of it is open anywhere.
struct Held {
    id: u32,
    /// Our end of its pair: hung up when the last one is closed.
    watch: OwnedFd,
}

struct Holder {
    dir: PathBuf,
    socket: PathBuf,
    listener: OwnedFd,
    /// Tells when a file that is a pin loses a name.
    changes: OwnedFd,
    pins: Vec<Pin>,
    links: Vec<Held>,
}

/// How often files are looked at although nothing was told: some file systems tell nothing.
const LOOK: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// How often a holder without pins tries to end: a tool that started it is about to ask.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long a tool may take to say what it wants.
const REQUEST_LIMIT: Duration = Duration::from_millis(500);

/// Keeps pins until there are none. `ready` is called once tools can ask.
pub fn serve(ready: impl FnOnce()) -> Result<(), Errno> {
    super::IS_THIS.store(true, Ordering::Relaxed);
    crate::tool::become_tool();
    let mut holder = Holder::new()?;
    ready();
    loop {
        holder.wait();
        holder.forget();
        while let Ok(conn) = sock::accept(holder.listener.as_fd()) {
            if let Err(errno) = holder.converse(&conn) {
                tracing::debug!(%errno, "request not answered");
            }
        }
        if holder.may_end() {
            return Ok(());
        }
    }
}

impl Holder {
    fn new() -> Result<Self, Errno> {
        let dir = dir::own().map_err(|_| Errno::ACCESS)?;
        // Agents and other tools find the session from now on.
        drop(broker::session()?);
        let socket = dir.join(format!("{}{SUFFIX}", std::process::id()));
        let listener = sock::listen(&socket)?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { dir, socket, listener, changes, pins: Vec::new(), links: Vec::new() })
    }

    fn wait(&self) {
        let mut fds =
            vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.changes, PollFlags::IN)];
        fds.extend(self.links.iter().map(|l| PollFd::new(&l.watch, PollFlags::empty())));
        let limit = if self.is_idle() { IDLE } else { LOOK };
        let _ = rustix::event::poll(&mut fds, Some(&limit));
        let mut told = [0; 4096];
        while rustix::io::read(&self.changes, &mut told).is_ok_and(|n| n > 0) {}
    }

    /// Lets go of pins whose file has no name any more, and of links that nobody has.
    fn forget(&mut self) {
        self.pins.retain(|pin| {
            let st = rustix::fs::statat(&pin.file, c"", AtFlags::EMPTY_PATH);
            st.is_ok_and(|st| st.st_nlink > 0)
        });
        self.links.retain(|link| {
            let mut fds = [PollFd::new(&link.watch, PollFlags::empty())];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&now)) == Ok(0)
        });
    }

    fn is_idle(&self) -> bool {
        self.pins.is_empty() && self.links.is_empty()
    }

    /// Whether this was all: nothing is held, nobody is pinning, nobody waits for an answer.
    fn may_end(&self) -> bool {
        if !self.is_idle() {
            return false;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = rustix::fs::open(self.dir.join(LOCK), flags, Mode::RUSR | Mode::WUSR);
        // Without its directory nobody can find it.
        let alone = lock
            .as_ref()
            .map_or(true, |lock| rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok());
        let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
        let waits = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(0);
        if alone && !waits {
            let _ = std::fs::remove_file(&self.socket);
            // Stays when there are directories in it.
            let _ = std::fs::remove_dir(self.dir.join(crate::files::bpffs::NAME));
        }
        alone && !waits
    }

    fn converse(&mut self, conn: &OwnedFd) -> Result<(), Errno> {
        sock::set_timeout(conn, REQUEST_LIMIT)?;
        let (_, uid) = sock::peer(conn.as_fd())?;
        if uid != rustix::process::getuid().as_raw() {
            return Err(Errno::PERM);
        }
        let msg = sock::recv(conn.as_fd(), false)?;
        let Message::Inspect(request) = Message::decode(&msg.bytes)? else { return Err(Errno::PROTO) };
        let answered = match request {
            Request::Pin(kind, id, path) => {
                let path = Path::new(OsStr::from_bytes(&path));
                self.pin(kind, id, path, msg.fds.into_iter().next()).map(|()| (Reply::Done, None))
            }
            Request::Pinned(dev, ino) => self.pinned((dev, ino)),
            _ => Err(Errno::PROTO),
        };
        let (reply, fd) = answered.unwrap_or_else(|e| (Reply::Refused(e.raw_os_error()), None));
        inspect::answer(conn.as_fd(), reply, fd.as_ref().map(AsFd::as_fd))
    }

    fn pin(&mut self, kind: Kind, id: u32, path: &Path, theirs: Option<OwnedFd>) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        drop(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
        let pinned = self.object(kind, id, theirs).and_then(|object| {
            let file =
                rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            inotify::add_watch(&self.changes, path, WatchFlags::ATTRIB | WatchFlags::DELETE_SELF)?;
            Ok(Pin { kind, id, file, object })
        });
        match pinned {
            Ok(pin) => self.pins.push(pin),
            Err(errno) => {
                let _ = std::fs::remove_file(path);
                return Err(errno);
            }
        }
        Ok(())
    }

    /// A descriptor of the object: of one that is held already, else of the asking tool's.
    fn object(&mut self, kind: Kind, id: u32, theirs: Option<OwnedFd>) -> Result<OwnedFd, Errno> {
        if let Some(pin) = self.pins.iter().find(|p| (p.kind, p.id) == (kind, id)) {
            return rustix::io::fcntl_dupfd_cloexec(&pin.object, 3);
        }
        if kind != Kind::Link {
            return cmd::info::descriptor(kind, id, Access::Both);
        }
        // A link that was pinned before, and lives on in the tool's descriptor.
        if self.links.iter().any(|l| l.id == id) {
            let theirs = theirs.ok_or(Errno::PROTO)?;
            let known = object::of_file(fds::identity(theirs.as_fd())?);
            return if matches!(known, Some(Object::Link(l)) if l.id == id) {
                Ok(theirs)
            } else {
                Err(Errno::AGAIN)
            };
        }
        let (fd, watch) = elsewhere::take_over(id)?;
        self.links.push(Held { id, watch });
        Ok(fd)
    }

    fn pinned(&self, file: (u64, u64)) -> Result<(Reply, Option<OwnedFd>), Errno> {
        let is = |pin: &&Pin| {
            let st = rustix::fs::statat(&pin.file, c"", AtFlags::EMPTY_PATH);
            st.is_ok_and(|st| (st.st_dev, st.st_ino) == file)
        };
        let pin = self.pins.iter().find(is).ok_or(Errno::NOENT)?;
        let link = (pin.kind == Kind::Link).then(|| rustix::io::fcntl_dupfd_cloexec(&pin.object, 3));
        Ok((Reply::Pinned(pin.kind, pin.id), link.transpose()?))
    }
}
