//! What a program can see of `struct task_struct`: the kernel's structs that tools walk from `bpf_get_current_task`,
//! and which of their members a process can answer for.
//!
//! The kernel's layout changes from release to release; tools relocate against its BTF (CO-RE) or compile against its
//! headers. So a member is a row here, its offset is looked up in the BTF that the tool sees, and the agent makes the
//! value. Members without a row read as zero, as does everything else in these structs.
//!
//! Beside the task the registers of a system call are to be had this way, at the layout that user space knows.
//!
//! Pointers between them are addresses that encode what they point to ([`Place`]). They look like the kernel's own and
//! are mapped nowhere in user space: only the `probe_read` family resolves them, nothing can be written through them.

/// A kernel struct of the shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Object {
    /// `struct task_struct`.
    Task,
    /// `struct cred`.
    Cred,
    /// `struct nsproxy`.
    Nsproxy,
    /// `struct pid_namespace`.
    PidNs,
    /// `struct uts_namespace`.
    UtsNs,
    /// `struct mnt_namespace`.
    MntNs,
    /// `struct net`.
    NetNs,
    /// `struct ipc_namespace`.
    IpcNs,
    /// `struct cgroup_namespace`.
    CgroupNs,
    /// `struct pid`.
    Pid,
    /// `struct css_set`.
    CssSet,
    /// `struct cgroup`.
    Cgroup,
    /// `struct kernfs_node`.
    KernfsNode,
    /// The characters that `kernfs_node.name` points to.
    CgroupName,
    /// `struct mm_struct`: there is one, which tells a process from a kernel thread.
    Mm,
    /// The registers with which a system call was made: what a probe on the kernel's function for it gets.
    Registers,
}

/// What a member holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The thread's id.
    Tid,
    /// The process's id.
    Tgid,
    /// The thread's name, 16 bytes.
    Comm,
    /// Nanoseconds of the monotonic clock at which the thread started.
    StartTime,
    /// The same in time since boot.
    StartBoottime,
    /// Real user id.
    Uid,
    /// Real group id.
    Gid,
    /// Effective user id.
    Euid,
    /// Effective group id.
    Egid,
    /// Saved user id.
    Suid,
    /// Saved group id.
    Sgid,
    /// Inode number of the thread's namespace of the kind that the object is.
    NsInum,
    /// The host's name.
    Nodename,
    /// Id of the process's cgroup.
    CgroupId,
    /// Last component of its path.
    CgroupName,
    /// Address of another object of the same thread.
    Pointer(Object),
    /// Address of the task that is the parent of the process.
    Parent,
    /// Address of the process's first thread.
    Leader,
    /// What wait(2) will tell of a thread that is calling exit or exit_group.
    ExitCode,
}

macro_rules! fields {
    ($($object:ident $strukt:literal { $($member:literal $size:literal $value:expr;)* })*) => {
        /// A member of the shadow.
        #[derive(Clone, Copy, Debug)]
        pub struct Field {
            /// The struct it is in.
            pub object: Object,
            /// The struct's name in BTF.
            pub in_struct: &'static str,
            /// The member, or the way down to it through members that are structs.
            pub member: &'static str,
            /// Bytes.
            pub size: u32,
            /// What it holds.
            pub value: Value,
        }

        /// All members. A row's index stands for it between server and agent.
        pub const FIELDS: &[Field] = &[$($(Field {
            object: Object::$object, in_struct: $strukt, member: $member, size: $size, value: $value,
        },)*)*];
    };
}

use Value::{
    CgroupId, CgroupName, Comm, Egid, Euid, ExitCode, Gid, Leader, Nodename, NsInum, Parent, Pointer, Sgid,
    StartBoottime, StartTime, Suid, Tgid, Tid, Uid,
};

