//! Links to probes: which programs stand at which address.

use super::places::{Place, Places};
use super::semaphore::Semaphores;
use super::session::{Link, Object, Session};
use crate::hook::{BATCH, Engine, Want};
use crate::memory::Reserve;
use crate::resolve::{self, Mapping};
use crate::run::enter::{Entry, Programs};
use crate::sample::{self, Events, Samplers, Timers};
use crate::syscalls::{Calls, Listeners};
use bpftime_shm::session::wire::{CounterEvent, LinkKind, unseen};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a site and its list may take: tables that grow by doubling, and a thunk.
const SITE_BYTES: usize = 1024;

/// All probes of this process and the list each one runs.
pub struct Sites {
    engine: Engine,
    places: Places,
    /// Session and id of a link, by its serial.
    links: HashMap<u32, (u64, u32)>,
    /// Lists that a thread may still be reading.
    retired: Vec<Arc<Programs>>,
    /// Programs and maps that were taken out of maps and that a thread may still be using.
    objects: Vec<Object>,
    semaphores: Semaphores,
    /// The dynamic linker's notification function, probed while there are links.
    linker: Option<usize>,
    calls: Calls,
    /// Session and id of the links to system calls that `calls` knows.
    call_links: Vec<(u64, u32)>,
    timers: Timers,
    /// As `call_links`, of the links that sample.
    sample_links: Vec<(u64, u32)>,
    events: Events,
    /// As `call_links`, of the links to what the kernel counts.
    event_links: Vec<(u64, u32)>,
    /// A link to system calls came or went.
    calls_changed: bool,
    /// A link that samples came or went.
    samples_changed: bool,
}

/// A link at an address. Addresses of the same, in the same order, run one list.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Standing {
    /// Index of its session.
    session: usize,
    link: u32,
    cookie: u64,
    /// How many points of the link come before at this address.
    nth: u32,
}

/// The lists of one change of links: most of their probes run the same. Whether the registers are those of a function that
/// has no frame yet makes a difference too.
type Lists = HashMap<(Vec<Standing>, bool), Arc<Programs>>;

/// How long to wait for threads inside callbacks before what they might see is kept for the next time. Longer than any
/// run, shorter than a scheduler's time slice: a thread that was preempted in a callback is not waited for.
const QUIESCE_LIMIT: Duration = Duration::from_millis(1);

/// Whether a function's first instruction is one that the kernel takes for a frame not yet set up: `push %rbp`, or
/// the `endbr64` before it (`is_uprobe_at_func_entry`).
fn starts_frame(code: &[u8]) -> bool {
    matches!(code, [0x55, ..] | [0xf3, 0x0f, 0x1e, 0xfa, ..])
}

/// Addresses whose lists a change of links touched, some more than once.
pub type Dirty = Vec<usize>;

