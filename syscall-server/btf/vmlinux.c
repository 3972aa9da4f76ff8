/*
 * The types that bpftime serves as /sys/kernel/btf/vmlinux where the kernel's own cannot be read.
 *
 * Tools relocate against it (CO-RE) and bpftrace takes C declarations from it. What matters are names and the way from
 * one struct to the next: the offsets here are our own, and the agent's shadow of the task (abi/src/task.rs) follows
 * whatever BTF the tool sees. Records of tracepoints and pt_regs are ABI and have the kernel's layout.
 *
 * vmlinux.btf is made from this file: scripts/btf. A test compares the two where clang is installed.
 */

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;
typedef unsigned long size_t;
typedef long ssize_t;
typedef int pid_t;
typedef unsigned int uid_t;
typedef unsigned int gid_t;
typedef unsigned int qid_t;
typedef unsigned short umode_t;
typedef unsigned int dev_t;
typedef long off_t;
typedef long long loff_t;
typedef int key_t;
typedef int key_serial_t;
typedef int clockid_t;
typedef int timer_t;
typedef int mqd_t;
typedef int rwf_t;
typedef unsigned long aio_context_t;
typedef long long time64_t;
typedef struct { uid_t val; } kuid_t;
typedef struct { gid_t val; } kgid_t;
typedef struct { int counter; } atomic_t;
typedef struct { s64 counter; } atomic64_t;
typedef struct { atomic_t refs; } refcount_t;

enum { false = 0, true = 1 };

struct list_head { struct list_head *next, *prev; };
struct __kernel_timespec { long long tv_sec, tv_nsec; };
struct timespec64 { time64_t tv_sec; long tv_nsec; };
struct __kernel_old_timeval { long tv_sec, tv_usec; };

/* arch/x86: uapi names are those of the user's struct, the kernel's own are without r. */
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
typedef struct pt_regs bpf_user_pt_regs_t;
struct bpf_perf_event_data { bpf_user_pt_regs_t regs; __u64 sample_period, addr; };
struct perf_sample_data { u64 addr, period; };
struct perf_event;
struct bpf_perf_event_data_kern {
	bpf_user_pt_regs_t *regs;
	struct perf_sample_data *data;
	struct perf_event *event;
};

/* Records of tracepoints. */
struct trace_entry { unsigned short type; unsigned char flags, preempt_count; int pid; };
struct trace_event_raw_sys_enter { struct trace_entry ent; long id; unsigned long args[6]; char __data[0]; };
struct trace_event_raw_sys_exit { struct trace_entry ent; long id, ret; char __data[0]; };
struct trace_event_raw_sched_process_template {
	struct trace_entry ent;
	char comm[16];
	pid_t pid;
	int prio;
	char __data[0];
};
struct trace_event_raw_sched_process_exec {
	struct trace_entry ent;
	u32 __data_loc_filename;
	pid_t pid, old_pid;
	char __data[0];
};
struct trace_event_raw_sched_process_fork {
	struct trace_entry ent;
	char parent_comm[16];
	pid_t parent_pid;
	char child_comm[16];
	pid_t child_pid;
	char __data[0];
};
struct trace_event_raw_signal_generate {
	struct trace_entry ent;
	int sig, errno, code;
	char comm[16];
	pid_t pid;
	int group, result;
	char __data[0];
};

