//! What the session consists of, as it would be told to an agent that connects now.

use bpftime_abi::task::Row;
use bpftime_shm::session::wire::{AgentRow, LinkSpec, Listing, MapRow, Message, ProgSpec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::collections::{BTreeMap, BTreeSet};

/// A link and the descriptor whose hang-up ends it.
pub struct KnownLink {
    /// What the tool attached.
    pub spec: LinkSpec,
    /// Our end of the pair whose other end the tool holds.
    pub watch: Option<OwnedFd>,
}

/// Everything announced and not yet gone.
#[derive(Default)]
pub struct Known {
    maps: BTreeMap<u32, (OwnedFd, MapRow)>,
    slots: BTreeMap<(u32, u32), OwnedFd>,
    /// Where the members of the task's shadow stand, once a program asks for the task.
    task: Option<Vec<Row>>,
    progs: BTreeMap<u32, (ProgSpec, OwnedFd)>,
    /// Programs and maps in maps: container and object.
    members: BTreeSet<(u32, u32)>,
    /// Links by id.
    pub links: BTreeMap<u32, KnownLink>,
    /// What ends links that are switched off: they may come back under their ids.
    parked: BTreeMap<u32, OwnedFd>,
}

/// One message to an agent.
pub type Packet<'a> = (Message, Option<BorrowedFd<'a>>);

impl Known {
    /// Takes a message of the tool in. What comes back is to be relayed to every agent.
    pub fn learn(&mut self, msg: Message, fd: Option<OwnedFd>) {
        match (msg, fd) {
            (Message::Map { map }, Some(fd)) => {
                if let Ok(m) = bpftime_shm::Map::open(fd.as_fd()) {
                    self.maps.insert(map, (fd, row(map, m.def())));
                }
            }
            (Message::PerfSlot { map, index }, Some(fd)) => drop(self.slots.insert((map, index), fd)),
            (Message::PerfSlot { map, index }, None) => drop(self.slots.remove(&(map, index))),
            (Message::Task { rows }, _) => self.task = Some(rows),
            (Message::Member { container, object, present }, _) => {
                let member = (container, object);
                if present {
                    self.members.insert(member)
                } else {
                    self.members.remove(&member)
                };
            }
            (Message::Prog(spec), Some(fd)) => drop(self.progs.insert(spec.prog, (spec, fd))),
            (Message::Link(spec), watch) => self.learn_link(spec, watch),
            (Message::Unlink { link }, _) => {
                let watch = self.links.remove(&link).and_then(|l| l.watch);
                self.parked.extend(watch.map(|w| (link, w)));
            }
            _ => {}
        }
    }

    fn learn_link(&mut self, spec: LinkSpec, watch: Option<OwnedFd>) {
        let watch = watch.or_else(|| self.parked.remove(&spec.link));
        self.links.insert(spec.link, KnownLink { spec, watch });
    }

    /// Forgets a link for good; gives back what ended it, and whether agents know it.
    pub fn end(&mut self, link: u32) -> (Option<OwnedFd>, bool) {
        let known = self.links.remove(&link);
        let active = known.is_some();
        (known.and_then(|l| l.watch).or_else(|| self.parked.remove(&link)), active)
    }

    /// Whether agent `pid` is told about `link`.
    pub fn concerns(link: &LinkSpec, pid: i32) -> bool {
        link.pid <= 0 || link.pid == pid
    }

