//! One session as this process knows it: what the tool announced, and what of it is linked here.

use super::places::Points;
use crate::run::MapHandle;
use crate::run::enter::Session as RunSession;
use crate::run::image::Program;
use crate::run::shadow::Layout;
use bpftime_shm::session::page::Page;
use bpftime_shm::session::sock;
use bpftime_shm::session::wire::{InForce, LinkKind, LinkSpec, Message, NO_STATS, ProgSpec, unseen};
use bpftime_shm::{Map, PerfRing};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A link and where it stands in this process.
pub struct Link {
    /// What the tool asked for.
    pub spec: LinkSpec,
    /// No other link of this process was or will be called so.
    pub serial: u32,
    /// Gate of all its entries.
    pub enabled: Arc<AtomicBool>,
    /// Its program.
    pub program: Arc<Program>,
    /// The points of `spec`, of which it has none itself.
    pub points: Points,
}

/// A connected session.
pub struct Session {
    /// Identity over reconnects.
    pub id: u64,
    /// Socket file it was found at.
    pub path: PathBuf,
    /// The connection; gone in a forked child until it has its own.
    pub sock: Option<OwnedFd>,
    /// What its programs need at run time.
    pub shared: Arc<RunSession>,
    maps: HashMap<u32, Arc<MapHandle>>,
    programs: HashMap<u32, Arc<Program>>,
    /// The programs' rows of run statistics.
    stats: HashMap<u32, u32>,
    /// Whether runs are counted (BPF_ENABLE_STATS).
    pub counting: bool,
    /// What the tool takes the task to look like.
    task: Option<Arc<Layout>>,
    /// Programs in prog arrays and maps in maps, by container and id: kept alive for the containers' tables.
    members: HashMap<(u32, u32), Object>,
    /// Links by id.
    pub links: HashMap<u32, Link>,
    /// Points placed in this process, over all links.
    pub sites: u32,
    /// Points that could not be placed, for the tool's listing.
    pub refused: u32,
    /// Links that were taken off because their program faulted or did not end.
    pub failed: Vec<u32>,
    /// Links named since the connection was made, until the first `Sync`.
    named: Option<HashSet<u32>>,
}

/// The bit of [`unseen`] that concerns such links.
fn bit_of(kind: LinkKind) -> u32 {
    match kind {
        LinkKind::Syscall(_) | LinkKind::Task(_) => unseen::CALLS,
        LinkKind::Counter(_) => unseen::EVENTS,
        LinkKind::Uprobe | LinkKind::Session | LinkKind::Sample(_) => 0,
    }
}

/// See [`Link::serial`]. Never 0.
fn next_serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A program or map that a running program may be using.
pub type Object = Arc<dyn Any + Send + Sync>;

/// What the control thread has to do after a message.
pub enum Todo {
    /// Nothing.
    Nothing,
    /// Place link `.0`.
    Attach(u32),
    /// Take link `.0` off.
    Detach(u32),
    /// Make all lists of the session again.
    Recount,
    /// Let go of this when no thread runs a program.
    Retire(Object),
    /// Publish, wait for readers, then acknowledge.
    Ack(u64),
}

impl Session {
    /// Connects to the session at `path`; waits for its page.
    pub fn connect(path: PathBuf) -> Result<Self, Errno> {
        let sock = sock::connect(&path)?;
        let (_, uid) = sock::peer(sock.as_fd())?;
        if uid != rustix::process::getuid().as_raw() && uid != 0 {
            return Err(Errno::PERM);
        }
        let hello = Message::Hello { version: bpftime_shm::session::wire::VERSION };
        sock::send(sock.as_fd(), &hello.encode(), &[])?;
        let msg = sock::recv(sock.as_fd(), false)?;
        let Message::Welcome { session, owner, .. } = Message::decode(&msg.bytes)? else {
            return Err(Errno::PROTO);
        };
        let page = Page::open(msg.fds.first().ok_or(Errno::PROTO)?)?;
        Ok(Self {
            id: session,
            path,
            sock: Some(sock),
            shared: Arc::new(RunSession { page, owner: AtomicU32::new(owner) }),
            maps: HashMap::new(),
            programs: HashMap::new(),
            stats: HashMap::new(),
            counting: false,
            task: None,
            members: HashMap::new(),
            links: HashMap::new(),
            sites: 0,
            refused: 0,
            failed: Vec::new(),
            named: Some(HashSet::new()),
        })
    }

