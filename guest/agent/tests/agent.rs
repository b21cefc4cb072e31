// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent as an ordinary process, driven over a socket and over a pseudo-terminal. What needs a guest (mounts, power) is in
//! the project's guest tests.
#![allow(unsafe_code, reason = "a pseudo terminal has no safe interface")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rnic_agent::acked::Plan;
use rnic_agent::client::{CallError, Client};
use rnic_agent::pattern::Pattern;
use rnic_agent::proto::{Advice, Event, ExecOut, FallocMode, Op, OpenFlags, Value};

#[path = "agent/gup.rs"]
mod gup;
#[path = "agent/memory.rs"]
mod memory;

const LIMIT: Duration = Duration::from_secs(20);
const A: Pattern = Pattern { nonce: 0xfeed_0001, tag: 'A' };
const B: Pattern = Pattern { tag: 'B', ..A };

/// An agent and the host's end of its channel. The process ends with it.
struct Agent {
    child: Child,
    client: Client,
    raw: UnixStream,
    dir: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        Self::by(&mut Command::new(env!("CARGO_BIN_EXE_rnic-agent")))
    }

    fn by(command: &mut Command) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = command.args(["--port", "-"]).stdin(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
        let mut writer = ours.try_clone().unwrap();
        let client = Client::new(move |bytes| writer.write_all(bytes));
        pump(ours.try_clone().unwrap(), client.clone());
        client.wait_hello(LIMIT).unwrap();
        Self { child, client, raw: ours, dir: tempfile::tempdir().unwrap() }
    }

    fn call(&self, op: Op) -> Result<Value, CallError> {
        self.client.call(op, LIMIT)
    }

    fn ok(&self, op: Op) -> Value {
        let name = format!("{op:?}");
        self.call(op).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn errno(&self, op: Op) -> i32 {
        self.call(op).unwrap_err().errno().unwrap()
    }

    fn exec(&self, argv: &[&str], stdin: &str, limit_s: u32) -> ExecOut {
        let argv = argv.iter().map(ToString::to_string).collect();
        self.ok(Op::Exec { argv, stdin: stdin.into(), limit_s }).exec().unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn open(&self, name: &str) -> u32 {
        let flags = OpenFlags { write: true, create: true, ..Default::default() };
        self.ok(Op::Open { path: self.path(name), flags }).handle().unwrap()
    }

    /// A file of `pages` pages of pattern A, and a mapping of it.
    fn mapped(&self, pages: u64) -> (u32, u32) {
        let (h, len) = (self.open("f"), pages * 4096);
        assert_eq!(self.ok(Op::Write { h, off: 0, len, pattern: A }), Value::Num(len));
        let m = self.ok(Op::Mmap { h, off: 0, len, write: true, private: false }).handle().unwrap();
        (h, m)
    }

    fn load(&self, m: u32, off: u64, len: u64) -> rnic_agent::Content {
        self.ok(Op::Load { m, off, len }).content().unwrap()
    }

    fn read(&self, h: u32, off: u64, len: u64) -> rnic_agent::Content {
        self.ok(Op::Read { h, off, len }).content().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Feeds a client until the stream ends.
fn pump(mut stream: impl Read + Send + 'static, client: Client) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            client.feed(&buffer[..n]);
        }
        client.close();
    });
}

