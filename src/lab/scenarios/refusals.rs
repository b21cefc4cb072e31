// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which memory this kernel lets which user of get_user_pages have: a table of errnos instead of a judgement. Each cell is a fact, a call
//! that has returned: "USE: MEMORY". The row of each file system has that file system's own files; the row of ext4 has all other memory too.

use std::time::Duration;

use rnic_agent::client::CallError;
use rnic_agent::proto::{Memfd, Op, OpenFlags, Value, VerbsOp};

use crate::bench::{Bench, DIR, PROMPT, SOURCE, errno_of};
use crate::fact::What;
use crate::finding::{Finding, Stop};
use crate::plan::{Fs, Registration};
use crate::verdict::Verdict;

/// Bytes of each kind of memory: a huge page.
const LEN: u64 = 2 << 20;
/// Bytes that are read, written and spliced.
const SOME: u64 = 4096;
/// How often umount(2) is tried again, and after how long.
const UMOUNT_TRIES: u32 = 40;
const UMOUNT_PAUSE: Duration = Duration::from_millis(250);
/// Where other file systems are mounted.
const ELSEWHERE: &str = "/mnt/refusals";

const WRITE: OpenFlags = OpenFlags { write: true, create: false, truncate: false, direct: false, sync: false };
const CREATE: OpenFlags = OpenFlags { create: true, ..WRITE };
const READ: OpenFlags = OpenFlags { write: false, ..WRITE };

/// How a file is mapped.
#[derive(Clone, Copy)]
enum How {
    Shared,
    SharedReadOnly,
    Private,
}

/// What came of a call: something, or an errno.
type Told<T> = Result<T, i32>;

/// Asks for each kind of memory by each use.
pub fn table(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let fact = bench.note("what each kind of memory is refused for");
    own_files(bench)?;
    if bench.fs() == Fs::Ext4 {
        drop(told(bench, Op::Mkdir { path: ELSEWHERE.into() })?);
        memory_files(bench)?;
        devices(bench)?;
        other_file_systems(bench)?;
    }
    Ok(Finding::new(Verdict::Measured, fact, []))
}

/// A call whose errno is an answer.
fn told(bench: &Bench<'_>, op: Op) -> Result<Told<Value>, Stop> {
    match bench.guest.call(op) {
        Ok(value) => Ok(Ok(value)),
        Err(CallError::Failed(failure)) => Ok(Err(failure.errno)),
        Err(error) => Err(bench.guest.stop_for("asking for memory", &error)),
    }
}

fn handle(bench: &Bench<'_>, op: Op) -> Result<Told<u32>, Stop> {
    match told(bench, op)? {
        Ok(value) => value.handle().map(Ok).ok_or_else(|| Stop::Failed("the agent gave no handle".into())),
        Err(errno) => Ok(Err(errno)),
    }
}

/// A program of the guest that must succeed; its output.
fn must_run(bench: &Bench<'_>, argv: &[&str]) -> Result<String, Stop> {
    let argv = argv.iter().map(ToString::to_string).collect();
    let ended = bench.guest.must(Op::Exec { argv, stdin: String::new(), limit_s: 30 })?.exec().unwrap_or_default();
    match ended.status {
        0 => Ok(ended.out.trim().into()),
        _ => Err(Stop::Failed(format!("a program of the guest failed: {}", ended.err))),
    }
}

fn own_files(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let (name, path) = (bench.fs().name(), format!("{DIR}/table"));
    file(bench, &path, &format!("{name} file"), &[How::Shared, How::SharedReadOnly, How::Private])?;
    let flags = READ;
    let opened = handle(bench, Op::Open { path, flags })?;
    mapped(bench, opened, &format!("{name} file opened read-only"), How::SharedReadOnly, LEN)
}