fields! {
    Task "task_struct" {
        "pid" 4 Tid;
        "tgid" 4 Tgid;
        "comm" 16 Comm;
        "start_time" 8 StartTime;
        "start_boottime" 8 StartBoottime;
        "real_start_time" 8 StartBoottime; // its name before Linux 5.5
        "real_parent" 8 Parent;
        "parent" 8 Parent;
        "group_leader" 8 Leader;
        "cred" 8 Pointer(Object::Cred);
        "real_cred" 8 Pointer(Object::Cred);
        "nsproxy" 8 Pointer(Object::Nsproxy);
        "thread_pid" 8 Pointer(Object::Pid);
        "cgroups" 8 Pointer(Object::CssSet);
        "mm" 8 Pointer(Object::Mm);
        "exit_code" 4 ExitCode;
    }
    Cred "cred" {
        "uid" 4 Uid;
        "gid" 4 Gid;
        "suid" 4 Suid;
        "sgid" 4 Sgid;
        "euid" 4 Euid;
        "egid" 4 Egid;
        "fsuid" 4 Euid;
        "fsgid" 4 Egid;
    }
    Nsproxy "nsproxy" {
        "uts_ns" 8 Pointer(Object::UtsNs);
        "ipc_ns" 8 Pointer(Object::IpcNs);
        "mnt_ns" 8 Pointer(Object::MntNs);
        "pid_ns_for_children" 8 Pointer(Object::PidNs);
        "net_ns" 8 Pointer(Object::NetNs);
        "cgroup_ns" 8 Pointer(Object::CgroupNs);
    }
    PidNs "pid_namespace" { "ns.inum" 4 NsInum; }
    UtsNs "uts_namespace" { "ns.inum" 4 NsInum; "name.nodename" 65 Nodename; }
    MntNs "mnt_namespace" { "ns.inum" 4 NsInum; }
    NetNs "net" { "ns.inum" 4 NsInum; }
    IpcNs "ipc_namespace" { "ns.inum" 4 NsInum; }
    CgroupNs "cgroup_namespace" { "ns.inum" 4 NsInum; }
    Pid "pid" { "numbers.nr" 4 Tid; "numbers.ns" 8 Pointer(Object::PidNs); }
    CssSet "css_set" { "dfl_cgrp" 8 Pointer(Object::Cgroup); }
    Cgroup "cgroup" { "kn" 8 Pointer(Object::KernfsNode); }
    KernfsNode "kernfs_node" { "id" 8 CgroupId; "name" 8 Pointer(Object::CgroupName); }
    CgroupName "" { "" 128 CgroupName; }
}

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Row {
    /// Index in [`FIELDS`].
    pub field: u16,
    /// Bytes from the start of its struct.
    pub offset: u16,
}

/// A place in the shadow, as an address spells it:
///
/// ```text
/// 63      42 41   38 37   16 15    0
///  0xffff88.. object  thread  offset
/// ```
/// The addresses lie where x86-64 kernels map all memory, above everything that a process can map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What.
    pub object: Object,
    /// Whose: a thread id (below `PID_MAX_LIMIT`, 2^22).
    pub thread: u32,
    /// Bytes into it.
    pub offset: u16,
}

/// First address of the shadow.
const BASE: u64 = 0xffff_8880_0000_0000;
const OBJECT_SHIFT: u32 = 38;
const THREAD_SHIFT: u32 = 16;
const THREAD_MASK: u64 = (1 << 22) - 1;
const OBJECTS: [Object; 16] = [
    Object::Task,
    Object::Cred,
    Object::Nsproxy,
    Object::PidNs,
    Object::UtsNs,
    Object::MntNs,
    Object::NetNs,
    Object::IpcNs,
    Object::CgroupNs,
    Object::Pid,
    Object::CssSet,
    Object::Cgroup,
    Object::KernfsNode,
    Object::CgroupName,
    Object::Mm,
    Object::Registers,
];

// The object's number is its index, and all of them fit into their four bits.
const _: () = {
    let mut i = 0;
    while i < OBJECTS.len() {
        assert!(OBJECTS[i] as usize == i);
        i += 1;
    }
    assert!(OBJECTS.len() <= 16);
};

impl Place {
    /// The start of `object` of `thread`.
    pub const fn of(object: Object, thread: u32) -> Self {
        Self { object, thread, offset: 0 }
    }

    /// Its address.
    pub const fn address(self) -> u64 {
        let thread = self.thread as u64 & THREAD_MASK;
        BASE + ((self.object as u64) << OBJECT_SHIFT) + (thread << THREAD_SHIFT) + self.offset as u64
    }

    /// The place that `address` means; `None` outside of the shadow.
    #[inline]
    pub fn at(address: u64) -> Option<Self> {
        let rest = address.checked_sub(BASE)?;
        let object = *OBJECTS.get((rest >> OBJECT_SHIFT) as usize)?;
        Some(Self { object, thread: (rest >> THREAD_SHIFT & THREAD_MASK) as u32, offset: rest as u16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_place() {
        for object in OBJECTS {
            for (thread, offset) in [(0, 0), (1, 0xffff), (4_194_303, 17)] {
                let place = Place { object, thread, offset };
                assert_eq!(Place::at(place.address()), Some(place));
            }
        }
    }

    #[test]
    fn user_addresses_and_the_kernels_text_are_no_places() {
        for address in [0, 0x7fff_ffff_f000, BASE - 1, BASE + (16 << OBJECT_SHIFT), 0xffff_ffff_8100_0000] {
            assert_eq!(Place::at(address), None, "{address:#x}");
        }
    }
}