#[test]
fn programs_run_with_their_streams_apart() {
    let agent = Agent::start();
    let out = agent.exec(&["sh", "-c", "cat; echo oops >&2; exit 3"], "fed", 10);
    assert_eq!(out, ExecOut { status: 3, timed_out: false, out: "fed".into(), err: "oops\n".into() });
    assert_eq!(agent.exec(&["sh", "-c", "kill -TERM $$"], "", 10).status, 128 + 15);
    assert_eq!(
        agent.errno(Op::Exec { argv: vec!["no-such-program".into()], stdin: String::new(), limit_s: 1 }),
        libc::ENOENT
    );
    assert_eq!(agent.errno(Op::Exec { argv: vec![], stdin: String::new(), limit_s: 1 }), libc::EINVAL);
    let long = agent.exec(&["sh", "-c", "seq 1 100000"], "", 20).out;
    assert!(long.len() == 16 * 1024 && long.ends_with("\n100000\n"), "the tail is kept");
    // Input that nobody reads, and a grandchild that keeps the pipes open.
    let start = Instant::now();
    assert_eq!(agent.exec(&["sh", "-c", "sleep 15 & exit 0"], &"x".repeat(40_000), 10).status, 0);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_program_is_killed_with_its_group_when_its_time_is_over() {
    let agent = Agent::start();
    let start = Instant::now();
    let out = agent.exec(&["sh", "-c", "sleep 60 & echo $!; wait; echo never"], "", 1);
    assert!(out.timed_out && out.status == 128 + 9, "{out:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
    let grandchild: u32 = out.out.trim().parse().unwrap();
    let gone =
        || std::fs::read_to_string(format!("/proc/{grandchild}/stat")).map_or(true, |stat| stat.contains(") Z "));
    while !gone() && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(gone(), "the whole group is killed");
}

#[test]
fn files_hold_what_was_written() {
    let agent = Agent::start();
    let h = agent.open("f");
    // More than one chunk, and an odd length.
    let len = (5 << 20) + 100;
    assert_eq!(agent.ok(Op::Write { h, off: 512, len, pattern: A }), Value::Num(len));
    agent.ok(Op::Fsync { h });
    assert!(agent.read(h, 512, len).is(&A, 512));
    assert!(agent.read(h, 512, len + 4096).is(&A, 512), "reading stops at the end of the file");
    assert_eq!(agent.ok(Op::Stat { h }).stat().unwrap().size, 512 + len);
    agent.ok(Op::Write { h, off: 8192, len: 2048, pattern: B });
    assert_eq!(agent.read(h, 8192, 4096).to_string(), "B*4 A*4");
    agent.ok(Op::Fallocate { h, mode: FallocMode::PunchHole, off: 8192, len: 4096 });
    assert!(agent.read(h, 8192, 4096).is_zero());
    agent.ok(Op::Ftruncate { h, len: 4096 });
    assert_eq!(agent.read(h, 4096, 4096).len, 0);
    agent.ok(Op::Close { h });
    for (op, errno) in [
        (Op::Read { h, off: 0, len: 512 }, libc::EBADF),
        (Op::Close { h }, libc::EBADF),
        (Op::Open { path: agent.path("nothing"), flags: OpenFlags::default() }, libc::ENOENT),
        (Op::Unlink { path: agent.path("nothing") }, libc::ENOENT),
    ] {
        assert_eq!(agent.errno(op), errno);
    }
}

#[test]
fn ranges_out_of_this_world_are_refused() {
    let agent = Agent::start();
    let (h, m) = agent.mapped(2);
    let high = u64::MAX - 100;
    for op in [
        Op::Read { h, off: 100, len: 512 },
        Op::Read { h, off: high, len: 512 },
        Op::Write { h, off: 0, len: u64::MAX, pattern: A },
        Op::Write { h, off: 1 << 63, len: 512, pattern: A },
        Op::Load { m, off: 8192, len: 1 },
        Op::Load { m, off: high, len: 512 },
        Op::Load { m, off: 0, len: high },
        Op::Store { m, off: 4096, len: 4097, pattern: B },
        Op::PageInfo { m, off: 8192 },
        Op::Madvise { m, off: 4096, len: 8192, advice: Advice::Dontneed },
        Op::DioReadInto { h, foff: 0, m, moff: 4096, len: 8192 },
        Op::AnonBuffer { len: 0, huge: false },
        Op::AnonBuffer { len: high, huge: true },
        Op::Mmap { h, off: 0, len: high, write: false, private: false },
        Op::SyncFileRange { h, off: high, len: 1, wait_before: false, write: true, wait_after: false },
    ] {
        let name = format!("{op:?}");
        let errno = if matches!(op, Op::DioReadInto { .. }) {
            let job = agent.ok(op).handle().unwrap();
            let state = agent.client.wait_job(job, LIMIT).unwrap();
            state.result.unwrap().unwrap_err().errno
        } else {
            agent.call(op).err().and_then(|error| error.errno()).unwrap_or(0)
        };
        assert_eq!(errno, libc::EINVAL, "{name}");
    }
}

#[test]
fn mappings_are_stored_loaded_and_torn_down() {
    let agent = Agent::start();
    let (h, m) = agent.mapped(4);
    assert!(agent.load(m, 0, 16384).is(&A, 0));
    agent.ok(Op::Store { m, off: 4096, len: 4096, pattern: B });
    agent.ok(Op::Touch { m, off: 4096, write: true });
    assert_eq!(agent.read(h, 0, 16384).to_string(), "A*8 B*8 A*16");
    agent.ok(Op::Msync { m, off: 0, len: 16384 });
    // Beyond the end of the file a plain load would be SIGBUS.
    agent.ok(Op::Ftruncate { h, len: 8192 });
    assert_eq!(agent.errno(Op::Load { m, off: 12288, len: 512 }), libc::EFAULT);
    assert_eq!(agent.errno(Op::Store { m, off: 12288, len: 512, pattern: B }), libc::EFAULT);
    agent.ok(Op::Munmap { m });
    assert_eq!(agent.errno(Op::Load { m, off: 0, len: 512 }), libc::EFAULT);
    assert_eq!(agent.errno(Op::Munmap { m }), libc::EINVAL);
    agent.ok(Op::Close { h: m });
    assert_eq!(agent.errno(Op::Load { m, off: 0, len: 512 }), libc::EBADF);
}

#[test]
fn reads_into_mappings_carry_their_origin() {
    let agent = Agent::start();
    let (h, m) = agent.mapped(4);
    let anon = agent.ok(Op::AnonBuffer { len: 16384, huge: false }).handle().unwrap();
    assert!(agent.load(anon, 0, 16384).is_zero());
    let job = agent.ok(Op::DioReadInto { h, foff: 4096, m: anon, moff: 8192, len: 4096 }).handle().unwrap();
    let state = agent.client.wait_job(job, LIMIT).unwrap();
    assert_eq!(state.result.as_deref(), Some(&Ok(Value::Num(4096))));
    assert!(agent.load(anon, 8192, 4096).is(&A, 4096), "the sector numbers are those of the source");
    agent.ok(Op::Store { m: anon, off: 0, len: 4096, pattern: B });
    let job = agent.ok(Op::DioWriteFrom { h, foff: 0, m: anon, moff: 0, len: 4096 }).handle().unwrap();
    assert!(agent.client.wait_job(job, LIMIT).unwrap().done);
    assert_eq!(agent.load(m, 0, 8192).to_string(), "B*8 A*8");
}

#[test]
fn pages_have_an_identity() {
    let agent = Agent::start();
    let m = agent.ok(Op::AnonBuffer { len: 8192, huge: false }).handle().unwrap();
    let page = |off| agent.ok(Op::PageInfo { m, off }).page().unwrap();
    assert!(!page(0).present, "never touched");
    agent.ok(Op::Store { m, off: 0, len: 8192, pattern: A });
    let (first, second) = (page(0), page(4096));
    assert!(first.present && !first.file);
    if File::open("/proc/kpageflags").is_err() || first.pfn == 0 {
        eprintln!("not root: page frame numbers are hidden, the rest of this test is void");
        return;
    }
    assert_ne!(first.pfn, second.pfn);
    assert!(first.has(rnic_agent::proto::kpf::ANON) && first.folio_pages == 1 && first.mapcount == 1, "{first:?}");
    agent.ok(Op::Madvise { m, off: 0, len: 4096, advice: Advice::Dontneed });
    assert!(!page(0).present && page(4096).present);
}

#[test]
fn jobs_run_beside_other_steps() {
    let agent = Agent::start();
    let sleep =
        |seconds: &str| Op::Exec { argv: vec!["sleep".into(), seconds.into()], stdin: String::new(), limit_s: 10 };
    let job = agent.client.spawn(sleep("1"), LIMIT).unwrap();
    let state = agent.client.wait_job(job, Duration::from_millis(50)).unwrap();
    assert!(!state.done && state.result.is_none());
    agent.ok(Op::Ping);
    let state = agent.client.wait_job(job, LIMIT).unwrap();
    assert!(matches!(state.result.as_deref(), Some(Ok(Value::Exec(out))) if out.status == 0));
    assert!(agent.ok(Op::JobState { job }).job().unwrap().done, "asking twice does no harm");
    agent.client.spawn(sleep("3"), LIMIT).unwrap();
    assert_eq!(agent.ok(Op::Reset), Value::Num(1), "one is still running");
    assert_eq!(agent.errno(Op::JobState { job }), libc::EBADF);
}

/// Who waits for something else than a system call that can be interrupted goes on; a job that has ended is left alone.
#[test]
fn a_job_is_interrupted_and_the_agent_goes_on() {
    let agent = Agent::start();
    let argv = vec!["sleep".into(), "1".into()];
    let job = agent.client.spawn(Op::Exec { argv, stdin: String::new(), limit_s: 10 }, LIMIT).unwrap();
    assert_eq!(agent.ok(Op::Interrupt { job }).num(), Some(1));
    let state = agent.client.wait_job(job, LIMIT).unwrap();
    let Some(Ok(ended)) = state.result.as_deref() else { panic!("{state:?}") };
    assert_eq!(ended.clone().exec().map(|ended| ended.status), Some(0));
    assert_eq!(agent.ok(Op::Interrupt { job }).num(), Some(0));
}

#[test]
fn too_many_steps_are_refused_and_the_agent_goes_on() {
    let agent = Agent::start();
    let sleep = || Op::Exec { argv: vec!["sleep".into(), "2".into()], stdin: String::new(), limit_s: 10 };
    let started: Vec<_> = (0..80).map(|_| agent.client.start(sleep()).unwrap()).collect();
    let outcomes: Vec<_> = started.into_iter().map(|pending| agent.client.finish(pending, LIMIT)).collect();
    let refused = outcomes.iter().filter(|o| matches!(o, Err(e) if e.errno() == Some(libc::EAGAIN))).count();
    assert_eq!(refused, 80 - 64);
    assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 64);
    agent.ok(Op::Ping);
}

#[test]
fn an_ordinary_process_never_ends_the_machine() {
    let agent = Agent::start();
    for op in [Op::Poweroff, Op::Reboot, Op::Crash] {
        assert_eq!(agent.errno(op), libc::EPERM);
    }
}

#[test]
fn garbage_is_counted_and_survived() {
    let mut agent = Agent::start();
    let mut bad = vec![0xff; 70_000];
    bad.extend_from_slice(b"\nhello\n00000000 {\"id\":900,\"op\":\"ping\"}\n{\"id\":\n");
    let json = b"{\"id\":901,\"op\":{\"no_such_step\":{}}}";
    bad.extend_from_slice(format!("{:08x} ", crc32fast::hash(json)).as_bytes());
    bad.extend_from_slice(json);
    bad.push(b'\n');
    agent.raw.write_all(&bad).unwrap();
    agent.ok(Op::Ping);
    assert_eq!(agent.ok(Op::SysInfo).sys().unwrap().bad_lines, 5);
}

#[test]
fn acknowledged_groups_are_found_again() {
    let agent = Agent::start();
    let plan = Plan { nonce: 9, blocks: 64, group: 4 };
    let path = agent.path("journal");
    let job = agent.ok(Op::AckedWriter { path: path.clone(), plan, max_s: 20, max_groups: 25 }).handle().unwrap();
    let state = agent.client.wait_job(job, LIMIT).unwrap();
    assert_eq!(state.result.as_deref(), Some(&Ok(Value::Num(25))));
    assert_eq!(agent.client.acked(), 25);
    assert_eq!(agent.client.events().last(), Some(&Event::Acked { n: 25 }));
    let check = |n| agent.ok(Op::AckedCheck { path: path.clone(), plan, n }).acked().unwrap();
    assert!(check(25).intact() && check(25).newest_group == 25);
    let file = File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"xx", plan.slot(99) * 4096 + 2000).unwrap();
    assert_eq!((check(25).torn, check(25).first_bad), (1, Some(plan.slot(99))));
    assert_eq!(agent.errno(Op::AckedCheck { path, plan: Plan { group: 0, ..plan }, n: 1 }), libc::EINVAL);
}

