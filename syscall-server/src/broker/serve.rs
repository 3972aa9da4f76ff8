//! The broker's thread.

use super::known::Known;
use crate::stats;
use bpftime_shm::session::inspect::{self, Reply, Request};
use bpftime_shm::session::page::Page;
use bpftime_shm::session::wire::{AgentRow, InForce, Message, VERSION};
use bpftime_shm::session::{dir, ids, sock};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the tool waits for agents to put a change in force. A stopped process must not stop the tool.
const ACK_LIMIT: Duration = Duration::from_millis(1500);

/// A connected agent.
struct Agent {
    sock: OwnedFd,
    pid: i32,
    owner: u32,
    /// Last `Sync` it has answered.
    acked: u64,
    /// What it said then.
    in_force: InForce,
    /// Did not answer in time; not waited for again until it has.
    lagging: bool,
}

/// The broker.
pub struct Broker {
    /// Identity of the session.
    pub session: u64,
    /// The session page.
    pub page: Arc<Page>,
    /// Its descriptor, in this thread's table.
    pub page_fd: OwnedFd,
    /// Where agents connect.
    pub listener: OwnedFd,
    /// The tool's threads.
    pub tool: OwnedFd,
    /// What has been announced.
    pub known: Known,
    /// Agents that were there before the session and have not connected yet: an attachment holds for them too.
    expected: Vec<i32>,
    agents: Vec<Agent>,
    /// Indices that were taken for this session and not given out yet.
    owners: Range<u32>,
    seq: u64,
    /// Everything that may speak or hang up, so that a round costs what happened and not what is there.
    poll: OwnedFd,
    /// A link went since programs and maps without one were last looked for.
    unlinked: bool,
    /// Links that agents are told of together with what follows, so that each wakes once for it.
    held: Vec<Message>,
    /// Whether runs are counted (`stats`).
    counting: bool,
}

/// One more than the highest owner index.
const OWNERS: u32 = 1 << 16;

/// What an event of the epoll set is about, above the id of the link or the owner index of the agent.
const TOOL: u64 = 0;
const LISTENER: u64 = 1;
const LINK: u64 = 2;
const AGENT: u64 = 3;

impl Broker {
    /// A broker without agents. Owner 0 is nobody, owner 1 the tool itself.
    pub fn new(
        session: u64,
        page: Arc<Page>,
        page_fd: OwnedFd,
        listener: OwnedFd,
        tool: OwnedFd,
        expected: Vec<i32>,
    ) -> Result<Self, Errno> {
        let (known, agents) = (Known::default(), Vec::new());
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let broker = Self {
            session,
            page,
            page_fd,
            listener,
            tool,
            known,
            expected,
            agents,
            owners: 0..0,
            seq: 0,
            poll,
            unlinked: false,
            held: Vec::new(),
            counting: false,
        };
        broker.watch(broker.tool.as_fd(), TOOL, 0);
        broker.watch(broker.listener.as_fd(), LISTENER, 0);
        Ok(broker)
    }

    /// Serves until the tool is gone.
    pub fn serve(mut self) {
        super::robust::mark(self.page.broker_word());
        self.look_at_stats();
        loop {
            let ready = self.wait();
            if self.counting {
                self.look_at_stats();
            }
            self.reap_links(&ready);
            self.reap_agents(&ready);
            if ready.listener {
                self.accept();
            }
            if ready.tool && self.tool_message().is_err() {
                return;
            }
        }
    }

    /// Waits for something to happen. That a tool which wanted runs to be counted was killed is told by nobody.
    fn wait(&self) -> Ready {
        const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
        self.ready(self.counting.then_some(&LOOK))
    }

    /// What has something to say, at once or as soon as anything has.
    fn ready(&self, limit: Option<&Timespec>) -> Ready {
        let mut ready = Ready::default();
        let mut events = [MaybeUninit::uninit(); 64];
        let Ok((events, _)) = epoll::wait(&self.poll, &mut events, limit) else { return ready };
        for event in events.iter() {
            let (flags, source) = (event.flags, event.data.u64());
            match (source >> 32, source as u32) {
                (TOOL, _) => ready.tool = true,
                (LISTENER, _) => ready.listener = true,
                (LINK, link) if flags.intersects(EventFlags::HUP | EventFlags::ERR) => ready.links.push(link),
                (AGENT, owner) => ready.agents.push(owner),
                _ => {}
            }
        }
        ready
    }

    /// Has `fd` looked after by [`Broker::ready`]. Only the hang-up of a link matters, which is reported unasked.
    fn watch(&self, fd: BorrowedFd, kind: u64, id: u32) {
        let flags = if kind == LINK { EventFlags::empty() } else { EventFlags::IN };
        if let Err(errno) = epoll::add(&self.poll, fd, EventData::new_u64(kind << 32 | id as u64), flags) {
            tracing::error!(%errno, kind, id, "cannot be waited for");
        }
    }