/// A new file of LEN bytes, mapped in several ways.
fn file(bench: &mut Bench<'_>, path: &str, name: &str, ways: &[How]) -> Result<(), Stop> {
    let opened = handle(bench, Op::Open { path: path.into(), flags: CREATE })?;
    if let Ok(h) = opened {
        let pattern = bench.pattern('A');
        bench.guest.must(Op::Write { h, off: 0, len: LEN, pattern })?;
        bench.guest.must(Op::Fsync { h })?;
    }
    ways.iter().try_for_each(|how| mapped(bench, opened, name, *how, LEN))?;
    close(bench, opened)
}

fn close(bench: &Bench<'_>, opened: Told<u32>) -> Result<(), Stop> {
    opened.map_or(Ok(()), |h| bench.guest.must(Op::Close { h }).map(drop))
}

/// An open file, mapped in one way.
fn mapped(bench: &mut Bench<'_>, opened: Told<u32>, name: &str, how: How, len: u64) -> Result<(), Stop> {
    let (way, write, private) = match how {
        How::Shared => ("shared", true, false),
        How::SharedReadOnly => ("shared, PROT_READ", false, false),
        How::Private => ("private", true, true),
    };
    let map = match opened {
        Ok(h) => handle(bench, Op::Mmap { h, off: 0, len, write, private })?,
        Err(errno) => Err(errno),
    };
    uses(bench, map, &format!("{name}, {way}"), len)
}

fn memory_files(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let anonymous = handle(bench, Op::AnonBuffer { len: LEN, huge: false })?;
    uses(bench, anonymous, "anonymous memory, private", LEN)?;
    for (kind, name, ways) in [
        (Memfd::Plain, "memfd", &[How::Shared, How::SharedReadOnly, How::Private][..]),
        (Memfd::Hugetlb, "memfd of huge pages", &[How::Shared]),
        (Memfd::Secret, "memfd_secret", &[How::Shared]),
    ] {
        if kind == Memfd::Hugetlb {
            bench.guest.must(Op::Sysctl { key: "vm.nr_hugepages".into(), value: Some("2".into()) })?;
        }
        let opened = handle(bench, Op::Memfd { kind, len: LEN })?;
        ways.iter().try_for_each(|how| mapped(bench, opened, name, *how, LEN))?;
        close(bench, opened)?;
    }
    bench.guest.must(Op::Sysctl { key: "vm.nr_hugepages".into(), value: Some("0".into()) }).map(drop)
}

fn devices(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let mut device = |path: &str, name: &str, ways: &[How], len| {
        let opened = handle(bench, Op::Open { path: path.into(), flags: WRITE })?;
        ways.iter().try_for_each(|how| mapped(bench, opened, name, *how, len))?;
        close(bench, opened)
    };
    device("/dev/zero", "/dev/zero", &[How::Shared, How::Private], LEN)?;
    device(SOURCE, "block device (virtio-blk)", &[How::Shared, How::SharedReadOnly, How::Private], LEN)?;
    // The registers of a disk: memory that is no RAM.
    let bar = "/sys/bus/pci/devices/0000:00:01.0/resource0";
    device(bar, "PCI BAR (sysfs)", &[How::Shared], SOME)?;
    drop(told(bench, Op::Modprobe { name: "loop".into() })?);
    let backing = format!("{DIR}/loop");
    file(bench, &backing, "", &[])?;
    let path = must_run(bench, &["losetup", "--find", "--show", &backing])?;
    let opened = handle(bench, Op::Open { path: path.clone(), flags: WRITE })?;
    mapped(bench, opened, "loop device over ext4", How::Shared, LEN)?;
    close(bench, opened)?;
    must_run(bench, &["losetup", "--detach", &path]).map(drop)
}