#[test]
fn system_facts() {
    let agent = Agent::start();
    let info = agent.ok(Op::SysInfo).sys().unwrap();
    assert!(!info.release.is_empty() && info.version.starts_with('#') && info.mem_total_kib > 0, "{info:?}");
    let release = agent.ok(Op::Sysctl { key: "kernel.osrelease".into(), value: None }).text();
    assert_eq!(release.as_deref(), Some(info.release.as_str()));
    let path = "/proc/sys/kernel/ostype".to_owned();
    assert_eq!(agent.ok(Op::ReadFile { path, max: 3 }).text().as_deref(), Some("Lin"));
    assert!(agent.ok(Op::Taint).num().is_some());
    // Of a kernel without a directory of modules there is nothing to load, and nothing to miss.
    let absent = Op::Modprobe { name: "no-such-module".into() };
    match Path::new("/lib/modules").join(&info.release).exists() {
        true => assert_eq!(agent.errno(absent), libc::ENOENT),
        false => assert_eq!(agent.ok(absent).num(), Some(0)),
    }
}

/// Opens a pseudo-terminal; returns its host side and the path of the other.
fn pty() -> (File, String) {
    use std::os::fd::AsRawFd;
    let host = File::options().read(true).write(true).open("/dev/ptmx").unwrap();
    let (mut number, unlock) = (0u32, 0i32);
    // SAFETY: TIOCGPTN writes one integer, TIOCSPTLCK reads one; both are ours.
    unsafe {
        assert_eq!(libc::ioctl(host.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock), 0);
        assert_eq!(libc::ioctl(host.as_raw_fd(), libc::TIOCGPTN, &raw mut number), 0);
    }
    (host, format!("/dev/pts/{number}"))
}