    /// Links whose last descriptor was closed.
    fn reap_links(&mut self, ready: &Ready) {
        let mut changed = false;
        for link in &ready.links {
            let (watch, active) = self.known.end(*link);
            // By hand: another descriptor of the same file would keep it in the set.
            if let Some(watch) = watch {
                let _ = epoll::delete(&self.poll, watch);
            }
            if active {
                self.relay(Message::Unlink { link: *link });
                changed = true;
            }
        }
        if changed {
            self.unlinked = true;
            self.collect();
            self.synchronise();
        }
    }

    /// Forgets what nothing uses, here and in the agents.
    fn collect(&mut self) {
        // Nothing is left over unless a link went; looking costs as much as there are links.
        if !self.unlinked {
            return;
        }
        let Some(mut announced) = super::client::announced_if_free() else { return };
        self.unlinked = false;
        let (progs, maps) = self.known.collect();
        if progs.is_empty() && maps.is_empty() {
            return;
        }
        announced.retain(|id| !progs.contains(id) && !maps.contains(id));
        self.relay(Message::Drop { progs, maps });
    }

    fn reap_agents(&mut self, ready: &Ready) {
        for owner in &ready.agents {
            while let Some(i) = self.agents.iter().position(|a| a.owner == *owner) {
                match agent_message(&mut self.agents[i]) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) => self.lose(i),
                }
            }
        }
    }

    /// An agent's process ended, by exit, exec or a kill at any instruction.
    fn lose(&mut self, i: usize) {
        let agent = self.agents.remove(i);
        self.page.recover(agent.owner);
        self.known.recover(agent.owner);
        tracing::debug!(pid = agent.pid, "agent gone");
    }

    fn accept(&mut self) {
        let Ok(conn) = sock::accept(self.listener.as_fd()) else { return };
        if let Err(errno) = self.greet(conn) {
            tracing::debug!(%errno, "connection refused");
        }
    }

    fn greet(&mut self, conn: OwnedFd) -> Result<(), Errno> {
        let (pid, uid) = sock::peer(conn.as_fd())?;
        self.expected.retain(|p| *p != pid);
        if uid != rustix::process::getuid().as_raw() {
            return Err(Errno::PERM);
        }
        sock::set_timeout(&conn, Duration::from_millis(500))?;
        match Message::decode(&sock::recv(conn.as_fd(), false)?.bytes)? {
            Message::List => {
                let listing = self.known.listing(self.agents.iter().map(Agent::row).collect());
                sock::send(conn.as_fd(), &Message::Listing(listing).encode(), &[])
            }
            Message::Text => sock::send(conn.as_fd(), &Message::Text.encode(), &[self.page_fd.as_fd()]),
            Message::Inspect(request) => self.inspect(conn, request),
            Message::Hello { version: VERSION } => self.welcome(conn, pid),
            _ => Err(Errno::PROTO),
        }
    }

    fn inspect(&mut self, conn: OwnedFd, request: Request) -> Result<(), Errno> {
        let (reply, fd) = match request {
            Request::Stats => {
                self.look_at_stats();
                (Reply::Done, None)
            }
            request => super::inspect::answer(request, &self.known),
        };
        inspect::answer(conn.as_fd(), reply, fd.as_ref().map(AsFd::as_fd))
    }

    /// Has every process count its runs, or no longer, as tools want it now.
    fn look_at_stats(&mut self) {
        let on = stats::wanted();
        if on != self.counting {
            self.counting = on;
            stats::set(on);
            self.relay(Message::Stats { on });
            self.synchronise();
        }
    }

    fn welcome(&mut self, conn: OwnedFd, pid: i32) -> Result<(), Errno> {
        let owner = self.free_owner();
        let hello = Message::Welcome { session: self.session, owner, cpus: self.page.slots() };
        sock::send(conn.as_fd(), &hello.encode(), &[self.page_fd.as_fd()])?;
        if self.counting {
            sock::send(conn.as_fd(), &Message::Stats { on: true }.encode(), &[])?;
        }
        for (msg, fd) in self.known.for_agent(pid) {
            sock::send(conn.as_fd(), &msg.encode(), fd.as_slice())?;
        }
        self.seq += 1;
        sock::send(conn.as_fd(), &Message::Sync { seq: self.seq }.encode(), &[])?;
        self.watch(conn.as_fd(), AGENT, owner);
        let agent = Agent { sock: conn, pid, owner, acked: 0, in_force: InForce::default(), lagging: false };
        self.agents.push(agent);
        Ok(())
    }

    /// An owner index that no live agent has, of this or another session: they may share maps, which keep it in 16 bits.
    fn free_owner(&mut self) -> u32 {
        loop {
            if self.owners.is_empty() {
                let block = dir::own().ok().and_then(|d| ids::take_owners(&d).ok());
                // Without a directory there are no other sessions.
                let from = block.map_or(self.owners.end % OWNERS, u32::from).max(ids::BLOCK);
                self.owners = from..from + ids::BLOCK;
            }
            let owner = self.owners.start;
            self.owners.start += 1;
            if self.agents.iter().all(|a| a.owner != owner) {
                return owner;
            }
        }
    }

    /// One message of the tool's threads; an error when the tool is gone.
    fn tool_message(&mut self) -> Result<(), Errno> {
        let msg = sock::recv(self.tool.as_fd(), false)?;
        let fd = msg.fds.into_iter().next();
        match Message::decode(&msg.bytes)? {
            Message::Sync { seq } => {
                self.reap_closed_links();
                self.collect();
                self.synchronise();
                let sites = self.agents.iter().map(|a| a.in_force.sites).sum();
                let ack = Message::Ack { seq, in_force: InForce { sites, ..InForce::default() } };
                sock::send(self.tool.as_fd(), &ack.encode(), &[])
            }
            msg => {
                if let (Message::Link(spec), Some(watch)) = (&msg, &fd) {
                    self.watch(watch.as_fd(), LINK, spec.link);
                }
                self.unlinked |= matches!(msg, Message::Unlink { .. });
                self.known.learn(msg.clone(), fd);
                if matches!(msg, Message::Link(_)) {
                    self.held.push(msg);
                } else {
                    self.relay(msg);
                }
                Ok(())
            }
        }
    }

    /// Takes off the links that are closed by now, without waiting.
    fn reap_closed_links(&mut self) {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let ready = self.ready(Some(&now));
            if ready.links.is_empty() {
                return;
            }
            self.reap_links(&ready);
        }
    }

    /// Sends a change to the agents it concerns, after the links that were held.
    fn relay(&mut self, msg: Message) {
        let mut messages = std::mem::take(&mut self.held);
        messages.push(msg);
        for msg in &messages {
            match msg {
                Message::Link(spec) => self.page.open_link(spec.link),
                Message::Unlink { link } => self.page.close_link(*link),
                _ => {}
            }
        }
        let encoded: Vec<_> =
            messages.iter().map(|msg| (msg, msg.encode(), self.known.fd_for(msg))).collect();
        let mut lost = Vec::new();
        for (i, agent) in self.agents.iter().enumerate() {
            let concerns =
                |msg: &Message| !matches!(msg, Message::Link(spec) if !Known::concerns(spec, agent.pid));
            let mut mine = encoded.iter().filter(|(msg, ..)| concerns(msg));
            if mine.any(|(_, bytes, fd)| sock::send(agent.sock.as_fd(), bytes, fd.as_slice()).is_err()) {
                lost.push(i);
            }
        }
        drop(encoded);
        // Not known to be dead, only deaf (stopped): what it holds stays its own.
        lost.into_iter().rev().for_each(|i| drop(self.agents.remove(i)));
    }

    /// Accepts the agents that were there before the session. One that does not come (stopped, or gone since) is
    /// waited for once.
    fn await_expected(&mut self, deadline: Instant) {
        while !self.expected.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let alive = |p: &i32| std::path::Path::new(&format!("/proc/{p}")).exists();
            self.expected.retain(alive);
            if left.is_zero() {
                self.expected.clear();
            } else if readable(self.listener.as_fd(), left.min(Duration::from_millis(50))) {
                self.accept();
            }
        }
    }

    /// Waits until the agents have put everything sent so far in force.
    fn synchronise(&mut self) {
        let deadline = Instant::now() + ACK_LIMIT;
        self.await_expected(deadline);
        self.seq += 1;
        let seq = self.seq;
        self.relay(Message::Sync { seq });
        while let Some(i) = self.agents.iter().position(|a| a.acked < seq && !a.lagging) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.agents[i].lagging = true;
                continue;
            }
            if readable(self.agents[i].sock.as_fd(), left) && agent_message(&mut self.agents[i]).is_err() {
                self.lose(i);
            }
        }
    }
}

