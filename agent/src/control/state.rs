//! Everything the control thread knows, and the steps that change it.

use super::attach::{Dirty, Sites, disable, disable_all};
use super::session::{Link, Session, Todo};
use crate::hook::Engine;
use crate::memory::Reserve;
use crate::resolve;
use crate::run::enter::ABANDONED;
use bpftime_shm::session::{dir, sock};
use rustix::io::Errno;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Sessions and probes of this process.
pub struct State {
    /// Connected sessions, oldest first.
    pub sessions: Vec<Session>,
    sites: Sites,
    /// Directories to look for sessions in.
    pub dirs: Vec<PathBuf>,
    /// Socket files of sessions that ended, and how often to look at them yet: the kernel may close a killed tool's
    /// connections before its listener.
    leftovers: Vec<(PathBuf, u8)>,
    /// Sessions that did not answer, and when.
    silent: HashMap<PathBuf, Instant>,
    /// [`ABANDONED`] when links were last looked at.
    abandoned: u64,
}

/// What stands in this process, for tests and listings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Connected sessions.
    pub sessions: usize,
    /// Probes placed, over all links.
    pub placed: usize,
}

impl State {
    /// No sessions yet.
    pub fn new(engine: Engine, dirs: Vec<PathBuf>) -> Self {
        Self {
            sessions: Vec::new(),
            sites: Sites::new(engine),
            dirs,
            leftovers: Vec::new(),
            silent: HashMap::new(),
            abandoned: 0,
        }
    }

    /// What stands now.
    pub fn summary(&self) -> Summary {
        let placed = self.sessions.iter().map(|s| s.sites as usize).sum();
        Summary { sessions: self.sessions.len(), placed }
    }

    /// Connects to sessions that appeared.
    pub fn discover(&mut self) {
        for dir in self.dirs.clone() {
            for path in dir::sockets(&dir) {
                let known = self.sessions.iter().any(|s| s.path == path && s.sock.is_some());
                if known || self.silent.get(&path).is_some_and(|since| since.elapsed() < SILENCE) {
                    continue;
                }
                match Session::connect(path.clone()) {
                    Ok(fresh) => self.welcome(fresh),
                    Err(Errno::CONNREFUSED) => drop(std::fs::remove_file(&path)),
                    // A tool that is stopped, or of another version: asked again after a while.
                    Err(_) => drop(self.silent.insert(path, Instant::now())),
                }
            }
        }
        // After fork: sessions that did not come back are gone.
        let lost: Vec<u64> = self.sessions.iter().filter(|s| s.sock.is_none()).map(|s| s.id).collect();
        lost.into_iter().for_each(|id| self.end(id));
    }

    fn welcome(&mut self, fresh: Session) {
        let id = fresh.id;
        match self.sessions.iter_mut().find(|s| s.id == id) {
            Some(known) => known.adopt(fresh),
            None => self.sessions.push(fresh),
        }
        self.catch_up(id);
    }