#[test]
fn a_terminal_is_made_transparent() {
    let (host, path) = pty();
    let mut child = Command::new(env!("CARGO_BIN_EXE_rnic-agent")).args(["--port", &path]).spawn().unwrap();
    let mut writer = host.try_clone().unwrap();
    let client = Client::new(move |bytes| writer.write_all(bytes));
    pump(host, client.clone());
    client.wait_hello(LIMIT).unwrap();
    // Bytes that a cooked terminal would act on.
    let argv = vec!["printf".into(), "\u{3}\u{4}\u{11}\r\u{7f}%s".into(), "ü".repeat(2000)];
    let out = client.call(Op::Exec { argv, stdin: String::new(), limit_s: 5 }, LIMIT).unwrap().exec().unwrap();
    assert_eq!(out.out, format!("\u{3}\u{4}\u{11}\r\u{7f}{}", "ü".repeat(2000)));
    assert_eq!(client.bad_lines(), 0);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn wrong_usage_is_told_in_one_sentence() {
    for arguments in [&["--port", "/nonexistent/tty"][..], &["--port", "/dev/null"], &[], &["--help"]] {
        let out = Command::new(env!("CARGO_BIN_EXE_rnic-agent")).args(arguments).output().unwrap();
        let text = String::from_utf8(out.stderr).unwrap();
        assert!(!out.status.success() && text.lines().count() == 1, "{arguments:?}: {text}");
    }
}

#[test]
fn another_process_has_handles_of_its_own_and_dies_alone() {
    let agent = Agent::start();
    let p = agent.ok(Op::Process { user: false }).handle().unwrap();
    let within = |op: Op| Op::In { p, op: Box::new(op) };
    let own = agent.ok(Op::AnonBuffer { len: 8192, huge: false }).handle().unwrap();
    let theirs = agent.ok(within(Op::AnonBuffer { len: 8192, huge: false })).handle().unwrap();
    agent.ok(within(Op::Store { m: theirs, off: 0, len: 4096, pattern: B }));
    agent.ok(Op::Store { m: own, off: 0, len: 4096, pattern: A });
    let seen = agent.ok(within(Op::Load { m: theirs, off: 0, len: 4096 })).content().unwrap();
    assert!(seen.is(&B, 0) && agent.load(own, 0, 4096).is(&A, 0));
    assert_eq!(agent.errno(within(Op::Process { user: false })), libc::EINVAL, "no processes within processes");
    agent.ok(Op::Kill { p });
    assert_eq!(agent.errno(within(Op::Ping)), libc::EIO, "it is dead");
    agent.ok(Op::Ping);
}

#[test]
#[cfg(not(feature = "verbs"))]
fn an_agent_without_verbs_says_so() {
    let agent = Agent::start();
    let open = Op::Verbs(rnic_agent::proto::VerbsOp::Open { name: None });
    assert_eq!(agent.errno(open), libc::ENOSYS);
}

#[test]
#[cfg(feature = "verbs")]
fn a_machine_without_rdma_devices_says_so() {
    let agent = Agent::start();
    let open = Op::Verbs(rnic_agent::proto::VerbsOp::Open { name: Some("none_such".into()) });
    let errno = agent.errno(open);
    assert!([libc::ENODEV, libc::ENOSYS, libc::ENOENT].contains(&errno), "{errno}");
}
