//! Ring buffers and perf buffers: the kernel's layout, produced = delivered + lost, death of producers.

mod common;
use bpftime_shm::ring::{LockId, Sample};
use bpftime_shm::uapi::*;
use bpftime_shm::{Errno, Map, PAGE, PerfRing};
use common::prog::{Arg, Program};
use common::{Rng, def, kernel_create};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

fn ringbuf(size: u32) -> (OwnedFd, Map) {
    Map::create(&def(BPF_MAP_TYPE_RINGBUF, 0, 0, size, 0), 1).expect("create")
}

/// mmap, as usize; the errno otherwise.
fn mmap(fd: i32, off: u64, len: usize, prot: u32) -> Result<*mut u8, i32> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot as i32, libc::MAP_SHARED, fd, off as i64) };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    Ok(at.cast())
}

#[test]
fn consumer_mappings_are_allowed_as_by_the_kernel() {
    const SIZE: u32 = 8192;
    let (fd, map) = ringbuf(SIZE);
    let Ok(kernels) = kernel_create(map.def()) else { return };
    for off in (0..8).map(|page| page * PAGE as u64) {
        for len in [100, 4096, 8192, 12288, 20480, 24576, 28672] {
            for prot in [1, 2, 3, 5] {
                let theirs = mmap(kernels.as_raw_fd(), off, len, prot).map(|_| ());
                let ours = map.consumer_mappings(off, len, prot);
                assert_eq!(ours.map(|_| ()).map_err(|e| e.raw_os_error()), theirs, "{off} {len} {prot}");
                for piece in ours.into_iter().flatten().flatten() {
                    mmap(fd.as_raw_fd(), piece.file_off, piece.len, prot).expect("our file has these bytes");
                }
            }
        }
    }
    assert_eq!(map.consumer_mappings(1, 4096, 1), Err(Errno::INVAL));
    assert_eq!(map.consumer_mappings(u64::MAX, usize::MAX, 1), Err(Errno::INVAL));
}

#[test]
fn ringbuf_bytes_and_answers_are_the_kernels() {
    let (_fd, map) = ringbuf(4096);
    let ring = map.ringbuf().expect("ring");
    let Ok(kernels) = kernel_create(map.def()) else { return };
    let theirs = mmap(kernels.as_raw_fd(), 4096, 3 * 4096, 1).expect("map");
    for size in (1..=40).chain([488, 500, 504, 505, 512, 512, 512, 512, 512, 8, 1]) {
        const RINGBUF_OUTPUT: i32 = 130;
        let args = [Arg::Map(kernels.as_raw_fd()), Arg::Data(size), Arg::Number(size as i32), Arg::Number(0)];
        let answer = Program::calling(RINGBUF_OUTPUT, &args).expect("load").run();
        // SAFETY: 512 valid bytes; the kernel's producer page and data are mapped.
        unsafe {
            let posted = ring.output([0xab; 512].as_ptr(), u64::from(size), 0, LockId::new(1, 1));
            assert_eq!(posted.ret, i64::from(answer), "size {size}");
            assert_eq!(ring.query(BPF_RB_PROD_POS), theirs.cast::<u64>().read_volatile(), "size {size}");
        }
    }
    let mut at = 0;
    let mut sizes = Vec::new();
    while at < ring.query(BPF_RB_PROD_POS) as usize {
        // SAFETY: inside the kernel's data.
        let len = unsafe { theirs.add(4096 + at).cast::<u32>().read() };
        sizes.push(len as usize);
        at += (len as usize + 8).next_multiple_of(8);
    }
    let mut ours = Vec::new();
    ring.consume(|record| ours.push(record.len()));
    assert_eq!(ours, sizes);
}