    /// Reads a new connection up to its first `Sync`, at most a second: the caller may be a process's start.
    fn catch_up(&mut self, id: u64) {
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            match self.pump(id) {
                Pumped::Acked | Pumped::Gone => return,
                Pumped::Something => {}
                Pumped::Nothing => self.wait_readable(id),
            }
        }
    }

    fn wait_readable(&self, id: u64) {
        let Some(fd) = self.sessions.iter().find(|s| s.id == id).and_then(Session::fd) else { return };
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
    }

    /// Handles all messages that wait on all sessions.
    pub fn pump_all(&mut self) {
        let ids: Vec<u64> = self.sessions.iter().map(|s| s.id).collect();
        for id in ids {
            while matches!(self.pump(id), Pumped::Something | Pumped::Acked) {}
        }
    }

    /// Takes off links whose program was abandoned, and says so.
    pub fn take_off_failed(&mut self) {
        // Acquire: pairs with the Release in `abandoned`, which turned the link off before. Looking at all links in each
        // round would cost a tool with thousands of them as many looks for each it adds.
        let abandoned = ABANDONED.load(std::sync::atomic::Ordering::Acquire);
        if std::mem::replace(&mut self.abandoned, abandoned) == abandoned {
            return;
        }
        let ids: Vec<u64> = self.sessions.iter().map(|s| s.id).collect();
        for id in ids {
            let mut dirty = Dirty::new();
            let Some(session) = self.sessions.iter_mut().find(|s| s.id == id) else { continue };
            let disabled = |l: &Link| !l.enabled.load(std::sync::atomic::Ordering::Relaxed);
            let failed: Vec<u32> =
                session.links.iter().filter(|(_, l)| disabled(l)).map(|(link, _)| *link).collect();
            for link in &failed {
                self.sites.take_off(session, *link, &mut dirty);
            }
            if !failed.is_empty() {
                session.failed.extend(failed);
                self.settle(dirty);
                self.ack(id, 0);
            }
        }
    }

    /// Handles waiting messages of one session up to the next acknowledgement: links that come in one go are
    /// published in one go.
    fn pump(&mut self, id: u64) -> Pumped {
        let mut dirty = Dirty::new();
        let mut seen = Pumped::Nothing;
        let mut maps = None;
        // Out of memory, the loop abandons everything.
        while !Reserve::in_use() {
            let Some(session) = self.sessions.iter_mut().find(|s| s.id == id) else { return Pumped::Gone };
            match session.receive() {
                Ok(None) => break,
                Ok(Some(todo)) => {
                    seen = Pumped::Something;
                    for t in todo {
                        let Some(session) = self.sessions.iter_mut().find(|s| s.id == id) else { break };
                        match t {
                            Todo::Nothing => {}
                            Todo::Attach(link) => {
                                let maps =
                                    maps.get_or_insert_with(|| resolve::mappings().unwrap_or_default());
                                self.sites.place(session, link, maps, &mut dirty);
                                let kind = session.links.get(&link).map(|l| l.spec.kind);
                                kind.into_iter().for_each(|k| self.sites.note_change(k));
                            }
                            Todo::Detach(link) => self.detach(id, link, &mut dirty),
                            Todo::Recount => self.sites.recount(session, &mut dirty),
                            Todo::Retire(object) => self.sites.retire(object),
                            Todo::Ack(seq) => {
                                self.settle(std::mem::take(&mut dirty));
                                return self.ack(id, seq);
                            }
                        }
                    }
                }
                Err(_) => {
                    self.end(id);
                    return Pumped::Gone;
                }
            }
        }
        self.settle(dirty);
        seen
    }

    fn detach(&mut self, id: u64, link: u32, dirty: &mut Dirty) {
        let Some(at) = self.sessions.iter().position(|s| s.id == id) else { return };
        disable(&self.sessions[at], link, &self.sessions);
        self.sites.take_off(&mut self.sessions[at], link, dirty);
    }

    fn ack(&mut self, id: u64, seq: u64) -> Pumped {
        let unseen = self.sites.unseen();
        let sent = self.sessions.iter().find(|s| s.id == id).map(|s| s.ack(seq, unseen));
        if matches!(sent, Some(Ok(()))) {
            return Pumped::Acked;
        }
        self.end(id);
        Pumped::Gone
    }

    fn settle(&mut self, dirty: Dirty) {
        self.sites.publish(&mut self.sessions, dirty);
        self.sites.publish_calls(&self.sessions);
        self.sites.publish_samples(&self.sessions);
        if self.sessions.iter().any(|s| !s.links.is_empty()) {
            self.sites.watch_linker(super::r#loop::on_linker_change);
        } else {
            self.sites.unwatch_linker();
        }
        self.sites.collect_garbage();
    }

    /// Finishes what had to wait: patches for a thread, socket files for their tool's end. Tells whether some still do.
    pub fn finish(&mut self) -> bool {
        self.leftovers.retain_mut(|(path, tries)| {
            *tries -= 1;
            *tries > 0 && !remove_if_dead(path)
        });
        self.silent.retain(|path, _| path.exists());
        self.sites.upgrade() || !self.leftovers.is_empty()
    }

    /// How soon [`State::follow_threads`] has to be called, while links sample.
    pub fn samples(&mut self) -> Option<Duration> {
        self.sites.sampling()
    }

    /// Samples threads that are new; tells when to be called again.
    pub fn follow_threads(&mut self) -> Option<Duration> {
        self.sites.follow_threads();
        self.sites.sampling()
    }

    /// Whether a session is to be asked again although nothing wakes us.
    pub fn wants_retry(&self) -> bool {
        !self.silent.is_empty()
    }

    /// The control thread cannot go on: no program runs any more, the text is restored, and what a thread may still be
    /// reading stays where it is.
    pub fn abandon(self) {
        self.sessions.iter().for_each(|s| disable_all(s, &[]));
        self.sites.abandon();
        std::mem::forget(self.sessions);
    }

    /// The tool is gone: take its probes out.
    pub fn end(&mut self, id: u64) {
        let Some(at) = self.sessions.iter().position(|s| s.id == id) else { return };
        let mut session = self.sessions.remove(at);
        disable_all(&session, &self.sessions);
        session.take_objects().for_each(|object| self.sites.retire(object));
        self.leftovers.push((session.path.clone(), LEFTOVER_TRIES));
        let mut dirty = Dirty::new();
        self.sites.unplace(session.links.values(), &mut dirty);
        session.links.values().for_each(|l| self.sites.note_change(l.spec.kind));
        self.settle(dirty);
        // The programs go only now: `settle` waited for the last reader of the lists that named them, and where it
        // could not, the lists it kept hold them.
        drop(session);
    }

    /// The set of mapped libraries changed.
    pub fn rescan(&mut self) {
        let Ok(maps) = resolve::mappings() else { return };
        let told = self.sites.unseen();
        self.sites.drop_unmapped(&mut self.sessions, &maps);
        self.sites.look_for_calls(&maps);
        crate::run::build_id::refresh_if_used(true);
        let mut dirty = Dirty::new();
        for session in &mut self.sessions {
            let links: Vec<u32> = session.links.keys().copied().collect();
            links.into_iter().for_each(|l| self.sites.place(session, l, &maps, &mut dirty));
        }
        self.settle(dirty);
        if self.sites.unseen() != told {
            let ids: Vec<u64> = self.sessions.iter().map(|s| s.id).collect();
            for id in ids {
                self.ack(id, 0);
            }
        }
    }

    /// The child side of fork: connections belong to the parent.
    pub fn forget_connections(&mut self) {
        self.sites.forget_samples();
        for s in &mut self.sessions {
            // The descriptor lived in the parent's control thread's table; the number means nothing here.
            std::mem::forget(s.sock.take());
        }
        self.sites.follow_threads();
    }
}

/// How long a session that did not answer is left alone.
const SILENCE: Duration = Duration::from_secs(2);

/// How often the socket file of an ended session is looked at, every 20 ms.
const LEFTOVER_TRIES: u8 = 50;

/// Removes the socket of a tool that died without a word; true when there is none any more.
fn remove_if_dead(path: &Path) -> bool {
    match sock::connect(path) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).is_ok(),
        Err(Errno::NOENT) => true,
        _ => false,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Pumped {
    Nothing,
    Something,
    Acked,
    Gone,
}
