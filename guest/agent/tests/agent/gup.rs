// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other users of get_user_pages, and a process of an ordinary user. What this machine does not let anybody do is said, and void.

use super::*;
use rnic_agent::proto::Memfd;

const C: Pattern = Pattern { tag: 'C', ..A };

/// A job's result.
fn result(agent: &Agent, op: Op) -> Result<Value, rnic_agent::proto::Failure> {
    let job = agent.ok(op).handle().unwrap();
    *agent.client.wait_job(job, LIMIT).unwrap().result.unwrap()
}

fn void(errno: i32) -> bool {
    let void = [libc::ENOSYS, libc::EPERM, libc::EACCES].contains(&errno);
    if void {
        eprintln!("errno {errno}: this machine does not let us; the rest of this test is void");
    }
    void
}

#[test]
fn io_uring_reads_into_a_mapping_and_into_registered_memory() {
    let agent = Agent::start();
    let (h, _) = agent.mapped(4);
    let m = agent.ok(Op::AnonBuffer { len: 4 * 4096, huge: false }).handle().unwrap();
    match result(&agent, Op::UringRead { h, foff: 4096, m, moff: 8192, len: 4096 }) {
        Err(failure) if void(failure.errno) => return,
        other => assert_eq!(other.unwrap(), Value::Num(4096)),
    }
    assert!(agent.load(m, 8192, 4096).is(&A, 4096) && !agent.load(m, 0, 4096).is(&A, 0));
    let u = agent.ok(Op::UringRegister { m, off: 4096, len: 8192 }).handle().unwrap();
    for _ in 0..3 {
        let fixed = Op::UringReadFixed { u, h, foff: 0, moff: 4096, len: 4096 };
        assert_eq!(result(&agent, fixed).unwrap(), Value::Num(4096));
    }
    assert!(agent.load(m, 4096, 4096).is(&A, 0));
    let outside = Op::UringReadFixed { u, h, foff: 0, moff: 0, len: 4096 };
    assert_eq!(result(&agent, outside).unwrap_err().errno, libc::EINVAL, "not registered");
    agent.ok(Op::Close { h: u });
    assert_eq!(agent.errno(Op::UringRegister { m, off: 0, len: 5 * 4096 }), libc::EINVAL, "outside the mapping");
}

#[test]
fn a_pipe_has_the_page_and_not_its_bytes() {
    let agent = Agent::start();
    let (_, m) = agent.mapped(2);
    let pipe = agent.ok(Op::Vmsplice { m, off: 4096, len: 4096 }).handle().unwrap();
    agent.ok(Op::Store { m, off: 4096, len: 4096, pattern: B });
    let read = agent.ok(Op::PipeRead { h: pipe }).content().unwrap();
    assert!(read.is(&B, 4096), "a later store shows: {read:?}");
    assert_eq!(agent.errno(Op::PipeRead { h: pipe }), libc::EPIPE, "it is empty");
    assert_eq!(agent.errno(Op::Vmsplice { m, off: 0, len: 17 * 4096 }), libc::EINVAL);
}

#[test]
fn a_packet_lands_in_registered_memory() {
    // In a network of its own: all that arrives on its loopback interface goes to the socket.
    let agent = env!("CARGO_BIN_EXE_rnic-agent");
    let alone = Command::new("unshare").args(["-n", agent, "--check"]).status();
    if !alone.is_ok_and(|status| status.success()) {
        eprintln!("no network of one's own: this test is void");
        return;
    }
    let agent = Agent::by(Command::new("unshare").args(["-n", agent]));
    assert_eq!(agent.exec(&["ip", "link", "set", "lo", "up"], "", 10).status, 0);
    let m = agent.ok(Op::AnonBuffer { len: 8 * 4096, huge: false }).handle().unwrap();
    agent.ok(Op::Store { m, off: 0, len: 8 * 4096, pattern: A });
    let x = match agent.call(Op::XdpUmem { m, off: 0, len: 8 * 4096 }) {
        Err(error) if void(error.errno().unwrap()) || error.errno() == Some(libc::EAFNOSUPPORT) => return,
        other => other.unwrap().handle().unwrap(),
    };
    for (page, pattern) in [(3, B), (5, C), (3, C), (2, B), (6, B)] {
        let off = page * 4096;
        agent.ok(Op::XdpReceive { x, off, len: 3584, pattern });
        assert!(agent.load(m, off, 3584).is(&pattern, off), "page {page}");
        assert!(agent.load(m, off + 3584, 512).is(&A, off + 3584), "behind page {page}");
    }
    assert_eq!(agent.errno(Op::XdpReceive { x, off: 0, len: 3584, pattern: B }), libc::EINVAL, "no room before it");
    assert_eq!(agent.errno(Op::XdpReceive { x, off: 4096, len: 4096, pattern: B }), libc::EINVAL, "too long");
}