/* The task and what hangs on it. */
struct task_struct;
struct dentry;
struct vfsmount;
struct user_namespace;
struct ns_common { struct dentry *stashed; const void *ops; unsigned int inum; refcount_t count; };
struct new_utsname { char sysname[65], nodename[65], release[65], version[65], machine[65], domainname[65]; };
struct uts_namespace { struct new_utsname name; struct user_namespace *user_ns; struct ns_common ns; };
struct ipc_namespace { struct user_namespace *user_ns; struct ns_common ns; };
struct mnt_namespace { struct ns_common ns; struct user_namespace *user_ns; };
struct net { struct user_namespace *user_ns; struct ns_common ns; };
struct cgroup_namespace { struct ns_common ns; struct user_namespace *user_ns; };
struct pid_namespace {
	struct task_struct *child_reaper;
	unsigned int level;
	struct pid_namespace *parent;
	struct user_namespace *user_ns;
	struct ns_common ns;
};
struct upid { int nr; struct pid_namespace *ns; };
struct pid { refcount_t count; unsigned int level; struct upid numbers[1]; };
struct nsproxy {
	refcount_t count;
	struct uts_namespace *uts_ns;
	struct ipc_namespace *ipc_ns;
	struct mnt_namespace *mnt_ns;
	struct pid_namespace *pid_ns_for_children;
	struct net *net_ns;
	struct cgroup_namespace *cgroup_ns;
};
struct cred {
	kuid_t uid;
	kgid_t gid;
	kuid_t suid;
	kgid_t sgid;
	kuid_t euid;
	kgid_t egid;
	kuid_t fsuid;
	kgid_t fsgid;
	struct user_namespace *user_ns;
};
struct kernfs_node { struct kernfs_node *parent; const char *name; u64 id; };
struct cgroup { int level; struct kernfs_node *kn; };
struct css_set { struct cgroup *dfl_cgrp; };
struct mm_struct { unsigned long arg_start, arg_end, env_start, env_end; };
struct fs_struct;
struct files_struct;
struct signal_struct { int group_exit_code; unsigned int flags; };
struct task_struct {
	unsigned int __state;
	void *stack;
	refcount_t usage;
	unsigned int flags;
	int on_cpu, prio, static_prio, normal_prio;
	struct mm_struct *mm;
	int exit_state, exit_code, exit_signal;
	pid_t pid, tgid;
	struct task_struct *real_parent, *parent;
	struct list_head children, sibling;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	u64 utime, stime;
	unsigned long nvcsw, nivcsw;
	u64 start_time, start_boottime;
	unsigned long min_flt, maj_flt;
	const struct cred *real_cred, *cred;
	char comm[16];
	struct fs_struct *fs;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
	kuid_t loginuid;
	unsigned int sessionid;
	struct css_set *cgroups;
};

/* Files, for tools that carry code for them on other kernels. */
struct qstr { u32 hash, len; const unsigned char *name; };
struct super_block { dev_t s_dev; unsigned char s_blocksize_bits; unsigned long s_magic; };
struct inode { umode_t i_mode; kuid_t i_uid; kgid_t i_gid; struct super_block *i_sb; unsigned long i_ino; loff_t i_size; };
struct dentry { struct dentry *d_parent; struct qstr d_name; struct inode *d_inode; unsigned char d_iname[32]; };
struct vfsmount { struct dentry *mnt_root; struct super_block *mnt_sb; int mnt_flags; };
struct path { struct vfsmount *mnt; struct dentry *dentry; };
struct file { struct path f_path; struct inode *f_inode; unsigned int f_flags; umode_t f_mode; loff_t f_pos; };
struct fdtable { unsigned int max_fds; struct file **fd; };
struct files_struct { struct fdtable *fdt; struct fdtable fdtab; };
struct fs_struct { int users, umask; struct path root, pwd; };
struct linux_binprm { struct file *file; struct cred *cred; int argc, envc; const char *filename, *interp; };
struct open_how { __u64 flags, mode, resolve; };