fn other_file_systems(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let mount = |bench: &Bench<'_>, fs: &str, dir: &str, opts: &str| {
        let (dev, fs, dir, opts) = (fs.to_owned(), fs.to_owned(), dir.to_owned(), opts.to_owned());
        bench.guest.must(Op::Mount { dev, dir, fs, opts, ro: false }).map(drop)
    };
    let (tmpfs, ramfs) = (format!("{ELSEWHERE}/tmpfs"), format!("{ELSEWHERE}/ramfs"));
    mount(bench, "tmpfs", &tmpfs, "")?;
    file(bench, &format!("{tmpfs}/f"), "tmpfs file", &[How::Shared, How::Private])?;
    mount(bench, "ramfs", &ramfs, "")?;
    file(bench, &format!("{ramfs}/f"), "ramfs file", &[How::Shared])?;
    let mut mounted = vec![ramfs, tmpfs.clone()];
    for (lower, below) in [("tmpfs", tmpfs.as_str()), ("ext4", DIR)] {
        for part in ["lower", "upper", "work"] {
            bench.guest.must(Op::Mkdir { path: format!("{below}/{part}") })?;
        }
        let merged = format!("{ELSEWHERE}/over-{lower}");
        let opts = format!("lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work");
        mount(bench, "overlay", &merged, &opts)?;
        file(bench, &format!("{merged}/f"), &format!("overlayfs file over {lower}"), &[How::Shared])?;
        mounted.push(merged);
    }
    // Nothing of the agent's may be in the way: what has been asked for was closed, and this drops the rest.
    bench.guest.must(Op::Reset)?;
    mounted.iter().rev().try_for_each(|dir| umount(bench, dir))
}

/// Some of what was registered is let go by workers of the kernel.
fn umount(bench: &Bench<'_>, dir: &str) -> Result<(), Stop> {
    for _ in 0..UMOUNT_TRIES {
        if told(bench, Op::Umount { dir: dir.into() })?.is_ok() {
            return Ok(());
        }
        std::thread::sleep(UMOUNT_PAUSE);
    }
    bench.guest.must(Op::Umount { dir: dir.into() }).map(drop)
}

/// Asks for the memory by each use, and lets it go. Where it could not be had at all, that is the only cell.
fn uses(bench: &mut Bench<'_>, map: Told<u32>, memory: &str, len: u64) -> Result<(), Stop> {
    let m = match map {
        Ok(m) => m,
        Err(errno) => {
            cell(bench, "mmap", memory, Err(errno));
            return Ok(());
        }
    };
    use Registration::{Odp, OdpRo, Pinned, PinnedRo};
    for registration in [Pinned, PinnedRo, Odp, OdpRo] {
        let (nic, access) = (bench.nic_handle()?, registration.access());
        let got = told(bench, Op::Verbs(VerbsOp::Reg { nic, m, off: 0, len, access }))?;
        if let Ok(Value::Mr(mr)) = &got {
            bench.guest.must(Op::Verbs(VerbsOp::Dereg { mr: mr.handle }))?;
        }
        cell(bench, &format!("ibv_reg_mr {}", registration.name()), memory, got.map(drop));
    }
    for (name, op) in [
        ("IORING_REGISTER_BUFFERS", Op::UringRegister { m, off: 0, len }),
        ("XDP_UMEM_REG", Op::XdpUmem { m, off: 0, len }),
        ("vmsplice", Op::Vmsplice { m, off: 0, len: SOME }),
    ] {
        let got = handle(bench, op)?;
        cell(bench, name, memory, got.map(drop));
        close(bench, got)?;
    }
    let read = Op::DioReadInto { h: bench.source_handle(), foff: 0, m, moff: 0, len: SOME };
    let job = bench.guest.handle(read)?;
    let state = bench.guest.wait_job(job, PROMPT)?;
    let Some(read) = errno_of(&state) else { return Err(bench.waits("an O_DIRECT read", PROMPT)) };
    cell(bench, "O_DIRECT read", memory, read);
    if let Ok(Value::Place { pid, addr }) = told(bench, Op::Whereabouts { m, off: 0 })? {
        let pattern = bench.pattern('B');
        let wrote = told(bench, Op::VmWrite { pid, addr, off: 0, len: SOME, pattern })?;
        cell(bench, "process_vm_writev", memory, wrote.map(drop));
    }
    close(bench, Ok(m))
}

fn cell(bench: &mut Bench<'_>, by: &str, memory: &str, told: Told<()>) {
    bench.now(What::Returned { step: format!("{by}: {memory}"), errno: told.err() });
}
