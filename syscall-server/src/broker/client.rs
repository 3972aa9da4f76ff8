//! The tool's side of the broker: starts the session and announces changes.

use super::serve::Broker;
use crate::object::{MapObject, Member, PerfObject, ProgObject};
use bpftime_agent::run::enter::Session as RunSession;
use bpftime_shm::session::page::Page;
use bpftime_shm::session::wire::{LinkSpec, Message};
use bpftime_shm::session::{dir, sock};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::cell::Cell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A running session.
pub struct Client {
    /// The process that started it: a forked child starts its own.
    pid: u32,
    channel: OwnedFd,
    seq: u64,
    /// Whether the session knows what the task looks like.
    told_task: Cell<bool>,
    path: PathBuf,
    /// For programs that run in the tool itself.
    shared: Arc<RunSession>,
}

static CLIENT: Mutex<Option<Client>> = Mutex::new(None);

/// Ids of maps and programs the broker has been told about. Held while a link and what it needs are announced, so that
/// the broker does not forget them in between.
static ANNOUNCED: Mutex<Option<HashSet<u32>>> = Mutex::new(None);

/// The set of announced ids, unless somebody is announcing right now.
pub fn announced_if_free() -> Option<AnnouncedGuard> {
    let mut guard = match ANNOUNCED.try_lock() {
        Ok(g) => g,
        Err(std::sync::TryLockError::Poisoned(p)) => p.into_inner(),
        Err(std::sync::TryLockError::WouldBlock) => return None,
    };
    guard.get_or_insert_default();
    Some(AnnouncedGuard(guard))
}

/// The locked set.
pub struct AnnouncedGuard(MutexGuard<'static, Option<HashSet<u32>>>);

impl AnnouncedGuard {
    /// Keeps what `keep` says.
    pub fn retain(&mut self, keep: impl FnMut(&u32) -> bool) {
        if let Some(set) = self.0.as_mut() {
            set.retain(keep);
        }
    }
}

fn client() -> Result<MutexGuard<'static, Option<Client>>, Errno> {
    let mut guard = CLIENT.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.as_ref().is_none_or(|c| c.pid != std::process::id()) {
        *ANNOUNCED.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // A child's copy of its parent's client: the path is not the child's to remove.
        std::mem::forget(guard.take());
        *guard = Some(start()?);
    }
    Ok(guard)
}

/// The session for programs that run in the tool.
pub fn session() -> Result<Arc<RunSession>, Errno> {
    let guard = client()?;
    guard.as_ref().map(|c| c.shared.clone()).ok_or(Errno::AGAIN)
}

/// What [`session`] gives, for who may not start one or wait for one.
static RUNNING: Mutex<Option<(u32, Arc<RunSession>)>> = Mutex::new(None);

/// The session for programs that run in the tool, if this process has one.
pub fn running() -> Option<Arc<RunSession>> {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    running.as_ref().filter(|(pid, _)| *pid == std::process::id()).map(|(_, session)| session.clone())
}

fn start() -> Result<Client, Errno> {
    if !bpftime_agent::lifecycle::prepare() {
        return Err(Errno::NOMEM);
    }
    // CPU slots stand for CPUs a tool opens buffers on.
    let cpus = crate::cmd::map::online_cpus();
    let (page_fd, page) = Page::create(cpus)?;
    let broker_page = Page::open(&page_fd)?;
    let dir = dir::own().map_err(|e| {
        tracing::error!("{e}");
        e.errno()
    })?;
    let id = random_id();
    let path = dir.join(format!("{}-{id:016x}{}", std::process::id(), dir::SOCKET_SUFFIX));
    let pair =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let channel = crate::fds::hidden(&pair.0)?;
    spawn(id, broker_page, page_fd, pair.1, path.clone())?;
    let shared = RunSession { page, owner: AtomicU32::new(super::TOOL_OWNER.into()) };
    OWNER.store(std::process::id(), Ordering::Relaxed);
    let mut client = Client {
        pid: std::process::id(),
        channel,
        seq: 0,
        told_task: Cell::new(false),
        path,
        shared: Arc::new(shared),
    };
    client.sync()?;
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Some((client.pid, client.shared.clone()));
    crate::wait::start_waker(client.shared.clone());
    Ok(client)
}

fn random_id() -> u64 {
    let mut bytes = [0u8; 8];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    u64::from_ne_bytes(bytes) ^ std::process::id() as u64
}