#[test]
fn reserve_refuses_what_the_kernel_refuses() {
    let (_fd, map) = ringbuf(4096);
    let (ring, me) = (map.ringbuf().expect("ring"), LockId::new(1, 1));
    assert!(ring.reserve(8, 1, me).is_null(), "flags");
    assert!(ring.reserve(4096, 0, me).is_null(), "larger than the ring");
    assert!(ring.reserve(u64::MAX, 0, me).is_null());
    assert!(ring.reserve(4088, 0, me).is_null(), "a full ring would look empty");
    assert!(!ring.reserve(4080, 0, me).is_null());
    assert!(ring.reserve(0, 0, me).is_null(), "full");
    // SAFETY: the flags are refused before the data is looked at.
    assert_eq!(unsafe { ring.output([0; 8].as_ptr(), 8, 4, me) }.ret, -22);
}

#[test]
fn wakeups_follow_the_kernels_rule() {
    let (_fd, map) = ringbuf(4096);
    let (ring, me) = (map.ringbuf().expect("ring"), LockId::new(1, 1));
    // SAFETY: eight valid bytes.
    let put = |flags| unsafe { ring.output([0; 8].as_ptr(), 8, flags, me) }.wake;
    assert!(!put(0), "nobody waits");
    ring.armed().arm();
    assert!(!put(0), "the consumer has not caught up");
    assert!(put(BPF_RB_FORCE_WAKEUP));
    assert!(!put(BPF_RB_FORCE_WAKEUP), "woken already");
    assert!(ring.has_data());
    assert_eq!(ring.consume(|_| ()), 4);
    assert!(!ring.has_data());
    ring.armed().arm();
    assert!(!put(BPF_RB_NO_WAKEUP));
    ring.consume(|_| ());
    assert!(put(0), "caught up and waiting");
}

/// Each record names its producer and its number, and fills the rest with a pattern.
fn check(record: &[u8], next: &mut [u64]) {
    let word = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().expect("8"));
    let (producer, number) = (word(0) as usize, word(8));
    assert!(number >= next[producer], "producer {producer}: {number} after {}", next[producer]);
    next[producer] = number + 1;
    assert!(record[16..].iter().all(|&b| b == number as u8), "torn record");
}

#[test]
fn produced_is_delivered_plus_dropped() {
    const PRODUCERS: u64 = 4;
    const EACH: u64 = 100_000;
    let (_fd, map) = ringbuf(16384);
    let ring = map.ringbuf().expect("ring");
    let (refused, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut next = vec![0; PRODUCERS as usize];
    let mut delivered = 0;
    thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let (refused, done) = (&refused, &done);
            scope.spawn(move || {
                let (me, mut rng) = (LockId::new(1, producer as u32 + 1), Rng(producer + 1));
                for number in 0..EACH {
                    let size = 16 + rng.below(200);
                    let sample = ring.reserve(size, 0, me);
                    if sample.is_null() {
                        refused.fetch_add(1, SeqCst);
                        continue;
                    }
                    // SAFETY: reserve gave `size` bytes.
                    unsafe {
                        sample.cast::<[u64; 2]>().write([producer, number]);
                        sample.add(16).write_bytes(number as u8, size as usize - 16);
                        ring.submit(sample, 0);
                    }
                }
                done.fetch_add(1, SeqCst);
            });
        }
        loop {
            let last = done.load(SeqCst) == PRODUCERS;
            delivered += ring.consume(|record| check(record, &mut next)) as u64;
            if last {
                break;
            }
        }
    });
    assert_eq!(delivered + refused.load(SeqCst), PRODUCERS * EACH);
    assert_eq!(ring.dropped(), refused.load(SeqCst));
}

#[test]
fn a_sleeping_consumer_misses_no_wakeup() {
    let (_fd, map) = ringbuf(4096);
    let ring = map.ringbuf().expect("ring");
    let wakes = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..50_000 {
                // SAFETY: eight valid bytes.
                let mut posted = unsafe { ring.output([1; 8].as_ptr(), 8, 0, LockId::new(1, 1)) };
                while posted.ret != 0 {
                    thread::yield_now();
                    // SAFETY: as above.
                    posted = unsafe { ring.output([1; 8].as_ptr(), 8, 0, LockId::new(1, 1)) };
                }
                if posted.wake {
                    wakes.fetch_add(1, SeqCst);
                }
            }
        });
        let mut seen = 0;
        while seen < 50_000 {
            ring.armed().arm();
            let before = wakes.load(SeqCst);
            if !ring.has_data() {
                // Asleep. Only a wake ends this: a lost one hangs the test.
                while wakes.load(SeqCst) == before && ring.armed().word().load(SeqCst) == 1 {
                    thread::yield_now();
                }
            }
            ring.armed().disarm();
            seen += ring.consume(|_| ());
        }
    });
}