    /// Takes over the connection that a forked child made for itself.
    pub fn adopt(&mut self, fresh: Session) {
        self.sock = fresh.sock;
        self.shared.owner.store(fresh.shared.owner.load(Ordering::Relaxed), Ordering::Relaxed);
        self.named = Some(HashSet::new());
        self.maps.values().for_each(|m| m.map.set_owner(self.owner()));
    }

    /// This process's index in the session, as maps record it.
    fn owner(&self) -> u16 {
        self.shared.owner.load(Ordering::Relaxed) as u16
    }

    /// A program's row of run statistics.
    pub fn stats_row(&self, prog: u32) -> u32 {
        self.stats.get(&prog).copied().unwrap_or(NO_STATS)
    }

    /// The connection, to wait on.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.sock.as_ref().map(AsFd::as_fd)
    }

    /// Takes one message off the socket if there is one.
    pub fn receive(&mut self) -> Result<Option<Vec<Todo>>, Errno> {
        let Some(sock) = &self.sock else { return Ok(None) };
        match sock::recv(sock.as_fd(), true) {
            Err(Errno::AGAIN) => Ok(None),
            Err(e) => Err(e),
            Ok(msg) => self.apply(Message::decode(&msg.bytes)?, msg.fds.into_iter().next()).map(Some),
        }
    }

    fn apply(&mut self, msg: Message, fd: Option<OwnedFd>) -> Result<Vec<Todo>, Errno> {
        match msg {
            Message::Map { map } => self.add_map(map, fd.ok_or(Errno::PROTO)?)?,
            Message::PerfSlot { map, index } => self.set_perf_slot(map, index, fd)?,
            Message::Task { rows } => self.task = Some(Arc::new(Layout::new(&rows))),
            Message::Member { container, object, present: true } => self.add_member(container, object)?,
            Message::Member { container, object, present: false } => {
                return Ok(self.remove_member(container, object).into_iter().collect());
            }
            Message::Prog(spec) => self.add_program(&spec, fd.ok_or(Errno::PROTO)?)?,
            Message::Link(spec) => return Ok(self.add_link(spec)),
            Message::Unlink { link } => return Ok(vec![Todo::Detach(link)]),
            Message::Stats { on } => {
                self.counting = on;
                return Ok(vec![Todo::Recount]);
            }
            Message::Drop { progs, maps } => {
                progs.iter().for_each(|p| drop((self.programs.remove(p), self.stats.remove(p))));
                maps.iter().for_each(|m| drop(self.maps.remove(m)));
                let gone: Vec<_> = self.members.extract_if(|(c, _), _| maps.contains(c)).collect();
                return Ok(gone.into_iter().map(|(_, object)| Todo::Retire(object)).collect());
            }
            Message::Sync { seq } => return Ok(self.sync(seq)),
            _ => return Err(Errno::PROTO),
        }
        Ok(vec![Todo::Nothing])
    }

    fn add_map(&mut self, id: u32, fd: OwnedFd) -> Result<(), Errno> {
        if !self.maps.contains_key(&id) {
            let handle = MapHandle::new(Map::open(fd.as_fd())?);
            handle.map.set_owner(self.owner());
            self.maps.insert(id, Arc::new(handle));
        }
        Ok(())
    }

    /// The container's programs find the object from now on. Nothing else than what the tool announced, of the kind
    /// that the container takes, gets into its table: a peer that writes ids into shared memory finds no other.
    fn add_member(&mut self, container: u32, object: u32) -> Result<(), Errno> {
        let holder = self.maps.get(&container).ok_or(Errno::PROTO)?;
        let members = holder.map.members().ok_or(Errno::PROTO)?;
        let inner = holder.map.def().inner;
        if inner.map_type != 0 {
            let map = self.maps.get(&object).filter(|m| inner.admits(m.map.def())).ok_or(Errno::PROTO)?;
            members.set(object, Arc::as_ptr(map).cast());
            self.members.insert((container, object), map.clone());
        } else if let Some(program) = self.programs.get(&object) {
            // One that could not be linked here is not there: tail calls to it fail.
            members.set(object, Arc::as_ptr(program).cast());
            self.members.insert((container, object), program.clone());
        }
        Ok(())
    }

    /// What programs may be using beside the maps they name, which they keep alive themselves.
    pub fn take_objects(&mut self) -> impl Iterator<Item = Object> {
        std::mem::take(&mut self.members).into_values()
    }

    fn remove_member(&mut self, container: u32, object: u32) -> Option<Todo> {
        if let Some(members) = self.maps.get(&container).and_then(|m| m.map.members()) {
            members.set(object, std::ptr::null());
        }
        self.members.remove(&(container, object)).map(Todo::Retire)
    }

    fn set_perf_slot(&mut self, map: u32, index: u32, fd: Option<OwnedFd>) -> Result<(), Errno> {
        let array = self.maps.get(&map).and_then(|m| m.map.perf_event_array()).ok_or(Errno::PROTO)?;
        let ring = fd.map(|fd| PerfRing::open(fd.as_fd())).transpose()?;
        // A program may be writing the old ring at this moment. Rings are replaced when a tool restarts its
        // consumer, which is rare, so the old mapping is left in place.
        std::mem::forget(array.set_slot(index, ring)?);
        Ok(())
    }

    fn add_program(&mut self, spec: &ProgSpec, fd: OwnedFd) -> Result<(), Errno> {
        if self.programs.contains_key(&spec.prog) {
            return Ok(());
        }
        let maps: Option<Vec<_>> = spec.maps.iter().map(|m| self.maps.get(m).cloned()).collect();
        let bytes = bpftime_shm::session::sealed::read(fd.as_fd())?;
        // A process without executable memory (SELinux execmem, PR_SET_MDWE) goes on without the program.
        if let Ok(program) = Program::link(&bytes, maps.ok_or(Errno::PROTO)?) {
            if program.asks_for_build_ids() {
                crate::run::build_id::use_from_now();
            }
            self.programs.insert(spec.prog, Arc::new(program.with_task(self.task.clone())));
            self.stats.insert(spec.prog, spec.stats);
        }
        Ok(())
    }

    fn add_link(&mut self, mut spec: LinkSpec) -> Vec<Todo> {
        let id = spec.link;
        if let Some(named) = &mut self.named {
            named.insert(id);
        }
        if self.links.contains_key(&id) {
            return vec![];
        }
        // A program that cannot be linked here (no executable memory) was left out above: nothing to attach.
        let Some(program) = self.programs.get(&spec.prog).cloned() else { return vec![] };
        if program.task.is_some() {
            crate::run::shadow::refresh();
        }
        let enabled = Arc::new(AtomicBool::new(true));
        let points = Points::new(&std::mem::take(&mut spec.points));
        self.links.insert(id, Link { spec, serial: next_serial(), enabled, program, points });
        vec![Todo::Attach(id)]
    }

    fn sync(&mut self, seq: u64) -> Vec<Todo> {
        let mut todo = Vec::new();
        if let Some(named) = self.named.take() {
            todo.extend(self.links.keys().filter(|id| !named.contains(id)).map(|id| Todo::Detach(*id)));
        }
        todo.push(Todo::Ack(seq));
        todo
    }

    /// Tells the tool that everything up to `seq` is in force, but for what is `unseen` in this process.
    pub fn ack(&self, seq: u64, unseen: u32) -> Result<(), Errno> {
        let asked = self.links.values().map(|l| bit_of(l.spec.kind)).fold(0, |bits, bit| bits | bit);
        let in_force = InForce {
            sites: self.sites,
            refused: self.refused,
            unseen: unseen & asked,
            failed: self.failed.clone(),
        };
        let msg = Message::Ack { seq, in_force };
        self.fd().map_or(Ok(()), |sock| sock::send(sock, &msg.encode(), &[]))
    }
}