/* What tools ask for by existence. */
struct bpf_ringbuf { u64 mask; unsigned long consumer_pos, producer_pos; };
struct bpf_perf_link { int unused; };
enum bpf_map_type {
	BPF_MAP_TYPE_UNSPEC,
	BPF_MAP_TYPE_HASH,
	BPF_MAP_TYPE_ARRAY,
	BPF_MAP_TYPE_PROG_ARRAY,
	BPF_MAP_TYPE_PERF_EVENT_ARRAY,
	BPF_MAP_TYPE_PERCPU_HASH,
	BPF_MAP_TYPE_PERCPU_ARRAY,
	BPF_MAP_TYPE_STACK_TRACE,
	BPF_MAP_TYPE_CGROUP_ARRAY,
	BPF_MAP_TYPE_LRU_HASH,
	BPF_MAP_TYPE_LRU_PERCPU_HASH,
	BPF_MAP_TYPE_LPM_TRIE,
	BPF_MAP_TYPE_ARRAY_OF_MAPS,
	BPF_MAP_TYPE_HASH_OF_MAPS,
	BPF_MAP_TYPE_QUEUE = 22,
	BPF_MAP_TYPE_STACK,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
	BPF_MAP_TYPE_BLOOM_FILTER,
	BPF_MAP_TYPE_USER_RINGBUF,
};
enum bpf_func_id {
	BPF_FUNC_probe_read_user = 112,
	BPF_FUNC_probe_read_kernel,
	BPF_FUNC_probe_read_user_str,
	BPF_FUNC_probe_read_kernel_str,
	BPF_FUNC_ktime_get_boot_ns = 125,
	BPF_FUNC_ringbuf_output = 130,
	BPF_FUNC_ringbuf_reserve,
	BPF_FUNC_ringbuf_submit,
	BPF_FUNC_ringbuf_discard,
	BPF_FUNC_ringbuf_query,
	BPF_FUNC_for_each_map_elem = 164,
	BPF_FUNC_get_func_ip = 173,
	BPF_FUNC_get_attach_cookie,
	BPF_FUNC_loop = 181,
	BPF_FUNC_strncmp,
};

/* Every type must be reached from a variable to be written out. */
struct all_types {
	struct __kernel_timespec kernel_timespec;
	struct timespec64 timespec64;
	struct __kernel_old_timeval timeval;
	struct pt_regs regs;
	struct bpf_perf_event_data perf_data;
	struct bpf_perf_event_data_kern perf_data_kern;
	struct trace_event_raw_sys_enter sys_enter;
	struct trace_event_raw_sys_exit sys_exit;
	struct trace_event_raw_sched_process_template process_template;
	struct trace_event_raw_sched_process_exec process_exec;
	struct trace_event_raw_sched_process_fork process_fork;
	struct trace_event_raw_signal_generate signal_generate;
	struct task_struct task;
	struct uts_namespace uts;
	struct ipc_namespace ipc;
	struct mnt_namespace mnt;
	struct net net;
	struct cgroup_namespace cgroup_ns;
	struct pid_namespace pid_ns;
	struct pid pid;
	struct nsproxy nsproxy;
	struct cred cred;
	struct kernfs_node kernfs_node;
	struct cgroup cgroup;
	struct css_set css_set;
	struct mm_struct mm;
	struct signal_struct signal;
	struct super_block super_block;
	struct inode inode;
	struct dentry dentry;
	struct vfsmount vfsmount;
	struct file file;
	struct files_struct files;
	struct fs_struct fs;
	struct linux_binprm binprm;
	struct open_how open_how;
	struct bpf_ringbuf ringbuf;
	struct bpf_perf_link perf_link;
	struct list_head list_head;
	enum bpf_map_type map_type;
	enum bpf_func_id func_id;
	s8 t_s8; u8 t_u8; s16 t_s16; u16 t_u16; s32 t_s32; u32 t_u32; s64 t_s64; u64 t_u64;
	__be16 be16; __be32 be32; __be64 be64; __wsum wsum;
	bool t_bool; size_t t_size; ssize_t t_ssize; pid_t t_pid; uid_t t_uid; gid_t t_gid; qid_t t_qid;
	umode_t t_umode; dev_t t_dev; off_t t_off; loff_t t_loff; key_t t_key; key_serial_t t_serial;
	clockid_t t_clock; timer_t t_timer; mqd_t t_mqd; rwf_t t_rwf; aio_context_t t_aio;
	atomic_t t_atomic; atomic64_t t_atomic64;
} bpftime_all_types;

/* Kernel functions that programs may call. */
bool bpf_session_is_return(void) { return 0; }
__u64 *bpf_session_cookie(void) { return 0; }