/// Waits until there is something to read, at most `limit`.
fn readable(fd: BorrowedFd, limit: Duration) -> bool {
    let ts = rustix::time::Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos() as i64 };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&ts)).is_ok_and(|n| n > 0)
}

/// What a wait found.
#[derive(Default)]
struct Ready {
    tool: bool,
    listener: bool,
    links: Vec<u32>,
    /// Owner indices.
    agents: Vec<u32>,
}

impl Agent {
    fn row(&self) -> AgentRow {
        AgentRow { pid: self.pid, in_force: self.in_force.clone() }
    }
}

/// Takes one message of an agent; false when there is none. Nothing an agent says is trusted beyond its own counts.
fn agent_message(agent: &mut Agent) -> Result<bool, Errno> {
    let msg = match sock::recv(agent.sock.as_fd(), true) {
        Err(Errno::AGAIN) => return Ok(false),
        other => other?,
    };
    let Message::Ack { seq, in_force } = Message::decode(&msg.bytes)? else {
        return Err(Errno::PROTO);
    };
    if in_force.failed.len() > agent.in_force.failed.len() {
        let links = &in_force.failed;
        tracing::warn!(pid = agent.pid, ?links, "programs faulted or did not end; detached there");
    }
    if in_force.unseen != agent.in_force.unseen && in_force.unseen != 0 {
        tracing::warn!(
            pid = agent.pid,
            what = in_force.unseen,
            "part of what is asked for is not seen there"
        );
    }
    agent.acked = agent.acked.max(seq);
    agent.in_force = in_force;
    agent.lagging = false;
    Ok(true)
}