#[test]
fn kill_9_of_producers_blocks_nobody() {
    let (fd, map) = ringbuf(8192);
    let ring = map.ringbuf().expect("ring");
    let mut rng = Rng(0xabcdef);
    let (mut repairs, mut delivered) = (0, 0);
    for owner in 1..=300u32 {
        // SAFETY: the child only touches shared memory.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let map = Map::open(fd.as_fd());
            let ring = map.as_ref().ok().and_then(|map| map.ringbuf());
            loop {
                let Some(ring) = ring else { continue };
                let sample = ring.reserve(24, 0, LockId::new(owner, 1));
                if !sample.is_null() {
                    // SAFETY: 24 bytes from reserve.
                    unsafe {
                        sample.cast::<u64>().write(u64::from(owner));
                        ring.submit(sample, 0);
                    }
                }
            }
        }
        (0..rng.below(300_000)).for_each(|_| {
            delivered += ring.consume(|_| ());
            std::hint::spin_loop();
        });
        // SAFETY: our own child.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        repairs += map.recover(owner as u16);
        ring.consume(|_| ());
        assert!(!ring.has_data(), "a dead producer's record is in the way");
        // SAFETY: eight valid bytes.
        let posted = unsafe { ring.output([1; 8].as_ptr(), 8, 0, LockId::new(1000, 1)) };
        assert_eq!(posted.ret, 0, "a dead producer holds the lock");
        assert_eq!(ring.consume(|_| ()), 1);
    }
    eprintln!("{repairs} repairs, {delivered} delivered");
}

static RING: std::sync::OnceLock<Map> = std::sync::OnceLock::new();
static NESTED: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

extern "C" fn on_signal(_: libc::c_int) {
    let Some(ring) = RING.get().and_then(|map| map.ringbuf()) else { return };
    // The same thread, hence the same lock id: inside reserve this must fail, not hang.
    // SAFETY: 16 valid bytes.
    let posted = unsafe { ring.output([7; 16].as_ptr(), 16, 0, LockId::new(1, 1)) };
    NESTED[usize::from(posted.ret == 0)].fetch_add(1, SeqCst);
}

#[test]
fn a_signal_inside_reserve_drops_its_record_and_returns() {
    let map = RING.get_or_init(|| ringbuf(1 << 20).1);
    let ring = map.ringbuf().expect("ring");
    let stop = AtomicBool::new(false);
    // SAFETY: the handler touches the ring and atomics only; our own thread's id.
    let me = unsafe {
        libc::signal(libc::SIGUSR2, on_signal as *const () as libc::sighandler_t);
        libc::pthread_self()
    };
    let (mut sent, mut delivered, mut refused) = (0, 0, 0u64);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                // SAFETY: the thread outlives the scope.
                unsafe { libc::pthread_kill(me, libc::SIGUSR2) };
            }
        });
        for i in 0..400_000 {
            // SAFETY: 8 valid bytes.
            let posted = unsafe { ring.output([1; 8].as_ptr(), 8, 0, LockId::new(1, 1)) };
            if posted.ret == 0 {
                sent += 1
            } else {
                refused += 1
            }
            if i % 1000 == 0 {
                delivered += ring.consume(|_| ()) as u64;
            }
        }
        stop.store(true, SeqCst);
    });
    delivered += ring.consume(|_| ()) as u64;
    let nested = [NESTED[0].load(SeqCst), NESTED[1].load(SeqCst)];
    assert!(nested[1] > 0);
    assert_eq!(delivered, sent + nested[1]);
    assert_eq!(ring.dropped(), refused + nested[0]);
}

const RAW: Sample =
    Sample { sample_type: PERF_SAMPLE_RAW, ip: 0, pid: 0, tid: 0, time: 0, addr: 0, cpu: 0, period: 0 };

