//! perf_event_open(2).

use super::kprobe;
use crate::object::{self, Events, Object, PerfKind, PerfObject, PerfState};
use crate::{fds, tool, user, wait};
use bpftime_abi::perf::{self, PerfEventAttr};
use rustix::io::Errno;
use rustix::process::Pid;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use zerocopy::IntoBytes;

/// The system call.
pub fn open(attr: u64, pid: i32, cpu: i32, group: i32, flags: u64) -> Result<i64, Errno> {
    tool::become_tool();
    let r = crate::cmd::again_if_full(|| open_checked(attr, pid, cpu, group, flags));
    tracing::debug!(pid, cpu, group, flags, result = ?r, "perf_event_open");
    r
}

fn open_checked(attr: u64, pid: i32, cpu: i32, group: i32, flags: u64) -> Result<i64, Errno> {
    let a = copy_attr(attr)?;
    let known = perf::FLAG_FD_NO_GROUP | perf::FLAG_FD_OUTPUT | perf::FLAG_PID_CGROUP | perf::FLAG_FD_CLOEXEC;
    if flags & !known != 0 || (pid == -1 && cpu == -1) {
        return Err(Errno::INVAL);
    }
    if flags & perf::FLAG_PID_CGROUP != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    if group != -1 {
        object::perf(group as u32).map_err(|_| Errno::BADF)?;
    }
    check_cpu(cpu)?;
    check_rate(&a)?;
    let kind = kind_of(&a, cpu)?;
    check_pid(pid)?;
    create(&a, kind, (pid, cpu), flags)
}

/// Copies the attribute; the size field works as in the kernel, E2BIG with our size stored for what we do not know.
fn copy_attr(addr: u64) -> Result<PerfEventAttr, Errno> {
    let mut a = PerfEventAttr::default();
    let known = size_of::<PerfEventAttr>() as u32;
    let size = match user::read_value::<[u32; 2]>(addr)?[1] {
        0 => perf::ATTR_SIZE_VER0,
        n => n,
    };
    let too_big = |addr: u64| {
        let _ = user::write_value(addr + 4, &known);
        Err(Errno::TOOBIG)
    };
    if !(perf::ATTR_SIZE_VER0..=4096).contains(&size) {
        return too_big(addr);
    }
    let bytes = user::read(addr, size as usize)?;
    let n = bytes.len().min(known as usize);
    if bytes[n..].iter().any(|b| *b != 0) {
        return too_big(addr);
    }
    a.as_mut_bytes()[..n].copy_from_slice(&bytes[..n]);
    Ok(a)
}

/// Type number of the uprobe PMU, as sysfs says.
fn uprobe_pmu() -> u32 {
    static TYPE: OnceLock<u32> = OnceLock::new();
    *TYPE.get_or_init(|| crate::files::pmu::kernels_type("uprobe").unwrap_or(perf::UPROBE_PMU_DEFAULT))
}

/// A frequency is limited, a period has no sign.
fn check_rate(a: &PerfEventAttr) -> Result<(), Errno> {
    let freq = a.flags & perf::ATTR_FREQ != 0;
    let valid = if freq { a.sample_period <= super::clock::max_rate() } else { a.sample_period >> 63 == 0 };
    if valid { Ok(()) } else { Err(Errno::INVAL) }
}

fn kind_of(a: &PerfEventAttr, cpu: i32) -> Result<PerfKind, Errno> {
    match (a.type_, a.config) {
        (perf::PERF_TYPE_SOFTWARE, perf::PERF_COUNT_SW_BPF_OUTPUT) => Ok(PerfKind::BpfOutput),
        (perf::PERF_TYPE_SOFTWARE, perf::PERF_COUNT_SW_CPU_CLOCK | perf::PERF_COUNT_SW_TASK_CLOCK) => {
            Ok(PerfKind::Clock { freq: a.flags & perf::ATTR_FREQ != 0, cpu: u32::try_from(cpu).ok() })
        }
        (t, _) if super::counter::is(t) => super::counter::event(a, cpu),
        (t, _) if t == uprobe_pmu() => uprobe(a),
        (t, _) if t == kprobe::pmu() => kprobe::event(a).map(PerfKind::Kprobe),
        (perf::PERF_TYPE_TRACEPOINT, _) => super::tracepoint::event(a).map(PerfKind::Tracepoint),
        // What the kernel says without such a PMU.
        _ => Err(Errno::NOENT),
    }
}

fn uprobe(a: &PerfEventAttr) -> Result<PerfKind, Errno> {
    if a.config1 == 0 {
        return Err(Errno::INVAL);
    }
    let path = user::read_str(a.config1, 4095)
        .map_err(|e| if e == Errno::NAMETOOLONG { Errno::TOOBIG } else { e })?;
    if path.is_empty() {
        return Err(Errno::INVAL);
    }
    let st = rustix::fs::stat(path.as_slice())?;
    if rustix::fs::FileType::from_raw_mode(st.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    if a.config2 as i64 >= st.st_size || (a.config2 as i64) < 0 {
        return Err(Errno::INVAL);
    }
    super::unfit::refuse(&path, &st)?;
    Ok(PerfKind::Uprobe {
        path,
        file: (st.st_dev, st.st_ino),
        offset: a.config2,
        ret: a.config & 1 != 0,
        ref_ctr_offset: a.config >> 32,
    })
}

fn check_cpu(cpu: i32) -> Result<(), Errno> {
    if cpu < -1 || cpu >= crate::cmd::map::possible_cpus() as i32 { Err(Errno::INVAL) } else { Ok(()) }
}

/// A process that is not there is ESRCH, one of another user EACCES.
fn check_pid(pid: i32) -> Result<(), Errno> {
    let Some(target) = Pid::from_raw(pid.max(0)) else { return Ok(()) };
    match rustix::process::test_kill_process(target) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => Err(Errno::ACCESS),
        Err(e) => Err(e),
    }
}

fn create(a: &PerfEventAttr, kind: PerfKind, (pid, cpu): (i32, i32), flags: u64) -> Result<i64, Errno> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let (tool, ours) = fds::event_pair()?;
    if flags & perf::FLAG_FD_CLOEXEC == 0 {
        rustix::io::fcntl_setfd(&tool, rustix::io::FdFlags::empty())?;
    }
    let is_output = matches!(kind, PerfKind::BpfOutput);
    let (events, liveness) = if is_output {
        (Some(Events { ours, tool: fds::hidden(&tool)?, signalled: AtomicBool::new(false) }), None)
    } else {
        (None, Some(ours))
    };
    let clock = matches!(kind, PerfKind::Clock { .. });
    let freq = a.flags & perf::ATTR_FREQ != 0;
    let state = PerfState {
        enabled: a.flags & perf::ATTR_DISABLED == 0,
        period: if clock { super::clock::period_of(freq, a.sample_period) } else { a.sample_period },
        ..PerfState::default()
    };
    let event = Arc::new(PerfObject {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        kind,
        // The tool's own pid 0 means itself.
        pid: if pid == 0 { std::process::id() as i32 } else { pid },
        cpu: cpu.max(0) as u32,
        wakeup_events: a.wakeup_events,
        liveness: Mutex::new(liveness),
        events,
        ring: OnceLock::new(),
        state: Mutex::new(state),
        changing: Mutex::default(),
    });
    if is_output {
        wait::register(wait::Ring::Perf(Arc::downgrade(&event)));
    } else {
        fds::watch(&tool);
    }
    object::insert(&tool, Object::Perf(event))?;
    Ok(fds::give(tool))
}