/// Starts the broker's thread, all signals blocked, in a descriptor table of its own: what it needs of the tool's goes
/// over the channel.
fn spawn(id: u64, page: Page, page_fd: OwnedFd, channel: OwnedFd, path: PathBuf) -> Result<(), Errno> {
    let raw_channel = channel.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let numbers = [raw_channel.as_raw_fd(), page_fd.as_raw_fd()];
    let (ready_tx, ready_rx) = std::sync::mpsc::channel();
    let body = move || {
        std::mem::forget(bpftime_agent::hook::Mute::new());
        let serve = || -> Result<Broker, Errno> {
            let kept = bpftime_agent::fds::make_private(&[raw_channel.as_fd(), page_fd.as_fd()])?;
            // The originals' numbers mean nothing in the new table.
            std::mem::forget((raw_channel, page_fd));
            let [channel, page_fd] = kept.try_into().map_err(|_| Errno::BADF)?;
            let expected = path.parent().map(sock::present).unwrap_or_default();
            let listener = sock::listen(&path)?;
            Broker::new(id, Arc::new(page), page_fd, listener, channel, expected)
        };
        match serve() {
            Ok(broker) => {
                let _ = ready_tx.send(Ok(()));
                broker.serve();
            }
            Err(e) => drop(ready_tx.send(Err(e))),
        }
    };
    bpftime_agent::lifecycle::spawn_quiet("bpftime-broker", body).map_err(|_| Errno::AGAIN)?;
    ready_rx.recv().unwrap_or(Err(Errno::AGAIN))?;
    // The broker has its own copies in its own table now; ours would keep its channel from ever hanging up.
    for n in numbers {
        // SAFETY: the broker's thread forgot these two, so nobody else owns them in this table.
        drop(unsafe { OwnedFd::from_raw_fd(n) });
    }
    Ok(())
}

impl Client {
    fn send(&self, msg: &Message, fd: Option<BorrowedFd>) -> Result<(), Errno> {
        sock::send(self.channel.as_fd(), &msg.encode(), fd.as_slice())
    }

    /// Waits until everything sent before is in force in every agent.
    fn sync(&mut self) -> Result<(), Errno> {
        self.seq += 1;
        self.send(&Message::Sync { seq: self.seq }, None)?;
        loop {
            let msg = sock::recv(self.channel.as_fd(), false)?;
            if matches!(Message::decode(&msg.bytes)?, Message::Ack { seq, .. } if seq == self.seq) {
                return Ok(());
            }
        }
    }