#[test]
fn one_process_writes_into_another() {
    let agent = Agent::start();
    let p = agent.ok(Op::Process { user: false }).handle().unwrap();
    let within = |op: Op| Op::In { p, op: Box::new(op) };
    let theirs = agent.ok(within(Op::AnonBuffer { len: 8192, huge: false })).handle().unwrap();
    let Value::Place { pid, addr } = agent.ok(within(Op::Whereabouts { m: theirs, off: 4096 })) else {
        panic!("no place")
    };
    match agent.call(Op::VmWrite { pid, addr, off: 4096, len: 4096, pattern: C }) {
        Err(error) if void(error.errno().unwrap()) => return,
        other => assert_eq!(other.unwrap(), Value::Num(4096)),
    }
    let seen = agent.ok(within(Op::Load { m: theirs, off: 4096, len: 4096 })).content().unwrap();
    assert!(seen.is(&C, 4096));
    assert_eq!(agent.errno(Op::VmWrite { pid: u32::MAX, addr, off: 0, len: 1, pattern: C }), libc::ESRCH);
    assert_eq!(agent.errno(Op::VmWrite { pid, addr: 0, off: 0, len: 1, pattern: C }), libc::EFAULT);
}

#[test]
fn memory_files_can_be_mapped() {
    let agent = Agent::start();
    let h = agent.ok(Op::Memfd { kind: Memfd::Plain, len: 8192 }).handle().unwrap();
    let m = agent.ok(Op::Mmap { h, off: 0, len: 8192, write: true, private: false }).handle().unwrap();
    agent.ok(Op::Store { m, off: 0, len: 8192, pattern: B });
    assert!(agent.read(h, 0, 8192).is(&B, 0));
}

#[test]
fn a_users_process_has_no_rights_and_its_pages_are_told_all_the_same() {
    let agent = Agent::start();
    let Ok(p) = agent.call(Op::Process { user: true }).map(|value| value.handle().unwrap()) else {
        eprintln!("not root: nobody else's process can be started, this test is void");
        return;
    };
    let within = |op: Op| Op::In { p, op: Box::new(op) };
    let read = |path: &str| agent.ok(within(Op::ReadFile { path: path.into(), max: 8192 })).text().unwrap();
    let status = read("/proc/self/status");
    let line = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key} {status}"));
        line.split_whitespace().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!((line("Uid:"), line("Gid:")), (vec!["65534".to_string(); 4], vec!["65534".to_string(); 4]));
    assert_eq!(line("Groups:"), Vec::<String>::new());
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(line(set), ["0000000000000000"], "{set}");
    }
    let limits = |text: String| text.lines().find(|line| line.starts_with("Max locked memory")).map(String::from);
    let own = agent.ok(Op::ReadFile { path: "/proc/self/limits".into(), max: 8192 }).text().unwrap();
    assert_eq!(limits(read("/proc/self/limits")), limits(own), "RLIMIT_MEMLOCK is what the agent was given");
    let m = agent.ok(within(Op::AnonBuffer { len: 8192, huge: false })).handle().unwrap();
    agent.ok(within(Op::Store { m, off: 0, len: 8192, pattern: B }));
    let page = agent.ok(within(Op::PageInfo { m, off: 4096 })).page().unwrap();
    assert!(page.present);
    let root = agent.ok(Op::AnonBuffer { len: 4096, huge: false }).handle().unwrap();
    agent.ok(Op::Store { m: root, off: 0, len: 4096, pattern: A });
    let own = agent.ok(Op::PageInfo { m: root, off: 0 }).page().unwrap();
    assert_eq!(own.pfn == 0, page.pfn == 0, "what root is told of itself it is told of the user's process");
    assert_eq!(
        agent.errno(within(Op::Open { path: "/proc/kpageflags".into(), flags: OpenFlags::default() })),
        libc::EACCES
    );
}