impl Sites {
    /// No probes yet.
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            places: Places::default(),
            links: HashMap::new(),
            retired: Vec::new(),
            objects: Vec::new(),
            semaphores: Semaphores::default(),
            linker: None,
            calls: Calls::default(),
            call_links: Vec::new(),
            timers: Timers::default(),
            sample_links: Vec::new(),
            events: Events::default(),
            event_links: Vec::new(),
            calls_changed: false,
            samples_changed: false,
        }
    }

    /// Where the link belongs in `maps` and does not stand yet; marks those addresses.
    pub fn place(&mut self, session: &mut Session, link: u32, maps: &[Mapping], dirty: &mut Dirty) {
        let Some(l) = session.links.get(&link) else { return };
        let (serial, spec) = (l.serial, &l.spec);
        let of_file: Vec<&Mapping> =
            maps.iter().filter(|m| m.exec && resolve::is_file(m, spec.dev, spec.ino)).collect();
        let here = |offset| of_file.iter().filter_map(move |m| resolve::address(m, offset));
        let points = l.points.offsets();
        if self.links.insert(serial, (session.id, link)).is_none() {
            self.places.expect(points.len() * of_file.len());
        }
        // Some at a time: what is made on the way stays small.
        for (some, first) in points.chunks(BATCH).zip((0..).step_by(BATCH)) {
            let places = some.iter().zip(first..).flat_map(|(offset, point)| {
                here(*offset).map(move |addr| Place { addr, link: serial, point })
            });
            let new = self.places.add(places.collect());
            session.sites += new.len() as u32;
            dirty.extend(new.iter().map(|place| place.addr));
        }
    }

    /// The links' places are no more; marks their addresses. How many there were.
    pub fn unplace<'a>(&mut self, links: impl IntoIterator<Item = &'a Link>, dirty: &mut Dirty) -> u32 {
        let mut serials: Vec<_> = links.into_iter().map(|link| link.serial).collect();
        serials.sort_unstable();
        for serial in &serials {
            self.links.remove(serial);
        }
        let gone = self.places.take(|place| serials.binary_search(&place.link).is_ok());
        dirty.extend(gone.iter().map(|place| place.addr));
        gone.len() as u32
    }

    /// Takes a link off, and marks its places. Unless it was disabled before, its program runs until they are published.
    pub fn take_off(&mut self, session: &mut Session, link: u32, dirty: &mut Dirty) {
        let Some(link) = session.links.remove(&link) else { return };
        session.sites -= self.unplace([&link], dirty);
        self.note_change(link.spec.kind);
    }

    /// Forgets places that are no longer mapped (dlclose). Never touches their memory.
    pub fn drop_unmapped(&mut self, sessions: &mut [Session], maps: &[Mapping]) {
        // By inode alone: a file that was replaced or deleted since is still mapped, and still patched.
        let mut code: HashMap<u64, Vec<Range<usize>>> = HashMap::new();
        for m in maps.iter().filter(|m| m.exec) {
            code.entry(m.ino).or_default().push(m.start..m.end);
        }
        let links = sessions.iter().flat_map(|s| s.links.values());
        let mapped: HashMap<u32, &[Range<usize>]> =
            links.filter_map(|l| Some((l.serial, code.get(&l.spec.ino)?.as_slice()))).collect();
        let is_mapped =
            |p: &Place| mapped.get(&p.link).is_some_and(|code| code.iter().any(|r| r.contains(&p.addr)));
        let mut places = self.places.take(|place| !is_mapped(place));
        let mut gone: Dirty = places.iter().map(|place| place.addr).collect();
        gone.dedup();
        // Whatever else is there already belongs to what is mapped there now: it is placed anew, since the site is forgotten.
        gone.iter().for_each(|addr| places.extend(self.places.take_at(*addr)));
        for place in places {
            self.session_of(sessions, &place).into_iter().for_each(|s| s.sites -= 1);
        }
        let ranges: Vec<_> = gone.iter().map(|addr| *addr..*addr + 1).collect();
        if !ranges.is_empty() {
            self.engine.forget_unmapped(&ranges);
        }
        for addr in gone {
            self.semaphores.forget(addr);
            // The site is used again when something is mapped at this address once more.
            self.publish_nothing(addr);
        }
    }

    /// Whose a place is.
    fn session_of<'a>(&self, sessions: &'a mut [Session], place: &Place) -> Option<&'a mut Session> {
        let (session, _) = self.links.get(&place.link)?;
        sessions.iter_mut().find(|s| s.id == *session)
    }

    /// The list at an address is no more, if there is one.
    fn publish_nothing(&mut self, addr: usize) {
        let site = self.engine.site(addr);
        self.retired.extend(site.and_then(|site| Programs::publish(None, site)));
    }

    /// Makes the probes at `dirty` what the links say now.
    pub fn publish(&mut self, sessions: &mut [Session], mut dirty: Dirty) {
        // In order: neighbours share pages of text and of thunks. Some at a time: what is made on the way stays small.
        dirty.sort_unstable();
        dirty.dedup();
        let fresh = dirty.iter().filter(|addr| self.engine.site(**addr).is_none()).count();
        if !Reserve::spares(fresh * SITE_BYTES) {
            return;
        }
        self.engine.expect(fresh);
        let mut lists = Lists::new();
        dirty.chunks(BATCH).for_each(|some| self.publish_some(sessions, some, &mut lists));
    }

    fn publish_some(&mut self, sessions: &mut [Session], addrs: &[usize], lists: &mut Lists) {
        let (mut wanted, mut gone) = (Vec::new(), Vec::new());
        for addr in addrs {
            let standing = self.standing(sessions, *addr);
            let want = want_of(sessions, &standing);
            if want == Want::default() {
                self.semaphores.lower(*addr);
                gone.push(*addr);
            } else {
                wanted.push((*addr, want, standing));
            }
        }
        self.remove(&gone);
        let mut list = |standing, at_entry| {
            let list = lists.entry((standing, at_entry));
            list.or_insert_with_key(|(standing, _)| Arc::new(list_of(sessions, standing, at_entry))).clone()
        };
        for (addr, installed) in self.install(wanted, &mut list) {
            if installed {
                self.raise_semaphore(sessions, addr);
            } else {
                self.refuse(sessions, addr);
            }
        }
    }

    /// A link came or went: which events of the process have to be looked at again.
    pub fn note_change(&mut self, kind: LinkKind) {
        match kind {
            LinkKind::Uprobe | LinkKind::Session => {}
            LinkKind::Syscall(_) | LinkKind::Task(_) => self.calls_changed = true,
            LinkKind::Sample(_) | LinkKind::Counter(_) => self.samples_changed = true,
        }
    }

    /// A session's runs are counted from now on, or no longer: all of its lists are to be made again.
    pub fn recount(&mut self, session: &Session, dirty: &mut Dirty) {
        let links = session.links.values().map(|l| l.serial).collect();
        dirty.extend(self.places.of(&links).map(|place| place.addr));
        self.call_links.clear();
        self.sample_links.clear();
        self.event_links.clear();
        session.links.values().for_each(|l| self.note_change(l.spec.kind));
    }

    /// Makes the programs at system calls what the links say now.
    pub fn publish_calls(&mut self, sessions: &[Session]) {
        if !std::mem::take(&mut self.calls_changed) {
            return;
        }
        let of =
            |l: &Link| Some(l.spec.kind).filter(|k| matches!(k, LinkKind::Syscall(_) | LinkKind::Task(_)));
        let links = links_of(sessions, of);
        let ids = ids_of(&links);
        if ids == self.call_links {
            return;
        }
        let Ok(maps) = resolve::mappings() else { return };
        let mut listeners = Listeners::default();
        for (session, link, kind) in links {
            match kind {
                LinkKind::Syscall(e) => listeners.add(&e, entry_of(session, link, e.cookie)),
                LinkKind::Task(e) => listeners.add_task(&e, entry_of(session, link, e.cookie)),
                _ => {}
            }
        }
        self.call_links = ids;
        self.calls.set(&mut self.engine, listeners, &maps);
    }

    /// Makes the programs that sample what the links say now.
    pub fn publish_samples(&mut self, sessions: &[Session]) {
        if !std::mem::take(&mut self.samples_changed) {
            return;
        }
        self.publish_events(sessions);
        let of = |l: &Link| if let LinkKind::Sample(e) = l.spec.kind { Some(e) } else { None };
        let links = links_of(sessions, of);
        let ids = ids_of(&links);
        if ids == self.sample_links {
            return;
        }
        let mut samplers = Samplers::default();
        for (session, link, event) in links {
            samplers.add(&event, entry_of(session, link, event.cookie));
        }
        self.sample_links = ids;
        self.timers.set(samplers);
    }

    /// As [`Sites::publish_samples`], for what the kernel counts.
    fn publish_events(&mut self, sessions: &[Session]) {
        let of = |l: &Link| if let LinkKind::Counter(e) = l.spec.kind { Some(e) } else { None };
        let links = links_of(sessions, of);
        let ids = ids_of(&links);
        if ids == self.event_links {
            return;
        }
        self.event_links = ids;
        let with_entry = |(session, link, event): (&Session, &Link, CounterEvent)| {
            (event, entry_of(session, link, event.cookie))
        };
        self.events.set(links.into_iter().map(with_entry).collect());
    }

    /// The child side of fork: what samples stays with the parent.
    pub fn forget_samples(&mut self) {
        self.timers.forget();
        self.events.forget();
    }

    /// How soon [`Sites::follow_threads`] has to be called, while links sample.
    pub fn sampling(&self) -> Option<Duration> {
        let timers = self.timers.active().then(|| self.timers.pace());
        timers.or_else(|| self.events.active().then_some(sample::EVENTS_LOOK))
    }

    /// Samples threads that are new.
    pub fn follow_threads(&mut self) {
        self.timers.follow();
        self.events.follow();
    }

    /// Looks for system calls in libraries that came.
    pub fn look_for_calls(&mut self, maps: &[Mapping]) {
        self.calls.look(&mut self.engine, maps);
    }

    /// What of the links' events this process does not show ([`unseen`]).
    pub fn unseen(&self) -> u32 {
        let calls = if self.calls.refused() { unseen::CALLS } else { 0 };
        calls | if self.events.refused() { unseen::EVENTS } else { 0 }
    }

    /// Puts at these addresses what `list` makes of their words; whether that went well, by address.
    fn install<W>(
        &mut self,
        wanted: Vec<(usize, Want, W)>,
        list: &mut dyn FnMut(W, bool) -> Arc<Programs>,
    ) -> Vec<(usize, bool)> {
        // The reserve is for what is under way: no more sites from it.
        let room = !Reserve::in_use();
        let may = |addr, want: Want| room && !(want.ret && crate::lifecycle::returns_twice(addr));
        let (wanted, refused): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(a, w, _)| may(*a, *w));
        let mut results: Vec<_> = refused.iter().map(|(addr, ..)| (*addr, false)).collect();
        let addresses: Vec<_> = wanted.iter().map(|(addr, want, _)| (*addr, *want)).collect();
        // Hits before the list is stored below find none; nobody was told yet that the probe stands.
        let sites = self.engine.attach_all(&addresses);
        for ((addr, _, words), site) in wanted.into_iter().zip(sites) {
            results.push((addr, site.is_ok()));
            let Ok(site) = site else { continue };
            let at_entry = self.engine.displaced(addr).is_some_and(starts_frame);
            self.retired.extend(Programs::publish(Some(list(words, at_entry)), site));
        }
        results
    }

    fn remove(&mut self, addrs: &[usize]) {
        self.engine.detach_all(addrs);
        addrs.iter().for_each(|addr| self.publish_nothing(*addr));
    }

    fn raise_semaphore(&mut self, sessions: &[Session], addr: usize) {
        let Some(place) = self.semaphore_of(sessions, addr) else { return };
        let maps = resolve::mappings().unwrap_or_default();
        self.semaphores.raise(addr, place, &maps);
    }

    /// The links at `addr` and their points, newest link first: the kernel runs the consumers of a probe in that order.
    fn links_at<'a>(&self, sessions: &'a [Session], addr: usize) -> Vec<(usize, &'a Link, u32)> {
        let known = |p: &Place| {
            let (session, link) = self.links.get(&p.link)?;
            let age = sessions.iter().position(|s| s.id == *session)?;
            Some((age, sessions[age].links.get(link)?, p.point))
        };
        let mut found: Vec<_> = self.places.at(addr).iter().filter_map(known).collect();
        found.retain(|(age, link, _)| !is_known_before(sessions, *age, link.spec.link));
        // Stable: one link's points at one address stay in its order.
        found.sort_by_key(|(age, link, _)| std::cmp::Reverse((*age, link.spec.link)));
        found
    }

    fn standing(&self, sessions: &[Session], addr: usize) -> Vec<Standing> {
        let mut all: Vec<Standing> = Vec::new();
        for (session, link, point) in self.links_at(sessions, addr) {
            let (cookie, link) = (link.points.cookie(point), link.spec.link);
            // A link's points come one after another.
            let before = all.last().filter(|s| (s.session, s.link) == (session, link));
            let nth = before.map_or(0, |s| s.nth + 1);
            all.push(Standing { session, link, cookie, nth });
        }
        all
    }

    /// File and offset of the semaphore of the probe at `addr`, if a link names one.
    fn semaphore_of(&self, sessions: &[Session], addr: usize) -> Option<(u64, u64, u64)> {
        let here = self.links_at(sessions, addr).into_iter();
        here.map(|(_, l, point)| (l.spec.dev, l.spec.ino, l.points.semaphore(point)))
            .find(|(_, _, offset)| *offset != 0)
    }

    /// Records that the probes at `addr` could not be placed.
    fn refuse(&mut self, sessions: &mut [Session], addr: usize) {
        for place in self.places.take_at(addr) {
            let Some(session) = self.session_of(sessions, &place) else { continue };
            session.sites -= 1;
            session.refused += 1;
        }
    }

    /// Finishes what had to wait for threads; tells whether some still has to.
    pub fn upgrade(&mut self) -> bool {
        self.collect_garbage();
        self.engine.upgrade() > 0 || self.has_garbage()
    }

    /// Takes every probe out, for good.
    pub fn abandon(self) {
        self.timers.abandon();
        self.events.abandon();
        drop(self.engine);
        std::mem::forget((self.retired, self.objects));
    }

    /// Keeps an object until no thread runs a program that may be using it.
    pub fn retire(&mut self, object: Object) {
        self.objects.push(object);
    }

    /// Frees what no thread can be reading any more; keeps it for later when one does not come out in time.
    pub fn collect_garbage(&mut self) {
        if self.has_garbage() && self.engine.quiesce(QUIESCE_LIMIT) {
            self.retired.clear();
            self.objects.clear();
            self.calls.collect_garbage();
            self.timers.collect_garbage();
            self.events.collect_garbage();
        }
    }

    fn has_garbage(&self) -> bool {
        let waiting = !self.retired.is_empty() || !self.objects.is_empty();
        let samples = self.timers.has_garbage() || self.events.has_garbage();
        waiting || self.calls.has_garbage() || samples
    }

    /// Probes the dynamic linker's notification function, so that libraries are looked at before dlopen returns.
    pub fn watch_linker(&mut self, on_change: fn()) {
        if self.linker.is_some() {
            return;
        }
        let Some(addr) = crate::lifecycle::linker_notify_address() else { return };
        let list = Arc::new(Programs::internal(on_change));
        if self.install(vec![(addr, Want::ENTRY, list)], &mut |list, _| list) == [(addr, true)] {
            self.linker = Some(addr);
        }
    }

    /// Takes the probe of [`Sites::watch_linker`] off.
    pub fn unwatch_linker(&mut self) {
        if let Some(addr) = self.linker.take() {
            self.remove(&[addr]);
        }
    }
}