/// A kernel perf event of one data page, with its mapping.
fn kernel_perf() -> Option<(OwnedFd, *mut u8)> {
    use std::os::fd::FromRawFd;
    let mut attr = [0u64; 17];
    attr[0] = 1 | 136 << 32; // PERF_TYPE_SOFTWARE, size
    attr[1] = 10; // PERF_COUNT_SW_BPF_OUTPUT
    attr[2] = 1; // sample_period
    attr[3] = PERF_SAMPLE_RAW;
    attr[6] = 1; // wakeup_events
    // SAFETY: a valid perf_event_attr of the size it says.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), -1, 0, -1, 8) };
    if fd < 0 {
        return None;
    }
    // SAFETY: a descriptor the kernel just made for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let at = mmap(fd.as_raw_fd(), 0, 2 * PAGE, 3).ok()?;
    // SAFETY: PERF_EVENT_IOC_ENABLE on our own event.
    unsafe { libc::ioctl(fd.as_raw_fd(), 0x2400, 0) };
    Some((fd, at))
}

/// (type, size, contents) of the records in a kernel perf buffer, consuming them.
fn drain_kernel(at: *mut u8) -> Vec<(u32, Vec<u8>)> {
    // SAFETY: the mapping of kernel_perf: meta page, one data page.
    unsafe {
        let head = at.add(1024).cast::<u64>().read_volatile();
        let mut tail = at.add(1032).cast::<u64>().read_volatile();
        let byte = |pos: u64| at.add(PAGE + pos as usize % PAGE).read();
        let mut out = Vec::new();
        while tail < head {
            let header: Vec<u8> = (tail..tail + 8).map(&byte).collect();
            let len = u64::from(u16::from_le_bytes([header[6], header[7]]));
            out.push((u32::from(header[0]), (tail + 8..tail + len).map(&byte).collect()));
            tail += len;
        }
        at.add(1032).cast::<u64>().write_volatile(tail);
        out
    }
}

#[test]
fn perf_bytes_and_answers_are_the_kernels() {
    let Ok(array) = kernel_create(&def(BPF_MAP_TYPE_PERF_EVENT_ARRAY, 4, 4, 1, 0)) else { return };
    let Some((event, at)) = kernel_perf() else { return eprintln!("no perf_event_open: not compared") };
    let update = [array.as_raw_fd() as u64, &raw const ZERO as u64, &raw const event as u64, 0];
    static ZERO: u32 = 0;
    common::bpf(2, &update).expect("perf event into the array");
    let (_fd, ring) = PerfRing::create(1, 0).expect("ring");
    let sizes = (1..=30u32).chain([504; 10]).chain([1, 8, 16]);
    let mut compared = 0;
    for (round, size) in sizes.cycle().take(150).enumerate() {
        const PERF_EVENT_OUTPUT: i32 = 25;
        let args = [
            Arg::Ctx,
            Arg::Map(array.as_raw_fd()),
            Arg::Number(-1),
            Arg::Data(size),
            Arg::Number(size as i32),
        ];
        let answer = Program::calling(PERF_EVENT_OUTPUT, &args).expect("load").run();
        let data: Vec<u8> = (0..size).map(|i| if i % 8 == 0 { 0xab } else { 0 }).collect();
        // SAFETY: the only producer.
        let posted = unsafe { ring.output(&RAW, &[&data]) };
        assert_eq!(posted.ret, i64::from(answer), "round {round}, size {size}");
        if round % 29 == 28 {
            let theirs = drain_kernel(at);
            let mut ours = Vec::new();
            ring.consume(|kind, bytes| ours.push((kind, bytes.to_vec())));
            assert_eq!(ours.len(), theirs.len(), "round {round}");
            for ((kind, mine), (kernel_kind, kernels)) in ours.iter().zip(&theirs) {
                assert_eq!((kind, mine.len()), (kernel_kind, kernels.len()));
                let same_from = if *kind == PERF_RECORD_LOST { 8 } else { 0 }; // the event's id is ours
                let to = if *kind == PERF_RECORD_LOST { 16 } else { 4 + size_without_padding(mine) };
                assert_eq!(mine[same_from..to], kernels[same_from..to]);
                compared += 1;
            }
        }
    }
    assert!(compared > 50);
}