    fn announce_map(&self, known: &mut HashSet<u32>, map: &MapObject) -> Result<(), Errno> {
        if known.insert(map.id) {
            self.send(&Message::Map { map: map.id }, Some(map.memfd.as_fd()))?;
            for (index, event) in map.slots.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                if let Some((fd, _)) = event.ring.get() {
                    self.send(&Message::PerfSlot { map: map.id, index: *index }, Some(fd.as_fd()))?;
                }
            }
            // Not under the map's lock: the broker may want it before it reads on.
            let members = map.held().members();
            members.into_iter().try_for_each(|m| self.announce_member(known, map.id, &m))?;
        }
        Ok(())
    }

    /// A map in a map-in-map may name the same maps again, and a program the array it is in: `known` ends that.
    fn announce_member(
        &self,
        known: &mut HashSet<u32>,
        container: u32,
        member: &Member,
    ) -> Result<(), Errno> {
        match member {
            Member::Map(map) => self.announce_map(known, map)?,
            Member::Prog(prog) => self.announce_prog(known, prog)?,
        }
        self.send(&Message::Member { container, object: member.id(), present: true }, None)
    }

    fn announce_prog(&self, known: &mut HashSet<u32>, prog: &ProgObject) -> Result<(), Errno> {
        prog.maps.iter().try_for_each(|m| self.announce_map(known, m))?;
        if prog.asks_for_task && !self.told_task.replace(true) {
            self.send(&Message::Task { rows: crate::btf::task_layout().to_vec() }, None)?;
        }
        if known.insert(prog.spec.prog) {
            self.send(&Message::Prog(prog.spec.clone()), Some(prog.image.as_fd()))?;
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Attaches a link: when this returns, every connected process that it concerns runs the program. `watch` is the end
/// whose hang-up detaches it.
pub fn attach(spec: LinkSpec, prog: &ProgObject, watch: Option<OwnedFd>) -> Result<(), Errno> {
    start_own_agent()?;
    crate::inject::ensure(spec.pid)?;
    if spec.pid <= 0 && spec.kind.is_of_file() && crate::inject::everyone::wanted() {
        crate::inject::everyone::reach((spec.dev, spec.ino));
    }
    hold(spec, prog, watch)
}

/// As [`attach`], in processes that carry the agent; not in this one, unless it does.
pub fn hold(spec: LinkSpec, prog: &ProgObject, watch: Option<OwnedFd>) -> Result<(), Errno> {
    let mut guard = client()?;
    let client = guard.as_mut().ok_or(Errno::AGAIN)?;
    let mut known = ANNOUNCED.lock().unwrap_or_else(PoisonError::into_inner);
    client.announce_prog(known.get_or_insert_default(), prog)?;
    client.send(&Message::Link(spec), watch.as_ref().map(AsFd::as_fd))?;
    // Held until the broker has read the link: what it needs must not be dropped in between.
    let done = client.sync();
    drop(known);
    done
}

/// The tool is a process like any other: functions it calls itself are traced too.
fn start_own_agent() -> Result<(), Errno> {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    drop(client()?);
    if STARTED.swap(std::process::id(), Ordering::Relaxed) != std::process::id()
        && crate::traces_itself()
        && !crate::tool::agent_is_loaded()
    {
        bpftime_agent::lifecycle::start(None);
        bpftime_agent::lifecycle::wait_ready();
    }
    Ok(())
}

/// Detaches a link: when this returns it runs nowhere any more.
pub fn detach(link: u32) -> Result<(), Errno> {
    let mut guard = client()?;
    let client = guard.as_mut().ok_or(Errno::AGAIN)?;
    client.send(&Message::Unlink { link }, None)?;
    client.sync()
}

/// Tells agents that already have `map` about an entry of a PERF_EVENT_ARRAY.
pub fn perf_slot(map: &MapObject, index: u32, event: Option<&PerfObject>) -> Result<(), Errno> {
    let Ok(guard) = CLIENT.lock() else { return Ok(()) };
    let Some(client) = guard.as_ref().filter(|c| c.pid == std::process::id()) else { return Ok(()) };
    let known = ANNOUNCED.lock().unwrap_or_else(PoisonError::into_inner);
    if known.as_ref().is_some_and(|k| k.contains(&map.id)) {
        let fd = event.and_then(|e| e.ring.get()).map(|(fd, _)| fd.as_fd());
        client.send(&Message::PerfSlot { map: map.id, index }, fd)?;
    }
    Ok(())
}

/// Tells agents that already have `map` about a program or map that is now in it, or no longer: when this returns
/// their programs find it, or none that started later does.
pub fn member(map: &MapObject, member: &Member, present: bool) -> Result<(), Errno> {
    let Ok(mut guard) = CLIENT.lock() else { return Ok(()) };
    let Some(client) = guard.as_mut().filter(|c| c.pid == std::process::id()) else { return Ok(()) };
    let mut known = ANNOUNCED.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(known) = known.as_mut().filter(|k| k.contains(&map.id)) else { return Ok(()) };
    if present {
        client.announce_member(known, map.id, member)?;
    } else {
        client.send(&Message::Member { container: map.id, object: member.id(), present }, None)?;
    }
    client.sync()
}

/// The process that started the session; a forked child is another.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Whether the session is this process's own.
pub fn is_ours() -> bool {
    OWNER.load(Ordering::Relaxed) == std::process::id()
}

/// After a close: detachments it caused are in force when this returns. A forked child that closes its copies detaches
/// nothing, and the lock may be held by a thread that only its parent has.
pub fn settle() {
    if !is_ours() {
        return;
    }
    let Ok(mut guard) = CLIENT.lock() else { return };
    if let Some(client) = guard.as_mut().filter(|c| c.pid == std::process::id()) {
        let _ = client.sync();
    }
}

/// At exit: the socket file goes. A killed tool's file goes when the next process looks at it.
pub extern "C" fn at_exit() {
    if let Ok(mut guard) = CLIENT.try_lock() {
        drop(guard.take());
    }
}

/// Runs when the library is unloaded or the process exits normally.
#[used]
#[unsafe(link_section = ".fini_array")]
static FINI: extern "C" fn() = at_exit;