/// Whether an older session has the link too. The one of that session runs, and this one in its place when it goes: a
/// pinned link is its tool's, and the holder's after that.
fn is_known_before(sessions: &[Session], age: usize, link: u32) -> bool {
    sessions[..age].iter().any(|s| s.links.contains_key(&link))
}

/// The links of one kind with what `of` finds in them, in an order that only a change of links changes.
fn links_of<E>(sessions: &[Session], of: impl Fn(&Link) -> Option<E>) -> Vec<(&Session, &Link, E)> {
    let all = sessions.iter().enumerate().flat_map(|(age, s)| s.links.values().map(move |l| (age, s, l)));
    let known = |age, l: &Link| is_known_before(sessions, age, l.spec.link);
    let mut links: Vec<_> =
        all.filter_map(|(age, s, l)| Some((s, l, of(l).filter(|_| !known(age, l))?))).collect();
    links.sort_by_key(|(s, l, _)| (s.id, l.spec.link));
    links
}

fn ids_of<E>(links: &[(&Session, &Link, E)]) -> Vec<(u64, u32)> {
    links.iter().map(|(s, l, _)| (s.id, l.spec.link)).collect()
}

/// Which ends of a call anybody there is interested in.
fn want_of(sessions: &[Session], standing: &[Standing]) -> Want {
    let links = || standing.iter().filter_map(|s| sessions[s.session].links.get(&s.link));
    let both = |l: &Link| l.spec.kind == LinkKind::Session;
    Want { entry: links().any(|l| both(l) || !l.spec.ret), ret: links().any(|l| both(l) || l.spec.ret) }
}