/// What follows the data in a kernel record is whatever was there before.
fn size_without_padding(record: &[u8]) -> usize {
    (u32::from_ne_bytes(record[..4].try_into().expect("4")) as usize).saturating_sub(7)
}

#[test]
fn perf_produced_is_delivered_plus_lost() {
    const SAMPLES: u64 = 300_000;
    let (fd, ring) = PerfRing::create(2, 0).expect("ring");
    let (done, mut delivered, mut lost) = (AtomicBool::new(false), 0u64, 0u64);
    let consumer = PerfRing::open(fd.as_fd()).expect("open");
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng(9);
            for number in 0..SAMPLES {
                let rest = vec![number as u8; rng.below(100) as usize];
                // SAFETY: the only producer.
                let _ = unsafe { ring.output(&RAW, &[&number.to_ne_bytes(), &rest]) };
            }
            done.store(true, SeqCst);
        });
        let mut next = 0;
        loop {
            let last = done.load(SeqCst);
            consumer.consume(|kind, bytes| match kind {
                PERF_RECORD_SAMPLE => {
                    let number = u64::from_ne_bytes(bytes[4..12].try_into().expect("8"));
                    assert_eq!(number, next, "a gap that no LOST record reported");
                    next += 1;
                    delivered += 1;
                }
                _ => {
                    let n = u64::from_ne_bytes(bytes[8..16].try_into().expect("8"));
                    lost += n;
                    next += n;
                }
            });
            if last {
                break;
            }
        }
    });
    assert_eq!(delivered + lost + ring.lost_unreported(), SAMPLES);
}

#[test]
fn perf_samples_carry_the_fields_asked_for_in_abi_order() {
    let (_fd, ring) = PerfRing::create(1, 3).expect("ring");
    ring.set_event_id(77);
    let sample = Sample {
        sample_type: PERF_SAMPLE_RAW
            | PERF_SAMPLE_TID
            | PERF_SAMPLE_TIME
            | PERF_SAMPLE_CPU
            | PERF_SAMPLE_IDENTIFIER,
        pid: 1,
        tid: 2,
        time: 3,
        cpu: 4,
        ..RAW
    };
    // SAFETY: the only producer.
    assert_eq!(unsafe { ring.output(&sample, &[b"ab", b"", b"cd"]) }.ret, 0);
    let mut words = Vec::new();
    ring.consume(|_, bytes| {
        words.extend(bytes.chunks(8).map(|c| u64::from_ne_bytes(c.try_into().expect("8"))))
    });
    assert_eq!(words, [77, 1 | 2 << 32, 3, 4, 4 | 0x6463_6261 << 32]);
}

#[test]
fn a_perf_event_array_is_a_table_of_rings() {
    let (_fd, map) = Map::create(&def(BPF_MAP_TYPE_PERF_EVENT_ARRAY, 4, 4, 2, 0), 2).expect("create");
    let array = map.perf_event_array().expect("array");
    let ring = |cpu| PerfRing::create(1, cpu).expect("ring").1;
    // SAFETY: no ring is freed while referred to.
    unsafe {
        assert_eq!(array.ring(0).map(|_| ()), Err(Errno::NOENT));
        assert_eq!(array.ring(2).map(|_| ()), Err(Errno::TOOBIG));
        assert!(array.set_slot(1, Some(ring(1))).expect("slot").is_none());
        assert_eq!(array.ring(1).expect("ring").cpu(), 1);
        assert_eq!(array.occupied().collect::<Vec<_>>(), [1]);
        assert_eq!(array.set_slot(1, Some(ring(5))).expect("slot").expect("old").cpu(), 1);
    }
    assert_eq!(map.sys_delete(&1u32.to_ne_bytes()), Ok(()));
    assert_eq!(map.sys_delete(&1u32.to_ne_bytes()), Err(Errno::NOENT));
}
