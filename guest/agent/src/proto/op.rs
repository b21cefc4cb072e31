// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host can ask for.

use serde::{Deserialize, Serialize};

use super::{Advice, Fadvice, FallocMode, FsType, Memfd, MmOp, OpenFlags, StoreAfter, VerbsOp};
use crate::acked::Plan;
use crate::pattern::Pattern;

/// One step. Each variant names the [`Value`](super::Value) it returns; `Unit` where none is named.
///
/// `h` is an open file, `m` a mapping or anonymous buffer, `job` a running step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Does nothing.
    Ping,
    /// Drops all handles. Returns `Num`: steps still running, whose resources live until they end.
    Reset,

    // Programs and the system.
    /// Runs a program (found by PATH) and waits. Returns `Exec`.
    Exec {
        /// Program and arguments.
        #[serde(rename = "a")]
        argv: Vec<String>,
        /// Its standard input.
        #[serde(rename = "i", default, skip_serializing_if = "String::is_empty")]
        stdin: String,
        /// Its process group is killed after so many seconds (0: 60).
        #[serde(rename = "s", default)]
        limit_s: u32,
    },
    /// Makes a file system: `mkfs.FS -f OPTS DEV`. Returns `Exec`.
    Mkfs {
        /// Its type.
        fs: FsType,
        /// Block device.
        dev: String,
        /// More options.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        opts: Vec<String>,
    },
    /// mount(2); makes `dir` and loads the file system's module if missing.
    Mount {
        /// Block device or source name.
        dev: String,
        /// Mount point.
        dir: String,
        /// Type, as mount(8) calls it.
        fs: String,
        /// File system options (the comma list).
        #[serde(rename = "o", default, skip_serializing_if = "String::is_empty")]
        opts: String,
        /// MS_RDONLY.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ro: bool,
    },
    /// umount2(2) without flags: fails with EBUSY while something is open.
    Umount {
        /// Mount point.
        dir: String,
    },
    /// btrfs forgets the devices of file systems that are not mounted. Where the kernel has no btrfs there is nothing to forget.
    ForgetDevices,
    /// Sets (when `value` is there) and reads a sysctl, named with dots or slashes. Returns `Text`.
    Sysctl {
        /// "vm.dirty_writeback_centisecs".
        key: String,
        /// New value.
        #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
    /// Returns `Text`: the beginning of a file.
    ReadFile {
        /// Its path.
        path: String,
        /// At most so many bytes (48 KiB at most).
        max: u32,
    },
    /// Writes `text` with one write(2) into an existing file (sysfs, procfs).
    WriteSys {
        /// Its path.
        path: String,
        /// What to write.
        text: String,
    },
    /// Loads a module by name, with what modules.dep and modules.softdep say it needs. Returns `Num`: modules newly loaded; 0 on a
    /// kernel that has no directory of modules, whose parts are built in or missing.
    Modprobe {
        /// Its name; `-` and `_` are the same.
        name: String,
    },
    /// mkdir -p.
    Mkdir {
        /// Path.
        path: String,
    },
    /// unlink(2).
    Unlink {
        /// Path.
        path: String,
    },
    /// Returns `Sys`.
    SysInfo,
    /// Returns `Num`: /proc/sys/kernel/tainted.
    Taint,
    /// Returns `Num`: the mark of the newest kernel message.
    DmesgMark,
    /// Words that every later [`Op::DmesgSince`] keeps messages for. Said once: each byte of a request is a VM exit or two.
    DmesgWords {
        /// Instead of those before.
        #[serde(rename = "w")]
        words: Vec<String>,
    },
    /// Kernel messages after a mark. Returns `Lines` (at most 200, each at most 400 characters, newest kept).
    DmesgSince {
        /// From [`Op::DmesgMark`]; 0 for all.
        #[serde(rename = "m")]
        mark: u64,
        /// Keep messages of this severity and worse (syslog: 3 error, 4 warning, 7 everything), and those with one of [`Op::DmesgWords`].
        #[serde(rename = "l")]
        level: u8,
    },
    /// Sync, unmount, power off. The reply is sent before.
    Poweroff,
    /// Restart at once, without syncing anything. The reply is sent before.
    Reboot,
    /// Kernel panic on purpose. The reply is sent before.
    Crash,

    // Files.
    /// Returns `Handle`.
    Open {
        /// Path.
        #[serde(rename = "p")]
        path: String,
        /// How.
        #[serde(rename = "f", default)]
        flags: OpenFlags,
    },
    /// Drops a file, mapping or job handle. A mapping is unmapped.
    Close {
        /// Any handle.
        h: u32,
    },
    /// pwrite(2) of a pattern: one call up to 4 MiB, then 4 MiB at a time. Returns `Num`: bytes.
    Write {
        /// File.
        h: u32,
        /// Offset; the pattern is that of this file offset.
        #[serde(rename = "o")]
        off: u64,
        /// Length, at most 1 GiB.
        #[serde(rename = "l")]
        len: u64,
        /// What.
        #[serde(rename = "p")]
        pattern: Pattern,
    },
    /// pread(2). Returns `Content`. `off` is a multiple of 512.
    Read {
        /// File.
        h: u32,
        /// Offset.
        #[serde(rename = "o")]
        off: u64,
        /// Length, at most 1 GiB; less where the file ends.
        #[serde(rename = "l")]
        len: u64,
    },
    /// fsync(2).
    Fsync {
        /// File.
        h: u32,
    },
    /// fdatasync(2).
    Fdatasync {
        /// File.
        h: u32,
    },
    /// sync_file_range(2).
    SyncFileRange {
        /// File.
        h: u32,
        /// Offset.
        #[serde(rename = "o")]
        off: u64,
        /// Length; 0 means to the end.
        #[serde(rename = "l")]
        len: u64,
        /// SYNC_FILE_RANGE_WAIT_BEFORE.
        #[serde(rename = "b", default, skip_serializing_if = "std::ops::Not::not")]
        wait_before: bool,
        /// SYNC_FILE_RANGE_WRITE.
        #[serde(rename = "w", default, skip_serializing_if = "std::ops::Not::not")]
        write: bool,
        /// SYNC_FILE_RANGE_WAIT_AFTER.
        #[serde(rename = "a", default, skip_serializing_if = "std::ops::Not::not")]
        wait_after: bool,
    },
    /// syncfs(2) of the file system that `h` is on.
    SyncFs {
        /// File.
        h: u32,
    },
    /// sync(2).
    Sync,
    /// fallocate(2).
    Fallocate {
        /// File.
        h: u32,
        /// What to do with the range.
        mode: FallocMode,
        /// Offset.
        #[serde(rename = "o")]
        off: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },
    /// ftruncate(2).
    Ftruncate {
        /// File.
        h: u32,
        /// New size.
        #[serde(rename = "l")]
        len: u64,
    },
    /// ioctl FICLONE: `dst` becomes a clone of `src`.
    Ficlone {
        /// File to clone.
        src: u32,
        /// File that becomes the clone.
        dst: u32,
    },
    /// FS_IOC_FIEMAP of the whole file. Returns `Extents` (at most 512).
    Fiemap {
        /// File.
        h: u32,
        /// FIEMAP_FLAG_SYNC.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        sync: bool,
    },
    /// Returns `Stat`.
    Stat {
        /// File.
        h: u32,
    },
    /// posix_fadvise(2).
    Fadvise {
        /// File.
        h: u32,
        /// Offset.
        #[serde(rename = "o")]
        off: u64,
        /// Length; 0 means to the end.
        #[serde(rename = "l")]
        len: u64,
        /// What.
        #[serde(rename = "a")]
        advice: Fadvice,
    },
    /// sync(2) is *not* called: only clean pages (1), slab objects (2) or both (3) go.
    DropCaches {
        /// Value for /proc/sys/vm/drop_caches.
        what: u8,
    },

    // Memory.
    /// mmap(2) of a file. Returns `Handle`.
    Mmap {
        /// File.
        h: u32,
        /// Offset, a multiple of 4096.
        #[serde(rename = "o")]
        off: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
        /// PROT_WRITE beside PROT_READ.
        #[serde(rename = "w", default, skip_serializing_if = "std::ops::Not::not")]
        write: bool,
        /// MAP_PRIVATE instead of MAP_SHARED.
        #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
        private: bool,
    },
    /// Anonymous private memory, page-aligned. Returns `Handle`.
    AnonBuffer {
        /// Length.
        #[serde(rename = "l")]
        len: u64,
        /// Aligned to 2 MiB and MADV_HUGEPAGE (else MADV_NOHUGEPAGE).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        huge: bool,
    },
    /// Unmaps; the handle stays until closed, its address range is not used again before.
    Munmap {
        /// Mapping.
        m: u32,
    },
    /// After [`Op::Munmap`]: fresh anonymous private memory at the mapping's address.
    MapAgain {
        /// Mapping.
        m: u32,
    },
    /// mremap(2) to another address. Returns `Handle` of the mapping there; the old one is as after [`Op::Munmap`].
    MoveMapping {
        /// Mapping.
        m: u32,
    },
    /// F_ADD_SEALS, F_SEAL_WRITE of a memory file.
    SealWrite {
        /// File.
        h: u32,
    },
    /// msync(2) with MS_SYNC.
    Msync {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },
    /// madvise(2).
    Madvise {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
        /// What.
        #[serde(rename = "a")]
        advice: Advice,
    },
    /// Reads one byte, or writes it back unchanged (a CPU access of the least size).
    Touch {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Write it back.
        #[serde(rename = "w", default, skip_serializing_if = "std::ops::Not::not")]
        write: bool,
    },
    /// CPU stores of a pattern (that of the *file* offset `off` + the mapping's own offset). EFAULT where SIGBUS would be.
    Store {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Length, at most 64 MiB.
        #[serde(rename = "l")]
        len: u64,
        /// What.
        #[serde(rename = "p")]
        pattern: Pattern,
    },
    /// CPU loads. Returns `Content`. `off` is a multiple of 512. EFAULT where SIGBUS would be.
    Load {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Length, at most 64 MiB.
        #[serde(rename = "l")]
        len: u64,
    },
    /// Single stores of a byte into a page of a file, each after the page was brought into a state. Returns `Laps`: bringing it there, the store.
    StoreLaps {
        /// File.
        h: u32,
        /// Mapping of it.
        m: u32,
        /// Offset in the mapping, and in the file.
        #[serde(rename = "o")]
        off: u64,
        /// The state.
        #[serde(rename = "a")]
        after: StoreAfter,
        /// How often, 1,000 at most.
        #[serde(rename = "n")]
        count: u32,
    },
    /// Where a page is now. Returns `Page`. Does not fault the page in.
    PageInfo {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
    },
    /// Returns `Num`: /proc/kpageflags of a page frame, mapped or not; see [`kpf`](super::kpf).
    FrameFlags {
        /// Page frame number.
        pfn: u64,
    },
    /// pread(2) from a file (O_DIRECT for real device DMA) into a mapping, as a job. Returns `Handle` of the job, whose
    /// result is `Num`: bytes.
    DioReadInto {
        /// File.
        h: u32,
        /// Offset in the file.
        #[serde(rename = "f")]
        foff: u64,
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        moff: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },
    /// pwrite(2) to a file from a mapping, as a job. Returns `Handle` of the job, whose result is `Num`: bytes.
    DioWriteFrom {
        /// File.
        h: u32,
        /// Offset in the file.
        #[serde(rename = "f")]
        foff: u64,
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        moff: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },

    // Other users of get_user_pages.
    /// IORING_OP_READ from a file into a mapping, by a ring of its own, as a job. Returns `Handle` of the job, whose result is `Num`: bytes.
    UringRead {
        /// File.
        h: u32,
        /// Offset in the file.
        #[serde(rename = "f")]
        foff: u64,
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        moff: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },
    /// IORING_REGISTER_BUFFERS of a part of a mapping. Returns `Handle` of the ring; closing it takes the registration back.
    UringRegister {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },
    /// IORING_OP_READ_FIXED into registered memory, as a job. Returns `Handle` of the job, whose result is `Num`: bytes.
    UringReadFixed {
        /// From [`Op::UringRegister`].
        u: u32,
        /// File.
        h: u32,
        /// Offset in the file.
        #[serde(rename = "f")]
        foff: u64,
        /// Offset in the mapping of which a part is registered.
        #[serde(rename = "o")]
        moff: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },
    /// vmsplice(2) of a part of a mapping, 64 KiB at most, into a new pipe. Returns `Handle` of the pipe.
    Vmsplice {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },
    /// Reads all that [`Op::Vmsplice`] has put into a pipe. Returns `Content`.
    PipeRead {
        /// The pipe.
        h: u32,
    },
    /// Returns `Place`: this process, and the address of an offset of a mapping.
    Whereabouts {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
    },
    /// process_vm_writev(2) of a pattern into another process's memory. Returns `Num`: bytes.
    VmWrite {
        /// The process.
        pid: u32,
        /// Where; see [`Op::Whereabouts`].
        addr: u64,
        /// The pattern is that of this file offset.
        #[serde(rename = "o")]
        off: u64,
        /// Length, at most 1 MiB.
        #[serde(rename = "l")]
        len: u64,
        /// What.
        #[serde(rename = "p")]
        pattern: Pattern,
    },
    /// XDP_UMEM_REG: a part of a mapping as the memory of a new AF_XDP socket. Returns `Handle` of the socket.
    XdpUmem {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },
    /// Sends a packet over the loopback interface that has a pattern, and receives it by an AF_XDP socket: the kernel copies it into the
    /// socket's memory.
    XdpReceive {
        /// From [`Op::XdpUmem`].
        x: u32,
        /// Offset in the mapping; the pattern is that of this file offset.
        #[serde(rename = "o")]
        off: u64,
        /// Length, at most 3840.
        #[serde(rename = "l")]
        len: u64,
        /// What.
        #[serde(rename = "p")]
        pattern: Pattern,
    },
    /// memfd_create(2), memfd_secret(2). Returns `Handle` of the file.
    Memfd {
        /// Which.
        kind: Memfd,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },

    /// Forks, user-space page faults, parts that go.
    #[serde(rename = "mm")]
    Mm(MmOp),
    /// RDMA verbs.
    #[serde(rename = "ib")]
    Verbs(VerbsOp),

    // Other processes.
    /// Starts another process of this agent, with handles of its own. Returns `Handle`; closing it kills the process.
    Process {
        /// Of an ordinary user: user and group 65534, without capabilities. Else as this one.
        #[serde(rename = "u", default, skip_serializing_if = "std::ops::Not::not")]
        user: bool,
    },
    /// Runs `op` in another process and waits. Returns what it returns.
    In {
        /// From [`Op::Process`].
        p: u32,
        /// What; not another `In`.
        op: Box<Op>,
    },
    /// SIGKILL to a process of [`Op::Process`], and waits for its end. Returns `Num`: milliseconds until it had ended.
    Kill {
        /// From [`Op::Process`].
        p: u32,
    },

    // Jobs.
    /// Waits until a job is done or the time is over. Returns `Job` either way.
    Wait {
        /// Job.
        job: u32,
        /// Milliseconds.
        #[serde(rename = "ms")]
        limit_ms: u32,
    },
    /// Sends a signal to the thread of a job, whose handler does nothing: a system call that waits and can be interrupted fails with EINTR.
    /// Returns `Num`: 0 when the job had ended already.
    Interrupt {
        /// Job.
        job: u32,
    },
    /// Returns `Job`.
    JobState {
        /// Job.
        job: u32,
    },

    // Durability.
    /// Writes numbered, checksummed blocks, flushes each group and sends [`Event::Acked`](super::Event::Acked) after each
    /// acknowledged flush, as a job whose result is `Num`: groups acknowledged.
    AckedWriter {
        /// Block device or file (made if missing).
        path: String,
        /// Where each block goes.
        plan: Plan,
        /// Stop after so many seconds.
        max_s: u32,
        /// Stop after so many groups (0: none).
        #[serde(default)]
        max_groups: u64,
    },
    /// Checks after a restart that all groups 1..=`n` are there. Returns `Acked`.
    AckedCheck {
        /// Block device or file.
        path: String,
        /// As written.
        plan: Plan,
        /// Groups that were acknowledged.
        n: u64,
    },
}

impl Op {
    /// Whether it always runs as a job; see [`Request::bg`](super::Request::bg).
    pub fn is_job(&self) -> bool {
        matches!(
            self,
            Op::DioReadInto { .. }
                | Op::DioWriteFrom { .. }
                | Op::UringRead { .. }
                | Op::UringReadFixed { .. }
                | Op::AckedWriter { .. }
        )
    }
}