/// What they run.
fn list_of(sessions: &[Session], standing: &[Standing], at_entry: bool) -> Programs {
    let (mut entry, mut ret) = (Vec::new(), Vec::new());
    for s in standing {
        let session = &sessions[s.session];
        let Some(link) = session.links.get(&s.link) else { continue };
        let made = || entry_of(session, link, s.cookie);
        if link.spec.kind == LinkKind::Session {
            let who = u64::from(link.serial) << 32 | u64::from(s.nth);
            entry.push(made().of_session(who));
            ret.push(made().of_session(who));
        } else if link.spec.ret {
            ret.push(made());
        } else {
            entry.push(made());
        }
    }
    Programs::new(entry.into(), ret.into(), at_entry)
}

/// A link's program, as a probe runs it.
fn entry_of(session: &Session, link: &Link, cookie: u64) -> Entry {
    let only_pid = if link.spec.pid > 0 { std::process::id() } else { 0 };
    let (program, shared, enabled) = (link.program.clone(), session.shared.clone(), link.enabled.clone());
    let entry = Entry::new(program, shared, cookie, enabled, only_pid, link.spec.link);
    entry.with_stats(session.stats_row(link.spec.prog), session.counting)
}

/// Turns every link of a session that has no stand-in in `others` off at once, before its probes are taken out one by one.
pub fn disable_all(session: &Session, others: &[Session]) {
    session.links.keys().for_each(|link| disable(session, *link, others));
}

/// Turns a link off; one that another session has as well goes on until that one's takes over.
pub fn disable(session: &Session, link: u32, others: &[Session]) {
    let stands_in = |s: &Session| s.id != session.id && s.links.contains_key(&link);
    if let Some(l) = session.links.get(&link).filter(|_| !others.iter().any(stands_in)) {
        l.enabled.store(false, Ordering::Relaxed);
    }
}