    /// Everything agent `pid` needs, in an order it can use.
    pub fn for_agent(&self, pid: i32) -> Vec<Packet<'_>> {
        let mut out: Vec<Packet> = Vec::new();
        let maps = self.maps.iter().map(|(map, (fd, _))| (Message::Map { map: *map }, Some(fd.as_fd())));
        out.extend(maps);
        out.extend(
            self.slots
                .iter()
                .map(|((map, index), fd)| (Message::PerfSlot { map: *map, index: *index }, Some(fd.as_fd()))),
        );
        out.extend(self.task.iter().map(|rows| (Message::Task { rows: rows.clone() }, None)));
        out.extend(self.progs.values().map(|(spec, fd)| (Message::Prog(spec.clone()), Some(fd.as_fd()))));
        let members = self.members.iter();
        out.extend(
            members.map(|&(container, object)| (Message::Member { container, object, present: true }, None)),
        );
        let mine = self.links.values().filter(|l| Self::concerns(&l.spec, pid));
        out.extend(mine.map(|l| (Message::Link(l.spec.clone()), None)));
        out
    }

    /// The descriptor that goes with a message being relayed.
    pub fn fd_for(&self, msg: &Message) -> Option<BorrowedFd<'_>> {
        match msg {
            Message::Map { map } => self.maps.get(map).map(|(fd, _)| fd.as_fd()),
            Message::PerfSlot { map, index } => self.slots.get(&(*map, *index)).map(AsFd::as_fd),
            Message::Prog(spec) => self.progs.get(&spec.prog).map(|(_, fd)| fd.as_fd()),
            _ => None,
        }
    }

    /// Programs and maps that no link leads to; they are forgotten here.
    pub fn collect(&mut self) -> (Vec<u32>, Vec<u32>) {
        let used = self.reachable();
        let unused = |id: &&u32| !used.contains(id);
        let progs: Vec<u32> = self.progs.keys().filter(unused).copied().collect();
        let maps: Vec<u32> = self.maps.keys().filter(unused).copied().collect();
        progs.iter().for_each(|p| drop(self.progs.remove(p)));
        maps.iter().for_each(|m| drop(self.maps.remove(m)));
        self.slots.retain(|(map, _), _| !maps.contains(map));
        self.members.retain(|(container, _)| !maps.contains(container));
        (progs, maps)
    }

    /// What the links use: their programs, the maps of these, the programs and maps in those, and so on.
    fn reachable(&self) -> BTreeSet<u32> {
        let mut used = BTreeSet::new();
        let mut open: Vec<u32> = self.links.values().map(|l| l.spec.prog).collect();
        while let Some(id) = open.pop() {
            if !used.insert(id) {
                continue;
            }
            // Programs and maps have ids of one sequence.
            open.extend(self.progs.get(&id).into_iter().flat_map(|(p, _)| &p.maps));
            open.extend(self.members.range((id, 0)..=(id, u32::MAX)).map(|(_, object)| object));
        }
        used
    }

    /// The session for `bpftime ps`.
    pub fn listing(&self, agents: Vec<AgentRow>) -> Listing {
        Listing {
            pid: std::process::id() as i32,
            command: std::fs::read("/proc/self/cmdline").unwrap_or_default(),
            progs: self.progs.values().map(|(p, _)| p.clone()).collect(),
            links: self.links.values().take(LISTED_LINKS).map(|l| listed(&l.spec)).collect(),
            maps: self.maps.values().map(|(_, row)| row.clone()).collect(),
            agents,
        }
    }

    /// Takes back what a dead process held in ring buffers.
    pub fn recover(&self, owner: u32) {
        for (fd, _) in self.maps.values() {
            if let Ok(map) = bpftime_shm::Map::open(fd.as_fd()) {
                map.recover(owner as u16);
            }
        }
    }
}

/// Links in a listing: it must fit into one packet.
const LISTED_LINKS: usize = 400;

/// A link as listed: with its first point only, and a path of bounded length.
fn listed(spec: &LinkSpec) -> LinkSpec {
    let path = spec.path.iter().take(160).copied().collect();
    LinkSpec { path, points: spec.points.iter().take(1).cloned().collect(), ..spec.clone() }
}

fn row(map: u32, def: &bpftime_shm::MapDef) -> MapRow {
    let name = def.name.iter().take_while(|b| **b != 0).copied().collect();
    MapRow {
        map,
        map_type: def.map_type,
        key_size: def.key_size,
        value_size: def.value_size,
        max_entries: def.max_entries,
        name,
    }
}
